//! What the launcher wants to know: one JSON object per line on stdout. Log lines go to stderr.

use std::io::Write as _;

use serde::Serialize;

use crate::engine::EngineEvent;

/// A line.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Line<'a> {
    /// The replica is ready: the first time, and again after each recovery.
    Ready {
        url: &'a str,
        model: &'a str,
        dtype: &'a str,
        device: &'a str,
        context: u32,
        kv_tokens: u64,
        prefix_cache: bool,
    },
    /// The shard died; whoever started it may start it anew.
    ShardLost { message: &'a str },
    /// The shard makes no progress; whoever started it should kill it.
    ShardStalled,
}

/// The line for `event` of the server at `url`, without the line break.
#[must_use]
pub fn line(event: &EngineEvent, url: &str, model: &str) -> String {
    let line = match event {
        EngineEvent::Ready(info) => Line::Ready {
            url,
            model,
            dtype: &info.dtype,
            device: &info.device,
            context: info.context,
            kv_tokens: info.kv_tokens,
            prefix_cache: info.prefix_cache,
        },
        EngineEvent::ShardLost { message } => Line::ShardLost { message },
        EngineEvent::ShardStalled => Line::ShardStalled,
    };
    serde_json::to_string(&line).expect("strings and numbers are JSON. This is a bug.")
}

/// Writes a line to stdout. If nobody reads it any more, so be it.
pub fn emit(line: &str) {
    let mut stdout = std::io::stdout().lock();
    let _ = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
}
