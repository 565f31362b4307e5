//! The router: everything that touches a socket, a clock or a task.
//!
//! ```text
//! listener ─► api ─► admit (template, tokenise) ─► engine (scheduler) ─► shard/grpc ─► the ranks
//!             api ◄─ stream (detokenise, stop)  ◄─ engine             ◄─ shard/grpc ◄─
//! ```
//!
//! [`main_from_args`] is the program, [`run`] the server without flags, signals and sockets of its own, which tests call.
//! Exit codes: 0 a clean stop, 1 an unexpected failure or a second signal, 2 bad usage, 3 the model's tokenizer or template cannot
//! be read, 4 the address cannot be bound.

pub mod admit;
pub mod api;
pub mod cli;
pub mod config;
pub mod engine;
pub mod events;
pub mod listener;
pub mod metrics;
pub mod shard;
pub mod shutdown;
pub mod stream;
pub mod telemetry;

use std::{ffi::OsString, io, net::SocketAddr, process::ExitCode, sync::Arc, time::Duration};

use anaphora_text::{ChatTemplate, TextConfig, TextError};
use tokio::{net::TcpListener, time::timeout};

use self::{
    api::App,
    config::{Config, HttpConfig, ModelConfig, ShardConfig},
    engine::{Engine, EngineParts},
    shard::{
        fake::{FakeOptions, FakeShard},
        grpc::{GrpcOptions, GrpcShard},
    },
    shutdown::Shutdown,
    telemetry::TelemetryError,
};

/// Histograms keep every sample until this has passed.
const UPKEEP: Duration = Duration::from_secs(5);

/// After so many tasks a thread looks for what has happened: an answer of the shard, above all. With thousands of streams awake the
/// engine would wait for hundreds of them otherwise, and the shard for the engine; those streams find more to send when it is their
/// turn.
const EVENT_INTERVAL: u32 = 8;

/// How long connections may take to send what they have, once nothing generates any more.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// What a fake shard takes, in tokens: more than any model that it stands for.
const FAKE_CONTEXT: u32 = 1 << 20;

/// Why the server cannot run.
#[derive(Debug, thiserror::Error)]
pub enum RouterError {
    /// The tokenizer, the chat template or the configuration cannot be read.
    #[error(transparent)]
    Text(#[from] TextError),
    /// The address is taken, not ours, or unknown.
    #[error("cannot listen on {address}: {source}")]
    Bind {
        /// As configured.
        address: String,
        /// The operating system's reason.
        source: io::Error,
    },
    /// Logs or traces cannot be set up.
    #[error(transparent)]
    Telemetry(#[from] TelemetryError),
    /// The operating system refused something that it should not.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// The reason.
        source: io::Error,
    },
}

impl RouterError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Text(_) => 3,
            Self::Bind { .. } => 4,
            Self::Telemetry(_) => 2,
            Self::System { .. } => 1,
        }
    }
}

/// The program `anaphora router`; `args` begins with the program's name.
#[must_use]
pub fn main_from_args(args: Vec<OsString>) -> ExitCode {
    exit_code_from_args(args).into()
}

/// As [`main_from_args`], for callers that need the exit code as a number.
#[must_use]
pub fn exit_code_from_args(args: Vec<OsString>) -> u8 {
    let config = match cli::parse(args) {
        Ok(config) => config,
        Err(error) => {
            // A closed stdout or stderr is the caller's wish.
            let _ = error.print();
            return u8::try_from(error.exit_code()).unwrap_or(2);
        }
    };
    match serve(config) {
        Ok(()) => 0,
        Err(error) => {
            tracing::error!(%error, "the router ends");
            use std::io::Write as _;
            let _ = writeln!(io::stderr(), "anaphora router: {error}");
            error.exit_code()
        }
    }
}

/// Binds, serves, and drains at the first SIGTERM.
fn serve(config: Config) -> Result<(), RouterError> {
    let system = |what| move |source| RouterError::System { what, source };
    raise_open_files();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .event_interval(EVENT_INTERVAL)
        .build()
        .map_err(system("starting threads"))?;
    runtime.block_on(async {
        let telemetry = telemetry::init(&config.telemetry)?;
        let listener = bind(&config.http).await?;
        let shutdown = Shutdown::new();
        shutdown.listen_to_signals().map_err(system("handling signals"))?;
        let result = run(config, listener, shutdown).await;
        // It blocks; and a collector that does not answer must not keep the process.
        let _ = timeout(LAST_WORDS, tokio::task::spawn_blocking(|| telemetry.shutdown())).await;
        result
    })
}

/// Serves `config`'s model on `listener` until `shutdown` says to drain, and then until the drain is complete.
///
/// # Errors
/// If the model's tokenizer, template or configuration cannot be read.
pub async fn run(config: Config, listener: TcpListener, shutdown: Shutdown) -> Result<(), RouterError> {
    let prometheus = metrics::install();
    let url = listener.local_addr().map_or_else(|_| String::new(), url);
    let model = config.model.clone();
    let text = tokio::task::spawn_blocking(move || open_text(&model));
    let text = text.await.expect("reading a model's files does not panic. This is a bug.")?;
    let engine = start_engine(&config, &text, url, &shutdown);
    warn_if_open(&config.http);

    let upkeep = prometheus.clone();
    let stop = shutdown.stop.clone();
    shutdown.spawn(async move {
        while timeout(UPKEEP, stop.cancelled()).await.is_err() {
            upkeep.run_upkeep();
        }
    });
    let http = config.http.clone();
    let app = api::app(Arc::new(App::new(&config, engine.clone(), text, prometheus)));
    shutdown.spawn(listener::serve(listener, app, http, shutdown.clone()));

    shutdown.drain.cancelled().await;
    drain(&engine, config.http.graceful_termination_timeout).await;
    if !shutdown.finish(LAST_WORDS).await {
        tracing::warn!("some clients did not read their answers to the end");
    }
    Ok(())
}

/// Lets the sequences in flight finish, and fails those that take too long.
async fn drain(engine: &Engine, limit: Duration) {
    engine.drain();
    if timeout(limit, engine.stopped()).await.is_err() {
        tracing::warn!(
            num_sequences = engine.num_live(),
            "the graceful timeout is over: ending what is left"
        );
        engine.stop();
        engine.stopped().await;
    }
}

fn open_text(model: &ModelConfig) -> Result<Arc<TextConfig>, TextError> {
    let text = TextConfig::open(&model.path, model.tokenizer.as_deref(), model.tokenizer_config.as_deref())?;
    for rewrite in text.template.as_ref().map_or_else(Vec::new, ChatTemplate::rewrites) {
        tracing::warn!("the chat template costs the prefix cache some of its use: {rewrite}");
    }
    Ok(Arc::new(text))
}

fn start_engine(config: &Config, text: &TextConfig, url: String, shutdown: &Shutdown) -> Engine {
    let model = config.model.id.clone();
    let report = move |event| events::emit(&events::line(&event, &url, &model));
    let mut engine_config = config.engine.clone();
    // What the tokenizer's configuration calls its limit binds unless a flag says otherwise.
    engine_config.max_context = engine_config.max_context.or(text.max_context);
    match &config.shard {
        ShardConfig::Sockets(sockets) => {
            let shard = GrpcShard::new(sockets.clone(), GrpcOptions::default());
            spawn_engine(shard, engine_config, config, Box::new(report), shutdown)
        }
        ShardConfig::Fake { step } => {
            let vocab = 0..u32::try_from(text.tokenizer.vocab_size()).unwrap_or(u32::MAX);
            let max_context = FAKE_CONTEXT;
            let (shard, _) =
                FakeShard::new(FakeOptions { vocab, step: *step, max_context, ..FakeOptions::default() });
            spawn_engine(shard, engine_config, config, Box::new(report), shutdown)
        }
    }
}

fn spawn_engine<S: shard::Shard>(
    shard: S,
    engine_config: config::EngineConfig,
    config: &Config,
    report: Box<dyn Fn(engine::EngineEvent) + Send>,
    shutdown: &Shutdown,
) -> Engine {
    let parts = EngineParts { shard, config: engine_config, model: config.model.id.clone(), report };
    let (engine, task) = engine::start(parts);
    shutdown.spawn(task);
    engine
}

async fn bind(config: &HttpConfig) -> Result<TcpListener, RouterError> {
    let address = format!("{}:{}", config.hostname, config.port);
    let listener = TcpListener::bind((config.hostname.as_str(), config.port)).await;
    listener.map_err(|source| RouterError::Bind { address, source })
}

/// Where a client on this machine finds the server.
fn url(mut address: SocketAddr) -> String {
    if address.ip().is_unspecified() {
        address.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
    }
    format!("http://{address}")
}

fn warn_if_open(http: &HttpConfig) {
    if !http.is_loopback() && http.api_keys.is_empty() {
        tracing::warn!(hostname = http.hostname, "other machines can connect, and no API key is set");
    }
}

/// Every connection is a file descriptor; the usual soft limit of 1024 is for programs that use `select`.
fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    // If it may not be raised, it stays.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}
