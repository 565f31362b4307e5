use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use ChildId::Router;

const SHARD: ChildId = ChildId::Shard { rank: 0 };
const OTHER: ChildId = ChildId::Shard { rank: 1 };

fn policy() -> Policy {
    Policy {
        first_backoff: Duration::from_millis(500),
        longest_backoff: Duration::from_secs(10),
        max_deaths: 5,
        budget_window: Duration::from_secs(300),
        drain_timeout: Duration::from_secs(100),
        end_timeout: Duration::from_secs(5),
    }
}

/// A supervisor with its clock, spoken to in short words.
struct Scene {
    supervisor: Supervisor,
    now: Duration,
}

impl Scene {
    fn start(world_size: u32) -> (Self, String) {
        let mut scene = Self { supervisor: Supervisor::new(policy(), world_size), now: Duration::ZERO };
        let actions = scene.supervisor.start();
        (scene, words(&actions))
    }

    /// A running scene in which every rank listens.
    fn running(world_size: u32) -> Self {
        let (mut scene, _) = Self::start(world_size);
        for rank in 0..world_size {
            scene.input(Input::Event(ChildId::Shard { rank }, Event::Listening));
        }
        scene
    }

    fn input(&mut self, input: Input) -> String {
        words(&self.supervisor.handle(input, self.now))
    }

    fn dies(&mut self, child: ChildId, cause: Cause) -> String {
        self.input(Input::Exited(child, Death { cause, last_words: vec!["why".to_owned()] }))
    }

    fn after(&mut self, milliseconds: u64) -> &mut Self {
        self.now += Duration::from_millis(milliseconds);
        self
    }

    /// Lets time pass up to the next wake, and wakes.
    fn wake(&mut self) -> String {
        self.now = self.supervisor.next_wake().expect("something is due");
        self.input(Input::Wake)
    }
}

/// The actions in words; log lines in brackets up to their first semicolon.
fn words(actions: &[Action]) -> String {
    let word = |action: &Action| match action {
        Action::Spawn { child, restart } => format!("spawn {child} #{restart}"),
        Action::Terminate(child) => format!("term {child}"),
        Action::Kill(child) => format!("kill {child}"),
        Action::Log(line) => format!("[{}]", line.split([';', ':']).next().unwrap_or_default()),
        Action::Finish(verdict) => format!("finish {} {}", verdict.exit as u8, verdict.message),
    };
    actions.iter().map(word).collect::<Vec<_>>().join(", ").trim_end().to_owned()
}

const KILLED: Cause = Cause::Signal(9);

#[test]
fn everyone_starts_at_once() {
    assert_eq!(Scene::start(1).1, "spawn shard-0 #0, spawn router #0");
    assert_eq!(Scene::start(2).1, "spawn shard-0 #0, spawn shard-1 #0, spawn router #0");
}

#[test]
fn a_dead_shard_is_started_again_after_a_pause() {
    let mut scene = Scene::running(1);
    assert_eq!(scene.dies(SHARD, KILLED), "[shard-0 died (killed by SIGKILL)]");
    assert_eq!(scene.after(499).input(Input::Wake), "");
    assert_eq!(scene.wake(), "spawn shard-0 #1");
    assert_eq!(scene.now, Duration::from_millis(500));
    assert_eq!(scene.supervisor.next_wake(), None);
}

#[test]
fn the_ranks_of_a_replica_die_and_return_together() {
    let mut scene = Scene::running(2);
    assert_eq!(scene.dies(OTHER, Cause::Code(1)), "[shard-1 died (exit code 1)], kill shard-0");
    assert_eq!(scene.after(60_000).input(Input::Wake), "", "shard-0 is not dead yet");
    assert_eq!(scene.supervisor.next_wake(), None);
    assert_eq!(scene.dies(SHARD, KILLED), "");
    assert_eq!(scene.wake(), "spawn shard-0 #1, spawn shard-1 #1");
    assert_eq!(scene.supervisor.replica.deaths.len(), 1);
}

#[test]
fn a_dead_router_is_started_again_alone() {
    let mut scene = Scene::running(2);
    assert_eq!(scene.dies(Router, Cause::Code(0)), "[router died (exit code 0)]");
    assert_eq!(scene.wake(), "spawn router #1");
}

#[test]
fn pauses_grow_until_the_budget_is_spent() {
    let mut scene = Scene::running(1);
    for pause in [500, 1000, 2000, 4000] {
        let died = scene.now;
        scene.dies(SHARD, KILLED);
        scene.wake();
        assert_eq!((scene.now - died).as_millis(), pause);
    }
    assert_eq!(scene.dies(SHARD, KILLED), "term router");
    assert_eq!(
        scene.dies(Router, Cause::Code(0)),
        "finish 5 shard-0 died (killed by SIGKILL): 5 deaths within 5 minutes, giving up:\nwhy"
    );
}

#[test]
fn old_deaths_are_forgiven() {
    let mut scene = Scene::running(1);
    for _ in 0..20 {
        let died = scene.now;
        assert_eq!(scene.dies(SHARD, KILLED), "[shard-0 died (killed by SIGKILL)]");
        assert_eq!(scene.wake(), format!("spawn shard-0 #{}", scene.supervisor.replica.num_restarts));
        assert!(scene.now - died <= Duration::from_secs(4));
        scene.after(90_000);
    }
}

#[test]
fn the_longest_pause() {
    let pauses = [1, 2, 3, 4, 5, 6, 7, 100].map(|recent| policy().backoff(recent).as_millis());
    assert_eq!(pauses, [500, 1000, 2000, 4000, 8000, 10_000, 10_000, 10_000]);
}

#[test]
fn a_refusal_ends_everything_with_its_code_and_words() {
    for code in [2, 3, 4] {
        let mut scene = Scene::start(2).0;
        assert_eq!(scene.dies(OTHER, Cause::Code(code)), "term router, term shard-0");
        assert_eq!(scene.dies(SHARD, Cause::Code(1)), "");
        let message = format!("finish {code} shard-1 refused to run (exit code {code}):\nwhy");
        assert_eq!(scene.dies(Router, Cause::Code(0)), message);
    }
}

#[test]
fn a_refusal_counts_even_if_another_rank_died_of_it_first() {
    let mut scene = Scene::start(2).0;
    scene.dies(OTHER, Cause::Code(1));
    assert_eq!(scene.dies(SHARD, Cause::Code(3)), "term router");
    assert_eq!(scene.dies(Router, KILLED), "finish 3 shard-0 refused to run (exit code 3):\nwhy");
}

#[test]
fn a_stop_drains_the_router_before_the_shards_end() {
    let mut scene = Scene::running(2);
    assert_eq!(scene.input(Input::Stop), "[stopping], term router");
    assert_eq!(scene.after(60_000).input(Input::Wake), "");
    assert_eq!(scene.dies(Router, Cause::Code(0)), "term shard-0, term shard-1");
    assert_eq!(scene.dies(SHARD, Cause::Code(0)), "");
    assert_eq!(scene.dies(OTHER, Cause::Code(0)), "finish 0");
}

#[test]
fn a_second_stop_kills() {
    let mut scene = Scene::running(1);
    scene.input(Input::Stop);
    assert_eq!(scene.input(Input::Stop), "kill router, kill shard-0");
    assert_eq!(scene.input(Input::Stop), "");
    assert_eq!(scene.dies(Router, KILLED), "");
    assert_eq!(scene.dies(SHARD, KILLED), "finish 0");
}

#[test]
fn who_does_not_stop_in_time_is_killed() {
    let mut scene = Scene::running(1);
    scene.input(Input::Stop);
    assert_eq!(scene.wake(), "[the router did not stop in time], kill router");
    assert_eq!(scene.dies(Router, KILLED), "term shard-0");
    assert_eq!(scene.wake(), "[shard-0 did not end in time], kill shard-0");
    assert_eq!(scene.dies(SHARD, KILLED), "finish 1 the router did not stop cleanly (killed by SIGKILL)");
}

#[test]
fn nothing_is_started_again_once_stopping() {
    let mut scene = Scene::running(1);
    scene.dies(SHARD, KILLED);
    assert_eq!(scene.input(Input::Stop), "[stopping], term router");
    assert_eq!(scene.after(1000).input(Input::Wake), "");
    assert_eq!(scene.dies(Router, Cause::Code(0)), "finish 0");

    let mut scene = Scene::running(1);
    scene.dies(Router, KILLED);
    assert_eq!(scene.input(Input::Stop), "term shard-0");
    assert_eq!(scene.dies(SHARD, Cause::Code(0)), "finish 0");
}

#[test]
fn a_stalled_replica_is_killed_once_and_returns() {
    let mut scene = Scene::running(2);
    let stalled = || Input::Event(Router, Event::ShardStalled);
    assert_eq!(scene.input(stalled()), "[the replica makes no progress], kill shard-0, kill shard-1");
    assert_eq!(scene.input(stalled()), "");
    assert_eq!(scene.dies(SHARD, KILLED), "[shard-0 died (killed by SIGKILL)], kill shard-1");
    assert_eq!(scene.input(stalled()), "");
    assert_eq!(scene.dies(OTHER, KILLED), "");
    assert_eq!(scene.wake(), "spawn shard-0 #1, spawn shard-1 #1");
    assert_eq!(scene.input(stalled()), "", "they do not listen yet: the report is about those before");
}

#[test]
fn last_words() {
    let check = |lines: &[&str], expect: &str| {
        assert_eq!(quote(&lines.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>()), expect);
    };
    check(&[], "");
    check(&["", " "], "");
    check(&["a"], ":\na");
    check(&["log", "", "a", "b", ""], ":\na\nb");
    let many: Vec<_> = (0..30).map(|n| n.to_string()).collect();
    assert_eq!(quote(&many).lines().count(), 13);
}

/// A world in which children do as they are told, sooner or later, and also what they like.
#[derive(Default)]
struct World {
    alive: BTreeMap<ChildId, bool>, // true: told to end
    spawned: BTreeSet<ChildId>,
    stopping: bool,
    finished: bool,
}

impl World {
    fn apply(&mut self, actions: Vec<Action>) {
        for action in actions {
            assert!(!self.finished, "nothing comes after the end: {action:?}");
            match action {
                Action::Spawn { child, .. } => {
                    assert!(!self.stopping, "spawned while stopping");
                    assert!(self.alive.insert(child, false).is_none(), "{child} runs already");
                    if child != Router && self.spawned.contains(&child) {
                        let others = self.alive.keys().filter(|other| **other != Router && **other < child);
                        assert_eq!(others.count(), self.rank(child), "{child} returned without its peers");
                    }
                    self.spawned.insert(child);
                }
                Action::Terminate(child) | Action::Kill(child) => {
                    *self.alive.get_mut(&child).expect("only those who live are signalled") = true;
                }
                Action::Log(_) => {}
                Action::Finish(_) => {
                    assert!(self.alive.is_empty(), "left behind: {:?}", self.alive);
                    self.finished = true;
                }
            }
        }
    }

    fn rank(&self, child: ChildId) -> usize {
        if let ChildId::Shard { rank } = child { rank as usize } else { 0 }
    }
}

#[derive(Debug, Clone)]
enum Happening {
    Dies(usize, i32),
    Listens(usize),
    Stalls,
    Time(u64),
    Stop,
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        4 => (0..4usize, prop_oneof![Just(0), Just(1), Just(9), Just(3)]).prop_map(|(who, how)| Happening::Dies(who, how)),
        3 => (0..4usize).prop_map(Happening::Listens),
        1 => Just(Happening::Stalls),
        4 => (0..200_000u64).prop_map(Happening::Time),
        1 => Just(Happening::Stop),
    ]
}

proptest! {
    #[test]
    fn whatever_happens_it_ends_once_and_leaves_nobody(
        world_size in 1..4u32,
        happenings in prop::collection::vec(happening(), 0..60),
    ) {
        let mut supervisor = Supervisor::new(policy(), world_size);
        let mut world = World::default();
        let mut now = Duration::ZERO;
        world.apply(supervisor.start());
        for happening in happenings {
            if world.finished {
                break;
            }
            let nth = |who: usize| world.alive.keys().nth(who % world.alive.len().max(1)).copied();
            let input = match happening {
                Happening::Time(milliseconds) => {
                    now += Duration::from_millis(milliseconds);
                    Some(Input::Wake)
                }
                Happening::Dies(who, how) => nth(who).map(|child| {
                    let cause = if how == 9 { KILLED } else { Cause::Code(how) };
                    Input::Exited(child, Death { cause, last_words: Vec::new() })
                }),
                Happening::Listens(who) => nth(who).map(|child| Input::Event(child, Event::Listening)),
                Happening::Stalls => Some(Input::Event(Router, Event::ShardStalled)),
                Happening::Stop => {
                    world.stopping = true;
                    Some(Input::Stop)
                }
            };
            let Some(input) = input else { continue };
            if let Input::Exited(child, _) = &input {
                world.alive.remove(child);
            }
            world.apply(supervisor.handle(input, now));
        }
        // In the end it is told to stop, children obey, and time passes.
        world.stopping = true;
        if !world.finished {
            world.apply(supervisor.handle(Input::Stop, now));
        }
        for _ in 0..20 {
            let told: Vec<_> = world.alive.iter().filter(|(_, told)| **told).map(|(child, _)| *child).collect();
            for child in told {
                world.alive.remove(&child);
                let death = Death { cause: KILLED, last_words: Vec::new() };
                world.apply(supervisor.handle(Input::Exited(child, death), now));
            }
            if let Some(wake) = supervisor.next_wake() {
                now = now.max(wake);
                world.apply(supervisor.handle(Input::Wake, now));
            }
        }
        prop_assert!(world.finished);
    }
}
