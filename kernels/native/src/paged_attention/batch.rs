//! The rows of a step, checked once, so that no layer has to.

use super::{ShapeError, check};

/// The rows of a step: consecutive new tokens of one sequence each, and the blocks of its whole context.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    rows: Vec<Row>,
    /// The used part of every row's block table, one after another.
    blocks: Vec<u32>,
    block_size: usize,
    num_blocks: usize,
    num_tokens: usize,
}

/// One row: a sequence whose last `query_length` tokens are new.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// First new token, in the step.
    pub start: usize,
    /// New tokens.
    pub query_length: usize,
    /// Tokens in the cache, the new ones included.
    pub context_length: usize,
    first_block: usize,
}

impl Row {
    /// Tokens that were there before this step.
    #[must_use]
    pub fn num_cached(&self) -> usize {
        self.context_length - self.query_length
    }
}

impl Batch {
    /// From `block_tables` `[rows, max_blocks]`, `query_starts` `[rows + 1]` (where each row's tokens begin) and
    /// `context_lengths` `[rows]`, for a cache of `num_blocks` blocks of `block_size` tokens.
    ///
    /// # Errors
    /// [`ShapeError`] if they contradict each other, or name a block that there is not.
    pub fn new(
        block_tables: &[i32],
        query_starts: &[i32],
        context_lengths: &[i32],
        block_size: usize,
        num_blocks: usize,
    ) -> Result<Self, ShapeError> {
        let num_rows = context_lengths.len();
        let max_blocks = block_tables.len().checked_div(num_rows).unwrap_or(0);
        check("query_starts", query_starts.len(), num_rows + 1)?;
        check("block_tables", block_tables.len(), num_rows * max_blocks)?;
        check("query_starts[0]", query_starts[0] as usize, 0)?;
        let mut batch = Self { block_size, num_blocks, ..Self::default() };
        for row in 0..num_rows {
            let table = &block_tables[row * max_blocks..(row + 1) * max_blocks];
            let query_length = i64::from(query_starts[row + 1]) - i64::from(query_starts[row]);
            batch.push(row, table, query_length, i64::from(context_lengths[row]))?;
        }
        Ok(batch)
    }

    fn push(
        &mut self,
        row: usize,
        table: &[i32],
        query_length: i64,
        context_length: i64,
    ) -> Result<(), ShapeError> {
        let capacity = table.len() * self.block_size;
        if query_length < 0 || context_length < query_length || context_length > capacity as i64 {
            return Err(ShapeError::Row { row, query_length, context_length, capacity });
        }
        let used = &table[..(context_length as usize).div_ceil(self.block_size)];
        let num_blocks = self.num_blocks;
        // As unsigned, a negative id is too large as well; one pass without branches.
        let highest = used.iter().fold(0, |highest, &block| highest.max(block as u32)) as usize;
        if !used.is_empty() && highest >= num_blocks {
            let block = used.iter().copied().max_by_key(|&block| block as u32).unwrap_or(-1);
            return Err(ShapeError::Block { row, block, num_blocks });
        }
        self.rows.push(Row {
            start: self.num_tokens,
            query_length: query_length as usize,
            context_length: context_length as usize,
            first_block: self.blocks.len(),
        });
        self.num_tokens += query_length as usize;
        self.blocks.extend(used.iter().map(|&block| block as u32));
        Ok(())
    }

    /// In the order of their tokens.
    #[must_use]
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// New tokens of all rows.
    #[must_use]
    pub fn num_tokens(&self) -> usize {
        self.num_tokens
    }

    /// Tokens in a block.
    #[must_use]
    pub fn block_size(&self) -> usize {
        self.block_size
    }

    /// Blocks in the cache.
    #[must_use]
    pub fn num_blocks(&self) -> usize {
        self.num_blocks
    }

    /// The blocks of a row's context.
    pub(super) fn blocks(&self, row: usize) -> &[u32] {
        let Row { first_block, context_length, .. } = self.rows[row];
        &self.blocks[first_block..first_block + context_length.div_ceil(self.block_size)]
    }

    /// Where a position of a row lies in the cache, in tokens.
    pub(super) fn cell(&self, row: usize, position: usize) -> usize {
        self.blocks(row)[position / self.block_size] as usize * self.block_size + position % self.block_size
    }

    /// As [`Self::cell`], for a run of positions; what is left of `cells` repeats the last.
    #[inline(always)]
    pub(super) fn cells(&self, row: usize, positions: std::ops::Range<usize>, cells: &mut [usize]) {
        let blocks = self.blocks(row);
        let (mut index, mut offset) = (positions.start / self.block_size, positions.start % self.block_size);
        let mut filled = 0;
        while filled < positions.len() {
            let count = (self.block_size - offset).min(positions.len() - filled);
            let first = blocks[index] as usize * self.block_size + offset;
            for (cell, at) in cells[filled..filled + count].iter_mut().zip(first..) {
                *cell = at;
            }
            (filled, index, offset) = (filled + count, index + 1, 0);
        }
        let last = cells[filled - 1];
        cells[filled..].fill(last);
    }
}
