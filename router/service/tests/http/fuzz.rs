//! Damaged requests: whatever comes, the answer is one of ours, and nothing is left behind.

use proptest::{collection::vec, prelude::*, test_runner::Config};
use serde_json::Value;

use crate::common::{Server, Setup, post};

const SEEDS: &[(&str, &str)] = &[
    (
        "/v1/chat/completions",
        r#"{"model":"tgi","messages":[{"role":"user","content":"a"},{"role":"assistant","content":[{"type":"text","text":"b"}]}],"max_tokens":4,"temperature":0.5,"stop":["x"],"logit_bias":{"5":1},"n":2,"seed":1,"stream":false}"#,
    ),
    (
        "/v1/completions",
        r#"{"prompt":["a","b"],"max_tokens":4,"logprobs":2,"best_of":2,"top_p":0.5,"echo":false,"stop":"x"}"#,
    ),
    (
        "/generate",
        r#"{"inputs":"a","parameters":{"max_new_tokens":4,"do_sample":true,"top_k":5,"details":true,"stop":["x"],"truncate":3}}"#,
    ),
    (
        "/generate_stream",
        r#"{"inputs":"\u00e9","parameters":{"max_new_tokens":4,"temperature":0.5,"top_n_tokens":2}}"#,
    ),
];

/// Where, how many bytes of the original go, and what comes in their place.
type Edit = (prop::sample::Index, usize, String);

fn edits() -> impl Strategy<Value = Vec<Edit>> {
    let text = prop_oneof![
        "[0-9eE+\\-.]{1,20}",
        "[\\[\\]{}\",:\\\\]{1,4}",
        "[a-z_]{1,6}",
        Just("null".to_owned()),
        Just("NaN".to_owned()),
        Just("1e400".to_owned()),
        Just("\\ud800".to_owned()),
        Just("\u{0}".to_owned()),
        Just("\"n\":3,\"n\":4,".to_owned()),
        Just("<|im_end|>".to_owned()),
        Just(String::new()),
    ];
    vec((any::<prop::sample::Index>(), 0..6_usize, text), 1..4)
}

fn damage(seed: &str, edits: &[Edit]) -> Vec<u8> {
    let mut bytes = seed.as_bytes().to_vec();
    for (place, num_gone, text) in edits {
        let start = place.index(bytes.len().max(1)).min(bytes.len());
        let end = (start + num_gone).min(bytes.len());
        bytes.splice(start..end, text.bytes());
    }
    bytes
}

#[test]
fn no_body_breaks_the_server() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut setup = Setup::default();
    setup.fake.max_context = 128;
    let server = runtime.block_on(Server::with(setup));
    let cases = Config { cases: 400, failure_persistence: None, ..Config::default() };
    proptest!(cases, |(seed in prop::sample::select(SEEDS), edits in edits())| {
        let (path, seed) = seed;
        let body = damage(seed, &edits);
        let answer = runtime.block_on(server.call(post(path, body.clone())));
        let about = format!("{path} {} -> {} {}", String::from_utf8_lossy(&body), answer.status, answer.text());
        prop_assert!(answer.status.as_u16() < 500, "{about}");
        if answer.status != 200 {
            let error = &answer.json()["error"];
            let message = if path.starts_with("/v1") { &error["message"] } else { error };
            prop_assert!(message.as_str().is_some_and(|message| !message.is_empty()), "{about}");
        } else if !answer.header("content-type").starts_with("text/event-stream") {
            prop_assert!(serde_json::from_slice::<Value>(&answer.body).is_ok(), "{about}");
        }
    });
    runtime.block_on(server.idle());
}
