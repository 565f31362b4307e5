//! How many sequences may be alive, and when to come back if that is too many.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::Instant;

use super::EngineError;

/// Clients are told to come back no sooner and no later than this.
const RETRY_AFTER: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// The bound on live sequences, and the measured rates behind `Retry-After`. Written by the task, read by handles; each number
/// stands for itself, so relaxed ordering does.
#[derive(Debug)]
pub(super) struct Admission {
    live: Arc<AtomicUsize>,
    max_live: usize,
    /// Mean time between two sequences' ends, in microseconds; 0 before it was measured.
    end_interval_us: AtomicU64,
    /// Sequences waiting for their first step.
    num_waiting: AtomicUsize,
    origin: Instant,
    /// When a lost or starting replica is expected, in milliseconds after `origin`.
    ready_ms: AtomicU64,
}

/// A live sequence's place; dropping it makes room.
#[derive(Debug)]
pub(super) struct Permit(Arc<AtomicUsize>);

impl Admission {
    pub(super) fn new(max_live: usize) -> Self {
        Self {
            live: Arc::default(),
            max_live,
            end_interval_us: AtomicU64::new(0),
            num_waiting: AtomicUsize::new(0),
            origin: Instant::now(),
            ready_ms: AtomicU64::new(0),
        }
    }

    /// Takes a place, if there is one.
    pub(super) fn enter(&self) -> Result<Permit, EngineError> {
        self.live
            .fetch_update(Relaxed, Relaxed, |live| (live < self.max_live).then_some(live + 1))
            .map(|_| Permit(Arc::clone(&self.live)))
            .map_err(|_| EngineError::Overloaded { retry_after: self.until_room() })
    }

    /// Whether there is a place.
    pub(super) fn check(&self) -> Result<(), EngineError> {
        if self.num_live() < self.max_live {
            return Ok(());
        }
        Err(EngineError::Overloaded { retry_after: self.until_room() })
    }

    pub(super) fn num_live(&self) -> usize {
        self.live.load(Relaxed)
    }

    /// Publishes the drain rate.
    pub(super) fn set_rate(&self, end_interval: Duration, num_waiting: usize) {
        self.end_interval_us.store(end_interval.as_micros() as u64, Relaxed);
        self.num_waiting.store(num_waiting, Relaxed);
    }

    /// A replica that is not ready is expected to be in this time.
    pub(super) fn set_ready_in(&self, expected: Duration) {
        self.ready_ms.store((self.origin.elapsed() + expected).as_millis() as u64, Relaxed);
    }

    /// When a replica that is not ready is expected to be.
    pub(super) fn until_ready(&self) -> Duration {
        clamp(Duration::from_millis(self.ready_ms.load(Relaxed)).saturating_sub(self.origin.elapsed()))
    }

    /// When those who wait now will have begun, at the rate at which sequences end.
    pub(super) fn until_room(&self) -> Duration {
        let interval = Duration::from_micros(self.end_interval_us.load(Relaxed));
        let num_ahead = u32::try_from(self.num_waiting.load(Relaxed)).unwrap_or(u32::MAX);
        clamp(interval.saturating_mul(num_ahead.saturating_add(1)))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

fn clamp(retry_after: Duration) -> Duration {
    retry_after.clamp(RETRY_AFTER.0, RETRY_AFTER.1)
}

/// How fast sequences end while there are any: busy time over ends, both with the past fading at each end.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct EndRate {
    /// The last end, or the first submission after an idle time.
    since_us: Option<u64>,
    busy_us: f64,
    num_ended: f64,
}

/// What is left of the past after an end: the last ten count for two thirds.
const FADING: f64 = 0.9;

impl EndRate {
    /// A sequence was submitted: idle time ends.
    pub(super) fn submitted(&mut self, now_us: u64) {
        self.since_us.get_or_insert(now_us);
    }

    /// `num_ended` sequences ended at `now_us`; `is_idle` if they were the last.
    pub(super) fn ended(&mut self, num_ended: usize, now_us: u64, is_idle: bool) {
        if num_ended == 0 {
            return;
        }
        let elapsed_us = self.since_us.map_or(0, |since_us| now_us.saturating_sub(since_us));
        let faded = FADING.powi(i32::try_from(num_ended).unwrap_or(i32::MAX));
        self.busy_us = self.busy_us * faded + elapsed_us as f64;
        self.num_ended = self.num_ended * faded + num_ended as f64;
        self.since_us = (!is_idle).then_some(now_us);
    }

    /// The mean time between two ends; zero before there was one.
    pub(super) fn interval(&self) -> Duration {
        Duration::from_micros((self.busy_us / self.num_ended.max(1.0)) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_free_again_when_its_permit_is_dropped() {
        let admission = Admission::new(2);
        let first = admission.enter().unwrap();
        let _second = admission.enter().unwrap();
        assert!(matches!(admission.enter(), Err(EngineError::Overloaded { .. })));
        drop(first);
        assert_eq!(admission.num_live(), 1);
        assert!(admission.enter().is_ok());
    }

    #[test]
    fn retry_after_follows_the_drain_rate_within_its_bounds() {
        for (interval_ms, num_waiting, expect_s) in
            [(0, 0, 1), (10, 20, 1), (500, 9, 5), (2_000, 4, 10), (10_000, 100, 60)]
        {
            let admission = Admission::new(0);
            admission.set_rate(Duration::from_millis(interval_ms), num_waiting);
            let retry_after = Duration::from_secs(expect_s);
            assert_eq!(admission.enter().unwrap_err(), EngineError::Overloaded { retry_after });
        }
    }

    #[test]
    fn the_end_rate_is_that_of_busy_time() {
        let mut rate = EndRate::default();
        let check = |rate: &EndRate, expect_s: f64| {
            let seconds = rate.interval().as_secs_f64();
            assert!((seconds / expect_s - 1.0).abs() < 0.2, "{seconds} s, not {expect_s} s");
        };
        // Two at a time or one by one, it is the same rate.
        rate.submitted(0);
        for step in 1..100 {
            rate.ended(2, step * 1_000_000, false);
        }
        check(&rate, 0.5);
        for step in 200..400 {
            rate.ended(1, step * 500_000, false);
        }
        check(&rate, 0.5);
        // A quiet night does not count.
        rate.ended(1, 200_000_000, true);
        rate.submitted(50_000_000_000);
        rate.ended(1, 50_000_500_000, false);
        check(&rate, 0.5);
        for step in 1..100 {
            rate.ended(1, 50_000_500_000 + step * 2_000_000, false);
        }
        check(&rate, 2.0);
    }
}
