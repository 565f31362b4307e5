//! The metrics of a replica, written by its engine task from what the scheduler reports.

use std::time::Duration;

use ::metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};
use anaphora_core::Stats;

use super::names;

/// Handles for one replica.
pub(crate) struct EngineMetrics {
    /// From a sequence's submission to its first token.
    pub(crate) time_to_first_token: Histogram,
    /// Between two tokens of a sequence.
    pub(crate) inter_token_latency: Histogram,
    /// From a sequence's submission to its first step.
    pub(crate) queue: Histogram,
    /// Rows of a step.
    pub(crate) step_rows: Histogram,
    /// Sequences that lost their blocks.
    pub(crate) preemptions: Counter,
    /// Times that the shard was lost.
    pub(crate) shard_losses: Counter,
    pub(crate) ended: Ended,
    prefill: StepMetrics,
    decode: StepMetrics,
    gauges: Gauges,
    hit_tokens: Counter,
    miss_tokens: Counter,
    /// The scheduler counts from its own beginning; the counters must survive it.
    seen: (u64, u64),
}

/// What a step is, as TGI tells them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Method {
    /// At least one row computes prompt tokens.
    Prefill,
    /// Every row computes the token that it sampled last.
    Decode,
}

/// Sequences that ended, by reason.
pub(crate) struct Ended {
    pub(crate) finished: Counter,
    pub(crate) cancelled: Counter,
    pub(crate) slow_client: Counter,
    pub(crate) queue_timeout: Counter,
    pub(crate) shard_lost: Counter,
    pub(crate) shutting_down: Counter,
}

struct StepMetrics {
    count: Counter,
    success: Counter,
    failure: Counter,
    duration: Histogram,
}

struct Gauges {
    queue_size: Gauge,
    batch_size: Gauge,
    batch_tokens: Gauge,
    total_tokens: Gauge,
    free: Gauge,
    cached: Gauge,
    held: Gauge,
    total: Gauge,
    running: Gauge,
    waiting: Gauge,
}

// === impl EngineMetrics ===

impl EngineMetrics {
    /// Handles that write under the label `model`.
    pub(crate) fn new(model: &str) -> Self {
        let label = || model.to_owned();
        let tokens = |result: &'static str| counter!(names::PREFIX_CACHE_TOKENS, "model" => label(), "result" => result);
        Self {
            time_to_first_token: histogram!(names::TIME_TO_FIRST_TOKEN, "model" => label()),
            inter_token_latency: histogram!(names::INTER_TOKEN_LATENCY, "model" => label()),
            queue: histogram!(names::REQUEST_QUEUE, "model" => label()),
            step_rows: histogram!(names::BATCH_NEXT_SIZE, "model" => label()),
            preemptions: counter!(names::PREEMPTIONS, "model" => label()),
            shard_losses: counter!(names::SHARD_LOSSES, "model" => label()),
            ended: Ended::new(model),
            prefill: StepMetrics::new(model, "prefill"),
            decode: StepMetrics::new(model, "decode"),
            gauges: Gauges::new(model),
            hit_tokens: tokens("hit"),
            miss_tokens: tokens("miss"),
            seen: (0, 0),
        }
    }

    /// A step was sent.
    pub(crate) fn step_sent(&self, method: Method, num_rows: usize) {
        self.step(method).count.increment(1);
        self.step_rows.record(num_rows as f64);
    }

    /// A step was answered.
    pub(crate) fn step_answered(&self, method: Method, duration: Duration) {
        let step = self.step(method);
        step.success.increment(1);
        step.duration.record(duration);
    }

    /// A step was lost with its shard.
    pub(crate) fn step_lost(&self, method: Method) {
        self.step(method).failure.increment(1);
    }

    /// A scheduler begins anew, and counts from zero.
    pub(crate) fn scheduler_reset(&mut self) {
        self.seen = (0, 0);
    }

    /// Publishes the scheduler's counts.
    pub(crate) fn publish(&mut self, stats: &Stats, block_size: u32) {
        let gauges = &self.gauges;
        let running = f64::from(stats.prefilling + stats.decoding);
        gauges.queue_size.set(f64::from(stats.waiting));
        gauges.waiting.set(f64::from(stats.waiting));
        gauges.batch_size.set(running);
        gauges.running.set(running);
        gauges.free.set(f64::from(stats.free_blocks));
        gauges.cached.set(f64::from(stats.cached_blocks));
        gauges.held.set(f64::from(stats.held_blocks));
        gauges.total.set(f64::from(stats.total_blocks));
        gauges.batch_tokens.set(f64::from(stats.held_blocks) * f64::from(block_size));
        gauges.total_tokens.set(f64::from(stats.total_blocks) * f64::from(block_size));
        self.hit_tokens.increment(stats.prefix_hit_tokens - self.seen.0);
        self.miss_tokens.increment(stats.prefix_miss_tokens - self.seen.1);
        self.seen = (stats.prefix_hit_tokens, stats.prefix_miss_tokens);
    }

    fn step(&self, method: Method) -> &StepMetrics {
        match method {
            Method::Prefill => &self.prefill,
            Method::Decode => &self.decode,
        }
    }
}

impl Ended {
    fn new(model: &str) -> Self {
        let ended = |reason: &'static str| counter!(names::SEQUENCES_ENDED, "model" => model.to_owned(), "reason" => reason);
        Self {
            finished: ended("finished"),
            cancelled: ended("cancelled"),
            slow_client: ended("slow_client"),
            queue_timeout: ended("queue_timeout"),
            shard_lost: ended("shard_lost"),
            shutting_down: ended("shutting_down"),
        }
    }
}

impl StepMetrics {
    fn new(model: &str, method: &'static str) -> Self {
        let counted = |name| counter!(name, "model" => model.to_owned(), "method" => method);
        Self {
            count: counted(names::BATCH_INFERENCE_COUNT),
            success: counted(names::BATCH_INFERENCE_SUCCESS),
            failure: counted(names::BATCH_INFERENCE_FAILURE),
            duration: histogram!(names::BATCH_INFERENCE_DURATION, "model" => model.to_owned(), "method" => method),
        }
    }
}

impl Gauges {
    fn new(model: &str) -> Self {
        let named = |name| gauge!(name, "model" => model.to_owned());
        let blocks =
            |state: &'static str| gauge!(names::KV_BLOCKS, "model" => model.to_owned(), "state" => state);
        Self {
            queue_size: named(names::QUEUE_SIZE),
            batch_size: named(names::BATCH_CURRENT_SIZE),
            batch_tokens: named(names::BATCH_CURRENT_MAX_TOKENS),
            total_tokens: named(names::BATCH_MAX_TOTAL_TOKENS),
            free: blocks("free"),
            cached: blocks("cached"),
            held: blocks("held"),
            total: named(names::KV_BLOCKS_TOTAL),
            running: named(names::REQUESTS_RUNNING),
            waiting: named(names::REQUESTS_WAITING),
        }
    }
}
