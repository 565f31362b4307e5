//! The events of a simulation, in order of time.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, VecDeque},
};

use anaphora_core::{
    Event, Namespace, Request, Sample, Sampling, Scheduler, SchedulerConfig, SequenceId, StepOutput,
    StepPlan, Tick, TokenId,
};

use crate::{
    device::Device,
    report::TurnRecord,
    routing::{Candidate, Routing, choose, num_to_compute},
    trace::Session,
};

/// What serves the trace.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// How many replicas, all alike.
    pub num_replicas: usize,
    /// Of each.
    pub scheduler: SchedulerConfig,
    /// Of each.
    pub device: Device,
    /// How turns find a replica.
    pub routing: Routing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    /// The next turn of a session.
    Turn(usize),
    /// The oldest step of a replica is done.
    Step(usize),
}

struct Replica {
    scheduler: Scheduler,
    outputs: VecDeque<StepOutput>,
    busy_until_us: u64,
    live: BTreeMap<SequenceId, Live>,
    num_queued_tokens: u64,
}

/// A turn that is being served.
struct Live {
    record: TurnRecord,
    num_queued_tokens: u64,
}

struct Conversation {
    tokens: Vec<TokenId>,
    next_turn: usize,
    replica: Option<usize>,
}

/// Serves `sessions` with `cluster`; returns every turn, in the order in which they ended.
#[must_use]
pub fn simulate(cluster: &Cluster, sessions: &[Session]) -> Vec<TurnRecord> {
    let mut world = World::new(cluster, sessions);
    while let Some(Reverse((now_us, due))) = world.due.pop() {
        match due {
            Due::Turn(session) => world.submit(session, now_us),
            Due::Step(replica) => world.commit(replica, now_us),
        }
    }
    world.turns
}

struct World<'a> {
    cluster: &'a Cluster,
    sessions: &'a [Session],
    conversations: Vec<Conversation>,
    replicas: Vec<Replica>,
    due: BinaryHeap<Reverse<(u64, Due)>>,
    num_turns: usize,
    turns: Vec<TurnRecord>,
}

impl<'a> World<'a> {
    fn new(cluster: &'a Cluster, sessions: &'a [Session]) -> Self {
        let replica = |_| Replica {
            scheduler: Scheduler::new(cluster.scheduler.clone()).expect("the limits make sense"),
            outputs: VecDeque::new(),
            busy_until_us: 0,
            live: BTreeMap::new(),
            num_queued_tokens: 0,
        };
        let conversation = |session: &Session| Conversation {
            tokens: text(u64::from(session.group), session.num_shared_tokens).collect(),
            next_turn: 0,
            replica: None,
        };
        let first = |(index, session): (usize, &Session)| Reverse((session.start_us, Due::Turn(index)));
        Self {
            cluster,
            sessions,
            conversations: sessions.iter().map(conversation).collect(),
            replicas: (0..cluster.num_replicas).map(replica).collect(),
            due: sessions.iter().enumerate().map(first).collect(),
            num_turns: 0,
            turns: Vec::new(),
        }
    }

    fn submit(&mut self, session: usize, now_us: u64) {
        let conversation = &mut self.conversations[session];
        let turn = conversation.next_turn;
        let spec = self.sessions[session].turns[turn];
        let seed = ((session as u64 + 1) << 32) + turn as u64;
        conversation.tokens.extend(text(seed, spec.num_new_tokens));
        let candidates: Vec<Candidate<'_>> = self.replicas.iter().map(Replica::candidate).collect();
        let key = (self.num_turns, conversation.replica);
        let chosen = choose(self.cluster.routing, &candidates, key, &conversation.tokens);
        let num_queued_tokens =
            num_to_compute(&candidates[chosen], &conversation.tokens) - candidates[chosen].num_queued_tokens;
        conversation.replica = Some(chosen);
        conversation.next_turn += 1;
        self.num_turns += 1;
        let request = Request {
            namespace: Namespace::default(),
            prompt: conversation.tokens.clone(),
            max_new_tokens: spec.num_output_tokens,
            stop_tokens: [].into(),
            sampling: Sampling::default().into(),
            priority: 0,
        };
        let record = TurnRecord {
            session,
            turn,
            arrived_us: now_us,
            tokens_us: Vec::new(),
            num_prompt_tokens: request.prompt.len(),
            num_cached_tokens: None,
        };
        let replica = &mut self.replicas[chosen];
        let id = replica.scheduler.submit(request, Tick(now_us)).expect("the trace fits into a replica");
        replica.num_queued_tokens += num_queued_tokens;
        replica.live.insert(id, Live { record, num_queued_tokens });
        self.plan(chosen, now_us);
    }

    /// Plans as many steps as may be in flight.
    fn plan(&mut self, index: usize, now_us: u64) {
        let replica = &mut self.replicas[index];
        while let Some(plan) = replica.scheduler.plan(Tick(now_us)) {
            let duration_us = self.cluster.device.duration_us(&plan);
            replica.busy_until_us = replica.busy_until_us.max(now_us) + duration_us;
            replica.outputs.push_back(output(&plan, duration_us));
            self.due.push(Reverse((replica.busy_until_us, Due::Step(index))));
        }
    }

    fn commit(&mut self, index: usize, now_us: u64) {
        let replica = &mut self.replicas[index];
        let output = replica.outputs.pop_front().expect("the step is in flight");
        for event in replica.scheduler.commit(&output).expect("the output answers the step") {
            let live = replica.live.get_mut(&event.sequence()).expect("events are of live turns");
            match event {
                // Again after a preemption, when what it computed itself is in the cache too.
                Event::Started { cached_tokens, .. } => {
                    live.record.num_cached_tokens.get_or_insert(cached_tokens);
                }
                Event::Token { sample, .. } => {
                    if live.record.tokens_us.is_empty() {
                        replica.num_queued_tokens -= live.num_queued_tokens;
                    }
                    live.record.tokens_us.push(now_us);
                    self.conversations[live.record.session].tokens.push(sample.token);
                }
                Event::Finished { sequence, .. } => {
                    let record = replica.live.remove(&sequence).expect("it was just there").record;
                    let session = &self.sessions[record.session];
                    if self.conversations[record.session].next_turn < session.turns.len() {
                        self.due.push(Reverse((now_us + session.think_us, Due::Turn(record.session))));
                    }
                    self.turns.push(record);
                }
                Event::Preempted { .. } | Event::Expired { .. } => {}
            }
        }
        self.plan(index, now_us);
    }
}

impl Replica {
    fn candidate(&self) -> Candidate<'_> {
        Candidate { scheduler: &self.scheduler, num_queued_tokens: self.num_queued_tokens }
    }
}

fn output(plan: &StepPlan, duration_us: u64) -> StepOutput {
    let sample = |row: u64| Sample { token: word(plan.id.0, row), logprob: 0.0, top: Vec::new() };
    let num_samples = plan.rows.iter().filter(|row| row.sample).count() as u64;
    StepOutput { id: plan.id, samples: (0..num_samples).map(sample).collect(), duration_us }
}

/// Tokens that share nothing with those of another `seed`.
fn text(seed: u64, num_tokens: u32) -> impl Iterator<Item = TokenId> {
    (0..u64::from(num_tokens)).map(move |position| word(seed, position))
}

/// Arbitrary, and the same each time.
fn word(seed: u64, position: u64) -> TokenId {
    let bits = (seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ position).wrapping_mul(0xd129_0d3b_4b1c_5c95);
    (bits >> 40) as TokenId
}
