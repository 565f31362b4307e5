//! The fake shard's KV pool and its mirror by row slot, which hold every plan to the step protocol.

use std::{ops::Range, sync::Arc};

use anaphora_core::{
    ids::{Slot, TokenId},
    plan::{BlockTableDelta, Row, RowInput, RowStart, Sample, StepOutput, StepPlan},
    request::Sampling,
};

use super::{super::PoolRequest, skip_stops};

/// The cell before the first position.
pub(super) const ORIGIN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The pool and the mirror.
#[derive(Debug)]
pub(super) struct Memory {
    block_size: usize,
    max_step_tokens: usize,
    vocab: Range<TokenId>,
    cells: Vec<u64>,
    slots: Vec<Option<SlotState>>,
    next_step: u64,
}

/// What a shard keeps for a slot.
#[derive(Debug)]
struct SlotState {
    sampling: Arc<Sampling>,
    stop_tokens: Arc<[TokenId]>,
    num_generated: u32,
    table: Vec<u32>,
    last_sampled: Option<TokenId>,
    /// Tokens in the KV cache, once the first row has said so.
    num_computed: Option<u32>,
}

/// The cell after `cell` and `token`: splitmix64's finaliser, which spreads every bit of either.
pub(super) fn next_cell(cell: u64, token: TokenId) -> u64 {
    let mut bits = (cell ^ u64::from(token)).wrapping_add(ORIGIN);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

/// What is said after a context that ends in `cell`.
pub(super) fn next_token(cell: u64, sampling: &Sampling, vocab: &Range<TokenId>) -> TokenId {
    let noise = if sampling.temperature == 0.0 { 0 } else { next_cell(sampling.seed, 0) };
    let span = u64::from(vocab.end - vocab.start);
    vocab.start + u32::try_from((cell ^ noise) % span).expect("it is less than a u32. This is a bug.")
}

impl Memory {
    pub(super) fn new(pool: &PoolRequest, num_blocks: u32, vocab: Range<TokenId>) -> Self {
        Self {
            block_size: pool.block_size as usize,
            max_step_tokens: pool.max_step_tokens as usize,
            vocab,
            cells: vec![0; num_blocks as usize * pool.block_size as usize],
            slots: (0..pool.max_rows).map(|_| None).collect(),
            next_step: 1,
        }
    }

    /// Slots that hold a sequence.
    pub(super) fn occupied(&self) -> impl Iterator<Item = Slot> {
        (0..).zip(&self.slots).filter(|(_, state)| state.is_some()).map(|(slot, _)| Slot(slot))
    }

    /// Executes a plan, in the protocol's order.
    ///
    /// # Errors
    /// What is wrong with the plan.
    pub(super) fn execute(&mut self, plan: &StepPlan) -> Result<StepOutput, String> {
        if plan.id.0 != self.next_step {
            return Err(format!("step {} where {} was due", plan.id.0, self.next_step));
        }
        self.next_step += 1;
        for slot in &plan.finished {
            self.slots[slot.0 as usize].take().ok_or_else(|| format!("{slot:?} finished, but was free"))?;
        }
        for start in &plan.started {
            self.start(start)?;
        }
        for delta in &plan.block_tables {
            self.extend_table(delta)?;
        }
        for copy in &plan.block_copies {
            let source = copy.source.0 as usize * self.block_size;
            self.cells
                .copy_within(source..source + self.block_size, copy.destination.0 as usize * self.block_size);
        }
        let num_tokens: usize = plan.rows.iter().map(|row| row.input.num_tokens()).sum();
        if num_tokens == 0 || num_tokens > self.max_step_tokens {
            return Err(format!("{num_tokens} tokens in a step; the limit is {}", self.max_step_tokens));
        }
        let mut samples = Vec::with_capacity(plan.rows.len());
        for row in &plan.rows {
            samples.extend(self.compute(row)?);
        }
        Ok(StepOutput { id: plan.id, samples, duration_us: 0 })
    }

    fn start(&mut self, start: &RowStart) -> Result<(), String> {
        let slot = self.slots.get_mut(start.slot.0 as usize).ok_or_else(|| format!("no {:?}", start.slot))?;
        if slot.is_some() {
            return Err(format!("{:?} started, but was taken", start.slot));
        }
        *slot = Some(SlotState {
            sampling: Arc::clone(&start.sampling),
            stop_tokens: Arc::clone(&start.stop_tokens),
            num_generated: start.num_generated,
            table: Vec::new(),
            last_sampled: None,
            num_computed: None,
        });
        Ok(())
    }

    fn extend_table(&mut self, delta: &BlockTableDelta) -> Result<(), String> {
        let num_blocks = self.cells.len() / self.block_size;
        let state =
            self.slots[delta.slot.0 as usize].as_mut().ok_or_else(|| format!("{:?} is free", delta.slot))?;
        let start = delta.start as usize;
        if start > state.table.len() {
            return Err(format!("a table of {} blocks grows at {start}", state.table.len()));
        }
        if let Some(block) = delta.blocks.iter().find(|block| block.0 as usize >= num_blocks) {
            return Err(format!("{block:?} is beyond the pool"));
        }
        // A delta may replace a block by one of the same contents, when two sequences computed the same.
        let end = (start + delta.blocks.len()).min(state.table.len());
        state.table.splice(start..end, delta.blocks.iter().map(|block| block.0));
        Ok(())
    }

    fn compute(&mut self, row: &Row) -> Result<Option<Sample>, String> {
        let state =
            self.slots[row.slot.0 as usize].as_mut().ok_or_else(|| format!("{:?} is free", row.slot))?;
        if state.num_computed.is_some_and(|computed| computed != row.position) {
            return Err(format!("{:?} is at {:?}, not {}", row.slot, state.num_computed, row.position));
        }
        let last = state.last_sampled.unwrap_or_default();
        let tokens = match &row.input {
            RowInput::Tokens(tokens) => tokens.as_slice(),
            RowInput::LastSampled if state.last_sampled.is_none() => {
                return Err("nothing was sampled yet".to_owned());
            }
            RowInput::LastSampled => std::slice::from_ref(&last),
        };
        let index = |table: &[u32], position: usize| -> Result<usize, String> {
            let block =
                table.get(position / self.block_size).ok_or_else(|| format!("no block for {position}"))?;
            Ok(*block as usize * self.block_size + position % self.block_size)
        };
        let start = row.position as usize;
        let mut cell = match start.checked_sub(1) {
            Some(before) => self.cells[index(&state.table, before)?],
            None => ORIGIN,
        };
        for (position, token) in (start..).zip(tokens) {
            cell = next_cell(cell, *token);
            self.cells[index(&state.table, position)?] = cell;
        }
        state.num_computed = Some(row.position + tokens.len() as u32);
        Ok(row.sample.then(|| state.sample(cell, &self.vocab)))
    }
}

impl SlotState {
    fn sample(&mut self, cell: u64, vocab: &Range<TokenId>) -> Sample {
        let mut token = next_token(cell, &self.sampling, vocab);
        if self.num_generated < self.sampling.min_new_tokens {
            token = skip_stops(token, vocab, &self.stop_tokens);
        }
        self.num_generated += 1;
        self.last_sampled = Some(token);
        let span = vocab.end - vocab.start;
        let alternative =
            |rank: u32| (vocab.start + (token - vocab.start + rank) % span, -0.25 - rank as f32);
        Sample { token, logprob: -0.25, top: (0..self.sampling.num_top_logprobs).map(alternative).collect() }
    }
}
