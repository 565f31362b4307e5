//! Stories: what a step is made of: batching, and chunks beside decodes.

use super::*;

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
