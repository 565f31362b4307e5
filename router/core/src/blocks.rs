//! The pool of KV blocks: who owns each block, and a free list.
//!
//! ```text
//!           allocate                 share
//!   Free ──────────────► Sequence ──────────► Index
//!    ▲                      │                   │
//!    └──────────────────────┴───────────────────┘  free
//! ```
//! A block has one owner at a time. Sequences share blocks only through the index, which counts its readers on the nodes of
//! its tree (see [`crate::radix`]); so there is no reference count per block, and pinning a prefix of 12,500 blocks costs a
//! step per tree node instead of 12,500 increments.
//!
//! Every operation is O(1).

use crate::ids::BlockId;

/// Who owns a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// Nobody: the block is on the free list, its content means nothing.
    Free,
    /// One sequence, which alone reads and writes it.
    Sequence,
    /// The prefix index: the block is computed and never written again.
    Index,
}

/// The owners of all blocks of the pool.
#[derive(Debug)]
pub struct BlockPool {
    owners: Vec<Owner>,
    free: Vec<BlockId>,
    num_indexed: u32,
}

impl BlockPool {
    /// A pool of `num_blocks` free blocks. The lowest ids are handed out first.
    #[must_use]
    pub fn new(num_blocks: u32) -> Self {
        Self {
            owners: vec![Owner::Free; num_blocks as usize],
            free: (0..num_blocks).rev().map(BlockId).collect(),
            num_indexed: 0,
        }
    }

    /// Takes a free block for a sequence; `None` if there is none.
    pub fn allocate(&mut self) -> Option<BlockId> {
        let block = self.free.pop()?;
        self.owners[block.0 as usize] = Owner::Sequence;
        Some(block)
    }

    /// Hands a sequence's block to the index.
    pub fn share(&mut self, block: BlockId) {
        let owner = &mut self.owners[block.0 as usize];
        assert_eq!(*owner, Owner::Sequence, "only a sequence's block can enter the index. This is a bug.");
        *owner = Owner::Index;
        self.num_indexed += 1;
    }

    /// Puts an owned block back on the free list.
    pub fn free(&mut self, block: BlockId) {
        let owner = &mut self.owners[block.0 as usize];
        match *owner {
            Owner::Free => unreachable!("{block:?} freed twice. This is a bug."),
            Owner::Sequence => {}
            Owner::Index => self.num_indexed -= 1,
        }
        *owner = Owner::Free;
        self.free.push(block);
    }

    /// Who owns `block`.
    #[must_use]
    pub fn owner(&self, block: BlockId) -> Owner {
        self.owners[block.0 as usize]
    }

    /// Blocks in the pool.
    #[must_use]
    pub fn num_total(&self) -> u32 {
        self.owners.len() as u32
    }

    /// Blocks that nobody owns.
    #[must_use]
    pub fn num_free(&self) -> u32 {
        self.free.len() as u32
    }

    /// Blocks that the index owns.
    #[must_use]
    pub fn num_indexed(&self) -> u32 {
        self.num_indexed
    }

    /// Blocks that sequences own.
    #[must_use]
    pub fn num_private(&self) -> u32 {
        self.num_total() - self.num_free() - self.num_indexed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_counted_by_owner() {
        let mut pool = BlockPool::new(3);
        let [a, b] = [pool.allocate().unwrap(), pool.allocate().unwrap()];
        assert_eq!((a, b), (BlockId(0), BlockId(1)));
        pool.share(a);
        assert_eq!((pool.num_free(), pool.num_private(), pool.num_indexed()), (1, 1, 1));
        pool.free(a);
        pool.free(b);
        assert_eq!((pool.num_free(), pool.num_private(), pool.num_indexed()), (3, 0, 0));
    }

    #[test]
    fn an_empty_pool_hands_out_nothing() {
        let mut pool = BlockPool::new(1);
        assert!(pool.allocate().is_some());
        assert_eq!(pool.allocate(), None);
    }

    #[test]
    #[should_panic(expected = "freed twice")]
    fn freeing_twice_is_caught() {
        let mut pool = BlockPool::new(1);
        let block = pool.allocate().unwrap();
        pool.free(block);
        pool.free(block);
    }
}
