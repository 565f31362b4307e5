//! `POST /v1/chat/completions`.

use std::sync::Arc;

use axum::{
    Extension, Json,
    extract::State,
    response::{IntoResponse as _, Response},
};

use super::{chat_stream::ChatChunks, logprobs, reply};
use crate::{
    admit,
    api::{
        ApiError, App, Context,
        error::OpenAiError,
        headers,
        json::OpenAiJson,
        sse,
        types::chat::{AssistantMessage, ChatChoice, ChatCompletion, ChatLogprobs, ChatRequest},
    },
    stream::{Choices, Finished, Totals, Wants},
};

pub(in crate::api) async fn chat(
    State(app): State<Arc<App>>,
    Extension(context): Extension<Context>,
    OpenAiJson(request): OpenAiJson<ChatRequest>,
) -> Result<Response, OpenAiError> {
    reply::check_model(&app, &request.common)?;
    let asks_for_logprobs = request.chat.logprobs.unwrap_or(false);
    let includes_usage = reply::includes_usage(&request.common);
    let stream = request.common.stream.unwrap_or(false);
    let spec = admit::openai::lower_chat(request, &app.limits)?;
    let admitted = admit::admit(&app, &context, spec).await?;
    let choices = Choices::start(&app, admitted, Wants::default()).await?;
    if stream {
        let chunks = ChatChunks::new(&app, asks_for_logprobs, includes_usage, choices.totals().seeds.len());
        return Ok(sse::respond(&app, &context, choices, chunks).await?);
    }
    let (finished, totals) = choices.collect().await?;
    let answer = answer(&app, finished, &totals, asks_for_logprobs)?;
    app.requests.succeeded(&totals.timings(context.arrived));
    let mut response = Json(answer).into_response();
    headers::prefix_cache(response.headers_mut(), &totals);
    Ok(response)
}

fn answer(
    app: &App,
    finished: Vec<Finished>,
    totals: &Totals,
    asks_for_logprobs: bool,
) -> Result<ChatCompletion, ApiError> {
    let choice = |(index, finished): (usize, Finished)| {
        Ok(ChatChoice {
            index,
            logprobs: asks_for_logprobs.then(|| list(app, &finished)).transpose()?,
            finish_reason: reply::finish_reason(&finished.finish),
            message: AssistantMessage { role: "assistant", content: finished.text, refusal: None },
        })
    };
    let reply = reply::Reply::new(app, "chatcmpl");
    Ok(ChatCompletion {
        id: reply.id,
        object: "chat.completion",
        created: reply.created,
        model: reply.model,
        system_fingerprint: reply::SYSTEM_FINGERPRINT,
        choices: finished.into_iter().enumerate().map(choice).collect::<Result<Vec<_>, ApiError>>()?,
        usage: reply::usage(totals),
    })
}

fn list(app: &App, finished: &Finished) -> Result<ChatLogprobs, ApiError> {
    let listed = finished.tokens.iter().map(|token| logprobs::chat(&app.text.tokenizer, token));
    let listed = listed.collect::<Result<Vec<_>, ApiError>>()?;
    Ok(ChatLogprobs { content: listed.into_iter().flatten().collect(), refusal: None })
}
