//! The edges of the router: flags, configuration, the launcher's lines, the listener, and the walls between its files.

#![allow(clippy::unwrap_used, reason = "tests")]

mod cli;
mod events;
mod listener;
mod process;
mod traces;
mod walls;
