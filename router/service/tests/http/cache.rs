//! The prefix cache as clients see it: what is shared, what never is, and what can be asked about it.

use std::{sync::Mutex, time::Duration};

use anaphora_router::config::ApiKey;
use http::Request;
use serde_json::{Value, json};

use crate::common::{Answer, Server, Setup, chat_prompt, post};

/// Two keys of one tenant, one of another, and one without a name.
async fn shared_by_tenants() -> Server {
    let key = |key: &str, tenant: Option<&str>| ApiKey { key: key.into(), tenant: tenant.map(Into::into) };
    let mut setup = Setup::default();
    setup.http.api_keys =
        vec![key("a1", Some("alice")), key("a2", Some("alice")), key("b", Some("bob")), key("c", None)];
    Server::with(setup).await
}

async fn ask(server: &Server, key: &str, path: &str, body: &Value) -> Answer {
    let mut request = post(path, body.to_string());
    request.headers_mut().insert("authorization", format!("Bearer {key}").parse().unwrap());
    server.call(request).await
}

async fn list(server: &Server, key: &str) -> Vec<Value> {
    let request = Request::get("/v1/cache").header("authorization", format!("Bearer {key}"));
    let answer = server.call(request.body(axum::body::Body::empty()).unwrap()).await;
    answer.json()["data"].as_array().unwrap().clone()
}

fn message(content: &str) -> Value {
    json!({"messages": [{"role": "user", "content": content}], "max_tokens": 2})
}

fn cached_tokens(answer: &Answer) -> u64 {
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
}

#[tokio::test]
async fn tenants_never_share() {
    let server = shared_by_tenants().await;
    let body = message("what only one may know");
    let cached = async |key: &str| cached_tokens(&ask(&server, key, "/v1/chat/completions", &body).await);
    assert_eq!(cached("a1").await, 0);
    assert!(cached("a1").await > 0);
    // All keys of a tenant are one, and no other's is.
    assert!(cached("a2").await > 0);
    assert_eq!((cached("b").await, cached("c").await), (0, 0));
    assert!(cached("c").await > 0);
}

#[tokio::test]
async fn a_salt_separates_within_a_tenant_on_every_route() {
    let server = shared_by_tenants().await;
    let hit = async |path: &str, body: Value| {
        let answer = ask(&server, "a1", path, &body).await;
        let header = answer.header("x-prefix-cache").to_owned();
        header.strip_prefix("hit=").unwrap().split(';').next().unwrap().parse::<u32>().unwrap()
    };
    let generate = |salt: &str| json!({"inputs": "once upon a time", "parameters": {"max_new_tokens": 2, "cache_salt": salt}});
    let complete = |salt: &str| json!({"prompt": "once upon a time", "max_tokens": 2, "cache_salt": salt});
    for path in ["/generate", "/generate_stream"] {
        assert_eq!(hit(path, generate(path)).await, 0);
        assert!(hit(path, generate(path)).await > 0);
    }
    // The same salt is the same cache, whatever the route.
    assert!(hit("/v1/completions", complete("/generate")).await > 0);
    assert_eq!(hit("/v1/completions", complete("other")).await, 0);
    let long = "s".repeat(257);
    let answer = ask(&server, "a1", "/v1/completions", &complete(&long)).await;
    assert_eq!((answer.status.as_u16(), &answer.json()["error"]["param"]), (400, &json!("cache_salt")));
}

#[tokio::test]
async fn reuse_stays_on_whatever_is_asked_for() {
    let server = Server::start().await;
    let chat = async |extra: Value| {
        let mut body = message("the same question again");
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        cached_tokens(&server.post("/v1/chat/completions", &body).await)
    };
    assert_eq!(chat(json!({})).await, 0);
    let num_prompt =
        server.app.text.tokenizer.encode(&chat_prompt("the same question again"), false).unwrap().len()
            as u64;
    for extra in [
        json!({"logprobs": true, "top_logprobs": 3}),
        json!({"n": 3}),
        json!({"n": 2, "logprobs": true, "temperature": 1, "seed": 7}),
        json!({"frequency_penalty": 1, "presence_penalty": 1, "repetition_penalty": 1.1}),
        json!({"stop": ["x"], "logit_bias": {"240": 5}, "min_tokens": 1}),
    ] {
        assert_eq!(chat(extra.clone()).await, num_prompt - 1, "{extra}");
    }
    let body = json!({"inputs": chat_prompt("the same question again"), "parameters": {
        "max_new_tokens": 2, "details": true, "top_n_tokens": 2, "best_of": 2, "do_sample": true,
    }});
    let answer = server.post("/generate", &body).await;
    assert!(
        answer.header("x-prefix-cache").starts_with(&format!("hit={}", num_prompt - 1)),
        "{:?}",
        answer.headers
    );
}

#[tokio::test]
async fn streams_say_what_was_cached() {
    let server = Server::start().await;
    let mut body = message("hello");
    body["stream"] = json!(true);
    body["stream_options"] = json!({"include_usage": true});
    for first in [true, false] {
        let answer = server.post("/v1/chat/completions", &body).await;
        let usage = answer.json_events().last().unwrap()["usage"].clone();
        let cached = usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
        assert_eq!(cached == 0, first);
        let expected = format!("hit={cached};of={};tier=device", usage["prompt_tokens"]);
        assert_eq!(answer.header("x-prefix-cache"), expected);
    }
}

#[tokio::test]
async fn an_explanation_says_where_and_why() {
    let server = Server::start().await;
    let chat = |last: &str| {
        json!({"messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "tell me about the sea"},
            {"role": "assistant", "content": "it is wet"},
            {"role": "user", "content": last},
        ], "max_tokens": 1})
    };
    let explain = async |body: &Value| {
        let answer = server.post("/v1/cache/explain", body).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()
    };
    let before = explain(&chat("and the sky")).await;
    assert_eq!(before["matched_tokens"], json!({"device": 0, "host": 0, "disk": 0}));
    assert_eq!((&before["reason"], &before["divergence"]), (&json!("nothing_cached"), &Value::Null));

    let usage = server.post("/v1/chat/completions", &chat("and the sky")).await.json()["usage"].clone();
    let same = explain(&chat("and the sky")).await;
    assert_eq!(same["prompt_tokens"], usage["prompt_tokens"]);
    assert_eq!((&same["reason"], &same["divergence"]), (&json!("complete"), &Value::Null));
    assert_eq!(
        same["matched_tokens"]["device"].as_u64(),
        usage["prompt_tokens"].as_u64().map(|prompt| prompt - 1)
    );

    let other = explain(&chat("and the fire")).await;
    let divergence = &other["divergence"];
    assert_eq!((&other["reason"], &divergence["message_index"]), (&json!("diverges"), &json!(3)));
    assert_eq!(divergence["position"], other["matched_tokens"]["device"]);
    assert!(divergence["before"].as_str().unwrap().ends_with("and the "), "{divergence}");
    assert!(divergence["after"].as_str().unwrap().starts_with("fire"), "{divergence}");
    assert!(divergence["cached"].as_str().unwrap().starts_with("sky"), "{divergence}");
    // What it says is what happens.
    let answer = server.post("/v1/chat/completions", &chat("and the fire")).await;
    assert_eq!(cached_tokens(&answer), other["matched_tokens"]["device"].as_u64().unwrap());

    let mut edited = chat("and the sky");
    edited["messages"][0]["content"] = json!("be brave");
    assert_eq!(explain(&edited).await["divergence"]["message_index"], 0);
    let mut salted = chat("and the sky");
    salted["cache_salt"] = json!("salt");
    assert_eq!(explain(&salted).await["reason"], "nothing_cached");
}

#[tokio::test]
async fn any_request_that_generates_can_be_explained() {
    let server = Server::start().await;
    let prompt = "a text that goes on and on and on";
    server.post("/generate", &json!({"inputs": prompt, "parameters": {"max_new_tokens": 1}})).await;
    let longer = format!("{prompt} and on");
    for body in [
        json!({"inputs": longer, "parameters": {"max_new_tokens": 5}}),
        json!({"prompt": longer, "stream": true, "n": 2}),
        json!({"prompt": server.app.text.tokenizer.encode(&longer, true).unwrap()}),
    ] {
        let answer = server.post("/v1/cache/explain", &body).await.json();
        assert_eq!(answer["prompt_tokens"], 40, "{body}: {answer}");
        assert!(answer["matched_tokens"]["device"].as_u64().unwrap() >= 32, "{body}: {answer}");
        assert_eq!(answer["divergence"]["message_index"], Value::Null, "{body}: {answer}");
    }
    for (body, status, param) in [
        (json!({"model": "tgi"}), 400, Value::Null),
        (json!({"prompt": ["a", "b"]}), 400, json!("prompt")),
        (json!({"messages": []}), 400, json!("messages")),
        (json!({"prompt": "a", "temprature": 1}), 400, json!("temprature")),
    ] {
        let answer = server.post("/v1/cache/explain", &body).await;
        assert_eq!((answer.status.as_u16(), &answer.json()["error"]["param"]), (status, &param), "{body}");
    }
    let mut setup = Setup::default();
    setup.engine.prefix_cache = false;
    let server = Server::with(setup).await;
    assert_eq!(server.post("/v1/cache/explain", &message("a")).await.json()["reason"], "disabled");
}

#[tokio::test]
async fn a_tenant_sees_and_clears_its_own() {
    let server = shared_by_tenants().await;
    let mut salted = message("hello");
    salted["cache_salt"] = json!("pepper");
    for (key, body) in [("a1", &message("hello")), ("a1", &salted), ("b", &message("hello"))] {
        ask(&server, key, "/v1/chat/completions", body).await;
    }
    server.idle().await;
    let alices = list(&server, "a2").await;
    assert_eq!(alices.iter().map(|entry| &entry["tenant"]).collect::<Vec<_>>(), ["alice", "alice"]);
    let digests: Vec<_> = alices.iter().map(|entry| entry["salt_digest"].as_str().unwrap().len()).collect();
    assert_eq!(digests, [0, 16]);
    assert!(!format!("{alices:?}").contains("pepper"));
    let num_blocks: u64 = alices.iter().map(|entry| entry["blocks"].as_u64().unwrap()).sum();
    let cleared = ask(&server, "a1", "/v1/cache/clear", &json!({})).await.json();
    assert_eq!(cleared["blocks"], num_blocks);
    assert_eq!((list(&server, "a1").await.len(), list(&server, "b").await.len()), (0, 1));
    server.idle().await;
}

#[tokio::test]
async fn who_is_more_urgent_is_served_first() {
    let mut setup = Setup::default();
    setup.engine.max_batch_size = Some(1);
    setup.fake.step = Duration::from_millis(1);
    let server = Server::with(setup).await;
    let order = Mutex::new(Vec::new());
    let request = async |name: &'static str, header: Option<&str>, mut body: Value| {
        body["prompt"] = json!(name);
        body["max_tokens"] = json!(20);
        let mut request = post("/v1/completions", body.to_string());
        if let Some(priority) = header {
            request.headers_mut().insert("x-priority", priority.parse().unwrap());
        }
        assert_eq!(server.call(request).await.status, 200);
        order.lock().unwrap().push(name);
    };
    // While one request has the only row, the others wait for it; the body's word goes before the header's.
    let occupier =
        server.send(post("/v1/completions", r#"{"prompt":"first","max_tokens":5000,"stream":true}"#)).await;
    server.control.stall();
    let begin = async {
        while server.app.engine.num_live() < 5 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        drop(occupier);
        server.control.revive();
    };
    tokio::join!(
        request("low", Some("-1"), json!({})),
        request("plain", None, json!({})),
        request("high", Some("5"), json!({})),
        request("highest", Some("-9"), json!({"priority": 9})),
        begin,
    );
    assert_eq!(order.into_inner().unwrap(), ["highest", "high", "plain", "low"]);

    for bad in ["high", "1.5", "4294967296"] {
        let mut request = post("/v1/completions", r#"{"prompt":"a"}"#);
        request.headers_mut().insert("x-priority", bad.parse().unwrap());
        let answer = server.call(request).await;
        assert_eq!((answer.status.as_u16(), &answer.json()["error"]["param"]), (400, &json!("x-priority")));
    }
}
