//! `/v1/completions`.

use serde_json::{Value, json};

use crate::common::{Server, Setup, stable};

fn body(extra: Value) -> Value {
    let mut body = json!({"model": "org/letters", "prompt": "hello", "temperature": 0, "max_tokens": 4});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

async fn complete(server: &Server, extra: Value) -> Value {
    let answer = server.post("/v1/completions", &body(extra)).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

fn texts(answer: &Value) -> Vec<&str> {
    let choices = answer["choices"].as_array().unwrap();
    for (index, choice) in choices.iter().enumerate() {
        assert_eq!(choice["index"], index);
    }
    choices.iter().map(|choice| choice["text"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn an_answer_has_openais_shape() {
    let server = Server::start().await;
    let answer = complete(&server, json!({})).await;
    assert!(answer["id"].as_str().unwrap().starts_with("cmpl-"));
    assert_eq!(
        stable(answer),
        json!({
            "id": "…",
            "object": "text_completion",
            "created": "…",
            "model": "org/letters",
            "system_fingerprint": concat!("anaphora-", env!("CARGO_PKG_VERSION")),
            "choices": [{"index": 0, "text": server.says("hello", 4), "logprobs": null, "finish_reason": "length"}],
            "usage": {
                "prompt_tokens": 5, "completion_tokens": 4, "total_tokens": 9,
                "prompt_tokens_details": {"cached_tokens": 0},
            },
        })
    );
}

#[tokio::test]
async fn prompts_come_in_four_forms() {
    let server = Server::start().await;
    let ids = server.app.text.tokenizer.encode("hello", true).unwrap();
    let (hello, bye) = (server.says("hello", 4), server.says("bye", 4));
    for (prompt, expect) in [
        (json!("hello"), vec![&*hello]),
        (json!(["hello", "bye"]), vec![&*hello, &bye]),
        (json!(ids), vec![&*hello]),
        (json!([ids, [ids[0]], ids]), vec![&*hello, &server.says("h", 4), &hello]),
    ] {
        assert_eq!(texts(&complete(&server, json!({"prompt": prompt})).await), expect, "{prompt}");
    }
    let answer = complete(&server, json!({"prompt": ["hello", "bye"]})).await;
    assert_eq!(
        (&answer["usage"]["prompt_tokens"], &answer["usage"]["completion_tokens"]),
        (&json!(8), &json!(8))
    );
}

#[tokio::test]
async fn choices_are_grouped_by_prompt() {
    let server = Server::start().await;
    let extra = json!({"prompt": ["hello", "bye"], "n": 2, "temperature": 1, "seed": 3});
    let both = complete(&server, extra.clone()).await;
    let both = texts(&both);
    let one = complete(&server, json!({"n": 2, "temperature": 1, "seed": 3})).await;
    assert_eq!((both.len(), &both[..2]), (4, &texts(&one)[..]));

    let mut streamed = vec![String::new(); 4];
    let mut with_stream = extra;
    with_stream["stream"] = json!(true);
    let answer = server.post("/v1/completions", &body(with_stream)).await;
    for event in answer.json_events() {
        let choice = &event["choices"][0];
        streamed[usize::try_from(choice["index"].as_u64().unwrap()).unwrap()] +=
            choice["text"].as_str().unwrap();
    }
    assert_eq!(streamed, both);
    assert_eq!(answer.events().last().unwrap(), "[DONE]");
}

#[tokio::test]
async fn a_stream_has_openais_events() {
    let server = Server::start().await;
    let options = json!({"stream": true, "stream_options": {"include_usage": true}, "max_tokens": 2});
    let answer = server.post("/v1/completions", &body(options)).await;
    let text = server.says("hello", 2);
    let event = |choices: Value, usage: Value| {
        json!({
            "id": "…", "object": "text_completion", "created": "…", "model": "org/letters",
            "system_fingerprint": concat!("anaphora-", env!("CARGO_PKG_VERSION")), "choices": choices, "usage": usage,
        })
    };
    let choice = |text: &str, finish: Value| json!([{"index": 0, "text": text, "logprobs": null, "finish_reason": finish}]);
    let usage = json!({
        "prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7, "prompt_tokens_details": {"cached_tokens": 0},
    });
    assert_eq!(
        answer.json_events().into_iter().map(stable).collect::<Vec<_>>(),
        [
            event(choice(&text[..1], Value::Null), Value::Null),
            event(choice(&text[1..], json!("length")), Value::Null),
            event(json!([]), usage),
        ]
    );
}

#[tokio::test]
async fn echo_puts_the_prompt_first() {
    let server = Server::start().await;
    let expect = format!("hello{}", server.says("hello", 4));
    assert_eq!(texts(&complete(&server, json!({"echo": true})).await), [&*expect]);
    let events =
        server.post("/v1/completions", &body(json!({"echo": true, "stream": true}))).await.json_events();
    let streamed: String = events.iter().filter_map(|event| event["choices"][0]["text"].as_str()).collect();
    assert_eq!(streamed, expect);
}

#[tokio::test]
async fn best_of_generates_more_than_it_shows() {
    let server = Server::start().await;
    let answer = complete(&server, json!({"best_of": 4, "n": 2, "temperature": 1})).await;
    assert_eq!(texts(&answer).len(), 2);
    assert_eq!(answer["usage"]["completion_tokens"], 16);
}

#[tokio::test]
async fn logprobs_are_parallel_arrays() {
    let server = Server::start().await;
    let answer = complete(&server, json!({"logprobs": 2, "max_tokens": 3})).await;
    let text = server.says("hello", 3);
    let logprobs = &answer["choices"][0]["logprobs"];
    assert_eq!(logprobs["tokens"], json!(text.chars().map(String::from).collect::<Vec<_>>()));
    assert_eq!(logprobs["text_offset"], json!([0, 1, 2]));
    assert_eq!(logprobs["token_logprobs"], json!([-0.25, -0.25, -0.25]));
    let top = logprobs["top_logprobs"].as_array().unwrap();
    assert!(top.iter().zip(text.chars()).all(|(top, token)| top[token.to_string()] == -0.25));
    let events =
        server.post("/v1/completions", &body(json!({"logprobs": 0, "stream": true}))).await.json_events();
    assert_eq!(events[1]["choices"][0]["logprobs"]["text_offset"], json!([1]));
}

/// A shard that speaks bytes from 0x80 on: some are characters together, most are nothing.
#[tokio::test]
async fn a_stream_never_has_half_a_character() {
    let mut setup = Setup::default();
    setup.fake.vocab = 103..231;
    let server = Server::with(setup).await;
    for number in 0..20 {
        let extra = json!({"prompt": format!("HELLO-{number}"), "max_tokens": 100});
        let expect = server.says(&format!("HELLO-{number}"), 100);
        assert_eq!(texts(&complete(&server, extra.clone()).await), [&*expect]);
        let mut with_stream = extra;
        with_stream["stream"] = json!(true);
        let events = server.post("/v1/completions", &body(with_stream)).await.json_events();
        let streamed: String =
            events.iter().filter_map(|event| event["choices"][0]["text"].as_str()).collect();
        assert_eq!(streamed, expect);
    }
}

#[tokio::test]
async fn sixteen_tokens_unless_asked_for_more() {
    let server = Server::start().await;
    let answer = complete(&server, json!({"max_tokens": null})).await;
    assert_eq!(answer["usage"]["completion_tokens"], 16);
}
