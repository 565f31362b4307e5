//! The lines that the launcher reads.

use std::sync::Arc;

use anaphora_router::{
    engine::{EngineEvent, ReplicaInfo},
    events::line,
};

#[test]
fn events_are_json_lines() {
    let info = ReplicaInfo {
        fingerprint: "f00d".to_owned(),
        architecture: "LlamaForCausalLM".to_owned(),
        device: "cpu".to_owned(),
        dtype: "float32".to_owned(),
        world_size: 1,
        vocab_size: 49_152,
        context: 8192,
        kv_tokens: 91_024,
        max_rows: 64,
        max_step_tokens: 512,
        prefix_cache: true,
    };
    let lost = EngineEvent::ShardLost { message: "rank 0: \"gone\"\n".to_owned() };
    for (event, expected) in [
        (
            EngineEvent::Ready(Arc::new(info)),
            r#"{"event":"ready","url":"http://127.0.0.1:3000","model":"smollm2-135m","dtype":"float32","device":"cpu","context":8192,"kv_tokens":91024,"prefix_cache":true}"#,
        ),
        (lost, r#"{"event":"shard_lost","message":"rank 0: \"gone\"\n"}"#),
        (EngineEvent::ShardStalled, r#"{"event":"shard_stalled"}"#),
    ] {
        assert_eq!(line(&event, "http://127.0.0.1:3000", "smollm2-135m"), expected);
    }
}
