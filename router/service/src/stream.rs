//! From an engine's updates to what clients see.
//!
//! ```text
//! Generation ──Update──► Choice ──┬─ Detokenizer ─► StopStrings ─► Delta.text   what may be shown now
//!                                 └─ Detokenizer ─────────────────► Delta.token  the token by itself, if asked for
//! Choices: all sequences of a request, merged in the order in which their tokens come
//! ```
//! - Every choice ends exactly once: with a [`Delta`] that has a finish, or with an error.
//! - A stop string drops the [`Generation`], which frees its row; so does dropping a [`Choice`], and with it the response.
//! - The last token of a sequence is known to be the last when it comes, so that the delta that brings it says so.

mod choices;
mod token;

use std::{
    sync::Arc,
    task::{Context, Poll, ready},
    time::Instant,
};

use anaphora_core::{
    plan::{FinishReason, Sample},
    request::Request,
};
use anaphora_text::{Detokenizer, StopStrings, TextError, Tokenizer};

pub use self::{
    choices::{Choices, Finished, Totals},
    token::{Token, TokenText, token_text},
};
use crate::{
    admit::Output,
    engine::{Engine, EngineError, Generation, Update},
};

/// Why a choice ended by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finish {
    /// At its limit of tokens.
    Length,
    /// With one of the model's own tokens, or one of `stop_token_ids`.
    StopToken,
    /// With this stop string.
    StopString(String),
}

/// What one token (or, rarely, the end without one) adds to a choice.
#[derive(Clone, Debug, PartialEq)]
pub struct Delta {
    /// The token.
    pub token: Option<Token>,
    /// The text that may be shown now; may be empty, and may be that of earlier tokens.
    pub text: String,
    /// In the last delta only.
    pub finish: Option<Finish>,
}

/// Why a choice ended before its time.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum StreamError {
    /// The replica failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The tokenizer cannot decode what the model generated.
    #[error("{0}")]
    Decode(String),
}

impl From<TextError> for StreamError {
    fn from(error: TextError) -> Self {
        Self::Decode(error.to_string())
    }
}

/// One sequence on its way to a client.
#[derive(Debug)]
pub struct Choice {
    /// `None` once it has ended.
    generation: Option<Generation>,
    /// The last token came; its finish has not.
    last: Option<Delta>,
    decoder: Decoder,
    /// The seed that made it.
    pub seed: u64,
    /// Prompt tokens from the prefix cache; `None` until it has left the queue.
    pub cached_tokens: Option<u32>,
    /// Tokens generated so far.
    pub num_generated: u32,
    /// When it was submitted.
    pub submitted: Instant,
    /// When it left the queue.
    pub started: Option<Instant>,
}

impl Choice {
    /// Submits `request`.
    ///
    /// # Errors
    /// If the engine does not take it.
    pub async fn start(
        engine: &Engine,
        tokenizer: &Tokenizer,
        request: Request,
        output: &Arc<Output>,
        wants: Wants,
    ) -> Result<Self, EngineError> {
        let decoder = Decoder::new(tokenizer.clone(), &request, Arc::clone(output), wants);
        let (seed, submitted) = (request.sampling.seed, Instant::now());
        let generation = engine.submit(request).await?;
        Ok(Self {
            generation: Some(generation),
            last: None,
            decoder,
            seed,
            cached_tokens: None,
            num_generated: 0,
            submitted,
            started: None,
        })
    }

    /// What comes next; `None` after the end.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Delta, StreamError>>> {
        loop {
            let Some(generation) = &mut self.generation else { return Poll::Ready(None) };
            let step = match ready!(generation.poll_next(cx)) {
                None => Err(EngineError::ShuttingDown.into()),
                Some(update) => self.take(update),
            };
            let Some(step) = step.transpose() else { continue };
            if step.as_ref().map_or(true, |delta| delta.finish.is_some()) {
                self.generation = None;
            }
            return Poll::Ready(Some(step));
        }
    }

    /// What an update adds, if it shows.
    fn take(&mut self, update: Update) -> Result<Option<Delta>, StreamError> {
        match update {
            Update::Started { cached_tokens } => {
                self.cached_tokens = Some(cached_tokens);
                self.started = Some(Instant::now());
                Ok(None)
            }
            Update::Token(_) if self.last.is_some() => {
                Err(StreamError::Decode("the replica went on after the last token".to_owned()))
            }
            Update::Token(sample) => {
                self.num_generated += 1;
                let delta = self.decoder.push(sample, self.num_generated)?;
                if delta.finish.is_none() && self.decoder.is_last {
                    self.last = Some(delta);
                    return Ok(None);
                }
                Ok(Some(delta))
            }
            Update::Finished(reason) => {
                let mut delta =
                    self.last.take().unwrap_or(Delta { token: None, text: String::new(), finish: None });
                delta.finish = Some(self.decoder.finish(reason, &mut delta)?);
                Ok(Some(delta))
            }
            Update::Failed(error) => Err(error.into()),
        }
    }
}

/// What a client wants to know of each token, besides the text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wants {
    /// The text that the token itself adds, special tokens included ([`Token::text`]). Costs a second detokeniser.
    pub token_text: bool,
}

/// Tokens to text, for one sequence.
struct Decoder {
    tokenizer: Tokenizer,
    output: Arc<Output>,
    max_new_tokens: u32,
    visible: Detokenizer,
    stops: StopStrings,
    /// Decodes every token, special ones too.
    verbatim: Option<Detokenizer>,
    /// The replica ends the sequence with the token that came last, which is this one.
    is_last: bool,
    last_token: Option<u32>,
}

impl Decoder {
    fn new(tokenizer: Tokenizer, request: &Request, output: Arc<Output>, wants: Wants) -> Self {
        let detokenizer = |skip_special| Detokenizer::new(tokenizer.clone(), &request.prompt, skip_special);
        Self {
            max_new_tokens: request.max_new_tokens,
            visible: detokenizer(output.skip_special_tokens),
            verbatim: wants.token_text.then(|| detokenizer(false)),
            stops: StopStrings::new(output.stop.strings.clone(), output.stop.include_in_output),
            output,
            tokenizer,
            is_last: false,
            last_token: None,
        }
    }

    /// The `num_generated`th token.
    fn push(&mut self, sample: Sample, num_generated: u32) -> Result<Delta, StreamError> {
        let ends = self.output.stop_tokens.binary_search(&sample.token).is_ok();
        self.is_last = ends || num_generated >= self.max_new_tokens;
        self.last_token = Some(sample.token);
        let own_text = match &mut self.verbatim {
            Some(verbatim) => verbatim.push(sample.token)?,
            None => String::new(),
        };
        let text = if ends && !self.output.stop.include_in_output {
            String::new()
        } else {
            self.visible.push(sample.token)?
        };
        let token = Token {
            id: sample.token,
            logprob: sample.logprob,
            text: own_text,
            is_special: self.tokenizer.is_special(sample.token),
            ends,
            top: sample.top,
        };
        let (text, finish) = self.watch(text, num_generated);
        Ok(Delta { token: Some(token), text, finish })
    }

    /// What of `text` may be shown, and whether a stop string ended it.
    fn watch(&mut self, text: String, num_generated: u32) -> (String, Option<Finish>) {
        if num_generated < self.output.min_new_tokens || self.output.stop.strings.is_empty() {
            return (text, None);
        }
        let step = self.stops.push(&text);
        (step.text, step.stopped.map(Finish::StopString))
    }

    /// The sequence ended: adds what was held back to `delta`, and says why it ended.
    fn finish(&mut self, reason: FinishReason, delta: &mut Delta) -> Result<Finish, StreamError> {
        if let (Some(verbatim), Some(token)) = (&mut self.verbatim, &mut delta.token) {
            token.text.push_str(&verbatim.finish()?);
        }
        let rest = self.visible.finish()?;
        let (text, stopped) = self.watch(rest, u32::MAX);
        delta.text.push_str(&text);
        if let Some(stopped) = stopped {
            return Ok(stopped);
        }
        delta.text.push_str(&self.stops.finish());
        Ok(match (reason, self.last_token) {
            (FinishReason::Length, _) => Finish::Length,
            (FinishReason::StopToken, Some(token)) if self.output.stop_string_tokens.contains(&token) => {
                Finish::StopString(self.tokenizer.id_to_token(token).unwrap_or_default())
            }
            (FinishReason::StopToken, _) => Finish::StopToken,
        })
    }
}

impl std::fmt::Debug for Decoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decoder").field("output", &self.output).finish_non_exhaustive()
    }
}
