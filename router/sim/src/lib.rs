//! What a policy does to users, without a GPU: arrival traces and a device's costs around the real
//! [`Scheduler`](anaphora_core::Scheduler).
//!
//! ```text
//!   trace ── turns of sessions ──►  routing ──►  replica: Scheduler ── StepPlan ──►  device: how long it takes
//!     ▲                                             ▲  └── Events ──► report          │
//!     └── next turn, a while after the last ends    └────────── StepOutput ◄──────────┘
//! ```
//! Time is simulated, so hours pass in seconds, and equal inputs give equal reports. `cargo run --release -p anaphora-sim` prints
//! comparisons of policies of eviction, chunk size and routing; `POLICIES.md` has them, and what follows.
//!
//! Files: [`trace`] who asks what, [`device`] how long a step takes, [`routing`] which replica serves a turn, [`world`] the
//! events in order, [`report`] what the users saw.
#![forbid(unsafe_code)]

pub mod device;
pub mod report;
pub mod routing;
pub mod trace;
pub mod world;
