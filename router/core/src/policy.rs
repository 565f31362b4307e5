//! Who is served first, who is preempted, and how a step's tokens are shared out: plain functions over plain data.

use std::cmp::Reverse;

use crate::ids::SequenceId;

/// The order in which sequences are served: higher priority first, then first come, first served. The victim of a
/// preemption is the last in this order, so that the oldest sequence of the highest priority always gets on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank {
    priority: Reverse<i32>,
    arrival: SequenceId,
}

impl Rank {
    /// The rank of a sequence. Ids count up in order of arrival.
    #[must_use]
    pub fn new(priority: i32, sequence: SequenceId) -> Self {
        Self { priority: Reverse(priority), arrival: sequence }
    }

    /// Higher is served first.
    #[must_use]
    pub fn priority(self) -> i32 {
        self.priority.0
    }
}

/// The most that [`min_chunk_tokens`] asks for.
const MAX_MIN_CHUNK_TOKENS: u32 = 64;

/// How far ahead admission leaves room for a running sequence to grow, in tokens. Less fills the pool better and preempts
/// more.
pub const GROWTH_TOKENS: u32 = 128;

/// The blocks that admission leaves to the running sequences, which want to grow by `num_wanted` blocks soon (each by
/// [`GROWTH_TOKENS`], or as far as it can): what they want, but no more than half of the pool. Most sequences end before
/// they are as long as they may be, so in a small pool it is better to preempt now and then than to leave it empty.
#[must_use]
pub fn growth_room(num_wanted: u32, num_total_blocks: u32) -> u32 {
    num_wanted.min(num_total_blocks / 2)
}

/// The fewest tokens of a prefill that are worth a row in a step of `max_step_tokens`, unless fewer remain. At least four
/// prefills can share a step.
#[must_use]
pub fn min_chunk_tokens(max_step_tokens: u32) -> u32 {
    (max_step_tokens / 4).clamp(1, MAX_MIN_CHUNK_TOKENS)
}

/// Shares `budget` tokens among prefills in order of rank, each with `num_left[i]` tokens to compute. Returns the size of
/// each one's chunk.
///
/// Each gets `min_chunk` (or what it has left), as far as the budget goes. Of what is then to spare, the first takes half,
/// the second half of the rest, and so on; what nobody could use goes to the first that can. So a short prompt beside a
/// long one is computed at once, and the oldest still gets half of a step.
#[must_use]
pub fn share_prefill_tokens(budget: u32, min_chunk: u32, num_left: &[u32]) -> Vec<u32> {
    let mut spare = budget;
    let mut chunks: Vec<u32> = Vec::with_capacity(num_left.len());
    for &num in num_left {
        let chunk = num.min(min_chunk).min(spare);
        spare -= chunk;
        chunks.push(chunk);
    }
    let mut give = |part: fn(u32) -> u32| {
        for (chunk, &num) in chunks.iter_mut().zip(num_left) {
            let more = (num - *chunk).min(part(spare));
            *chunk += more;
            spare -= more;
        }
    };
    give(|spare| spare.div_ceil(2));
    give(|spare| spare);
    chunks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn priority_comes_before_arrival() {
        let mut ranks = [(0, 2), (5, 3), (0, 1), (-1, 0)].map(|(p, id)| Rank::new(p, SequenceId(id)));
        ranks.sort();
        assert_eq!(ranks, [(5, 3), (0, 1), (0, 2), (-1, 0)].map(|(p, id)| Rank::new(p, SequenceId(id))));
    }

    #[test]
    fn prefill_tokens_are_shared_by_halves() {
        let check = |budget, num_left: &[u32], expected: &[u32]| {
            assert_eq!(share_prefill_tokens(budget, 64, num_left), expected, "{budget} among {num_left:?}");
        };
        check(512, &[200_000], &[512]);
        check(512, &[200_000, 50], &[462, 50]);
        check(512, &[200_000, 300], &[64 + 192 + 96, 64 + 96]);
        check(512, &[50, 200_000], &[50, 462]);
        check(512, &[200_000; 3], &[64 + 160 + 40, 64 + 80, 64 + 40]);
        check(100, &[200_000, 200_000], &[64, 36]);
        check(10, &[200_000, 5], &[10, 0]);
        check(600, &[50; 10], &[50; 10]);
        check(0, &[7], &[0]);
        check(7, &[], &[]);
    }

    #[test]
    fn the_least_chunk_fits_four_times() {
        assert_eq!([1, 3, 16, 512, 4096].map(min_chunk_tokens), [1, 1, 4, 64, 64]);
    }
}
