//! `POST /generate`.

use std::sync::Arc;

use axum::{
    Extension, Json,
    extract::State,
    response::{IntoResponse as _, Response},
};
use http::HeaderMap;

use super::details;
use crate::{
    admit,
    api::{
        App, Context,
        error::TgiError,
        headers,
        json::TgiJson,
        types::tgi::{BestOfSequence, Details, GenerateRequest, GenerateResponse},
    },
    stream::{Choices, Finished, Wants},
};

pub(in crate::api) async fn generate(
    State(app): State<Arc<App>>,
    Extension(context): Extension<Context>,
    TgiJson(request): TgiJson<GenerateRequest>,
) -> Result<Response, TgiError> {
    let (headers, answer) = answer(&app, &context, request, false).await?;
    Ok((headers, Json(answer)).into_response())
}

/// The answer to `request`. `return_full_text` is for when the client does not say.
pub(super) async fn answer(
    app: &App,
    context: &Context,
    request: GenerateRequest,
    return_full_text: bool,
) -> Result<(HeaderMap, GenerateResponse), TgiError> {
    let parameters = request.parameters.clone().unwrap_or_default();
    let num_characters = request.inputs.chars().count();
    let prefix = if parameters.return_full_text.unwrap_or(return_full_text) {
        request.inputs.clone()
    } else {
        String::new()
    };
    let lowered = admit::tgi::lower(request, &app.limits)?;
    let admitted = admit::admit(app, context, lowered.spec).await?;
    let choices = Choices::start(app, admitted, Wants { token_text: true }).await?;
    let (mut finished, totals) = choices.collect().await?;
    details::best_first(&mut finished);
    let mut sequences = finished
        .into_iter()
        .map(|sequence| self::sequence(app, &prefix, lowered.is_sampling, sequence))
        .collect::<Result<Vec<_>, TgiError>>()?
        .into_iter();
    let best = sequences.next().expect("a request has at least one sequence. This is a bug.");
    let others: Vec<_> = sequences.collect();
    let mut headers = HeaderMap::new();
    headers::timings(&mut headers, app, context, &totals, num_characters);
    headers::prefix_cache(&mut headers, &totals);
    app.requests.succeeded(&totals.timings(context.arrived));
    let asks_for_details = parameters.details == Some(true) || parameters.decoder_input_details == Some(true);
    let generated_text = best.generated_text.clone();
    let best_of_sequences = (!others.is_empty()).then_some(others);
    let details = asks_for_details.then(|| details_of(best, best_of_sequences));
    Ok((headers, GenerateResponse { generated_text, details }))
}

/// A finished sequence as TGI writes it.
fn sequence(
    app: &App,
    prefix: &str,
    is_sampling: bool,
    finished: Finished,
) -> Result<BestOfSequence, TgiError> {
    let finish_reason = details::finish_reason(&finished.finish);
    let tokenizer = &app.text.tokenizer;
    let top_tokens = finished
        .tokens
        .iter()
        .map(|token| details::top_tokens(tokenizer, token))
        .collect::<Result<Vec<_>, _>>()?;
    let asks_for_top = top_tokens.iter().any(|top| !top.is_empty());
    Ok(BestOfSequence {
        generated_text: format!("{prefix}{}", finished.text),
        finish_reason,
        generated_tokens: u32::try_from(finished.tokens.len()).unwrap_or(u32::MAX),
        seed: is_sampling.then_some(finished.seed),
        prefill: Vec::new(),
        tokens: finished.tokens.into_iter().map(details::token).collect(),
        top_tokens: if asks_for_top { top_tokens } else { Vec::new() },
    })
}

fn details_of(best: BestOfSequence, best_of_sequences: Option<Vec<BestOfSequence>>) -> Details {
    Details {
        finish_reason: best.finish_reason,
        generated_tokens: best.generated_tokens,
        seed: best.seed,
        prefill: best.prefill,
        tokens: best.tokens,
        best_of_sequences,
        top_tokens: best.top_tokens,
    }
}
