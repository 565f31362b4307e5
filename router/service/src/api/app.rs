//! What every handler shares.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anaphora_text::TextConfig;
use metrics_exporter_prometheus::PrometheusHandle;

use super::auth::ApiKeys;
use crate::{
    admit::Encoder,
    config::{Config, Limits},
    engine::Engine,
    metrics::RequestMetrics,
};

/// The state of the HTTP API: handles and what was configured; nothing in it changes.
#[derive(Debug)]
pub struct App {
    /// The replica.
    pub engine: Engine,
    /// Tokenizer and chat template.
    pub text: Arc<TextConfig>,
    /// What a request may ask for.
    pub limits: Limits,
    /// The model, as clients see it.
    pub model: ModelInfo,
    /// Where templates and the tokenizer run.
    pub encoder: Encoder,
    /// The keys that clients may send; `None`: everybody may call.
    pub auth: Option<ApiKeys>,
    /// Origins whose pages may call; empty: none.
    pub cors_allow_origin: Vec<String>,
    /// Counts requests.
    pub requests: RequestMetrics,
    /// Renders all metrics.
    pub prometheus: PrometheusHandle,
    /// Sequences running and waiting; beyond, 429.
    pub max_concurrent_requests: usize,
    /// Tokens per KV block.
    pub block_size: u32,
}

/// The model, as clients see it.
#[derive(Clone, Debug)]
pub struct ModelInfo {
    /// The served name.
    pub id: String,
    /// When it began to be served: Unix time, in seconds.
    pub created: u64,
}

impl App {
    /// The state of a server of `config`. `prometheus` renders the recorder that [`crate::metrics::install`] installed.
    #[must_use]
    pub fn new(config: &Config, engine: Engine, text: Arc<TextConfig>, prometheus: PrometheusHandle) -> Self {
        let num_threads = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            encoder: Encoder::new(num_threads, config.engine.max_concurrent_requests, &text.tokenizer),
            engine,
            text,
            limits: config.limits.clone(),
            model: ModelInfo { id: config.model.id.clone(), created: unix_time() },
            auth: ApiKeys::new(&config.http.api_keys),
            cors_allow_origin: config.http.cors_allow_origin.clone(),
            requests: RequestMetrics::new(&config.model.id),
            prometheus,
            max_concurrent_requests: config.engine.max_concurrent_requests,
            block_size: config.engine.block_size,
        }
    }
}

/// Seconds since 1970.
pub(super) fn unix_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}
