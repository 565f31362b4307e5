//! Who is served first, who is preempted, and how a step's tokens are shared out: plain functions over plain data.

use std::cmp::Reverse;

use crate::ids::{SequenceId, Tick};

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

/// A running prefill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefill {
    /// Of its sequence.
    pub priority: i32,
    /// Tokens to compute.
    pub num_left: u32,
}

/// Shares `budget` tokens among prefills, which stand in order of rank. Returns the size of each one's chunk.
///
/// Half goes to the first. The rest goes to the shortest, then to the next, those of higher priority before others. So a
/// short prompt beside a long one is computed at once; and since the first of those left always gets at least half, each
/// is done after twice the tokens, at most, that it and those before it in rank have.
#[must_use]
pub fn share_prefill_tokens(budget: u32, prefills: &[Prefill]) -> Vec<u32> {
    let mut chunks = vec![0; prefills.len()];
    let mut spare = budget;
    let mut give = |index: usize, part: u32| {
        let chunk: &mut u32 = &mut chunks[index];
        let more = part.min(spare).min(prefills[index].num_left - *chunk);
        *chunk += more;
        spare -= more;
    };
    let mut by_length: Vec<usize> = (0..prefills.len()).collect();
    by_length.sort_by_key(|&index| (Reverse(prefills[index].priority), prefills[index].num_left));
    if !prefills.is_empty() {
        give(0, budget.div_ceil(2));
    }
    by_length.into_iter().for_each(|index| give(index, budget));
    chunks
}

/// How long a step may take if neighbours decode in it, in microseconds: as long as they were promised. If decoding alone
/// takes so long already, half as long again, so that prefills get on.
#[must_use]
pub fn step_limit_us(target_itl_us: u64, decodes_alone_us: f64) -> f64 {
    (target_itl_us as f64).max(1.5 * decodes_alone_us)
}

/// Whether a waiting sequence with `num_left` tokens to compute is short enough to be let in beside prefills of which the
/// shortest has `shortest` left. With halves, at most as many are let in as a number has binary digits.
#[must_use]
pub fn is_short(num_left: u32, shortest: u32) -> bool {
    num_left <= shortest / 2
}

/// When a prefix that was reused before, and last used at `last_used` (in microseconds), may be given up for a sequence that
/// waits: once it has been idle for as long as it would take to compute it again. Whoever comes back sooner finds it; whoever
/// does not come back has cost the one who waits no more than a lost prefix would have cost the device (the ski-rental
/// problem: Karlin et al. 1988).
#[must_use]
pub fn idle_enough_at(last_used: u64, recompute_us: f64) -> Tick {
    Tick(last_used.saturating_add(recompute_us as u64))
}

/// Which of the cached blocks that nobody reads are given up first. Always leaves before what they continue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Eviction {
    /// Those not used for the longest time.
    #[default]
    Lru,
    /// Those that are cheapest to compute again, with ageing: `GreedyDual` (Young 1994). A token's cost grows with its
    /// position, since it attends to all before it.
    CostAware,
}

/// Where attention costs as much as everything else in a token; of the order of an 8B model's 26,000.
const BALANCED_POSITION: u64 = 26_000;

impl Eviction {
    /// What a run of blocks that begins at position `start` is worth when it is used, given what the last evicted one was.
    /// Of equal worth, the least recently used goes first.
    #[must_use]
    pub fn worth(self, start: usize, inflation: u64) -> u64 {
        match self {
            Self::Lru => 0,
            Self::CostAware => inflation + BALANCED_POSITION + start as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    #[test]
    fn priority_comes_before_arrival() {
        let mut ranks = [(0, 2), (5, 3), (0, 1), (-1, 0)].map(|(p, id)| Rank::new(p, SequenceId(id)));
        ranks.sort();
        assert_eq!(ranks, [(5, 3), (0, 1), (0, 2), (-1, 0)].map(|(p, id)| Rank::new(p, SequenceId(id))));
    }

    #[test]
    fn half_goes_to_the_first_and_half_to_the_shortest() {
        let check = |budget, num_left: &[u32], expected: &[u32]| {
            let prefills: Vec<_> =
                num_left.iter().map(|&num_left| Prefill { priority: 0, num_left }).collect();
            assert_eq!(share_prefill_tokens(budget, &prefills), expected, "{budget} among {num_left:?}");
        };
        check(512, &[200_000], &[512]);
        check(512, &[200_000, 50], &[462, 50]);
        check(512, &[200_000, 300], &[256, 256]);
        check(512, &[50, 200_000], &[50, 462]);
        check(512, &[200_000, 300, 100, 20], &[256, 136, 100, 20]);
        check(512, &[100, 300], &[100, 300]);
        check(5, &[200_000, 5], &[3, 2]);
        check(1, &[200_000, 5], &[1, 0]);
        check(0, &[7], &[0]);
        check(7, &[], &[]);
    }

    proptest! {
        /// Prompts come when they come; each is done after twice the tokens, at most, that it and those before it have. A step
        /// may do one prompt's last tokens, so half a step per prompt is lost to that at most.
        #[test]
        fn nobody_starves(prompts in vec((0..50usize, 1..3000u32), 1..30), budget in 1..700u32) {
            let mut prompts = prompts;
            prompts.sort_by_key(|(arrival, _)| *arrival);
            let mut left: Vec<u32> = prompts.iter().map(|(_, num)| *num).collect();
            let mut spent = vec![0; prompts.len()];
            let mut step = 0;
            while left.iter().any(|num| *num > 0) {
                let here: Vec<usize> =
                    (0..prompts.len()).filter(|&i| prompts[i].0 <= step && left[i] > 0).collect();
                let prefills: Vec<_> =
                    here.iter().map(|&i| Prefill { priority: 0, num_left: left[i] }).collect();
                let chunks = share_prefill_tokens(budget, &prefills);
                let total = chunks.iter().sum::<u32>();
                let num_wanted = prefills.iter().fold(0, |sum, prefill| sum + prefill.num_left);
                prop_assert_eq!(total, budget.min(num_wanted), "no token of the step is wasted");
                for (i, chunk) in here.into_iter().zip(chunks) {
                    left[i] -= chunk;
                    spent[i] += u64::from(total);
                }
                step += 1;
            }
            let mut before = 0;
            for (i, (_, num)) in prompts.iter().enumerate() {
                before += u64::from(*num);
                let slack = u64::from(budget) * (i as u64 + 1);
                prop_assert!(spent[i] <= 2 * before + slack, "{i}: {} of {before}", spent[i]);
            }
        }
    }

    #[test]
    fn priority_comes_before_length() {
        let prefills =
            [(1, 500), (1, 300), (0, 10)].map(|(priority, num_left)| Prefill { priority, num_left });
        assert_eq!(share_prefill_tokens(400, &prefills), [200, 200, 0]);
    }
}
