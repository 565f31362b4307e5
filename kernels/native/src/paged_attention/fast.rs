//! The same in tiles. One work item is a tile of queries of one row and one key-value head, over one stretch of its context:
//!
//! ```text
//!              keys: begin ........ tile of 64 ........ end      (a long context is split among items, so that a single
//!   queries    ┌────────────────────────────────────────┐         decode keeps every thread busy; `merge` joins the parts
//!   × group    │ scores = Q Kᵀ → exp → · V, max and sum │         by their log-sum-exp)
//!              └────────────────────────────────────────┘
//! ```

use std::ops::Range;

use super::{PagedAttention, Row, ShapeError};
use crate::{
    Pool, dispatch,
    simd::{Block, LANES, Level, dot, exp_nonpositive, fma},
};

/// Query vectors (tokens × group) of a work item, at most.
const QUERY_TILE: usize = 48;
/// Keys taken at a time.
const KEY_TILE: usize = 64;
/// From so many query vectors on, transposing the keys pays.
const MIN_TRANSPOSE: usize = 6;
/// A part of a split context has at least so many keys.
const MIN_SPLIT: usize = 512;
/// A score that no real score is as low as, and from which differences are still finite.
const MASKED: f32 = -1e30;

/// Attention of every row into `output` (`[num_tokens, num_heads, head_dim]`), on the threads of `pool`.
///
/// # Errors
/// [`ShapeError`] if the slices do not fit together.
pub fn paged_attention(
    call: &PagedAttention<'_>,
    output: &mut [f32],
    pool: &Pool,
    level: Level,
) -> Result<(), ShapeError> {
    call.validate(output)?;
    let items = items(call, pool.num_threads());
    let parts = pool.map(items.len(), |index| {
        dispatch!(level, compute, (call: &PagedAttention<'_> = call, item: &Item = &items[index]) -> Part)
    });
    let mut begin = 0;
    while begin < items.len() {
        let end = begin + items[begin].num_splits;
        merge(call, &items[begin], &parts[begin..end], output);
        begin = end;
    }
    Ok(())
}

/// A tile of queries over a stretch of keys.
#[derive(Clone, Debug)]
struct Item {
    row: usize,
    kv_head: usize,
    /// Tokens of the row, counted from its first new one.
    tokens: Range<usize>,
    /// Positions of the keys.
    keys: Range<usize>,
    /// Into how many items these queries' keys were split; the items stand in succession.
    num_splits: usize,
}

/// Softmax over a stretch of keys, not yet normalised; one entry per query vector (token-major, then head of the group).
#[derive(Debug)]
struct Part {
    /// `[vectors, head_dim]`: Σ e^(score - highest) · value.
    weighted: Vec<f32>,
    highest: Vec<f32>,
    /// Σ e^(score - highest).
    total: Vec<f32>,
}

fn items(call: &PagedAttention<'_>, num_threads: usize) -> Vec<Item> {
    let tokens_per_tile = (QUERY_TILE / call.group()).max(1);
    let num_tiles: usize = (0..call.num_rows())
        .map(|row| call.row(row).query_length.div_ceil(tokens_per_tile) * call.shape.num_kv_heads)
        .sum();
    let max_splits = (4 * num_threads).div_ceil(num_tiles.max(1));
    let mut items = Vec::with_capacity(num_tiles);
    for row in 0..call.num_rows() {
        let Row { query_length, context_length, .. } = call.row(row);
        let num_cached = context_length - query_length;
        for kv_head in 0..call.shape.num_kv_heads {
            for begin in (0..query_length).step_by(tokens_per_tile) {
                let tokens = begin..(begin + tokens_per_tile).min(query_length);
                let keys = call.window_start(num_cached + tokens.start)..num_cached + tokens.end;
                let num_splits = (keys.len() / MIN_SPLIT).clamp(1, max_splits);
                let stretch = keys.len().div_ceil(num_splits).next_multiple_of(KEY_TILE);
                let num_splits = keys.len().div_ceil(stretch);
                items.extend((0..num_splits).map(|split| Item {
                    row,
                    kv_head,
                    tokens: tokens.clone(),
                    keys: keys.start + split * stretch..(keys.start + (split + 1) * stretch).min(keys.end),
                    num_splits,
                }));
            }
        }
    }
    items
}

#[inline(always)]
fn compute<const FUSED: bool>(call: &PagedAttention<'_>, item: &Item) -> Part {
    let (row, head_dim, group) = (call.row(item.row), call.shape.head_dim, call.group());
    let query = gather_query(call, item, row);
    let num_vectors = item.tokens.len() * group;
    let mut part = Part {
        weighted: vec![0.0; num_vectors * head_dim],
        highest: vec![MASKED; num_vectors],
        total: vec![0.0; num_vectors],
    };
    let mut scores = vec![0.0f32; num_vectors * KEY_TILE];
    let mut transposed =
        if num_vectors < MIN_TRANSPOSE { Vec::new() } else { vec![0.0f32; head_dim * KEY_TILE] };
    let mut offsets = [0usize; KEY_TILE];
    for begin in item.keys.clone().step_by(KEY_TILE) {
        let keys = begin..(begin + KEY_TILE).min(item.keys.end);
        for (offset, position) in offsets.iter_mut().zip(keys.clone()) {
            *offset = call.cache_offset(row, position, item.kv_head);
        }
        let offsets = &offsets[..keys.len()];
        if transposed.is_empty() {
            scores_by_dot::<FUSED>(&query, call.key_cache, offsets, &mut scores, head_dim);
        } else {
            transpose(call.key_cache, offsets, &mut transposed);
            scores_by_tile::<FUSED>(&query, &transposed, &mut scores, head_dim);
        }
        mask(call, item, row, keys, &mut scores);
        softmax::<FUSED>(&mut scores, &mut part, head_dim);
        accumulate::<FUSED>(&scores, call.value_cache, offsets, &mut part.weighted, head_dim);
    }
    part
}

/// The item's queries, `[vectors, head_dim]`, times the scale.
#[inline(always)]
fn gather_query(call: &PagedAttention<'_>, item: &Item, row: Row<'_>) -> Vec<f32> {
    let (head_dim, group) = (call.shape.head_dim, call.group());
    let mut query = Vec::with_capacity(item.tokens.len() * group * head_dim);
    for token in item.tokens.clone() {
        let at = ((row.start + token) * call.shape.num_heads + item.kv_head * group) * head_dim;
        query.extend(call.query[at..at + group * head_dim].iter().map(|x| x * call.scale));
    }
    query
}

#[inline(always)]
fn scores_by_dot<const FUSED: bool>(
    query: &[f32],
    key_cache: &[f32],
    offsets: &[usize],
    scores: &mut [f32],
    head_dim: usize,
) {
    for (key, &offset) in offsets.iter().enumerate() {
        let keys = &key_cache[offset..offset + head_dim];
        for (vector, query) in query.chunks_exact(head_dim).enumerate() {
            scores[vector * KEY_TILE + key] = dot::<FUSED>(query, keys);
        }
    }
}

/// `transposed[element][key]`, zero beyond the last key.
#[inline(always)]
fn transpose(key_cache: &[f32], offsets: &[usize], transposed: &mut [f32]) {
    let head_dim = transposed.len() / KEY_TILE;
    if offsets.len() < KEY_TILE {
        transposed.fill(0.0);
    }
    for (key, &offset) in offsets.iter().enumerate() {
        for (element, &x) in key_cache[offset..offset + head_dim].iter().enumerate() {
            transposed[element * KEY_TILE + key] = x;
        }
    }
}

#[inline(always)]
fn scores_by_tile<const FUSED: bool>(query: &[f32], transposed: &[f32], scores: &mut [f32], head_dim: usize) {
    const VECTORS: usize = 6;
    let num_vectors = query.len() / head_dim;
    let whole = num_vectors - num_vectors % VECTORS;
    for vector in (0..whole).step_by(VECTORS) {
        score_block::<FUSED, VECTORS>(
            &query[vector * head_dim..],
            transposed,
            &mut scores[vector * KEY_TILE..],
            head_dim,
        );
    }
    for vector in whole..num_vectors {
        score_block::<FUSED, 1>(
            &query[vector * head_dim..],
            transposed,
            &mut scores[vector * KEY_TILE..],
            head_dim,
        );
    }
}

/// `VECTORS` rows of scores, a block of keys at a time, held in registers.
#[inline(always)]
fn score_block<const FUSED: bool, const VECTORS: usize>(
    query: &[f32],
    transposed: &[f32],
    scores: &mut [f32],
    head_dim: usize,
) {
    let rows: [&[f32]; VECTORS] =
        std::array::from_fn(|vector| &query[vector * head_dim..(vector + 1) * head_dim]);
    for column in (0..KEY_TILE).step_by(LANES) {
        let mut sums = [[0.0f32; LANES]; VECTORS];
        for (element, keys) in transposed.chunks_exact(KEY_TILE).take(head_dim).enumerate() {
            let keys: &Block = keys[column..column + LANES].try_into().expect("a block. This is a bug.");
            for vector in 0..VECTORS {
                let q = rows[vector][element];
                for lane in 0..LANES {
                    sums[vector][lane] = fma::<FUSED>(q, keys[lane], sums[vector][lane]);
                }
            }
        }
        for vector in 0..VECTORS {
            scores[vector * KEY_TILE + column..][..LANES].copy_from_slice(&sums[vector]);
        }
    }
}

/// Soft cap, causality, window and the end of the tile.
#[inline(always)]
fn mask(call: &PagedAttention<'_>, item: &Item, row: Row<'_>, keys: Range<usize>, scores: &mut [f32]) {
    if let Some(cap) = call.soft_cap {
        scores.iter_mut().for_each(|score| *score = cap * (*score / cap).tanh());
    }
    let first = row.context_length - row.query_length + item.tokens.start;
    let last = first + item.tokens.len() - 1;
    if keys.len() == KEY_TILE && keys.end <= first + 1 && call.window_start(last) <= keys.start {
        return;
    }
    for (vector, scores) in scores.chunks_exact_mut(KEY_TILE).enumerate() {
        let position = first + vector / call.group();
        let seen_from = call.window_start(position).clamp(keys.start, keys.end) - keys.start;
        let seen_to = (position + 1).clamp(keys.start, keys.end) - keys.start;
        scores[..seen_from].fill(MASKED);
        scores[seen_to.max(seen_from)..].fill(MASKED);
    }
}

/// Turns scores into weights against the running maximum, and rescales what was summed before.
#[inline(always)]
fn softmax<const FUSED: bool>(scores: &mut [f32], part: &mut Part, head_dim: usize) {
    for (vector, scores) in scores.chunks_exact_mut(KEY_TILE).enumerate() {
        let (blocks, _) = scores.as_chunks_mut::<LANES>();
        let mut maxima = [part.highest[vector]; LANES];
        for block in blocks.iter() {
            for lane in 0..LANES {
                maxima[lane] = if block[lane] > maxima[lane] { block[lane] } else { maxima[lane] };
            }
        }
        let highest = maxima.iter().copied().fold(MASKED, f32::max);
        let mut sums = [0.0f32; LANES];
        for block in blocks.iter_mut() {
            for lane in 0..LANES {
                block[lane] = exp_nonpositive::<FUSED>(block[lane] - highest);
                sums[lane] += block[lane];
            }
        }
        let rescale = exp_nonpositive::<FUSED>(part.highest[vector] - highest);
        part.total[vector] = part.total[vector] * rescale + sums.iter().sum::<f32>();
        part.highest[vector] = highest;
        if rescale != 1.0 {
            part.weighted[vector * head_dim..(vector + 1) * head_dim].iter_mut().for_each(|x| *x *= rescale);
        }
    }
}

#[inline(always)]
fn accumulate<const FUSED: bool>(
    weights: &[f32],
    value_cache: &[f32],
    offsets: &[usize],
    weighted: &mut [f32],
    head_dim: usize,
) {
    const VECTORS: usize = 6;
    let num_vectors = weighted.len() / head_dim;
    let whole = num_vectors - num_vectors % VECTORS;
    for vector in (0..whole).step_by(VECTORS) {
        let (weights, weighted) = (&weights[vector * KEY_TILE..], &mut weighted[vector * head_dim..]);
        accumulate_block::<FUSED, VECTORS>(weights, value_cache, offsets, weighted, head_dim);
    }
    for vector in whole..num_vectors {
        let (weights, weighted) = (&weights[vector * KEY_TILE..], &mut weighted[vector * head_dim..]);
        accumulate_block::<FUSED, 1>(weights, value_cache, offsets, weighted, head_dim);
    }
}

/// Adds weights · values for `VECTORS` vectors, a block of elements at a time, held in registers.
#[inline(always)]
fn accumulate_block<const FUSED: bool, const VECTORS: usize>(
    weights: &[f32],
    value_cache: &[f32],
    offsets: &[usize],
    weighted: &mut [f32],
    head_dim: usize,
) {
    let rows: [&[f32]; VECTORS] =
        std::array::from_fn(|vector| &weights[vector * KEY_TILE..vector * KEY_TILE + offsets.len()]);
    let whole = head_dim - head_dim % LANES;
    for column in (0..whole).step_by(LANES) {
        let mut sums: [Block; VECTORS] = std::array::from_fn(|vector| {
            weighted[vector * head_dim + column..][..LANES].try_into().expect("a block. This is a bug.")
        });
        for (key, &offset) in offsets.iter().enumerate() {
            let values: &Block =
                value_cache[offset + column..][..LANES].try_into().expect("a block. This is a bug.");
            for vector in 0..VECTORS {
                let weight = rows[vector][key];
                for lane in 0..LANES {
                    sums[vector][lane] = fma::<FUSED>(weight, values[lane], sums[vector][lane]);
                }
            }
        }
        for vector in 0..VECTORS {
            weighted[vector * head_dim + column..][..LANES].copy_from_slice(&sums[vector]);
        }
    }
    for element in whole..head_dim {
        for (vector, row) in rows.iter().enumerate() {
            let sum: f32 =
                row.iter().zip(offsets).map(|(w, &offset)| w * value_cache[offset + element]).sum();
            weighted[vector * head_dim + element] += sum;
        }
    }
}

/// Joins the parts of one tile of queries, adds the sink, normalises, and writes to the output.
fn merge(call: &PagedAttention<'_>, item: &Item, parts: &[Part], output: &mut [f32]) {
    let (row, head_dim, group) = (call.row(item.row), call.shape.head_dim, call.group());
    for vector in 0..item.tokens.len() * group {
        let head = item.kv_head * group + vector % group;
        let token = row.start + item.tokens.start + vector / group;
        let sink = call.sinks.map_or(MASKED, |sinks| sinks[head]);
        let highest = parts.iter().map(|part| part.highest[vector]).fold(sink, f32::max);
        let share = |part: &Part| (part.highest[vector] - highest).exp();
        let total: f32 =
            parts.iter().map(|part| share(part) * part.total[vector]).sum::<f32>() + (sink - highest).exp();
        let at = (token * call.shape.num_heads + head) * head_dim;
        let out = &mut output[at..at + head_dim];
        out.fill(0.0);
        for part in parts {
            let factor = share(part) / total;
            let weighted = &part.weighted[vector * head_dim..(vector + 1) * head_dim];
            out.iter_mut().zip(weighted).for_each(|(out, x)| *out += factor * x);
        }
    }
}
