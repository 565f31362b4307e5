//! Prints comparisons of policies: `cargo run --release -p anaphora-sim`.
#![expect(clippy::print_stdout, reason = "the result")]

use std::collections::BTreeMap;

use anaphora_core::{Eviction, SchedulerConfig};
use anaphora_sim::{
    device::H200_8B,
    report::{COLUMNS, Report, TurnRecord},
    routing::Routing,
    trace::{Session, agents, chats, scans},
    world::{Cluster, simulate},
};

/// Four distinct sessions of 200,000 tokens fit, and a bit: what an H200 has left beside an 8B model.
const POOL_TOKENS: u32 = 890_000;

fn cluster(num_replicas: usize) -> Cluster {
    let scheduler = SchedulerConfig {
        num_blocks: POOL_TOKENS / 16,
        block_size: 16,
        max_rows: 256,
        max_step_tokens: 4096,
        max_context: 262_144,
        max_in_flight: 2,
        prefix_cache: true,
        target_itl_us: 50_000,
        max_queue_time_us: u64::MAX,
        eviction: Eviction::Lru,
        quotas: BTreeMap::new(),
    };
    Cluster { num_replicas, scheduler, device: H200_8B, routing: Routing::Sticky }
}

fn title(words: &str) {
    println!("\n## {words}\n\n| | {COLUMNS} |\n| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |");
}

/// One row: the turns that `counts`, when `cluster` serves `sessions`.
fn row(name: &str, cluster: &Cluster, sessions: &[Session], counts: impl Fn(&TurnRecord) -> bool) {
    println!("| {name} {}", Report::new(&simulate(cluster, sessions), counts));
}

/// A turn that continues another: the first one of a session has to be computed anyway.
fn is_later(turn: &TurnRecord) -> bool {
    turn.turn > 0
}

fn with_eviction(num_replicas: usize, eviction: Eviction) -> Cluster {
    let mut cluster = cluster(num_replicas);
    cluster.scheduler.eviction = eviction;
    cluster
}

fn with_target(target_itl_us: u64) -> (String, Cluster) {
    let mut cluster = cluster(1);
    cluster.scheduler.target_itl_us = target_itl_us;
    let name = if target_itl_us == u64::MAX { "off".into() } else { format!("{} ms", target_itl_us / 1000) };
    (name, cluster)
}

const EVICTIONS: [Eviction; 2] = [Eviction::Lru, Eviction::CostAware];
const TARGETS_US: [u64; 4] = [25_000, 50_000, 100_000, u64::MAX];

fn main() {
    title("Eviction: 200 agents of 12 turns on one replica");
    for interval_s in [30, 40, 60, 90] {
        let sessions = agents(200, 12, interval_s * 1_000_000, 1);
        for eviction in EVICTIONS {
            let cluster = with_eviction(1, eviction);
            let name = format!("one every {interval_s} s, {eviction:?}");
            row(&format!("{name}: first turns"), &cluster, &sessions, |turn| !is_later(turn));
            row(&format!("{name}: later turns"), &cluster, &sessions, is_later);
        }
    }
    title(
        "Eviction: 3 agents that pause for a minute beside 300 documents of 20,000 tokens, the agents' later turns",
    );
    let mut sessions = agents(3, 12, 20_000_000, 1);
    sessions.iter_mut().for_each(|session| session.think_us = 60_000_000);
    sessions.extend(scans(300, 20_000, 3_000_000, 2));
    for eviction in EVICTIONS {
        let is_agents = |turn: &TurnRecord| turn.session < 3 && is_later(turn);
        row(&format!("{eviction:?}"), &with_eviction(1, eviction), &sessions, is_agents);
    }
    title("Target ITL: 240 chats beside 16 cold prompts of 200,000 tokens on one replica");
    let sessions = [scans(16, 200_000, 30_000_000, 1), chats(240, 4, 2_000_000, 2)].concat();
    for (name, cluster) in TARGETS_US.map(with_target) {
        row(&format!("{name}: chats"), &cluster, &sessions, |turn| turn.session >= 16);
        row(&format!("{name}: long prompts"), &cluster, &sessions, |turn| turn.session < 16);
    }
    title("Target ITL: 200 agents of 12 turns on one replica, one every 60 s");
    let sessions = agents(200, 12, 60_000_000, 1);
    for (name, cluster) in TARGETS_US.map(with_target) {
        row(&format!("{name}: first turns"), &cluster, &sessions, |turn| !is_later(turn));
        row(&format!("{name}: later turns"), &cluster, &sessions, is_later);
    }
    for (num_agents, words) in [(192, "they fit"), (320, "they do not fit")] {
        title(&format!("Routing: {num_agents} agents of 6 turns on 64 replicas, later turns; {words}"));
        let sessions = agents(num_agents, 6, 250_000, 1);
        for routing in [
            Routing::RoundRobin,
            Routing::Random,
            Routing::LeastLoaded,
            Routing::Sticky,
            Routing::PrefixAffinity,
        ] {
            row(&format!("{routing:?}"), &Cluster { routing, ..cluster(64) }, &sessions, is_later);
        }
    }
}
