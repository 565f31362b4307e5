//! Who may call: every route that is not on the public list wants the key.

use std::collections::BTreeSet;

use anaphora_router::config::ApiKey;
use axum::body::Body;
use http::{HeaderMap, Method, Request};
use serde_json::{Value, json};

use crate::common::{Answer, Server, Setup};

const KEY: &str = "s3cret-Key";

fn key(key: &str, tenant: Option<&str>) -> ApiKey {
    ApiKey { key: key.to_owned(), tenant: tenant.map(str::to_owned) }
}

async fn guarded() -> Server {
    let mut setup = Setup::default();
    setup.http.api_keys = vec![key(KEY, None)];
    Server::with(setup).await
}

async fn call(server: &Server, method: &Method, path: &str, authorization: Option<&str>) -> Answer {
    let mut request = Request::builder().method(method).uri(path).header("content-type", "application/json");
    if let Some(authorization) = authorization {
        request = request.header("authorization", authorization);
    }
    server.call(request.body(Body::from("{}")).unwrap()).await
}

/// The paths of every route, as the router itself lists them.
fn routes(server: &Server) -> BTreeSet<String> {
    let listing = format!("{:?}", server.router);
    let quoted = listing.split('"').skip(1).step_by(2);
    quoted
        .filter(|text| text.starts_with('/'))
        .map(|path| path.replace("{*id}", "x").replace("{*__private__axum_fallback}", "x"))
        .collect()
}

#[tokio::test]
async fn every_route_wants_the_key_but_those_on_the_list() {
    let server = guarded().await;
    let routes = routes(&server);
    assert!(routes.len() >= 15 && routes.contains("/v1/chat/completions"), "{routes:?}");
    let public = ["/", "/health", "/ping", "/live", "/ready", "/info", "/metrics"];
    for path in &routes {
        for method in [Method::GET, Method::POST, Method::PUT, Method::DELETE, Method::HEAD, Method::OPTIONS]
        {
            let status = call(&server, &method, path, None).await.status;
            let is_public =
                public.contains(&path.as_str()) && (method == Method::GET || method == Method::HEAD);
            assert_eq!(status == 401, !is_public, "{method} {path}: {status}");
            let status = call(&server, &method, path, Some("Bearer s3cret-Key")).await.status;
            assert_ne!(status, 401, "{method} {path}");
        }
    }
}

#[tokio::test]
async fn only_the_key_will_do() {
    let server = guarded().await;
    for (authorization, allowed) in [
        ("Bearer s3cret-Key", true),
        ("bearer s3cret-Key", true),
        ("Bearer s3cret-key", false),
        ("Bearer s3cret-Key2", false),
        ("Bearer s3cret-Ke", false),
        ("Bearer ", false),
        ("Bearer", false),
        ("Basic s3cret-Key", false),
        ("s3cret-Key", false),
        ("", false),
    ] {
        let status = call(&server, &Method::GET, "/v1/models", Some(authorization)).await.status;
        assert_eq!(status == 200, allowed, "{authorization:?}: {status}");
    }
}

#[tokio::test]
async fn no_spelling_of_a_path_gets_around_it() {
    let server = guarded().await;
    for path in [
        "//v1/models",
        "/v1//models",
        "/v1/models/",
        "/health/../v1/models",
        "/health/..%2fv1/models",
        "/HEALTH/../v1/models",
        "/health%2f..%2fv1/models",
        "/v1/models?path=/health",
        "/v1/models;/health",
        "/nothing",
        "/health/",
    ] {
        assert_eq!(call(&server, &Method::GET, path, None).await.status, 401, "{path}");
    }
    let request =
        Request::get("/v1/models").header("host", "x/health").header("x-http-method-override", "HEAD");
    let request =
        request.header("x-original-url", "/health").header("x-forwarded-uri", "/health").body(Body::empty());
    assert_eq!(server.call(request.unwrap()).await.status, 401);
    let absolute = Request::get("http://x/v1/models").body(Body::empty()).unwrap();
    assert_eq!(server.call(absolute).await.status, 401);
}

#[tokio::test]
async fn a_refusal_has_the_apis_shape() {
    let server = guarded().await;
    let message = "a valid API key is required: send `Authorization: Bearer <key>`";
    let answer = call(&server, &Method::POST, "/v1/chat/completions", None).await;
    assert_eq!(
        answer.json(),
        json!({"error": {"message": message, "type": "invalid_request_error", "code": "invalid_api_key", "param": Value::Null}})
    );
    assert_eq!(answer.header("www-authenticate"), "Bearer");
    let answer = call(&server, &Method::POST, "/generate", None).await;
    assert_eq!(answer.json(), json!({"error": message, "error_type": "unauthorized"}));
    let open = Server::start().await;
    assert_eq!(call(&open, &Method::GET, "/v1/models", None).await.status, 200);
}

async fn preflight(server: &Server, origin: &str) -> HeaderMap {
    let request = Request::options("/v1/chat/completions")
        .header("origin", origin)
        .header("access-control-request-method", "POST")
        .header("access-control-request-headers", "authorization,content-type")
        .body(Body::empty());
    server.call(request.unwrap()).await.headers
}

#[tokio::test]
async fn pages_may_call_only_if_their_origin_is_named() {
    let closed = guarded().await;
    assert!(!preflight(&closed, "https://a.example").await.contains_key("access-control-allow-origin"));

    let mut setup = Setup::default();
    setup.http.api_keys = vec![key(KEY, None)];
    setup.http.cors_allow_origin = vec!["https://a.example".to_owned()];
    let server = Server::with(setup).await;
    let headers = preflight(&server, "https://a.example").await;
    assert_eq!(headers["access-control-allow-origin"], "https://a.example");
    let allowed = headers["access-control-allow-headers"].to_str().unwrap();
    assert!(allowed.contains("authorization") && allowed.contains("content-type"), "{allowed}");
    assert!(!preflight(&server, "https://b.example").await.contains_key("access-control-allow-origin"));
}
