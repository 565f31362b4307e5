//! The laws of the scheduler, under random operations. Every operation of a [`World`] also checks the scheduler's
//! invariants (conservation, ownership, the index's structure) and, in the shard model, that every row reads exactly the
//! prefix that it should. `PROPTEST_CASES=80000 cargo test --release` hunts deeper (a quarter of that many cases per law).

use std::collections::BTreeMap;

use anaphora_core::{
    Event, Eviction, SchedulerConfig, SequenceId, StepPlan,
    testing::{
        End, World, expected_tokens,
        strategies::{Op, configs, drafts, ops, tight_configs},
    },
};
use proptest::{collection::vec, prelude::*, strategy::ValueTree, test_runner::TestRunner};

/// Applies `ops`, then lets everything finish.
fn play(config: &SchedulerConfig, ops: &[Op]) -> World {
    let mut world = World::new(config.clone());
    ops.iter().for_each(|op| world.apply(op));
    world.run();
    world
}

proptest! {
    // A case is some hundred operations, each with all checks: 64 of them are a lot already.
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases / 4, ..ProptestConfig::default() })]

    /// Whatever is batched, chunked, cached, shared, preempted or cancelled: each sequence ends once, with the tokens that it
    /// would get alone; a cancelled one has the first of them.
    #[test]
    fn tokens_do_not_depend_on_scheduling(config in configs(), ops in vec(ops(), 1..150)) {
        let world = play(&config, &ops);
        for outcome in world.outcomes.values() {
            let (tokens, reason) = expected_tokens(&outcome.request);
            match outcome.end {
                Some(End::Finished(end)) => prop_assert_eq!((&outcome.tokens, end), (&tokens, reason)),
                Some(End::Expired) => prop_assert!(outcome.tokens.is_empty()),
                Some(End::Cancelled) => prop_assert!(tokens.starts_with(&outcome.tokens)),
                None => prop_assert!(false, "a sequence never ended"),
            }
        }
    }

    /// Not even if the pool runs out again and again.
    #[test]
    fn tokens_do_not_depend_on_preemption((config, ops) in tight_configs()) {
        let world = play(&config, &ops);
        for outcome in world.outcomes.values() {
            if outcome.end != Some(End::Expired) {
                prop_assert_eq!(&outcome.tokens, &expected_tokens(&outcome.request).0);
            }
        }
    }

    /// When all have ended, however they ended, no block is held, and an emptied cache is a fresh pool.
    #[test]
    fn nothing_leaks(config in configs(), ops in vec(ops(), 1..100)) {
        let mut world = play(&config, &ops);
        let stats = world.scheduler.stats();
        prop_assert_eq!((stats.held_blocks, stats.waiting, stats.prefilling), (0, 0, 0));
        prop_assert_eq!((stats.decoding, stats.draining, stats.in_flight), (0, 0, 0));
        prop_assert_eq!(stats.submitted, stats.finished + stats.expired + stats.cancelled);
        if !config.prefix_cache {
            prop_assert_eq!(stats.free_blocks, stats.total_blocks);
        }
        world.clear_cache();
        let stats = world.scheduler.stats();
        prop_assert_eq!(stats.free_blocks, stats.total_blocks);
    }

    /// A cancel needs no further step: its blocks come back with the steps that are in flight.
    #[test]
    fn cancels_free_everything_at_once(config in configs(), ops in vec(ops(), 1..100)) {
        let mut world = World::new(config);
        ops.iter().for_each(|op| world.apply(op));
        let ids: Vec<SequenceId> = world.outcomes.keys().copied().collect();
        ids.into_iter().for_each(|id| world.cancel(id));
        while world.commit().is_some() {}
        let stats = world.scheduler.stats();
        prop_assert_eq!((stats.held_blocks, stats.draining, stats.waiting), (0, 0, 0));
        prop_assert_eq!(world.plan(), None);
    }

    /// Among requests of one size and priority, nobody is overtaken by a later one.
    #[test]
    fn first_come_first_served(config in configs(), draft in drafts(), num_requests in 1..20u32) {
        let mut world = World::new(SchedulerConfig { prefix_cache: false, ..config });
        let request = world.request(&draft);
        for _ in 0..num_requests {
            let _ = world.submit(request.clone());
        }
        world.run();
        let starts = world.events.iter().filter(|event| matches!(event, Event::Started { .. }));
        prop_assert!(starts.map(Event::sequence).is_sorted());
    }

    /// When nothing is running, a tenant has no more in the cache than its quota.
    #[test]
    fn quotas_are_kept(config in configs(), ops in vec(ops(), 1..100)) {
        let world = play(&config, &ops);
        for (tenant, max_blocks) in &config.quotas {
            let usage = world.scheduler.usage();
            let its = usage.iter().filter(|usage| usage.namespace.tenant == *tenant);
            prop_assert!(its.map(|usage| usage.num_blocks).sum::<u32>() <= *max_blocks);
        }
    }

    /// The same calls give the same plans.
    #[test]
    fn plans_can_be_replayed(config in configs(), ops in vec(ops(), 1..100)) {
        prop_assert_eq!(play(&config, &ops).plans, play(&config, &ops).plans);
    }

    /// A sequence that is alone is never preempted, however small the pool, and finds what another left behind.
    #[test]
    fn alone_nothing_is_preempted(config in configs(), drafts in vec(drafts(), 1..12)) {
        let mut world = World::new(config);
        for draft in &drafts {
            let _ = world.submit(world.request(draft));
            world.run();
        }
        prop_assert_eq!(world.scheduler.stats().preemptions, 0);
    }

    /// The same request again costs one token of prefill if nothing was evicted in between.
    #[test]
    fn the_same_prompt_again_is_cached(draft in drafts(), num_repeats in 1..4usize) {
        let config = SchedulerConfig {
            num_blocks: 100,
            block_size: 16,
            max_rows: 4,
            max_step_tokens: 32,
            max_context: 200,
            max_in_flight: 2,
            prefix_cache: true,
    target_itl_us: u64::MAX,
    max_queue_time_us: u64::MAX,
    eviction: Eviction::Lru,
    quotas: BTreeMap::new(),
        };
        let mut world = World::new(config);
        let request = world.request(&draft);
        world.submit(request.clone()).unwrap();
        world.run();
        for _ in 0..num_repeats {
            world.submit(request.clone()).unwrap();
        }
        world.run();
        let num_cached = request.prompt.len() as u32 - 1;
        for outcome in world.outcomes.values().skip(1) {
            prop_assert_eq!(outcome.cached_tokens, Some(num_cached));
        }
    }
}

/// How often a part of a block table changed that the shards had already.
fn num_changed_deltas(plans: &[StepPlan]) -> u64 {
    let mut num_sent = BTreeMap::new();
    let mut num_changed = 0;
    for plan in plans {
        num_sent.extend(plan.started.iter().map(|start| (start.slot, 0)));
        for delta in &plan.block_tables {
            num_changed += u64::from(delta.start < num_sent[&delta.slot]);
            num_sent.insert(delta.slot, delta.start + delta.blocks.len() as u32);
        }
    }
    num_changed
}

/// The random worlds come to everything that can go wrong; otherwise the laws above would say little.
#[test]
fn the_random_worlds_see_everything() {
    let mut runner = TestRunner::deterministic();
    let mut seen = [0; 7];
    let mut worlds = Vec::new();
    for _ in 0..50 {
        let case = (configs(), vec(ops(), 1..150)).new_tree(&mut runner).expect("nothing is filtered");
        worlds.push(case.current());
        worlds.push(tight_configs().new_tree(&mut runner).expect("nothing is filtered").current());
    }
    for (config, ops) in worlds {
        let world = play(&config, &ops);
        let stats = world.scheduler.stats();
        let seen_here = [
            stats.preemptions,
            stats.recomputed_tokens,
            stats.evicted_blocks,
            stats.prefix_waits,
            stats.prefix_hit_tokens,
            world.plans.iter().map(|plan| plan.block_copies.len() as u64).sum(),
            num_changed_deltas(&world.plans),
        ];
        for (sum, here) in seen.iter_mut().zip(seen_here) {
            *sum += here;
        }
    }
    assert!(seen.iter().all(|sum| *sum > 50), "{seen:?}");
}
