//! `POST /`: `/generate` in an array of one, or `/generate_stream`, as `stream` says. The prompt is part of the answer unless the
//! client says otherwise.

use std::sync::Arc;

use axum::{
    Extension, Json,
    extract::State,
    response::{IntoResponse as _, Response},
};

use super::{generate, generate_stream};
use crate::api::{App, Context, error::TgiError, json::TgiJson, types::tgi::GenerateRequest};

/// What `return_full_text` is on this route if the client does not say: TGI's choice for a text-generation model.
const RETURN_FULL_TEXT: bool = true;

pub(in crate::api) async fn compat(
    State(app): State<Arc<App>>,
    Extension(context): Extension<Context>,
    TgiJson(request): TgiJson<GenerateRequest>,
) -> Result<Response, TgiError> {
    if request.stream == Some(true) {
        return generate_stream::respond(&app, &context, request, RETURN_FULL_TEXT).await;
    }
    let (headers, answer) = generate::answer(&app, &context, request, RETURN_FULL_TEXT).await?;
    Ok((headers, Json([answer])).into_response())
}
