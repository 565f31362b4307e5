//! Which replica serves a turn.

use anaphora_core::{Namespace, Scheduler, TokenId};
use rand::{Rng as _, SeedableRng as _};
use rand_xoshiro::Xoshiro256PlusPlus;

/// How replicas are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Routing {
    /// One after the other.
    RoundRobin,
    /// Any, with equal chances.
    Random,
    /// The one with the fewest sequences.
    LeastLoaded,
    /// A session stays where its first turn went, which was the least loaded.
    Sticky,
    /// The one that would have least to compute before the answer begins: what the turn lacks there, and what is queued.
    PrefixAffinity,
}

/// What is known of a replica.
pub struct Candidate<'a> {
    /// Its scheduler.
    pub scheduler: &'a Scheduler,
    /// Prompt tokens of turns that were sent there and have not begun to answer, as far as they were not cached.
    pub num_queued_tokens: u64,
}

/// The index of the replica that serves the `nth` turn of all, whose session was last served by `last`.
#[must_use]
pub fn choose(
    routing: Routing,
    replicas: &[Candidate<'_>],
    (nth, last): (usize, Option<usize>),
    tokens: &[TokenId],
) -> usize {
    let num_live = |index: &usize| {
        let stats = replicas[*index].scheduler.stats();
        stats.waiting + stats.prefilling + stats.decoding
    };
    let all = 0..replicas.len();
    let least_loaded = || all.clone().min_by_key(num_live).unwrap_or(0);
    match routing {
        Routing::RoundRobin => nth % replicas.len(),
        Routing::Random => Xoshiro256PlusPlus::seed_from_u64(nth as u64).random_range(all),
        Routing::LeastLoaded => least_loaded(),
        Routing::Sticky => last.unwrap_or_else(least_loaded),
        Routing::PrefixAffinity => {
            all.min_by_key(|&index| (num_to_compute(&replicas[index], tokens), num_live(&index))).unwrap_or(0)
        }
    }
}

/// Tokens that `replica` would compute before it answers.
#[must_use]
pub fn num_to_compute(replica: &Candidate<'_>, tokens: &[TokenId]) -> u64 {
    let explanation = replica.scheduler.explain(&Namespace::default(), tokens);
    replica.num_queued_tokens + (explanation.num_tokens - explanation.num_cached_tokens) as u64
}
