//! Routes for machines that look after this one. All of them are public.

pub(super) mod health;
pub(super) mod metrics;
