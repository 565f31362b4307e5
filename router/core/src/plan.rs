//! What goes to the shards and what comes back: plain data.
//!
//! A [`StepPlan`] is a delta against the mirror that a shard keeps by row slot (see `proto/shard.proto`): its size depends on
//! what is new in the step, never on the length of a context.

use std::sync::Arc;

use crate::{
    ids::{BlockId, SequenceId, Slot, StepId, TokenId},
    request::Sampling,
};

/// What the shards must compute next. Applied in the order of the fields.
#[derive(Clone, Debug, PartialEq)]
pub struct StepPlan {
    /// Counts up from 1.
    pub id: StepId,
    /// Slots that are free from now on.
    pub finished: Vec<Slot>,
    /// Slots that begin a sequence, or resume one after a preemption.
    pub started: Vec<RowStart>,
    /// Blocks that came to the tables of slots.
    pub block_tables: Vec<BlockTableDelta>,
    /// Blocks to copy before anything is computed (copy-on-write).
    pub block_copies: Vec<BlockCopy>,
    /// The rows to compute, all in one forward pass; never empty, at most one per slot.
    pub rows: Vec<Row>,
}

/// A slot begins (or resumes) a sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct RowStart {
    /// The slot.
    pub slot: Slot,
    /// How to sample.
    pub sampling: Arc<Sampling>,
    /// The tokens that end the sequence; the shard needs them while fewer than `min_new_tokens` exist.
    pub stop_tokens: Arc<[TokenId]>,
    /// Tokens sampled before a preemption; 0 for a new sequence.
    pub num_generated: u32,
    /// Prompt and generated tokens, if [`Sampling::needs_history`]; else empty.
    pub history: Vec<TokenId>,
    /// How many tokens of `history` are prompt.
    pub num_prompt_tokens: u32,
}

/// `blocks[i]` holds positions `(start + i) * block_size ..` of the slot's sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockTableDelta {
    /// The slot.
    pub slot: Slot,
    /// Index into the slot's block table.
    pub start: u32,
    /// The blocks from `start` on.
    pub blocks: Vec<BlockId>,
}

/// Copy a whole block, in every layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockCopy {
    /// Read.
    pub source: BlockId,
    /// Written.
    pub destination: BlockId,
}

/// One row of a step: consecutive tokens of one sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The slot.
    pub slot: Slot,
    /// Position of the first token computed, which is the number of tokens already in the KV cache.
    pub position: u32,
    /// Where the input ids come from.
    pub input: RowInput,
    /// Whether a token is sampled after the last one (false in all chunks of a prefill but the last).
    pub sample: bool,
}

/// The input of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RowInput {
    /// A prefill chunk: these ids, at least one.
    Tokens(Vec<TokenId>),
    /// A decode: the token that this slot sampled last, which the host need not know yet.
    LastSampled,
}

impl RowInput {
    /// How many tokens the row computes.
    #[must_use]
    pub fn num_tokens(&self) -> usize {
        match self {
            Self::Tokens(tokens) => tokens.len(),
            Self::LastSampled => 1,
        }
    }
}

/// What a shard answers to a plan.
#[derive(Clone, Debug, PartialEq)]
pub struct StepOutput {
    /// The plan answered; plans are answered in order.
    pub id: StepId,
    /// One per row with `sample`, in row order.
    pub samples: Vec<Sample>,
    /// How long the shards took for this step alone, in microseconds; 0 if that is not known.
    pub duration_us: u64,
}

/// A sampled token.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// The token.
    pub token: TokenId,
    /// Its log-probability under the unmodified distribution.
    pub logprob: f32,
    /// The likeliest tokens with theirs, if asked for, likeliest first.
    pub top: Vec<(TokenId, f32)>,
}

/// What happened in a commit, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The first chunk of the sequence was planned; `cached_tokens` of its prompt came from the prefix index.
    Started {
        /// The sequence.
        sequence: SequenceId,
        /// Prompt tokens that need not be computed.
        cached_tokens: u32,
    },
    /// A token was generated (a stop token too).
    Token {
        /// The sequence.
        sequence: SequenceId,
        /// The token, with log-probabilities.
        sample: Sample,
    },
    /// The sequence ended by itself. Each accepted sequence ends exactly once: by this, because it expired, or by a cancel.
    Finished {
        /// The sequence.
        sequence: SequenceId,
        /// Why.
        reason: FinishReason,
    },
    /// The sequence ended because it waited for its first row as long as one may.
    Expired {
        /// The sequence.
        sequence: SequenceId,
    },
    /// The sequence lost its blocks and waits to be computed again; its client sees only a pause.
    Preempted {
        /// The sequence.
        sequence: SequenceId,
    },
}

impl Event {
    /// The sequence to which it happened.
    #[must_use]
    pub fn sequence(&self) -> SequenceId {
        match self {
            Self::Started { sequence, .. }
            | Self::Token { sequence, .. }
            | Self::Finished { sequence, .. }
            | Self::Expired { sequence }
            | Self::Preempted { sequence } => *sequence,
        }
    }
}

/// Why a sequence ended by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// `max_new_tokens` were generated.
    Length,
    /// One of the stop tokens was sampled.
    StopToken,
}
