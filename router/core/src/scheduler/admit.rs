//! Admission: which waiting sequences get a slot and blocks.
//!
//! In order of rank, while slots and tokens of the step are left. A sequence that does not fit in the pool stops the queue
//! behind it, so that it cannot starve. One whose prompt is just being computed by another sequence lets others pass and
//! takes the blocks when they are ready. Neither is looked at in full again until what it waits for may have happened, so a
//! step costs nothing per token of a waiting prompt.
//!
//! Admission leaves room for the running sequences to grow (see [`growth_room`]): otherwise the pool would be full of
//! sequences that preempt each other.

use std::ops::Bound;

use super::{Place, Scheduler};
use crate::{
    cache::Shortage,
    policy::{Rank, growth_room},
    radix::common_prefix,
    sequence::{Phase, Sequence, Wait},
};

/// What became of a waiting sequence.
enum Verdict {
    Admitted,
    /// Others may go first.
    Passes,
    /// Nobody behind it may go first.
    Blocks,
}

impl Scheduler {
    /// Gives slots and blocks to waiting sequences, as long as each prefill gets a chunk of a step with `budget` tokens left.
    pub(super) fn admit(&mut self, budget: u32) {
        if self.waiting.is_empty() || self.vacant_slots.is_empty() {
            return;
        }
        let mut growth = 0;
        let mut num_promised = 0;
        for &slot in self.running.values() {
            let Some(sequence) = &self.slots[slot.0 as usize] else { continue };
            growth += self.growth(sequence, sequence.table.blocks().len());
            if sequence.phase == Phase::Prefilling {
                num_promised += sequence.num_left_to_prefill().min(self.min_chunk_tokens);
            }
        }
        let mut behind = Bound::Unbounded;
        while num_promised < budget && !self.vacant_slots.is_empty() {
            let Some((&rank, sequence)) = self.waiting.range((behind, Bound::Unbounded)).next() else {
                return;
            };
            behind = Bound::Excluded(rank);
            let chunk = (sequence.tokens.len() as u32).min(self.min_chunk_tokens);
            if num_promised > 0 && num_promised + chunk > budget {
                return;
            }
            match self.consider(rank, &mut growth) {
                Verdict::Admitted => num_promised += chunk,
                Verdict::Passes => {}
                Verdict::Blocks => return,
            }
        }
    }

    /// Admits the waiting sequence at `rank` if it should and can run. `growth` is how many blocks the running sequences want.
    fn consider(&mut self, rank: Rank, growth: &mut u32) -> Verdict {
        let sequence = &self.waiting[&rank];
        let num_blocks = sequence.tokens.len().div_ceil(self.config.block_size as usize);
        let growth_with_it = *growth + self.growth(sequence, num_blocks);
        let room = growth_room(growth_with_it, self.config.num_blocks);
        match sequence.wait {
            Wait::Turn => {}
            Wait::Prefill { .. } if self.is_worth_waiting(sequence) => return Verdict::Passes,
            Wait::Prefill { .. } => {}
            Wait::Blocks(num) if num + room > self.cache.num_available() => return Verdict::Blocks,
            Wait::Blocks(_) => {}
        }
        if let Some(wait) = self.prefill_to_wait_for(sequence) {
            self.waiting_at(rank).wait = wait;
            self.counters.prefix_waits += 1;
            return Verdict::Passes;
        }
        let sequence = &self.waiting[&rank];
        match self.cache.reserve(&sequence.namespace, &sequence.tokens, room) {
            Err(Shortage { num_needed }) => {
                self.waiting_at(rank).wait = Wait::Blocks(num_needed);
                Verdict::Blocks
            }
            Ok(reservation) => {
                let mut sequence = self.waiting.remove(&rank).expect("it was just there. This is a bug.");
                sequence.num_to_prefill = sequence.tokens.len();
                sequence.num_computed = reservation.num_cached_tokens;
                sequence.num_planned = reservation.num_cached_tokens;
                sequence.table = reservation.table;
                sequence.copy = reservation.copy;
                self.run(sequence);
                *growth = growth_with_it;
                Verdict::Admitted
            }
        }
    }

    fn run(&mut self, sequence: Sequence) {
        let slot = self.vacant_slots.pop().expect("admission looked for a vacant slot. This is a bug.");
        self.places.insert(sequence.id, Place::Slot(slot));
        self.running.insert(sequence.rank, slot);
        self.num_prefilling += 1;
        self.slots[slot.0 as usize] = Some(sequence);
    }

    /// Whether the prefill that a sequence waits for is still on its way. It may have passed the point, or have ended.
    fn is_worth_waiting(&self, sequence: &Sequence) -> bool {
        let Wait::Prefill { slot, leader, num_tokens } = sequence.wait else { return false };
        let occupant = self.slots[slot.0 as usize].as_ref();
        occupant.is_some_and(|occupant| occupant.id == leader && occupant.num_computed < num_tokens)
    }

    /// The running prefill that will give `waiting` at least a block more than the index holds now, if there is one.
    ///
    /// Nobody waits for a sequence of lower priority, which may take long. A leader runs, so it waits for nobody itself.
    fn prefill_to_wait_for(&self, waiting: &Sequence) -> Option<Wait> {
        if !self.config.prefix_cache {
            return None;
        }
        let block_size = self.config.block_size as usize;
        let usable = |leader: &Sequence| {
            let num_common = common_prefix(&waiting.tokens, &leader.tokens[..leader.num_to_prefill]);
            num_common.min(waiting.tokens.len() - 1)
        };
        let (num_usable, slot, leader) = self
            .running
            .values()
            .filter_map(|&slot| Some((slot, self.slots[slot.0 as usize].as_ref()?)))
            .filter(|(_, leader)| leader.num_computed < leader.num_to_prefill)
            .filter(|(_, leader)| leader.rank.priority() >= waiting.rank.priority())
            .filter(|(_, leader)| leader.namespace == waiting.namespace)
            .map(|(slot, leader)| (usable(leader), slot, leader))
            .max_by_key(|(num_usable, slot, _)| (*num_usable, *slot))?;
        if num_usable < block_size {
            return None;
        }
        let num_cached = self.cache.num_cached_tokens(&waiting.namespace, &waiting.tokens);
        if num_usable < num_cached + block_size {
            return None;
        }
        // Blocks enter the index when they are full; the block where the two part can be copied if the leader fills it.
        let next_full = num_usable.next_multiple_of(block_size);
        let last_full = num_usable - num_usable % block_size;
        let num_tokens = if next_full <= leader.num_to_prefill { next_full } else { last_full };
        Some(Wait::Prefill { slot, leader: leader.id, num_tokens })
    }

    fn growth(&self, sequence: &Sequence, num_blocks: usize) -> u32 {
        sequence.growth(num_blocks, self.config.block_size as usize, self.growth_blocks)
    }

    fn waiting_at(&mut self, rank: Rank) -> &mut Sequence {
        self.waiting.get_mut(&rank).expect("the caller found it there. This is a bug.")
    }
}
