//! Products at the shapes of SmolLM2-135M, beside a plain read of as many bytes: `cargo bench -p anaphora-kernels --bench linear`.
//! With one row the throughput is in bytes of weights, to hold against the read; with many in floating-point operations.

use anaphora_kernels::{
    Pool,
    linear::{Floats, FloatsMut, Format, Linear, Weight, linear},
    simd::Level,
};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

/// Copies of each weight, so that a decode reads memory and not caches.
const COPIES: usize = 120;
const SHAPE: (usize, usize) = (3072, 576);

fn weights(format: Format, copies: usize, pool: &Pool) -> Vec<Weight> {
    let (rows, columns) = SHAPE;
    let values = vec![0.01f32; rows * columns];
    let mut weight = Weight::new(rows, columns);
    if format == Format::Q4Min {
        let block: Vec<u8> = [0x12, 0x34].into_iter().cycle().take(20).collect();
        let blocks = block.repeat(rows * columns / 32);
        weight.pack_blocks(0, &blocks, 3, pool).expect("rows of the weight");
    } else {
        weight.pack_floats(0, Floats::F32(&values), format, pool).expect("rows of the weight");
    }
    vec![weight; copies]
}

fn bench(criterion: &mut Criterion) {
    let pool = Pool::new(std::thread::available_parallelism().map_or(1, usize::from)).expect("threads");
    let mut group = criterion.benchmark_group("linear");
    group.sample_size(10);
    let memory = vec![1u64; 64 << 20];
    let chunk = memory.len() / pool.num_threads() / 8;
    group.throughput(Throughput::Bytes(8 * memory.len() as u64));
    group.bench_function("read", |bencher| {
        bencher.iter(|| {
            pool.for_each(memory.len() / chunk, |index| {
                let sum: u64 = memory[index * chunk..][..chunk].iter().fold(0, |a, b| a ^ b);
                std::hint::black_box(sum);
            });
        });
    });
    drop(memory);
    for format in [Format::F32, Format::Bf16, Format::Int16, Format::Q8, Format::Q4Min] {
        for num_rows in [1, 4, 8, 32, 512] {
            let copies = if num_rows < 512 { COPIES } else { 1 };
            let weights = weights(format, copies, &pool);
            let (x, mut out) = (vec![0x3F80u16; num_rows * SHAPE.1], vec![0u16; num_rows * SHAPE.0]);
            let bytes = copies * weights[0].num_bytes();
            let operations = 2 * copies * num_rows * SHAPE.0 * SHAPE.1;
            group.throughput(if num_rows == 1 {
                Throughput::Bytes(bytes as u64)
            } else {
                Throughput::Elements(operations as u64)
            });
            group.bench_function(format!("{format:?} x {num_rows}"), |bencher| {
                bencher.iter(|| {
                    for weight in &weights {
                        let call = Linear { x: Floats::Bf16(&x), weight, bias: None };
                        linear(&call, &mut FloatsMut::Bf16(&mut out), &pool, Level::best()).expect("valid");
                    }
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
