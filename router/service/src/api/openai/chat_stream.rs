//! The chunks of a streamed chat completion.
//!
//! Per choice: the role, then text as it can be shown, then the finish reason with an empty delta; the choices interleave. After
//! the last of them the usage, if asked for, and `[DONE]`.

use anaphora_text::Tokenizer;

use super::{
    logprobs,
    reply::{self, Reply, SYSTEM_FINGERPRINT},
};
use crate::{
    api::{
        ApiError, App, Family,
        sse::{Chunks, Events, Mold},
        types::{
            chat::{ChatCompletionChunk, ChatLogprobs, ChunkChoice, Delta, TokenLogprob},
            openai::FinishReason,
        },
    },
    stream::{self, Totals},
};

pub(super) struct ChatChunks {
    reply: Reply,
    tokenizer: Tokenizer,
    asks_for_logprobs: bool,
    includes_usage: bool,
    choices: Vec<ChoiceState>,
}

#[derive(Default)]
struct ChoiceState {
    has_begun: bool,
    /// Of chunks that have nothing but text.
    mold: Option<Mold>,
    /// Of tokens whose text has not been shown yet.
    logprobs: Vec<TokenLogprob>,
}

impl ChatChunks {
    /// For `num_choices` choices.
    pub(super) fn new(app: &App, asks_for_logprobs: bool, includes_usage: bool, num_choices: usize) -> Self {
        Self {
            reply: Reply::new(app, "chatcmpl"),
            tokenizer: app.text.tokenizer.clone(),
            asks_for_logprobs,
            includes_usage,
            choices: (0..num_choices).map(|_| ChoiceState::default()).collect(),
        }
    }

    fn chunk(&self, choices: &[ChunkChoice<'_>], totals: Option<&Totals>, events: &mut Events) {
        events.json(&ChatCompletionChunk {
            id: &self.reply.id,
            object: "chat.completion.chunk",
            created: self.reply.created,
            model: &self.reply.model,
            system_fingerprint: SYSTEM_FINGERPRINT,
            choices,
            usage: self.includes_usage.then(|| totals.map(reply::usage)),
        });
    }

    fn choice(
        &self,
        index: usize,
        delta: Delta<'_>,
        logprobs: Vec<TokenLogprob>,
        finish: Option<FinishReason>,
        events: &mut Events,
    ) {
        let has_text = delta.content.is_some_and(|content| !content.is_empty());
        let lists = self.asks_for_logprobs && (has_text || !logprobs.is_empty());
        let logprobs = lists.then_some(ChatLogprobs { content: logprobs, refusal: None });
        self.chunk(&[ChunkChoice { index, delta, logprobs, finish_reason: finish }], None, events);
    }
}

impl ChatChunks {
    fn text(&mut self, index: usize, text: &str, events: &mut Events) {
        let content = |text| Delta { role: None, content: Some(text) };
        if self.asks_for_logprobs {
            let logprobs = std::mem::take(&mut self.choices[index].logprobs);
            return self.choice(index, content(text), logprobs, None, events);
        }
        let mold = self.choices[index].mold.take();
        let mold = mold.unwrap_or_else(|| {
            Mold::new(|events| self.choice(index, content(Mold::TEXT), Vec::new(), None, events))
        });
        events.text(&mold, text);
        self.choices[index].mold = Some(mold);
    }
}

impl Chunks for ChatChunks {
    const FAMILY: Family = Family::OpenAi;

    fn delta(
        &mut self,
        index: usize,
        delta: stream::Delta,
        _totals: &Totals,
        events: &mut Events,
    ) -> Result<(), ApiError> {
        if !std::mem::replace(&mut self.choices[index].has_begun, true) {
            let role = Delta { role: Some("assistant"), content: Some("") };
            self.choice(index, role, Vec::new(), None, events);
        }
        if let Some(token) = delta.token.as_ref().filter(|_| self.asks_for_logprobs) {
            let listed = logprobs::chat(&self.tokenizer, token)?;
            self.choices[index].logprobs.extend(listed);
        }
        let is_last = delta.finish.is_some();
        if !delta.text.is_empty() || (is_last && !self.choices[index].logprobs.is_empty()) {
            self.text(index, &delta.text, events);
        }
        if let Some(finish) = delta.finish {
            let finish = reply::finish_reason(&finish);
            self.choice(index, Delta::default(), Vec::new(), Some(finish), events);
        }
        Ok(())
    }

    fn end(&mut self, totals: &Totals, events: &mut Events) {
        if self.includes_usage {
            self.chunk(&[], Some(totals), events);
        }
        events.line("[DONE]");
    }
}
