//! The events of a streamed text completion: text as it can be shown, by choice; the last one of a choice has the finish reason.
//! After the last of all the usage, if asked for, and `[DONE]`.

use anaphora_text::Tokenizer;

use super::{
    logprobs,
    reply::{self, Reply, SYSTEM_FINGERPRINT},
};
use crate::{
    api::{
        ApiError, App, Family,
        sse::{Chunks, Events, Mold},
        types::completions::{Completion, CompletionChoice, CompletionLogprobs},
    },
    stream::{Delta, Totals},
};

pub(super) struct CompletionChunks {
    reply: Reply,
    tokenizer: Tokenizer,
    asks_for_logprobs: bool,
    includes_usage: bool,
    choices: Vec<ChoiceState>,
}

struct ChoiceState {
    /// Goes before the first text.
    prefix: String,
    /// Of tokens whose text has not been shown yet.
    logprobs: CompletionLogprobs,
    /// Characters of the tokens so far.
    offset: usize,
    /// Of events that have nothing but text.
    mold: Option<Mold>,
}

impl CompletionChunks {
    /// For one choice per element of `prefixes`, which begin their texts.
    pub(super) fn new(
        app: &App,
        asks_for_logprobs: bool,
        includes_usage: bool,
        prefixes: Vec<String>,
    ) -> Self {
        let choice =
            |prefix| ChoiceState { prefix, logprobs: CompletionLogprobs::default(), offset: 0, mold: None };
        Self {
            reply: Reply::new(app, "cmpl"),
            tokenizer: app.text.tokenizer.clone(),
            asks_for_logprobs,
            includes_usage,
            choices: prefixes.into_iter().map(choice).collect(),
        }
    }

    fn event(&self, choices: &[CompletionChoice], totals: Option<&Totals>, events: &mut Events) {
        events.json(&Completion {
            id: &self.reply.id,
            object: "text_completion",
            created: self.reply.created,
            model: &self.reply.model,
            system_fingerprint: SYSTEM_FINGERPRINT,
            choices,
            usage: self.includes_usage.then(|| totals.map(reply::usage)),
        });
    }
}

impl Chunks for CompletionChunks {
    const FAMILY: Family = Family::OpenAi;

    fn delta(
        &mut self,
        index: usize,
        delta: Delta,
        _totals: &Totals,
        events: &mut Events,
    ) -> Result<(), ApiError> {
        let state = &mut self.choices[index];
        if let Some(token) = delta.token.as_ref().filter(|_| self.asks_for_logprobs) {
            logprobs::completion(&self.tokenizer, token, &mut state.offset, &mut state.logprobs)?;
        }
        if delta.text.is_empty() && delta.finish.is_none() {
            return Ok(());
        }
        let logprobs = std::mem::take(&mut state.logprobs);
        let mut text = delta.text;
        if !state.prefix.is_empty() {
            text.insert_str(0, &std::mem::take(&mut state.prefix));
        }
        let finish_reason = delta.finish.as_ref().map(reply::finish_reason);
        if self.asks_for_logprobs || finish_reason.is_some() {
            let logprobs = self.asks_for_logprobs.then_some(logprobs);
            self.event(&[CompletionChoice { index, text, logprobs, finish_reason }], None, events);
            return Ok(());
        }
        let mold = state.mold.take();
        let mold = mold.unwrap_or_else(|| Mold::new(|events| self.event(&[text_only(index)], None, events)));
        events.text(&mold, &text);
        self.choices[index].mold = Some(mold);
        Ok(())
    }

    fn end(&mut self, totals: &Totals, events: &mut Events) {
        if self.includes_usage {
            self.event(&[], Some(totals), events);
        }
        events.line("[DONE]");
    }
}

/// What a mold is made of.
fn text_only(index: usize) -> CompletionChoice {
    CompletionChoice { index, text: Mold::TEXT.to_owned(), logprobs: None, finish_reason: None }
}
