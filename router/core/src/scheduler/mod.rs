//! The scheduler: which sequences run, and what each step computes. Four verbs: [`submit`](Scheduler::submit),
//! [`cancel`](Scheduler::cancel), [`plan`](Scheduler::plan), [`commit`](Scheduler::commit).
//!
//! ```text
//!   submit ─► waiting ── admit ──► running (a slot, a block table) ─► rows of a step ─► in flight
//!                ▲      (admit.rs)                       (plan.rs)                         │
//!                └── preempted ◄──────── draining ◄────────────────── tokens ◄── commit ◄──┘
//!                                                                   (commit.rs)
//! ```
//! Up to `max_in_flight` steps are planned before the first of them is committed. Shards execute steps in order, so a step
//! may build on what an earlier one in flight computes; but blocks and slots change hands only when no step in flight knows
//! them, so that nothing depends on *when* a shard reads a step.
//!
//! Must hold: every accepted sequence stands in exactly one of `waiting` and `slots` until it has ended and drained; no step
//! in flight names a slot or a block of anybody but the sequence that had it when the step was planned.

mod admit;
#[cfg(any(test, feature = "testing"))]
mod check;
mod commit;
mod config;
mod plan;
mod waiting;

use std::collections::{BTreeMap, VecDeque};

pub use self::config::{CommitError, ConfigError, Rejection, SchedulerConfig, Stats};
use self::{plan::StepInFlight, waiting::WaitingQueue};
use crate::{
    cache::KvCache,
    cost::CostModel,
    explain::Explanation,
    ids::{BlockId, SequenceId, Slot, StepId, Tick, TokenId},
    plan::Event,
    policy::{self, Rank},
    radix::NamespaceUsage,
    request::{Namespace, Request},
    sequence::{Leaving, Phase, Sequence},
};

/// Decides what the shards of one replica compute.
#[derive(Debug)]
pub struct Scheduler {
    config: SchedulerConfig,
    growth_blocks: u32,
    cache: KvCache,
    next_sequence: SequenceId,
    next_step: StepId,
    /// Where each sequence stands that has not ended.
    places: BTreeMap<SequenceId, Place>,
    waiting: WaitingQueue,
    /// When sequences came that may still expire, oldest first; some of them have begun or ended.
    arrivals: VecDeque<(Tick, SequenceId)>,
    costs: CostModel,
    slots: Vec<Option<Sequence>>,
    vacant_slots: Vec<Slot>,
    /// Slots that the shards do not know to be free.
    finished_slots: Vec<Slot>,
    /// Sequences with a slot that get rows, in the order in which they are served.
    running: BTreeMap<Rank, Slot>,
    num_prefilling: u32,
    num_draining: u32,
    in_flight: VecDeque<StepInFlight>,
    /// What happened since the last commit.
    events: Vec<Event>,
    counters: Stats,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Waiting(Rank),
    Slot(Slot),
}

impl Scheduler {
    /// A scheduler with an empty cache.
    ///
    /// # Errors
    /// If the limits make no sense.
    pub fn new(config: SchedulerConfig) -> Result<Self, ConfigError> {
        config.validate()?;
        // Every running sequence must be able to get a token in every step.
        let num_slots = config.max_rows.min(config.max_step_tokens);
        Ok(Self {
            growth_blocks: policy::GROWTH_TOKENS.div_ceil(config.block_size),
            cache: KvCache::new(&config),
            next_sequence: SequenceId(1),
            next_step: StepId(1),
            places: BTreeMap::new(),
            waiting: WaitingQueue::default(),
            arrivals: VecDeque::new(),
            costs: CostModel::default(),
            slots: (0..num_slots).map(|_| None).collect(),
            vacant_slots: (0..num_slots).rev().map(Slot).collect(),
            finished_slots: Vec::new(),
            running: BTreeMap::new(),
            num_prefilling: 0,
            num_draining: 0,
            in_flight: VecDeque::new(),
            events: Vec::new(),
            counters: Stats::default(),
            config,
        })
    }

    /// The limits.
    #[must_use]
    pub fn config(&self) -> &SchedulerConfig {
        &self.config
    }

    /// Accepts a request; it waits for its turn. It ends exactly once: by [`Event::Finished`],
    /// [`Event::Expired`] or [`Scheduler::cancel`].
    ///
    /// # Errors
    /// If the request can never be served.
    pub fn submit(&mut self, request: Request, now: Tick) -> Result<SequenceId, Rejection> {
        self.check(&request)?;
        let id = self.next_sequence;
        self.next_sequence.0 += 1;
        let sequence = Sequence::new(id, request, now);
        self.counters.submitted += 1;
        if self.config.max_queue_time_us < u64::MAX {
            self.arrivals.push_back((now, id));
        }
        self.enqueue(sequence);
        Ok(id)
    }

    /// Ends a sequence at any point; what it computed stays as cache. Nothing is reported of it afterwards. A sequence that
    /// is unknown or has ended is no error, since it may have ended while the cancel was on its way.
    pub fn cancel(&mut self, id: SequenceId) {
        // Also if it has just expired: that may not have been reported yet.
        self.events.retain(|event| event.sequence() != id);
        let Some(place) = self.places.remove(&id) else { return };
        self.counters.cancelled += 1;
        match place {
            Place::Waiting(rank) => {
                self.waiting.remove(rank);
            }
            Place::Slot(slot) => {
                self.drain(slot, Leaving::End);
                self.vacate_if_drained(slot);
            }
        }
        self.debug_check();
    }

    /// Evicts every cached block of the namespaces that `is_meant` picks and that no sequence holds; returns how many those were.
    pub fn clear_cache(&mut self, is_meant: impl Fn(&Namespace) -> bool) -> u32 {
        let num_cached = self.cache.num_cached();
        self.cache.clear(is_meant);
        self.debug_check();
        num_cached - self.cache.num_cached()
    }

    /// Explains what the cache holds of a prompt, now. Changes nothing. O(tokens found).
    #[must_use]
    pub fn explain(&self, namespace: &Namespace, tokens: &[TokenId]) -> Explanation {
        self.cache.explain(namespace, tokens)
    }

    /// What each namespace has in the prefix index, in order. O(namespaces).
    #[must_use]
    pub fn usage(&self) -> Vec<NamespaceUsage> {
        self.cache.usage().collect()
    }

    /// Figures, O(1).
    #[must_use]
    pub fn stats(&self) -> Stats {
        Stats {
            free_blocks: self.cache.num_free(),
            cached_blocks: self.cache.num_cached(),
            held_blocks: self.cache.num_held(),
            total_blocks: self.cache.num_total(),
            waiting: self.waiting.len() as u32,
            prefilling: self.num_prefilling,
            decoding: self.running.len() as u32 - self.num_prefilling,
            draining: self.num_draining,
            in_flight: self.in_flight.len() as u32,
            evicted_blocks: self.cache.num_evicted(),
            ..self.counters
        }
    }

    /// Whose row a slot of the last plan is; `None` if the slot is free.
    #[must_use]
    pub fn sequence_at(&self, slot: Slot) -> Option<SequenceId> {
        self.slots.get(slot.0 as usize)?.as_ref().map(|sequence| sequence.id)
    }

    // === Moving sequences ===

    fn check(&self, request: &Request) -> Result<(), Rejection> {
        if request.prompt.is_empty() {
            return Err(Rejection::EmptyPrompt);
        }
        if request.max_new_tokens == 0 {
            return Err(Rejection::NoNewTokens);
        }
        let prompt = u32::try_from(request.prompt.len()).unwrap_or(u32::MAX);
        let max_new_tokens = request.max_new_tokens;
        let limit = self.config.max_tokens();
        if prompt.saturating_add(max_new_tokens) > limit {
            return Err(Rejection::TooLong { prompt, max_new_tokens, limit });
        }
        Ok(())
    }

    fn enqueue(&mut self, sequence: Sequence) {
        self.places.insert(sequence.id, Place::Waiting(sequence.rank));
        let num_cached = self.cache.num_cached_tokens(&sequence.namespace, &sequence.tokens);
        self.waiting.insert((sequence.tokens.len() - num_cached) as u32, sequence);
    }

    fn sequence(&mut self, slot: Slot) -> &mut Sequence {
        self.slots[slot.0 as usize].as_mut().expect("a slot in use has a sequence. This is a bug.")
    }

    /// The sequence gets no more rows.
    fn drain(&mut self, slot: Slot, leaving: Leaving) {
        let sequence = self.sequence(slot);
        let (rank, phase) = (sequence.rank, sequence.phase);
        sequence.phase = Phase::Draining(leaving);
        if !matches!(phase, Phase::Draining(_)) {
            self.num_prefilling -= u32::from(phase == Phase::Prefilling);
            self.num_draining += 1;
            self.running.remove(&rank);
        }
    }

    /// Frees the slot and the blocks of a draining sequence, unless a step in flight may touch them.
    fn vacate_if_drained(&mut self, slot: Slot) {
        let sequence = self.sequence(slot);
        let Phase::Draining(leaving) = sequence.phase else { return };
        if sequence.num_steps_in_flight > 0 {
            return;
        }
        let mut sequence =
            self.slots[slot.0 as usize].take().expect("a slot in use has a sequence. This is a bug.");
        if let Some(copy) = sequence.copy.take() {
            // It never had a row: nothing was copied.
            sequence.num_computed = sequence.table.num_indexed() * self.config.block_size as usize;
            self.cache.copied(copy);
        }
        let table = std::mem::take(&mut sequence.table);
        self.cache.release(&sequence.namespace, table, &sequence.tokens[..sequence.num_computed]);
        self.num_draining -= 1;
        self.vacant_slots.push(slot);
        if sequence.num_sent_blocks.is_some() {
            self.finished_slots.push(slot);
        }
        if leaving == Leaving::Requeue {
            sequence.back_to_waiting();
            self.enqueue(sequence);
        }
    }

    /// Frees blocks as soon as no step in flight can touch them.
    fn retire(&mut self, blocks: Vec<BlockId>) {
        match self.in_flight.back_mut() {
            Some(step) => step.retired_blocks.extend(blocks),
            None => blocks.into_iter().for_each(|block| self.cache.free(block)),
        }
    }

    fn debug_check(&self) {
        debug_assert!(self.cache.is_conserved(), "blocks were lost or counted twice. This is a bug.");
    }
}
