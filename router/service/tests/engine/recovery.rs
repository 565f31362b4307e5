//! The shard dies or stalls: everybody is told at once, and the engine begins anew.

use std::time::Duration;

use anaphora_router::{
    config::EngineConfig,
    engine::{EngineError, EngineEvent, Status},
    shard::fake::FakeOptions,
};
use tokio::time::Instant;

use crate::rig::{Rig, read, read_tokens, request, start};

#[tokio::test(start_paused = true)]
async fn a_dead_shard_fails_every_sequence_and_is_replaced() {
    let mut rig = Rig::new(EngineConfig { max_batch_size: Some(2), ..EngineConfig::default() }).await;
    let mut generations = Vec::new();
    for first in 0..4 {
        generations.push(rig.submit(request(first..first + 50, 1000)).await.unwrap());
    }
    read_tokens(&mut generations[0], 3).await;
    rig.control.kill();
    let EngineEvent::ShardLost { message } = rig.events.recv().await.unwrap() else { panic!("it was lost") };
    assert!(message.contains("killed"), "{message}");
    for generation in generations {
        let end = read(generation).await.end;
        assert!(matches!(end, Err(EngineError::ShardLost { .. })), "{end:?}");
    }
    assert_eq!((rig.engine.status(), rig.engine.num_live()), (Status::Lost, 0));
    let refused = rig.submit(request(0..10, 1)).await.unwrap_err();
    assert!(matches!(refused, EngineError::Unavailable { .. }), "{refused:?}");

    // It comes back with another pool, and an empty one.
    rig.control.set_num_blocks(100);
    rig.control.revive();
    let EngineEvent::Ready(info) = rig.events.recv().await.unwrap() else { panic!("it is ready again") };
    assert_eq!(info.kv_tokens, 1600);
    let stats = rig.engine.stats();
    assert_eq!((stats.total_blocks, stats.free_blocks), (100, 100));
    let again = request(0..50, 20);
    let outcome = rig.generate(again.clone()).await;
    assert_eq!((outcome.cached_tokens, outcome.tokens), (Some(0), rig.expected(&again)));
}

#[tokio::test(start_paused = true)]
async fn a_death_between_any_two_answers_fails_nobody_twice() {
    for num_answers in 1..12 {
        let mut rig = Rig::new(EngineConfig::default()).await;
        rig.control.kill_after(num_answers);
        let outcome = rig.generate(request(0..1000, 1000)).await;
        assert!(matches!(outcome.end, Err(EngineError::ShardLost { .. })));
        assert_eq!(
            outcome.tokens.len(),
            (num_answers as usize).saturating_sub(1),
            "two chunks of prompt, then decodes"
        );
        rig.control.revive();
        assert!(matches!(rig.events.recv().await, Some(EngineEvent::ShardLost { .. })));
        assert!(matches!(rig.events.recv().await, Some(EngineEvent::Ready(_))));
        assert!(rig.generate(request(0..10, 3)).await.end.is_ok());
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_shard_that_dies_is_noticed() {
    let mut rig = Rig::new(EngineConfig::default()).await;
    rig.control.kill();
    assert!(matches!(rig.events.recv().await, Some(EngineEvent::ShardLost { .. })));
    assert_eq!(rig.engine.status(), Status::Lost);
}

#[tokio::test(start_paused = true)]
async fn a_shard_without_progress_is_taken_for_lost() {
    let config = EngineConfig { step_timeout: Duration::from_secs(5), ..EngineConfig::default() };
    let mut rig = Rig::new(config).await;
    let mut generation = rig.submit(request(0..10, 1000)).await.unwrap();
    read_tokens(&mut generation, 3).await;
    rig.control.stall();
    let stalled = Instant::now();
    assert_eq!(rig.events.recv().await, Some(EngineEvent::ShardStalled));
    let elapsed = stalled.elapsed().as_millis();
    assert!((4990..=5010).contains(&elapsed), "{elapsed} ms");
    let end = read(generation).await.end;
    assert!(matches!(end, Err(EngineError::ShardLost { .. })), "{end:?}");
}

#[tokio::test(start_paused = true)]
async fn an_idle_shard_is_never_taken_for_stalled() {
    let config = EngineConfig { step_timeout: Duration::from_secs(5), ..EngineConfig::default() };
    let mut rig = Rig::new(config).await;
    rig.generate(request(0..10, 5)).await;
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert!(rig.events.try_recv().is_err());
    assert!(rig.generate(request(0..10, 5)).await.end.is_ok());
}

#[tokio::test(start_paused = true)]
async fn the_engine_waits_for_a_shard_that_is_not_there_yet() {
    let options = FakeOptions { warm_up: Duration::from_secs(20), ..FakeOptions::default() };
    let (shard, control) = anaphora_router::shard::fake::FakeShard::new(options);
    control.kill();
    let (engine, mut events) = start(shard, EngineConfig::default());
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(engine.status(), Status::Starting { phase: "load", percent: 0 });
    let refused = engine.submit(request(0..10, 1)).await.unwrap_err();
    assert!(matches!(refused, EngineError::Unavailable { .. }), "{refused:?}");
    control.revive();
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(engine.status(), Status::Starting { phase: "warm_up", percent: 50 });
    assert!(matches!(events.recv().await, Some(EngineEvent::Ready(_))));
}

#[tokio::test(start_paused = true)]
async fn retry_after_a_loss_is_what_the_last_start_took() {
    let options = FakeOptions { warm_up: Duration::from_secs(20), ..FakeOptions::default() };
    let mut rig = Rig::with_options(EngineConfig::default(), options).await;
    rig.control.kill();
    assert!(matches!(rig.events.recv().await, Some(EngineEvent::ShardLost { .. })));
    tokio::time::sleep(Duration::from_secs(5)).await;
    let Err(EngineError::Unavailable { retry_after }) = rig.submit(request(0..10, 1)).await else {
        panic!("lost")
    };
    assert_eq!(retry_after.as_millis().div_ceil(1000), 15);
}
