//! `anaphora cache`: what a running server's prefix cache holds, over its HTTP API.
//!
//! A client and nothing more: the server decides what the caller may see.

use std::fmt::Write as _;
use std::io::Read as _;
use std::path::Path;
use std::time::Duration;
use std::{fs, io};

use serde_json::Value;
use ureq::{Agent, Body, http::Response};

use crate::cli::{CacheAction, CacheArgs};
use crate::error::LaunchError;

/// A prompt of a million tokens takes some seconds.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Does what is asked and returns what to print.
///
/// # Errors
/// If the request cannot be read, or the server cannot be reached, or refuses.
pub(crate) fn run(args: &CacheArgs) -> Result<String, LaunchError> {
    let server = Server::new(args);
    let (answer, to_text): (Value, fn(&Value) -> String) = match &args.action {
        CacheAction::Ls => (server.get("/v1/cache")?, list),
        CacheAction::Explain { file } => (server.post("/v1/cache/explain", &read(file)?)?, explanation),
        CacheAction::Clear => (server.post("/v1/cache/clear", "")?, cleared),
    };
    Ok(if args.json { answer.to_string() } else { to_text(&answer) })
}

fn read(file: &Path) -> Result<String, LaunchError> {
    let mut text = String::new();
    let result = if file == Path::new("-") {
        io::stdin().read_to_string(&mut text)
    } else {
        fs::File::open(file).and_then(|mut file| file.read_to_string(&mut text))
    };
    let given = file.display();
    result
        .map(|_| text)
        .map_err(|error| LaunchError::Cache(format!("cannot read the request {given}: {error}")))
}

// === HTTP ===

struct Server<'a> {
    agent: Agent,
    url: &'a str,
    authorization: Option<String>,
}

impl<'a> Server<'a> {
    fn new(args: &'a CacheArgs) -> Self {
        let config = Agent::config_builder().http_status_as_error(false).timeout_global(Some(TIMEOUT));
        let key = args.api_key.as_deref().and_then(|keys| keys.lines().next());
        Self {
            agent: config.build().into(),
            url: args.url.trim_end_matches('/'),
            authorization: key.map(|key| format!("Bearer {key}")),
        }
    }

    fn get(&self, path: &str) -> Result<Value, LaunchError> {
        let mut request = self.agent.get(format!("{}{path}", self.url));
        if let Some(authorization) = &self.authorization {
            request = request.header("authorization", authorization);
        }
        self.answer(request.call())
    }

    fn post(&self, path: &str, body: &str) -> Result<Value, LaunchError> {
        let request = self.agent.post(format!("{}{path}", self.url));
        let mut request = request.header("content-type", "application/json");
        if let Some(authorization) = &self.authorization {
            request = request.header("authorization", authorization);
        }
        self.answer(request.send(body))
    }

    /// The answer's JSON, or why there is none.
    fn answer(&self, result: Result<Response<Body>, ureq::Error>) -> Result<Value, LaunchError> {
        let url = self.url;
        let fail = |error: ureq::Error| {
            LaunchError::Cache(format!("no answer from {url}: {error}. Say where the server is with --url"))
        };
        let mut response = result.map_err(fail)?;
        let text = response.body_mut().read_to_string().map_err(fail)?;
        let answer: Value = serde_json::from_str(&text).unwrap_or_default();
        if response.status().is_success() && !answer.is_null() {
            return Ok(answer);
        }
        let status = response.status();
        let message = answer["error"]["message"].as_str().unwrap_or("it does not seem to be anaphora");
        Err(LaunchError::Cache(format!("{url} answered {status}: {message}")))
    }
}

// === what people read ===

fn list(answer: &Value) -> String {
    let header = ["TENANT", "SALT", "ADAPTER", "BLOCKS", "TOKENS", "MODEL"].map(str::to_owned);
    let text = |value: &Value| match value {
        Value::String(text) if text.is_empty() => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let fields = ["tenant", "salt_digest", "adapter", "blocks", "tokens", "model"];
    let rows = answer["data"].as_array().into_iter().flatten();
    let table: Vec<_> =
        std::iter::once(header).chain(rows.map(|row| fields.map(|field| text(&row[field])))).collect();
    let width = |column: usize| table.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..fields.len()).map(width).collect();
    let line = |row: &[String; 6]| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    table.iter().map(line).collect::<Vec<_>>().join("\n")
}

fn explanation(answer: &Value) -> String {
    let (matched, of) = (&answer["matched_tokens"]["device"], &answer["prompt_tokens"]);
    let mut text = format!("{matched} of {of} prompt tokens are cached: ");
    text.push_str(match answer["reason"].as_str().unwrap_or_default() {
        "complete" => "the whole prompt; its last token is computed nevertheless.",
        "diverges" => "from there on the cache has something else.",
        "ends" => "the rest was not computed yet, or has been evicted.",
        "nothing_cached" => "there is nothing for this model, tenant and cache_salt.",
        "disabled" => "the server runs with --no-prefix-cache.",
        other => other,
    });
    let divergence = &answer["divergence"];
    if divergence.is_null() {
        return text;
    }
    let place = divergence["message_index"]
        .as_u64()
        .map_or_else(String::new, |index| format!(" (messages[{index}])"));
    let _ = write!(text, "\n\nat token {}{place}", divergence["position"]);
    for (label, field) in [("after", "before"), ("prompt has", "after"), ("cache has", "cached")] {
        if divergence[field].is_string() {
            let _ = write!(text, "\n  {label:<10}  {}", divergence[field]);
        }
    }
    text
}

fn cleared(answer: &Value) -> String {
    format!("{} blocks forgotten", answer["blocks"])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{explanation, list};

    #[test]
    fn an_explanation_shows_both_sides() {
        let answer = json!({
            "prompt_tokens": 90, "matched_tokens": {"device": 64, "host": 0, "disk": 0}, "reason": "diverges",
            "divergence": {"position": 64, "message_index": 2, "before": "it is ", "after": "10:42\n", "cached": "10:41"},
        });
        insta::assert_snapshot!(explanation(&answer));
    }

    #[test]
    fn a_list_is_a_table() {
        let row = |tenant: &str, blocks: u32| json!({"tenant": tenant, "salt_digest": "", "adapter": "", "model": "f1", "blocks": blocks, "tokens": blocks * 16});
        insta::assert_snapshot!(list(&json!({"object": "list", "data": [row("", 12_500), row("alice", 3)]})));
    }
}
