//! Attention at the shapes of SmolLM2-135M (9 heads, 3 key-value heads, head size 64): `cargo bench -p anaphora-kernels`.
//! Throughput is in floating-point operations (two per multiply-add), to hold against the machine's best product.

use anaphora_kernels::{
    Pool,
    paged_attention::{PagedAttention, Shape, paged_attention},
    simd::Level,
};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

fn bench(criterion: &mut Criterion) {
    let pool = Pool::new(std::thread::available_parallelism().map_or(1, usize::from)).expect("threads");
    let mut group = criterion.benchmark_group("paged_attention");
    group.sample_size(20);
    for (name, rows) in [
        ("decode 1 x 300", vec![(1, 300)]),
        ("decode 32 x 300", vec![(1, 300); 32]),
        ("decode 1 x 6000", vec![(1, 6000)]),
        ("prefill 512 of 6000", vec![(512, 6000)]),
    ] {
        let shape = Shape { num_heads: 9, num_kv_heads: 3, head_dim: 64, block_size: 16, max_blocks: 400 };
        let num_blocks = rows.len() * shape.max_blocks;
        let cache = vec![0.01f32; num_blocks * shape.block_size * shape.num_kv_heads * shape.head_dim];
        let block_tables: Vec<i32> = (0..num_blocks as i32).collect();
        let mut query_starts = vec![0i32];
        for (new, _) in &rows {
            query_starts.push(query_starts[query_starts.len() - 1] + new);
        }
        let context_lengths: Vec<i32> = rows.iter().map(|row| row.1).collect();
        let num_tokens = query_starts[rows.len()] as usize;
        let query = vec![0.1f32; num_tokens * shape.num_heads * shape.head_dim];
        let mut output = vec![0.0f32; query.len()];
        let call = PagedAttention {
            shape,
            query: &query,
            key_cache: &cache,
            value_cache: &cache,
            block_tables: &block_tables,
            query_starts: &query_starts,
            context_lengths: &context_lengths,
            scale: 0.125,
            sliding_window: None,
            soft_cap: None,
            sinks: None,
        };
        let pairs: u64 = rows
            .iter()
            .map(|&(new, all)| (i64::from(new) * (2 * i64::from(all) - i64::from(new) + 1) / 2) as u64)
            .sum();
        group.throughput(Throughput::Elements(pairs * (4 * shape.num_heads * shape.head_dim) as u64));
        group.bench_function(name, |bencher| {
            bencher.iter(|| paged_attention(&call, &mut output, &pool, Level::best()).expect("valid"));
        });
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
