//! How far the start-up has come, in the words that the user sees. Pure: events and times in, lines and bars out.
//!
//! ```text
//!   resolve ─► verify ─► load ─► warm up ─► size the KV cache ─► ready, and the block
//!              launcher │ shards, all ranks added up            │ router
//! ```

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::json;

use crate::child::Ready;

/// Lines of a long phase come no more often than this where there is no bar.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// Something to show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Output {
    /// A line for good.
    Line(String),
    /// A sign of life where there is no bar.
    Heartbeat(String),
    /// The state of the bar, where there is one.
    Bar { label: &'static str, done: u64, total: u64, unit: String },
    /// The final block.
    Block(Vec<String>),
}

/// A step of the start-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    Resolve,
    Verify,
    Load,
    WarmUp,
    SizeKvCache,
    Ready,
}

/// The start-up so far.
#[derive(Debug)]
pub(crate) struct Progress {
    world_size: u32,
    /// When the phase that is under way began.
    began: Duration,
    /// The last phase that came to its end.
    finished: Option<Phase>,
    ranks: BTreeMap<(Phase, u32), (u64, u64)>,
    last_shown: Duration,
}

/// What the block says beside the router's own facts.
#[derive(Debug, Clone, Default)]
pub(crate) struct Facts {
    /// e.g. "llama, 134.5 M parameters".
    pub(crate) summary: String,
    pub(crate) world_size: u32,
    pub(crate) has_chat_template: bool,
    pub(crate) needs_api_key: bool,
}

// === impl Phase ===

impl Phase {
    /// A phase as shards name it.
    pub(crate) fn from_event(name: &str) -> Option<Self> {
        match name {
            "load" => Some(Self::Load),
            "warm_up" => Some(Self::WarmUp),
            "size_kv_cache" => Some(Self::SizeKvCache),
            _ => None,
        }
    }

    fn label(self) -> &'static str {
        match self {
            Self::Resolve => "resolve",
            Self::Verify => "verify",
            Self::Load => "load",
            Self::WarmUp => "warm up",
            Self::SizeKvCache => "size the KV cache",
            Self::Ready => "ready",
        }
    }
}

// === impl Progress ===

impl Progress {
    /// A start-up that begins at `now`. The number of ranks is one until [`Progress::ranks`] says otherwise.
    pub(crate) fn new(now: Duration) -> Self {
        Self { world_size: 1, began: now, finished: None, ranks: BTreeMap::new(), last_shown: now }
    }

    /// The ranks whose reports are added up. Also forgets what ranks of an earlier incarnation reported.
    pub(crate) fn ranks(&mut self, world_size: u32, now: Duration) {
        self.world_size = world_size;
        self.ranks.clear();
        self.began = now;
        self.finished = self.finished.map(|phase| phase.min(Phase::Verify));
    }

    /// `phase` has ended with `detail`.
    pub(crate) fn finish(&mut self, phase: Phase, detail: &str, now: Duration) -> Output {
        let seconds = now.saturating_sub(self.began).as_secs_f64();
        self.began = now;
        self.last_shown = now;
        self.finished = Some(phase);
        Output::Line(format!("{:<17}  {detail} ({seconds:.1} s)", phase.label()))
    }

    /// The router is ready. Its word may arrive before the last words of the shards, so what is still open ends here too.
    pub(crate) fn finish_all(&mut self, ready: &Ready, now: Duration) -> Vec<Output> {
        let size = format!("{} tokens", thousands(ready.kv_tokens));
        let open = [(Phase::Load, "done"), (Phase::WarmUp, "done"), (Phase::SizeKvCache, size.as_str())];
        let finished = self.finished;
        let open = open.into_iter().filter(|(phase, _)| finished.is_none_or(|finished| finished < *phase));
        let mut outputs: Vec<_> = open.map(|(phase, detail)| self.finish(phase, detail, now)).collect();
        self.began = Duration::ZERO; // of the launcher: this is the time that the user has waited
        outputs.push(self.finish(Phase::Ready, &ready.url, now));
        outputs
    }

    /// `rank` has come to `done` of `total` within `phase`.
    pub(crate) fn report(
        &mut self,
        (phase, rank): (Phase, u32),
        (done, total): (u64, u64),
        unit: &str,
        now: Duration,
    ) -> Option<Output> {
        if self.finished.is_some_and(|finished| finished >= phase) {
            return None;
        }
        const MEGABYTE: u64 = 1_000_000;
        let in_bytes = unit == "bytes";
        let (scale, unit) = if in_bytes { (MEGABYTE, "MB") } else { (1, unit) };
        self.ranks.insert((phase, rank), (done / scale, total / scale));
        let of_phase = self.ranks.range((phase, 0)..=(phase, u32::MAX));
        let (reported, done, total) =
            of_phase.fold((0, 0, 0), |(ranks, done, total), (_, (d, t))| (ranks + 1, done + d, total + t));
        let of_ranks =
            if self.world_size > 1 { format!(" on {} ranks", self.world_size) } else { String::new() };
        // How large the cache became is known to the router only: its word ends that phase.
        if reported == self.world_size && done >= total && phase != Phase::SizeKvCache {
            let detail =
                if unit.is_empty() { format!("done{of_ranks}") } else { format!("{total} {unit}{of_ranks}") };
            return Some(self.finish(phase, &detail, now));
        }
        if now.saturating_sub(self.last_shown) >= HEARTBEAT && total > 1 {
            self.last_shown = now;
            let percent = done * 100 / total;
            let line = format!("{:<17}  {percent} % ({done}/{total} {unit}{of_ranks})", phase.label());
            return Some(Output::Heartbeat(line));
        }
        Some(Output::Bar { label: phase.label(), done, total, unit: unit.to_owned() })
    }
}

/// The last thing that the start-up shows, at most 15 lines: what serves, where, and a command to try.
pub(crate) fn block(ready: &Ready, facts: &Facts) -> Vec<String> {
    let url = ready.local_url();
    let summary = if facts.summary.is_empty() { String::new() } else { format!(" ({})", facts.summary) };
    let ranks = if facts.world_size > 1 { format!(", {} ranks", facts.world_size) } else { String::new() };
    let cache = if ready.prefix_cache { "on" } else { "off" };
    vec![
        String::new(),
        format!("anaphora serves {} at {}", ready.model, ready.url),
        format!("  model         {}{summary}", ready.model),
        format!("  dtype         {}", ready.dtype),
        format!("  device        {}{ranks}", ready.device),
        format!("  context       {} tokens", thousands(ready.context)),
        format!("  KV capacity   {} tokens", thousands(ready.kv_tokens)),
        format!("  prefix cache  {cache}"),
        format!("  OpenAI        {url}/v1"),
        format!("  TGI           {url}/generate, {url}/generate_stream"),
        format!("  metrics       {url}/metrics"),
        "Try:".to_owned(),
        format!("  {}", curl(&url, &ready.model, facts)),
        String::new(),
    ]
}

/// A command that any shell runs and that this server answers.
fn curl(url: &str, model: &str, facts: &Facts) -> String {
    let (path, body) = if facts.has_chat_template {
        let messages = json!([{"role": "user", "content": "Say hello."}]);
        ("chat/completions", json!({"model": model, "messages": messages, "max_tokens": 64}))
    } else {
        ("completions", json!({"model": model, "prompt": "Once upon a time", "max_tokens": 32}))
    };
    let key = if facts.needs_api_key { " -H \"Authorization: Bearer $API_KEY\"" } else { "" };
    // Within single quotes the shell takes everything as it is, except for a single quote.
    let body = body.to_string().replace('\'', r"'\''");
    format!("curl {url}/v1/{path} -H 'Content-Type: application/json'{key} -d '{body}'")
}

/// `number` with a comma after each group of three digits.
pub(crate) fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let first = digits.len() % 3;
    let groups = std::iter::once(&digits[..first])
        .chain((first..digits.len()).step_by(3).map(|at| &digits[at..at + 3]));
    groups.filter(|group| !group.is_empty()).collect::<Vec<_>>().join(",")
}

/// A count in the unit that people say: 134.5 M, 8.0 B.
pub(crate) fn count(number: u64) -> String {
    scaled(number, &[(1e12, " T"), (1e9, " B"), (1e6, " M"), (1e3, " K")], "")
}

/// A size in bytes in decimal units: 91.7 MB.
pub(crate) fn bytes(number: u64) -> String {
    scaled(number, &[(1e12, " TB"), (1e9, " GB"), (1e6, " MB"), (1e3, " kB")], " bytes")
}

#[expect(clippy::cast_precision_loss, reason = "one decimal is shown")]
fn scaled(number: u64, units: &[(f64, &str)], plain: &str) -> String {
    let fitting = units.iter().find(|(scale, _)| number as f64 >= *scale);
    fitting.map_or_else(
        || format!("{number}{plain}"),
        |(scale, unit)| format!("{:.1}{unit}", number as f64 / scale),
    )
}

#[cfg(test)]
mod tests;
