//! The KV cache: the block pool and the prefix index together. The only file that knows both.
//!
//! A sequence reads and writes through its [`BlockTable`]:
//! ```text
//!   blocks   [0 ........ num_indexed)   [num_indexed ............ len)
//!            the index's: computed,      the sequence's own: being computed,
//!            shared, held by `lock`      or reserved
//! ```
//! As blocks are computed, [`KvCache::publish`] moves the border to the right. If another sequence computed the same tokens
//! first, the table takes over the index's blocks, and the duplicates go. So a lock always stands where the border stands,
//! whatever was shared on the way.
//!
//! Must hold after every operation: `free + cached + held == total`, where *cached* blocks are in the index and held by no
//! sequence, and *held* blocks belong to a sequence or are locked in the index.

use std::ops::Range;

use crate::{
    blocks::BlockPool,
    ids::{BlockId, Tick, TokenId},
    plan::BlockCopy,
    radix::{Lock, NamespaceUsage, PrefixIndex, Stake},
    request::Namespace,
    scheduler::SchedulerConfig,
};

/// Which blocks hold the keys and values of a sequence, in order of position.
#[derive(Debug, Default)]
pub struct BlockTable {
    blocks: Vec<BlockId>,
    num_indexed: usize,
    lock: Option<Lock>,
}

impl BlockTable {
    /// All blocks, in order of position.
    #[must_use]
    pub fn blocks(&self) -> &[BlockId] {
        &self.blocks
    }

    /// How many of the first blocks belong to the index.
    #[must_use]
    pub fn num_indexed(&self) -> usize {
        self.num_indexed
    }

    /// Where the index holds the first `num_indexed` blocks.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn lock(&self) -> Option<&Lock> {
        self.lock.as_ref()
    }
}

/// Blocks for a sequence that may now be computed: [`KvCache::reserve`].
#[derive(Debug)]
pub struct Reservation {
    /// Enough blocks for all tokens.
    pub table: BlockTable,
    /// Tokens that need not be computed.
    pub num_cached_tokens: usize,
    /// A copy to make before the first row of the sequence.
    pub copy: Option<PendingCopy>,
}

/// A copy-on-write that no shard has executed yet; its source is held until [`KvCache::copied`].
#[derive(Debug)]
pub struct PendingCopy {
    /// The copy to make.
    pub copy: BlockCopy,
    source: Lock,
}

impl PendingCopy {
    /// The node that is held for the source.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn source(&self) -> &Lock {
        &self.source
    }
}

/// Why there is no reservation; nothing was evicted for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It does not fit: it needs so many unheld blocks before it, those that it would find in the index among them.
    Shortage(u32),
    /// Of the free blocks it needs so many, and for the lack of them would cost others this.
    Costly(u32, Stake),
}

/// No block is free, and none can be evicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfBlocks;

/// The block pool and the prefix index.
#[derive(Debug)]
pub struct KvCache {
    pool: BlockPool,
    index: PrefixIndex,
    block_size: usize,
    shares_prefixes: bool,
    num_evicted: u64,
    /// Blocks on their way from the index to the pool; empty between operations, kept for its memory.
    leaving: Vec<BlockId>,
}

impl KvCache {
    /// An empty cache. Without `prefix_cache` nothing is indexed or found.
    #[must_use]
    pub fn new(config: &SchedulerConfig) -> Self {
        Self {
            pool: BlockPool::new(config.num_blocks),
            index: PrefixIndex::new(config.block_size, config.eviction, &config.quotas),
            block_size: config.block_size as usize,
            shares_prefixes: config.prefix_cache,
            num_evicted: 0,
            leaving: Vec::new(),
        }
    }

    /// Finds what is cached of `tokens`, holds it, and takes blocks for the rest, evicting if need be.
    ///
    /// At least the last token stays to be computed, since its logits are wanted. `room` more blocks must be left unheld
    /// afterwards for others to grow. `is_worth` says whether what an eviction costs others may be spent.
    ///
    /// # Errors
    /// If that does not fit or is not worth it, in which case nothing changes and nothing is evicted.
    pub fn reserve(
        &mut self,
        namespace: &Namespace,
        tokens: &[TokenId],
        room: u32,
        is_worth: impl FnOnce(&Stake) -> bool,
    ) -> Result<Reservation, Refusal> {
        let num_total = tokens.len().div_ceil(self.block_size);
        let mut found = self.find(namespace, tokens);
        let num_new = num_total - found.num_blocks;
        if num_new as u32 + self.index.num_newly_locked(&found) + room > self.num_available() {
            // Holding the source of the copy may be what is too much.
            found = found.whole_blocks();
            let num_needed = num_new as u32 + self.index.num_newly_locked(&found);
            if num_needed + room > self.num_available() {
                return Err(Refusal::Shortage(num_needed));
            }
        }
        let num_evicted = num_new.saturating_sub(self.num_free() as usize);
        if num_evicted > 0 {
            let stake = self.index.stake(num_evicted, &found);
            if !is_worth(&stake) {
                return Err(Refusal::Costly(num_new as u32, stake));
            }
        }
        let acquired = self.index.acquire(&found);
        let num_indexed = acquired.blocks.len();
        let mut table = BlockTable { blocks: acquired.blocks, num_indexed, lock: acquired.lock };
        self.grow(&mut table, num_new).expect("the blocks were counted before. This is a bug.");
        let copy = acquired.partial.map(|(block, source)| {
            let copy = BlockCopy { source: block, destination: table.blocks[num_indexed] };
            PendingCopy { copy, source }
        });
        let num_cached_tokens = num_indexed * self.block_size + found.num_partial_tokens();
        Ok(Reservation { table, num_cached_tokens, copy })
    }

    /// It is `now`.
    pub fn set_time(&mut self, now: Tick) {
        self.index.set_time(now);
    }

    /// How many of `tokens` a reservation would find, now. O(tokens found).
    #[must_use]
    pub fn num_cached_tokens(&self, namespace: &Namespace, tokens: &[TokenId]) -> usize {
        let found = self.find(namespace, tokens);
        found.num_blocks * self.block_size + found.num_partial_tokens()
    }

    /// Appends `num_blocks` blocks to `table`, evicting if need be.
    ///
    /// # Errors
    /// If there are not so many; then nothing changes.
    pub fn grow(&mut self, table: &mut BlockTable, num_blocks: usize) -> Result<(), OutOfBlocks> {
        if num_blocks > self.num_available() as usize {
            return Err(OutOfBlocks);
        }
        self.evict(num_blocks.saturating_sub(self.pool.num_free() as usize));
        for _ in 0..num_blocks {
            let block = self.pool.allocate().expect("the blocks were counted before. This is a bug.");
            table.blocks.push(block);
        }
        Ok(())
    }

    /// Shares the blocks of `table` that `tokens` fill, now that they are computed. Returns which entries of the table
    /// changed, because the index had the same tokens already; the duplicates are appended to `duplicates` and belong to
    /// the sequence until [`KvCache::free`]. O(new blocks).
    pub fn publish(
        &mut self,
        namespace: &Namespace,
        table: &mut BlockTable,
        tokens: &[TokenId],
        duplicates: &mut Vec<BlockId>,
    ) -> Range<usize> {
        let new = table.num_indexed..tokens.len() / self.block_size;
        if !self.shares_prefixes || new.is_empty() {
            return 0..0;
        }
        let new_tokens = &tokens[new.start * self.block_size..new.end * self.block_size];
        let inserted =
            self.index.insert(namespace, table.lock.take(), new_tokens, &table.blocks[new.clone()]);
        let num_existing = inserted.existing.len();
        let (known, added) = table.blocks[new.clone()].split_at_mut(num_existing);
        duplicates.extend_from_slice(known);
        known.copy_from_slice(&inserted.existing);
        for &mut block in added {
            self.pool.share(block);
        }
        table.lock = Some(inserted.lock);
        table.num_indexed = new.end;
        self.leaving.extend(inserted.superseded);
        self.free_leaving();
        self.enforce_quota(namespace);
        new.start..new.start + num_existing
    }

    /// Takes a table back. `tokens` are those whose keys and values are computed: what they fill stays as cache, the last
    /// block too if they fill only part of it. Full blocks were published before.
    pub fn release(&mut self, namespace: &Namespace, mut table: BlockTable, tokens: &[TokenId]) {
        let tail = tokens.get(table.num_indexed * self.block_size..).unwrap_or_default();
        let mut first_freed = table.num_indexed;
        if self.shares_prefixes && !tail.is_empty() {
            let block = table.blocks[first_freed];
            let lock = table.lock.as_ref();
            if self.index.insert_tail(namespace, lock, (tail, block), &mut self.leaving) {
                self.pool.share(block);
                first_freed += 1;
            }
            self.free_leaving();
        }
        for block in table.blocks.drain(first_freed..) {
            self.pool.free(block);
        }
        if let Some(lock) = table.lock {
            self.index.unlock(lock);
        }
        self.enforce_quota(namespace);
    }

    /// The copy was executed: its source is held no longer.
    pub fn copied(&mut self, copy: PendingCopy) {
        self.index.unlock(copy.source);
    }

    /// Frees a block that a table gave up.
    pub fn free(&mut self, block: BlockId) {
        self.pool.free(block);
    }

    /// Evicts everything that nobody holds of the namespaces that `is_meant` picks.
    pub fn clear(&mut self, is_meant: impl Fn(&Namespace) -> bool) {
        self.index.clear(is_meant, &mut self.leaving);
        self.num_evicted += self.leaving.len() as u64;
        self.free_leaving();
    }

    // === Counts ===

    /// Blocks that can be had: free ones, and cached ones that nobody holds.
    #[must_use]
    pub fn num_available(&self) -> u32 {
        self.num_free() + self.num_cached()
    }

    /// Blocks in no use.
    #[must_use]
    pub fn num_free(&self) -> u32 {
        self.pool.num_free()
    }

    /// Blocks in the index that no sequence holds.
    #[must_use]
    pub fn num_cached(&self) -> u32 {
        self.index.num_blocks() - self.index.num_locked()
    }

    /// Blocks that sequences hold, alone or through the index.
    #[must_use]
    pub fn num_held(&self) -> u32 {
        self.pool.num_private() + self.index.num_locked()
    }

    /// Blocks in the pool.
    #[must_use]
    pub fn num_total(&self) -> u32 {
        self.pool.num_total()
    }

    /// Blocks evicted so far.
    #[must_use]
    pub fn num_evicted(&self) -> u64 {
        self.num_evicted
    }

    /// What each namespace has in the index, held or not. O(namespaces).
    pub fn usage(&self) -> impl Iterator<Item = NamespaceUsage> {
        self.index.usage()
    }

    /// The prefix index, if it is in use.
    pub(crate) fn shared_index(&self) -> Option<&PrefixIndex> {
        self.shares_prefixes.then_some(&self.index)
    }

    /// Whether every block is counted exactly once. O(1), so it may run after every operation.
    #[must_use]
    pub fn is_conserved(&self) -> bool {
        self.pool.num_indexed() == self.index.num_blocks()
            && self.num_free() + self.num_cached() + self.num_held() == self.num_total()
    }

    /// What the cache is made of.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn parts(&self) -> (&BlockPool, &PrefixIndex) {
        (&self.pool, &self.index)
    }

    // === Helpers ===

    fn find(&self, namespace: &Namespace, tokens: &[TokenId]) -> crate::radix::Match {
        if !self.shares_prefixes {
            return crate::radix::Match::default();
        }
        self.index.find(namespace, &tokens[..tokens.len() - 1])
    }

    fn evict(&mut self, num_blocks: usize) {
        self.index.evict(num_blocks, &mut self.leaving);
        self.num_evicted += self.leaving.len() as u64;
        self.free_leaving();
    }

    fn enforce_quota(&mut self, namespace: &Namespace) {
        self.index.enforce_quota(namespace, &mut self.leaving);
        self.num_evicted += self.leaving.len() as u64;
        self.free_leaving();
    }

    fn free_leaving(&mut self) {
        for block in self.leaving.drain(..) {
            self.pool.free(block);
        }
    }
}
