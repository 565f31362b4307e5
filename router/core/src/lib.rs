//! anaphora-core
pub mod ids;
pub mod plan;
pub mod request;
