//! The engine task against a fake shard, with time paused: every test runs at the speed of the processor.

#![allow(clippy::unwrap_used, reason = "tests")]

mod cache;
mod cancel;
mod completion;
mod drain;
mod grpc;
mod overload;
mod recovery;
mod rig;
mod slow_client;
