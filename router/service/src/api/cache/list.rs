//! `GET /v1/cache`: what the prefix cache holds, by namespace.

use std::sync::Arc;

use anaphora_core::NamespaceUsage;
use axum::{Extension, Json, extract::State};

use crate::api::{
    App, Context,
    error::OpenAiError,
    types::cache::{CacheList, CacheNamespace},
};

/// Hexadecimal digits of a salt's digest: enough to tell salts apart.
const DIGEST_DIGITS: usize = 16;

pub(in crate::api) async fn list(
    State(app): State<Arc<App>>,
    Extension(context): Extension<Context>,
) -> Result<Json<CacheList>, OpenAiError> {
    let usage = app.engine.cache_usage().await?;
    let own = usage.into_iter().filter(|usage| usage.namespace.tenant == context.tenant);
    let data = own.map(|usage| entry(usage, app.block_size)).collect();
    Ok(Json(CacheList { object: "list", data }))
}

fn entry(usage: NamespaceUsage, block_size: u32) -> CacheNamespace {
    let NamespaceUsage { namespace, num_blocks: blocks } = usage;
    CacheNamespace {
        model: namespace.model.to_string(),
        adapter: namespace.adapter.to_string(),
        tenant: namespace.tenant.to_string(),
        salt_digest: digest(&namespace.salt),
        blocks,
        tokens: u64::from(blocks) * u64::from(block_size),
    }
}

fn digest(salt: &str) -> String {
    if salt.is_empty() {
        return String::new();
    }
    blake3::hash(salt.as_bytes()).to_hex()[..DIGEST_DIGITS].to_owned()
}
