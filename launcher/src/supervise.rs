//! Who runs, who is started again and when, and in which order all of it ends: a state machine without processes, threads
//! or clocks. `run` feeds it inputs and carries out its actions.
//!
//! ```text
//!   Running ──Stop──► Draining ──router gone──► Ending ──all gone──► Finish
//!      │  ▲              │ timeout: kill router    │ timeout: kill all
//!      │  └ restarts     └────── second Stop: kill everything ──────┘
//!      └──a child refuses (exit 2, 3, 4), or the budget of deaths is spent──► Ending
//! ```
//!
//! There are two units: the router, and the replica, whose ranks live and die together. A unit that loses a member loses
//! the others too, waits for their deaths and then a moment (longer with every recent death), and is started afresh.
//!
//! What must hold: a child is spawned only when all members of its unit are dead; nothing is spawned once stopping has
//! begun; `Finish` comes once, when nobody is alive.

mod unit;

use std::time::Duration;

use crate::child::{ChildId, Event};
use crate::error::Exit;
use crate::process::{Cause, Death};
use unit::{Unit, UnitState};

/// The numbers of supervision.
#[derive(Debug, Clone)]
pub(crate) struct Policy {
    /// The pause before a restart after the first recent death; it doubles with each further one.
    pub(crate) first_backoff: Duration,
    pub(crate) longest_backoff: Duration,
    /// This many deaths of a unit within `budget_window` are too many.
    pub(crate) max_deaths: usize,
    pub(crate) budget_window: Duration,
    /// How long the router may take to finish what is in flight.
    pub(crate) drain_timeout: Duration,
    /// How long a child may take to end when nothing is in flight.
    pub(crate) end_timeout: Duration,
}

/// What has happened.
#[derive(Debug, Clone)]
pub(crate) enum Input {
    /// A child has died, and has been reaped.
    Exited(ChildId, Death),
    /// A child reports.
    Event(ChildId, Event),
    /// The launcher was told to stop (SIGTERM, SIGINT).
    Stop,
    /// [`Supervisor::next_wake`] has come.
    Wake,
}

/// What is to be done now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// Start a child; `restart` counts its unit's restarts.
    Spawn { child: ChildId, restart: u32 },
    /// Send SIGTERM.
    Terminate(ChildId),
    /// Send SIGKILL, to its whole process group.
    Kill(ChildId),
    /// Tell the person who reads the log.
    Log(String),
    /// Everyone is dead: end with this.
    Finish(Verdict),
}

/// How it all ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) exit: Exit,
    /// For stderr; empty after a clean stop.
    pub(crate) message: String,
}

/// The state of everything that runs. All times are counted from one moment that the caller chooses.
#[derive(Debug)]
pub(crate) struct Supervisor {
    policy: Policy,
    router: Unit,
    replica: Unit,
    phase: Phase,
    verdict: Verdict,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Running,
    /// The router finishes what is in flight.
    Draining {
        until: Duration,
    },
    /// Everyone has been told to end.
    Ending {
        until: Duration,
    },
    /// Everyone has been killed.
    Killed,
    Finished,
}

// === impl Supervisor ===

impl Supervisor {
    /// A router and a replica of `world_size` ranks, none of which runs yet.
    pub(crate) fn new(policy: Policy, world_size: u32) -> Self {
        let ranks = (0..world_size).map(|rank| ChildId::Shard { rank }).collect();
        Self {
            policy,
            router: Unit::new("the router", vec![ChildId::Router]),
            replica: Unit::new(if world_size == 1 { "the shard" } else { "all ranks of the replica" }, ranks),
            phase: Phase::Running,
            verdict: Verdict { exit: Exit::Clean, message: String::new() },
        }
    }

    /// Starts everyone. The router comes with the shards, so that `/health` answers while they load.
    pub(crate) fn start(&mut self) -> Vec<Action> {
        let mut actions = self.replica.spawn();
        actions.extend(self.router.spawn());
        actions
    }

    /// Takes one input in at `now`; the actions are to be carried out in order.
    pub(crate) fn handle(&mut self, input: Input, now: Duration) -> Vec<Action> {
        match input {
            Input::Exited(child, death) => self.exited(child, &death, now),
            Input::Event(child, event) => self.event(child, event),
            Input::Stop => self.stop(now),
            Input::Wake => self.wake(now),
        }
    }

    /// When [`Input::Wake`] is due, if no other input comes first.
    pub(crate) fn next_wake(&self) -> Option<Duration> {
        match self.phase {
            Phase::Running => [&self.router, &self.replica].into_iter().filter_map(Unit::due).min(),
            Phase::Draining { until } | Phase::Ending { until } => Some(until),
            Phase::Killed | Phase::Finished => None,
        }
    }

    /// Whether every rank of the replica listens.
    pub(crate) fn replica_is_listening(&self) -> bool {
        self.replica.members.iter().all(|member| member.alive && member.listening)
    }

    fn exited(&mut self, child: ChildId, death: &Death, now: Duration) -> Vec<Action> {
        self.unit(child).bury(child);
        match self.phase {
            Phase::Running => self.died(child, death, now),
            Phase::Draining { .. } if child == ChildId::Router => {
                if death.cause != Cause::Code(0) {
                    self.blame(
                        Exit::Unexpected,
                        format!("the router did not stop cleanly ({})", death.cause),
                    );
                }
                self.end(now, self.policy.end_timeout)
            }
            Phase::Draining { .. } => {
                vec![Action::Log(format!("{child} ended while draining ({})", death.cause))]
            }
            Phase::Ending { .. } | Phase::Killed => self.finish_if_alone(),
            Phase::Finished => Vec::new(),
        }
    }

    /// A death that nobody asked for.
    fn died(&mut self, child: ChildId, death: &Death, now: Duration) -> Vec<Action> {
        if let Cause::Code(code) = death.cause
            && let Some(exit) = Exit::refusal(code)
        {
            self.blame(exit, paragraph(child, death));
            return self.end(now, self.policy.end_timeout);
        }
        let policy = self.policy.clone();
        let unit = self.unit(child);
        if unit.state != UnitState::Up {
            return Vec::new(); // one of those that were killed with the first
        }
        unit.remember(now, policy.budget_window);
        let recent = unit.deaths.len();
        let what = format!("{child} died ({})", death.cause);
        if recent >= policy.max_deaths {
            let minutes = policy.budget_window.as_secs() / 60;
            let message = format!(
                "{what}: {recent} deaths within {minutes} minutes, giving up{}",
                quote(&death.last_words)
            );
            self.blame(Exit::Exhausted, message);
            return self.end(now, policy.end_timeout);
        }
        let backoff = policy.backoff(recent);
        unit.state = UnitState::Down { restart_at: now + backoff };
        let max_restarts = policy.max_deaths - 1;
        let plan = format!(
            "{what}; starting {} again in {:.1} s (restart {recent} of {max_restarts})",
            unit.name,
            backoff.as_secs_f64()
        );
        let mut actions = vec![Action::Log(plan)];
        actions.extend(unit.kill());
        actions
    }

    fn event(&mut self, child: ChildId, event: Event) -> Vec<Action> {
        match event {
            Event::Listening => {
                self.unit(child).listening(child);
                Vec::new()
            }
            Event::ShardLost { message } => {
                vec![Action::Log(format!("the router lost its replica: {message}"))]
            }
            // A report about ranks that are gone, or that are not up yet, is a late one.
            Event::ShardStalled if self.phase == Phase::Running && self.replica_is_listening() => {
                let mut actions =
                    vec![Action::Log("the replica makes no progress: killing its ranks".to_owned())];
                actions.extend(self.replica.kill());
                // No longer up, so that a second report of the same stall finds nothing; their deaths do the rest.
                self.replica.members.iter_mut().for_each(|member| member.listening = false);
                actions
            }
            Event::Ready(_) | Event::Phase { .. } | Event::Model { .. } | Event::ShardStalled => Vec::new(),
        }
    }

    fn stop(&mut self, now: Duration) -> Vec<Action> {
        match self.phase {
            Phase::Running if self.router.alive() => {
                self.phase = Phase::Draining { until: now + self.policy.drain_timeout };
                vec![
                    Action::Log(
                        "stopping: requests in flight may finish; a second signal ends them".to_owned(),
                    ),
                    Action::Terminate(ChildId::Router),
                ]
            }
            Phase::Running => self.end(now, self.policy.end_timeout),
            Phase::Draining { .. } | Phase::Ending { .. } => self.kill_all(),
            Phase::Killed | Phase::Finished => Vec::new(),
        }
    }

    fn wake(&mut self, now: Duration) -> Vec<Action> {
        match self.phase {
            Phase::Running => {
                let due = [&mut self.replica, &mut self.router].into_iter();
                due.filter(|unit| unit.due().is_some_and(|at| at <= now)).flat_map(Unit::respawn).collect()
            }
            Phase::Draining { until } if until <= now => {
                // Its death leads on to the end of the shards; it will not take long.
                self.phase = Phase::Draining { until: now + self.policy.drain_timeout };
                vec![Action::Log("the router did not stop in time: killing it".to_owned())]
                    .into_iter()
                    .chain(self.router.kill())
                    .collect()
            }
            Phase::Ending { until } if until <= now => {
                let late =
                    self.alive().map(|child| Action::Log(format!("{child} did not end in time: killing it")));
                let mut actions: Vec<_> = late.collect();
                actions.extend(self.kill_all());
                actions
            }
            _ => Vec::new(),
        }
    }

    /// Tells everyone who is left to end, within `timeout`.
    fn end(&mut self, now: Duration, timeout: Duration) -> Vec<Action> {
        self.phase = Phase::Ending { until: now + timeout };
        let mut actions: Vec<_> = self.alive().map(Action::Terminate).collect();
        actions.extend(self.finish_if_alone());
        actions
    }

    fn kill_all(&mut self) -> Vec<Action> {
        self.phase = Phase::Killed;
        let mut actions: Vec<_> = self.alive().map(Action::Kill).collect();
        actions.extend(self.finish_if_alone());
        actions
    }

    fn finish_if_alone(&mut self) -> Vec<Action> {
        if self.alive().next().is_some() {
            return Vec::new();
        }
        self.phase = Phase::Finished;
        vec![Action::Finish(self.verdict.clone())]
    }

    /// The first cause is the one that counts.
    fn blame(&mut self, exit: Exit, message: String) {
        if self.verdict.exit == Exit::Clean {
            self.verdict = Verdict { exit, message };
        }
    }

    fn alive(&self) -> impl Iterator<Item = ChildId> {
        let members = self.router.members.iter().chain(&self.replica.members);
        members.filter(|member| member.alive).map(|member| member.id)
    }

    fn unit(&mut self, child: ChildId) -> &mut Unit {
        match child {
            ChildId::Router => &mut self.router,
            ChildId::Shard { .. } | ChildId::Fetch => &mut self.replica,
        }
    }
}

// === impl Policy ===

impl Policy {
    /// The pause before the restart that follows the `recent`th death.
    fn backoff(&self, recent: usize) -> Duration {
        let doublings = u32::try_from(recent.saturating_sub(1)).unwrap_or(u32::MAX).min(16);
        self.first_backoff.saturating_mul(1 << doublings).min(self.longest_backoff)
    }
}

/// What a child that refused to run said last: it knows best what is wrong.
fn paragraph(child: ChildId, death: &Death) -> String {
    format!("{child} refused to run ({}){}", death.cause, quote(&death.last_words))
}

/// The last paragraph of a child's stderr, as an appendix to a sentence.
pub(crate) fn quote(last_words: &[String]) -> String {
    let end = last_words.iter().rposition(|line| !line.trim().is_empty()).map_or(0, |last| last + 1);
    let start =
        last_words[..end].iter().rposition(|line| line.trim().is_empty()).map_or(0, |blank| blank + 1);
    let start = start.max(end.saturating_sub(12));
    if start == end { String::new() } else { format!(":\n{}", last_words[start..end].join("\n")) }
}

#[cfg(test)]
mod tests;
