//! What must not be asked: statuses and bodies, in each API's own shape.

use std::time::Duration;

use axum::body::Body;
use futures::StreamExt as _;
use http::Request;
use serde_json::{Value, json};

use crate::common::{Answer, Server, Setup, post};

/// `(body, status, message)` of a TGI route.
async fn check_tgi(server: &Server, path: &str, body: impl Into<Body>, status: u16, message: &str) {
    let answer = server.call(post(path, body)).await;
    let expect = json!({"error": message, "error_type": "validation"});
    assert_eq!((answer.status.as_u16(), answer.json()), (status, expect), "{path}");
}

/// `(status, code, param, message)` of an OpenAI route.
fn check_openai(answer: &Answer, expect: (u16, &str, Option<&str>, &str), about: &str) {
    let (status, code, param, message) = expect;
    let body = json!({
        "error": {"message": message, "type": "invalid_request_error", "code": code, "param": param},
    });
    assert_eq!((answer.status.as_u16(), answer.json()), (status, body), "{about}");
}

#[tokio::test]
async fn tgi_says_422_for_meaning_and_400_for_syntax() {
    let server = Server::start().await;
    let with = |parameters: &str| format!(r#"{{"inputs":"a","parameters":{parameters}}}"#);
    for (body, status, message) in [
        (r#"{"inputs":""}"#.into(), 422, "`inputs` cannot be empty"),
        ("{}".into(), 422, "missing field `inputs` at line 1 column 2"),
        ("".into(), 400, "EOF while parsing a value at line 1 column 0"),
        ("{".into(), 400, "EOF while parsing an object at line 1 column 1"),
        (
            r#"{"inputs":3}"#.into(),
            422,
            "inputs: invalid type: integer `3`, expected a string at line 1 column 11",
        ),
        (
            r#"{"inputs":"\udc00"}"#.into(),
            400,
            "inputs: lone leading surrogate in hex escape at line 1 column 17",
        ),
        (r#"{"inputs":"a","inputs":"b"}"#.into(), 422, "duplicate field `inputs` at line 1 column 22"),
        (with(r#"{"temperature":NaN}"#), 400, "parameters.temperature: expected value at line 1 column 43"),
        (
            with(r#"{"temperature":1e400}"#),
            400,
            "parameters.temperature: number out of range at line 1 column 47",
        ),
        (with(r#"{"temperature":-1}"#), 422, "`temperature` must be strictly positive"),
        (with(r#"{"truncate":0}"#), 422, "`truncate` must be strictly positive and less than 8191. Given: 0"),
        (
            with(r#"{"truncate":8192}"#),
            422,
            "`truncate` must be strictly positive and less than 8191. Given: 8192",
        ),
        (
            with(r#"{"max_new_tokens":8192}"#),
            422,
            "`inputs` tokens + `max_new_tokens` must be <= 8192. Given: 1 `inputs` tokens and 8192 `max_new_tokens`",
        ),
        (
            with(r#"{"max_new_tokens":18446744073709551616}"#),
            422,
            "parameters.max_new_tokens: invalid type: floating point `1.8446744073709552e+19`, expected u64 at line 1 column 65",
        ),
        (
            format!(r#"{{"inputs":"{}"}}"#, "a".repeat(8192)),
            422,
            "`inputs` must have less than 8191 tokens. Given: 8192",
        ),
        (with(r#"{"grammar":{"type":"json","value":{}}}"#), 422, "grammar is not supported"),
    ] {
        let message = format!("Input validation error: {message}");
        for path in ["/generate", "/generate_stream", "/"] {
            check_tgi(&server, path, body.clone(), status, &message).await;
        }
    }
    for (parameters, message) in [
        (r#"{"best_of":2,"do_sample":true}"#, "`best_of` != 1 is not supported when streaming tokens"),
        (
            r#"{"decoder_input_details":true}"#,
            "`decoder_input_details` == true is not supported when streaming tokens",
        ),
    ] {
        let message = format!("Input validation error: {message}");
        check_tgi(&server, "/generate_stream", with(parameters), 422, &message).await;
    }
    server.idle().await;
}

/// Status, code, param and message of an OpenAI route's refusal.
type Expect = (u16, &'static str, Option<&'static str>, &'static str);

/// Bodies that are wrong as a whole.
const BODIES: &[(&str, Expect)] = &[
    ("{", (400, "invalid_json", None, "EOF while parsing an object at line 1 column 1")),
    ("[]", (400, "invalid_value", None, "expected a JSON object, not an array")),
    ("{}", (400, "invalid_value", None, "missing field `messages` at line 1 column 2")),
    (r#"{"messages":[]}"#, (400, "invalid_value", Some("messages"), "`messages` cannot be empty")),
    (
        r#"{"messages":[{"role":"king","content":"a"}]}"#,
        (
            400,
            "invalid_value",
            Some("messages[0].role"),
            "`messages[0].role` must be `system`, `developer`, `user` or `assistant`. Given: `king`",
        ),
    ),
];

/// What a good request must not add.
const FIELDS: &[(&str, Expect)] = &[
    (
        r#","temperature":NaN"#,
        (400, "invalid_json", Some("temperature"), "temperature: expected value at line 1 column 59"),
    ),
    (
        r#","temperature":1e400"#,
        (400, "invalid_json", Some("temperature"), "temperature: number out of range at line 1 column 63"),
    ),
    (
        r#","max_tokens":-1"#,
        (
            400,
            "invalid_value",
            Some("max_tokens"),
            "max_tokens: invalid value: integer `-1`, expected u32 at line 1 column 59",
        ),
    ),
    (
        r#","max_tokens":0"#,
        (400, "invalid_value", Some("max_tokens"), "`max_tokens` must be at least 1. Given: 0"),
    ),
    (
        r#","max_tokens":1,"max_completion_tokens":2"#,
        (
            400,
            "invalid_value",
            Some("max_completion_tokens"),
            "`max_tokens` and `max_completion_tokens` are two names of one thing: send one of them",
        ),
    ),
    (
        r#","temperature":2.5"#,
        (400, "invalid_value", Some("temperature"), "`temperature` must be between 0 and 2. Given: 2.5"),
    ),
    (r#","n":17"#, (400, "invalid_value", Some("n"), "`n` must be between 1 and 16. Given: 17")),
    (r#","n":0"#, (400, "invalid_value", Some("n"), "`n` must be between 1 and 16. Given: 0")),
    (
        r#","top_logprobs":2"#,
        (400, "invalid_value", Some("top_logprobs"), "`top_logprobs` needs `logprobs` to be true"),
    ),
    (
        r#","logprobs":true,"top_logprobs":21"#,
        (400, "invalid_value", Some("top_logprobs"), "`top_logprobs` must be between 0 and 20. Given: 21"),
    ),
    (
        r#","logit_bias":{"a":1}"#,
        (400, "invalid_value", Some("logit_bias.a"), "`logit_bias.a`: not a token id"),
    ),
    (
        r#","logit_bias":{"258":1}"#,
        (
            400,
            "invalid_value",
            Some("logit_bias"),
            "`logit_bias`: there is no token 258: the vocabulary has 258",
        ),
    ),
    (
        r#","stop_token_ids":[999]"#,
        (
            400,
            "invalid_value",
            Some("stop_token_ids"),
            "`stop_token_ids`: there is no token 999: the vocabulary has 258",
        ),
    ),
    (r#","stop":"""#, (400, "invalid_value", Some("stop[0]"), "a stop sequence cannot be empty")),
    (
        r#","stream_options":{"include_usage":true}"#,
        (
            400,
            "invalid_value",
            Some("stream_options"),
            "`stream_options` is only allowed when `stream` is true",
        ),
    ),
    (
        r#","min_tokens":5,"max_tokens":4"#,
        (
            400,
            "invalid_value",
            Some("min_tokens"),
            "`min_tokens` must be at most `max_tokens`, which is 4. Given: 5",
        ),
    ),
    (r#","temprature":1"#, (400, "unknown_parameter", Some("temprature"), "unknown parameter: `temprature`")),
    (
        r#","tools":[{"type":"function"}]"#,
        (
            400,
            "unsupported_parameter",
            Some("tools"),
            "`tools` is not supported: tool calling is not supported yet",
        ),
    ),
    (
        r#","chat_template_kwargs":{"messages":[]}"#,
        (
            400,
            "invalid_value",
            Some("chat_template_kwargs.messages"),
            "`chat_template_kwargs.messages` is not a variable that a request may set",
        ),
    ),
    (r#","model":"gpt-4""#, (404, "model_not_found", Some("model"), "the model `gpt-4` does not exist")),
];

#[tokio::test]
async fn openai_says_400_and_names_the_field() {
    let server = Server::start().await;
    for (body, expect) in BODIES {
        check_openai(&server.call(post("/v1/chat/completions", *body)).await, *expect, body);
    }
    for (field, expect) in FIELDS {
        // Before the first token an error has its status on a stream, too.
        for stream in ["", r#","stream":true"#] {
            if !stream.is_empty() && field.contains("stream") {
                continue;
            }
            let body = format!(r#"{{"messages":[{{"role":"user","content":"a"}}]{field}{stream}}}"#);
            check_openai(&server.call(post("/v1/chat/completions", body.clone())).await, *expect, &body);
        }
    }
    server.idle().await;
}

#[tokio::test]
async fn completions_name_the_prompt_to_blame() {
    let server = Server::start().await;
    for (body, expect) in [
        (json!({"prompt": ""}), (400, "invalid_value", Some("prompt"), "`prompt` cannot be empty")),
        (json!({"prompt": []}), (400, "invalid_value", Some("prompt"), "`prompt` cannot be empty")),
        (json!({"prompt": [[1], []]}), (400, "invalid_value", Some("prompt"), "`prompt` cannot be empty")),
        (
            json!({"prompt": vec!["a"; 33]}),
            (400, "invalid_value", Some("prompt"), "`prompt` may have 32 prompts. Given: 33"),
        ),
        (
            json!({"prompt": [1, 258]}),
            (
                400,
                "invalid_value",
                Some("prompt[1]"),
                "`prompt[1]`: there is no token 258: the vocabulary has 258",
            ),
        ),
        (
            json!({"prompt": [[1], [2, 999]]}),
            (
                400,
                "invalid_value",
                Some("prompt[1][1]"),
                "`prompt[1][1]`: there is no token 999: the vocabulary has 258",
            ),
        ),
        (
            json!({"prompt": "a", "best_of": 9}),
            (400, "invalid_value", Some("best_of"), "`best_of` must be between 1 and 8. Given: 9"),
        ),
        (
            json!({"prompt": "a", "best_of": 2, "n": 3}),
            (400, "invalid_value", Some("best_of"), "`best_of` must not be less than `n`, which is 3"),
        ),
        (
            json!({"prompt": "a", "best_of": 2, "stream": true}),
            (400, "invalid_value", Some("best_of"), "`best_of` greater than `n` cannot be streamed"),
        ),
        (
            json!({"prompt": "a", "echo": true, "logprobs": 1}),
            (
                400,
                "unsupported_value",
                Some("echo"),
                "`echo` with `logprobs` is not supported: the log-probabilities of a prompt are not computed",
            ),
        ),
        (
            json!({"prompt": "a", "suffix": "b"}),
            (
                400,
                "unsupported_parameter",
                Some("suffix"),
                "`suffix` is not supported: it can be achieved by preprocessing the prompt",
            ),
        ),
        (
            json!({"prompt": "a", "messages": []}),
            (400, "unknown_parameter", Some("messages"), "unknown parameter: `messages`"),
        ),
    ] {
        check_openai(&server.post("/v1/completions", &body).await, expect, &body.to_string());
    }
}

#[tokio::test]
async fn a_context_that_is_too_small_is_named_with_numbers() {
    let mut setup = Setup::default();
    setup.fake.max_context = 32;
    let server = Server::with(setup).await;
    let start = "This model's maximum context length is 32 tokens. However, ";
    let end = ". Please reduce the length of the messages or completion.";
    for (body, what) in [
        (
            json!({"prompt": "hello", "max_tokens": 28}),
            "you requested 33 tokens (5 in the messages, 28 in the completion)",
        ),
        (
            json!({"prompt": "a".repeat(40), "max_tokens": 1}),
            "you requested 41 tokens (40 in the messages, 1 in the completion)",
        ),
        (
            json!({"prompt": "a".repeat(10_000_000), "max_tokens": 1}),
            "your messages have 10000000 bytes, which is more than 31 tokens can be",
        ),
    ] {
        let answer = server.post("/v1/completions", &body).await;
        check_openai(&answer, (400, "context_length_exceeded", None, &format!("{start}{what}{end}")), what);
    }
    let long = json!({"messages": [{"role": "user", "content": "a".repeat(40)}]});
    let answer = server.post("/v1/chat/completions", &long).await;
    let what = "your messages resulted in 59 tokens, of which there may be 31";
    check_openai(&answer, (400, "context_length_exceeded", None, &format!("{start}{what}{end}")), what);
    let answer = server.post("/generate", &json!({"inputs": "a".repeat(10_000_000)})).await;
    assert_eq!(answer.status, 422);
    assert_eq!(answer.json()["error_type"], "validation");
}

#[tokio::test]
async fn bodies_are_bounded_and_of_one_kind() {
    let mut setup = Setup::default();
    setup.limits.payload = 1000;
    let server = Server::with(setup).await;
    let long = "x".repeat(1001);
    let chunked = || Body::from_stream(futures::stream::iter([Ok::<_, std::io::Error>(long.clone())]));
    let request = |path: &str, content_type: &str, body: Body| {
        Request::post(path).header("content-type", content_type).body(body).unwrap()
    };
    for (content_type, body, status) in [
        ("application/json", Body::from(long.clone()), 413),
        ("application/json", chunked(), 413),
        ("text/plain", Body::from("{}"), 415),
        ("application/x-www-form-urlencoded", Body::from("{}"), 415),
        ("application/json", Body::from(vec![b'"', 0xff, b'"']), 400),
        ("application/json", Body::from("[".repeat(100)), 400),
    ] {
        let answer = server.call(request("/generate", content_type, body)).await;
        assert_eq!(answer.status, status, "{}", answer.text());
        assert_eq!(answer.json()["error_type"], "validation");
    }
    for (body, status, code) in [
        (Body::from(long.clone()), 413, "payload_too_large"),
        (chunked(), 413, "payload_too_large"),
        (Body::from(vec![0xff]), 400, "invalid_json"),
    ] {
        let answer = server.call(request("/v1/chat/completions", "application/json", body)).await;
        assert_eq!((answer.status.as_u16(), &answer.json()["error"]["code"]), (status, &json!(code)));
    }
    let mut compressed = request("/v1/completions", "application/json", Body::from("x"));
    compressed.headers_mut().insert("content-encoding", "gzip".parse().unwrap());
    assert_eq!(server.call(compressed).await.status, 415);
    let bare = Request::post("/generate").body(Body::from("{}")).unwrap();
    assert_eq!(server.call(bare).await.status, 415);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_never_comes_is_given_up() {
    let server = Server::start().await;
    // Bytes every half second; a body that comes too slowly is not waited for, however long it goes on.
    let trickle = |num_bytes: usize| {
        let chunks = futures::stream::repeat(" ".repeat(num_bytes));
        Body::from_stream(chunks.then(|chunk| async {
            tokio::time::sleep(Duration::from_millis(500)).await;
            Ok::<_, std::io::Error>(chunk)
        }))
    };
    let never = Body::from_stream(futures::stream::pending::<Result<String, std::io::Error>>());
    for (body, seconds) in [(never, 10), (trickle(1), 10), (trickle(2048), 19), (trickle(100_000), 60)] {
        let began = tokio::time::Instant::now();
        let answer = server.call(post("/v1/completions", body)).await;
        assert_eq!(
            (answer.status.as_u16(), &answer.json()["error"]["code"]),
            (408, &json!("request_timeout"))
        );
        assert_eq!(began.elapsed().as_secs(), seconds);
    }
}

#[tokio::test]
async fn unknown_routes_and_methods_are_json_too() {
    let server = Server::start().await;
    for (path, status, body) in [
        ("/nothing", 404, json!({"error": "there is no such route", "error_type": "not_found"})),
        (
            "/generate",
            405,
            json!({"error": "this route does not take this method", "error_type": "method_not_allowed"}),
        ),
    ] {
        let answer = server.get(path).await;
        assert_eq!((answer.status.as_u16(), answer.json()), (status, body));
    }
    for (path, status, code) in
        [("/v1/nothing", 404, "not_found"), ("/v1/completions", 405, "method_not_allowed")]
    {
        let answer = server.get(path).await;
        assert_eq!((answer.status.as_u16(), &answer.json()["error"]["code"]), (status, &json!(code)));
    }
}

#[tokio::test]
async fn a_full_queue_says_when_to_come_back() {
    let mut setup = Setup::default();
    setup.engine.max_concurrent_requests = 1;
    setup.fake.step = Duration::from_millis(20);
    let server = Server::with(setup).await;
    let body = json!({"inputs": "hello", "parameters": {"max_new_tokens": 1000}});
    let running = server.send(post("/generate_stream", body.to_string())).await;
    for stream in [false, true] {
        let answer = server.post("/", &json!({"inputs": "hello", "stream": stream})).await;
        assert_eq!(answer.status, 429);
        assert_eq!(answer.json(), json!({"error": "Model is overloaded", "error_type": "overloaded"}));
        assert!(answer.header("retry-after").parse::<u64>().unwrap() >= 1);
        assert_eq!(answer.header("x-anaphora-dropped-reason"), "rejected-saturated");
        let answer = server.post("/v1/completions", &json!({"prompt": "hello", "stream": stream})).await;
        assert_eq!(
            (answer.status.as_u16(), &answer.json()["error"]["type"]),
            (429, &json!("rate_limit_error"))
        );
        assert!(answer.header("retry-after").parse::<u64>().unwrap() >= 1);
    }
    drop(running);
    server.idle().await;
    // Two sequences never fit: there is no use in coming back.
    let answer = server.post("/v1/completions", &json!({"prompt": "hello", "n": 2})).await;
    let message = "the request asks for 2 sequences at once, of which there may be 1";
    check_openai(&answer, (400, "invalid_value", Some("n"), message), "n");
    let answer = server.post("/v1/completions", &json!({"prompt": "hello", "max_tokens": 2})).await;
    assert_eq!(answer.status, 200);
}

#[tokio::test]
async fn no_answer_before_the_replica_is_ready() {
    let mut setup = Setup::default();
    setup.fake.warm_up = Duration::from_secs(3600);
    let server = Server::starting(setup);
    let answer = server.post("/generate", &json!({"inputs": "hello"})).await;
    assert_eq!(answer.status, 503);
    assert_eq!(answer.json(), json!({"error": "the model is not ready", "error_type": "healthcheck"}));
    assert!(answer.header("retry-after").parse::<u64>().unwrap() >= 1);
    let answer = server.post("/v1/completions", &json!({"prompt": "hello"})).await;
    assert_eq!(answer.status, 503);
    assert_eq!(
        answer.json()["error"],
        json!({"message": "the model is not ready", "type": "server_error", "code": "shard_unavailable", "param": Value::Null})
    );
}

#[tokio::test]
async fn the_template_may_refuse() {
    let server = Server::start().await;
    // Deep in the fixture's template, `role` is joined with a string; a template error is the client's to know.
    let body =
        json!({"messages": [{"role": "user", "content": "a"}], "chat_template_kwargs": {"strftime_now": 1}});
    let answer = server.post("/v1/chat/completions", &body).await;
    assert_eq!(answer.json()["error"]["param"], "chat_template_kwargs.strftime_now");
}
