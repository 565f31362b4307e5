//! What an engine needs of a replica's shards, whoever they are.
//!
//! A shard is a function of the step: it owns weights and a KV pool, executes plans in order and remembers nothing else, so that
//! it can be lost and replaced at any step. [`grpc`] speaks to real ones; [`fake`] is one inside this process.

pub mod fake;
pub mod grpc;

use std::time::Duration;

use anaphora_core::plan::{StepOutput, StepPlan};

/// All ranks of one replica, as one thing.
///
/// `connect → configure → (send | receive)*`; after an error, from `connect` again.
pub trait Shard: Send + 'static {
    /// Makes one attempt to reach every rank, and asks what they are. Forgets whatever connection there was.
    fn connect(&mut self) -> impl Future<Output = Result<Description, ShardError>> + Send;

    /// Warms up, allocates the KV pool and clears every slot; returns the number of blocks.
    fn configure(&mut self, pool: &PoolRequest) -> impl Future<Output = Result<u32, ShardError>> + Send;

    /// Hands a plan over; never waits, because the caller has at most a few plans without an answer.
    /// `traceparent` is the W3C trace context of the step, or empty.
    ///
    /// # Errors
    /// If the shard is known to be lost.
    fn send(&mut self, plan: &StepPlan, traceparent: &str) -> Result<(), ShardError>;

    /// The next answer, in the order of sending. Cancel safe. With nothing in flight it waits, and ends only if the shard is lost.
    fn receive(&mut self) -> impl Future<Output = Result<StepOutput, ShardError>> + Send;
}

/// What a replica says of itself once its weights are loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// Equal for two shards exactly if they compute the same function.
    pub fingerprint: String,
    /// For instance `LlamaForCausalLM`.
    pub architecture: String,
    /// Of weights and activations.
    pub dtype: String,
    /// For instance `cpu`, `cuda:0 (NVIDIA H200)`.
    pub device: String,
    /// Ranks.
    pub world_size: u32,
    /// Rows of the output head, in tokens.
    pub vocab_size: u32,
    /// Positions that the model can represent, in tokens.
    pub max_context: u32,
}

impl Description {
    /// Whether the defaults for GPUs apply.
    #[must_use]
    pub fn is_gpu(&self) -> bool {
        !self.device.starts_with("cpu")
    }
}

/// The pool and the largest step that the shard must bear.
#[derive(Clone, Debug, PartialEq)]
pub struct PoolRequest {
    /// Tokens per block.
    pub block_size: u32,
    /// Slots are `0..max_rows`.
    pub max_rows: u32,
    /// Tokens that one step computes, all rows together.
    pub max_step_tokens: u32,
    /// Tokens of the longest sequence.
    pub max_context: u32,
    /// `None`: as many as `memory_utilization` allows.
    pub num_blocks: Option<u32>,
    /// Fraction of device memory that a rank may use in all.
    pub memory_utilization: f32,
}

/// Why a shard does not serve. Any of these means: connect anew.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ShardError {
    /// Nobody listens; usual while the weights load.
    #[error("rank {rank} cannot be reached: {reason}")]
    Unreachable {
        /// Which rank.
        rank: usize,
        /// The operating system's or transport's words.
        reason: String,
    },
    /// A call took too long.
    #[error("rank {rank} did not answer {call} within {} s", limit.as_secs())]
    Timeout {
        /// Which rank.
        rank: usize,
        /// The method.
        call: &'static str,
        /// The deadline.
        limit: Duration,
    },
    /// A call failed.
    #[error("rank {rank} failed in {call}: {reason}")]
    Failed {
        /// Which rank.
        rank: usize,
        /// The method.
        call: &'static str,
        /// The status, in words.
        reason: String,
    },
    /// The ranks are not shards of one replica.
    #[error("rank {rank} does not fit the others: {what} is {found}, expected {expected}")]
    Mismatch {
        /// Which rank.
        rank: usize,
        /// What differs.
        what: &'static str,
        /// What it must be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// A message breaks the step protocol.
    #[error("rank {rank} broke the step protocol: {reason}")]
    Protocol {
        /// Which rank.
        rank: usize,
        /// How.
        reason: String,
    },
}
