//! Limits of a scheduler, its errors and its figures.

use std::{collections::BTreeMap, sync::Arc};

use crate::{ids::StepId, policy::Eviction};

/// Limits of a scheduler; fixed for its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SchedulerConfig {
    /// Blocks in the KV pool of the shards.
    pub num_blocks: u32,
    /// Tokens per block.
    pub block_size: u32,
    /// Row slots of the shards, which is the most sequences that run at a time.
    pub max_rows: u32,
    /// The most tokens that one step computes, all rows together. Fewer than `max_rows` makes fewer sequences run.
    pub max_step_tokens: u32,
    /// The most tokens of one sequence, prompt and generated.
    pub max_context: u32,
    /// Steps that may be planned before the oldest is committed. 2 keeps the device busy while the host works.
    pub max_in_flight: u32,
    /// Whether sequences share computed prefixes.
    pub prefix_cache: bool,
    /// The time between two tokens of a decoding sequence that prefills beside it must keep to, in microseconds. It bounds
    /// their chunks; where nobody decodes, nothing but `max_step_tokens` does.
    /// `u64::MAX` is no bound.
    pub target_itl_us: u64,
    /// How long a sequence may wait for its first row, in microseconds. `u64::MAX` is for ever.
    pub max_queue_time_us: u64,
    /// Which cached blocks are given up first.
    pub eviction: Eviction,
    /// The most blocks that tenants may leave in the prefix index, by name. One that has more loses its own, as soon as no
    /// sequence holds them. Tenants that are not named may fill the pool.
    pub quotas: BTreeMap<Arc<str>, u32>,
}

impl SchedulerConfig {
    /// Checks the limits.
    ///
    /// # Errors
    /// If one is 0.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let limits = [
            ("num_blocks", self.num_blocks),
            ("block_size", self.block_size),
            ("max_rows", self.max_rows),
            ("max_step_tokens", self.max_step_tokens),
            ("max_context", self.max_context),
            ("max_in_flight", self.max_in_flight),
        ];
        match limits.into_iter().find(|(_, value)| *value == 0) {
            Some((name, _)) => Err(ConfigError::Zero { name }),
            None => Ok(()),
        }
    }

    /// The most tokens that a sequence can have: what the model allows and the pool holds.
    #[must_use]
    pub fn max_tokens(&self) -> u32 {
        self.max_context.min(self.num_blocks.saturating_mul(self.block_size))
    }
}

/// A [`SchedulerConfig`] that makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A limit is 0.
    #[error("{name} must be at least 1")]
    Zero {
        /// The field.
        name: &'static str,
    },
}

/// A request that can never be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// There is nothing to continue.
    #[error("the prompt is empty")]
    EmptyPrompt,
    /// There is nothing to generate.
    #[error("max_new_tokens must be at least 1")]
    NoNewTokens,
    /// Prompt and output together exceed the context or the pool.
    #[error("{prompt} prompt tokens and {max_new_tokens} new tokens exceed the limit of {limit} tokens")]
    TooLong {
        /// Tokens of the prompt.
        prompt: u32,
        /// As requested.
        max_new_tokens: u32,
        /// The most tokens that a sequence can have.
        limit: u32,
    },
}

/// An output that does not answer the oldest step in flight. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    /// No step is in flight.
    #[error("the output of step {} came while no step was in flight", got.0)]
    NothingInFlight {
        /// The step that was answered.
        got: StepId,
    },
    /// Steps are answered in order.
    #[error("the output of step {} came where that of step {} was due", got.0, expected.0)]
    WrongStep {
        /// The oldest step in flight.
        expected: StepId,
        /// The step that was answered.
        got: StepId,
    },
    /// Each sampling row has one sample.
    #[error("step {} has {got} samples for {expected} sampling rows", step.0)]
    WrongSampleCount {
        /// The step.
        step: StepId,
        /// Sampling rows of the step.
        expected: usize,
        /// Samples in the output.
        got: usize,
    },
}

/// Figures of a scheduler. The counters grow over its life; the rest is as of now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Blocks in no use.
    pub free_blocks: u32,
    /// Blocks in the prefix index that no sequence holds; they can be evicted.
    pub cached_blocks: u32,
    /// Blocks that sequences hold. `free + cached + held == total`.
    pub held_blocks: u32,
    /// Blocks in the pool.
    pub total_blocks: u32,
    /// Sequences without a slot: new, or preempted.
    pub waiting: u32,
    /// Running sequences whose prompt (or what was lost in a preemption) is not wholly planned.
    pub prefilling: u32,
    /// Running sequences that generate.
    pub decoding: u32,
    /// Sequences that ended or were preempted and whose last step is in flight.
    pub draining: u32,
    /// Steps in flight.
    pub in_flight: u32,

    /// Counter: prompt tokens that came from the prefix index.
    pub prefix_hit_tokens: u64,
    /// Counter: prompt tokens that had to be computed.
    pub prefix_miss_tokens: u64,
    /// Counter: how often a waiting sequence let another one compute what they share.
    pub prefix_waits: u64,
    /// Counter: tokens computed a second time after a preemption.
    pub recomputed_tokens: u64,
    /// Counter: tokens generated.
    pub generated_tokens: u64,
    /// Counter: sequences accepted.
    pub submitted: u64,
    /// Counter: sequences that ended by themselves.
    pub finished: u64,
    /// Counter: sequences that waited as long as one may.
    pub expired: u64,
    /// Counter: sequences cancelled.
    pub cancelled: u64,
    /// Counter: preemptions.
    pub preemptions: u64,
    /// Counter: cached blocks given up for others.
    pub evicted_blocks: u64,
    /// Counter: steps planned.
    pub steps: u64,
    /// Counter: microseconds from submission to the first row, all sequences together.
    pub queue_time_us: u64,
}
