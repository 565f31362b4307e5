//! Admission: which waiting sequences get a slot and blocks.
//!
//! In order of rank, while slots and tokens of the step are left. A sequence that does not fit stops the queue behind it. If
//! sequences of lower priority are in its way, they are preempted for it. Short ones of its own priority may pass it, but no
//! more of them than compute as many tokens as it has itself: so it waits at most about twice as long as if nobody could pass.
//!
//! While others run, a sequence does not take a prefix that was reused before and may soon be wanted again
//! ([`idle_enough_at`]): otherwise conversations that do not all fit would evict each other at every turn, and all of
//! them be computed again and again.
//!
//! A sequence whose prompt is just being computed by another one lets others pass and takes the blocks when they are ready.
//! No sequence is looked at in full again until what it waits for may have happened, so a step costs nothing per token of a
//! waiting prompt.
//!
//! Admission leaves room for the running sequences to grow (see [`growth_room`]): otherwise the pool would be full of
//! sequences that preempt each other.

use super::{Place, Scheduler};
use crate::{
    cache::Refusal,
    cost::StepShape,
    ids::Tick,
    plan::Event,
    policy::{Rank, growth_room, idle_enough_at, is_short},
    radix::{Stake, common_prefix},
    sequence::{Phase, Sequence, Wait},
};

/// How many short sequences are looked at in a step, at most, that could pass one which does not fit.
const MAX_LOOKS: usize = 8;

/// What became of a waiting sequence.
enum Verdict {
    Admitted,
    /// Others may go first.
    Passes,
    /// It lacks a slot, or so many blocks. Only short ones may go first.
    Blocked(u32),
    /// It would take a prefix from others that they are likely to come back for. Only short ones may go first.
    Held,
}

/// The running sequences, as far as they are in the way of new ones.
struct Crowd {
    /// Blocks that they want soon.
    growth: u32,
    /// Tokens that their prefills have left.
    num_left: u32,
    /// Tokens that the shortest of these has left.
    shortest: u32,
    /// The highest priority of a prefill.
    priority: Option<i32>,
}

impl Scheduler {
    /// Gives slots and blocks to waiting sequences, as far as a step with `budget` tokens left has some for them.
    pub(super) fn admit(&mut self, budget: u32, now: Tick) {
        if self.waiting.is_empty() || budget == 0 {
            return;
        }
        let mut crowd = self.crowd();
        let mut before = None;
        while let Some(rank) = self.waiting.after(before) {
            if !crowd.has_tokens_for(rank, self.waiting.num_left(rank), budget) {
                return self.let_short_ones_pass(rank, budget, &mut crowd, now);
            }
            match self.consider(rank, &mut crowd, now) {
                Verdict::Admitted | Verdict::Passes => before = Some(rank),
                Verdict::Blocked(num_blocks) if self.make_way(rank, num_blocks) => crowd = self.crowd(),
                Verdict::Blocked(_) | Verdict::Held => {
                    return self.let_short_ones_pass(rank, budget, &mut crowd, now);
                }
            }
        }
    }

    /// Ends sequences that have waited as long as one may and could not be admitted now either, so that a step is in flight
    /// whose commit reports it. O(1) for each that came so long ago.
    pub(super) fn expire(&mut self, now: Tick) {
        while let Some(&(submitted, id)) = self.arrivals.front()
            && now.0.saturating_sub(submitted.0) > self.config.max_queue_time_us
        {
            self.arrivals.pop_front();
            if let Some(&Place::Waiting(rank)) = self.places.get(&id)
                && !self.waiting.get(rank).has_started
            {
                self.places.remove(&id);
                self.waiting.remove(rank);
                self.counters.expired += 1;
                self.events.push(Event::Expired { sequence: id });
            }
        }
    }

    fn crowd(&self) -> Crowd {
        let mut crowd = Crowd { growth: 0, num_left: 0, shortest: u32::MAX, priority: None };
        for (rank, &slot) in &self.running {
            let Some(sequence) = &self.slots[slot.0 as usize] else { continue };
            crowd.growth += self.growth(sequence, sequence.table.blocks().len());
            if sequence.phase == Phase::Prefilling {
                crowd.add_prefill(*rank, sequence.num_left_to_prefill());
            }
        }
        crowd
    }

    /// Admits the waiting sequence at `rank` if it should and can run.
    fn consider(&mut self, rank: Rank, crowd: &mut Crowd, now: Tick) -> Verdict {
        let sequence = self.waiting.get(rank);
        let num_blocks = sequence.tokens.len().div_ceil(self.config.block_size as usize);
        let growth = crowd.growth + self.growth(sequence, num_blocks);
        let room = growth_room(growth, self.config.num_blocks);
        match sequence.wait {
            Wait::Turn => {}
            Wait::Prefill { .. } if self.is_worth_waiting(sequence) => return Verdict::Passes,
            Wait::Prefill { .. } => {}
            Wait::Blocks(num) if num + room > self.cache.num_available() => return Verdict::Blocked(num),
            Wait::Blocks(_) => {}
            Wait::Idle(num, until) if self.is_idle_time_left(num, until, now) => return Verdict::Held,
            Wait::Idle(..) => {}
        }
        if self.vacant_slots.is_empty() {
            return Verdict::Blocked(0);
        }
        if let Some(wait) = self.prefill_to_wait_for(sequence) {
            self.waiting.get_mut(rank).wait = wait;
            self.counters.prefix_waits += 1;
            return Verdict::Passes;
        }
        let is_alone = self.running.is_empty();
        // The index counts uses, which may run ahead of the clock.
        let may_go = |stake: &Stake| {
            idle_enough_at(stake.last_used.min(now.0), self.costs.predict_us(&shape_of(stake)))
        };
        let is_worth = |stake: &Stake| is_alone || stake.num_tokens == 0 || may_go(stake) <= now;
        match self.cache.reserve(&sequence.namespace, &sequence.tokens, room, is_worth) {
            Err(Refusal::Shortage(num_needed)) => {
                self.waiting.get_mut(rank).wait = Wait::Blocks(num_needed);
                Verdict::Blocked(num_needed)
            }
            Err(Refusal::Costly(num_free, stake)) => {
                self.waiting.get_mut(rank).wait = Wait::Idle(num_free, may_go(&stake));
                Verdict::Held
            }
            Ok(reservation) => {
                let mut sequence = self.waiting.remove(rank).expect("it was just there. This is a bug.");
                sequence.num_to_prefill = sequence.tokens.len();
                sequence.num_computed = reservation.num_cached_tokens;
                sequence.num_planned = reservation.num_cached_tokens;
                sequence.table = reservation.table;
                sequence.copy = reservation.copy;
                crowd.growth = growth;
                crowd.add_prefill(rank, sequence.num_left_to_prefill());
                self.run(sequence);
                Verdict::Admitted
            }
        }
    }

    /// Admits short sequences before the blocked one at `head`, within its patience.
    fn let_short_ones_pass(&mut self, head: Rank, budget: u32, crowd: &mut Crowd, now: Tick) {
        let mut length = None;
        for _ in 0..MAX_LOOKS {
            let Some(next) = self.waiting.longer(head.priority(), length) else { return };
            length = Some(next);
            if next.rank <= head {
                continue;
            }
            let num_tokens = self.waiting.get(next.rank).num_to_compute(next.num_left);
            let num_overtaken = self.waiting.get(head).num_overtaken + num_tokens;
            let has_tokens = crowd.has_tokens_for(next.rank, next.num_left, budget);
            if !has_tokens || num_overtaken > self.waiting.get(head).num_positions() {
                return;
            }
            match self.consider(next.rank, crowd, now) {
                Verdict::Admitted => self.waiting.get_mut(head).num_overtaken = num_overtaken,
                Verdict::Passes | Verdict::Held => {}
                Verdict::Blocked(_) => return,
            }
        }
    }

    /// Preempts the sequence that is served last, if it has a lower priority than the waiting one at `rank`, which lacks a
    /// slot or `num_blocks` blocks. Returns whether it is worth looking again; otherwise it may be after the next commit.
    fn make_way(&mut self, rank: Rank, num_blocks: u32) -> bool {
        let victims = || self.running.iter().rev().take_while(|(last, _)| last.priority() < rank.priority());
        let Some((_, &slot)) = victims().next() else { return false };
        let tables = victims().filter_map(|(_, slot)| self.slots[slot.0 as usize].as_ref());
        let num_held: u32 = tables.map(|victim| victim.table.blocks().len() as u32).sum();
        if self.is_waiting_for_blocks() || num_blocks > self.cache.num_available() + num_held {
            return false;
        }
        self.preempt(slot);
        self.num_draining == 0
    }

    fn run(&mut self, sequence: Sequence) {
        let slot = self.vacant_slots.pop().expect("admission looked for a vacant slot. This is a bug.");
        self.places.insert(sequence.id, Place::Slot(slot));
        self.running.insert(sequence.rank, slot);
        self.num_prefilling += 1;
        self.slots[slot.0 as usize] = Some(sequence);
    }

    /// Whether what a sequence would evict has to be left alone for longer. Never while nothing runs: nobody would gain by it.
    fn is_idle_time_left(&self, num_free: u32, until: Tick, now: Tick) -> bool {
        now < until && self.cache.num_free() < num_free && !self.running.is_empty()
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
}

/// The prefill that would bring back what is at stake.
fn shape_of(stake: &Stake) -> StepShape {
    StepShape { num_prefill_tokens: stake.num_tokens, num_pairs: stake.num_pairs, ..StepShape::default() }
}

impl Crowd {
    /// Whether a step with `budget` tokens has some for a new prefill of about `num_left` tokens that is served at `rank`.
    fn has_tokens_for(&self, rank: Rank, num_left: u32, budget: u32) -> bool {
        let is_first = self.priority.is_some_and(|priority| priority < rank.priority());
        self.num_left < budget || is_first || is_short(num_left, self.shortest)
    }

    fn add_prefill(&mut self, rank: Rank, num_left: u32) {
        self.num_left = self.num_left.saturating_add(num_left);
        self.shortest = self.shortest.min(num_left);
        self.priority = self.priority.max(Some(rank.priority()));
    }
}
