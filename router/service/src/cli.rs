//! Flags and environment to [`Config`]: the only place that reads either.
//!
//! Every flag that TGI has goes by TGI's names, on the command line and in the environment. A flag beats the environment.

use std::{ffi::OsString, fmt::Display, net::IpAddr, path::PathBuf, sync::Arc, time::Duration};

use clap::{ArgMatches, CommandFactory as _, FromArgMatches as _, Parser, parser::ValueSource};

use crate::config::{
    ApiKey, Config, EngineConfig, HttpConfig, Limits, ModelConfig, ShardConfig, TelemetryConfig,
};

/// Serves the HTTP APIs of one model whose shards listen on Unix sockets. `anaphora serve` starts shards and router.
#[derive(Debug, Parser)]
#[command(name = "anaphora router", version)]
struct Args {
    /// The GGUF file or directory that the tokenizer, chat template and configuration are read from.
    #[arg(long, value_name = "PATH")]
    model_path: PathBuf,
    /// The served name [default: the model's path]
    #[arg(long, env, value_name = "NAME")]
    model_id: Option<String>,
    /// The tokenizer, a directory or a tokenizer.json [default: the model's]
    #[arg(long, value_name = "PATH")]
    tokenizer: Option<PathBuf>,
    /// A tokenizer_config.json that overrides the model's, its chat template above all.
    #[arg(long, env, value_name = "PATH")]
    tokenizer_config_path: Option<PathBuf>,
    /// The socket of a rank; once per rank, in rank order.
    #[arg(long, value_name = "PATH")]
    shard_socket: Vec<PathBuf>,
    /// Instead of shards, a fake one in this process, whose tokens mean nothing.
    #[arg(long, conflicts_with = "shard_socket")]
    fake: bool,
    /// How long a step of the fake shard takes, in milliseconds.
    #[arg(long, default_value_t = 10, hide = true)]
    fake_step_ms: u64,

    #[command(flatten)]
    http: HttpArgs,
    #[command(flatten)]
    engine: EngineArgs,
    #[command(flatten)]
    limits: LimitArgs,
    #[command(flatten)]
    telemetry: TelemetryArgs,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "HTTP")]
struct HttpArgs {
    /// Where to listen. From the environment only if it is an address: elsewhere HOSTNAME is this machine's name.
    #[arg(long, env, default_value = "127.0.0.1")]
    hostname: String,
    /// The port; 0 is any free one.
    #[arg(long, short, env, default_value_t = 3000)]
    port: u16,
    /// A key that clients must send as `Authorization: Bearer KEY`; may be repeated, in the environment one a line, where others
    /// cannot see it. Each is a tenant of its own: their prefix caches are apart.
    #[arg(long, env, hide_env_values = true, value_delimiter = '\n', value_name = "KEY")]
    api_key: Vec<String>,
    /// A file of further keys, with a line TENANT:KEY for each; the keys of a tenant share a prefix cache.
    #[arg(long, env, value_name = "PATH")]
    api_key_file: Option<PathBuf>,
    /// An origin that browsers may call from; may be repeated; `*` is any.
    #[arg(long, env, value_delimiter = ',', value_name = "ORIGIN")]
    cors_allow_origin: Vec<String>,
    /// Connections at a time.
    #[arg(long, default_value_t = HttpConfig::default().max_connections, value_name = "N")]
    max_connections: usize,
    /// Seconds that requests in flight may take to finish after SIGTERM.
    #[arg(long, short = 'g', env, default_value_t = 90, value_name = "SECONDS")]
    graceful_termination_timeout: u64,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Scheduling")]
struct EngineArgs {
    /// Sequences running and waiting; further ones are refused with 429.
    #[arg(long, env, default_value_t = EngineConfig::default().max_concurrent_requests, value_name = "N")]
    max_concurrent_requests: usize,
    /// Sequences running at a time [default: 64 on a CPU, 256 on a GPU]
    #[arg(long, env, value_name = "N")]
    max_batch_size: Option<u32>,
    /// Tokens that one step computes [default: 512 on a CPU, 4096 on a GPU]
    #[arg(long, env, value_name = "N")]
    max_batch_prefill_tokens: Option<u32>,
    /// The KV cache, in tokens [default: what fits into memory]
    #[arg(long, env, value_name = "N")]
    max_batch_total_tokens: Option<u64>,
    /// Tokens per KV block.
    #[arg(long, default_value_t = EngineConfig::default().block_size, value_name = "N")]
    block_size: u32,
    /// Fraction of device memory to use.
    #[arg(long, alias = "cuda-memory-fraction", env = "CUDA_MEMORY_FRACTION", default_value_t = EngineConfig::default().memory_utilization)]
    gpu_memory_utilization: f32,
    /// Do not share computed prompt prefixes between requests.
    #[arg(long)]
    no_prefix_cache: bool,
    /// Milliseconds between two tokens that the prefill of others leaves to a sequence, if possible [default: 70 on a CPU, 50 on a GPU]
    #[arg(long, env, value_name = "MILLISECONDS")]
    target_itl: Option<u64>,
    /// The most tokens that a tenant may leave in the prefix cache; once per tenant. Others may fill it.
    #[arg(long, value_name = "TENANT=TOKENS", value_parser = quota)]
    cache_quota: Vec<(Arc<str>, u64)>,
    /// Seconds that a request may wait for its turn; then it is refused with 503 [default: for ever]
    #[arg(long, env, value_name = "SECONDS")]
    max_queue_time: Option<u64>,
    /// Seconds without an answer after which the shard is taken for stalled.
    #[arg(long, default_value_t = EngineConfig::default().step_timeout.as_secs(), value_name = "SECONDS")]
    step_timeout: u64,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Limits of a request")]
struct LimitArgs {
    /// Prompt and generated tokens [default: the model's limit]
    #[arg(long, env, value_name = "N")]
    max_total_tokens: Option<u32>,
    /// Prompt tokens [default: one less than --max-total-tokens]
    #[arg(long, alias = "max-input-length", env, value_name = "N")]
    max_input_tokens: Option<u32>,
    /// best_of
    #[arg(long, env, default_value_t = Limits::default().max_best_of, value_name = "N")]
    max_best_of: u32,
    /// Stop sequences.
    #[arg(long, env, default_value_t = Limits::default().max_stop_sequences, value_name = "N")]
    max_stop_sequences: usize,
    /// top_n_tokens and top_logprobs
    #[arg(long, env, default_value_t = Limits::default().max_top_n_tokens, value_name = "N")]
    max_top_n_tokens: u32,
    /// Prompts of one completions request.
    #[arg(long, env, default_value_t = Limits::default().max_client_batch_size, value_name = "N")]
    max_client_batch_size: usize,
    /// Bytes of a body.
    #[arg(long, env, default_value_t = Limits::default().payload, value_name = "BYTES")]
    payload_limit: usize,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Logs and traces")]
struct TelemetryArgs {
    /// error, warn, info, debug, trace, or tracing's filter directives.
    #[arg(long, env, default_value = "info", value_name = "LEVEL")]
    log_level: String,
    /// Log lines as JSON objects.
    #[arg(long, env)]
    json_output: bool,
    /// Where to send traces, OTLP over gRPC, for instance http://localhost:4317 [default: no traces]
    #[arg(long, env, value_name = "URL")]
    otlp_endpoint: Option<String>,
    /// The service name of the traces.
    #[arg(long, env, default_value = "anaphora.router", value_name = "NAME")]
    otlp_service_name: String,
}

/// Reads the command line `args` (the program's name first) and the environment.
///
/// # Errors
/// What clap or [`Config::validate`] finds, `--help` and `--version` included: print it and exit with its code.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Config, clap::Error> {
    let matches = Args::command().try_get_matches_from(args)?;
    let mut args = Args::from_arg_matches(&matches)?;
    if !is_address_or_flag(&matches, &args.http.hostname) {
        args.http.hostname = HttpConfig::default().hostname;
    }
    let refuse = |error: &dyn Display| Args::command().error(clap::error::ErrorKind::ValueValidation, error);
    let file = args.http.api_key_file.take();
    let mut config = args.into_config();
    if let Some(path) = file {
        let text = std::fs::read_to_string(&path)
            .map_err(|error| refuse(&format_args!("--api-key-file {}: {error}", path.display())))?;
        config.http.api_keys.extend(ApiKey::parse_file(&text).map_err(|error| refuse(&error))?);
        if config.http.api_keys.is_empty() {
            return Err(refuse(&format_args!("--api-key-file {}: it has no keys", path.display())));
        }
    }
    config.validate().map_err(|error| refuse(&error))?;
    Ok(config)
}

/// Most shells and containers set `HOSTNAME` to the machine's name, which is no wish to listen there.
fn is_address_or_flag(matches: &ArgMatches, hostname: &str) -> bool {
    matches.value_source("hostname") != Some(ValueSource::EnvVariable) || hostname.parse::<IpAddr>().is_ok()
}

impl Args {
    fn into_config(self) -> Config {
        let Self { http, engine, limits, telemetry, .. } = self;
        let shard = if self.fake {
            ShardConfig::Fake { step: Duration::from_millis(self.fake_step_ms) }
        } else {
            ShardConfig::Sockets(self.shard_socket)
        };
        Config {
            model: ModelConfig {
                id: self.model_id.unwrap_or_else(|| self.model_path.display().to_string()),
                path: self.model_path,
                tokenizer: self.tokenizer,
                tokenizer_config: self.tokenizer_config_path,
            },
            http: HttpConfig {
                hostname: http.hostname,
                port: http.port,
                api_keys: http.api_key.into_iter().map(|key| ApiKey { key, tenant: None }).collect(),
                cors_allow_origin: http.cors_allow_origin,
                max_connections: http.max_connections,
                graceful_termination_timeout: Duration::from_secs(http.graceful_termination_timeout),
                ..HttpConfig::default()
            },
            engine: engine.into_config(limits.max_total_tokens),
            limits: limits.into_config(),
            shard,
            telemetry: TelemetryConfig {
                log_level: telemetry.log_level,
                json_output: telemetry.json_output,
                otlp_endpoint: telemetry.otlp_endpoint,
                otlp_service_name: telemetry.otlp_service_name,
            },
        }
    }
}

impl EngineArgs {
    fn into_config(self, max_context: Option<u32>) -> EngineConfig {
        EngineConfig {
            max_concurrent_requests: self.max_concurrent_requests,
            max_batch_size: self.max_batch_size,
            max_batch_prefill_tokens: self.max_batch_prefill_tokens,
            max_batch_total_tokens: self.max_batch_total_tokens,
            max_context,
            block_size: self.block_size,
            memory_utilization: self.gpu_memory_utilization,
            prefix_cache: !self.no_prefix_cache,
            step_timeout: Duration::from_secs(self.step_timeout),
            target_itl: self.target_itl.map(Duration::from_millis),
            max_queue_time: self.max_queue_time.map(Duration::from_secs),
            cache_quotas: self.cache_quota.into_iter().collect(),
            ..EngineConfig::default()
        }
    }
}

/// Reads `TENANT=TOKENS`.
fn quota(text: &str) -> Result<(Arc<str>, u64), String> {
    let (tenant, tokens) = text.split_once('=').ok_or("it must be TENANT=TOKENS")?;
    let tokens = tokens.parse().map_err(|_| format!("{tokens:?} is no number of tokens"))?;
    Ok((tenant.into(), tokens))
}

impl LimitArgs {
    fn into_config(self) -> Limits {
        Limits {
            payload: self.payload_limit,
            max_input_tokens: self.max_input_tokens,
            max_total_tokens: self.max_total_tokens,
            max_best_of: self.max_best_of,
            max_stop_sequences: self.max_stop_sequences,
            max_top_n_tokens: self.max_top_n_tokens,
            max_client_batch_size: self.max_client_batch_size,
            ..Limits::default()
        }
    }
}
