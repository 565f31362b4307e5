//! Who asks what, and when: sessions of turns, each of which continues the one before.

use rand::{Rng as _, SeedableRng as _};
use rand_xoshiro::Xoshiro256PlusPlus;

/// A user, or an agent: one turn after another, each with all that was said before.
#[derive(Clone, Debug)]
pub struct Session {
    /// When the first turn comes, in microseconds.
    pub start_us: u64,
    /// How long after an answer the next turn comes, in microseconds.
    pub think_us: u64,
    /// Sessions of one group begin with the same tokens.
    pub group: u32,
    /// How many tokens those are; the first turn's own come after them.
    pub num_shared_tokens: u32,
    /// Its turns, in order.
    pub turns: Vec<Turn>,
}

/// A question and its answer.
#[derive(Clone, Copy, Debug)]
pub struct Turn {
    /// New prompt tokens.
    pub num_new_tokens: u32,
    /// Tokens of the answer.
    pub num_output_tokens: u32,
}

/// Coding agents, as production traces show them: 195,000 tokens of context, 632 new ones per turn, 317 in the answer, two
/// seconds between turns. All share a system prompt of 6,000 tokens. They come one every `interval_us`, give or take half.
#[must_use]
pub fn agents(num_sessions: usize, num_turns: usize, interval_us: u64, seed: u64) -> Vec<Session> {
    let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
    let mut start_us = 0;
    let session = |_| {
        start_us += random.random_range(interval_us / 2..=interval_us * 3 / 2);
        let first = Turn { num_new_tokens: random.random_range(164_000..214_000), num_output_tokens: 317 };
        let mut later = || Turn {
            num_new_tokens: random.random_range(200..1_064),
            num_output_tokens: random.random_range(100..534),
        };
        let turns = std::iter::once(first).chain((1..num_turns).map(|_| later())).collect();
        Session { start_us, think_us: 2_000_000, group: 0, num_shared_tokens: 6_000, turns }
    };
    (0..num_sessions).map(session).collect()
}

/// People who chat: a short prompt, a few turns, ten seconds to read.
#[must_use]
pub fn chats(num_sessions: usize, num_turns: usize, interval_us: u64, seed: u64) -> Vec<Session> {
    let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
    let mut start_us = 0;
    let session = |_| {
        start_us += random.random_range(interval_us / 2..=interval_us * 3 / 2);
        let mut turn = |_| Turn {
            num_new_tokens: random.random_range(50..500),
            num_output_tokens: random.random_range(100..400),
        };
        let turns = (0..num_turns).map(&mut turn).collect();
        Session { start_us, think_us: 10_000_000, group: 1, num_shared_tokens: 1_000, turns }
    };
    (0..num_sessions).map(session).collect()
}

/// People who ask once about a long document of their own, which nobody reads again: what fills a cache for nothing.
#[must_use]
pub fn scans(num_sessions: usize, num_tokens: u32, interval_us: u64, seed: u64) -> Vec<Session> {
    let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
    let mut start_us = 0;
    let session = |_| {
        start_us += random.random_range(interval_us / 2..=interval_us * 3 / 2);
        let turns = vec![Turn { num_new_tokens: num_tokens, num_output_tokens: 200 }];
        Session { start_us, think_us: 0, group: 2, num_shared_tokens: 0, turns }
    };
    (0..num_sessions).map(session).collect()
}
