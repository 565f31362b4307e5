//! Stories: what is refused, and what a cancel silences.

use super::*;

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
