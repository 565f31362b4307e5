//! Causal attention of new tokens over a paged KV cache (Kwon et al. 2023), with the online softmax of FlashAttention
//! (Dao et al. 2022): prefill chunks and decodes of any lengths in one call.

mod fast;
mod naive;

pub use fast::paged_attention;
pub use naive::paged_attention_naive;

/// Sizes that do not change from call to call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Query heads; a multiple of `num_kv_heads`.
    pub num_heads: usize,
    /// Key and value heads.
    pub num_kv_heads: usize,
    /// Elements of one head.
    pub head_dim: usize,
    /// Tokens in a block of the cache.
    pub block_size: usize,
    /// Columns of the block table.
    pub max_blocks: usize,
}

/// What one call computes. Row `r` is a sequence whose last `query_starts[r + 1] - query_starts[r]` tokens are new; their keys
/// and values are in the cache already.
#[derive(Clone, Copy, Debug)]
pub struct PagedAttention<'a> {
    /// Sizes.
    pub shape: Shape,
    /// `[num_tokens, num_heads, head_dim]`.
    pub query: &'a [f32],
    /// `[num_blocks, block_size, num_kv_heads, head_dim]`; what lies beyond a context is never read.
    pub key_cache: &'a [f32],
    /// As `key_cache`.
    pub value_cache: &'a [f32],
    /// `[rows, max_blocks]`: the block of each stretch of `block_size` positions.
    pub block_tables: &'a [i32],
    /// `[rows + 1]`: where each row's tokens begin in `query`.
    pub query_starts: &'a [i32],
    /// `[rows]`: tokens in the cache, the new ones included.
    pub context_lengths: &'a [i32],
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

/// One row's place in the call.
#[derive(Clone, Copy, Debug)]
struct Row<'a> {
    /// First token in `query`.
    start: usize,
    /// New tokens.
    query_length: usize,
    /// Tokens in the cache.
    context_length: usize,
    blocks: &'a [i32],
}

impl<'a> PagedAttention<'a> {
    /// Query heads per key-value head.
    fn group(&self) -> usize {
        self.shape.num_heads / self.shape.num_kv_heads
    }

    fn num_rows(&self) -> usize {
        self.context_lengths.len()
    }

    fn row(&self, row: usize) -> Row<'a> {
        let start = self.query_starts[row] as usize;
        Row {
            start,
            query_length: self.query_starts[row + 1] as usize - start,
            context_length: self.context_lengths[row] as usize,
            blocks: &self.block_tables[row * self.shape.max_blocks..(row + 1) * self.shape.max_blocks],
        }
    }

    /// Where the head's elements of a position begin in the caches.
    #[inline(always)]
    fn cache_offset(&self, row: Row<'_>, position: usize, kv_head: usize) -> usize {
        let Shape { num_kv_heads, head_dim, block_size, .. } = self.shape;
        let token = row.blocks[position / block_size] as usize * block_size + position % block_size;
        (token * num_kv_heads + kv_head) * head_dim
    }

    /// The first position that a query at `position` sees.
    fn window_start(&self, position: usize) -> usize {
        self.sliding_window.map_or(0, |window| (position + 1).saturating_sub(window))
    }

    /// Checks every length and every block id, so that the kernels need not.
    ///
    /// # Errors
    /// [`ShapeError`], with the facts.
    pub fn validate(&self, output: &[f32]) -> Result<(), ShapeError> {
        let Shape { num_heads, num_kv_heads, head_dim, block_size, max_blocks } = self.shape;
        if num_kv_heads == 0 || num_heads % num_kv_heads != 0 {
            return Err(ShapeError::Heads { num_heads, num_kv_heads });
        }
        let block_elements = block_size * num_kv_heads * head_dim;
        let num_blocks = self.key_cache.len() / block_elements.max(1);
        let num_tokens = self.query.len() / (num_heads * head_dim).max(1);
        let check = |name, found: usize, expected: usize| {
            if found == expected { Ok(()) } else { Err(ShapeError::Length { name, expected, found }) }
        };
        check("key_cache", self.key_cache.len(), num_blocks * block_elements)?;
        check("value_cache", self.value_cache.len(), self.key_cache.len())?;
        check("query", self.query.len(), num_tokens * num_heads * head_dim)?;
        check("output", output.len(), self.query.len())?;
        check("query_starts", self.query_starts.len(), self.num_rows() + 1)?;
        check("block_tables", self.block_tables.len(), self.num_rows() * max_blocks)?;
        check("sinks", self.sinks.map_or(num_heads, <[f32]>::len), num_heads)?;
        check("query_starts[0]", self.query_starts[0] as usize, 0)?;
        check("query_starts[rows]", self.query_starts[self.num_rows()] as usize, num_tokens)?;
        (0..self.num_rows()).try_for_each(|row| self.validate_row(row, num_blocks))
    }

    fn validate_row(&self, row: usize, num_blocks: usize) -> Result<(), ShapeError> {
        let capacity = self.shape.max_blocks * self.shape.block_size;
        let query_length = i64::from(self.query_starts[row + 1]) - i64::from(self.query_starts[row]);
        let context_length = i64::from(self.context_lengths[row]);
        if query_length < 0 || context_length < query_length || context_length > capacity as i64 {
            return Err(ShapeError::Row { row, query_length, context_length, capacity });
        }
        let used = (context_length as usize).div_ceil(self.shape.block_size);
        let table = &self.block_tables[row * self.shape.max_blocks..][..used];
        match table.iter().find(|&&block| block < 0 || block as usize >= num_blocks) {
            Some(&block) => Err(ShapeError::Block { row, block, num_blocks }),
            None => Ok(()),
        }
    }
}
