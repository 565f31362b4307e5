//! What a few small simulations come to; a policy that changes shows here.

use std::collections::BTreeMap;

use anaphora_core::{Eviction, SchedulerConfig};
use anaphora_sim::{
    device::H200_8B,
    report::Report,
    routing::Routing,
    trace::{Session, Turn, chats, scans},
    world::{Cluster, simulate},
};

fn cluster(num_replicas: usize, routing: Routing) -> Cluster {
    let scheduler = SchedulerConfig {
        num_blocks: 2_000,
        block_size: 16,
        max_rows: 16,
        max_step_tokens: 2048,
        max_context: 32_768,
        max_in_flight: 2,
        prefix_cache: true,
        target_itl_us: 25_000,
        max_queue_time_us: u64::MAX,
        eviction: Eviction::Lru,
        quotas: BTreeMap::new(),
    };
    Cluster { num_replicas, scheduler, device: H200_8B, routing }
}

/// Small agents: 6,000 tokens, then three turns of 100.
fn small_agents(num_sessions: u64) -> Vec<Session> {
    let turns: Vec<Turn> =
        [6_000, 100, 100, 100].map(|num| Turn { num_new_tokens: num, num_output_tokens: 20 }).to_vec();
    let session = |n| Session {
        start_us: 50_000 * n,
        think_us: 500_000,
        group: 0,
        num_shared_tokens: 500,
        turns: turns.clone(),
    };
    (0..num_sessions).map(session).collect()
}

#[test]
fn agents_that_fit_pay_for_their_new_tokens() {
    let turns = simulate(&cluster(1, Routing::Sticky), &small_agents(4));
    assert_eq!(turns.len(), 16);
    let later = Report::new(&turns, |turn| turn.turn > 0);
    assert!(later.hit_rate > 0.98, "{later}");
    insta::assert_snapshot!(later);
}

#[test]
fn agents_that_do_not_fit_take_turns_instead_of_each_others_cache() {
    let mut agents = small_agents(24);
    for agent in &mut agents {
        // They come back sooner than their prefix could be computed again.
        (agent.start_us, agent.think_us) = (4 * agent.start_us, 20_000);
        agent.turns.extend_from_within(1..);
    }
    let turns = simulate(&cluster(1, Routing::Sticky), &agents);
    let later = Report::new(&turns, |turn| turn.turn > 0);
    assert!(later.hit_rate > 0.8, "{later}");
    insta::assert_snapshot!(later);
}

#[test]
fn sessions_stay_with_their_cache() {
    let hit_rate = |routing| {
        // No multiple of the replicas, or sessions that take turns would stay where they are by taking turns.
        let turns = simulate(&cluster(4, routing), &small_agents(11));
        Report::new(&turns, |turn| turn.turn > 0).hit_rate
    };
    let [sticky, affinity] = [Routing::Sticky, Routing::PrefixAffinity].map(hit_rate);
    assert!(sticky > 0.98 && affinity > 0.98, "{sticky} {affinity}");
    // Elsewhere a turn finds no more than what all share, and one in four comes back by chance.
    let [round_robin, random] = [Routing::RoundRobin, Routing::Random].map(hit_rate);
    assert!(round_robin < 0.5 && random < 0.5, "{round_robin} {random}");
}

#[test]
fn chats_keep_their_pace_beside_a_long_prompt() {
    let mut cluster = cluster(1, Routing::Sticky);
    cluster.scheduler.num_blocks = 4_000;
    let sessions = [scans(1, 30_000, 600_000, 1), chats(6, 1, 200_000, 2)].concat();
    let chats = |cluster: &Cluster| Report::new(&simulate(cluster, &sessions), |turn| turn.session > 0);
    let with_target = chats(&cluster);
    assert!(with_target.itl_ms.1 < 1.1 * 25.0, "{with_target}");
    insta::assert_snapshot!(with_target);
    cluster.scheduler.target_itl_us = u64::MAX;
    let without = chats(&cluster);
    assert!(without.itl_ms.1 > 1.5 * 25.0, "without a target they wait for whole steps: {without}");
}

#[test]
fn equal_inputs_give_equal_reports() {
    let report = || Report::new(&simulate(&cluster(2, Routing::PrefixAffinity), &small_agents(5)), |_| true);
    assert_eq!(report(), report());
}
