//! Flags and environment to a configuration, and what is refused.
//!
//! The environment is the process's, so the tests that need one run `anaphora-router` itself.

use std::{ffi::OsString, process::Command, time::Duration};

use anaphora_router::{
    cli,
    config::{ApiKey, Config, ConfigError, ShardConfig},
};

/// The least that is accepted.
const LEAST: &[&str] = &["anaphora router", "--model-path", "m.gguf", "--shard-socket", "s0"];

fn parse(args: &[&str]) -> Result<Config, clap::Error> {
    cli::parse(LEAST.iter().chain(args).map(OsString::from))
}

#[test]
fn the_defaults_are_those_of_the_documentation() {
    let config = parse(&[]).unwrap();
    assert_eq!((config.http.hostname.as_str(), config.http.port), ("127.0.0.1", 3000));
    assert_eq!((config.http.max_header_fields, config.http.max_header_bytes), (64, 16 * 1024));
    assert_eq!(config.http.graceful_termination_timeout, Duration::from_secs(90));
    assert_eq!((config.engine.max_concurrent_requests, config.engine.block_size), (128, 16));
    assert_eq!((config.engine.max_batch_size, config.engine.max_batch_prefill_tokens), (None, None));
    assert_eq!((config.engine.memory_utilization, config.engine.prefix_cache), (0.9, true));
    assert_eq!(config.engine.step_timeout, Duration::from_secs(300));
    assert_eq!(
        (config.limits.max_best_of, config.limits.max_n, config.limits.max_stop_sequences),
        (8, 16, 16)
    );
    assert_eq!((config.limits.max_top_n_tokens, config.limits.max_client_batch_size), (20, 32));
    assert_eq!(config.limits.payload, 33_554_432);
    assert_eq!(config.shard, ShardConfig::Sockets(vec!["s0".into()]));
    assert_eq!((config.telemetry.log_level.as_str(), config.telemetry.otlp_endpoint), ("info", None));
    assert_eq!(config.model.id, "m.gguf");
}

#[test]
fn a_flag_changes_what_it_says() {
    type Check = fn(&Config) -> bool;
    let cases: [(&[&str], Check); 27] = [
        (&["--model-id", "smol"], |config| config.model.id == "smol"),
        (&["--tokenizer", "t"], |config| config.model.tokenizer == Some("t".into())),
        (&["--tokenizer-config-path", "c"], |config| config.model.tokenizer_config == Some("c".into())),
        (&["--shard-socket", "s1"], |config| {
            config.shard == ShardConfig::Sockets(vec!["s0".into(), "s1".into()])
        }),
        (&["--hostname", "my.machine"], |config| config.http.hostname == "my.machine"),
        (&["-p", "8080"], |config| config.http.port == 8080),
        (&["--api-key", "secret", "--api-key", "other"], |config| {
            config.http.api_keys.iter().map(|key| key.key.as_str()).eq(["secret", "other"])
        }),
        (&["--cors-allow-origin", "a", "--cors-allow-origin", "b"], |config| {
            config.http.cors_allow_origin == ["a", "b"]
        }),
        (&["-g", "7"], |config| config.http.graceful_termination_timeout == Duration::from_secs(7)),
        (&["--max-concurrent-requests", "7"], |config| config.engine.max_concurrent_requests == 7),
        (&["--max-batch-size", "7"], |config| config.engine.max_batch_size == Some(7)),
        (&["--max-batch-prefill-tokens", "700"], |config| {
            config.engine.max_batch_prefill_tokens == Some(700)
        }),
        (&["--max-batch-total-tokens", "700"], |config| config.engine.max_batch_total_tokens == Some(700)),
        (&["--max-total-tokens", "700"], |config| {
            (config.limits.max_total_tokens, config.engine.max_context) == (Some(700), Some(700))
        }),
        (&["--max-input-length", "700"], |config| config.limits.max_input_tokens == Some(700)),
        (&["--block-size", "32"], |config| config.engine.block_size == 32),
        (&["--cuda-memory-fraction", "0.5"], |config| config.engine.memory_utilization == 0.5),
        (&["--gpu-memory-utilization", "0.5"], |config| config.engine.memory_utilization == 0.5),
        (&["--no-prefix-cache"], |config| !config.engine.prefix_cache),
        (&["--step-timeout", "7"], |config| config.engine.step_timeout == Duration::from_secs(7)),
        (&["--target-itl", "7"], |config| config.engine.target_itl == Some(Duration::from_millis(7))),
        (&["--max-queue-time", "7"], |config| config.engine.max_queue_time == Some(Duration::from_secs(7))),
        (&["--cache-quota", "a=7", "--cache-quota", "b=8"], |config| {
            config.engine.cache_quotas == [("a".into(), 7), ("b".into(), 8)].into()
        }),
        (&["--payload-limit", "7"], |config| config.limits.payload == 7),
        (&["--json-output"], |config| config.telemetry.json_output),
        (&["--otlp-endpoint", "http://o:4317"], |config| {
            config.telemetry.otlp_endpoint.as_deref() == Some("http://o:4317")
        }),
        (&["--otlp-service-name", "o"], |config| config.telemetry.otlp_service_name == "o"),
    ];
    for (args, check) in cases {
        assert!(check(&parse(args).unwrap()), "{args:?}");
    }
}

#[test]
fn what_cannot_work_is_refused_by_name() {
    for (args, expected) in [
        (&["--max-concurrent-requests", "0"][..], "--max-concurrent-requests must be at least 1"),
        (&["--block-size", "0"], "--block-size must be at least 1"),
        (&["--target-itl", "0"], "--target-itl must be at least 1"),
        (&["--cache-quota", "a"], "it must be TENANT=TOKENS"),
        (&["--step-timeout", "0"], "--step-timeout must be at least 1"),
        (&["--max-total-tokens", "0"], "--max-total-tokens must be at least 1"),
        (&["--gpu-memory-utilization", "0"], "above 0 and at most 1, not 0"),
        (&["--gpu-memory-utilization", "1.5"], "not 1.5"),
        (&["--gpu-memory-utilization", "nan"], "not NaN"),
        (
            &["--max-input-tokens", "10", "--max-total-tokens", "10"],
            "--max-input-tokens 10 must be less than",
        ),
        (&["--max-batch-size", "64", "--max-batch-prefill-tokens", "32"], "at least --max-batch-size 64"),
        (&["--max-batch-total-tokens", "15"], "at least --block-size 16"),
        (&["--api-key", ""], "an API key must not be empty"),
        (&["--api-key", "with space"], "visible ASCII"),
        (&["--fake"], "cannot be used with"),
        (&["--port", "70000"], "70000"),
        (&["--max-batch-size", "-1"], "-1"),
        (&["--no-such-flag"], "--no-such-flag"),
    ] {
        let error = parse(args).unwrap_err();
        assert!(error.to_string().contains(expected), "{args:?}: {error}");
        assert_eq!(error.exit_code(), 2);
    }
}

#[test]
fn a_file_of_keys_names_tenants() {
    let keys = ApiKey::parse_file("# ours\n\nalice: a:1 \nbob:b\nalice:a2\n").unwrap();
    let keys: Vec<_> = keys.iter().map(|key| (key.tenant.as_deref().unwrap(), key.key.as_str())).collect();
    assert_eq!(keys, [("alice", "a:1"), ("bob", "b"), ("alice", "a2")]);
    for (text, number) in [("a:1\nb", 2), (":1", 1)] {
        assert_eq!(ApiKey::parse_file(text), Err(ConfigError::ApiKeyLine { number }), "{text}");
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("keys");
    for (text, expected) in
        [("", "it has no keys"), ("alice:", "must not be empty"), ("alice", "line 1 of --api-key-file")]
    {
        std::fs::write(&path, text).unwrap();
        let error = parse(&["--api-key-file", path.to_str().unwrap()]).unwrap_err();
        assert!(error.to_string().contains(expected) && error.exit_code() == 2, "{text}: {error}");
    }
    std::fs::write(&path, "alice:1\nbob:2").unwrap();
    let config = parse(&["--api-key-file", path.to_str().unwrap(), "--api-key", "3"]).unwrap();
    assert_eq!(config.http.api_keys.len(), 3);
    assert!(parse(&["--api-key-file", "/no/such/file"]).unwrap_err().to_string().contains("/no/such/file"));
}

#[test]
fn a_shard_must_be_named_or_fake() {
    let parse =
        |args: &[&str]| cli::parse(["router", "--model-path", "m"].iter().chain(args).map(OsString::from));
    assert!(parse(&[]).unwrap_err().to_string().contains(&ConfigError::NoShard.to_string()));
    assert!(matches!(parse(&["--fake"]).unwrap().shard, ShardConfig::Fake { .. }));
}

#[test]
fn the_environment_counts_where_no_flag_does() {
    // The model does not exist, so the program ends with code 3 where it accepts its configuration, and with 2 where not.
    // (`--port` is always given: no test may listen on a port of its choice.)
    let code = |env: &[(&str, &str)], args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_anaphora-router"));
        command.args(["--model-path", "/no/such/model", "--fake", "--port", "0"]).args(args);
        command.env_clear().envs(env.iter().copied()).output().unwrap().status.code()
    };
    for (env, args, expected) in [
        (&[][..], &[][..], 3),
        // Each of these is read, since it is refused.
        (&[("MAX_CONCURRENT_REQUESTS", "0")], &[], 2),
        (&[("MAX_CONCURRENT_REQUESTS", "0")], &["--max-concurrent-requests", "1"], 3),
        (&[("MAX_BATCH_SIZE", "x")], &[], 2),
        (&[("MAX_BATCH_PREFILL_TOKENS", "0")], &[], 2),
        (&[("MAX_BATCH_TOTAL_TOKENS", "1")], &[], 2),
        (&[("MAX_TOTAL_TOKENS", "0")], &[], 2),
        (&[("MAX_INPUT_TOKENS", "0")], &[], 2),
        (&[("MAX_BEST_OF", "0")], &[], 2),
        (&[("MAX_STOP_SEQUENCES", "x")], &[], 2),
        (&[("MAX_TOP_N_TOKENS", "x")], &[], 2),
        (&[("MAX_CLIENT_BATCH_SIZE", "0")], &[], 2),
        (&[("PAYLOAD_LIMIT", "0")], &[], 2),
        (&[("CUDA_MEMORY_FRACTION", "2")], &[], 2),
        (&[("GRACEFUL_TERMINATION_TIMEOUT", "x")], &[], 2),
        (&[("PORT", "x")], &[], 3),
        (&[("API_KEY", "with space")], &[], 2),
        (&[("LOG_LEVEL", "=,=")], &[], 2),
        (&[("JSON_OUTPUT", "x")], &[], 2),
        // A machine's name is not a wish; an address is.
        (&[("HOSTNAME", "no-such-machine.invalid")], &[], 3),
        (&[("HOSTNAME", "192.0.2.1")], &[], 4),
        (&[("HOSTNAME", "192.0.2.1")], &["--hostname", "127.0.0.1"], 3),
    ] {
        assert_eq!(code(env, args), Some(expected), "{env:?} {args:?}");
    }
}

#[test]
fn a_key_in_the_environment_is_not_shown() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_anaphora-router"));
    let help = command.env("API_KEY", "hunter2").arg("--help").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    assert!(help.contains("--api-key") && !help.contains("hunter2"));
}
