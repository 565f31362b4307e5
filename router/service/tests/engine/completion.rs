//! Sequences get the tokens that their context demands, however they are scheduled.

use std::{sync::Arc, time::Duration};

use anaphora_core::{FinishReason, Rejection, Sampling};
use anaphora_router::{
    config::EngineConfig,
    engine::{EngineError, Status},
    shard::fake::FakeOptions,
};
use futures::future::join_all;
use tokio::time::Instant;

use crate::rig::{Rig, STEP, request};

#[tokio::test(start_paused = true)]
async fn a_sequence_gets_its_tokens() {
    let rig = Rig::new(EngineConfig::default()).await;
    for (prompt_length, max_new_tokens) in [(1, 1), (1, 40), (16, 16), (17, 1), (600, 5), (2000, 33)] {
        let request = request(10_000..10_000 + prompt_length, max_new_tokens);
        let outcome = rig.generate(request.clone()).await;
        assert_eq!(outcome.tokens, rig.expected(&request));
        assert_eq!(outcome.end, Ok(FinishReason::Length));
    }
    let stats = rig.engine.stats();
    assert_eq!((stats.held_blocks, stats.waiting, stats.decoding), (0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn many_at_once_get_what_each_would_get_alone() {
    // (pool, rows, step tokens): roomy; chunked; so small that sequences are preempted.
    for (num_blocks, max_rows, max_step_tokens) in [(4096, 64, 512), (4096, 7, 16), (24, 16, 64)] {
        let config = EngineConfig {
            max_batch_size: Some(max_rows),
            max_batch_prefill_tokens: Some(max_step_tokens),
            max_batch_total_tokens: Some(num_blocks * 16),
            ..EngineConfig::default()
        };
        let rig = Rig::new(config).await;
        // Prompts that share a beginning, and some that are wholly alike.
        let requests: Vec<_> = (0..48)
            .map(|index| request((0..20 + index % 5 * 7).chain([index % 9]), 10 + 4 * index))
            .collect();
        let outcomes = join_all(requests.iter().map(|request| rig.generate(request.clone()))).await;
        for (request, outcome) in requests.iter().zip(outcomes) {
            assert_eq!(outcome.tokens, rig.expected(request));
            assert_eq!(outcome.end, Ok(FinishReason::Length));
        }
        let stats = rig.engine.stats();
        assert_eq!((stats.held_blocks, stats.finished), (0, 48));
        assert_eq!(stats.preemptions > 0, num_blocks == 24, "{stats:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_second_turn_computes_only_what_is_new() {
    let rig = Rig::new(EngineConfig::default()).await;
    let first = request(0..100, 30);
    let mut conversation = first.prompt.clone();
    conversation.extend(rig.generate(first).await.tokens);
    conversation.extend(500..540);
    let outcome = rig.generate(request(conversation, 5)).await;
    // All but the last generated token were computed; reuse is exact to the token, not to the block.
    assert_eq!(outcome.cached_tokens, Some(129));
}

#[tokio::test(start_paused = true)]
async fn a_stop_token_ends_a_sequence() {
    let rig = Rig::new(EngineConfig::default()).await;
    let mut stopped = request(0..10, 50);
    let expected = rig.expected(&stopped);
    stopped.stop_tokens = Arc::from([expected[3]]);
    let outcome = rig.generate(stopped).await;
    assert_eq!(outcome.tokens, expected[..4]);
    assert_eq!(outcome.end, Ok(FinishReason::StopToken));
}

#[tokio::test(start_paused = true)]
async fn sampling_parameters_reach_the_shard() {
    let rig = Rig::new(EngineConfig::default()).await;
    let mut sampled = request(0..10, 5);
    sampled.sampling =
        Arc::new(Sampling { temperature: 1.0, seed: 7, num_top_logprobs: 2, ..Sampling::default() });
    let outcome = rig.generate(sampled.clone()).await;
    assert_eq!(outcome.tokens, rig.expected(&sampled));
    assert_ne!(outcome.tokens, rig.expected(&request(0..10, 5)));
}

#[tokio::test(start_paused = true)]
async fn two_steps_are_in_flight() {
    let rig = Rig::new(EngineConfig::default()).await;
    let generate = rig.generate(request(0..10, 100));
    let watch = async {
        rig.until(|stats| stats.in_flight == 2).await;
    };
    futures::join!(generate, watch);
}

#[tokio::test(start_paused = true)]
async fn tokens_come_one_step_apart() {
    let rig = Rig::new(EngineConfig::default()).await;
    let began = Instant::now();
    rig.generate(request(0..10, 50)).await;
    assert_eq!(began.elapsed().as_millis(), STEP.as_millis() * 50);
}

#[tokio::test(start_paused = true)]
async fn what_can_never_fit_is_refused() {
    let config = EngineConfig { max_batch_total_tokens: Some(64), ..EngineConfig::default() };
    let rig = Rig::new(config).await;
    for (prompt_length, max_new_tokens, rejection) in [
        (0, 1, Rejection::EmptyPrompt),
        (1, 0, Rejection::NoNewTokens),
        (60, 5, Rejection::TooLong { prompt: 60, max_new_tokens: 5, limit: 64 }),
    ] {
        let error = rig.submit(request(0..prompt_length, max_new_tokens)).await.unwrap_err();
        assert_eq!(error, EngineError::Rejected(rejection));
    }
    assert_eq!(rig.engine.num_live(), 0);
}

#[tokio::test(start_paused = true)]
async fn the_replica_says_what_it_bears() {
    // (flag, model, pool in tokens) -> context
    for (flag, model, pool, context) in [
        (None, 8192, None, 8192),
        (Some(1000), 8192, None, 1000),
        (Some(10_000), 8192, None, 8192),
        (None, 8192, Some(500), 496),
    ] {
        let config =
            EngineConfig { max_context: flag, max_batch_total_tokens: pool, ..EngineConfig::default() };
        let options = FakeOptions { max_context: model, ..FakeOptions::default() };
        let rig = Rig::with_options(config, options).await;
        let Status::Ready(info) = rig.engine.status() else { panic!("it is ready") };
        assert_eq!(info.context, context);
        assert_eq!(info.kv_tokens, pool.unwrap_or(4096 * 16) / 16 * 16);
        assert_eq!((info.max_rows, info.max_step_tokens), (64, 512));
    }
}

#[tokio::test(start_paused = true)]
async fn a_gpu_has_larger_defaults() {
    let options = FakeOptions { device: "cuda:0 (fake)".to_owned(), ..FakeOptions::default() };
    let config = EngineConfig { max_concurrent_requests: 1000, ..EngineConfig::default() };
    let rig = Rig::with_options(config, options).await;
    let Status::Ready(info) = rig.engine.status() else { panic!("it is ready") };
    assert_eq!((info.max_rows, info.max_step_tokens), (256, 4096));
}

#[tokio::test(start_paused = true)]
async fn nothing_is_computed_for_nobody() {
    let rig = Rig::new(EngineConfig::default()).await;
    rig.generate(request(0..10, 3)).await;
    rig.until(|stats| stats.in_flight == 0).await;
    let num_steps = rig.control.num_steps();
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(rig.control.num_steps(), num_steps);
}
