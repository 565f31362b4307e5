//! Stories: a pool or a tenant's part of it that is full.

use super::*;

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

// === Conversations that do not all fit ===

/// A conversation of two turns, which fills more than half of the pool, and beside it a sequence that decodes.
fn a_conversation_and_a_neighbour() -> (World, Vec<TokenId>) {
    let mut world = World::new(CONFIG);
    let mut text = prompt(0, 240);
    for turn in 1..3 {
        let id = world.submit(request(text.clone(), 4)).expect("it fits");
        world.run();
        text.extend_from_slice(&world.outcomes[&id].tokens);
        text.extend(prompt(turn, 4));
    }
    world.submit(request(prompt(8, 5), 100)).expect("it fits");
    world.plan();
    world.commit();
    (world, text)
}

fn step(world: &mut World, num_steps: u32) {
    for _ in 0..num_steps {
        world.plan();
        world.commit();
    }
}

#[test]
fn a_conversation_that_may_go_on_is_not_taken_by_who_can_wait() {
    let (mut world, text) = a_conversation_and_a_neighbour();
    let long = world.submit(request(prompt(9, 200), 1)).unwrap();
    step(&mut world, 5);
    assert_eq!(world.outcomes[&long].cached_tokens, None, "it would have to evict the conversation");
    let turn = world.submit(request(text.clone(), 4)).unwrap();
    step(&mut world, 5);
    assert_eq!(world.outcomes[&turn].cached_tokens, Some(text.len() as u32 - 5), "the next turn passes it");
    world.run();
    assert_complete(&world);
}

#[test]
fn a_conversation_that_has_paused_for_long_is_taken() {
    let (mut world, _) = a_conversation_and_a_neighbour();
    let long = world.submit(request(prompt(9, 200), 1)).unwrap();
    step(&mut world, 1);
    world.wait(1_000_000);
    step(&mut world, 2);
    assert_eq!(world.outcomes[&long].cached_tokens, Some(0));
    world.run();
    assert_complete(&world);
}

#[test]
fn nobody_waits_for_a_conversation_while_nothing_runs() {
    let (mut world, _) = a_conversation_and_a_neighbour();
    let neighbour = *world.outcomes.keys().last().unwrap();
    world.cancel(neighbour);
    let long = world.submit(request(prompt(9, 200), 1)).unwrap();
    step(&mut world, 1);
    assert_eq!(world.outcomes[&long].cached_tokens, Some(0));
}

#[test]
fn a_prompt_that_nobody_came_back_for_is_taken_at_once() {
    let mut world = World::new(CONFIG);
    world.submit(request(prompt(0, 240), 4)).unwrap();
    world.run();
    world.submit(request(prompt(8, 5), 100)).unwrap();
    step(&mut world, 1);
    let long = world.submit(request(prompt(9, 200), 1)).unwrap();
    step(&mut world, 2);
    assert_eq!(world.outcomes[&long].cached_tokens, Some(0));
}
