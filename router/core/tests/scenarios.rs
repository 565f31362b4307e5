//! Small stories: what a scheduler does in a situation that has a name. Every step also passes the checks of a [`World`].

use std::collections::BTreeMap;

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
    target_itl_us: u64::MAX,
    max_queue_time_us: u64::MAX,
    eviction: Eviction::Lru,
    quotas: BTreeMap::new(),
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
    let output = |id, num_samples| StepOutput {
        id: StepId(id),
        samples: vec![sample.clone(); num_samples],
        duration_us: 0,
    };
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

// === Who is served ===

/// Plans and commits until the sequence that was submitted as the `nth` has its first token; returns how many tokens of
/// others' prefills were computed meanwhile.
fn first_token_after(world: &mut World, nth: usize) -> usize {
    let num_plans = world.plans.len();
    while world.outcomes.values().nth(nth).expect("as many sequences as that").tokens.is_empty() {
        while world.plan().is_some() {}
        world.commit();
    }
    let rows = world.plans[num_plans..].iter().flat_map(|plan| &plan.rows);
    rows.map(|row| if matches!(row.input, RowInput::Tokens(_)) { row.input.num_tokens() } else { 0 }).sum()
}

#[test]
fn a_short_prompt_overtakes_long_ones() {
    let config = SchedulerConfig { num_blocks: 1000, max_context: 2000, ..CONFIG };
    let long = (0..3).map(|seed| request(prompt(seed, 900), 1));
    let mut world = world_of(config, long);
    world.plan();
    world.submit(request(prompt(3, 30), 1)).unwrap();
    assert!(first_token_after(&mut world, 3) <= 3 * 64);
    assert!(world.outcomes.values().take(3).all(|outcome| outcome.tokens.is_empty()));
    world.run();
    assert_complete(&world);
}

#[test]
fn short_ones_pass_a_sequence_that_does_not_fit() {
    let mut world = world_of(CONFIG, [request(prompt(0, 40), 120)]);
    while world.scheduler.stats().decoding == 0 {
        world.plan();
        world.commit();
    }
    world.submit(request(prompt(1, 350), 1)).unwrap();
    for seed in 2..12 {
        world.submit(request(prompt(seed, 20), 21)).unwrap();
    }
    world.run();
    assert_complete(&world);
    let started = world.events.iter().filter(|event| matches!(event, Event::Started { .. }));
    let big = started.map(Event::sequence).position(|id| id == SequenceId(2)).unwrap();
    assert_eq!(big, 1 + 8, "eight of forty positions pass; a ninth would make it more than its own 350");
}

#[test]
fn higher_priority_preempts_when_slots_are_short() {
    let config = SchedulerConfig { max_rows: 2, ..CONFIG };
    let low = |seed| Request { priority: -1, ..request(prompt(seed, 10), 50) };
    let mut world = world_of(config, [low(0), low(1)]);
    while world.scheduler.stats().decoding < 2 {
        world.plan();
        world.commit();
    }
    world.submit(request(prompt(2, 10), 5)).unwrap();
    world.run();
    assert_complete(&world);
    let preemptions: Vec<u32> = world.outcomes.values().map(|outcome| outcome.num_preemptions).collect();
    assert_eq!(preemptions, [0, 1, 0]);
}

#[test]
fn higher_priority_preempts_when_blocks_are_short() {
    let low = |seed| Request { priority: -1, ..request(prompt(seed, 120), 50) };
    let mut world = world_of(CONFIG, [low(0), low(1)]);
    while world.scheduler.stats().decoding < 2 {
        world.plan();
        world.commit();
    }
    world.submit(request(prompt(2, 390), 5)).unwrap();
    while world.outcomes[&SequenceId(3)].tokens.is_empty() {
        world.plan();
        world.commit();
    }
    assert!(world.outcomes[&SequenceId(1)].end.is_none() && world.outcomes[&SequenceId(2)].end.is_none());
    world.run();
    assert_complete(&world);
}

#[test]
fn equal_priority_preempts_nobody() {
    let config = SchedulerConfig { max_rows: 2, ..CONFIG };
    let mut world = world_of(config, (0..3).map(|seed| request(prompt(seed, 10), 50)));
    world.run();
    assert_eq!(world.scheduler.stats().preemptions, 0);
}

#[test]
fn who_waits_too_long_expires() {
    let config = SchedulerConfig { max_rows: 1, max_queue_time_us: 20, ..CONFIG };
    let mut world = world_of(config, (0..2).map(|seed| request(prompt(seed, 10), 50)));
    world.run();
    let ends: Vec<_> = world.outcomes.values().map(|outcome| outcome.end.unwrap()).collect();
    assert_eq!(ends, [End::Finished(FinishReason::Length), End::Expired]);
}

// === Chunks beside decodes ===

#[test]
fn chunks_beside_decodes_keep_the_step_short() {
    // In these worlds a step takes 20 us, 1 us per decode and 10 us per token of prefill.
    let config = SchedulerConfig {
        max_step_tokens: 300,
        target_itl_us: 500,
        num_blocks: 1200,
        max_context: 4000,
        ..CONFIG
    };
    let mut world = world_of(config, [request(prompt(0, 5), 400)]);
    while world.scheduler.stats().decoding == 0 {
        world.plan();
        world.commit();
    }
    world.submit(request(prompt(1, 3000), 1)).unwrap();
    let start = world.plans.len();
    while world.outcomes[&SequenceId(2)].tokens.is_empty() {
        world.plan();
        world.commit();
    }
    let chunks: Vec<usize> =
        world.plans[start..].iter().map(|plan| plan.rows[1].input.num_tokens()).collect();
    let (learning, learned) = chunks.split_at(20);
    assert!(learning[0] == 16 && learning.iter().all(|num| *num <= 48), "it begins carefully: {learning:?}");
    let (_, settled) = learned.split_last().unwrap();
    assert!(settled.iter().all(|num| (45..=48).contains(num)), "500 us are 47 tokens: {settled:?}");
}

#[test]
fn alone_a_prefill_has_the_whole_step() {
    let config = SchedulerConfig { target_itl_us: 1, ..CONFIG };
    let mut world = world_of(config, [request(prompt(0, 200), 1)]);
    let chunks = [(0, 64), (64, 64)];
    chunks.iter().for_each(|chunk| assert_eq!(rows(world.plan().unwrap()), [*chunk]));
}

#[test]
fn prefills_get_on_though_decodes_alone_miss_the_target() {
    let config = SchedulerConfig {
        target_itl_us: 1,
        max_rows: 64,
        max_step_tokens: 200,
        num_blocks: 10_000,
        ..CONFIG
    };
    let mut world = world_of(config, (0..60).map(|seed| request(prompt(seed, 2), 300)));
    while world.scheduler.stats().decoding < 60 {
        world.plan();
        world.commit();
    }
    for _ in 0..100 {
        world.plan();
        world.commit();
    }
    world.submit(request(prompt(100, 90), 1)).unwrap();
    let chunk = world.plan().unwrap().rows.last().unwrap().input.num_tokens();
    assert_eq!(chunk, 16, "the least");
}

// === Quotas ===

#[test]
fn a_tenant_over_its_quota_loses_its_own_blocks() {
    let config = SchedulerConfig { quotas: BTreeMap::from([("small".into(), 10)]), ..CONFIG };
    let small = Namespace { tenant: "small".into(), ..Namespace::default() };
    let salted = Namespace { salt: "s".into(), ..small.clone() };
    let mut world = world_of(config, [request(prompt(0, 100), 1)]);
    world.run();
    for namespace in [&small, &salted] {
        world.submit(Request { namespace: namespace.clone(), ..request(prompt(1, 100), 1) }).unwrap();
        world.run();
    }
    let explain = |namespace| world.scheduler.explain(namespace, &prompt(1, 100)).num_cached_tokens;
    assert_eq!(
        (explain(&small), explain(&salted)),
        (0, 40),
        "ten blocks in all its namespaces, the latest used"
    );
    assert_eq!(world.scheduler.explain(&Namespace::default(), &prompt(0, 100)).num_cached_tokens, 99);
}
