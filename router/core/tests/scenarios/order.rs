//! Stories: who is served first.

use super::*;

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

#[test]
fn who_leaves_before_its_expiry_is_reported_hears_nothing() {
    let config = SchedulerConfig { max_rows: 1, max_queue_time_us: 20, ..CONFIG };
    let mut world = world_of(config, (0..2).map(|seed| request(prompt(seed, 10), 50)));
    world.plan();
    world.wait(30);
    world.plan();
    assert_eq!(world.scheduler.stats().expired, 1);
    world.cancel(SequenceId(2));
    world.run();
    assert!(world.events.iter().all(|event| event.sequence() == SequenceId(1)));
}
