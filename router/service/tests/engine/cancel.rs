//! A client that goes away frees its row and its blocks, at any point.

use anaphora_router::config::EngineConfig;
use futures::FutureExt as _;

use crate::rig::{Rig, STEP, read, read_tokens, request};

#[tokio::test(start_paused = true)]
async fn a_dropped_generation_gets_no_row_in_the_next_step() {
    let rig = Rig::new(EngineConfig::default()).await;
    let mut dropped = rig.submit(request(0..10, 1000)).await.unwrap();
    let mut stays = rig.submit(request(100..110, 1000)).await.unwrap();
    read_tokens(&mut dropped, 3).await;
    read_tokens(&mut stays, 3).await;
    rig.control.record();
    drop(dropped);
    read_tokens(&mut stays, 4).await;
    // Steps already planned when the client went are not taken back; the next one does without it, and the one after those
    // in flight names the slot as free.
    let rows: Vec<usize> = rig.control.plans().iter().map(|plan| plan.rows.len()).collect();
    assert!(rows.iter().all(|num_rows| *num_rows == 1), "{rows:?}");
    assert_eq!(rig.control.occupied().len(), 1);
    assert_eq!(rig.engine.num_live(), 1);
    drop(stays);
    rig.until(|stats| stats.held_blocks == 0 && stats.in_flight == 0).await;
}

#[tokio::test(start_paused = true)]
async fn a_cancel_at_any_time_leaves_the_pool_as_it_was() {
    // In quarters of a step after the submission: queued, in prefill chunks, decoding.
    for quarters in 0..40 {
        let config = EngineConfig { max_batch_prefill_tokens: Some(64), ..EngineConfig::default() };
        let rig = Rig::new(config).await;
        let total = rig.engine.stats().total_blocks;
        let generations = [rig.submit(request(0..300, 50)).await, rig.submit(request(0..200, 50)).await];
        tokio::time::sleep(STEP / 4 * quarters).await;
        drop(generations);
        rig.until(|stats| stats.in_flight == 0 && stats.held_blocks == 0 && stats.draining == 0).await;
        let stats = rig.engine.stats();
        assert_eq!(stats.free_blocks + stats.cached_blocks, total);
        assert_eq!((stats.waiting, stats.cancelled, rig.engine.num_live()), (0, 2, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_computed_for_a_cancelled_sequence_is_cached() {
    let rig = Rig::new(EngineConfig::default()).await;
    let mut dropped = rig.submit(request(0..200, 50)).await.unwrap();
    read_tokens(&mut dropped, 1).await;
    drop(dropped);
    rig.until(|stats| stats.held_blocks == 0).await;
    let outcome = rig.generate(request(0..200, 5)).await;
    assert!(outcome.cached_tokens.unwrap() >= 192, "{outcome:?}");
}

#[tokio::test(start_paused = true)]
async fn a_submit_that_nobody_waits_for_is_cancelled() {
    let rig = Rig::new(EngineConfig::default()).await;
    // Polled once: the command is on its way, the answer is not there.
    assert!(rig.submit(request(0..10, 1000)).now_or_never().is_none());
    rig.until(|stats| stats.submitted == 1 && stats.cancelled == 1 && stats.held_blocks == 0).await;
    assert_eq!(rig.engine.num_live(), 0);
}

#[tokio::test(start_paused = true)]
async fn dropping_a_finished_generation_is_no_cancel() {
    let rig = Rig::new(EngineConfig::default()).await;
    let mut generation = rig.submit(request(0..10, 3)).await.unwrap();
    // All three tokens are there, but not read: the sequence has finished, and its client then goes away.
    rig.until(|stats| stats.finished == 1).await;
    read_tokens(&mut generation, 1).await;
    drop(generation);
    let other = read(rig.submit(request(0..10, 3)).await.unwrap()).await;
    assert!(other.end.is_ok());
    assert_eq!(rig.engine.stats().cancelled, 0);
}
