//! `POST /chat_tokenize`: what the chat template makes of a chat request, and its tokens.

use std::sync::Arc;

use axum::{Json, extract::State};

use super::tokenize::pieces;
use crate::{
    admit,
    api::{
        App,
        error::TgiError,
        json::TgiJson,
        types::{chat::ChatRequest, tgi::ChatTokenizeResponse},
    },
};

pub(in crate::api) async fn chat_tokenize(
    State(app): State<Arc<App>>,
    TgiJson(request): TgiJson<ChatRequest>,
) -> Result<Json<ChatTokenizeResponse>, TgiError> {
    let chat = admit::openai::lower_messages(request)?;
    let templated_text = admit::render(&app, chat).await?;
    let tokenize_response = pieces(&app, templated_text.clone(), false).await?;
    Ok(Json(ChatTokenizeResponse { tokenize_response, templated_text }))
}
