//! Every metric that the router exports, in one table, and the two sets of handles that write them.
//!
//! TGI's names where TGI has the thing, `anaphora_*` for what it lacks; each carries a `model` label, and no label grows with
//! what clients send. Handles are made once and kept: writing one is an atomic operation, not a lookup.

use std::sync::OnceLock;

use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

mod engine;
mod request;

pub(crate) use self::engine::{EngineMetrics, Method};
pub use self::request::{Failure, RequestMetrics, Timings};

/// What a metric is; for histograms, with its buckets.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Counter,
    Gauge,
    /// Seconds: TGI's 35 geometric buckets from 0.15 ms to 146 s.
    Seconds,
    /// Powers of two, from 1 to 2^20.
    Count,
}

/// One line of the table.
struct Metric {
    name: &'static str,
    kind: Kind,
    help: &'static str,
}

macro_rules! table {
    ($($ident:ident = $name:literal, $kind:ident, $help:literal;)*) => {
        /// The names, for the handles below.
        mod names {
            $(pub(super) const $ident: &str = $name;)*
        }
        /// All of them.
        const TABLE: &[Metric] = &[$(Metric { name: $name, kind: Kind::$kind, help: $help }),*];
    };
}

table! {
    REQUEST_COUNT = "tgi_request_count", Counter, "Requests received.";
    REQUEST_SUCCESS = "tgi_request_success", Counter, "Requests answered in full.";
    REQUEST_FAILURE = "tgi_request_failure", Counter, "Requests that failed, by `err`.";
    REQUEST_DURATION = "tgi_request_duration", Seconds, "From a request's arrival to its last token.";
    REQUEST_VALIDATION_DURATION = "tgi_request_validation_duration", Seconds, "Validating, templating and tokenising.";
    REQUEST_QUEUE_DURATION = "tgi_request_queue_duration", Seconds, "From a request's submission to its first step.";
    REQUEST_INFERENCE_DURATION = "tgi_request_inference_duration", Seconds, "From a request's first step to its last token.";
    REQUEST_TOKEN_DURATION = "tgi_request_mean_time_per_token_duration", Seconds, "Inference duration per generated token.";
    REQUEST_INPUT_LENGTH = "tgi_request_input_length", Count, "Prompt tokens.";
    REQUEST_MAX_NEW_TOKENS = "tgi_request_max_new_tokens", Count, "Tokens that a request may generate.";
    REQUEST_GENERATED_TOKENS = "tgi_request_generated_tokens", Count, "Tokens that a request generated.";
    REQUEST_SKIPPED_TOKENS = "tgi_request_skipped_tokens", Count, "Prompt tokens that came from the prefix cache.";
    QUEUE_SIZE = "tgi_queue_size", Gauge, "Sequences waiting for their first step.";
    BATCH_CURRENT_SIZE = "tgi_batch_current_size", Gauge, "Sequences running.";
    BATCH_CURRENT_MAX_TOKENS = "tgi_batch_current_max_tokens", Gauge, "Tokens of KV pool that running sequences hold.";
    BATCH_MAX_TOTAL_TOKENS = "tgi_batch_max_total_tokens", Gauge, "The KV pool, in tokens.";
    BATCH_NEXT_SIZE = "tgi_batch_next_size", Count, "Rows of a step.";
    BATCH_INFERENCE_COUNT = "tgi_batch_inference_count", Counter, "Steps sent, by `method`: prefill if any row is.";
    BATCH_INFERENCE_SUCCESS = "tgi_batch_inference_success", Counter, "Steps answered, by `method`.";
    BATCH_INFERENCE_FAILURE = "tgi_batch_inference_failure", Counter, "Steps lost with their shard, by `method`.";
    BATCH_INFERENCE_DURATION = "tgi_batch_inference_duration", Seconds, "From the step before, or from sending, to a step's answer.";
    TIME_TO_FIRST_TOKEN = "anaphora_time_to_first_token_seconds", Seconds, "From a sequence's submission to its first token.";
    INTER_TOKEN_LATENCY = "anaphora_inter_token_latency_seconds", Seconds, "Between two tokens of a sequence.";
    REQUEST_QUEUE = "anaphora_request_queue_seconds", Seconds, "From a sequence's submission to its first step.";
    KV_BLOCKS = "anaphora_kv_blocks", Gauge, "Blocks of the KV pool by `state`; free + cached + held is the total.";
    KV_BLOCKS_TOTAL = "anaphora_kv_blocks_total", Gauge, "Blocks of the KV pool.";
    PREFIX_CACHE_TOKENS = "anaphora_prefix_cache_tokens_total", Counter, "Prompt tokens that were in the prefix cache, or not.";
    PREEMPTIONS = "anaphora_preemptions_total", Counter, "Sequences that lost their blocks to others and were computed again.";
    REQUESTS_RUNNING = "anaphora_requests_running", Gauge, "Sequences running.";
    REQUESTS_WAITING = "anaphora_requests_waiting", Gauge, "Sequences waiting for their first step.";
    SEQUENCES_ENDED = "anaphora_sequences_ended_total", Counter, "Sequences that ended, by `reason`.";
    SHARD_LOSSES = "anaphora_shard_losses_total", Counter, "Times that the shard died or stalled.";
    CONNECTIONS_REFUSED = "anaphora_connections_refused_total", Counter, "Connections refused because too many were open.";
}

/// Installs the process's recorder (once; later calls return the same one) and hands out what renders it as Prometheus text.
///
/// The handle's `run_upkeep` must be called now and then: until then, and until a scrape, histograms keep every sample.
///
/// # Panics
/// If something else has installed a recorder, which is a bug of the program.
#[must_use]
pub fn install() -> PrometheusHandle {
    static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();
    let install = || {
        let recorder =
            builder().expect("no bucket list of the table is empty. This is a bug.").build_recorder();
        let handle = recorder.handle();
        ::metrics::set_global_recorder(recorder)
            .expect("only this function installs a recorder. This is a bug.");
        describe();
        handle
    };
    HANDLE.get_or_init(install).clone()
}

/// A connection was refused because too many were open.
pub(crate) fn connection_refused() {
    ::metrics::counter!(names::CONNECTIONS_REFUSED).increment(1);
}

fn builder() -> Result<PrometheusBuilder, BuildError> {
    let seconds: Vec<f64> = (0..35).map(|power| 0.000_15 * 1.5_f64.powi(power)).collect();
    let counts: Vec<f64> = (0..=20).map(|power| f64::from(1 << power)).collect();
    TABLE.iter().try_fold(PrometheusBuilder::new(), |builder, metric| {
        let buckets = match metric.kind {
            Kind::Seconds => &seconds,
            Kind::Count => &counts,
            Kind::Counter | Kind::Gauge => return Ok(builder),
        };
        builder.set_buckets_for_metric(Matcher::Full(metric.name.to_owned()), buckets)
    })
}

fn describe() {
    for Metric { name, kind, help } in TABLE {
        match kind {
            Kind::Counter => ::metrics::describe_counter!(*name, *help),
            Kind::Gauge => ::metrics::describe_gauge!(*name, *help),
            Kind::Seconds | Kind::Count => ::metrics::describe_histogram!(*name, *help),
        }
    }
}
