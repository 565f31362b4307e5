//! The names of the children, and what they say on their standard output: one JSON object per line.

use std::fmt;

use serde_json::{Map, Value};

/// A process that the launcher starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum ChildId {
    Router,
    Shard {
        rank: u32,
    },
    /// Fetches a model; runs before the others.
    Fetch,
}

impl fmt::Display for ChildId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Router => formatter.write_str("router"),
            Self::Shard { rank } => write!(formatter, "shard-{rank}"),
            Self::Fetch => formatter.write_str("fetch"),
        }
    }
}

/// What a child reports of itself.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Event {
    /// A phase of the start-up has come this far.
    Phase { phase: String, done: u64, total: u64, unit: String },
    /// A shard has loaded its weights and bound its socket.
    Listening,
    /// The fetched model's path.
    Model { path: String },
    /// The router serves.
    Ready(Box<Ready>),
    /// The router has lost its replica.
    ShardLost { message: String },
    /// The router sees no progress although work is queued.
    ShardStalled,
}

/// The facts in the router's `ready` event; what is missing there is missing here.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Ready {
    pub(crate) url: String,
    pub(crate) model: String,
    pub(crate) dtype: String,
    pub(crate) device: String,
    /// The longest prompt and answer together, in tokens.
    pub(crate) context: u64,
    /// The size of the KV pool, in tokens.
    pub(crate) kv_tokens: u64,
    pub(crate) prefix_cache: bool,
}

impl Event {
    /// The event in `line`; `None` if it is none (a library that prints, or an event of a later version).
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let Value::Object(fields) = serde_json::from_str(line).ok()? else { return None };
        let text = |name| text(&fields, name);
        let number = |name| fields.get(name).and_then(Value::as_u64).unwrap_or(0);
        Some(match fields.get("event")?.as_str()? {
            "phase" => Self::Phase {
                phase: text("phase"),
                done: number("done"),
                total: number("total"),
                unit: text("unit"),
            },
            "listening" => Self::Listening,
            "model" => Self::Model { path: text("path") },
            "ready" => Self::Ready(Box::new(Ready {
                url: text("url"),
                model: text("model"),
                dtype: text("dtype"),
                device: text("device"),
                context: number("context"),
                kv_tokens: number("kv_tokens"),
                prefix_cache: fields.get("prefix_cache") == Some(&Value::Bool(true)),
            })),
            "shard_lost" => Self::ShardLost { message: text("message") },
            "shard_stalled" => Self::ShardStalled,
            _ => return None,
        })
    }
}

fn text(fields: &Map<String, Value>, name: &str) -> String {
    fields.get(name).and_then(Value::as_str).unwrap_or_default().to_owned()
}

// === impl Ready ===

impl Ready {
    /// The port in the URL.
    pub(crate) fn port(&self) -> Option<u16> {
        self.url.trim_end_matches('/').rsplit_once(':')?.1.parse().ok()
    }

    /// The URL at which this host reaches the server: an address that means "all interfaces" is nothing to connect to.
    pub(crate) fn local_url(&self) -> String {
        let url = self.url.trim_end_matches('/');
        url.replacen("//0.0.0.0:", "//127.0.0.1:", 1).replacen("//[::]:", "//[::1]:", 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(line: &str, expect: Option<Event>) {
        assert_eq!(Event::parse(line), expect, "{line}");
    }

    #[test]
    fn parse() {
        check(
            r#"{"event":"phase","phase":"load","done":12,"total":272,"unit":"tensors"}"#,
            Some(Event::Phase { phase: "load".into(), done: 12, total: 272, unit: "tensors".into() }),
        );
        check(
            r#"{"event":"phase","phase":"warm_up","done":0,"total":1}"#,
            Some(Event::Phase { phase: "warm_up".into(), done: 0, total: 1, unit: String::new() }),
        );
        check(r#"{"event":"listening"}"#, Some(Event::Listening));
        check(r#"{"event":"model","path":"/m"}"#, Some(Event::Model { path: "/m".into() }));
        check(r#"{"event":"shard_stalled","since":3}"#, Some(Event::ShardStalled));
        check(
            r#"{"event":"shard_lost","message":"gone"}"#,
            Some(Event::ShardLost { message: "gone".into() }),
        );
        for other in
            ["", "hello", "[1]", "{}", r#"{"event":7}"#, r#"{"event":"new_one"}"#, r#"{"event":"ready""#]
        {
            check(other, None);
        }
    }

    #[test]
    fn ready_urls() {
        let ready = |url: &str| Ready { url: url.into(), ..Ready::default() };
        assert_eq!(ready("http://127.0.0.1:3000").port(), Some(3000));
        assert_eq!(ready("http://[::]:80/").port(), Some(80));
        assert_eq!(ready("http://host").port(), None);
        assert_eq!(ready("http://0.0.0.0:1/").local_url(), "http://127.0.0.1:1");
        assert_eq!(ready("http://[::]:1").local_url(), "http://[::1]:1");
        assert_eq!(ready("http://10.0.0.1:1").local_url(), "http://10.0.0.1:1");
    }
}
