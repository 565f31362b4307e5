//! What can be typed: the flags with their help, grouped by what they are about. [`super::parse`] fills them in.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::FalseyValueParser;
use clap::{Args, Parser, Subcommand, ValueEnum};

use super::tgi;

const EXIT_CODES: &str = "\
Exit codes:
  0  stopped as asked
  1  unexpected failure
  2  bad usage
  3  the model's files are missing, corrupt, mis-shaped or not supported
  4  cannot listen on the address
  5  a shard or the router kept dying: five deaths within five minutes";

/// The whole program, as its help shows it.
#[derive(Debug, Parser)]
#[command(name = "anaphora", bin_name = "anaphora", version, about = "Serves large language models", after_help = EXIT_CODES)]
pub(crate) struct Cli {
    /// The command that starts this program again, to which `router …`, `shard …` or `fetch …` is appended.
    #[arg(long, hide = true, default_value = "anaphora")]
    pub(crate) child_command: OsString,

    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serve a model: starts its shards and a router, and watches over them
    Serve(Box<ServeArgs>),

    /// Run a router only: the HTTP front end, over shards that run already
    #[command(disable_help_flag = true)]
    Router(PassedOn),

    /// Run one shard only: one rank of a replica, which holds weights and a KV pool
    #[command(disable_help_flag = true)]
    Shard(PassedOn),

    /// Fetch a known model into the cache, and print its path
    #[command(disable_help_flag = true)]
    Fetch(PassedOn),

    /// Ask a running server what its prefix cache holds
    Cache(CacheArgs),
}

/// Everything that `anaphora cache` is told.
#[derive(Debug, Args)]
pub(crate) struct CacheArgs {
    /// Where the server is
    #[arg(long, global = true, value_name = "URL", default_value = "http://127.0.0.1:3000")]
    pub(crate) url: String,

    /// The server's API key; the cache that is shown is that of its tenant
    #[arg(long, global = true, env, value_name = "KEY", hide_env_values = true)]
    pub(crate) api_key: Option<String>,

    /// Print what the server answered, as JSON
    #[arg(long, global = true)]
    pub(crate) json: bool,

    #[command(subcommand)]
    pub(crate) action: CacheAction,
}

/// What to do with the cache.
#[derive(Debug, Subcommand)]
pub(crate) enum CacheAction {
    /// List what is cached, by tenant and salt
    Ls,

    /// Say how much of a request's prompt is cached, where the two part, and why
    Explain {
        /// The body of a chat, completion or generate request, a JSON file; `-`: standard input
        file: PathBuf,
    },

    /// Forget what no running request uses
    Clear,
}

/// Arguments that belong to another program of ours and are not looked at here.
#[derive(Debug, Args)]
pub(crate) struct PassedOn {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, num_args = 0.., hide = true)]
    pub(crate) args: Vec<OsString>,
}

/// Everything that `anaphora serve` is told; immutable after [`parse`].
#[derive(Debug, Args)]
#[command(after_help = format!("{}\n\n{EXIT_CODES}", tgi::HELP))]
pub(crate) struct ServeArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) placement: PlacementArgs,
    #[command(flatten)]
    pub(crate) limits: LimitArgs,
    #[command(flatten)]
    pub(crate) http: HttpArgs,
    #[command(flatten)]
    pub(crate) observe: ObserveArgs,

    /// Print what this host looks like to anaphora (version, cores, memory, GPUs), and exit
    #[arg(long = "env", short = 'e')]
    pub(crate) print_environment: bool,

    /// The environment variables that stand in for flags.
    #[arg(skip)]
    pub(crate) variables: Vec<String>,
}

/// What to serve.
#[derive(Debug, Args)]
#[command(next_help_heading = "Model")]
pub(crate) struct ModelArgs {
    /// A Hugging Face directory (safetensors), a GGUF file, or a known name (smollm2-135m, gemma3-270m)
    #[arg(value_name = "MODEL")]
    pub(super) positional: Option<String>,

    /// The same as MODEL, under TGI's name
    #[arg(long, env, value_name = "MODEL")]
    pub(super) model_id: Option<String>,

    /// `dummy`: random weights for the model's configuration; its weight files need not exist
    #[arg(long, value_enum, default_value_t)]
    pub(crate) load_format: LoadFormat,

    /// Type of activations and plain weights. `auto`: the model's own on a GPU, bfloat16 on a CPU
    #[arg(long, env, value_enum, default_value_t)]
    pub(crate) dtype: Dtype,

    /// Weights in fewer bits. `gguf` (on a CPU): in the file's blocks; `int8` (on a CPU) and `fp8` (on a GPU): made on load;
    /// `auto`: as the files are, if the device multiplies that, and for a GGUF file without --dtype
    #[arg(long, env, value_enum, default_value_t)]
    pub(crate) quantize: Quantize,

    /// Type of the KV cache. `auto`: as --dtype; `fp8_e4m3`: half of bfloat16's memory
    #[arg(long, env, value_enum, default_value_t)]
    pub(crate) kv_cache_dtype: KvCacheDtype,

    /// Tokenizer: a directory or a tokenizer.json, if not the model's own
    #[arg(long, value_name = "PATH")]
    pub(crate) tokenizer: Option<PathBuf>,

    /// A tokenizer_config.json (chat template, special tokens) to use instead of the model's own
    #[arg(long, env, value_name = "PATH")]
    pub(crate) tokenizer_config_path: Option<PathBuf>,
}

/// Where to compute.
#[derive(Debug, Args)]
#[command(next_help_heading = "Placement")]
pub(crate) struct PlacementArgs {
    /// `auto`: a GPU if one is visible, else the CPU
    #[arg(long, value_enum, default_value_t)]
    pub(crate) device: DeviceChoice,

    /// Ranks that share the model (tensor parallelism); must divide its attention heads and its KV heads.
    /// Without this and --sharded: one
    #[arg(long, env, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) num_shard: Option<u32>,

    /// Use as many of the visible GPUs as the model's heads allow
    #[arg(long, env, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub(crate) sharded: Option<bool>,

    /// What computes attention. `auto`: our Triton kernels on a GPU, our native ones on a CPU; `flashinfer` and
    /// `flash_attention` (3) must be installed
    #[arg(long, value_enum, default_value_t)]
    pub(crate) attention_backend: AttentionBackend,

    /// `0`: no CUDA graphs; kernels are launched one by one. The sizes of graphs, which TGI lists here, the shards choose
    #[arg(long, env, value_name = "0|SIZES")]
    pub(crate) cuda_graphs: Option<String>,

    /// CPU threads for all ranks together; 0: the cores that this process may use
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) num_threads: u32,

    /// Directory in which the run directory (sockets) is made. Default: $XDG_RUNTIME_DIR, else the temporary directory
    #[arg(long, env, value_name = "DIR")]
    pub(crate) shard_uds_path: Option<PathBuf>,
}

/// What clients may ask for, and how much is computed at once. What is not given here, the router decides.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Limits")]
pub(crate) struct LimitArgs {
    /// Requests running and waiting; beyond it clients get 429 [default: 128]
    #[arg(long, env, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_concurrent_requests: Option<u32>,

    /// Largest `best_of` [default: 8]
    #[arg(long, env, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_best_of: Option<u32>,

    /// Most stop sequences per request [default: 16]
    #[arg(long, env, value_name = "N", value_parser = clap::value_parser!(u32))]
    pub(crate) max_stop_sequences: Option<u32>,

    /// Largest `top_n_tokens` [default: 20]
    #[arg(long, env, value_name = "N", value_parser = clap::value_parser!(u32))]
    pub(crate) max_top_n_tokens: Option<u32>,

    /// Longest prompt, in tokens
    #[arg(long, env, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_input_tokens: Option<u32>,

    /// The older name of --max-input-tokens
    #[arg(long, env, hide = true, value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) max_input_length: Option<u32>,

    /// Longest prompt and answer together, in tokens [default: the model's context]
    #[arg(long, env, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(2..))]
    pub(crate) max_total_tokens: Option<u32>,

    /// Tokens computed in one step [default: 512 on a CPU, 4096 on a GPU]
    #[arg(long, env, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_batch_prefill_tokens: Option<u32>,

    /// Size of the KV cache, in tokens [default: what the memory allows]
    #[arg(long, env, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_batch_total_tokens: Option<u32>,

    /// Sequences computed at once [default: 64 on a CPU, 256 on a GPU]
    #[arg(long, env, value_name = "ROWS", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_batch_size: Option<u32>,

    /// Milliseconds between two tokens that the prefill of others leaves to a sequence, if possible [default: 70 on a CPU, 50 on a GPU]
    #[arg(long, env, value_name = "MILLISECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) target_itl: Option<u32>,

    /// The most tokens that a tenant may leave in the prefix cache; once per tenant. Others may fill it
    #[arg(long, value_name = "TENANT=TOKENS")]
    pub(crate) cache_quota: Vec<String>,

    /// Seconds that a request may wait for its turn; then it is refused with 503 [default: for ever]
    #[arg(long, env, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_queue_time: Option<u32>,

    /// Most prompts in one /v1/completions request [default: 32]
    #[arg(long, env, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_client_batch_size: Option<u32>,

    /// Largest request body, in bytes [default: 33554432]
    #[arg(long, env, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) payload_limit: Option<u64>,

    /// Tokens per KV block [default: 16]
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) block_size: Option<u32>,

    /// Part of the device's memory that a rank may use, 0 < x <= 1 [default: 0.9]
    #[arg(long, alias = "cuda-memory-fraction", env = "CUDA_MEMORY_FRACTION", value_name = "X", value_parser = fraction)]
    pub(crate) gpu_memory_utilization: Option<f32>,

    /// Compute every prompt anew
    #[arg(long)]
    pub(crate) no_prefix_cache: bool,
}

/// How clients reach the server.
#[derive(Debug, Args)]
#[command(next_help_heading = "HTTP")]
pub(crate) struct HttpArgs {
    /// Address to listen on; $HOSTNAME counts if it is an IP address [default: 127.0.0.1]
    #[arg(long = "hostname", value_name = "ADDRESS")]
    pub(super) hostname_flag: Option<String>,

    /// The address to listen on, with $HOSTNAME considered.
    #[arg(skip)]
    pub(crate) hostname: String,

    /// Port to listen on; 0: any that is free
    #[arg(long, short, env, default_value_t = 3000)]
    pub(crate) port: u16,

    /// Clients must send this key as a bearer token; may be repeated, and each is a tenant with a prefix cache of its own. Better
    /// given as $API_KEY, one a line: arguments are visible to every local user
    #[arg(long, env, value_name = "KEY", hide_env_values = true, value_delimiter = '\n')]
    pub(crate) api_key: Vec<String>,

    /// File of further keys, a line TENANT:KEY for each; the keys of a tenant share a prefix cache
    #[arg(long, env, value_name = "PATH")]
    pub(crate) api_key_file: Option<PathBuf>,

    /// Origin that browsers may call from; may be repeated
    #[arg(long, env, value_name = "ORIGIN", value_delimiter = ',')]
    pub(crate) cors_allow_origin: Vec<String>,

    /// Seconds that requests get to finish after SIGTERM
    #[arg(long, short, env, value_name = "SECONDS", default_value_t = 90)]
    pub(crate) graceful_termination_timeout: u32,

    /// Seconds without progress after which a shard counts as stalled [default: 300]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) step_timeout: Option<u32>,
}

/// What is written down of it all.
#[derive(Debug, Args)]
#[command(next_help_heading = "Logs and traces")]
pub(crate) struct ObserveArgs {
    /// Log lines as JSON
    #[arg(long, env, value_parser = FalseyValueParser::new())]
    pub(crate) json_output: bool,

    /// Lowest level logged
    #[arg(long, env, value_enum, default_value_t, ignore_case = true)]
    pub(crate) log_level: LogLevel,

    /// OpenTelemetry collector (OTLP over gRPC) for traces, e.g. http://127.0.0.1:4317
    #[arg(long, env, value_name = "URL")]
    pub(crate) otlp_endpoint: Option<String>,

    /// service.name of the router's traces
    #[arg(long, env, value_name = "NAME")]
    pub(crate) otlp_service_name: Option<String>,
}

/// Where the weights come from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum LoadFormat {
    #[default]
    Auto,
    Dummy,
}

/// A floating-point type.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Dtype {
    #[default]
    Auto,
    Float32,
    Bfloat16,
    Float16,
}

/// A type of keys and values.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum KvCacheDtype {
    #[default]
    Auto,
    /// `fp8_e4m3fn` is TGI's name.
    #[value(name = "fp8_e4m3", alias = "fp8_e4m3fn")]
    Fp8E4m3,
}

/// What becomes of weights.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Quantize {
    #[default]
    Auto,
    None,
    Gguf,
    Int8,
    Fp8,
}

/// What computes attention.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum AttentionBackend {
    #[default]
    Auto,
    Triton,
    Cpu,
    Sdpa,
    Flashinfer,
    #[value(name = "flash_attention")]
    FlashAttention,
}

/// The kind of device asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum DeviceChoice {
    #[default]
    Auto,
    Cpu,
    Cuda,
}

/// How much is logged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogLevel {
    Debug,
    #[default]
    Info,
    #[value(alias = "warn")]
    Warning,
    Error,
}

fn fraction(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(value) if value > 0.0 && value <= 1.0 => Ok(value),
        Ok(value) => Err(format!("{value} is not within 0 < x <= 1")),
        Err(error) => Err(error.to_string()),
    }
}
