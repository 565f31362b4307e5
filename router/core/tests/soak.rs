//! Long lives: a few schedulers under random operations without a fresh start in between, with all checks at each of them.
//! Whenever one comes to rest, nothing is held, each sequence has ended with its own tokens, and the process has not grown.
//!
//! `SOAK_SECONDS=600 cargo test --release -p anaphora-core --test soak -- --nocapture` soaks for ten minutes; without the
//! variable it is two seconds.
#![expect(clippy::disallowed_types, clippy::disallowed_methods, reason = "it ends by the clock")]
#![expect(clippy::print_stdout, clippy::disallowed_macros, reason = "progress")]

use std::time::{Duration, Instant};

use anaphora_core::testing::{
    End, World, expected_tokens,
    strategies::{configs, ops, tight_configs},
};
use proptest::{
    collection::vec,
    strategy::{Strategy, ValueTree},
    test_runner::TestRunner,
};

const NUM_WORLDS: usize = 8;
/// Operations between two rests.
const NUM_OPS: usize = 300;
/// Sequences that a world remembers, for later ones to continue.
const NUM_KEPT: usize = 100;

fn draw<S: Strategy>(strategy: &S, runner: &mut TestRunner) -> S::Value {
    strategy.new_tree(runner).expect("nothing is filtered").current()
}

/// Lets everything end, and checks that it did so well.
fn rest(world: &mut World) -> u64 {
    world.run();
    for outcome in world.outcomes.values() {
        let (tokens, reason) = expected_tokens(&outcome.request);
        match outcome.end {
            Some(End::Finished(end)) => assert_eq!((&outcome.tokens, end), (&tokens, reason)),
            Some(End::Expired) => assert!(outcome.tokens.is_empty()),
            Some(End::Cancelled) => assert!(tokens.starts_with(&outcome.tokens)),
            None => panic!("a sequence never ended"),
        }
    }
    let stats = world.scheduler.stats();
    assert_eq!((stats.held_blocks, stats.waiting, stats.prefilling), (0, 0, 0), "{stats:?}");
    assert_eq!((stats.decoding, stats.draining, stats.in_flight), (0, 0, 0), "{stats:?}");
    assert_eq!(stats.free_blocks + stats.cached_blocks, stats.total_blocks, "{stats:?}");
    assert_eq!(stats.submitted, stats.finished + stats.expired + stats.cancelled, "{stats:?}");
    world.forget(NUM_KEPT);
    stats.steps
}

/// Resident memory of this process, in bytes; 0 where the system does not tell.
fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or_default() * 4096
}

#[test]
fn nothing_is_left_over_in_a_long_life() {
    let seconds = std::env::var("SOAK_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(2);
    let (began, length) = (Instant::now(), Duration::from_secs(seconds));
    let mut runner = TestRunner::default();
    let mut worlds: Vec<World> = (0..NUM_WORLDS)
        .map(|index| match index % 4 {
            0 => World::new(draw(&tight_configs(), &mut runner).0),
            _ => World::new(draw(&configs(), &mut runner)),
        })
        .collect();
    let (mut num_rests, mut bytes_at_first, mut minutes) = (0_u64, 0, 0);
    let mut num_steps = [0; NUM_WORLDS];
    while began.elapsed() < length {
        let index = num_rests as usize % NUM_WORLDS;
        let world = &mut worlds[index];
        draw(&vec(ops(), NUM_OPS), &mut runner).iter().for_each(|op| world.apply(op));
        num_steps[index] = rest(world);
        num_rests += 1;
        // By then every world remembers as much as it ever will.
        if began.elapsed() < length / 5 {
            bytes_at_first = resident_bytes();
        }
        if began.elapsed().as_secs() / 60 > minutes {
            minutes += 1;
            println!("{minutes} min: {num_rests} rests, {} MB", resident_bytes() >> 20);
        }
    }
    let bytes = resident_bytes();
    println!(
        "{num_rests} rests, {} operations, {} steps, resident {} MB at first, {} MB at the end",
        num_rests * NUM_OPS as u64,
        num_steps.iter().sum::<u64>(),
        bytes_at_first >> 20,
        bytes >> 20
    );
    assert!(num_rests > NUM_WORLDS as u64, "it was too short to come back to a world");
    // Allocators keep some; a leak of one sequence in a thousand would show.
    assert!(
        bytes <= bytes_at_first + bytes_at_first / 4 + (8 << 20),
        "{bytes_at_first} became {bytes} bytes"
    );
}
