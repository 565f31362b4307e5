//! The router: everything that touches a socket, a clock or a task.
//!
//! ```text
//! listener ─► api ─► admit (template, tokenise) ─► engine (scheduler) ─► shard/grpc ─► the ranks
//!             api ◄─ stream (detokenise, stop)  ◄─ engine             ◄─ shard/grpc ◄─
//! ```

pub mod admit;
pub mod api;
pub mod cli;
pub mod config;
pub mod engine;
pub mod listener;
pub mod metrics;
pub mod shard;
pub mod shutdown;
pub mod stream;
pub mod telemetry;
