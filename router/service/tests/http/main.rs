//! The HTTP API as clients see it: `api::app` over a fake shard, without a socket.

#![expect(clippy::unwrap_used, reason = "a test that unwraps says where it failed")]

mod auth;
mod cache;
mod chat;
mod common;
mod completions;
mod errors;
mod faults;
mod fuzz;
mod ops;
mod tgi;
