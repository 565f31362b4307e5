//! The prefix cache, for people who want to know. A tenant sees and clears what is its own.

pub(super) mod clear;
pub(super) mod explain;
pub(super) mod list;
mod locate;
