//! An engine over a fake shard, and the verbs of the tests.

use std::{sync::Arc, time::Duration};

use anaphora_core::{FinishReason, Namespace, Request, Sampling, Stats};
use anaphora_router::{
    config::EngineConfig,
    engine::{self, Engine, EngineError, EngineEvent, EngineParts, Generation, Update},
    shard::{
        Shard,
        fake::{FakeControl, FakeOptions, FakeShard},
    },
};
use tokio::sync::mpsc;

/// How long a step takes in these tests.
pub(crate) const STEP: Duration = Duration::from_millis(10);

/// An engine and everything around it.
pub(crate) struct Rig {
    pub(crate) engine: Engine,
    pub(crate) control: FakeControl,
    pub(crate) options: FakeOptions,
    pub(crate) events: mpsc::UnboundedReceiver<EngineEvent>,
}

/// What a sequence came to.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Outcome {
    pub(crate) cached_tokens: Option<u32>,
    pub(crate) tokens: Vec<u32>,
    pub(crate) end: Result<FinishReason, EngineError>,
}

impl Rig {
    /// A ready engine.
    pub(crate) async fn new(config: EngineConfig) -> Self {
        Self::with_options(config, FakeOptions { step: STEP, ..FakeOptions::default() }).await
    }

    pub(crate) async fn with_options(config: EngineConfig, options: FakeOptions) -> Self {
        let (shard, control) = FakeShard::new(options.clone());
        let (engine, events) = start(shard, config);
        let mut rig = Self { engine, control, options, events };
        rig.engine.ready().await;
        assert!(matches!(rig.events.recv().await, Some(EngineEvent::Ready(_))));
        rig
    }

    pub(crate) async fn submit(&self, request: Request) -> Result<Generation, EngineError> {
        self.engine.submit(request).await
    }

    /// Submits and reads to the end.
    pub(crate) async fn generate(&self, request: Request) -> Outcome {
        read(self.submit(request).await.unwrap()).await
    }

    /// What `request` must come to if it is let run to its length.
    pub(crate) fn expected(&self, request: &Request) -> Vec<u32> {
        let num_tokens = request.max_new_tokens as usize;
        FakeShard::continuation(&self.options, &request.prompt, &request.sampling, num_tokens)
    }

    /// Waits until `is_so`, and says what was so instead if it takes too long.
    pub(crate) async fn until(&self, is_so: impl Fn(&Stats) -> bool) {
        for _ in 0..1000 {
            if is_so(&self.engine.stats()) {
                return;
            }
            tokio::time::sleep(STEP / 10).await;
        }
        panic!("it did not become so: {:?}", self.engine.stats());
    }
}

/// Shows the engine's log in the output of a test that fails.
fn show_log() {
    let subscriber = tracing_subscriber::fmt().with_test_writer().with_max_level(tracing::Level::WARN);
    // Another test may have been first.
    let _ = subscriber.try_init();
}

/// An engine over any shard.
pub(crate) fn start<S: Shard>(
    shard: S,
    config: EngineConfig,
) -> (Engine, mpsc::UnboundedReceiver<EngineEvent>) {
    show_log();
    let (sender, events) = mpsc::unbounded_channel();
    let report = Box::new(move |event| {
        let _ = sender.send(event);
    });
    let (engine, task) = engine::start(EngineParts { shard, config, model: "test".to_owned(), report });
    #[allow(clippy::disallowed_methods, reason = "the test's runtime ends with the test")]
    tokio::spawn(task);
    (engine, events)
}

/// A greedy request.
pub(crate) fn request(prompt: impl IntoIterator<Item = u32>, max_new_tokens: u32) -> Request {
    Request {
        namespace: Namespace::default(),
        prompt: prompt.into_iter().collect(),
        max_new_tokens,
        stop_tokens: Arc::from([]),
        sampling: Arc::new(Sampling::default()),
        priority: 0,
    }
}

/// Reads a sequence to its end, and checks that the end is the last thing.
pub(crate) async fn read(mut generation: Generation) -> Outcome {
    let (mut cached_tokens, mut tokens) = (None, Vec::new());
    loop {
        let end = match generation.next().await.unwrap() {
            Update::Started { cached_tokens: cached } => {
                assert_eq!(cached_tokens.replace(cached), None, "it started twice");
                continue;
            }
            Update::Token(sample) => {
                tokens.push(sample.token);
                continue;
            }
            Update::Finished(reason) => Ok(reason),
            Update::Failed(error) => Err(error),
        };
        assert_eq!(generation.next().await, None, "something came after the end");
        return Outcome { cached_tokens, tokens, end };
    }
}

/// Reads until `num_tokens` tokens have come.
pub(crate) async fn read_tokens(generation: &mut Generation, num_tokens: usize) {
    let mut left = num_tokens;
    while left > 0 {
        match generation.next().await.unwrap() {
            Update::Started { .. } => {}
            Update::Token(_) => left -= 1,
            end => panic!("it ended: {end:?}"),
        }
    }
}
