//! Processes that are started, die and return together: the router alone, or all ranks of the replica.

use std::collections::VecDeque;
use std::time::Duration;

use super::Action;
use crate::child::ChildId;

/// Processes that are restarted together.
#[derive(Debug)]
pub(super) struct Unit {
    pub(super) name: &'static str,
    pub(super) members: Vec<Member>,
    /// When its members died, as far back as the budget looks; a unit's simultaneous deaths count once.
    pub(super) deaths: VecDeque<Duration>,
    pub(super) num_restarts: u32,
    pub(super) state: UnitState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum UnitState {
    Up,
    /// A member has died; the others have been killed and are waited for. Then it pauses until `restart_at`.
    Down {
        restart_at: Duration,
    },
}

#[derive(Debug)]
pub(super) struct Member {
    pub(super) id: ChildId,
    pub(super) alive: bool,
    pub(super) listening: bool,
}

// === impl Unit ===

impl Unit {
    pub(super) fn new(name: &'static str, ids: Vec<ChildId>) -> Self {
        let members = ids.into_iter().map(|id| Member { id, alive: false, listening: false }).collect();
        Self { name, members, deaths: VecDeque::new(), num_restarts: 0, state: UnitState::Up }
    }

    pub(super) fn alive(&self) -> bool {
        self.members.iter().any(|member| member.alive)
    }

    pub(super) fn spawn(&mut self) -> Vec<Action> {
        self.state = UnitState::Up;
        let restart = self.num_restarts;
        let spawn = |member: &mut Member| {
            (member.alive, member.listening) = (true, false);
            Action::Spawn { child: member.id, restart }
        };
        self.members.iter_mut().map(spawn).collect()
    }

    pub(super) fn respawn(&mut self) -> Vec<Action> {
        self.num_restarts += 1;
        self.spawn()
    }

    pub(super) fn kill(&self) -> Vec<Action> {
        self.members.iter().filter(|member| member.alive).map(|member| Action::Kill(member.id)).collect()
    }

    /// When it is to be started again: not before all its members are dead.
    pub(super) fn due(&self) -> Option<Duration> {
        match self.state {
            UnitState::Down { restart_at } if !self.alive() => Some(restart_at),
            _ => None,
        }
    }

    pub(super) fn bury(&mut self, child: ChildId) {
        for member in self.members.iter_mut().filter(|member| member.id == child) {
            (member.alive, member.listening) = (false, false);
        }
    }

    pub(super) fn listening(&mut self, child: ChildId) {
        self.members
            .iter_mut()
            .filter(|member| member.id == child)
            .for_each(|member| member.listening = true);
    }

    pub(super) fn remember(&mut self, now: Duration, window: Duration) {
        self.deaths.push_back(now);
        while self.deaths.front().is_some_and(|death| *death + window < now) {
            self.deaths.pop_front();
        }
    }
}
