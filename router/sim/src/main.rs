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

/// A turn that continues another: the first one of a session has to be computed anyway.
fn is_later(turn: &TurnRecord) -> bool {
    turn.turn > 0
}

fn main() {
    title("Eviction: agents on one replica, later turns");
    for num_sessions in [4, 5, 6, 8] {
        for eviction in [Eviction::Lru, Eviction::CostAware] {
            let mut cluster = cluster(1);
            cluster.scheduler.eviction = eviction;
            let report = Report::new(&simulate(&cluster, &agents(num_sessions, 12, 20_000_000, 1)), is_later);
            println!("| {num_sessions} agents, {eviction:?} {report}");
        }
    }
    title("Eviction: three agents beside documents that are read once, the agents' later turns");
    for eviction in [Eviction::Lru, Eviction::CostAware] {
        let mut cluster = cluster(1);
        cluster.scheduler.eviction = eviction;
        let sessions = [agents(3, 30, 20_000_000, 1), scans(60, 20_000, 3_000_000, 2)].concat();
        println!("| {eviction:?} {}", Report::new(&simulate(&cluster, &sessions), is_later));
    }
    title("Chunks: chats beside cold prompts of 200,000 tokens, the chats");
    let sessions: Vec<Session> = [scans(4, 200_000, 30_000_000, 1), chats(60, 4, 1_000_000, 2)].concat();
    for target_itl_us in [25_000, 50_000, 100_000, u64::MAX] {
        let mut cluster = cluster(1);
        cluster.scheduler.target_itl_us = target_itl_us;
        let turns = simulate(&cluster, &sessions);
        let name = if target_itl_us == u64::MAX {
            "no target".into()
        } else {
            format!("{} ms", target_itl_us / 1000)
        };
        println!("| {name}: chats {}", Report::new(&turns, |turn| turn.session >= 4));
        println!("| {name}: long prompts {}", Report::new(&turns, |turn| turn.session < 4));
    }
    title("Routing: 128 agents on 32 replicas, all turns");
    for routing in [Routing::RoundRobin, Routing::LeastLoaded, Routing::Sticky, Routing::PrefixAffinity] {
        let cluster = Cluster { routing, ..cluster(32) };
        let report = Report::new(&simulate(&cluster, &agents(128, 6, 500_000, 1)), |_| true);
        println!("| {routing:?} {report}");
    }
}
