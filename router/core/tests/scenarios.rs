//! Small stories: what a scheduler does in a situation that has a name. Every step also passes the checks of a [`World`].

use anaphora_core::{
    testing::{End, World, expected_tokens},
    *,
};

const CONFIG: SchedulerConfig = SchedulerConfig {
    num_blocks: 100,
    block_size: 4,
    max_rows: 8,
    max_step_tokens: 64,
    max_context: 400,
    max_in_flight: 2,
    prefix_cache: true,
};

/// A prompt that shares nothing with one of another `seed`.
fn prompt(seed: u32, len: u32) -> Vec<TokenId> {
    (0..len).map(|i| 1000 * (seed + 1) + i).collect()
}

fn request(prompt: Vec<TokenId>, max_new_tokens: u32) -> Request {
    Request {
        namespace: Namespace::default(),
        prompt,
        max_new_tokens,
        stop_tokens: [].into(),
        sampling: Sampling::default().into(),
        priority: 0,
    }
}

fn world_of(config: SchedulerConfig, requests: impl IntoIterator<Item = Request>) -> World {
    let mut world = World::new(config);
    for request in requests {
        world.submit(request).expect("it fits");
    }
    world
}

/// Position and length of each row of a plan.
fn rows(plan: &StepPlan) -> Vec<(u32, usize)> {
    plan.rows.iter().map(|row| (row.position, row.input.num_tokens())).collect()
}

/// How many tokens of its prompt each sequence found in the cache.
fn cached(world: &World) -> Vec<u32> {
    world.outcomes.values().map(|outcome| outcome.cached_tokens.expect("it started")).collect()
}

/// All sequences ended by themselves, with the right tokens.
fn assert_complete(world: &World) {
    for outcome in world.outcomes.values() {
        let (tokens, reason) = expected_tokens(&outcome.request);
        assert_eq!((&outcome.tokens, outcome.end), (&tokens, Some(End::Finished(reason))));
    }
}

// === Batching ===

#[test]
fn decodes_come_first_and_prefills_share_the_rest() {
    let mut world = world_of(CONFIG, [request(prompt(0, 5), 50)]);
    assert_eq!(rows(world.plan().unwrap()), [(0, 5)]);
    world.submit(request(prompt(1, 200), 1)).unwrap();
    world.submit(request(prompt(2, 9), 1)).unwrap();
    assert_eq!(
        rows(world.plan().unwrap()),
        [(5, 1), (0, 54), (0, 9)],
        "one decode, and a short prompt beside a long one"
    );
    world.commit();
    assert_eq!(
        rows(world.plan().unwrap()),
        [(6, 1), (54, 63)],
        "alone, a prefill has all that decodes leave"
    );
    world.run();
    assert_complete(&world);
}

#[test]
fn steps_are_planned_before_tokens_are_known() {
    let mut world = world_of(CONFIG, [request(prompt(0, 5), 3)]);
    let first = world.plan().unwrap();
    assert!(first.rows[0].sample && first.started[0].num_prompt_tokens == 5);
    assert_eq!(world.plan().unwrap().rows[0].input, RowInput::LastSampled);
    assert_eq!(world.plan(), None, "two steps are in flight");
    world.commit();
    assert_eq!(rows(world.plan().unwrap()), [(6, 1)]);
    world.commit();
    assert_eq!(world.plan(), None, "all three tokens are on their way, a fourth is never planned");
    world.run();
    assert_complete(&world);
    assert_eq!(world.plans.len(), 3);
}

#[test]
fn a_stop_token_is_seen_one_step_late() {
    let mut stopping = request(prompt(0, 5), 50);
    let (tokens, _) = expected_tokens(&stopping);
    stopping.stop_tokens = [tokens[2]].into();
    let num_wanted = tokens.iter().position(|token| *token == tokens[2]).unwrap() + 1;
    let mut world = world_of(CONFIG, [stopping]);
    world.run();
    assert_complete(&world);
    assert_eq!(world.plans.len(), num_wanted + 1, "one row too many, whose token nobody saw");
}

#[test]
fn a_slot_is_reused_when_the_shards_know_it_is_free() {
    let config = SchedulerConfig { max_rows: 1, ..CONFIG };
    let mut world = world_of(config, [request(prompt(0, 3), 1), request(prompt(1, 3), 1)]);
    world.plan();
    assert_eq!(world.plan(), None, "the only row is taken");
    world.commit();
    let plan = world.plan().unwrap();
    assert_eq!((plan.finished.as_slice(), plan.started[0].slot), ([Slot(0)].as_slice(), Slot(0)));
    world.run();
    assert_complete(&world);
}

#[test]
fn a_long_context_costs_a_decode_nothing() {
    let config = SchedulerConfig { num_blocks: 3000, max_step_tokens: 8192, max_context: 10_000, ..CONFIG };
    let mut world = World::new(config);
    world.submit(request(prompt(0, 9_000), 20)).unwrap();
    world.plan();
    world.commit();
    world.plan();
    world.commit();
    for _ in 0..8 {
        let plan = world.plan().unwrap();
        let num_sent: usize = plan.block_tables.iter().map(|delta| delta.blocks.len()).sum();
        assert!(plan.rows[0].input == RowInput::LastSampled && num_sent <= 1);
        assert!(plan.started.is_empty() && plan.block_copies.is_empty());
        world.commit();
    }
}

#[test]
fn fewer_step_tokens_than_rows_make_fewer_sequences_run() {
    let config = SchedulerConfig { max_step_tokens: 2, ..CONFIG };
    let mut world = world_of(config, (0..5).map(|seed| request(prompt(seed, 7), 9)));
    world.run();
    assert_complete(&world);
}

#[test]
fn penalties_get_their_history() {
    let sampling = Sampling { presence_penalty: 0.5, ..Sampling::default() };
    let request = Request { sampling: sampling.into(), ..request(prompt(0, 6), 2) };
    let mut world = world_of(CONFIG, [request]);
    assert_eq!(world.plan().unwrap().started[0].history, prompt(0, 6));
}

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
    assert_eq!(world.plan().unwrap().rows.len(), 2);
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

// === A full pool ===

#[test]
fn a_request_that_does_not_fit_evicts_nothing() {
    let mut world = world_of(CONFIG, [request(prompt(0, 100), 1)]);
    world.run();
    world.submit(request(prompt(1, 10), 200)).unwrap();
    while world.scheduler.stats().decoding == 0 {
        world.plan();
        world.commit();
    }
    let before = world.scheduler.stats();
    world.submit(request(prompt(2, 350), 1)).unwrap();
    world.plan();
    let after = world.scheduler.stats();
    assert_eq!((after.waiting, after.cached_blocks), (1, before.cached_blocks));
    world.run();
    assert_complete(&world);
}

#[test]
fn the_latest_is_preempted_and_loses_nothing() {
    let config = SchedulerConfig { num_blocks: 40, ..CONFIG };
    let mut world = World::new(config);
    for seed in 0..2 {
        world.submit(request(prompt(seed, 4), 100)).unwrap();
    }
    world.run();
    assert_complete(&world);
    let preemptions: Vec<u32> = world.outcomes.values().map(|outcome| outcome.num_preemptions).collect();
    assert_eq!(preemptions, [0, 1]);
    let resumed = world.plans.iter().flat_map(|plan| &plan.started).find(|start| start.num_generated > 0);
    assert!(resumed.is_some(), "it tells the shards how many tokens it has generated");
}

#[test]
fn the_lowest_priority_is_preempted_first() {
    let config = SchedulerConfig { num_blocks: 40, ..CONFIG };
    let low = Request { priority: -1, ..request(prompt(0, 4), 100) };
    let mut world = world_of(config, [low, request(prompt(1, 4), 100)]);
    world.run();
    assert_complete(&world);
    let preemptions: Vec<u32> = world.outcomes.values().map(|outcome| outcome.num_preemptions).collect();
    assert_eq!(preemptions, [1, 0]);
}

#[test]
fn a_full_pool_does_not_thrash() {
    let config = SchedulerConfig { num_blocks: 300, max_rows: 64, max_context: 1000, ..CONFIG };
    let mut world = world_of(config, (0..40).map(|seed| request(prompt(seed, 60), 100)));
    world.run();
    assert_complete(&world);
    let stats = world.scheduler.stats();
    assert!(stats.preemptions <= 4, "{} preemptions", stats.preemptions);
    assert!(stats.recomputed_tokens <= 400, "{} tokens computed again", stats.recomputed_tokens);
}

#[test]
fn one_sequence_may_fill_the_pool() {
    let config = SchedulerConfig { num_blocks: 10, ..CONFIG };
    let mut world = world_of(config, [request(prompt(0, 20), 20)]);
    world.run();
    // What is cached now is in the way of the next one, and partly of use.
    world.submit(request([prompt(0, 19), prompt(1, 1)].concat(), 20)).unwrap();
    world.run();
    assert_complete(&world);
    assert_eq!(world.scheduler.stats().preemptions, 0);
}

// === What is refused ===

#[test]
fn impossible_requests_are_rejected() {
    let check = |num_prompt, max_new_tokens, expected: Option<Rejection>| {
        let mut world = World::new(CONFIG);
        let result = world.submit(request(prompt(0, num_prompt), max_new_tokens));
        assert_eq!(result.err(), expected, "{num_prompt} + {max_new_tokens}");
    };
    check(0, 1, Some(Rejection::EmptyPrompt));
    check(1, 0, Some(Rejection::NoNewTokens));
    check(399, 1, None);
    check(399, 2, Some(Rejection::TooLong { prompt: 399, max_new_tokens: 2, limit: 400 }));
    check(1, u32::MAX, Some(Rejection::TooLong { prompt: 1, max_new_tokens: u32::MAX, limit: 400 }));
}

#[test]
fn impossible_limits_are_refused() {
    let refused = Scheduler::new(SchedulerConfig { max_in_flight: 0, ..CONFIG });
    assert_eq!(refused.err(), Some(ConfigError::Zero { name: "max_in_flight" }));
}

#[test]
fn wrong_outputs_change_nothing() {
    let mut scheduler = Scheduler::new(CONFIG).unwrap();
    let sample = Sample { token: 7, logprob: 0.0, top: Vec::new() };
    let output = |id, num_samples| StepOutput { id: StepId(id), samples: vec![sample.clone(); num_samples] };
    let nothing = scheduler.commit(&output(1, 1));
    assert_eq!(nothing, Err(CommitError::NothingInFlight { got: StepId(1) }));
    scheduler.submit(request(prompt(0, 4), 2), Tick(0)).unwrap();
    scheduler.plan(Tick(0)).unwrap();
    let wrong_step = scheduler.commit(&output(2, 1));
    assert_eq!(wrong_step, Err(CommitError::WrongStep { expected: StepId(1), got: StepId(2) }));
    let wrong_count = scheduler.commit(&output(1, 0));
    assert_eq!(wrong_count, Err(CommitError::WrongSampleCount { step: StepId(1), expected: 1, got: 0 }));
    scheduler.check_invariants();
    assert_eq!(scheduler.commit(&output(1, 1)).unwrap().len(), 2);
}

#[test]
fn a_cancel_silences_what_was_not_yet_reported() {
    let mut world = world_of(CONFIG, [request(prompt(0, 4), 2), request(prompt(1, 4), 2)]);
    world.plan();
    let first = *world.outcomes.keys().next().unwrap();
    world.cancel(first);
    world.cancel(first);
    let events = world.commit().unwrap();
    assert!(events.iter().all(|event| event.sequence() != first) && !events.is_empty());
    assert_eq!(world.scheduler.stats().cancelled, 1);
}
