use super::*;

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn one_rank() {
    let mut progress = Progress::new(seconds(0));
    assert_eq!(
        progress.finish(Phase::Resolve, "/m", seconds(1)),
        Output::Line("resolve            /m (1.0 s)".to_owned())
    );
    progress.ranks(1, seconds(2));
    let mut load = |done, at| progress.report((Phase::Load, 0), (done, 272), "tensors", seconds(at));
    assert_eq!(
        load(12, 3),
        Some(Output::Bar { label: "load", done: 12, total: 272, unit: "tensors".to_owned() })
    );
    assert_eq!(load(136, 6), Some(Output::Heartbeat("load               50 % (136/272 tensors)".to_owned())));
    assert!(matches!(load(137, 7), Some(Output::Bar { done: 137, .. })));
    assert_eq!(load(272, 8), Some(Output::Line("load               272 tensors (6.0 s)".to_owned())));
    assert_eq!(load(272, 8), None);
    let mut warm_up = |done, at| progress.report((Phase::WarmUp, 0), (done, 1), "", seconds(at));
    assert!(matches!(warm_up(0, 8), Some(Output::Bar { label: "warm up", .. })));
    assert_eq!(warm_up(1, 9), Some(Output::Line("warm up            done (1.0 s)".to_owned())));
    assert!(matches!(
        progress.report((Phase::SizeKvCache, 0), (1, 1), "", seconds(9)),
        Some(Output::Bar { .. })
    ));
    assert_eq!(
        progress.finish_all(&ready(), seconds(10)),
        [
            Output::Line("size the KV cache  91,024 tokens (1.0 s)".to_owned()),
            Output::Line("ready              http://0.0.0.0:3000 (10.0 s)".to_owned()),
        ]
    );
}

#[test]
fn ranks_are_added_up() {
    let mut progress = Progress::new(seconds(0));
    progress.ranks(2, seconds(0));
    let mut load = |rank, done| progress.report((Phase::Load, rank), (done, 10), "tensors", seconds(1));
    assert!(matches!(load(0, 10), Some(Output::Bar { done: 10, total: 10, .. })));
    assert!(matches!(load(1, 5), Some(Output::Bar { done: 15, total: 20, .. })));
    assert_eq!(
        load(1, 10),
        Some(Output::Line("load               20 tensors on 2 ranks (1.0 s)".to_owned()))
    );
}

#[test]
fn a_restart_begins_anew() {
    let mut progress = Progress::new(seconds(0));
    progress.finish(Phase::Verify, "", seconds(0));
    progress.ranks(1, seconds(0));
    assert!(progress.report((Phase::Load, 0), (1, 1), "tensors", seconds(1)).is_some());
    assert!(progress.report((Phase::Load, 0), (1, 1), "tensors", seconds(1)).is_none());
    progress.ranks(1, seconds(2));
    assert!(progress.report((Phase::Load, 0), (1, 1), "tensors", seconds(3)).is_some());
}

fn ready() -> Ready {
    Ready {
        url: "http://0.0.0.0:3000".to_owned(),
        model: "it's".to_owned(),
        dtype: "float32".to_owned(),
        device: "cpu".to_owned(),
        context: 8192,
        kv_tokens: 91024,
        prefix_cache: true,
    }
}

#[test]
fn the_block_fits_fifteen_lines() {
    let facts = Facts {
        summary: "LlamaForCausalLM, 134.5 M parameters".to_owned(),
        world_size: 2,
        has_chat_template: true,
        needs_api_key: true,
    };
    let lines = block(&ready(), &facts);
    assert!(lines.len() <= 15);
    insta::assert_snapshot!(lines.join("\n"));
}

#[test]
fn a_model_without_a_chat_template_completes() {
    let line = curl("http://h:1", "m", &Facts::default());
    assert_eq!(
        line,
        "curl http://h:1/v1/completions -H 'Content-Type: application/json' \
         -d '{\"model\":\"m\",\"prompt\":\"Once upon a time\",\"max_tokens\":32}'"
    );
}

#[test]
fn numbers() {
    for (number, expect) in
        [(0, "0"), (999, "999"), (1000, "1,000"), (91_024, "91,024"), (1_234_567, "1,234,567")]
    {
        assert_eq!(thousands(number), expect);
    }
    assert_eq!([count(0), count(134_515_008), count(8_030_261_248)], ["0", "134.5 M", "8.0 B"]);
    assert_eq!([bytes(12), bytes(91_727_000), bytes(16_060_000_000)], ["12 bytes", "91.7 MB", "16.1 GB"]);
}
