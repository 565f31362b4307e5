//! `/v1/chat/completions` and `/v1/models`.

use serde_json::{Value, json};

use crate::common::{LETTERS_AND_END, Server, Setup, chat_prompt, stable};

fn body(extra: Value) -> Value {
    let mut body = json!({
        "model": "org/letters",
        "messages": [{"role": "user", "content": "hello"}],
        "temperature": 0,
        "max_tokens": 4,
    });
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

async fn chat(server: &Server, extra: Value) -> Value {
    let answer = server.post("/v1/chat/completions", &body(extra)).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

/// What the shard answers to "hello", as greedy sampling has it.
fn reply(server: &Server, num_tokens: usize) -> String {
    server.says(&chat_prompt("hello"), num_tokens)
}

fn num_prompt_tokens(server: &Server) -> usize {
    server.app.text.tokenizer.encode(&chat_prompt("hello"), false).unwrap().len()
}

fn content(answer: &Value) -> &str {
    answer["choices"][0]["message"]["content"].as_str().unwrap()
}

#[tokio::test]
async fn an_answer_has_openais_shape() {
    let server = Server::start().await;
    let num_prompt = num_prompt_tokens(&server);
    let answer = server.post("/v1/chat/completions", &body(json!({}))).await;
    assert_eq!(answer.header("x-prefix-cache"), format!("hit=0;of={num_prompt};tier=device"));
    let answer = answer.json();
    assert!(answer["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert_eq!(
        stable(answer.clone()),
        json!({
            "id": "…",
            "object": "chat.completion",
            "created": "…",
            "model": "org/letters",
            "system_fingerprint": concat!("anaphora-", env!("CARGO_PKG_VERSION")),
            "choices": [{
                "index": 0,
                "message": {"role": "assistant", "content": reply(&server, 4), "refusal": null},
                "logprobs": null,
                "finish_reason": "length",
            }],
            "usage": {
                "prompt_tokens": num_prompt,
                "completion_tokens": 4,
                "total_tokens": num_prompt + 4,
                "prompt_tokens_details": {"cached_tokens": 0},
            },
        })
    );
    let second = chat(&server, json!({})).await;
    assert_ne!(second["id"], answer["id"]);
    assert_eq!(second["usage"]["prompt_tokens_details"]["cached_tokens"], num_prompt - 1);
}

fn chunk(choices: Value) -> Value {
    json!({
        "id": "…",
        "object": "chat.completion.chunk",
        "created": "…",
        "model": "org/letters",
        "system_fingerprint": concat!("anaphora-", env!("CARGO_PKG_VERSION")),
        "choices": choices,
    })
}

fn delta(index: usize, delta: Value, finish_reason: Value) -> Value {
    json!([{"index": index, "delta": delta, "logprobs": null, "finish_reason": finish_reason}])
}

#[tokio::test]
async fn a_stream_has_openais_chunks() {
    let server = Server::start().await;
    let mut expect = vec![chunk(delta(0, json!({"role": "assistant", "content": ""}), Value::Null))];
    expect
        .extend(reply(&server, 4).chars().map(|text| chunk(delta(0, json!({"content": text}), Value::Null))));
    expect.push(chunk(delta(0, json!({}), json!("length"))));

    let answer = server.post("/v1/chat/completions", &body(json!({"stream": true}))).await;
    assert_eq!(answer.header("content-type"), "text/event-stream");
    assert_eq!(answer.json_events().into_iter().map(stable).collect::<Vec<_>>(), expect);
    assert_eq!(answer.events().last().unwrap(), "[DONE]");
    let ids: Vec<_> = answer.json_events().into_iter().map(|mut event| event["id"].take()).collect();
    assert!(ids.iter().all(|id| *id == ids[0]));

    let num_prompt = num_prompt_tokens(&server);
    let options = json!({"stream": true, "stream_options": {"include_usage": true}});
    let answer = server.post("/v1/chat/completions", &body(options)).await;
    for chunk in &mut expect {
        chunk["usage"] = Value::Null;
    }
    let mut last = chunk(json!([]));
    last["usage"] = json!({
        "prompt_tokens": num_prompt, "completion_tokens": 4, "total_tokens": num_prompt + 4,
        "prompt_tokens_details": {"cached_tokens": num_prompt - 1},
    });
    expect.push(last);
    assert_eq!(answer.json_events().into_iter().map(stable).collect::<Vec<_>>(), expect);
    assert_eq!(answer.events().last().unwrap(), "[DONE]");
}

#[tokio::test]
async fn choices_differ_and_come_by_index() {
    let server = Server::start().await;
    let extra = json!({"n": 3, "temperature": 1, "seed": 5, "max_tokens": 20});
    let answer = chat(&server, extra.clone()).await;
    let texts: Vec<String> = (0..3)
        .map(|index| {
            assert_eq!(answer["choices"][index]["index"], index);
            answer["choices"][index]["message"]["content"].as_str().unwrap().to_owned()
        })
        .collect();
    assert!(texts[0] != texts[1] && texts[1] != texts[2] && texts[0] != texts[2]);
    assert_eq!(answer["usage"]["completion_tokens"], 60);
    assert_eq!(answer["usage"]["prompt_tokens"], num_prompt_tokens(&server));

    // The first choice is what the seed gives without the others; and a stream says the same.
    let one = chat(&server, json!({"temperature": 1, "seed": 5, "max_tokens": 20})).await;
    assert_eq!(content(&one), texts[0]);
    let mut streamed = vec![String::new(); 3];
    let mut finishes = [0; 3];
    let mut with_stream = extra;
    with_stream["stream"] = json!(true);
    for event in server.post("/v1/chat/completions", &body(with_stream)).await.json_events() {
        let choice = &event["choices"][0];
        let index = usize::try_from(choice["index"].as_u64().unwrap()).unwrap();
        streamed[index] += choice["delta"]["content"].as_str().unwrap_or_default();
        finishes[index] += usize::from(choice["finish_reason"] == "length");
    }
    assert_eq!((streamed, finishes), (texts, [1; 3]));
}

#[tokio::test]
async fn a_stop_string_across_tokens_is_never_shown() {
    let server = Server::start().await;
    let text = reply(&server, 40);
    let stop = &text[6..9];
    let end = text.find(stop).unwrap();
    for (extra, expect) in [
        (json!({"stop": stop}), &text[..end]),
        (json!({"stop": [stop, "#"]}), &text[..end]),
        (json!({"stop": stop, "include_stop_str_in_output": true}), &text[..end + 3]),
        (json!({"stop": stop, "min_tokens": end + 10, "max_tokens": end + 10}), &text[..end + 10]),
    ] {
        let mut extra = extra;
        let max_tokens = extra["max_tokens"].as_u64().unwrap_or(40);
        extra["max_tokens"] = json!(max_tokens);
        let answer = chat(&server, extra.clone()).await;
        assert_eq!(content(&answer), expect, "{extra}");
        let reason = if max_tokens == 40 { "stop" } else { "length" };
        assert_eq!(answer["choices"][0]["finish_reason"], reason, "{extra}");
        extra["stream"] = json!(true);
        let events = server.post("/v1/chat/completions", &body(extra.clone())).await.json_events();
        let content: String =
            events.iter().filter_map(|event| event["choices"][0]["delta"]["content"].as_str()).collect();
        assert_eq!(content, expect, "{extra}");
        server.idle().await;
    }
}

#[tokio::test]
async fn stop_tokens_end_the_text_unseen() {
    let mut setup = Setup::default();
    setup.fake.vocab = LETTERS_AND_END;
    let server = Server::with(setup).await;
    let text = reply(&server, 200);
    let end = text.find("<|eot|>").unwrap();
    let answer = chat(&server, json!({"max_tokens": 200})).await;
    assert_eq!((content(&answer), &answer["choices"][0]["finish_reason"]), (&text[..end], &json!("stop")));
    assert_eq!(answer["usage"]["completion_tokens"], end + 1);

    let shown = chat(
        &server,
        json!({"max_tokens": 200, "skip_special_tokens": false, "include_stop_str_in_output": true}),
    )
    .await;
    assert_eq!(content(&shown), &text[..end + 7]);

    let beyond = chat(&server, json!({"max_tokens": 100, "ignore_eos": true})).await;
    assert_eq!(content(&beyond), reply(&server, 100).replace("<|eot|>", ""));
    assert_eq!(beyond["choices"][0]["finish_reason"], "length");

    let letter = u32::from(text.as_bytes()[2] - b'a') + 231;
    let stopped = chat(&server, json!({"max_tokens": 200, "stop_token_ids": [letter]})).await;
    let first = text.find(&text[2..3]).unwrap();
    assert_eq!(
        (content(&stopped), &stopped["choices"][0]["finish_reason"]),
        (&text[..first], &json!("stop"))
    );
}

#[tokio::test]
async fn logprobs_have_openais_shape() {
    let server = Server::start().await;
    let first = reply(&server, 1);
    let extra = json!({"logprobs": true, "top_logprobs": 2, "max_tokens": 1});
    let answer = chat(&server, extra.clone()).await;
    let logprobs = &answer["choices"][0]["logprobs"];
    let entry = &logprobs["content"][0];
    assert_eq!(logprobs["refusal"], Value::Null);
    assert_eq!(entry["token"], *first);
    assert_eq!(entry["bytes"], json!([first.as_bytes()[0]]));
    assert_eq!(entry["logprob"], -0.25);
    assert_eq!(entry["top_logprobs"].as_array().unwrap().len(), 2);
    for key in ["token", "logprob", "bytes"] {
        assert!(!entry["top_logprobs"][0][key].is_null(), "{key}");
    }
    let mut streamed = extra;
    streamed["stream"] = json!(true);
    let events = server.post("/v1/chat/completions", &body(streamed)).await.json_events();
    assert_eq!(events[0]["choices"][0]["logprobs"], Value::Null);
    assert_eq!(events[1]["choices"][0]["logprobs"], *logprobs);
    assert_eq!(events[2]["choices"][0]["logprobs"], Value::Null);
    let without_top = chat(&server, json!({"logprobs": true, "max_tokens": 2})).await;
    let listed = without_top["choices"][0]["logprobs"]["content"].as_array().unwrap().clone();
    assert_eq!((listed.len(), &listed[0]["top_logprobs"]), (2, &json!([])));
}

#[tokio::test]
async fn the_assistants_own_words_are_continued() {
    let server = Server::start().await;
    let messages = json!([{"role": "user", "content": "hello"}, {"role": "assistant", "content": "well"}]);
    let open = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\nwell";
    let closed = format!("{open}<|im_end|>\n");
    let asked = format!("{closed}<|im_start|>assistant\n");
    for (extra, prompt) in [
        (json!({}), open),
        (json!({"continue_final_message": true}), open),
        (json!({"add_generation_prompt": true}), &*asked),
        (json!({"add_generation_prompt": false}), &*closed),
        (json!({"continue_final_message": false}), &*asked),
    ] {
        let mut extra = extra;
        extra["messages"] = messages.clone();
        assert_eq!(content(&chat(&server, extra.clone()).await), server.says(prompt, 4), "{extra}");
    }
}

#[tokio::test]
async fn harmless_fields_change_nothing() {
    let server = Server::start().await;
    let plain = content(&chat(&server, json!({})).await).to_owned();
    for extra in [
        json!({"user": "u", "metadata": {"a": "b"}, "store": true, "service_tier": "auto", "safety_identifier": "s"}),
        json!({"prompt_cache_key": "k", "parallel_tool_calls": true, "reasoning_effort": "low"}),
        json!({"tools": [], "tool_choice": "none", "response_format": {"type": "text"}, "modalities": ["text"]}),
        json!({"tools": null, "tool_choice": null, "logit_bias": null, "n": null, "stop": null, "seed": null}),
        json!({"top_p": 1.0, "top_k": -1, "min_p": 0, "repetition_penalty": 1, "typical_p": 1, "logit_bias": {"5": -1}}),
        json!({"max_completion_tokens": 4}),
        json!({"model": "tgi"}),
        json!({"model": "dummy"}),
        json!({"model": null}),
        json!({"priority": -3, "cache_salt": "salt", "chat_template_kwargs": {"enable_thinking": false}}),
        json!({"messages": [{"role": "user", "content": [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]}]}),
    ] {
        assert_eq!(content(&chat(&server, extra.clone()).await), plain, "{extra}");
    }
}

#[tokio::test]
async fn a_salt_separates_caches() {
    let server = Server::start().await;
    let cached = async |salt: &str| {
        let answer = chat(&server, json!({"cache_salt": salt})).await;
        answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
    };
    assert_eq!(cached("a").await, 0);
    assert_eq!(cached("b").await, 0);
    assert!(cached("a").await > 0);
}

#[tokio::test]
async fn the_answer_may_fill_the_context() {
    let mut setup = Setup::default();
    setup.fake.max_context = 64;
    let server = Server::with(setup).await;
    let answer = chat(&server, json!({"max_tokens": null})).await;
    assert_eq!(answer["usage"]["total_tokens"], 64);
}

#[tokio::test]
async fn models() {
    let server = Server::start().await;
    let model = json!({"id": "org/letters", "object": "model", "created": server.app.model.created, "owned_by": "anaphora"});
    assert_eq!(server.get("/v1/models").await.json(), json!({"object": "list", "data": [model]}));
    assert_eq!(server.get("/v1/models/org/letters").await.json(), model);
    assert_eq!(server.get("/v1/models/org%2Fletters").await.json(), model);
    let missing = server.get("/v1/models/other").await;
    assert_eq!((missing.status.as_u16(), &missing.json()["error"]["code"]), (404, &json!("model_not_found")));
}
