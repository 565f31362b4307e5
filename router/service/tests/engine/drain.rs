//! How an engine ends.

use std::time::Duration;

use anaphora_router::{
    config::EngineConfig,
    engine::{EngineError, EngineEvent, Status},
};
use tokio::time::timeout;

use crate::rig::{Rig, STEP, read, read_tokens, request};

#[tokio::test(start_paused = true)]
async fn a_drain_lets_sequences_finish_and_takes_no_new_ones() {
    let rig = Rig::new(EngineConfig { max_batch_size: Some(1), ..EngineConfig::default() }).await;
    let running = rig.submit(request(0..10, 100)).await.unwrap();
    let waiting = rig.submit(request(0..10, 100)).await.unwrap();
    rig.engine.drain();
    assert_eq!(rig.engine.status(), Status::Draining);
    assert_eq!(rig.submit(request(0..10, 1)).await.unwrap_err(), EngineError::ShuttingDown);
    for generation in [running, waiting] {
        let outcome = read(generation).await;
        assert_eq!((outcome.tokens.len(), outcome.end.is_ok()), (100, true));
    }
    rig.engine.stopped().await;
}

#[tokio::test(start_paused = true)]
async fn an_idle_engine_drains_at_once() {
    let rig = Rig::new(EngineConfig::default()).await;
    rig.engine.drain();
    timeout(Duration::from_millis(1), rig.engine.stopped()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_drain_ends_when_the_last_client_goes_away() {
    let rig = Rig::new(EngineConfig::default()).await;
    let mut generation = rig.submit(request(0..10, 8000)).await.unwrap();
    read_tokens(&mut generation, 3).await;
    rig.engine.drain();
    drop(generation);
    timeout(Duration::from_secs(1), rig.engine.stopped()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_stop_fails_what_is_left() {
    let rig = Rig::new(EngineConfig::default()).await;
    let generation = rig.submit(request(0..10, 8000)).await.unwrap();
    rig.engine.drain();
    tokio::time::sleep(Duration::from_secs(1)).await;
    rig.engine.stop();
    let outcome = read(generation).await;
    assert_eq!(outcome.end, Err(EngineError::ShuttingDown));
    assert!(!outcome.tokens.is_empty());
    rig.engine.stopped().await;
}

#[tokio::test(start_paused = true)]
async fn a_drain_does_not_wait_for_a_lost_shard() {
    let mut rig = Rig::new(EngineConfig::default()).await;
    rig.control.kill();
    assert!(matches!(rig.events.recv().await, Some(EngineEvent::ShardLost { .. })));
    rig.engine.drain();
    timeout(Duration::from_millis(1), rig.engine.stopped()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_shard_that_dies_in_a_drain_ends_it() {
    for steps in [0, 1, 5] {
        let rig = Rig::new(EngineConfig::default()).await;
        let generation = rig.submit(request(0..10, 8000)).await.unwrap();
        rig.engine.drain();
        tokio::time::sleep(STEP * steps).await;
        rig.control.kill();
        let end = read(generation).await.end;
        assert!(matches!(end, Err(EngineError::ShardLost { .. })), "{end:?}");
        timeout(Duration::from_secs(1), rig.engine.stopped()).await.unwrap();
    }
}
