//! What it costs to begin and end a job that does nothing: `cargo bench -p anaphora-kernels --bench pool`.

use anaphora_kernels::Pool;
use criterion::{Criterion, criterion_group, criterion_main};

fn bench(criterion: &mut Criterion) {
    let pool = Pool::new(std::thread::available_parallelism().map_or(1, usize::from)).expect("threads");
    criterion.bench_function("fork and join", |bencher| {
        bencher.iter(|| {
            pool.for_each(2 * pool.num_threads(), |index| {
                std::hint::black_box(index);
            });
        });
    });
}

criterion_group!(benches, bench);
criterion_main!(benches);
