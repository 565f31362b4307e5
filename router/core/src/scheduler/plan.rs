//! Planning: what the next step computes.
//!
//! Decodes first, each one token, so that nobody's stream stops; then prefill chunks, of as many tokens as are left and as keep
//! the step short enough for those who decode (see [`step_limit_us`](policy::step_limit_us) and
//! [`share_prefill_tokens`](policy::share_prefill_tokens)). Every running sequence has its prefill's blocks from its
//! admission on, so the pool can only run out for a decode. Then the sequence that is served last is preempted: its blocks
//! stay as cache until somebody needs them, and it is computed again when there is room.

use super::Scheduler;
use crate::{
    cache::{OutOfBlocks, PendingCopy},
    cost::{MIN_TOKENS, StepShape},
    ids::{BlockId, Slot, StepId, Tick},
    plan::{BlockTableDelta, Event, Row, RowInput, StepPlan},
    policy::{self, Prefill, Rank},
    sequence::{Leaving, Phase, Sequence},
};

/// A planned step that is not committed.
#[derive(Debug)]
pub(super) struct StepInFlight {
    pub(super) id: StepId,
    pub(super) shape: StepShape,
    pub(super) rows: Vec<RowInFlight>,
    /// Made by this step; their sources are held until its commit.
    pub(super) copies: Vec<PendingCopy>,
    /// Blocks that steps up to this one may read, and no later one.
    pub(super) retired_blocks: Vec<BlockId>,
}

/// What commit must know of a row.
#[derive(Clone, Copy, Debug)]
pub(super) struct RowInFlight {
    pub(super) slot: Slot,
    pub(super) num_tokens: usize,
    pub(super) sample: bool,
}

/// A step on the drawing board.
struct Draft {
    plan: StepPlan,
    record: StepInFlight,
    num_tokens_left: u32,
}

impl Scheduler {
    /// Plans the next step; `now` is when. `None` if nothing can be computed, or if `max_in_flight` steps are in flight.
    ///
    /// O(rows), plus what is new: chunks, newly admitted sequences, new blocks. A decoding row costs O(1), however long its
    /// context.
    pub fn plan(&mut self, now: Tick) -> Option<StepPlan> {
        if self.in_flight.len() >= self.config.max_in_flight as usize {
            return None;
        }
        self.cache.set_time(now);
        let mut draft = Draft::new(self.next_step, self.config.max_step_tokens);
        self.plan_decodes(&mut draft);
        if self.num_prefilling > 0 || !self.waiting.is_empty() {
            self.costs.fit();
            let budget = self.prefill_budget(&draft, &self.prefills());
            self.admit(budget, now);
            self.plan_prefills(&mut draft, now);
        }
        self.expire(now);
        self.debug_check();
        if draft.plan.rows.is_empty() {
            return None;
        }
        draft.plan.finished = std::mem::take(&mut self.finished_slots);
        self.next_step.0 += 1;
        self.counters.steps += 1;
        self.in_flight.push_back(draft.record);
        Some(draft.plan)
    }

    /// A row for each decoding sequence that has a block for it.
    fn plan_decodes(&mut self, draft: &mut Draft) {
        let block_size = self.config.block_size as usize;
        let slots: Vec<Slot> = self.running.values().copied().collect();
        for slot in slots {
            // One that was preempted for another is not there any more.
            let Some(sequence) = &self.slots[slot.0 as usize] else { continue };
            if sequence.phase != Phase::Decoding || !sequence.wants_more_tokens() {
                continue;
            }
            let has_block = sequence.num_planned / block_size < sequence.table.blocks().len();
            if has_block || self.grow(slot) {
                self.add_row(draft, slot, RowInput::LastSampled, true);
            }
        }
    }

    /// Chunks for the prefilling sequences.
    fn plan_prefills(&mut self, draft: &mut Draft, now: Tick) {
        let prefills = self.prefills();
        let budget = self.prefill_budget(draft, &prefills);
        let shares: Vec<Prefill> = prefills.iter().map(|(_, prefill)| *prefill).collect();
        let chunks = policy::share_prefill_tokens(budget, &shares);
        for ((slot, Prefill { num_left, .. }), chunk) in prefills.into_iter().zip(chunks) {
            if chunk == 0 {
                continue;
            }
            self.note_start(slot, now);
            let sequence = self.sequence(slot);
            let start = sequence.num_planned;
            let tokens = sequence.tokens[start..start + chunk as usize].to_vec();
            let is_last = chunk == num_left;
            if is_last {
                sequence.phase = Phase::Decoding;
                self.num_prefilling -= 1;
            }
            self.add_row(draft, slot, RowInput::Tokens(tokens), is_last);
        }
    }

    /// The prefilling sequences, in order of rank.
    fn prefills(&self) -> Vec<(Slot, Prefill)> {
        let sequences = self.running.iter().map(|(rank, &slot)| (rank, slot, &self.slots[slot.0 as usize]));
        let prefill = |(rank, slot, sequence): (&Rank, Slot, &Option<Sequence>)| {
            let sequence = sequence.as_ref().filter(|sequence| sequence.phase == Phase::Prefilling)?;
            Some((slot, Prefill { priority: rank.priority(), num_left: sequence.num_left_to_prefill() }))
        };
        sequences.filter_map(prefill).collect()
    }

    /// How many tokens of prefill fit into the step, beside its decodes.
    fn prefill_budget(&self, draft: &Draft, prefills: &[(Slot, Prefill)]) -> u32 {
        let decodes = draft.record.shape;
        if decodes.num_decodes == 0 || prefills.is_empty() || self.config.target_itl_us == u64::MAX {
            return draft.num_tokens_left;
        }
        let limit_us = policy::step_limit_us(self.config.target_itl_us, self.costs.predict_us(&decodes));
        let shares: Vec<Prefill> = prefills.iter().map(|(_, prefill)| *prefill).collect();
        let fits = |budget: u32| {
            let mut shape = decodes;
            for ((slot, _), chunk) in prefills.iter().zip(policy::share_prefill_tokens(budget, &shares)) {
                let sequence = self.slots[slot.0 as usize].as_ref();
                shape.add_chunk(sequence.map_or(0, |sequence| sequence.num_planned), chunk);
            }
            self.costs.is_trusted(&shape) && self.costs.predict_us(&shape) <= limit_us
        };
        // Each chunk grows with the budget, so the predicted time does.
        let (mut low, mut high) = (MIN_TOKENS.min(draft.num_tokens_left), draft.num_tokens_left);
        while low < high {
            let middle = low + (high - low).div_ceil(2);
            if fits(middle) { low = middle } else { high = middle - 1 }
        }
        low
    }

    /// Counts and reports that a sequence gets its first row.
    fn note_start(&mut self, slot: Slot, now: Tick) {
        let sequence = self.sequence(slot);
        if sequence.num_sent_blocks.is_some() {
            return;
        }
        let (id, num_cached, num_prompt) = (sequence.id, sequence.num_planned, sequence.num_prompt);
        let num_missed = (sequence.num_to_prefill - num_cached) as u64;
        let waited_us = now.0.saturating_sub(sequence.submitted.0);
        if std::mem::replace(&mut sequence.has_started, true) {
            self.counters.recomputed_tokens += num_missed;
            return;
        }
        self.counters.prefix_hit_tokens += num_cached as u64;
        self.counters.prefix_miss_tokens += (num_prompt - num_cached) as u64;
        self.counters.queue_time_us += waited_us;
        self.events.push(Event::Started { sequence: id, cached_tokens: num_cached as u32 });
    }

    /// Adds a row, and what the shards must know before it.
    fn add_row(&mut self, draft: &mut Draft, slot: Slot, input: RowInput, sample: bool) {
        let sequence = self.sequence(slot);
        let num_blocks = sequence.table.blocks().len();
        let changed = std::mem::take(&mut sequence.changed_blocks);
        let new = sequence.num_sent_blocks.unwrap_or(0)..num_blocks;
        if sequence.num_sent_blocks.replace(num_blocks).is_none() {
            draft.plan.started.push(sequence.row_start(slot));
        }
        for range in [changed, new] {
            if !range.is_empty() {
                let blocks = sequence.table.blocks()[range.clone()].to_vec();
                draft.plan.block_tables.push(BlockTableDelta { slot, start: range.start as u32, blocks });
            }
        }
        if let Some(copy) = sequence.copy.take() {
            draft.plan.block_copies.push(copy.copy);
            draft.record.copies.push(copy);
        }
        let num_tokens = input.num_tokens();
        let position = sequence.num_planned as u32;
        match &input {
            RowInput::LastSampled => draft.record.shape.add_decode(sequence.num_planned),
            RowInput::Tokens(tokens) => {
                draft.record.shape.add_chunk(sequence.num_planned, tokens.len() as u32)
            }
        }
        sequence.num_planned += num_tokens;
        sequence.num_steps_in_flight += 1;
        sequence.num_samples_in_flight += u32::from(sample);
        draft.num_tokens_left -= num_tokens as u32;
        draft.plan.rows.push(Row { slot, position, input, sample });
        draft.record.rows.push(RowInFlight { slot, num_tokens, sample });
    }

    // === When the pool is full ===

    /// Appends a block to a decoding sequence, preempting others if need be. Returns whether it got one; if not, it was
    /// preempted itself, or steps in flight still hold blocks that it can have when they are committed.
    fn grow(&mut self, slot: Slot) -> bool {
        loop {
            let sequence = self.slots[slot.0 as usize].as_mut();
            let sequence = sequence.expect("a slot in use has a sequence. This is a bug.");
            match self.cache.grow(&mut sequence.table, 1) {
                Ok(()) => return true,
                Err(OutOfBlocks) if self.is_waiting_for_blocks() => return false,
                Err(OutOfBlocks) => {}
            }
            let (_, &victim) = self.running.last_key_value().expect("the caller's runs. This is a bug.");
            self.preempt(victim);
            if victim == slot {
                return false;
            }
        }
    }

    /// Whether blocks come back when the steps in flight are committed. Then nobody else need be preempted now.
    pub(super) fn is_waiting_for_blocks(&self) -> bool {
        let holds_blocks = |step: &StepInFlight| !step.copies.is_empty() || !step.retired_blocks.is_empty();
        self.num_draining > 0 || self.in_flight.iter().any(holds_blocks)
    }

    pub(super) fn preempt(&mut self, slot: Slot) {
        let id = self.sequence(slot).id;
        self.counters.preemptions += 1;
        self.events.push(Event::Preempted { sequence: id });
        self.drain(slot, Leaving::Requeue);
        self.vacate_if_drained(slot);
    }
}

impl Draft {
    fn new(id: StepId, max_step_tokens: u32) -> Self {
        let plan = StepPlan {
            id,
            finished: Vec::new(),
            started: Vec::new(),
            block_tables: Vec::new(),
            block_copies: Vec::new(),
            rows: Vec::new(),
        };
        let record = StepInFlight {
            id,
            shape: StepShape::default(),
            rows: Vec::new(),
            copies: Vec::new(),
            retired_blocks: Vec::new(),
        };
        Self { plan, record, num_tokens_left: max_step_tokens }
    }
}
