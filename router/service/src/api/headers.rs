//! Response headers that say what an answer cost.

use http::{HeaderMap, HeaderName, HeaderValue};

use super::{App, Context};
use crate::{engine::Status, stream::Totals};

/// `hit=<tokens>;of=<prompt tokens>;tier=device`.
pub(super) const PREFIX_CACHE: HeaderName = HeaderName::from_static("x-prefix-cache");

/// What the prefix cache had of the prompts; nothing if one of them has not left the queue yet.
pub(super) fn prefix_cache(headers: &mut HeaderMap, totals: &Totals) {
    if totals.cached_tokens.iter().all(Option::is_some) {
        let value = format!("hit={};of={};tier=device", totals.num_cached(), totals.num_prompt());
        insert(headers, PREFIX_CACHE, value);
    }
}

/// TGI's headers of an answer that is complete.
pub(super) fn timings(
    headers: &mut HeaderMap,
    app: &App,
    context: &Context,
    totals: &Totals,
    num_characters: usize,
) {
    let timings = totals.timings(context.arrived);
    let per_token = timings.inference / timings.num_generated.max(1);
    compute(headers, app, num_characters);
    for (name, value) in [
        ("x-compute-time", timings.total.as_secs_f64().to_string()),
        ("x-total-time", timings.total.as_millis().to_string()),
        ("x-validation-time", totals.admission.as_millis().to_string()),
        ("x-queue-time", timings.queue.as_millis().to_string()),
        ("x-inference-time", timings.inference.as_millis().to_string()),
        ("x-time-per-token", per_token.as_millis().to_string()),
        ("x-prompt-tokens", totals.num_prompt().to_string()),
        ("x-generated-tokens", timings.num_generated.to_string()),
    ] {
        insert(headers, HeaderName::from_static(name), value);
    }
}

/// TGI's headers of a stream.
pub(super) fn compute(headers: &mut HeaderMap, app: &App, num_characters: usize) {
    let compute_type = match app.engine.status() {
        Status::Ready(replica) => compute_type(&replica.device, replica.world_size),
        _ => "unknown".to_owned(),
    };
    insert(headers, HeaderName::from_static("x-compute-type"), compute_type);
    insert(headers, HeaderName::from_static("x-compute-characters"), num_characters.to_string());
}

/// As TGI writes it: `cuda:0 (NVIDIA H200)` on two ranks is `2-nvidia-h200`.
fn compute_type(device: &str, world_size: u32) -> String {
    match device.split_once('(') {
        Some((kind, name)) if kind.starts_with("cuda") => {
            let name = name.trim_end_matches(')').trim().to_lowercase().replace(' ', "-");
            format!("{world_size}-{name}")
        }
        _ => device.split([':', ' ']).next().unwrap_or(device).to_owned(),
    }
}

fn insert(headers: &mut HeaderMap, name: HeaderName, value: String) {
    if let Ok(value) = HeaderValue::try_from(value) {
        headers.insert(name, value);
    }
}

#[cfg(test)]
mod tests {
    use super::compute_type;

    #[test]
    fn compute_types() {
        for (device, world_size, expect) in [
            ("cuda:0 (NVIDIA H200)", 2, "2-nvidia-h200"),
            ("cpu", 1, "cpu"),
            ("cpu (fake)", 1, "cpu"),
            ("cuda:0", 1, "cuda"),
        ] {
            assert_eq!(compute_type(device, world_size), expect);
        }
    }
}
