//! A client that does not read is dropped, and nobody waits for it.

use anaphora_router::{config::EngineConfig, engine::EngineError};

use crate::rig::{Rig, read, request};

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_loses_its_sequence_alone() {
    let rig = Rig::new(EngineConfig { updates_per_client: 8, ..EngineConfig::default() }).await;
    let slow = rig.submit(request(0..10, 1000)).await.unwrap();
    let reader = rig.generate(request(100..110, 200)).await;
    assert_eq!((reader.tokens.len(), reader.end.is_ok()), (200, true));
    assert_eq!(rig.engine.num_live(), 0);
    rig.until(|stats| stats.held_blocks == 0).await;

    // What it got before is good: the start, seven tokens, and why it ended.
    let outcome = read(slow).await;
    assert_eq!(outcome.tokens, rig.expected(&request(0..10, 7)));
    assert_eq!(outcome.end, Err(EngineError::SlowClient));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_reads_late_but_in_time_gets_everything() {
    let rig = Rig::new(EngineConfig { updates_per_client: 8, ..EngineConfig::default() }).await;
    let late = rig.submit(request(0..10, 7)).await.unwrap();
    rig.until(|stats| stats.finished == 1).await;
    let outcome = read(late).await;
    assert_eq!((outcome.tokens.len(), outcome.end.is_ok()), (7, true));
}
