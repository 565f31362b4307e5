//! The bound on live sequences, and what the refused are told.

use std::time::Duration;

use anaphora_router::{config::EngineConfig, engine::EngineError};

use crate::rig::{Rig, STEP, read, read_tokens, request};

fn config(max_concurrent_requests: usize) -> EngineConfig {
    EngineConfig { max_concurrent_requests, max_batch_size: Some(2), ..EngineConfig::default() }
}

#[tokio::test(start_paused = true)]
async fn over_the_bound_sequences_are_refused() {
    let rig = Rig::new(config(3)).await;
    let mut live = Vec::new();
    for _ in 0..3 {
        live.push(rig.submit(request(0..10, 100)).await.unwrap());
    }
    let refused = rig.submit(request(0..10, 100)).await.unwrap_err();
    assert!(matches!(refused, EngineError::Overloaded { .. }), "{refused:?}");
    assert_eq!(rig.engine.would_accept().unwrap_err(), refused);

    drop(live.pop());
    rig.until(|stats| stats.waiting == 0).await;
    assert!(rig.engine.would_accept().is_ok());
    let accepted = rig.submit(request(0..10, 1)).await.unwrap();
    for generation in live.into_iter().chain([accepted]) {
        assert!(read(generation).await.end.is_ok());
    }
    assert_eq!(rig.engine.num_live(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_finished_sequence_makes_room_before_it_is_read() {
    let rig = Rig::new(config(1)).await;
    let unread = rig.submit(request(0..10, 5)).await.unwrap();
    rig.until(|stats| stats.finished == 1).await;
    assert!(rig.submit(request(0..10, 5)).await.is_ok());
    drop(unread);
}

#[tokio::test(start_paused = true)]
async fn retry_after_is_measured() {
    let rig = Rig::new(config(12)).await;
    // Two rows of 100 steps each: a sequence ends every 500 ms on average, two at a time.
    let mut live = Vec::new();
    for _ in 0..12 {
        live.push(rig.submit(request(0..10, 100)).await.unwrap());
    }
    let Err(EngineError::Overloaded { retry_after }) = rig.submit(request(0..10, 1)).await else {
        panic!("full")
    };
    assert_eq!(retry_after, Duration::from_secs(1), "nothing was measured yet");
    let mut finished = 0;
    while finished < 4 {
        finished += 1;
        assert!(read(live.remove(0)).await.end.is_ok());
        live.push(rig.submit(request(0..10, 100)).await.unwrap());
    }
    let mut running = live.remove(0);
    read_tokens(&mut running, 50).await;
    let Err(EngineError::Overloaded { retry_after }) = ({
        live.push(running);
        rig.submit(request(0..10, 1)).await
    }) else {
        panic!("full")
    };
    // Ten wait before it, at two a second.
    let expected = 100 * STEP / 2 * 11;
    assert!(retry_after > expected / 2 && retry_after < expected * 2, "{retry_after:?}, not {expected:?}");
}

#[tokio::test(start_paused = true)]
async fn who_waits_too_long_is_told_to_come_back() {
    let max_queue_time = Some(Duration::from_millis(200));
    let config = EngineConfig { max_batch_size: Some(1), max_queue_time, ..EngineConfig::default() };
    let rig = Rig::new(config).await;
    let first = rig.submit(request(0..10, 100)).await.unwrap();
    let second = rig.submit(request(10..20, 5)).await.unwrap();
    assert!(matches!(read(second).await.end, Err(EngineError::QueueTimeout { .. })));
    assert_eq!(read(first).await.tokens.len(), 100);
}
