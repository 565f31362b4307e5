//! `POST /v1/cache/clear`: forgets the tenant's texts with their tokens, and the blocks that no running sequence uses.

use std::sync::Arc;

use axum::{Extension, Json, extract::State};

use crate::api::{App, Context, error::OpenAiError, types::cache::CacheCleared};

pub(in crate::api) async fn clear(
    State(app): State<Arc<App>>,
    Extension(context): Extension<Context>,
) -> Result<Json<CacheCleared>, OpenAiError> {
    app.encoder.clear_cache(&context.tenant);
    let blocks = app.engine.clear_cache(context.tenant).await?;
    Ok(Json(CacheCleared { blocks }))
}
