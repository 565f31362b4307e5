//! The handle: what the rest of the process holds of an engine task.

use std::{
    fmt,
    future::poll_fn,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
};

use anaphora_core::{
    Explanation, Namespace, NamespaceUsage, Scheduler, Stats, TokenId, ids::SequenceId, request::Request,
};
use opentelemetry::trace::SpanContext;
use tokio::sync::{mpsc, oneshot, watch};

use super::{
    EngineError, ReplicaInfo, Status, Update,
    limits::{Admission, Permit},
};
use crate::telemetry;

/// A handle to the task of one replica; cheap to clone.
#[derive(Clone, Debug)]
pub struct Engine {
    shared: Arc<Shared>,
}

/// What handle and task both see. Nothing in it is touched per token.
#[derive(Debug)]
pub(super) struct Shared {
    /// Unbounded, and yet bounded: a submit needs a permit, and a sequence is cancelled once.
    pub(super) commands: mpsc::UnboundedSender<Command>,
    /// Who may submit.
    pub(super) admission: Admission,
    /// Written by the task, and by nobody else.
    pub(super) status: watch::Sender<Status>,
    /// The last published snapshot: written once per step, read by whoever asks.
    pub(super) stats: Mutex<Stats>,
    /// Set before the task hears of it, so that nothing slips in between.
    pub(super) draining: AtomicBool,
}

/// What the task is asked to do.
#[derive(Debug)]
pub(super) enum Command {
    /// Take a sequence; the answer says whether it was taken.
    Submit(Submission),
    /// Answer a question.
    Ask(Question),
    /// Its [`Generation`] was dropped.
    Cancel(SequenceId),
    /// Take nothing new; the task ends when the last sequence has.
    Drain,
    /// Fail what is left and end.
    Stop,
}

/// Something to do with the scheduler between two steps: it must be quick. Dropped if there is no scheduler now.
pub(super) struct Question(Box<dyn FnOnce(&mut Scheduler) + Send>);

/// A sequence that asks to be taken.
#[derive(Debug)]
pub(super) struct Submission {
    pub(super) request: Request,
    pub(super) permit: Permit,
    /// The trace of the HTTP request, which step spans join.
    pub(super) trace: Option<SpanContext>,
    pub(super) reply: oneshot::Sender<Result<Generation, EngineError>>,
}

/// One accepted sequence. Dropping it cancels the sequence: its row is free in the next step.
#[derive(Debug)]
pub struct Generation {
    pub(super) sequence: SequenceId,
    pub(super) updates: mpsc::Receiver<Update>,
    pub(super) commands: mpsc::UnboundedSender<Command>,
    pub(super) ended: bool,
}

// === impl Engine ===

impl Engine {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Asks the replica to generate; waits for the task to answer, which it does between two steps.
    ///
    /// # Errors
    /// - [`EngineError::Overloaded`] if too many sequences are running and waiting
    /// - [`EngineError::Unavailable`] if the replica is not ready
    /// - [`EngineError::ShuttingDown`] if the process drains
    /// - [`EngineError::Rejected`] if the request can never be served
    pub async fn submit(&self, request: Request) -> Result<Generation, EngineError> {
        self.would_accept()?;
        let permit = self.shared.admission.enter()?;
        let (reply, answer) = oneshot::channel();
        let submission = Submission { request, permit, trace: telemetry::current_trace(), reply };
        // A closed channel: the task has ended, which it does only in a drain.
        self.shared.commands.send(Command::Submit(submission)).map_err(|_| EngineError::ShuttingDown)?;
        answer.await.unwrap_or(Err(EngineError::ShuttingDown))
    }

    /// Whether a sequence would be taken now, and by what; for checking before anything costly is done for a request.
    ///
    /// # Errors
    /// As [`submit`](Self::submit), save that nothing is rejected yet.
    pub fn would_accept(&self) -> Result<Arc<ReplicaInfo>, EngineError> {
        let admission = &self.shared.admission;
        if self.shared.is_draining() {
            return Err(EngineError::ShuttingDown);
        }
        match &*self.shared.status.borrow() {
            Status::Ready(info) => admission.check().map(|()| Arc::clone(info)),
            _ => Err(EngineError::Unavailable { retry_after: admission.until_ready() }),
        }
    }

    /// What the cache holds of a prompt, and why not more.
    ///
    /// # Errors
    /// - [`EngineError::Unavailable`] if the replica is not ready
    /// - [`EngineError::ShuttingDown`] if the process drains
    pub async fn explain(
        &self,
        namespace: Namespace,
        tokens: Vec<TokenId>,
    ) -> Result<Explanation, EngineError> {
        self.ask(move |scheduler| scheduler.explain(&namespace, &tokens)).await
    }

    /// What each namespace has in the prefix index, in order.
    ///
    /// # Errors
    /// As [`explain`](Self::explain).
    pub async fn cache_usage(&self) -> Result<Vec<NamespaceUsage>, EngineError> {
        self.ask(|scheduler| scheduler.usage()).await
    }

    /// Evicts every cached block of `tenant` that no sequence holds; returns how many those were.
    ///
    /// # Errors
    /// As [`explain`](Self::explain).
    pub async fn clear_cache(&self, tenant: Arc<str>) -> Result<u32, EngineError> {
        self.ask(move |scheduler| scheduler.clear_cache(|namespace| namespace.tenant == tenant)).await
    }

    /// Asks the scheduler something; waits for the task to answer, which it does between two steps.
    async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&mut Scheduler) -> T + Send + 'static,
    ) -> Result<T, EngineError> {
        let (reply, answer) = oneshot::channel();
        let question = Question(Box::new(|scheduler| {
            // Whoever asked may have gone.
            let _ = reply.send(question(scheduler));
        }));
        self.shared.commands.send(Command::Ask(question)).map_err(|_| EngineError::ShuttingDown)?;
        let retry_after = self.shared.admission.until_ready();
        answer.await.map_err(|_| match self.shared.is_draining() {
            true => EngineError::ShuttingDown,
            false => EngineError::Unavailable { retry_after },
        })
    }

    /// What the replica is doing now.
    #[must_use]
    pub fn status(&self) -> Status {
        if self.shared.is_draining() { Status::Draining } else { self.shared.status.borrow().clone() }
    }

    /// The scheduler's counts after the last step.
    #[must_use]
    pub fn stats(&self) -> Stats {
        *self.shared.stats.lock().expect("nothing panics while it holds this lock. This is a bug.")
    }

    /// Sequences running and waiting.
    #[must_use]
    pub fn num_live(&self) -> usize {
        self.shared.admission.num_live()
    }

    /// Waits until sequences are served; for tests and start-up.
    pub async fn ready(&self) {
        let mut status = self.shared.status.subscribe();
        // The sender lives in `self.shared`, so it cannot be gone.
        let _ = status.wait_for(|status| matches!(status, Status::Ready(_))).await;
    }

    /// Takes nothing new from now on; the sequences that were accepted finish.
    pub fn drain(&self) {
        self.shared.draining.store(true, Ordering::SeqCst);
        // A closed channel: the task has ended already.
        let _ = self.shared.commands.send(Command::Drain);
    }

    /// Fails what is left with [`EngineError::ShuttingDown`], and ends the task.
    pub fn stop(&self) {
        self.shared.draining.store(true, Ordering::SeqCst);
        let _ = self.shared.commands.send(Command::Stop);
    }

    /// Waits until the task has ended, which it does after [`drain`](Self::drain) or [`stop`](Self::stop).
    pub async fn stopped(&self) {
        self.shared.commands.closed().await;
    }
}

impl Shared {
    pub(super) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }
}

// === impl Question ===

impl Question {
    pub(super) fn answer(self, scheduler: &mut Scheduler) {
        (self.0)(scheduler);
    }
}

impl fmt::Debug for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Question(…)")
    }
}

// === impl Generation ===

impl Generation {
    /// What happens next; `None` after the update that ended the sequence.
    ///
    /// Cancel safe: an update is never lost.
    pub async fn next(&mut self) -> Option<Update> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// As [`next`](Self::next), for callers that poll.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Update>> {
        if self.ended {
            return Poll::Ready(None);
        }
        // The task keeps room for a last update and always sends one, unless the whole runtime is going down.
        let update = ready!(self.updates.poll_recv(cx)).unwrap_or(Update::Failed(EngineError::ShuttingDown));
        self.ended = matches!(update, Update::Finished(_) | Update::Failed(_));
        Poll::Ready(Some(update))
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        if !self.ended {
            // A closed channel: the task has ended, and with it the sequence.
            let _ = self.commands.send(Command::Cancel(self.sequence));
        }
    }
}
