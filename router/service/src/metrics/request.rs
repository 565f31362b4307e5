//! The metrics of HTTP requests: TGI's `tgi_request_*`. Written by the handlers, who alone know how a request ended.

use std::time::Duration;

use ::metrics::{Counter, Histogram, counter, histogram};

use super::names;

/// Handles for one model's requests; cheap to clone.
#[derive(Clone)]
pub struct RequestMetrics {
    model: String,
    count: Counter,
    success: Counter,
    duration: Histogram,
    validation: Histogram,
    queue: Histogram,
    inference: Histogram,
    per_token: Histogram,
    input_length: Histogram,
    max_new_tokens: Histogram,
    generated: Histogram,
    skipped: Histogram,
}

/// Why a request failed: the label `err` of `tgi_request_failure`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// It asked for what cannot be.
    Validation,
    /// The chat template failed.
    Template,
    /// Too many sequences were alive.
    Overloaded,
    /// The replica was not ready, or was shutting down.
    Unavailable,
    /// The shard was lost.
    Generation,
    /// The client read too slowly.
    SlowClient,
    /// The client went away.
    Dropped,
}

/// A request that was answered in full.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timings {
    /// From arrival to the last token.
    pub total: Duration,
    /// From submission to the first step.
    pub queue: Duration,
    /// From the first step to the last token.
    pub inference: Duration,
    /// Tokens generated.
    pub num_generated: u32,
    /// Prompt tokens from the prefix cache.
    pub num_cached: u32,
}

impl Failure {
    fn label(self) -> &'static str {
        match self {
            Self::Validation => "validation",
            Self::Template => "template",
            Self::Overloaded => "overloaded",
            Self::Unavailable => "unavailable",
            Self::Generation => "generation",
            Self::SlowClient => "slow_client",
            Self::Dropped => "dropped",
        }
    }
}

impl RequestMetrics {
    /// Handles that write under the label `model`.
    #[must_use]
    pub fn new(model: &str) -> Self {
        let model = model.to_owned();
        let seen = |name| histogram!(name, "model" => model.clone());
        Self {
            count: counter!(names::REQUEST_COUNT, "model" => model.clone()),
            success: counter!(names::REQUEST_SUCCESS, "model" => model.clone()),
            duration: seen(names::REQUEST_DURATION),
            validation: seen(names::REQUEST_VALIDATION_DURATION),
            queue: seen(names::REQUEST_QUEUE_DURATION),
            inference: seen(names::REQUEST_INFERENCE_DURATION),
            per_token: seen(names::REQUEST_TOKEN_DURATION),
            input_length: seen(names::REQUEST_INPUT_LENGTH),
            max_new_tokens: seen(names::REQUEST_MAX_NEW_TOKENS),
            generated: seen(names::REQUEST_GENERATED_TOKENS),
            skipped: seen(names::REQUEST_SKIPPED_TOKENS),
            model,
        }
    }

    /// A request arrived.
    pub fn received(&self) {
        self.count.increment(1);
    }

    /// It was validated, templated and tokenised.
    pub fn validated(&self, duration: Duration, num_input_tokens: usize, max_new_tokens: u32) {
        self.validation.record(duration);
        self.input_length.record(num_input_tokens as f64);
        self.max_new_tokens.record(max_new_tokens);
    }

    /// It failed, before or after its first token.
    pub fn failed(&self, failure: Failure) {
        counter!(names::REQUEST_FAILURE, "model" => self.model.clone(), "err" => failure.label())
            .increment(1);
    }

    /// It was answered in full.
    pub fn succeeded(&self, timings: &Timings) {
        self.success.increment(1);
        self.duration.record(timings.total);
        self.queue.record(timings.queue);
        self.inference.record(timings.inference);
        self.per_token.record(timings.inference / timings.num_generated.max(1));
        self.generated.record(timings.num_generated);
        self.skipped.record(timings.num_cached);
    }
}

impl std::fmt::Debug for RequestMetrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RequestMetrics").field("model", &self.model).finish_non_exhaustive()
    }
}
