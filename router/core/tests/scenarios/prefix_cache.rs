//! Stories: what sequences find in the cache, share at once, and leave behind.

use super::*;

// === The prefix cache ===

#[test]
fn ten_requests_on_one_new_prefix_compute_it_once() {
    let config = SchedulerConfig { num_blocks: 400, max_rows: 16, max_context: 2000, ..CONFIG };
    let shared = prompt(0, 1000);
    let requests = (0..10).map(|seed| request([&shared[..], &prompt(seed + 1, 10)].concat(), 5));
    let mut world = world_of(config, requests);
    world.run();
    assert_complete(&world);
    assert_eq!(cached(&world), [0, 1000, 1000, 1000, 1000, 1000, 1000, 1000, 1000, 1000]);
    assert_eq!(world.scheduler.stats().prefix_miss_tokens, 1010 + 9 * 10);
}

#[test]
fn followers_share_a_block_that_the_leader_fills_with_other_tokens() {
    let shared = prompt(0, 102);
    let requests = (0..2).map(|seed| request([&shared[..], &prompt(seed + 1, 50)].concat(), 5));
    let mut world = world_of(CONFIG, requests);
    world.run();
    assert_complete(&world);
    assert_eq!(cached(&world), [0, 102], "block 25 holds two shared tokens; it is copied");
}

#[test]
fn followers_do_not_wait_for_a_block_that_the_leader_leaves_open() {
    let leader = prompt(0, 102);
    let mut world = world_of(CONFIG, [request(leader.clone(), 50)]);
    world.plan();
    world.submit(request([&leader[..101], &prompt(1, 9)].concat(), 5)).unwrap();
    world.run();
    assert_complete(&world);
    assert_eq!(cached(&world), [0, 100], "the leader's prompt fills 25 blocks");
}

#[test]
fn followers_go_on_when_the_leader_is_cancelled() {
    let shared = prompt(0, 300);
    let requests = (0..3).map(|seed| request([&shared[..], &prompt(seed + 1, 10)].concat(), 5));
    let mut world = world_of(CONFIG, requests);
    world.plan();
    world.plan();
    let leader = *world.outcomes.keys().next().unwrap();
    world.cancel(leader);
    world.run();
    let follower = world.outcomes.values().nth(1).unwrap();
    assert_eq!(follower.cached_tokens, Some(128), "both chunks in flight are of use");
    assert_eq!(world.outcomes.values().nth(2).unwrap().cached_tokens, Some(300));
}

#[test]
fn nobody_waits_for_a_sequence_of_lower_priority() {
    let config = SchedulerConfig { num_blocks: 200, ..CONFIG };
    let mut world = world_of(config, [Request { priority: -1, ..request(prompt(0, 300), 5) }]);
    world.plan();
    world.submit(request(prompt(0, 200), 5)).unwrap();
    assert_eq!(rows(world.plan().unwrap()), [(0, 64)]);
}

#[test]
fn the_next_turn_costs_its_new_tokens() {
    let mut world = world_of(CONFIG, [request(prompt(0, 50), 23)]);
    let mut turn = prompt(0, 50);
    for seed in 1..5 {
        world.run();
        turn.extend_from_slice(&world.outcomes.values().next_back().unwrap().tokens);
        // The last token of a turn was sampled but never computed.
        let num_cached = turn.len() as u32 - 1;
        turn.extend(prompt(seed, 7));
        world.submit(request(turn.clone(), 23)).unwrap();
        world.run();
        assert_eq!(cached(&world).last(), Some(&num_cached));
    }
    assert_complete(&world);
}

#[test]
fn a_prompt_that_ends_with_a_block_is_never_reused_whole() {
    let mut world = world_of(CONFIG, [request(prompt(0, 40), 1)]);
    world.run();
    world.submit(request(prompt(0, 40), 1)).unwrap();
    let plan = world.plan().unwrap();
    assert_eq!((rows(plan), plan.block_copies.len()), (vec![(39, 1)], 1));
    world.run();
    assert_complete(&world);
}

#[test]
fn twins_give_their_duplicates_up() {
    let mut world = world_of(CONFIG, [request(prompt(0, 10), 60), request(prompt(0, 10), 60)]);
    while world.scheduler.stats().decoding < 2 {
        world.plan();
        world.commit();
    }
    for _ in 0..40 {
        world.plan();
        world.commit();
    }
    let held = world.scheduler.stats().held_blocks;
    assert!(held <= 18, "about 16 blocks are one text's and not two's, but {held} are held");
    world.run();
    assert_complete(&world);
}

#[test]
fn namespaces_share_nothing() {
    let other = || Request {
        namespace: Namespace { tenant: "others".into(), ..Namespace::default() },
        ..request(prompt(0, 50), 5)
    };
    let mut world = world_of(CONFIG, [request(prompt(0, 50), 5), other()]);
    assert_eq!(world.plan().unwrap().rows.len(), 2, "neither waits for the other");
    world.run();
    world.submit(other()).unwrap();
    world.run();
    assert_eq!(cached(&world), [0, 0, 49]);
}

#[test]
fn without_prefix_cache_nothing_is_kept() {
    let config = SchedulerConfig { prefix_cache: false, ..CONFIG };
    let mut world = world_of(config, [request(prompt(0, 50), 5), request(prompt(0, 50), 5)]);
    world.run();
    assert_complete(&world);
    assert_eq!(cached(&world), [0, 0]);
    assert_eq!(world.scheduler.stats().free_blocks, 100);
}

#[test]
fn cancelled_work_stays_as_cache() {
    let mut world = world_of(CONFIG, [request(prompt(0, 300), 5)]);
    world.plan();
    world.commit();
    let id = *world.outcomes.keys().next().unwrap();
    world.cancel(id);
    assert_eq!(world.scheduler.stats().held_blocks, 0);
    world.submit(request(prompt(0, 300), 5)).unwrap();
    world.run();
    assert_eq!(world.outcomes.values().next_back().unwrap().cached_tokens, Some(64));
}

#[test]
fn a_match_is_explained() {
    let mut world = world_of(CONFIG, [request(prompt(0, 50), 1)]);
    world.run();
    let check = |tokens: &[TokenId], num_cached_tokens, end| {
        let expected = Explanation { num_tokens: tokens.len(), num_cached_tokens, end };
        assert_eq!(world.scheduler.explain(&Namespace::default(), tokens), expected);
    };
    let turn = prompt(0, 50);
    let with = |position: usize, token| [&turn[..position], &[token], &turn[position + 1..]].concat();
    check(&turn, 49, MatchEnd::Complete);
    check(&turn[..30], 29, MatchEnd::Complete);
    check(&[&turn[..], &[7]].concat(), 50, MatchEnd::Ends);
    check(&with(47, 7), 47, MatchEnd::Diverges { cached: turn[47..].to_vec() });
    check(&with(20, 7), 20, MatchEnd::Diverges { cached: turn[20..].to_vec() });
    check(&with(0, 7), 0, MatchEnd::Diverges { cached: turn[..32].to_vec() });
    let other = Namespace { salt: "other".into(), ..Namespace::default() };
    assert_eq!(world.scheduler.explain(&other, &turn).end, MatchEnd::EmptyNamespace);
    let usage = NamespaceUsage { namespace: Namespace::default(), num_blocks: 13 };
    assert_eq!(world.scheduler.usage(), [usage]);
    let off = World::new(SchedulerConfig { prefix_cache: false, ..CONFIG });
    assert_eq!(off.scheduler.explain(&Namespace::default(), &turn).end, MatchEnd::Disabled);
}

// === Sharing at once ===

#[test]
fn ten_simultaneous_requests_share_a_prefix_of_20_000_tokens() {
    let config = SchedulerConfig {
        num_blocks: 2000,
        block_size: 16,
        max_rows: 16,
        max_step_tokens: 2048,
        max_context: 30_000,
        ..CONFIG
    };
    let shared = prompt(0, 20_000);
    let requests = (0..10).map(|seed| request([&shared[..], &[seed]].concat(), 2));
    let mut world = world_of(config, requests);
    world.run();
    assert_complete(&world);
    let stats = world.scheduler.stats();
    assert_eq!((stats.prefix_miss_tokens, stats.prefix_hit_tokens), (20_001 + 9, 9 * 20_000));
}

#[test]
fn several_samples_of_one_prompt_compute_it_once() {
    let sample = |seed| {
        // With log-probabilities too: those of generated tokens need nothing of the prompt but its last position.
        let sampling = Sampling { temperature: 1.0, seed, num_top_logprobs: 5, ..Sampling::default() };
        Request { sampling: sampling.into(), ..request(prompt(0, 203), 7) }
    };
    let mut world = world_of(CONFIG, (0..4).map(sample));
    world.run();
    assert_complete(&world);
    let stats = world.scheduler.stats();
    // The 203rd token is computed by each, and the two before it stand in a block that the first one has not filled.
    assert_eq!(stats.prefix_miss_tokens, 203 + 3 * 3);
}

// === Work is never lost ===

#[test]
fn a_preempted_sequence_goes_on_from_its_blocks() {
    let config = SchedulerConfig { max_rows: 1, ..CONFIG };
    let mut world = world_of(config, [Request { priority: -1, ..request(prompt(0, 60), 20) }]);
    for _ in 0..10 {
        world.plan();
        world.commit();
    }
    world.submit(request(prompt(1, 10), 5)).unwrap();
    world.run();
    assert_complete(&world);
    let stats = world.scheduler.stats();
    assert_eq!(
        (stats.preemptions, stats.recomputed_tokens),
        (1, 1),
        "the last token alone is computed again"
    );
}

#[test]
fn a_cancelled_decode_leaves_its_tokens() {
    let mut world = world_of(CONFIG, [request(prompt(0, 30), 100)]);
    for _ in 0..20 {
        world.plan();
        world.commit();
    }
    let (&id, outcome) = world.outcomes.iter().next().unwrap();
    let so_far = [&prompt(0, 30)[..], &outcome.tokens].concat();
    world.cancel(id);
    world.run();
    world.submit(request(so_far.clone(), 5)).unwrap();
    world.run();
    assert_eq!(world.outcomes.values().next_back().unwrap().cached_tokens, Some(so_far.len() as u32 - 1));
}
