//! Attention at the shapes of SmolLM2-135M (9 heads, 3 key-value heads, head size 64) and of a tiny Llama (4, 2, 32):
//! `cargo bench -p anaphora-kernels --bench paged_attention`. Throughput is in floating-point operations (two per
//! multiply-add) for chunks of prompts, to hold against the machine's best product, and in bytes of keys and values for
//! decodes, to hold against a plain read (`floor`).

use anaphora_kernels::{
    Bf16, Element, Pool,
    paged_attention::{Batch, Heads, PagedAttention, Plan, paged_attention},
    simd::Level,
};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const BLOCK_SIZE: usize = 16;
const SMOLLM2: Heads = Heads { num_heads: 9, num_kv_heads: 3, head_dim: 64 };
const TINY: Heads = Heads { num_heads: 4, num_kv_heads: 2, head_dim: 32 };

struct Case {
    name: &'static str,
    heads: Heads,
    /// (new tokens, tokens in all)
    rows: Vec<(usize, usize)>,
    /// Leading blocks that all rows have in common.
    num_shared: usize,
}

fn cases() -> Vec<Case> {
    let case = |name, heads, rows, num_shared| Case { name, heads, rows, num_shared };
    vec![
        case("decode 1 x 300", SMOLLM2, vec![(1, 300)], 0),
        case("decode 32 x 300", SMOLLM2, vec![(1, 300); 32], 0),
        case("decode 1 x 6000", SMOLLM2, vec![(1, 6000)], 0),
        case("decode 32 x 6000, 5984 shared", SMOLLM2, vec![(1, 6000); 32], 374),
        case("decode 1 x 200000", TINY, vec![(1, 200_000)], 0),
        case("prefill 512 of 512", SMOLLM2, vec![(512, 512)], 0),
        case("prefill 512 of 6000", SMOLLM2, vec![(512, 6000)], 0),
        case("prefill 512 of 50000", TINY, vec![(512, 50_000)], 0),
        case("prefill 16 of 200000", TINY, vec![(16, 200_000)], 0),
    ]
}

fn bench_case<K: Element>(criterion: &mut Criterion, pool: &Pool, dtype: &str, case: &Case) {
    let Case { name, heads, ref rows, num_shared } = *case;
    let max_blocks = rows.iter().map(|row| row.1.div_ceil(BLOCK_SIZE)).max().unwrap_or(0);
    let num_blocks = num_shared + rows.len() * (max_blocks - num_shared);
    let table = |row: usize| {
        (0..max_blocks)
            .map(move |at| (if at < num_shared { at } else { row * (max_blocks - num_shared) + at }) as i32)
    };
    let tables: Vec<i32> = (0..rows.len()).flat_map(table).collect();
    let mut starts = vec![0i32];
    for (new, _) in rows {
        starts.push(starts[starts.len() - 1] + *new as i32);
    }
    let contexts: Vec<i32> = rows.iter().map(|row| row.1 as i32).collect();
    let batch = Batch::new(&tables, &starts, &contexts, BLOCK_SIZE, num_blocks).expect("valid");
    let noise = |i: usize| K::narrow(((i * 7919) % 1013) as f32 / 500.0 - 1.0);
    let cache: Vec<K> =
        (0..num_blocks * BLOCK_SIZE * heads.num_kv_heads * heads.head_dim).map(noise).collect();
    let query_stride = heads.num_heads * heads.head_dim;
    let query: Vec<K> = (0..batch.num_tokens() * query_stride).map(noise).collect();
    let mut output = query.clone();
    let call = PagedAttention {
        heads,
        query: &query,
        query_stride,
        key_cache: &cache,
        value_cache: &cache,
        scale: (heads.head_dim as f32).powf(-0.5),
        sliding_window: None,
        soft_cap: None,
        sinks: None,
    };
    let plan = Plan::new(&batch, heads, None, pool.num_threads());
    let pairs: usize = rows.iter().map(|&(new, all)| new * (2 * all - new + 1) / 2).sum();
    let mut group = criterion.benchmark_group("paged_attention");
    group.sample_size(10).warm_up_time(std::time::Duration::from_millis(300));
    group.measurement_time(std::time::Duration::from_secs(1));
    group.throughput(if rows[0].0 == 1 {
        Throughput::Bytes((2 * pairs * heads.num_kv_heads * heads.head_dim * size_of::<K>()) as u64)
    } else {
        Throughput::Elements((pairs * 4 * heads.num_heads * heads.head_dim) as u64)
    });
    group.bench_function(format!("{name}, {dtype}"), |bencher| {
        bencher
            .iter(|| paged_attention(&call, &batch, &plan, &mut output, pool, Level::best()).expect("valid"));
    });
    group.finish();
}

/// How fast memory can be read at all, on the same threads.
fn bench_floor(criterion: &mut Criterion, pool: &Pool) {
    let data = vec![1u64; 32 << 20];
    let mut group = criterion.benchmark_group("floor");
    group.sample_size(10).throughput(Throughput::Bytes(size_of_val(&data[..]) as u64));
    group.bench_function("read 256 MiB", |bencher| {
        bencher.iter(|| {
            let chunks: Vec<&[u64]> = data.chunks(1 << 17).collect();
            pool.map(chunks.len(), |i| chunks[i].iter().fold(0u64, |sum, x| sum.wrapping_add(*x)))
        });
    });
    group.finish();
}

fn bench(criterion: &mut Criterion) {
    let pool = Pool::new(std::thread::available_parallelism().map_or(1, usize::from)).expect("threads");
    bench_floor(criterion, &pool);
    for case in cases() {
        bench_case::<f32>(criterion, &pool, "f32", &case);
        bench_case::<Bf16>(criterion, &pool, "bf16", &case);
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
