//! Who may call: a layer over the whole route tree that denies by default.
//!
//! What is public is decided by the route that *matched*, never by the text of the URL, so that no spelling of a path can be
//! public for one and routed by the other. A new route is closed until it is put on the list.

use std::sync::Arc;

use axum::{
    extract::{MatchedPath, Request, State},
    middleware::Next,
    response::Response,
};
use http::{Method, header};
use subtle::ConstantTimeEq as _;

use super::{
    App,
    error::{ApiError, Family},
};

/// Routes that need no key, by method. Health checks and metrics come from machines that have none, as with TGI.
const PUBLIC: [(Method, &str); 7] = [
    (Method::GET, "/"),
    (Method::GET, "/health"),
    (Method::GET, "/ping"),
    (Method::GET, "/live"),
    (Method::GET, "/ready"),
    (Method::GET, "/info"),
    (Method::GET, "/metrics"),
];

/// The key that clients must send. Only its digest is kept.
#[derive(Clone)]
pub struct ApiKey(blake3::Hash);

impl ApiKey {
    /// The key `key`.
    #[must_use]
    pub fn new(key: &str) -> Self {
        Self(blake3::hash(key.as_bytes()))
    }

    /// Whether `key` is the key; takes the same time for every wrong one.
    fn is(&self, key: &str) -> bool {
        self.0.as_bytes().ct_eq(blake3::hash(key.as_bytes()).as_bytes()).into()
    }

    /// What separates the prefix cache of the key's holder from others'.
    #[must_use]
    pub fn tenant(&self) -> Arc<str> {
        self.0.to_hex().as_str().into()
    }
}

impl std::fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ApiKey(…)")
    }
}

/// The layer.
pub(super) async fn require_key(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    if is_allowed(&app, &request) {
        return next.run(request).await;
    }
    ApiError::Unauthorized.respond(Family::of_path(request.uri().path()))
}

fn is_allowed(app: &App, request: &Request) -> bool {
    let Some(key) = &app.auth else { return true };
    is_public(request) || bearer(request).is_some_and(|sent| key.is(sent))
}

fn is_public(request: &Request) -> bool {
    let route = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    // axum answers HEAD with the handler of GET.
    let method = if request.method() == Method::HEAD { &Method::GET } else { request.method() };
    PUBLIC.iter().any(|(public, path)| public == method && route == Some(path))
}

/// The token of `Authorization: Bearer <token>`; the scheme's name is case-insensitive, the token is not.
fn bearer(request: &Request) -> Option<&str> {
    let value = request.headers().get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
}
