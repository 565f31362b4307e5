//! What happens to requests when clients, shards or the process go away: every request ends, and nothing is left behind.

use std::time::Duration;

use http_body_util::BodyExt as _;
use serde_json::json;

use crate::common::{Server, Setup, chat_prompt, post};

fn slow() -> Setup {
    let mut setup = Setup::default();
    setup.fake.step = Duration::from_millis(2);
    setup
}

async fn first_frame(response: &mut axum::response::Response) -> String {
    let frame = response.body_mut().frame().await.unwrap().unwrap();
    String::from_utf8(frame.into_data().unwrap().to_vec()).unwrap()
}

#[tokio::test]
async fn a_client_that_leaves_frees_its_rows() {
    let server = Server::with(slow()).await;
    let prompt = json!({"prompt": "hello", "max_tokens": 5000, "n": 4, "stream": true});
    let inputs = json!({"inputs": "hello", "parameters": {"max_new_tokens": 5000}});
    for (path, body) in [("/v1/completions", &prompt), ("/generate_stream", &inputs)] {
        let mut response = server.send(post(path, body.to_string())).await;
        assert!(first_frame(&mut response).await.starts_with("data: {"));
        assert!(server.app.engine.num_live() > 0);
        drop(response);
        server.idle().await;
    }
    // Before the first token, and without a stream, too.
    for path in ["/generate", "/generate_stream"] {
        let answer = server.send(post(path, inputs.to_string()));
        assert!(tokio::time::timeout(Duration::from_millis(1), answer).await.is_err());
        server.idle().await;
    }
}

#[tokio::test]
async fn a_shard_that_dies_ends_streams_with_an_error() {
    let server = Server::with(slow()).await;
    let body = json!({"inputs": "hello", "parameters": {"max_new_tokens": 5000}});
    let mut response = server.send(post("/generate_stream", body.to_string())).await;
    first_frame(&mut response).await;
    server.control.kill();
    let rest = response.into_body().collect().await.unwrap().to_bytes();
    let rest = String::from_utf8(rest.to_vec()).unwrap();
    let error = r#"data: {"error":"Request failed during generation: the model's shard was lost","error_type":"generation"}"#;
    assert!(rest.contains(error), "{rest}");
    assert!(rest.trim_end().lines().last().unwrap().starts_with(": request "), "{rest}");
    server.control.revive();
    server.app.engine.ready().await;

    let body = json!({"messages": [{"role": "user", "content": "hello"}], "max_tokens": 5000, "stream": true, "n": 2});
    let mut response = server.send(post("/v1/chat/completions", body.to_string())).await;
    first_frame(&mut response).await;
    server.control.kill();
    let rest = response.into_body().collect().await.unwrap().to_bytes();
    let rest = String::from_utf8(rest.to_vec()).unwrap();
    let error = r#"data: {"error":{"message":"the model's shard was lost","type":"server_error","code":"engine_lost","param":null}}"#;
    assert_eq!(rest.matches(error).count(), 1, "{rest}");
    assert!(!rest.contains("[DONE]") && !rest.contains(r#""finish_reason":"stop""#), "{rest}");

    server.control.revive();
    server.app.engine.ready().await;
    let answer =
        server.post("/v1/completions", &json!({"prompt": "hello", "temperature": 0, "max_tokens": 4})).await;
    assert_eq!(answer.json()["choices"][0]["text"], server.says("hello", 4));
    server.idle().await;
}

#[tokio::test]
async fn a_shard_that_dies_before_the_first_token_is_a_status() {
    for (path, body, status) in [
        ("/generate", json!({"inputs": "hello"}), 424),
        ("/generate_stream", json!({"inputs": "hello"}), 424),
        ("/v1/completions", json!({"prompt": "hello"}), 503),
        (
            "/v1/chat/completions",
            json!({"messages": [{"role": "user", "content": "a"}], "stream": true}),
            503,
        ),
    ] {
        let server = Server::start().await;
        server.control.stall();
        let kill = async {
            while server.control.num_steps() == 0 {
                tokio::task::yield_now().await;
            }
            server.control.kill();
        };
        let (answer, ()) = tokio::join!(server.post(path, &body), kill);
        assert_eq!(answer.status, status, "{path}: {}", answer.text());
        assert!(answer.header("retry-after").parse::<u64>().unwrap() >= 1);
    }
}

#[tokio::test]
async fn a_drain_refuses_what_is_new_and_finishes_what_runs() {
    let server = Server::with(slow()).await;
    let body = json!({"prompt": "hello", "max_tokens": 50, "temperature": 0, "stream": true});
    let mut running = server.send(post("/v1/completions", body.to_string())).await;
    first_frame(&mut running).await;
    server.app.engine.drain();
    let refused = server.post("/v1/completions", &json!({"prompt": "hello"})).await;
    assert_eq!((refused.status.as_u16(), &refused.json()["error"]["code"]), (503, &json!("shutting_down")));
    assert_eq!(refused.header("connection"), "close");
    let rest = running.into_body().collect().await.unwrap().to_bytes();
    assert!(String::from_utf8(rest.to_vec()).unwrap().ends_with("data: [DONE]\n\n"));
}

#[tokio::test(start_paused = true)]
async fn an_idle_stream_is_kept_alive() {
    let server = Server::start().await;
    let body = json!({"inputs": "hello", "parameters": {"max_new_tokens": 5000}});
    let mut response = server.send(post("/generate_stream", body.to_string())).await;
    server.control.stall();
    let began = tokio::time::Instant::now();
    let comment = loop {
        let frame = first_frame(&mut response).await;
        if frame.starts_with(':') {
            break frame;
        }
    };
    assert_eq!(comment, ":\n\n");
    assert_eq!(began.elapsed().as_secs(), 15);
}

#[tokio::test]
async fn many_streams_at_once_all_complete() {
    let server = Server::start().await;
    let ask = async |number: usize| {
        let content = format!("question {number}");
        let body = json!({
            "messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 40, "stream": true,
        });
        let events = server.post("/v1/chat/completions", &body).await.json_events();
        let text: String =
            events.iter().filter_map(|event| event["choices"][0]["delta"]["content"].as_str()).collect();
        assert_eq!(text, server.says(&chat_prompt(&content), 40));
    };
    futures::future::join_all((0..64).map(ask)).await;
    server.idle().await;
}

#[tokio::test]
async fn a_client_that_does_not_read_loses_its_sequence() {
    let mut setup = Setup::default();
    setup.engine.updates_per_client = 8;
    let server = Server::with(setup).await;
    let body = json!({"prompt": "hello", "max_tokens": 5000, "stream": true});
    let response = server.send(post("/v1/completions", body.to_string())).await;
    server.idle().await;
    let rest = response.into_body().collect().await.unwrap().to_bytes();
    let rest = String::from_utf8(rest.to_vec()).unwrap();
    assert!(rest.contains(r#""code":"slow_client""#) && !rest.contains("[DONE]"), "{rest}");
}
