//! `POST /v1/cache/clear`: forgets what no running sequence uses.

use std::sync::Arc;

use axum::{Extension, Json, extract::State};

use crate::api::{App, Context, error::OpenAiError, types::cache::CacheCleared};

pub(in crate::api) async fn clear(
    State(app): State<Arc<App>>,
    Extension(context): Extension<Context>,
) -> Result<Json<CacheCleared>, OpenAiError> {
    let blocks = app.engine.clear_cache(context.tenant).await?;
    Ok(Json(CacheCleared { blocks }))
}
