//! The specification: one query at a time, two passes over its keys, sums in `f64`.

use super::{Batch, PagedAttention, ShapeError, window_start};
use crate::Element;

/// As [`super::paged_attention`], in the plainest way.
///
/// # Errors
/// [`ShapeError`] if the slices do not fit together.
pub fn paged_attention_naive<Q: Element, K: Element>(
    call: &PagedAttention<'_, Q, K>,
    batch: &Batch,
    output: &mut [Q],
) -> Result<(), ShapeError> {
    call.validate(batch, output)?;
    let head_dim = call.heads.head_dim;
    for (index, row) in batch.rows().iter().enumerate() {
        for token in 0..row.query_length {
            let position = row.num_cached() + token;
            for head in 0..call.heads.num_heads {
                let kv_head = head / call.heads.group();
                let at = ((row.start + token) * call.heads.num_heads + head) * head_dim;
                let from = (row.start + token) * call.query_stride + head * head_dim;
                let query = &call.query[from..from + head_dim];
                let seen = window_start(call.sliding_window, position)..position + 1;
                let offset = |position| call.cache_offset(batch, index, position, kv_head);
                let scores: Vec<f64> = seen.clone().map(|key| score(call, query, offset(key))).collect();
                let sink = call.sinks.map(|sinks| f64::from(sinks[head]));
                let highest = scores.iter().copied().chain(sink).fold(f64::NEG_INFINITY, f64::max);
                let total: f64 =
                    scores.iter().copied().chain(sink).map(|score| (score - highest).exp()).sum();
                for element in 0..head_dim {
                    let value = |key| f64::from(call.value_cache[offset(key) + element].widen());
                    let weighted = seen
                        .clone()
                        .zip(&scores)
                        .map(|(key, score)| (score - highest).exp() / total * value(key));
                    output[at + element] = Q::narrow(weighted.sum::<f64>() as f32);
                }
            }
        }
    }
    Ok(())
}

fn score<Q: Element, K: Element>(call: &PagedAttention<'_, Q, K>, query: &[Q], key_offset: usize) -> f64 {
    let keys = &call.key_cache[key_offset..key_offset + query.len()];
    let dot: f64 = query.iter().zip(keys).map(|(&q, &k)| f64::from(q.widen()) * f64::from(k.widen())).sum();
    let score = dot * f64::from(call.scale);
    call.soft_cap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())
}
