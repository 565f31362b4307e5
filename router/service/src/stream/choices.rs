//! All sequences of a request, merged.

use std::{
    future::poll_fn,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use super::{Choice, Delta, Finish, StreamError, Token, Wants};
use crate::{
    admit::{Admitted, AdmittedPrompt, Output},
    api::App,
    engine::EngineError,
    metrics::Timings,
};

/// All sequences of a request: a slow one holds up no other. Dropping it cancels them all.
#[derive(Debug)]
pub struct Choices {
    /// By index; `None` once it has ended.
    running: Vec<Option<Choice>>,
    /// Who is asked first, so that all have their turn.
    turn: usize,
    totals: Totals,
}

/// What the sequences of a request cost together.
#[derive(Clone, Debug, PartialEq)]
pub struct Totals {
    /// Tokens of each prompt.
    pub prompt_tokens: Vec<u32>,
    /// Of each prompt, what its first sequence found in the prefix cache; `None` until that has left the queue.
    pub cached_tokens: Vec<Option<u32>>,
    /// Tokens generated so far.
    pub num_generated: u32,
    /// Seeds, by index.
    pub seeds: Vec<u64>,
    /// Sequences per prompt.
    pub num_sequences: usize,
    /// How long admission took.
    pub admission: Duration,
    submitted: Instant,
    started: Option<Instant>,
}

/// A sequence that has ended, whole.
#[derive(Clone, Debug, PartialEq)]
pub struct Finished {
    /// The text.
    pub text: String,
    /// Every token.
    pub tokens: Vec<Token>,
    /// Why it ended.
    pub finish: Finish,
    /// The seed that made it.
    pub seed: u64,
}

impl Finished {
    /// What `best_of` goes by.
    #[must_use]
    pub fn mean_logprob(&self) -> f32 {
        self.tokens.iter().map(|token| token.logprob).sum::<f32>() / self.tokens.len().max(1) as f32
    }
}

impl Choices {
    /// Submits every request of `admitted`, in order. If one is refused, those before it are cancelled.
    ///
    /// # Errors
    /// The first refusal.
    pub async fn start(app: &App, admitted: Admitted, wants: Wants) -> Result<Self, EngineError> {
        let Admitted { prompts, output, duration } = admitted;
        let mut totals = Totals::new(&prompts, duration);
        let requests = prompts.into_iter().flat_map(|prompt| prompt.requests);
        let tokenizer = &app.text.tokenizer;
        let output: &Arc<Output> = &output;
        let starts = requests.map(|request| Choice::start(&app.engine, tokenizer, request, output, wants));
        let choices = futures::future::try_join_all(starts).await?;
        totals.seeds = choices.iter().map(|choice| choice.seed).collect();
        Ok(Self { running: choices.into_iter().map(Some).collect(), turn: 0, totals })
    }

    /// The next delta of any sequence, with its index (`prompt * num_sequences + sequence`); `None` when all have ended.
    ///
    /// # Errors
    /// If one of them fails. All others are cancelled then, and nothing follows.
    pub async fn next(&mut self) -> Option<Result<(usize, Delta), StreamError>> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// As [`next`](Self::next), for callers that poll: with it, all that is ready can be taken at once.
    ///
    /// # Errors
    /// As [`next`](Self::next).
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<(usize, Delta), StreamError>>> {
        let (num_choices, mut all_ended) = (self.running.len(), true);
        for index in (self.turn..num_choices).chain(0..self.turn) {
            let Some(choice) = &mut self.running[index] else { continue };
            let delta = match choice.poll_next(cx) {
                Poll::Pending => {
                    all_ended = false;
                    continue;
                }
                Poll::Ready(None) => {
                    self.running[index] = None;
                    continue;
                }
                Poll::Ready(Some(delta)) => delta,
            };
            self.totals.record(index, choice, &delta);
            self.turn = (index + 1) % num_choices;
            if delta.is_err() {
                self.running.clear();
                self.turn = 0;
            }
            return Poll::Ready(Some(delta.map(|delta| (index, delta))));
        }
        if all_ended { Poll::Ready(None) } else { Poll::Pending }
    }

    /// Waits for all sequences and returns them by index.
    ///
    /// # Errors
    /// If one of them fails; all others are cancelled then.
    pub async fn collect(mut self) -> Result<(Vec<Finished>, Totals), StreamError> {
        let mut collected: Vec<(String, Vec<Token>, Option<Finish>)> =
            vec![Default::default(); self.totals.seeds.len()];
        while let Some(next) = self.next().await {
            let (index, delta) = next?;
            let (text, tokens, finish) = &mut collected[index];
            text.push_str(&delta.text);
            tokens.extend(delta.token);
            *finish = delta.finish;
        }
        let finished = collected.into_iter().zip(&self.totals.seeds).map(|((text, tokens, finish), seed)| {
            let finish = finish.expect("every choice ends with a finish or an error. This is a bug.");
            Finished { text, tokens, finish, seed: *seed }
        });
        Ok((finished.collect(), self.totals.clone()))
    }

    /// What the sequences have cost so far.
    #[must_use]
    pub fn totals(&self) -> &Totals {
        &self.totals
    }
}

// === impl Totals ===

impl Totals {
    fn new(prompts: &[AdmittedPrompt], admission: Duration) -> Self {
        Self {
            prompt_tokens: prompts.iter().map(|prompt| prompt.num_tokens).collect(),
            cached_tokens: vec![None; prompts.len()],
            num_generated: 0,
            seeds: Vec::new(),
            num_sequences: prompts.first().map_or(1, |prompt| prompt.requests.len()),
            admission,
            submitted: Instant::now(),
            started: None,
        }
    }

    fn record(&mut self, index: usize, choice: &Choice, delta: &Result<Delta, StreamError>) {
        if index.is_multiple_of(self.num_sequences) {
            self.cached_tokens[index / self.num_sequences] = choice.cached_tokens;
        }
        self.started = match (self.started, choice.started) {
            (Some(earlier), Some(other)) => Some(earlier.min(other)),
            (earlier, other) => earlier.or(other),
        };
        if delta.as_ref().is_ok_and(|delta| delta.token.is_some()) {
            self.num_generated += 1;
        }
    }

    /// Tokens of all prompts.
    #[must_use]
    pub fn num_prompt(&self) -> u64 {
        self.prompt_tokens.iter().copied().map(u64::from).sum()
    }

    /// Tokens of all prompts that the prefix cache had.
    #[must_use]
    pub fn num_cached(&self) -> u64 {
        self.cached_tokens.iter().flatten().copied().map(u64::from).sum()
    }

    /// How long it all took, for a request that arrived at `arrived` and is done now.
    #[must_use]
    pub fn timings(&self, arrived: Instant) -> Timings {
        let started = self.started.unwrap_or(self.submitted);
        Timings {
            total: arrived.elapsed(),
            queue: started.duration_since(self.submitted),
            inference: started.elapsed(),
            num_generated: self.num_generated,
            num_cached: u32::try_from(self.num_cached()).unwrap_or(u32::MAX),
        }
    }
}
