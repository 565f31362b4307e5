//! Small stories: what a scheduler does in a situation that has a name. Every step also passes the checks of a [`World`].

mod batching;
mod full_pool;
mod order;
mod prefix_cache;
mod refusals;

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
