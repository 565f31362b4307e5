//! What planning and committing a step costs: with 1,000 sequences, and with contexts of 1,000 and 200,000 tokens.
//!
//! `cargo bench -p anaphora-core --bench plan`
#![expect(clippy::disallowed_types, clippy::disallowed_methods, reason = "a benchmark reads the clock")]

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anaphora_core::{
    Eviction, Namespace, Request, Sample, Sampling, Scheduler, SchedulerConfig, StepOutput, StepPlan, Tick,
    TokenId,
};
use criterion::{Criterion, criterion_group, criterion_main};

const TICK: Tick = Tick(0);

fn request(seed: u32, num_prompt: u32, max_new_tokens: u32) -> Request {
    Request {
        namespace: Namespace { model: "model".into(), ..Namespace::default() },
        prompt: (0..num_prompt).map(|i| (seed.wrapping_mul(0x9e37_79b9) ^ i) % 128_256).collect(),
        max_new_tokens,
        stop_tokens: [128_001, 128_009].into(),
        sampling: Sampling::default().into(),
        priority: 0,
    }
}

fn output(plan: &StepPlan, token: TokenId) -> StepOutput {
    let num_samples = plan.rows.iter().filter(|row| row.sample).count();
    let samples =
        (0..num_samples as u32).map(|row| Sample { token: token + row, logprob: -1.0, top: Vec::new() });
    StepOutput { id: plan.id, samples: samples.collect(), duration_us: 0 }
}

/// `num_sequences` sequences that all decode, with contexts of `num_prompt` tokens and more.
fn decoding(num_sequences: u32, num_prompt: u32) -> Scheduler {
    let mut scheduler = Scheduler::new(SchedulerConfig {
        // One sequence more than there are may run.
        num_blocks: (num_sequences + 1) * (num_prompt + 2048).div_ceil(16),
        block_size: 16,
        max_rows: num_sequences + 1,
        max_step_tokens: 65_536,
        max_context: num_prompt + 2048,
        max_in_flight: 2,
        prefix_cache: true,
        target_itl_us: u64::MAX,
        max_queue_time_us: u64::MAX,
        eviction: Eviction::Lru,
        quotas: BTreeMap::new(),
    })
    .expect("the limits make sense");
    for seed in 0..num_sequences {
        scheduler.submit(request(seed, num_prompt, 2048), TICK).expect("it fits");
    }
    while scheduler.stats().decoding < num_sequences {
        let plan = scheduler.plan(TICK).expect("not all decode");
        scheduler.commit(&output(&plan, 0)).expect("the output answers the plan");
    }
    scheduler
}

/// Time of `plan` and of `commit` in `num_steps` steps.
fn time_steps(num_steps: u64, mut scheduler: impl FnMut() -> Scheduler) -> (Duration, Duration) {
    let (mut planning, mut committing) = (Duration::ZERO, Duration::ZERO);
    let mut num_left = num_steps;
    while num_left > 0 {
        let num_now = num_left.min(1024);
        num_left -= num_now;
        let mut scheduler = scheduler();
        for step in 0..num_now {
            let start = Instant::now();
            let plan = scheduler.plan(TICK).expect("all decode");
            planning += start.elapsed();
            let output = output(&plan, step as TokenId);
            let start = Instant::now();
            let events = scheduler.commit(&output).expect("the output answers the plan");
            committing += start.elapsed();
            drop((plan, events));
        }
    }
    (planning, committing)
}

fn decode_steps(c: &mut Criterion) {
    let mut group = c.benchmark_group("decode step");
    group.sample_size(10);
    for (num_sequences, num_prompt) in [(1000, 100), (1, 1000), (1, 200_000)] {
        let name = |verb| format!("{verb}: {num_sequences} rows, {num_prompt} tokens of context");
        group.bench_function(name("plan"), |b| {
            b.iter_custom(|num| time_steps(num, || decoding(num_sequences, num_prompt)).0);
        });
        group.bench_function(name("commit"), |b| {
            b.iter_custom(|num| time_steps(num, || decoding(num_sequences, num_prompt)).1);
        });
    }
    group.finish();
}

/// A turn of 200,000 tokens of which 200 are new: from submission to the plan of its first row.
fn warm_turn(c: &mut Criterion) {
    let mut scheduler = decoding(1, 200_000);
    let all: Vec<TokenId> = request(0, 200_000, 1).prompt;
    c.bench_function("submit, plan, cancel and commit a warm turn of 200,000 + 200 tokens", |b| {
        let mut seed = 0;
        b.iter_custom(|num| {
            let mut time = Duration::ZERO;
            for _ in 0..num {
                seed += 1;
                let mut turn = request(seed, 200, 1);
                turn.prompt = [&all[..], &turn.prompt].concat();
                let start = Instant::now();
                let id = scheduler.submit(turn, TICK).expect("it fits");
                let plan = scheduler.plan(TICK).expect("it runs");
                time += start.elapsed();
                assert_eq!(plan.started.len(), 1);
                let answer = output(&plan, 0);
                let start = Instant::now();
                scheduler.cancel(id);
                scheduler.commit(&answer).expect("the output answers the plan");
                time += start.elapsed();
            }
            time
        });
    });
}

criterion_group!(benches, decode_steps, warm_turn);
criterion_main!(benches);
