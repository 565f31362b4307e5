//! One sequence, from submission to its end.
//!
//! ```text
//!            admitted              last chunk planned              stop token, or enough tokens
//!   Waiting ──────────► Prefilling ──────────────────► Decoding ──────────────────► (Draining) ► gone
//!      ▲                    │                             │
//!      └──── (Draining) ◄───┴───────── preempted ─────────┘
//! ```
//! A running sequence has a slot and a block table. One that leaves while steps with a row of it are in flight first drains:
//! its slot and its blocks stay until those steps are committed.
//!
//! Counts are in tokens. Of `tokens` (prompt, then what was generated),
//! ```text
//!   [0, num_computed)             have their keys and values in the cache, and the step is committed
//!   [num_computed, num_planned)   are being computed by steps in flight; the last of them may not be known yet
//! ```

use std::{ops::Range, sync::Arc};

use crate::{
    cache::{BlockTable, PendingCopy},
    ids::{SequenceId, Slot, Tick, TokenId},
    plan::RowStart,
    policy::Rank,
    request::{Namespace, Request, Sampling},
};

/// What a sequence that is not running waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// Its turn.
    Turn,
    /// So many available blocks, beside the room for others to grow.
    Blocks(u32),
    /// So many free blocks, or this time: until then, what it would evict is likely to be wanted again.
    Idle(u32, Tick),
    /// Another sequence's prefill: the index will then hold more of this one's tokens.
    Prefill {
        /// Where the other one runs.
        slot: Slot,
        /// The other one.
        leader: SequenceId,
        /// How many tokens it must have computed.
        num_tokens: usize,
    },
}

/// What a sequence with a slot does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Not all of its prefill is planned.
    Prefilling,
    /// Each step computes the token that was sampled last.
    Decoding,
    /// Gets no more rows; leaves when its last step in flight is committed.
    Draining(Leaving),
}

/// Where a draining sequence goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leaving {
    /// It has ended.
    End,
    /// It was preempted: back to the queue.
    Requeue,
}

/// What the scheduler knows of a sequence.
#[derive(Debug)]
pub(crate) struct Sequence {
    pub(crate) id: SequenceId,
    pub(crate) rank: Rank,
    pub(crate) namespace: Namespace,
    /// Prompt, then generated tokens.
    pub(crate) tokens: Vec<TokenId>,
    pub(crate) num_prompt: usize,
    max_new_tokens: u32,
    stop_tokens: Arc<[TokenId]>,
    sampling: Arc<Sampling>,
    pub(crate) submitted: Tick,
    /// Whether a row of it was ever planned.
    pub(crate) has_started: bool,
    pub(crate) wait: Wait,
    /// Tokens that the sequences which passed it while it was first in the queue had to compute.
    pub(crate) num_overtaken: usize,

    // While it has a slot.
    pub(crate) phase: Phase,
    /// How many tokens were known when it was admitted: the prefill computes these.
    pub(crate) num_to_prefill: usize,
    pub(crate) num_computed: usize,
    pub(crate) num_planned: usize,
    /// Tokens sampled by steps in flight.
    pub(crate) num_samples_in_flight: u32,
    pub(crate) num_steps_in_flight: u32,
    pub(crate) table: BlockTable,
    /// Entries of the table that the shards know; `None` before the first row.
    pub(crate) num_sent_blocks: Option<usize>,
    /// Entries among them that have changed since.
    pub(crate) changed_blocks: Range<usize>,
    /// To be made before the first row; `None` when that is planned.
    pub(crate) copy: Option<PendingCopy>,
}

impl Sequence {
    pub(crate) fn new(id: SequenceId, request: Request, now: Tick) -> Self {
        Self {
            id,
            rank: Rank::new(request.priority, id),
            namespace: request.namespace,
            num_prompt: request.prompt.len(),
            tokens: request.prompt,
            max_new_tokens: request.max_new_tokens,
            stop_tokens: request.stop_tokens,
            sampling: request.sampling,
            submitted: now,
            has_started: false,
            wait: Wait::Turn,
            num_overtaken: 0,
            phase: Phase::Prefilling,
            num_to_prefill: 0,
            num_computed: 0,
            num_planned: 0,
            num_samples_in_flight: 0,
            num_steps_in_flight: 0,
            table: BlockTable::default(),
            num_sent_blocks: None,
            changed_blocks: 0..0,
            copy: None,
        }
    }

    /// Tokens generated and committed.
    pub(crate) fn num_generated(&self) -> u32 {
        (self.tokens.len() - self.num_prompt) as u32
    }

    /// Tokens of the prefill that are not yet planned.
    pub(crate) fn num_left_to_prefill(&self) -> u32 {
        (self.num_to_prefill - self.num_planned) as u32
    }

    /// Whether it will generate more than the steps in flight do.
    pub(crate) fn wants_more_tokens(&self) -> bool {
        self.num_generated() + self.num_samples_in_flight < self.max_new_tokens
    }

    pub(crate) fn has_all_tokens(&self) -> bool {
        self.num_generated() >= self.max_new_tokens
    }

    pub(crate) fn is_stop_token(&self, token: TokenId) -> bool {
        self.stop_tokens.contains(&token)
    }

    /// Tokens that it may compute in all. The last generated one is never computed.
    pub(crate) fn num_positions(&self) -> usize {
        self.num_prompt + self.max_new_tokens as usize - 1
    }

    /// Tokens that it may still compute if `num_left` of its prefill are left.
    pub(crate) fn num_to_compute(&self, num_left: u32) -> usize {
        (num_left + self.max_new_tokens - self.num_generated()) as usize - 1
    }

    /// Blocks that it may still need beyond `num_blocks`, as far ahead as `horizon` blocks.
    pub(crate) fn growth(&self, num_blocks: usize, block_size: usize, horizon: u32) -> u32 {
        (self.num_positions().div_ceil(block_size).saturating_sub(num_blocks) as u32).min(horizon)
    }

    /// Forgets what it had while it ran.
    pub(crate) fn back_to_waiting(&mut self) {
        self.wait = Wait::Turn;
        self.phase = Phase::Prefilling;
        (self.num_to_prefill, self.num_computed, self.num_planned) = (0, 0, 0);
        self.num_sent_blocks = None;
        self.changed_blocks = 0..0;
    }

    /// How it is introduced to the shards.
    pub(crate) fn row_start(&self, slot: Slot) -> RowStart {
        let history = if self.sampling.needs_history() { self.tokens.clone() } else { Vec::new() };
        RowStart {
            slot,
            sampling: Arc::clone(&self.sampling),
            stop_tokens: Arc::clone(&self.stop_tokens),
            num_generated: self.num_generated(),
            history,
            num_prompt_tokens: self.num_prompt as u32,
        }
    }
}
