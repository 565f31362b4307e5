//! How a test makes a fake shard die or stall, and asks what it saw.

use std::sync::{Arc, Mutex, MutexGuard};

use anaphora_core::{ids::Slot, plan::StepPlan};
use tokio::sync::futures::OwnedNotified;

/// A handle to a [`FakeShard`](super::FakeShard) that an engine owns; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct FakeControl {
    state: Arc<Mutex<State>>,
    changed: Arc<tokio::sync::Notify>,
}

#[derive(Debug, Default)]
struct State {
    fate: Fate,
    /// Answers until it dies by itself.
    answers_left: Option<u64>,
    num_blocks: Option<u32>,
    num_steps: u64,
    occupied: Vec<Slot>,
    plans: Option<Vec<(StepPlan, String)>>,
}

/// What becomes of the shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Fate {
    #[default]
    Alive,
    /// Answers nothing, and does not say why.
    Stalled,
    /// Every call fails.
    Dead,
}

impl FakeControl {
    /// From now on every call fails.
    pub fn kill(&self) {
        self.set(Fate::Dead);
    }

    /// After so many more answers, every call fails.
    pub fn kill_after(&self, num_answers: u64) {
        self.lock().answers_left = Some(num_answers);
    }

    /// From now on nothing is answered.
    pub fn stall(&self) {
        self.set(Fate::Stalled);
    }

    /// Ends a [`kill`](Self::kill) or [`stall`](Self::stall).
    pub fn revive(&self) {
        self.lock().answers_left = None;
        self.set(Fate::Alive);
    }

    /// The pool that the next `configure` finds room for.
    pub fn set_num_blocks(&self, num_blocks: u32) {
        self.lock().num_blocks = Some(num_blocks);
    }

    /// Steps received so far.
    #[must_use]
    pub fn num_steps(&self) -> u64 {
        self.lock().num_steps
    }

    /// Slots that hold a sequence after the last step received.
    #[must_use]
    pub fn occupied(&self) -> Vec<Slot> {
        self.lock().occupied.clone()
    }

    /// Keeps every plan and its trace context from now on, for [`plans`](Self::plans) and [`traceparents`](Self::traceparents).
    pub fn record(&self) {
        self.lock().plans = Some(Vec::new());
    }

    /// The plans since [`record`](Self::record).
    #[must_use]
    pub fn plans(&self) -> Vec<StepPlan> {
        self.lock().plans.iter().flatten().map(|(plan, _)| plan.clone()).collect()
    }

    /// The trace contexts of the plans since [`record`](Self::record).
    #[must_use]
    pub fn traceparents(&self) -> Vec<String> {
        self.lock().plans.iter().flatten().map(|(_, traceparent)| traceparent.clone()).collect()
    }

    pub(super) fn fate(&self) -> Fate {
        self.lock().fate
    }

    pub(super) fn num_blocks(&self) -> Option<u32> {
        self.lock().num_blocks
    }

    /// Completes at the next change of fate after this call.
    pub(super) fn changed(&self) -> OwnedNotified {
        Arc::clone(&self.changed).notified_owned()
    }

    pub(super) fn saw(&self, plan: &StepPlan, traceparent: &str, occupied: impl Iterator<Item = Slot>) {
        let mut state = self.lock();
        state.num_steps += 1;
        state.occupied.clear();
        state.occupied.extend(occupied);
        if let Some(plans) = &mut state.plans {
            plans.push((plan.clone(), traceparent.to_owned()));
        }
    }

    pub(super) fn answered(&self) {
        let mut state = self.lock();
        if let Some(left) = &mut state.answers_left {
            *left = left.saturating_sub(1);
            if *left == 0 {
                state.fate = Fate::Dead;
            }
        }
    }

    fn set(&self, fate: Fate) {
        self.lock().fate = fate;
        self.changed.notify_waiters();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds this lock. This is a bug.")
    }
}
