//! The core of anaphora: which tokens are computed in which step, and in which blocks of the KV cache.
//!
//! ```text
//!                                  Scheduler                                   a shard (see proto/shard.proto)
//!   Request ── submit ──►  waiting ─► running ── plan ──►  StepPlan  ────────►  executes it on its mirror:
//!   cancel ─────────────►     │          ▲                (a delta)             slots, block tables, KV pool
//!                             ▼          └── commit ◄──  StepOutput  ◄────────  sampled tokens
//!                          KvCache = BlockPool + PrefixIndex │
//!                                                            └──► Events (started, token, finished, …)
//! ```
//! A state machine without input or output: no clock ([`Tick`]s are arguments), no randomness, no log, no thread, no lock.
//! The same calls give the same plans. One task per replica owns a [`Scheduler`] and calls its four verbs; whatever executes
//! the plans is its business, a GPU or a table of made-up tokens.
//!
//! # The loop
//! 1. [`Scheduler::submit`] whenever a request comes, [`Scheduler::cancel`] whenever a client goes.
//! 2. [`Scheduler::plan`] until it returns `None`; send each [`StepPlan`] to the shards. Up to
//!    [`max_in_flight`](SchedulerConfig::max_in_flight) steps may be under way: step N+1 is planned before the tokens of N
//!    are known, and its rows say [`RowInput::LastSampled`].
//! 3. [`Scheduler::commit`] each [`StepOutput`], in order, and pass its [`Event`]s on. Then 2 again.
//!
//! ```
//! use anaphora_core::*;
//!
//! let mut scheduler = Scheduler::new(SchedulerConfig {
//!     num_blocks: 100,
//!     block_size: 16,
//!     max_rows: 8,
//!     max_step_tokens: 512,
//!     max_context: 1024,
//!     max_in_flight: 2,
//!     prefix_cache: true,
//!     target_itl_us: 50_000,
//!     max_queue_time_us: u64::MAX,
//!     eviction: Eviction::Lru,
//!     quotas: Default::default(),
//! })?;
//! let request = Request {
//!     namespace: Namespace { tenant: "a tenant".into(), ..Namespace::default() },
//!     prompt: vec![1, 2, 3],
//!     max_new_tokens: 100,
//!     stop_tokens: [0].into(),
//!     sampling: Sampling::default().into(),
//!     priority: 0,
//! };
//! let sequence = scheduler.submit(request, Tick(0))?;
//!
//! // A model that continues 3 with 2, 1, 0.
//! let mut last_sampled = 0;
//! let mut shard = |plan: &StepPlan| {
//!     let [row] = &plan.rows[..] else { unreachable!("one sequence, one row") };
//!     last_sampled = match &row.input {
//!         RowInput::Tokens(tokens) => tokens[tokens.len() - 1] - 1,
//!         RowInput::LastSampled => last_sampled.saturating_sub(1),
//!     };
//!     StepOutput { id: plan.id, duration_us: 0, samples: vec![Sample { token: last_sampled, logprob: 0.0, top: vec![] }] }
//! };
//!
//! let mut outputs = std::collections::VecDeque::new();
//! let mut events = Vec::new();
//! loop {
//!     while let Some(plan) = scheduler.plan(Tick(0)) {
//!         outputs.push_back(shard(&plan));
//!     }
//!     let Some(output) = outputs.pop_front() else { break };
//!     events.extend(scheduler.commit(&output)?);
//! }
//!
//! assert_eq!(events[0], Event::Started { sequence, cached_tokens: 0 });
//! let tokens = events.iter().filter_map(|event| match event {
//!     Event::Token { sample, .. } => Some(sample.token),
//!     _ => None,
//! });
//! assert_eq!(tokens.collect::<Vec<_>>(), [2, 1, 0]);
//! assert_eq!(events[4], Event::Finished { sequence, reason: FinishReason::StopToken });
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What always holds
//! - `free + cached + held == total` blocks, after every operation.
//! - Every accepted sequence ends exactly once, by [`Event::Finished`], [`Event::Expired`] or a cancel; the oldest of the highest priority
//!   always gets on, and one that runs alone is never preempted.
//! - Which tokens a sequence gets does not depend on batching, chunking, caching or preemption, as long as the shards
//!   compute each token from exactly the tokens before it.
//! - A block is read by several sequences only through the prefix index, and never written once it is there.
//! - A block or a slot changes hands only when no step in flight knows it.
//! - A plan has at most `max_rows` rows and `max_step_tokens` tokens.
//! - Nothing in `plan` or `commit` costs anything per token of context.
//!
//! # The files, bottom up
//! [`ids`], [`request`], [`plan`]: plain data. [`blocks`]: who owns a block. [`radix`]: which tokens are in which blocks.
//! [`cache`]: the two together. [`explain`]: why a prompt finds what it finds. [`policy`]: who is first, who is last, who gets how much. [`cost`]: how long a step takes. `sequence`: the life of one
//! sequence. [`scheduler`]: the four verbs. `testing` (feature): a shard that checks what it is told, and strategies.
#![forbid(unsafe_code)]

pub mod blocks;
pub mod cache;
pub mod cost;
pub mod explain;
pub mod ids;
pub mod plan;
pub mod policy;
pub mod radix;
pub mod request;
pub mod scheduler;
mod sequence;
#[cfg(feature = "testing")]
pub mod testing;

pub use self::{
    explain::{Explanation, MatchEnd},
    ids::{BlockId, SequenceId, Slot, StepId, Tick, TokenId},
    plan::{
        BlockCopy, BlockTableDelta, Event, FinishReason, Row, RowInput, RowStart, Sample, StepOutput,
        StepPlan,
    },
    policy::Eviction,
    radix::NamespaceUsage,
    request::{Namespace, Request, Sampling},
    scheduler::{CommitError, ConfigError, Rejection, Scheduler, SchedulerConfig, Stats},
};
