//! For tests and simulations (feature `testing`): a world in which a scheduler can be tried.
//!
//! [`ShardModel`] is a shard that believes nothing: it keeps, for every position of the KV pool, *which prefix* it holds, and
//! checks at every row that the positions before it hold exactly the right ones. [`World`] joins it to a scheduler and checks
//! the events. `Scheduler::check_invariants` is the scheduler's side. [`strategies`] make random requests and operations.
//!
//! All of it panics where something is wrong, as tests do.

mod shard;
pub mod strategies;
mod world;

pub use self::{
    shard::{ShardModel, expected_tokens, next_token},
    world::{End, Outcome, World},
};

/// The token that [`next_token`] gives every now and then, to stop at.
pub const STOP_TOKEN: crate::TokenId = 2;
