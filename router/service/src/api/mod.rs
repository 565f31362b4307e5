//! The HTTP API.
//!
//! ```text
//! request ─► context ─► CORS ─► key ─► route ─► json ─► admit ─► Choices ─► response
//! ```
//! One line per endpoint in [`app`], one file per endpoint below; a handler parses, asks and answers, and decides nothing.
//! [`error`] is the only place that turns errors into statuses and bodies.

mod app;
mod auth;
mod cache;
mod context;
mod error;
mod headers;
mod json;
mod openai;
mod ops;
mod sse;
mod tgi;
pub mod types;

use std::sync::Arc;

use axum::{
    Router,
    extract::Request,
    middleware,
    response::Response,
    routing::{get, post},
};
use http::{HeaderValue, Method, header};
use tower_http::cors::CorsLayer;

pub use self::{
    app::{App, ModelInfo},
    auth::{ApiKeys, Tenant},
    context::Context,
    error::{ApiError, Family, OpenAiError, TgiError},
    json::{JsonError, JsonErrorKind},
};

/// The routes of a server with this state.
pub fn app(state: Arc<App>) -> Router {
    let counted = Router::new()
        .route("/", post(tgi::compat::compat))
        .route("/generate", post(tgi::generate::generate))
        .route("/generate_stream", post(tgi::generate_stream::generate_stream))
        .route("/v1/chat/completions", post(openai::chat::chat))
        .route("/v1/completions", post(openai::completions::completions))
        .layer(middleware::from_fn_with_state(Arc::clone(&state), context::count));
    let cors = cors(&state.cors_allow_origin);
    let routes = Router::new()
        .route("/", get(ops::health::health))
        .merge(counted)
        .route("/tokenize", post(tgi::tokenize::tokenize))
        .route("/chat_tokenize", post(tgi::chat_tokenize::chat_tokenize))
        .route("/info", get(tgi::info::info))
        .route("/v1/cache", get(cache::list::list))
        .route("/v1/cache/clear", post(cache::clear::clear))
        .route("/v1/cache/explain", post(cache::explain::explain))
        .route("/v1/models", get(openai::models::list))
        .route("/v1/models/{*id}", get(openai::models::retrieve))
        .route("/health", get(ops::health::health))
        .route("/ping", get(ops::health::health))
        .route("/live", get(ops::health::live))
        .route("/ready", get(ops::health::ready))
        .route("/metrics", get(ops::metrics::metrics))
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(middleware::from_fn_with_state(Arc::clone(&state), auth::require_key));
    let routes = match cors {
        Some(cors) => routes.layer(cors),
        None => routes,
    };
    routes.layer(middleware::from_fn(context::attach)).with_state(state)
}

/// Which web pages may call: none, unless origins are given. `*` stands for all of them.
fn cors(origins: &[String]) -> Option<CorsLayer> {
    let layer = CorsLayer::new()
        .allow_methods([Method::GET, Method::POST])
        .allow_headers([header::CONTENT_TYPE, header::AUTHORIZATION, context::REQUEST_ID, context::PRIORITY])
        .expose_headers([header::RETRY_AFTER, context::REQUEST_ID, headers::PREFIX_CACHE]);
    if origins.is_empty() {
        return None;
    }
    if origins.iter().any(|origin| origin == "*") {
        return Some(layer.allow_origin(tower_http::cors::Any));
    }
    let origins = origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok()).collect::<Vec<_>>();
    Some(layer.allow_origin(origins))
}

async fn not_found(request: Request) -> Response {
    ApiError::NotFound.respond(Family::of_path(request.uri().path()))
}

async fn method_not_allowed(request: Request) -> Response {
    ApiError::MethodNotAllowed.respond(Family::of_path(request.uri().path()))
}
