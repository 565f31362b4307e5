//! The engine: one task per replica that owns the replica's scheduler, and the handle that everything else holds.
//!
//! ```text
//! Engine::submit ──command──►  task: commands → plan → shard.send ─┐ two steps in flight
//! Generation::next ◄─update──  task: updates  ◄ commit ◄ receive ◄─┘
//! drop(Generation) ──cancel─►  task: the row is free in the next plan
//! ```
//!
//! - The scheduler has one owner, so there is no lock around it; what others may know of it is published after every step.
//! - Every accepted sequence ends exactly once: [`Update::Finished`], [`Update::Failed`], or its [`Generation`] is dropped.
//! - The task never waits for a client: updates go to a bounded channel, and a client that lets it run full loses its sequence.
//! - When the shard dies or stalls, every sequence fails at once and the task connects, configures and begins anew.
//! - The task must not panic: if it does, that is a bug and the process aborts, because a supervisor can restart a dead process
//!   and nobody can restart a hung one.

mod handle;
mod limits;
mod live;
mod session;
mod task;

use std::{
    sync::{Arc, Mutex, atomic::AtomicBool},
    time::Duration,
};

use anaphora_core::{
    Rejection, Stats,
    plan::{FinishReason, Sample},
};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};

pub use self::handle::{Engine, Generation};
use self::{
    handle::Shared,
    limits::{Admission, EndRate},
    session::Context,
    task::Task,
};
use crate::{config::EngineConfig, metrics::EngineMetrics, shard::Shard};

/// What happens to one sequence. [`Finished`](Self::Finished) or [`Failed`](Self::Failed) comes last, exactly once.
#[derive(Clone, Debug, PartialEq)]
pub enum Update {
    /// The sequence left the queue.
    Started {
        /// Prompt tokens that need not be computed.
        cached_tokens: u32,
    },
    /// A token was generated (a stop token too).
    Token(Sample),
    /// The sequence ended by itself.
    Finished(FinishReason),
    /// The sequence ended because something broke; the tokens so far are good.
    Failed(EngineError),
}

/// Why a sequence was refused, or ended before its time.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum EngineError {
    /// As many sequences as allowed are running and waiting.
    #[error("the model is overloaded")]
    Overloaded {
        /// When a place in the queue is likely to be free, measured from how fast sequences leave it now.
        retry_after: Duration,
    },
    /// The sequence waited for its turn as long as one may.
    #[error("the request waited too long for its turn")]
    QueueTimeout {
        /// When to try again.
        retry_after: Duration,
    },
    /// The replica is starting, or restarting.
    #[error("the model is not ready")]
    Unavailable {
        /// When it is likely to be.
        retry_after: Duration,
    },
    /// The shard died or stalled while it computed the sequence.
    #[error("the model's shard was lost")]
    ShardLost {
        /// When the replica is likely to be ready again.
        retry_after: Duration,
    },
    /// The request can never be served.
    #[error(transparent)]
    Rejected(Rejection),
    /// The process drains: it takes no new sequence, or the sequence did not end within the graceful timeout.
    #[error("the server is shutting down")]
    ShuttingDown,
    /// The client did not read its updates.
    #[error("the client reads too slowly")]
    SlowClient,
}

/// What a replica is doing.
#[derive(Clone, Debug, PartialEq)]
pub enum Status {
    /// The shard has not been configured yet.
    Starting {
        /// `load`, `warm_up`.
        phase: &'static str,
        /// How many of the phases are behind us, in percent.
        percent: u8,
    },
    /// Sequences are served.
    Ready(Arc<ReplicaInfo>),
    /// The shard died; the task waits for it to come back.
    Lost,
    /// The process is shutting down: nothing new is accepted.
    Draining,
}

/// What a configured replica is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaInfo {
    /// Equal for two replicas exactly if they compute the same function: the first part of every cache key.
    pub fingerprint: String,
    /// For instance `LlamaForCausalLM`.
    pub architecture: String,
    /// For instance `cuda:0 (NVIDIA H200)`.
    pub device: String,
    /// Of weights and activations.
    pub dtype: String,
    /// Ranks of the replica.
    pub world_size: u32,
    /// Rows of the output head, in tokens: ids at or above it do not exist.
    pub vocab_size: u32,
    /// Prompt and generated tokens that one sequence may have: what model, flags and pool all bear.
    pub context: u32,
    /// The KV pool, in tokens.
    pub kv_tokens: u64,
    /// Rows of a step.
    pub max_rows: u32,
    /// Tokens that one step computes.
    pub max_step_tokens: u32,
    /// Whether prompts share computed blocks.
    pub prefix_cache: bool,
}

/// What an engine is made of.
pub struct EngineParts<S> {
    /// Who computes.
    pub shard: S,
    /// How it is scheduled.
    pub config: EngineConfig,
    /// The served name, for metrics.
    pub model: String,
    /// Called by the task when the replica's state changes; must not block.
    pub report: Box<dyn Fn(EngineEvent) + Send>,
}

/// What a supervisor wants to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EngineEvent {
    /// Sequences are served: after the first start, and after every recovery.
    Ready(Arc<ReplicaInfo>),
    /// A rank died.
    ShardLost {
        /// What was seen of it.
        message: String,
    },
    /// The ranks do not answer, neither to a step nor to a call; whoever started them should kill them.
    ShardStalled,
}

/// Makes an engine: the handle, and the task to spawn, which ends after [`Engine::drain`] or [`Engine::stop`].
pub fn start<S: Shard>(parts: EngineParts<S>) -> (Engine, impl Future<Output = ()> + Send) {
    let EngineParts { shard, config, model, report } = parts;
    let (sender, commands) = mpsc::unbounded_channel();
    let (status, _) = watch::channel(Status::Starting { phase: "load", percent: 0 });
    let shared = Arc::new(Shared {
        commands: sender,
        admission: Admission::new(config.max_concurrent_requests),
        status,
        stats: Mutex::new(Stats::default()),
        draining: AtomicBool::new(false),
    });
    let context = Context {
        shared: Arc::clone(&shared),
        config,
        metrics: EngineMetrics::new(&model),
        origin: Instant::now(),
        rate: EndRate::default(),
    };
    (Engine::new(shared), Task { shard, commands, context, report }.run())
}
