//! `POST /tokenize`: the tokens of `inputs`, with where they come from.

use std::sync::Arc;

use anaphora_text::Piece;
use axum::{Json, extract::State};

use crate::{
    admit::{AdmitError, Bounds},
    api::{
        ApiError, App,
        error::TgiError,
        json::TgiJson,
        types::tgi::{GenerateRequest, SimpleToken},
    },
};

/// What may be tokenised if the model does not say how long its texts may be.
const MAX_TOKENS: u32 = 1 << 20;

pub(in crate::api) async fn tokenize(
    State(app): State<Arc<App>>,
    TgiJson(request): TgiJson<GenerateRequest>,
) -> Result<Json<Vec<SimpleToken>>, TgiError> {
    let add_special_tokens = request.add_special_tokens.unwrap_or(true);
    Ok(Json(pieces(&app, request.inputs, add_special_tokens).await?))
}

/// The tokens of `text`, made on the CPU pool.
pub(super) async fn pieces(
    app: &App,
    text: String,
    add_special_tokens: bool,
) -> Result<Vec<SimpleToken>, ApiError> {
    let context = app.text.max_context.unwrap_or(MAX_TOKENS);
    app.encoder.check_size(&text, Bounds { max_prompt: context, context, vocab_size: u32::MAX })?;
    let tokenizer = app.text.tokenizer.clone();
    let encode = move || {
        let pieces = tokenizer.encode_pieces(&text, add_special_tokens);
        pieces.map_err(|error| AdmitError::Tokenizer(error.to_string()))
    };
    let pieces = app.encoder.run(encode).await??;
    Ok(pieces
        .into_iter()
        .map(|Piece { id, text, start, stop }| SimpleToken { id, text, start, stop })
        .collect())
}
