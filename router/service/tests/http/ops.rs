//! Health, metrics and what every answer carries.

use std::time::Duration;

use axum::body::Body;
use http::Request;
use serde_json::json;

use crate::common::{Server, Setup, post};

#[tokio::test]
async fn health_follows_the_replica() {
    let mut setup = Setup::default();
    setup.fake.warm_up = Duration::from_millis(200);
    let server = Server::starting(setup);
    for path in ["/health", "/ping", "/ready", "/"] {
        let answer = server.get(path).await;
        let body = answer.json();
        assert_eq!(answer.status, 503, "{path}");
        assert_eq!((&body["error"], &body["error_type"]), (&json!("unhealthy"), &json!("healthcheck")));
        assert!(body["phase"].is_string() && body["percent"].as_u64() < Some(100), "{body}");
    }
    assert_eq!(server.get("/live").await.status, 200);
    assert_eq!(server.get("/info").await.json()["max_total_tokens"], json!(null));

    server.app.engine.ready().await;
    for path in ["/health", "/ping", "/ready", "/"] {
        let answer = server.get(path).await;
        assert_eq!(
            (answer.status.as_u16(), answer.json()),
            (200, json!({"phase": "ready", "percent": 100})),
            "{path}"
        );
    }
    server.control.kill();
    let lost = async {
        while server.get("/ready").await.status == 200 {
            tokio::time::sleep(Duration::from_millis(1)).await;
            server.post("/generate", &json!({"inputs": "a", "parameters": {"max_new_tokens": 1}})).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(1), lost)
        .await
        .expect("still ready a second after the shard died");
    assert_eq!(server.get("/live").await.status, 200);
    server.app.engine.drain();
    assert_eq!(server.get("/health").await.json()["phase"], "draining");
}

#[tokio::test]
async fn requests_are_counted_by_how_they_end() {
    let server = Server::start().await;
    let count = async |name: &str| {
        let answer = server.get("/metrics").await;
        assert_eq!(answer.header("content-type"), "text/plain; version=0.0.4; charset=utf-8");
        let sum = |line: &str| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap();
        answer.text().lines().filter(|line| line.starts_with(name)).map(sum).sum::<f64>()
    };
    let success = count("tgi_request_success").await;
    let invalid = count("tgi_request_failure{model=\"org/letters\",err=\"validation\"}").await;
    server.post("/generate", &json!({"inputs": "a", "parameters": {"max_new_tokens": 2}})).await;
    server.post("/v1/completions", &json!({"prompt": "a", "max_tokens": 2, "stream": true})).await;
    server.post("/v1/completions", &json!({"prompt": ""})).await;
    assert!(count("tgi_request_success").await >= success + 2.0);
    assert!(count("tgi_request_failure{model=\"org/letters\",err=\"validation\"}").await >= invalid + 1.0);
    assert!(count("tgi_request_count").await >= 3.0);

    let dropped = "tgi_request_failure{model=\"org/letters\",err=\"dropped\"}";
    let before = count(dropped).await;
    let body = json!({"prompt": "a", "max_tokens": 5000, "stream": true});
    drop(server.send(post("/v1/completions", body.to_string())).await);
    assert!(count(dropped).await > before);
    server.idle().await;
}

#[tokio::test]
async fn every_answer_has_a_request_id() {
    let server = Server::start().await;
    for (sent, kept) in [("abc-123", true), ("", false), ("two words", false), (&*"x".repeat(129), false)] {
        let request = Request::get("/nothing").header("x-request-id", sent).body(Body::empty()).unwrap();
        let answer = server.call(request).await;
        assert_eq!(answer.header("x-request-id") == sent, kept, "{sent}");
        assert!(!answer.header("x-request-id").is_empty());
    }
}
