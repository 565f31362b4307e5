//! `POST /generate_stream`: an event per token; the last one has the whole text. There is no `[DONE]`.

use std::sync::Arc;

use anaphora_text::Tokenizer;
use axum::{Extension, extract::State, response::Response};

use super::details;
use crate::{
    admit,
    api::{
        ApiError, App, Context, Family,
        error::TgiError,
        headers,
        json::TgiJson,
        sse::{self, Chunks, Events},
        types::tgi::{GenerateRequest, StreamDetails, StreamResponse},
    },
    stream::{Choices, Delta, Totals, Wants},
};

pub(in crate::api) async fn generate_stream(
    State(app): State<Arc<App>>,
    Extension(context): Extension<Context>,
    TgiJson(request): TgiJson<GenerateRequest>,
) -> Result<Response, TgiError> {
    respond(&app, &context, request, false).await
}

/// Streams the answer to `request`. `return_full_text` is for when the client does not say.
pub(super) async fn respond(
    app: &App,
    context: &Context,
    request: GenerateRequest,
    return_full_text: bool,
) -> Result<Response, TgiError> {
    let parameters = request.parameters.clone().unwrap_or_default();
    admit::tgi::check_stream(&parameters)?;
    let num_characters = request.inputs.chars().count();
    let text = if parameters.return_full_text.unwrap_or(return_full_text) {
        request.inputs.clone()
    } else {
        String::new()
    };
    let lowered = admit::tgi::lower(request, &app.limits)?;
    let admitted = admit::admit(app, context, lowered.spec).await?;
    let choices = Choices::start(app, admitted, Wants { token_text: true }).await?;
    let chunks = TokenEvents {
        tokenizer: app.text.tokenizer.clone(),
        text,
        index: 0,
        asks_for_details: parameters.details == Some(true),
        is_sampling: lowered.is_sampling,
    };
    let mut response = sse::respond(app, context, choices, chunks).await?;
    headers::compute(response.headers_mut(), app, num_characters);
    Ok(response)
}

/// Writes one sequence.
struct TokenEvents {
    tokenizer: Tokenizer,
    /// The text so far.
    text: String,
    index: u32,
    asks_for_details: bool,
    is_sampling: bool,
}

impl Chunks for TokenEvents {
    const FAMILY: Family = Family::Tgi;

    fn delta(
        &mut self,
        _index: usize,
        delta: Delta,
        totals: &Totals,
        events: &mut Events,
    ) -> Result<(), ApiError> {
        self.index += 1;
        self.text.push_str(&delta.text);
        let Some(token) = delta.token else {
            return Err(ApiError::Internal("a sequence ended without a last token".to_owned()));
        };
        let details = delta.finish.as_ref().filter(|_| self.asks_for_details).map(|finish| StreamDetails {
            finish_reason: details::finish_reason(finish),
            generated_tokens: self.index,
            seed: totals.seeds.first().copied().filter(|_| self.is_sampling),
            input_length: u32::try_from(totals.num_prompt()).unwrap_or(u32::MAX),
        });
        let top_tokens = details::top_tokens(&self.tokenizer, &token)?;
        let generated_text = delta.finish.is_some().then(|| std::mem::take(&mut self.text));
        let token = details::token(token);
        events.json(&StreamResponse { index: self.index, token, top_tokens, generated_text, details });
        Ok(())
    }

    fn end(&mut self, _totals: &Totals, _events: &mut Events) {}
}
