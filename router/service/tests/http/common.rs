//! The whole HTTP API over a fake shard: no socket, no model, no file but the tokenizer's.

use std::{ops::Range, path::Path, sync::Arc, time::Duration};

use anaphora_core::request::Sampling;
use anaphora_router::{
    api::{self, App},
    config::{Config, EngineConfig, HttpConfig, Limits, ModelConfig, ShardConfig, TelemetryConfig},
    engine::{self, Engine, EngineParts},
    metrics,
    shard::fake::{FakeControl, FakeOptions, FakeShard},
};
use anaphora_text::TextConfig;
use axum::{
    Router,
    body::{Body, Bytes},
    response::Response,
};
use http::{HeaderMap, Request, StatusCode};
use http_body_util::BodyExt as _;
use serde_json::Value;
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;

/// Lower-case letters and the space: what a shard says that never ends by itself.
pub(crate) const LETTERS: Range<u32> = 231..258;

/// The same and `<|eot|>`, which ends a sequence.
pub(crate) const LETTERS_AND_END: Range<u32> = 231..259;

/// What a test may choose.
pub(crate) struct Setup {
    pub(crate) fake: FakeOptions,
    pub(crate) engine: EngineConfig,
    pub(crate) limits: Limits,
    pub(crate) http: HttpConfig,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            fake: FakeOptions { vocab: LETTERS, ..FakeOptions::default() },
            engine: EngineConfig::default(),
            limits: Limits::default(),
            http: HttpConfig::default(),
        }
    }
}

/// A server without a socket.
pub(crate) struct Server {
    pub(crate) router: Router,
    pub(crate) app: Arc<App>,
    pub(crate) control: FakeControl,
    pub(crate) options: FakeOptions,
}

/// A complete answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Server {
    pub(crate) async fn start() -> Self {
        Self::with(Setup::default()).await
    }

    pub(crate) async fn with(setup: Setup) -> Self {
        let server = Self::starting(setup);
        server.app.engine.ready().await;
        server
    }

    /// A server whose replica may not be ready yet.
    pub(crate) fn starting(setup: Setup) -> Self {
        let config = Config {
            model: ModelConfig {
                path: fixture().into(),
                id: "org/letters".to_owned(),
                tokenizer: None,
                tokenizer_config: None,
            },
            http: setup.http,
            limits: setup.limits,
            engine: setup.engine,
            shard: ShardConfig::Fake { step: Duration::ZERO },
            telemetry: TelemetryConfig::default(),
        };
        let (shard, control) = FakeShard::new(setup.fake.clone());
        let (engine, task) = start_engine(shard, &config);
        TaskTracker::new().spawn(task);
        let text = Arc::new(TextConfig::open(fixture(), None, None).unwrap());
        let app = Arc::new(App::new(&config, engine, text, metrics::install()));
        Self { router: api::app(Arc::clone(&app)), app, control, options: setup.fake }
    }

    /// Sends a request; the answer's body may still be on its way.
    pub(crate) async fn send(&self, request: Request<Body>) -> Response {
        self.router.clone().oneshot(request).await.unwrap()
    }

    /// Sends a request and reads the whole answer.
    pub(crate) async fn call(&self, request: Request<Body>) -> Answer {
        let (parts, body) = self.send(request).await.into_parts();
        Answer {
            status: parts.status,
            headers: parts.headers,
            body: body.collect().await.unwrap().to_bytes(),
        }
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.call(Request::get(path).body(Body::empty()).unwrap()).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Answer {
        self.call(post(path, body.to_string())).await
    }

    /// What the shard says after `prompt` with greedy sampling, as text.
    pub(crate) fn says(&self, prompt: &str, num_tokens: usize) -> String {
        self.says_sampled(prompt, num_tokens, &Sampling::default())
    }

    pub(crate) fn says_sampled(&self, prompt: &str, num_tokens: usize, sampling: &Sampling) -> String {
        let tokenizer = &self.app.text.tokenizer;
        let prompt = tokenizer.encode(prompt, true).unwrap();
        let ids = FakeShard::continuation(&self.options, &prompt, sampling, num_tokens);
        tokenizer.decode(&ids, false).unwrap()
    }

    /// Waits until no sequence is alive and the shard's rows are free.
    pub(crate) async fn idle(&self) {
        let idle = async {
            while self.app.engine.num_live() > 0 || self.app.engine.stats().held_blocks > 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), idle).await.expect("sequences are still alive");
        let stats = self.app.engine.stats();
        assert_eq!(stats.free_blocks + stats.cached_blocks, stats.total_blocks, "a block is lost: {stats:?}");
    }
}

fn start_engine(shard: FakeShard, config: &Config) -> (Engine, impl Future<Output = ()> + Send + use<>) {
    let report = Box::new(|_| ());
    engine::start(EngineParts {
        shard,
        config: config.engine.clone(),
        model: config.model.id.clone(),
        report,
    })
}

/// The directory of the tokenizer.
pub(crate) fn fixture() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/letters"))
}

pub(crate) fn post(path: &str, body: impl Into<Body>) -> Request<Body> {
    Request::post(path).header("content-type", "application/json").body(body.into()).unwrap()
}

/// What the chat template of the fixture makes of a message by the user.
pub(crate) fn chat_prompt(content: &str) -> String {
    format!("<|im_start|>user\n{content}<|im_end|>\n<|im_start|>assistant\n")
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("not JSON: {}", self.text()))
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).unwrap_or_else(|| panic!("no {name} in {:?}", self.headers)).to_str().unwrap()
    }

    /// The data of every event, in order.
    pub(crate) fn events(&self) -> Vec<String> {
        self.text()
            .split("\n\n")
            .filter_map(|event| event.strip_prefix("data: "))
            .map(str::to_owned)
            .collect()
    }

    /// The events that are JSON.
    pub(crate) fn json_events(&self) -> Vec<Value> {
        self.events()
            .iter()
            .filter(|event| *event != "[DONE]")
            .map(|event| serde_json::from_str(event).unwrap())
            .collect()
    }
}

/// Puts `…` in the place of what differs from run to run.
pub(crate) fn stable(mut value: Value) -> Value {
    match &mut value {
        Value::Object(map) => {
            for (key, value) in map.iter_mut() {
                let varies =
                    matches!(key.as_str(), "id" | "created") && (value.is_string() || key == "created");
                *value = if varies { Value::from("…") } else { stable(value.take()) };
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| *item = stable(item.take())),
        _ => {}
    }
    value
}
