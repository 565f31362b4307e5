//! One life of a scheduler: from the shard's configuration to its loss.

use std::{collections::VecDeque, time::Duration};

use anaphora_core::{
    CommitError, Scheduler, Stats,
    ids::{SequenceId, StepId, Tick},
    plan::{Event, Row, RowInput, StepOutput, StepPlan},
};
use opentelemetry::trace::SpanContext;
use tokio::{sync::mpsc, time::Instant};

use super::{
    EngineError, Generation,
    handle::{Question, Shared, Submission},
    limits::EndRate,
    live::{Entry, Live, Overflow},
};
use crate::{
    config::EngineConfig,
    metrics::{EngineMetrics, Method},
    shard::{Shard, ShardError},
    telemetry::StepSpan,
};

/// Steps that are sent before the first of them is answered: while the shard computes one, the next is there already.
pub(super) const MAX_IN_FLIGHT: u32 = 2;

/// What outlives a session: the task's own, passed to whoever needs it.
pub(super) struct Context {
    pub(super) shared: std::sync::Arc<Shared>,
    pub(super) config: EngineConfig,
    pub(super) metrics: EngineMetrics,
    /// The one origin of [`Tick`]s.
    pub(super) origin: Instant,
    pub(super) rate: EndRate,
}

/// A scheduler, its live sequences and the steps that are out.
pub(super) struct Session {
    scheduler: Scheduler,
    live: Live,
    in_flight: VecDeque<InFlight>,
    last_answer: Instant,
    /// Something happened since the figures were published.
    is_stale: bool,
}

/// A step that is not answered yet.
struct InFlight {
    id: StepId,
    method: Method,
    sent: Instant,
    _span: StepSpan,
}

// === impl Context ===

impl Context {
    pub(super) fn now(&self) -> Tick {
        Tick(self.origin.elapsed().as_micros() as u64)
    }

    /// Makes the scheduler's figures known.
    pub(super) fn publish(&mut self, stats: Stats) {
        self.metrics.publish(&stats, self.config.block_size);
        self.shared.admission.set_rate(self.rate.interval(), stats.waiting as usize);
        *self.shared.stats.lock().expect("nothing panics while it holds this lock. This is a bug.") = stats;
    }
}

// === impl Session ===

impl Session {
    pub(super) fn new(scheduler: Scheduler, context: &mut Context) -> Self {
        context.metrics.scheduler_reset();
        let (live, in_flight) = (Live::default(), VecDeque::new());
        Self { scheduler, live, in_flight, last_answer: Instant::now(), is_stale: true }
    }

    /// Whether nothing is left to do for anybody.
    pub(super) fn is_idle(&self) -> bool {
        self.live.is_empty()
    }

    /// When the shard must have answered; `None` if nothing is in flight.
    pub(super) fn deadline(&self, step_timeout: Duration) -> Option<Instant> {
        self.in_flight.front().map(|oldest| oldest.sent.max(self.last_answer) + step_timeout)
    }

    /// Takes a sequence, or says why not.
    pub(super) fn submit(&mut self, submission: Submission, context: &mut Context) {
        self.is_stale = true;
        let Submission { request, permit, trace, reply } = submission;
        let now = context.now();
        let answer = match self.scheduler.submit(request, now) {
            Err(rejection) => Err(EngineError::Rejected(rejection)),
            Ok(sequence) => {
                context.rate.submitted(now.0);
                let (sender, updates) = mpsc::channel(context.config.updates_per_client + 1);
                self.live.insert(sequence, Entry::new(sender, permit, now.0, trace));
                Ok(Generation { sequence, updates, commands: context.shared.commands.clone(), ended: false })
            }
        };
        // If nobody waits for the answer any more, the generation in it is dropped, and that cancels the sequence.
        let _ = reply.send(answer);
    }

    /// Answers a question, which may change the scheduler's figures.
    pub(super) fn answer(&mut self, question: Question) {
        self.is_stale = true;
        question.answer(&mut self.scheduler);
    }

    /// The sequence's client went away.
    pub(super) fn cancel(&mut self, id: SequenceId, context: &mut Context) {
        if self.live.dropped(id) {
            self.is_stale = true;
            self.scheduler.cancel(id);
            context.metrics.ended.cancelled.increment(1);
            context.rate.ended(1, context.now().0, self.live.is_empty());
        }
    }

    /// Plans and sends as many steps as may be in flight.
    pub(super) fn fill<S: Shard>(&mut self, shard: &mut S, context: &Context) -> Result<(), ShardError> {
        while self.in_flight.len() < MAX_IN_FLIGHT as usize {
            let Some(plan) = self.scheduler.plan(context.now()) else { break };
            let method = method(&plan);
            let span = self.step_span(&plan);
            shard.send(&plan, span.traceparent())?;
            context.metrics.step_sent(method, plan.rows.len());
            self.in_flight.push_back(InFlight { id: plan.id, method, sent: Instant::now(), _span: span });
        }
        Ok(())
    }

    /// Takes an answer in, and tells every client what it means for it.
    ///
    /// # Errors
    /// If the answer does not fit the plan.
    pub(super) fn commit(
        &mut self,
        mut output: StepOutput,
        context: &mut Context,
    ) -> Result<(), CommitError> {
        let answered = Instant::now();
        if let Some(step) = self.in_flight.front() {
            let duration = answered - step.sent.max(self.last_answer);
            output.duration_us = step_duration_us(output.duration_us, duration);
        }
        let events = self.scheduler.commit(&output)?;
        if let Some(step) = self.in_flight.pop_front() {
            debug_assert_eq!(step.id, output.id, "the scheduler takes answers in order");
            context.metrics.step_answered(step.method, answered - step.sent.max(self.last_answer));
        }
        self.last_answer = answered;
        let now = context.now();
        let mut num_ended = 0;
        for event in events {
            num_ended += self.deliver(event, now, context);
        }
        self.live.flush(&context.metrics);
        context.rate.ended(num_ended, now.0, self.live.is_empty());
        self.is_stale = true;
        Ok(())
    }

    /// Makes known what happened since the last time; once per step, or per batch of commands.
    pub(super) fn publish(&mut self, context: &mut Context) {
        if std::mem::take(&mut self.is_stale) {
            let stats = self.scheduler.stats();
            let num_blocks = stats.free_blocks + stats.cached_blocks + stats.held_blocks;
            debug_assert_eq!(num_blocks, stats.total_blocks, "every block is free, cached or held");
            context.publish(stats);
        }
    }

    /// The shard is gone, or the process is going: every sequence ends.
    pub(super) fn fail_all(mut self, error: &EngineError, context: &Context) {
        for step in &self.in_flight {
            context.metrics.step_lost(step.method);
        }
        let ended = match error {
            EngineError::ShardLost { .. } => &context.metrics.ended.shard_lost,
            _ => &context.metrics.ended.shutting_down,
        };
        ended.increment(self.live.fail_all(error) as u64);
    }

    /// Returns how many sequences ended.
    fn deliver(&mut self, event: Event, now: Tick, context: &Context) -> usize {
        let metrics = &context.metrics;
        let (sequence, delivered) = match event {
            Event::Started { sequence, cached_tokens } => {
                (sequence, self.live.started(sequence, cached_tokens, now.0, metrics))
            }
            Event::Token { sequence, sample } => {
                (sequence, self.live.token(sequence, sample, now.0, metrics))
            }
            Event::Finished { sequence, reason } => {
                metrics.ended.finished.increment(1);
                return usize::from(self.live.finished(sequence, reason));
            }
            Event::Expired { sequence } => {
                metrics.ended.queue_timeout.increment(1);
                let retry_after = context.shared.admission.until_room();
                return usize::from(self.live.failed(sequence, EngineError::QueueTimeout { retry_after }));
            }
            Event::Preempted { .. } => {
                metrics.preemptions.increment(1);
                return 0;
            }
        };
        match delivered {
            Ok(()) => 0,
            Err(Overflow) => {
                self.scheduler.cancel(sequence);
                metrics.ended.slow_client.increment(1);
                usize::from(self.live.failed(sequence, EngineError::SlowClient))
            }
        }
    }

    /// The traces of the requests that the step serves: first of those whose prompt it computes, who wait for nothing else.
    fn traces(&self, plan: &StepPlan) -> impl Iterator<Item = &SpanContext> {
        let is_prefill = |row: &&Row| matches!(row.input, RowInput::Tokens(_));
        let prefills = plan.rows.iter().filter(is_prefill);
        let decodes = plan.rows.iter().filter(move |row| !is_prefill(row));
        prefills.chain(decodes).filter_map(|row| self.live.trace(self.scheduler.sequence_at(row.slot)?))
    }

    /// A span for the step, in the trace of one of its requests; nothing if none of them is traced.
    fn step_span(&self, plan: &StepPlan) -> StepSpan {
        if !self.live.is_traced() {
            return StepSpan::default();
        }
        StepSpan::new(plan.id.0, plan.rows.len(), self.traces(plan))
    }
}

/// How long a step took by itself. A shard whose device works asynchronously counts the wait for the step before it too; of
/// the time since the last answer, the shard's part is not more.
fn step_duration_us(on_shard_us: u64, since_last_answer: Duration) -> u64 {
    let since_last_answer_us = since_last_answer.as_micros() as u64;
    if on_shard_us == 0 { since_last_answer_us } else { on_shard_us.min(since_last_answer_us) }
}

fn method(plan: &StepPlan) -> Method {
    if plan.rows.iter().any(|row| matches!(row.input, RowInput::Tokens(_))) {
        Method::Prefill
    } else {
        Method::Decode
    }
}
