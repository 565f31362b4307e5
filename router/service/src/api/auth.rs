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
    App, Context,
    error::{ApiError, Family},
};
use crate::config::ApiKey;

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

/// Whose request it is: tenants have separate prefix caches, and each its quota. Empty where no key is required.
pub type Tenant = Arc<str>;

/// The keys that clients may send, and whose they are. Only their digests are kept.
pub struct ApiKeys(Vec<(blake3::Hash, Tenant)>);

impl ApiKeys {
    /// These keys; `None` if there are none.
    #[must_use]
    pub fn new(keys: &[ApiKey]) -> Option<Self> {
        let keys: Vec<_> = keys.iter().map(|key| (digest(&key.key), tenant(key))).collect();
        (!keys.is_empty()).then_some(Self(keys))
    }

    /// Whose key `sent` is. Looks at every key, and at all of it, so that the time it takes says nothing of them.
    fn tenant_of(&self, sent: &str) -> Option<Tenant> {
        let sent = digest(sent);
        self.0.iter().fold(None, |found, (key, tenant)| {
            if key.as_bytes().ct_eq(sent.as_bytes()).into() { Some(Arc::clone(tenant)) } else { found }
        })
    }
}

/// The named tenant, or one that only the holders of the key are.
fn tenant(key: &ApiKey) -> Tenant {
    match &key.tenant {
        Some(name) => name.as_str().into(),
        None => format!("key:{}", &digest(&key.key).to_hex()[..16]).into(),
    }
}

fn digest(key: &str) -> blake3::Hash {
    blake3::hash(key.as_bytes())
}

impl std::fmt::Debug for ApiKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ApiKeys({})", self.0.len())
    }
}

/// The layer. What it lets pass knows its tenant.
pub(super) async fn require_key(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    if let Some(keys) = &app.auth
        && !is_public(&request)
    {
        let Some(tenant) = bearer(&request).and_then(|sent| keys.tenant_of(sent)) else {
            return ApiError::Unauthorized.respond(Family::of_path(request.uri().path()));
        };
        if let Some(context) = request.extensions_mut().get_mut::<Context>() {
            context.tenant = tenant;
        }
    }
    next.run(request).await
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
