//! `POST /v1/cache/explain`: how much of a request's prompt is cached, where the two part, and why.

use std::sync::Arc;

use anaphora_core::{Explanation, MatchEnd};
use axum::{Extension, Json, extract::State};

use super::locate::Located;
use crate::{
    admit::{self, AdmitError, Bounds, Spec},
    api::{
        ApiError, App, Context,
        error::OpenAiError,
        json::OpenAiJson,
        types::cache::{CacheExplanation, ExplainRequest, MatchedTokens, Reason},
    },
};

pub(in crate::api) async fn explain(
    State(app): State<Arc<App>>,
    Extension(context): Extension<Context>,
    OpenAiJson(request): OpenAiJson<ExplainRequest>,
) -> Result<Json<CacheExplanation>, OpenAiError> {
    let spec = lower(request, &app)?;
    let replica = app.engine.would_accept()?;
    let namespace = admit::namespace(&context, &replica, &spec.cache_salt);
    let located = Located::messages(&spec.prompts);
    let bounds = Bounds::new(&app, &replica);
    let tokenized = admit::tokenize(&app, spec.prompts, spec.truncate, bounds, &namespace).await?;
    let Some(prompt) = tokenized.into_iter().next() else {
        return Err(ApiError::Internal("a request without a prompt was lowered".to_owned()).into());
    };
    let explanation = app.engine.explain(namespace, prompt.ids.clone()).await?;
    let Explanation { num_tokens, num_cached_tokens, end } = explanation;
    let (reason, cached) = match end {
        MatchEnd::Complete => (Reason::Complete, None),
        MatchEnd::Diverges { cached } => (Reason::Diverges, Some(cached)),
        MatchEnd::Ends => (Reason::Ends, None),
        MatchEnd::EmptyNamespace => (Reason::NothingCached, None),
        MatchEnd::Disabled => (Reason::Disabled, None),
    };
    let divergence = if matches!(reason, Reason::Diverges | Reason::Ends) {
        let tokenizer = app.text.tokenizer.clone();
        let locate = move || located.divergence(&tokenizer, &prompt, num_cached_tokens, cached.as_deref());
        Some(app.encoder.run(locate).await??)
    } else {
        None
    };
    let matched_tokens = MatchedTokens { device: num_cached_tokens, ..MatchedTokens::default() };
    Ok(Json(CacheExplanation { prompt_tokens: num_tokens, matched_tokens, divergence, reason }))
}

/// What the request would generate from: one prompt.
fn lower(request: ExplainRequest, app: &App) -> Result<Spec, AdmitError> {
    let spec = match request {
        ExplainRequest::Chat(request) => admit::openai::lower_chat(request, &app.limits)?,
        ExplainRequest::Completion(request) => admit::openai::lower_completion(request, &app.limits)?,
        ExplainRequest::Generate(request) => admit::tgi::lower(request, &app.limits)?.spec,
    };
    if spec.prompts.len() > 1 {
        let message = "`prompt`: one prompt at a time can be explained".to_owned();
        return Err(AdmitError::Invalid { param: "prompt".to_owned(), message });
    }
    Ok(spec)
}
