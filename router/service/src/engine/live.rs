//! The live sequences of a replica, and how updates reach their clients without ever waiting for one.

use std::collections::HashMap;

use anaphora_core::{
    ids::SequenceId,
    plan::{FinishReason, Sample},
};
use opentelemetry::trace::SpanContext;
use tokio::sync::mpsc;

use super::{EngineError, Update, limits::Permit};
use crate::metrics::EngineMetrics;

/// What the task keeps of one live sequence.
#[derive(Debug)]
pub(super) struct Entry {
    /// Holds one more update than a client may leave unread: the last place is for the update that ends the sequence.
    updates: mpsc::Sender<Update>,
    _permit: Permit,
    submitted_us: u64,
    last_token_us: Option<u64>,
    /// The trace of the HTTP request, if there is one.
    pub(super) trace: Option<SpanContext>,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Live {
    entries: HashMap<SequenceId, Entry>,
    /// Whether any sequence ever had a trace: where traces are off, no step looks for one.
    is_traced: bool,
    /// Latencies of equal length that are not recorded yet: rows that decode together share theirs.
    latency: (u64, usize),
}

/// The client let its channel run full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Overflow;

impl Entry {
    pub(super) fn new(
        updates: mpsc::Sender<Update>,
        permit: Permit,
        submitted_us: u64,
        trace: Option<SpanContext>,
    ) -> Self {
        Self { updates, _permit: permit, submitted_us, last_token_us: None, trace }
    }

    fn push(&self, update: Update) -> Result<(), Overflow> {
        if self.updates.capacity() <= 1 {
            return Err(Overflow);
        }
        // A client that is gone has sent its cancel already.
        let _ = self.updates.try_send(update);
        Ok(())
    }

    fn end(self, update: Update) {
        let _ = self.updates.try_send(update);
    }
}

impl Live {
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(super) fn insert(&mut self, id: SequenceId, entry: Entry) {
        self.is_traced |= entry.trace.is_some();
        self.entries.insert(id, entry);
    }

    /// Whether there can be a [`trace`](Self::trace).
    pub(super) fn is_traced(&self) -> bool {
        self.is_traced
    }

    pub(super) fn trace(&self, id: SequenceId) -> Option<&SpanContext> {
        self.entries.get(&id)?.trace.as_ref()
    }

    /// The sequence left the queue.
    pub(super) fn started(
        &mut self,
        id: SequenceId,
        cached_tokens: u32,
        now_us: u64,
        metrics: &EngineMetrics,
    ) -> Result<(), Overflow> {
        let Some(entry) = self.entries.get(&id) else { return Ok(()) };
        metrics.queue.record(seconds(now_us - entry.submitted_us));
        entry.push(Update::Started { cached_tokens })
    }

    /// The sequence got a token.
    pub(super) fn token(
        &mut self,
        id: SequenceId,
        sample: Sample,
        now_us: u64,
        metrics: &EngineMetrics,
    ) -> Result<(), Overflow> {
        let Some(entry) = self.entries.get_mut(&id) else { return Ok(()) };
        match entry.last_token_us.replace(now_us) {
            None => metrics.time_to_first_token.record(seconds(now_us - entry.submitted_us)),
            Some(last_us) if now_us - last_us == self.latency.0 => self.latency.1 += 1,
            Some(last_us) => {
                let latency = std::mem::replace(&mut self.latency, (now_us - last_us, 1));
                record(latency, metrics);
            }
        }
        entry.push(Update::Token(sample))
    }

    /// The sequence ended by itself.
    pub(super) fn finished(&mut self, id: SequenceId, reason: FinishReason) -> bool {
        let entry = self.entries.remove(&id);
        entry.map(|entry| entry.end(Update::Finished(reason))).is_some()
    }

    /// The sequence is over, and its client is told why.
    pub(super) fn failed(&mut self, id: SequenceId, error: EngineError) -> bool {
        let entry = self.entries.remove(&id);
        entry.map(|entry| entry.end(Update::Failed(error))).is_some()
    }

    /// The client went away.
    pub(super) fn dropped(&mut self, id: SequenceId) -> bool {
        self.entries.remove(&id).is_some()
    }

    /// All sequences are over; returns how many.
    pub(super) fn fail_all(&mut self, error: &EngineError) -> usize {
        let num_live = self.len();
        for (_, entry) in self.entries.drain() {
            entry.end(Update::Failed(error.clone()));
        }
        num_live
    }

    /// Records what was put aside; once per step.
    pub(super) fn flush(&mut self, metrics: &EngineMetrics) {
        record(std::mem::take(&mut self.latency), metrics);
    }
}

fn record((latency_us, count): (u64, usize), metrics: &EngineMetrics) {
    if count > 0 {
        metrics.inter_token_latency.record_many(seconds(latency_us), count);
    }
}

fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}
