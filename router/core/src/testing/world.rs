//! A scheduler, a shard that checks it, and what their clients saw.

use std::collections::{BTreeMap, VecDeque};

use super::ShardModel;
use crate::{
    Event, FinishReason, Rejection, Request, Scheduler, SchedulerConfig, SequenceId, StepOutput, StepPlan,
    Tick, TokenId,
};

/// How a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// By itself.
    Finished(FinishReason),
    /// By a cancel.
    Cancelled,
    /// It waited too long for its first row.
    Expired,
}

/// What the client of a sequence saw.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What it asked for.
    pub request: Request,
    /// From [`Event::Started`], once it came.
    pub cached_tokens: Option<u32>,
    /// The tokens so far.
    pub tokens: Vec<TokenId>,
    /// How often it was preempted.
    pub num_preemptions: u32,
    /// How it ended, if it has.
    pub end: Option<End>,
}

/// A scheduler with a shard; every operation checks the invariants.
#[derive(Debug)]
pub struct World {
    /// The scheduler; call it through the world, so that the shard knows.
    pub scheduler: Scheduler,
    /// What every sequence came to, in order of arrival.
    pub outcomes: BTreeMap<SequenceId, Outcome>,
    /// All plans so far.
    pub plans: Vec<StepPlan>,
    /// All events so far.
    pub events: Vec<Event>,
    shard: ShardModel,
    outputs: VecDeque<StepOutput>,
    now: Tick,
}

impl World {
    /// A world with nothing in it.
    #[must_use]
    pub fn new(config: SchedulerConfig) -> Self {
        Self {
            shard: ShardModel::new(&config),
            scheduler: Scheduler::new(config).expect("the configuration is valid"),
            outcomes: BTreeMap::new(),
            plans: Vec::new(),
            events: Vec::new(),
            outputs: VecDeque::new(),
            now: Tick(0),
        }
    }

    /// Submits a request.
    ///
    /// # Errors
    /// As [`Scheduler::submit`].
    pub fn submit(&mut self, request: Request) -> Result<SequenceId, Rejection> {
        let id = self.scheduler.submit(request.clone(), self.now)?;
        self.shard.introduce(id, &request);
        let outcome =
            Outcome { request, cached_tokens: None, tokens: Vec::new(), num_preemptions: 0, end: None };
        assert!(self.outcomes.insert(id, outcome).is_none(), "ids are never reused");
        self.scheduler.check_invariants();
        Ok(id)
    }

    /// Cancels a sequence that was submitted here, whether or not it has ended.
    pub fn cancel(&mut self, id: SequenceId) {
        self.scheduler.cancel(id);
        self.outcomes.get_mut(&id).expect("it was submitted").end.get_or_insert(End::Cancelled);
        self.scheduler.check_invariants();
    }

    /// Plans a step and lets the shard execute it; its output waits for [`World::commit`]. `None` as [`Scheduler::plan`].
    pub fn plan(&mut self) -> Option<&StepPlan> {
        self.now.0 += 1;
        let plan = self.scheduler.plan(self.now);
        self.scheduler.check_invariants();
        let plan = plan?;
        self.outputs.push_back(self.shard.execute(&plan, |slot| self.scheduler.occupant(slot)));
        self.plans.push(plan);
        self.plans.last()
    }

    /// Commits the oldest output. `None` if no step is in flight.
    pub fn commit(&mut self) -> Option<Vec<Event>> {
        let output = self.outputs.pop_front()?;
        let events = self.scheduler.commit(&output).expect("the output answers the step");
        self.shard.committed(output.id);
        self.scheduler.check_invariants();
        events.iter().for_each(|event| self.note(event));
        self.events.extend_from_slice(&events);
        Some(events)
    }

    /// Evicts everything that can be.
    pub fn clear_cache(&mut self) {
        self.scheduler.clear_cache(|_| true);
        self.scheduler.check_invariants();
    }

    /// Lets so many microseconds pass.
    pub fn wait(&mut self, duration_us: u64) {
        self.now.0 += duration_us;
    }

    /// Forgets the plans, the events, and all but the last `num_kept` sequences; everything has ended. For long lives.
    pub fn forget(&mut self, num_kept: usize) {
        self.plans.clear();
        self.events.clear();
        while self.outcomes.len() > num_kept
            && let Some((id, outcome)) = self.outcomes.pop_first()
        {
            assert!(outcome.end.is_some(), "what has not ended is not forgotten");
            self.shard.forget(id);
        }
    }

    /// Plans and commits until everything has ended. Panics if the scheduler stops before, or goes on for longer than it
    /// may: each round gets the sequence that is served first on, or frees what it lacks.
    pub fn run(&mut self) {
        let unfinished = self.outcomes.values().filter(|outcome| outcome.end.is_none());
        let num_tokens = unfinished.map(|o| o.request.prompt.len() + o.request.max_new_tokens as usize);
        let max_rounds = 3 * num_tokens.map(|num| num + 1).sum::<usize>() + 3;
        for _ in 0..=max_rounds {
            while self.plan().is_some() {}
            if self.commit().is_none() {
                let is_done = self.outcomes.values().all(|outcome| outcome.end.is_some());
                assert!(is_done, "nothing is in flight, something waits, and nothing is planned");
                return;
            }
        }
        panic!("still busy after {max_rounds} rounds");
    }

    fn note(&mut self, event: &Event) {
        let outcome = self.outcomes.get_mut(&event.sequence()).expect("events are of known sequences");
        assert_eq!(outcome.end, None, "nothing happens to a sequence after its end: {event:?}");
        let has_started = outcome.cached_tokens.is_some();
        match event {
            Event::Started { cached_tokens, .. } => {
                assert!(!has_started, "a sequence starts once");
                assert!(
                    (*cached_tokens as usize) < outcome.request.prompt.len(),
                    "one token is always computed"
                );
                outcome.cached_tokens = Some(*cached_tokens);
            }
            Event::Token { sample, .. } => {
                assert!(has_started, "tokens come after the start");
                outcome.tokens.push(sample.token);
            }
            Event::Preempted { .. } => outcome.num_preemptions += 1,
            Event::Expired { .. } => {
                assert!(!has_started, "only who waits for its first row expires");
                outcome.end = Some(End::Expired);
            }
            Event::Finished { reason, .. } => outcome.end = Some(End::Finished(*reason)),
        }
    }
}
