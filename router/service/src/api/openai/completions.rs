//! `POST /v1/completions`.

use std::sync::Arc;

use axum::{
    Extension, Json,
    extract::State,
    response::{IntoResponse as _, Response},
};

use super::{completions_stream::CompletionChunks, logprobs, reply};
use crate::{
    admit::{self, Admitted},
    api::{
        ApiError, App, Context,
        error::OpenAiError,
        headers,
        json::OpenAiJson,
        sse,
        types::completions::{Completion, CompletionChoice, CompletionLogprobs, CompletionRequest},
    },
    stream::{Choices, Finished, Totals, Wants},
};

pub(in crate::api) async fn completions(
    State(app): State<Arc<App>>,
    Extension(context): Extension<Context>,
    OpenAiJson(request): OpenAiJson<CompletionRequest>,
) -> Result<Response, OpenAiError> {
    reply::check_model(&app, &request.common)?;
    let shape = Shape::of(&request);
    let includes_usage = reply::includes_usage(&request.common);
    let stream = request.common.stream.unwrap_or(false);
    let spec = admit::openai::lower_completion(request, &app.limits)?;
    let admitted = admit::admit(&app, &context, spec).await?;
    let prefixes = shape.prefixes(&admitted);
    let choices = Choices::start(&app, admitted, Wants::default()).await?;
    if stream {
        let chunks = CompletionChunks::new(&app, shape.asks_for_logprobs, includes_usage, prefixes);
        return Ok(sse::respond(&app, &context, choices, chunks).await?);
    }
    let (finished, totals) = choices.collect().await?;
    let choices = self::choices(&app, &shape, finished, &prefixes, &totals)?;
    app.requests.succeeded(&totals.timings(context.arrived));
    let reply = reply::Reply::new(&app, "cmpl");
    let answer = Completion {
        id: &reply.id,
        object: "text_completion",
        created: reply.created,
        model: &reply.model,
        system_fingerprint: reply::SYSTEM_FINGERPRINT,
        choices: &choices,
        usage: Some(Some(reply::usage(&totals))),
    };
    let mut response = Json(answer).into_response();
    headers::prefix_cache(response.headers_mut(), &totals);
    Ok(response)
}

/// How the answer is to look.
struct Shape {
    /// Choices per prompt; if there are more sequences, the best of them.
    num_choices: usize,
    echo: bool,
    asks_for_logprobs: bool,
}

impl Shape {
    fn of(request: &CompletionRequest) -> Self {
        Self {
            num_choices: request.common.n.unwrap_or(1) as usize,
            echo: request.completion.echo.unwrap_or(false),
            asks_for_logprobs: request.completion.logprobs.is_some(),
        }
    }

    /// By sequence: the prompt, if it is to be echoed; else nothing.
    fn prefixes(&self, admitted: &Admitted) -> Vec<String> {
        let per_prompt = admitted.prompts.iter().map(|prompt| {
            let prefix = prompt.text.as_ref().filter(|_| self.echo).cloned().unwrap_or_default();
            std::iter::repeat_n(prefix, prompt.requests.len())
        });
        per_prompt.flatten().collect()
    }
}

fn choices(
    app: &App,
    shape: &Shape,
    finished: Vec<Finished>,
    prefixes: &[String],
    totals: &Totals,
) -> Result<Vec<CompletionChoice>, ApiError> {
    let mut choices = Vec::new();
    let mut sequences = finished.into_iter().zip(prefixes);
    for _ in &totals.prompt_tokens {
        let mut of_prompt: Vec<_> = sequences.by_ref().take(totals.num_sequences).collect();
        if of_prompt.len() > shape.num_choices {
            of_prompt.sort_by(|(one, _), (other, _)| other.mean_logprob().total_cmp(&one.mean_logprob()));
            of_prompt.truncate(shape.num_choices);
        }
        for (finished, prefix) in of_prompt {
            let logprobs = shape.asks_for_logprobs.then(|| list(app, &finished)).transpose()?;
            choices.push(CompletionChoice {
                index: choices.len(),
                text: format!("{prefix}{}", finished.text),
                logprobs,
                finish_reason: Some(reply::finish_reason(&finished.finish)),
            });
        }
    }
    Ok(choices)
}

fn list(app: &App, finished: &Finished) -> Result<CompletionLogprobs, ApiError> {
    let (mut listed, mut offset) = (CompletionLogprobs::default(), 0);
    for token in &finished.tokens {
        logprobs::completion(&app.text.tokenizer, token, &mut offset, &mut listed)?;
    }
    Ok(listed)
}
