//! The specification: one query at a time, two passes over its keys, sums in `f64`.

use super::{PagedAttention, ShapeError};

/// As [`super::paged_attention`], in the plainest way.
///
/// # Errors
/// [`ShapeError`] if the slices do not fit together.
pub fn paged_attention_naive(call: &PagedAttention<'_>, output: &mut [f32]) -> Result<(), ShapeError> {
    call.validate(output)?;
    let head_dim = call.shape.head_dim;
    for row in (0..call.num_rows()).map(|row| call.row(row)) {
        for token in 0..row.query_length {
            let position = row.context_length - row.query_length + token;
            for head in 0..call.shape.num_heads {
                let kv_head = head / call.group();
                let at = ((row.start + token) * call.shape.num_heads + head) * head_dim;
                let query = &call.query[at..at + head_dim];
                let seen = call.window_start(position)..position + 1;
                let offset = |position| call.cache_offset(row, position, kv_head);
                let scores: Vec<f64> = seen.clone().map(|key| score(call, query, offset(key))).collect();
                let sink = call.sinks.map(|sinks| f64::from(sinks[head]));
                let highest = scores.iter().copied().chain(sink).fold(f64::NEG_INFINITY, f64::max);
                let total: f64 =
                    scores.iter().copied().chain(sink).map(|score| (score - highest).exp()).sum();
                for element in 0..head_dim {
                    let weighted = seen.clone().zip(&scores).map(|(key, score)| {
                        (score - highest).exp() / total * f64::from(call.value_cache[offset(key) + element])
                    });
                    output[at + element] = weighted.sum::<f64>() as f32;
                }
            }
        }
    }
    Ok(())
}

fn score(call: &PagedAttention<'_>, query: &[f32], key_offset: usize) -> f64 {
    let keys = &call.key_cache[key_offset..key_offset + query.len()];
    let dot: f64 = query.iter().zip(keys).map(|(&q, &k)| f64::from(q) * f64::from(k)).sum();
    let score = dot * f64::from(call.scale);
    call.soft_cap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())
}
