//! Tokens per second through the engine: scheduler, shard, commit, channels, readers; no text and no HTTP.
//!
//! `cargo bench -p anaphora-router --bench engine`. Everything runs on one thread, so the figure is per core.

use std::{sync::Arc, time::Instant};

use anaphora_core::{Namespace, Request, Sampling};
use anaphora_router::{
    config::EngineConfig,
    engine::{self, Engine, EngineParts, Update},
    metrics,
    shard::fake::{FakeOptions, FakeShard},
};

const PROMPT_TOKENS: u32 = 64;
const NEW_TOKENS: u32 = 400;

#[expect(clippy::print_stdout, reason = "the result")]
#[expect(clippy::disallowed_methods, reason = "the runtime ends with the bench")]
fn main() {
    // As in the program: without a recorder, metrics would cost nothing.
    let prometheus = metrics::install();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    for rows in [1, 8, 64, 256] {
        let tokens_per_second = runtime.block_on(async {
            let config = EngineConfig {
                max_concurrent_requests: rows as usize,
                max_batch_size: Some(rows),
                max_batch_prefill_tokens: Some(4096),
                ..EngineConfig::default()
            };
            let (shard, _) = FakeShard::new(FakeOptions { num_blocks: 16_384, ..FakeOptions::default() });
            let model = "bench".to_owned();
            let (engine, task) =
                engine::start(EngineParts { shard, config, model, report: Box::new(|_| {}) });
            let task = tokio::spawn(task);
            engine.ready().await;
            let (began, num_rounds) = (Instant::now(), 1 + 512 / rows);
            let clients =
                (0..rows).map(|client| tokio::spawn(client_loop(engine.clone(), client, num_rounds)));
            let num_tokens: u32 = futures::future::join_all(clients).await.into_iter().flatten().sum();
            let seconds = began.elapsed().as_secs_f64();
            engine.drain();
            task.await.expect("the engine ends");
            prometheus.run_upkeep();
            f64::from(num_tokens) / seconds
        });
        println!("{rows:4} rows: {tokens_per_second:9.0} tok/s");
    }
}

/// One request after another; counts the tokens.
async fn client_loop(engine: Engine, client: u32, num_rounds: u32) -> u32 {
    let mut num_tokens = 0;
    for round in 0..num_rounds {
        let first = 1_000_000 * client + 1000 * round;
        let request = Request {
            namespace: Namespace::default(),
            prompt: (first..first + PROMPT_TOKENS).collect(),
            max_new_tokens: NEW_TOKENS,
            stop_tokens: Arc::from([]),
            sampling: Arc::new(Sampling::default()),
            priority: 0,
        };
        let mut generation = engine.submit(request).await.expect("there is room");
        while let Some(update) = generation.next().await {
            num_tokens += u32::from(matches!(update, Update::Token(_)));
        }
    }
    num_tokens
}
