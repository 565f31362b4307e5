//! What the router is told to do: nested plain structs, one per component, filled by [`crate::cli`], checked once by
//! [`Config::validate`], and immutable from then on. Nothing here reads flags or the environment.

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf, sync::Arc, time::Duration};

/// Everything.
#[derive(Clone, Debug)]
pub struct Config {
    /// Which model is served, and under which name.
    pub model: ModelConfig,
    /// The HTTP listener.
    pub http: HttpConfig,
    /// What a request may ask for.
    pub limits: Limits,
    /// The scheduler and its pool.
    pub engine: EngineConfig,
    /// Who computes the steps.
    pub shard: ShardConfig,
    /// Logs and traces.
    pub telemetry: TelemetryConfig,
}

/// Which model is served, and under which name.
#[derive(Clone, Debug)]
pub struct ModelConfig {
    /// The GGUF file or directory that the tokenizer, template and configuration are read from.
    pub path: PathBuf,
    /// The served name.
    pub id: String,
    /// The tokenizer (a directory or a `tokenizer.json`), if it is not with the model.
    pub tokenizer: Option<PathBuf>,
    /// A `tokenizer_config.json` that overrides the model's (its chat template above all).
    pub tokenizer_config: Option<PathBuf>,
}

/// The HTTP listener and what it bears.
#[derive(Clone, Debug)]
pub struct HttpConfig {
    /// Where to listen: an address or a name.
    pub hostname: String,
    /// 0: any free port.
    pub port: u16,
    /// The keys, one of which clients must send; empty: no authentication.
    pub api_keys: Vec<ApiKey>,
    /// Allowed origins; empty: CORS is closed.
    pub cors_allow_origin: Vec<String>,
    /// Connections at a time; over it, 503.
    pub max_connections: usize,
    /// From the first byte of a connection to the end of its request's headers.
    pub header_read_timeout: Duration,
    /// Header fields of a request; over it, 431.
    pub max_header_fields: usize,
    /// Bytes of a request's headers; over it, 431.
    pub max_header_bytes: u32,
    /// HTTP/2 streams per connection.
    pub max_streams: u32,
    /// How long requests in flight may take to finish after SIGTERM.
    pub graceful_termination_timeout: Duration,
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self {
            hostname: "127.0.0.1".to_owned(),
            port: 3000,
            api_keys: Vec::new(),
            cors_allow_origin: Vec::new(),
            max_connections: 10_240,
            header_read_timeout: Duration::from_secs(10),
            max_header_fields: 64,
            max_header_bytes: 16 * 1024,
            max_streams: 128,
            graceful_termination_timeout: Duration::from_secs(90),
        }
    }
}

/// A key that clients may send, and whose it is.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey {
    /// The key.
    pub key: String,
    /// Keys of one tenant share a prefix cache, others never do; `None`: a tenant of its own.
    pub tenant: Option<String>,
}

impl ApiKey {
    /// Reads a file of keys: a line `tenant:key` for each; empty lines and those that begin with `#` say nothing.
    ///
    /// # Errors
    /// If a line is of another form.
    pub fn parse_file(text: &str) -> Result<Vec<Self>, ConfigError> {
        let lines = (1..).zip(text.lines().map(str::trim));
        let keys =
            lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#')).map(|(number, line)| {
                let (tenant, key) = line.split_once(':').ok_or(ConfigError::ApiKeyLine { number })?;
                let (tenant, key) = (tenant.trim().to_owned(), key.trim().to_owned());
                if tenant.is_empty() {
                    return Err(ConfigError::ApiKeyLine { number });
                }
                Ok(Self { key, tenant: Some(tenant) })
            });
        keys.collect()
    }
}

impl std::fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiKey").field("tenant", &self.tenant).finish_non_exhaustive()
    }
}

/// What one request may ask for. All of it is checked before anything is cloned or queued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a request's body; over it, 413.
    pub payload: usize,
    /// Prompt tokens; `None`: the context less one.
    pub max_input_tokens: Option<u32>,
    /// Prompt and generated tokens; `None`: what model and pool bear (see [`ReplicaInfo`](crate::engine::ReplicaInfo)).
    pub max_total_tokens: Option<u32>,
    /// `best_of`.
    pub max_best_of: u32,
    /// `n`.
    pub max_n: u32,
    /// Stop strings.
    pub max_stop_sequences: usize,
    /// Bytes of one stop string.
    pub max_stop_bytes: usize,
    /// `top_n_tokens` and `top_logprobs`.
    pub max_top_n_tokens: u32,
    /// Entries of `logit_bias`.
    pub max_logit_bias: usize,
    /// Prompts of one completions request.
    pub max_client_batch_size: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            payload: 32 * 1024 * 1024,
            max_input_tokens: None,
            max_total_tokens: None,
            max_best_of: 8,
            max_n: 16,
            max_stop_sequences: 16,
            max_stop_bytes: 256,
            max_top_n_tokens: 20,
            max_logit_bias: 1024,
            max_client_batch_size: 32,
        }
    }
}

/// The scheduler and its pool. What is `None` is decided when the shard has said what it runs on.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Sequences running and waiting; over it, 429.
    pub max_concurrent_requests: usize,
    /// Rows of a step; default 64 on a CPU, 256 on a GPU.
    pub max_batch_size: Option<u32>,
    /// Tokens that one step computes; default 512 on a CPU, 4096 on a GPU.
    pub max_batch_prefill_tokens: Option<u32>,
    /// The KV pool, in tokens; default: sized by the shard after its warm-up.
    pub max_batch_total_tokens: Option<u64>,
    /// Prompt and generated tokens of one sequence; default: the model's limit.
    pub max_context: Option<u32>,
    /// Tokens per KV block.
    pub block_size: u32,
    /// Fraction of device memory that a rank may use in all, `0 < x <= 1`.
    pub memory_utilization: f32,
    /// Whether prompts may share computed blocks.
    pub prefix_cache: bool,
    /// No answer for so long while a step is in flight: the shard is taken for stalled.
    pub step_timeout: Duration,
    /// The time between two tokens that prefills leave to those who decode; default 250 ms on a CPU, 50 ms on a GPU.
    pub target_itl: Option<Duration>,
    /// How long a sequence may wait for its first row; `None`: for ever.
    pub max_queue_time: Option<Duration>,
    /// The most tokens that tenants may leave in the prefix cache, by name; others may fill it.
    pub cache_quotas: BTreeMap<Arc<str>, u64>,
    /// Updates that may wait for a slow client before its sequence is cancelled.
    pub updates_per_client: usize,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            max_concurrent_requests: 128,
            max_batch_size: None,
            max_batch_prefill_tokens: None,
            max_batch_total_tokens: None,
            max_context: None,
            block_size: 16,
            memory_utilization: 0.9,
            prefix_cache: true,
            step_timeout: Duration::from_secs(300),
            target_itl: None,
            max_queue_time: None,
            cache_quotas: BTreeMap::new(),
            updates_per_client: 512,
        }
    }
}

/// Who computes the steps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ShardConfig {
    /// The ranks of one replica, by their Unix sockets, in rank order.
    Sockets(Vec<PathBuf>),
    /// A shard inside this process whose tokens are a hash of the context: for trying the router by itself.
    Fake {
        /// How long a step takes.
        step: Duration,
    },
}

/// Logs and traces.
#[derive(Clone, Debug)]
pub struct TelemetryConfig {
    /// `error`, `warn`, `info`, `debug`, `trace`, or `tracing-subscriber`'s filter directives.
    pub log_level: String,
    /// Log lines are JSON objects.
    pub json_output: bool,
    /// OTLP over gRPC; `None`: no traces are made.
    pub otlp_endpoint: Option<String>,
    /// `service.name` of the traces.
    pub otlp_service_name: String,
}

impl Default for TelemetryConfig {
    fn default() -> Self {
        Self {
            log_level: "info".to_owned(),
            json_output: false,
            otlp_endpoint: None,
            otlp_service_name: "anaphora.router".to_owned(),
        }
    }
}

/// Why a [`Config`] cannot work. Names the flags, because a person reads it.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ConfigError {
    /// A count that must not be zero is.
    #[error("{flag} must be at least 1")]
    Zero {
        /// The flag.
        flag: &'static str,
    },
    /// Neither `--fake` nor a socket.
    #[error("--shard-socket is required (once per rank, in rank order), or --fake")]
    NoShard,
    /// A fraction outside `0 < x <= 1`.
    #[error("--gpu-memory-utilization must be above 0 and at most 1, not {0}")]
    MemoryUtilization(f32),
    /// The longest prompt would leave no room for a token.
    #[error("--max-input-tokens {input} must be less than --max-total-tokens {total}")]
    InputTokens {
        /// `--max-input-tokens`.
        input: u32,
        /// `--max-total-tokens`.
        total: u32,
    },
    /// A full step would not fit a row each.
    #[error(
        "--max-batch-prefill-tokens {tokens} must be at least --max-batch-size {rows}: every row computes a token"
    )]
    StepTokens {
        /// `--max-batch-prefill-tokens`.
        tokens: u32,
        /// `--max-batch-size`.
        rows: u32,
    },
    /// The pool holds no block.
    #[error("--max-batch-total-tokens {tokens} must be at least --block-size {block_size}")]
    Pool {
        /// `--max-batch-total-tokens`.
        tokens: u64,
        /// `--block-size`.
        block_size: u32,
    },
    /// An API key cannot be sent by a client.
    #[error("an API key must not be empty and must consist of visible ASCII characters")]
    ApiKey,
    /// A line of the file of API keys says something else.
    #[error("line {number} of --api-key-file must be `tenant:key`")]
    ApiKeyLine {
        /// Counted from 1.
        number: usize,
    },
}

impl Config {
    /// Whether the parts fit together.
    ///
    /// # Errors
    /// The first thing that does not.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let engine = &self.engine;
        let counts = [
            ("--max-concurrent-requests", engine.max_concurrent_requests as u64),
            ("--max-batch-size", engine.max_batch_size.unwrap_or(1).into()),
            ("--max-batch-prefill-tokens", engine.max_batch_prefill_tokens.unwrap_or(1).into()),
            ("--max-total-tokens", engine.max_context.unwrap_or(1).into()),
            ("--max-input-tokens", self.limits.max_input_tokens.unwrap_or(1).into()),
            ("--block-size", engine.block_size.into()),
            ("--step-timeout", engine.step_timeout.as_millis() as u64),
            ("--target-itl", engine.target_itl.map_or(1, |time| time.as_micros() as u64)),
            ("--max-queue-time", engine.max_queue_time.map_or(1, |time| time.as_micros() as u64)),
            ("--payload-limit", self.limits.payload as u64),
            ("--max-best-of", self.limits.max_best_of.into()),
            ("--max-client-batch-size", self.limits.max_client_batch_size as u64),
        ];
        if let Some((flag, _)) = counts.into_iter().find(|(_, count)| *count == 0) {
            return Err(ConfigError::Zero { flag });
        }
        if self.shard == ShardConfig::Sockets(Vec::new()) {
            return Err(ConfigError::NoShard);
        }
        if !(engine.memory_utilization > 0.0 && engine.memory_utilization <= 1.0) {
            return Err(ConfigError::MemoryUtilization(engine.memory_utilization));
        }
        if let (Some(input), Some(total)) = (self.limits.max_input_tokens, self.limits.max_total_tokens)
            && input >= total
        {
            return Err(ConfigError::InputTokens { input, total });
        }
        if let (Some(tokens), Some(rows)) = (engine.max_batch_prefill_tokens, engine.max_batch_size)
            && tokens < rows
        {
            return Err(ConfigError::StepTokens { tokens, rows });
        }
        if let Some(tokens) = engine.max_batch_total_tokens
            && tokens < u64::from(engine.block_size)
        {
            return Err(ConfigError::Pool { tokens, block_size: engine.block_size });
        }
        let can_be_sent = |key: &str| !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_graphic());
        if self.http.api_keys.iter().any(|key| !can_be_sent(&key.key)) {
            return Err(ConfigError::ApiKey);
        }
        Ok(())
    }
}

impl HttpConfig {
    /// Whether only this machine can connect: worth a warning if not and no key is set.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        self.hostname == "localhost"
            || self.hostname.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    }
}
