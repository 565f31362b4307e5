//! Causal attention of new tokens over a paged KV cache (Kwon et al. 2023), with the online softmax of FlashAttention
//! (Dao et al. 2022): prefill chunks and decodes of any lengths in one call.
//!
//! ```text
//! Batch   the rows of a step and their blocks, checked       ┐ once per step
//! Plan    who computes what: items of similar cost, merges   ┘
//! run     items: tile or halves (many queries per key) or stream (few) → merges      per layer
//! ```
//!
//! Rows whose block tables begin alike share those keys: their queries become one item, which reads the keys once
//! (Hydragen, Juravsky et al. 2024).

mod batch;
mod fast;
#[cfg(target_arch = "x86_64")]
mod halves;
#[cfg(target_arch = "x86_64")]
mod int16;
#[cfg(target_arch = "x86_64")]
mod matrix;
mod naive;
#[cfg(target_arch = "x86_64")]
mod pairs;
mod plan;
mod stream;
mod tile;

pub use batch::{Batch, Row};
pub use fast::paged_attention;
pub use naive::paged_attention_naive;
pub use plan::Plan;

use crate::Element;

/// Sizes of a model's attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Query heads; a multiple of `num_kv_heads`.
    pub num_heads: usize,
    /// Key and value heads.
    pub num_kv_heads: usize,
    /// Elements of one head.
    pub head_dim: usize,
}

impl Heads {
    /// Query heads per key-value head.
    #[must_use]
    pub fn group(&self) -> usize {
        self.num_heads / self.num_kv_heads
    }
}

/// What one call computes; the keys and values of the batch's new tokens are in the cache already.
#[derive(Clone, Copy, Debug)]
pub struct PagedAttention<'a, Q: Element, K: Element> {
    /// Sizes.
    pub heads: Heads,
    /// `[num_tokens, num_heads, head_dim]`; token `t` begins at `t * query_stride`.
    pub query: &'a [Q],
    /// `num_heads * head_dim`, or more if other heads stand between the tokens.
    pub query_stride: usize,
    /// `[num_blocks, block_size, num_kv_heads, head_dim]`; what lies beyond a context is never read.
    pub key_cache: &'a [K],
    /// As `key_cache`.
    pub value_cache: &'a [K],
    /// Multiplied with every score.
    pub scale: f32,
    /// A token sees itself and the `sliding_window - 1` before it.
    pub sliding_window: Option<usize>,
    /// Scores become `cap * tanh(score / cap)` (Gemma 2).
    pub soft_cap: Option<f32>,
    /// `[num_heads]`: a score that takes part in the softmax but has no value (gpt-oss).
    pub sinks: Option<&'a [f32]>,
}

/// A call whose slices do not fit together.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ShapeError {
    /// A slice has the wrong length.
    #[error("{name} has {found} elements, expected {expected}")]
    Length {
        /// Which slice.
        name: &'static str,
        /// Elements that the other arguments call for.
        expected: usize,
        /// Elements that it has.
        found: usize,
    },
    /// A row's numbers contradict each other or the table.
    #[error(
        "row {row}: {query_length} new tokens in a context of {context_length}, block table of {capacity} tokens"
    )]
    Row {
        /// Which row.
        row: usize,
        /// Its new tokens.
        query_length: i64,
        /// Its tokens in all.
        context_length: i64,
        /// What its block table can hold.
        capacity: usize,
    },
    /// A block table names a block that the cache does not have.
    #[error("row {row} names block {block}, the cache has {num_blocks}")]
    Block {
        /// Which row.
        row: usize,
        /// The block named.
        block: i32,
        /// Blocks in the cache.
        num_blocks: usize,
    },
    /// The heads do not group.
    #[error("{num_heads} query heads do not divide among {num_kv_heads} key-value heads")]
    Heads {
        /// Query heads.
        num_heads: usize,
        /// Key-value heads.
        num_kv_heads: usize,
    },
}

impl<Q: Element, K: Element> PagedAttention<'_, Q, K> {
    /// Where the head's elements of a position begin in the caches.
    #[inline(always)]
    fn cache_offset(&self, batch: &Batch, row: usize, position: usize, kv_head: usize) -> usize {
        (batch.cell(row, position) * self.heads.num_kv_heads + kv_head) * self.heads.head_dim
    }

    /// Elements from the first query to the last.
    #[must_use]
    pub fn query_len(&self, num_tokens: usize) -> usize {
        let len = self.heads.num_heads * self.heads.head_dim;
        num_tokens.checked_sub(1).map_or(0, |before| before * self.query_stride.max(len) + len)
    }

    /// Checks every length against the batch, so that the kernels need not.
    fn validate(&self, batch: &Batch, output: &[Q]) -> Result<(), ShapeError> {
        let Heads { num_heads, num_kv_heads, head_dim } = self.heads;
        if num_kv_heads == 0 || num_heads % num_kv_heads != 0 {
            return Err(ShapeError::Heads { num_heads, num_kv_heads });
        }
        let num_cells = batch.num_blocks() * batch.block_size();
        check("key_cache", self.key_cache.len(), num_cells * num_kv_heads * head_dim)?;
        check("value_cache", self.value_cache.len(), self.key_cache.len())?;
        check("query", self.query.len(), self.query_len(batch.num_tokens()))?;
        check("output", output.len(), batch.num_tokens() * num_heads * head_dim)?;
        check("sinks", self.sinks.map_or(num_heads, <[f32]>::len), num_heads)
    }
}

fn check(name: &'static str, found: usize, expected: usize) -> Result<(), ShapeError> {
    if found == expected { Ok(()) } else { Err(ShapeError::Length { name, expected, found }) }
}

/// The first position that a query at `position` sees.
fn window_start(sliding_window: Option<usize>, position: usize) -> usize {
    sliding_window.map_or(0, |window| (position + 1).saturating_sub(window))
}
