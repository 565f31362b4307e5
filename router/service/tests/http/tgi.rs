//! TGI's routes, shape by shape.

use serde_json::{Value, json};

use crate::common::{LETTERS_AND_END, Server, Setup, chat_prompt};

async fn generate(server: &Server, inputs: &str, parameters: Value) -> Value {
    let answer = server.post("/generate", &json!({"inputs": inputs, "parameters": parameters})).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

/// Tokens as TGI lists them: the fixture has one per character.
fn tokens(server: &Server, text: &str) -> Vec<Value> {
    let ids = server.app.text.tokenizer.encode(text, false).unwrap();
    let token = |(id, text): (u32, char)| json!({"id": id, "text": text, "logprob": -0.25, "special": false});
    ids.into_iter().zip(text.chars()).map(token).collect()
}

#[tokio::test]
async fn generate_answers_with_an_object() {
    let server = Server::start().await;
    let text = server.says("hello", 8);
    let answer =
        server.post("/generate", &json!({"inputs": "hello", "parameters": {"max_new_tokens": 8}})).await;
    assert_eq!(answer.text(), format!(r#"{{"generated_text":"{text}"}}"#));
    assert_eq!(answer.header("content-type"), "application/json");
    for (name, value) in [
        ("x-compute-type", "cpu"),
        ("x-compute-characters", "5"),
        ("x-prompt-tokens", "5"),
        ("x-generated-tokens", "8"),
        ("x-prefix-cache", "hit=0;of=5;tier=device"),
    ] {
        assert_eq!(answer.header(name), value, "{name}");
    }
    for name in ["x-total-time", "x-validation-time", "x-queue-time", "x-inference-time", "x-time-per-token"]
    {
        assert!(answer.header(name).parse::<u64>().is_ok(), "{name}");
    }
    assert!(answer.header("x-compute-time").parse::<f64>().is_ok());
    assert_eq!(answer.header("x-request-id").len(), 32);
}

#[tokio::test]
async fn details_name_every_token() {
    let server = Server::start().await;
    let text = server.says("hello", 3);
    let expect = json!({
        "generated_text": text,
        "details": {
            "finish_reason": "length",
            "generated_tokens": 3,
            "seed": null,
            "prefill": [],
            "tokens": tokens(&server, &text),
        },
    });
    assert_eq!(generate(&server, "hello", json!({"max_new_tokens": 3, "details": true})).await, expect);
    assert_eq!(
        generate(&server, "hello", json!({"max_new_tokens": 3, "decoder_input_details": true})).await,
        expect
    );
}

#[tokio::test]
async fn nulls_are_the_same_as_nothing() {
    let server = Server::start().await;
    // What the `text_generation` client sends.
    let parameters = json!({
        "best_of": null, "temperature": null, "repetition_penalty": null, "frequency_penalty": null, "top_k": null,
        "top_p": null, "typical_p": null, "do_sample": false, "max_new_tokens": 3, "return_full_text": false, "stop": [],
        "truncate": null, "watermark": false, "details": false, "decoder_input_details": false, "seed": null,
        "top_n_tokens": null, "grammar": null, "unknown": {"to": ["TGI"]},
    });
    assert_eq!(generate(&server, "hello", parameters).await["generated_text"], server.says("hello", 3));
}

#[tokio::test]
async fn the_root_answers_with_an_array_and_the_prompt() {
    let server = Server::start().await;
    let text = server.says("hello", 3);
    let answer = server.post("/", &json!({"inputs": "hello", "parameters": {"max_new_tokens": 3}})).await;
    assert_eq!(answer.json(), json!([{"generated_text": format!("hello{text}")}]));
    let parameters = json!({"max_new_tokens": 3, "return_full_text": false});
    let answer =
        server.post("/", &json!({"inputs": "hello", "parameters": parameters, "stream": false})).await;
    assert_eq!(answer.json(), json!([{"generated_text": text}]));
    let answer = server
        .post("/", &json!({"inputs": "hello", "parameters": {"max_new_tokens": 3}, "stream": true}))
        .await;
    let events = answer.json_events();
    assert_eq!((events.len(), &events[2]["generated_text"]), (3, &Value::from(format!("hello{text}"))));
}

#[tokio::test]
async fn a_stream_has_an_event_per_token_and_the_text_in_the_last() {
    let server = Server::start().await;
    let text = server.says("hello", 3);
    let body = json!({"inputs": "hello", "parameters": {"max_new_tokens": 3, "details": true, "do_sample": true, "seed": 7}});
    let answer = server.post("/generate_stream", &body).await;
    assert_eq!(answer.header("content-type"), "text/event-stream");
    assert_eq!(answer.header("x-accel-buffering"), "no");
    assert_eq!(answer.header("x-compute-type"), "cpu");
    let sampled: String =
        answer.json_events().iter().map(|event| event["token"]["text"].as_str().unwrap()).collect();
    let expect = tokens(&server, &sampled).into_iter().zip(1..).map(|(token, index)| {
        let is_last = index == 3;
        let details = json!({"finish_reason": "length", "generated_tokens": 3, "seed": 7, "input_length": 5});
        json!({
            "index": index,
            "token": token,
            "generated_text": if is_last { Value::from(&*sampled) } else { Value::Null },
            "details": if is_last { details } else { Value::Null },
        })
    });
    assert_eq!(answer.json_events(), expect.collect::<Vec<_>>());
    assert_ne!(sampled, text, "sampling has no part in it");
    assert!(!answer.text().contains("[DONE]"));

    let answer = server
        .post("/generate_stream", &json!({"inputs": "hello", "parameters": {"max_new_tokens": 1}}))
        .await;
    let last = &answer.json_events()[0];
    assert_eq!(
        (&last["details"], &last["generated_text"]),
        (&Value::Null, &Value::from(server.says("hello", 1)))
    );
}

#[tokio::test]
async fn without_parameters_it_samples_and_fills_the_context() {
    let mut setup = Setup::default();
    setup.fake.max_context = 32;
    let server = Server::with(setup).await;
    let answer = server.post("/generate", &json!({"inputs": "hello"})).await.json();
    assert_eq!(answer["generated_text"].as_str().unwrap().len(), 27);
    let greedy = generate(&server, "hello", json!({})).await;
    assert_eq!(greedy["generated_text"], server.says("hello", 27));
    assert_ne!(greedy, answer);
    let sampled = generate(&server, "hello", json!({"do_sample": true, "details": true})).await;
    assert!(sampled["details"]["seed"].is_u64());
}

#[tokio::test]
async fn a_seed_is_reproducible() {
    let server = Server::start().await;
    let parameters = json!({"max_new_tokens": 20, "do_sample": true, "seed": 18_446_744_073_709_551_615_u64, "details": true});
    let first = generate(&server, "hello", parameters.clone()).await;
    assert_eq!(first["details"]["seed"], 18_446_744_073_709_551_615_u64);
    assert_eq!(generate(&server, "hello", parameters).await, first);
}

#[tokio::test]
async fn a_stop_string_across_tokens_ends_the_text_and_stays_in_it() {
    let server = Server::start().await;
    let text = server.says("hello", 40);
    let stop = &text[5..8];
    let end = text.find(stop).unwrap() + 3;
    for stop in [json!([stop, "never there"]), json!(stop)] {
        let answer =
            generate(&server, "hello", json!({"max_new_tokens": 40, "stop": stop, "details": true})).await;
        assert_eq!(answer["generated_text"], text[..end]);
        assert_eq!(answer["details"]["finish_reason"], "stop_sequence");
        assert_eq!(answer["details"]["generated_tokens"], end);
        assert_eq!(answer["details"]["tokens"].as_array().unwrap().len(), end);
        server.idle().await;
    }
    let parameters = json!({"max_new_tokens": 40, "stop": [stop], "details": true});
    let answer = server.post("/generate_stream", &json!({"inputs": "hello", "parameters": parameters})).await;
    let events = answer.json_events();
    assert_eq!(events.len(), end);
    assert_eq!(events[end - 1]["generated_text"], text[..end]);
    assert_eq!(events[end - 1]["details"]["finish_reason"], "stop_sequence");
}

/// A prompt after which the shard ends by itself after `range` tokens, and the text before the end.
fn ends_by_itself(server: &Server, range: std::ops::Range<usize>) -> (String, String) {
    let end = |prompt: &String| {
        let text = server.says(prompt, 100);
        text.find("<|eot|>").filter(|length| range.contains(length)).map(|length| text[..length].to_owned())
    };
    (0..1000)
        .map(|number| format!("prompt {number}"))
        .find_map(|prompt| end(&prompt).map(|text| (prompt, text)))
        .unwrap()
}

async fn server_that_ends() -> Server {
    let mut setup = Setup::default();
    setup.fake.vocab = LETTERS_AND_END;
    Server::with(setup).await
}

#[tokio::test]
async fn the_end_of_the_sequence_is_a_token_but_not_text() {
    let server = server_that_ends().await;
    let (prompt, text) = ends_by_itself(&server, 3..20);
    let answer = generate(&server, &prompt, json!({"max_new_tokens": 100, "details": true})).await;
    assert_eq!(answer["generated_text"], *text);
    assert_eq!(answer["details"]["finish_reason"], "eos_token");
    let mut expect = tokens(&server, &text);
    expect.push(json!({"id": 258, "text": "<|eot|>", "logprob": -0.25, "special": true}));
    assert_eq!(answer["details"]["tokens"], Value::from(expect));
    assert_eq!(answer["details"]["generated_tokens"], text.len() + 1);

    let parameters = json!({"max_new_tokens": 100, "stop": ["<|eot|>"], "details": true});
    let answer = generate(&server, &prompt, parameters).await;
    assert_eq!(
        (&answer["generated_text"], &answer["details"]["finish_reason"]),
        (&Value::from(text), &Value::from("stop_sequence"))
    );
}

#[tokio::test]
async fn truncate_keeps_the_end_of_the_prompt() {
    let server = Server::start().await;
    let answer = server
        .post(
            "/generate",
            &json!({"inputs": "say hello", "parameters": {"max_new_tokens": 5, "truncate": 5}}),
        )
        .await;
    assert_eq!(answer.header("x-prompt-tokens"), "5");
    assert_eq!(answer.json()["generated_text"], server.says("hello", 5));
    // Ten million bytes are not tokenised to find the last five.
    let inputs = "x".repeat(10_000_000) + "hello";
    let answer = server
        .post("/generate", &json!({"inputs": inputs, "parameters": {"max_new_tokens": 5, "truncate": 5}}))
        .await;
    assert_eq!(answer.json()["generated_text"], server.says("hello", 5));
}

#[tokio::test]
async fn best_of_reports_the_others_too() {
    let server = Server::start().await;
    let parameters = json!({"max_new_tokens": 4, "best_of": 3, "do_sample": true, "details": true});
    let answer = generate(&server, "hello", parameters).await;
    let details = &answer["details"];
    let others = details["best_of_sequences"].as_array().unwrap();
    assert_eq!(others.len(), 2);
    let mut seeds = vec![details["seed"].as_u64().unwrap()];
    seeds.extend(others.iter().map(|other| other["seed"].as_u64().unwrap()));
    seeds.sort_unstable();
    seeds.dedup();
    assert_eq!(seeds.len(), 3, "sequences share a seed");
    for key in ["generated_text", "finish_reason", "generated_tokens", "prefill", "tokens"] {
        assert!(!others[0][key].is_null(), "{key}");
    }
}

#[tokio::test]
async fn top_tokens_come_with_each_token() {
    let server = Server::start().await;
    let parameters = json!({"max_new_tokens": 2, "top_n_tokens": 3, "details": true});
    let answer = generate(&server, "hello", parameters.clone()).await;
    let top = answer["details"]["top_tokens"].as_array().unwrap();
    assert_eq!(top.iter().map(|top| top.as_array().unwrap().len()).collect::<Vec<_>>(), [3, 3]);
    assert!(top[0][0]["text"].is_string() && top[0][0]["special"].is_boolean());
    let answer = server.post("/generate_stream", &json!({"inputs": "hello", "parameters": parameters})).await;
    assert_eq!(answer.json_events()[0]["top_tokens"], top[0]);
}

#[tokio::test]
async fn the_second_request_finds_its_prompt_in_the_cache() {
    let server = Server::start().await;
    let prompt = "all work and no play makes jack a dull boy";
    let body = json!({"inputs": prompt, "parameters": {"max_new_tokens": 2}});
    let first = server.post("/generate", &body).await;
    assert_eq!(first.header("x-prefix-cache"), "hit=0;of=42;tier=device");
    let second = server.post("/generate", &body).await;
    assert_eq!(second.header("x-prefix-cache"), "hit=41;of=42;tier=device");
    assert_eq!(first.json(), second.json());
}

#[tokio::test]
async fn four_at_once_say_the_same() {
    let server = Server::start().await;
    let ask = || generate(&server, "hello", json!({"max_new_tokens": 50}));
    let (one, two, three, four) = tokio::join!(ask(), ask(), ask(), ask());
    assert_eq!(one["generated_text"], server.says("hello", 50));
    assert!(one == two && two == three && three == four);
}

#[tokio::test]
async fn tokenize_says_where_tokens_come_from() {
    let server = Server::start().await;
    let answer = server.post("/tokenize", &json!({"inputs": "hé<|im_end|>"})).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let answer = answer.json();
    let pieces = answer.as_array().unwrap();
    assert_eq!(pieces[0], json!({"id": 238, "text": "h", "start": 0, "stop": 1}));
    assert_eq!(pieces[3], json!({"id": 1, "text": "<|im_end|>", "start": 3, "stop": 13}));
    assert_eq!(pieces.len(), 4);
}

#[tokio::test]
async fn chat_tokenize_shows_the_template_at_work() {
    let server = Server::start().await;
    let answer =
        server.post("/chat_tokenize", &json!({"messages": [{"role": "user", "content": "a"}]})).await.json();
    assert_eq!(answer["templated_text"], chat_prompt("a"));
    assert_eq!(
        answer["tokenize_response"][0],
        json!({"id": 0, "text": "<|im_start|>", "start": 0, "stop": 12})
    );
}

#[tokio::test]
async fn info_has_the_fields_of_tgi_3_and_of_tgi_2() {
    let server = Server::start().await;
    let mut info = server.get("/info").await.json();
    let map = info.as_object_mut().unwrap();
    assert!(map.remove("version").unwrap().is_string());
    assert!(map.remove("validation_workers").unwrap().as_u64() >= Some(1));
    assert_eq!(
        info,
        json!({
            "model_id": "org/letters", "model_sha": null, "model_pipeline_tag": "text-generation",
            "max_concurrent_requests": 128, "max_best_of": 8, "max_stop_sequences": 16,
            "max_input_tokens": 8191, "max_total_tokens": 8192, "max_client_batch_size": 32,
            "router": "anaphora-router", "sha": null, "docker_label": null,
            "model_dtype": "float32", "model_device_type": "cpu", "max_input_length": 8191,
            "max_batch_total_tokens": 65536, "max_batch_prefill_tokens": 512, "max_batch_size": 64,
            "waiting_served_ratio": 0.0, "max_waiting_tokens": 0, "speculate": 0,
        })
    );
}
