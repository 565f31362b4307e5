//! The prefix index against a naive model: a map from every indexed prefix to its block.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    ops::Bound::{Excluded, Unbounded},
};

use anaphora_core::{
    BlockId, Eviction, Namespace, TokenId,
    radix::{Lock, PrefixIndex},
};
use proptest::{collection::vec, prelude::*};

/// Something done to the index.
#[derive(Clone, Debug)]
enum Op {
    /// A sequence of these tokens finds what is there, computes the rest and leaves its last, partly filled block behind. Its
    /// lock is kept for later.
    Compute { namespace: u8, tokens: Vec<TokenId> },
    /// The so-many-th lock goes back.
    Unlock(usize),
    /// The so-many-th lock's sequence computes more.
    Extend(usize, Vec<TokenId>),
    /// So many blocks are needed.
    Evict(usize),
}

fn ops() -> impl Strategy<Value = Op> {
    let tokens = || prop_oneof![vec(0..2u32, 1..24), vec(0..2u32, 1..80)];
    prop_oneof![
        4 => (prop::bool::weighted(0.1), tokens()).prop_map(|(other, tokens)| Op::Compute { namespace: other.into(), tokens }),
        3 => (0..100usize).prop_map(Op::Unlock),
        2 => (0..100usize, tokens()).prop_map(|(nth, tokens)| Op::Extend(nth, tokens)),
        1 => (0..30usize).prop_map(Op::Evict),
    ]
}

/// What the index should be.
type Key = (Namespace, Vec<TokenId>);

#[derive(Debug, Default)]
struct Model {
    /// By all tokens from the start of the namespace to the end of the block.
    blocks: BTreeMap<Key, BlockId>,
    /// The same, the other way round.
    keys: BTreeMap<BlockId, Key>,
    /// When each block was last unlocked, in order of events; kept for blocks that are gone.
    last_used: BTreeMap<BlockId, usize>,
    now: usize,
}

impl Model {
    /// Full blocks that match, and how many tokens of a further one.
    fn find(&self, block_size: usize, namespace: &Namespace, tokens: &[TokenId]) -> (Vec<BlockId>, usize) {
        let mut blocks = Vec::new();
        for end in (block_size..=tokens.len()).step_by(block_size) {
            let Some(&block) = self.blocks.get(&(namespace.clone(), tokens[..end].to_vec())) else { break };
            blocks.push(block);
        }
        let start = blocks.len() * block_size;
        let shared = |(other, prefix): &Key| {
            let is_next = prefix.len() > start && prefix.len() <= start + block_size;
            let is_below = other == namespace && is_next && prefix[..start] == tokens[..start];
            let rest = || prefix[start..].iter().zip(&tokens[start..]);
            if is_below { rest().take_while(|(a, b)| a == b).count() } else { 0 }
        };
        (blocks, self.blocks.keys().map(shared).max().unwrap_or(0))
    }

    fn add(&mut self, key: Key, block: BlockId) {
        self.keys.insert(block, key.clone());
        self.blocks.insert(key, block);
    }

    fn remove(&mut self, block: BlockId) -> Key {
        let key = self.keys.remove(&block).expect("the block is in the model");
        self.blocks.remove(&key);
        key
    }

    /// Whether no block stands below. Below a tail none can, though a sibling may begin with its tokens.
    fn is_leaf(&self, block_size: usize, key: &Key) -> bool {
        // What begins with `key` stands right behind it.
        let next = self.blocks.range((Excluded(key), Unbounded)).next();
        let is_longer =
            next.is_some_and(|((namespace, other), _)| *namespace == key.0 && other.starts_with(&key.1));
        !(key.1.len().is_multiple_of(block_size) && is_longer)
    }
}

/// A sequence that holds what it has indexed.
struct Holder {
    namespace: Namespace,
    tokens: Vec<TokenId>,
    lock: Option<Lock>,
    /// The lock on a block that it copied from.
    source: Option<Lock>,
}

struct Bench {
    block_size: usize,
    index: PrefixIndex,
    model: Model,
    holders: VecDeque<Holder>,
    next_block: u32,
    /// Blocks that were copied.
    was_copied: BTreeSet<BlockId>,
}

impl Bench {
    fn new(block_size: u32) -> Self {
        Self {
            block_size: block_size as usize,
            index: PrefixIndex::new(block_size, Eviction::Lru, &BTreeMap::new()),
            model: Model::default(),
            holders: VecDeque::new(),
            next_block: 0,
            was_copied: BTreeSet::new(),
        }
    }

    fn apply(&mut self, op: &Op) {
        match op {
            Op::Compute { namespace, tokens } => {
                let namespace = Namespace { salt: namespace.to_string().into(), ..Namespace::default() };
                self.compute(&namespace, tokens);
            }
            Op::Unlock(nth) => {
                if let Some(holder) = self.take(*nth) {
                    self.unlock(holder);
                }
            }
            Op::Extend(nth, tokens) => {
                if let Some(mut holder) = self.take(*nth) {
                    let num_full = holder.tokens.len() / self.block_size * self.block_size;
                    holder.tokens.truncate(num_full);
                    holder.tokens.extend_from_slice(tokens);
                    self.insert(&mut holder, num_full);
                    self.holders.push_back(holder);
                }
            }
            Op::Evict(num_blocks) => self.evict(*num_blocks),
        }
        self.check();
    }

    fn take(&mut self, nth: usize) -> Option<Holder> {
        self.holders.remove(nth.checked_rem(self.holders.len())?)
    }

    fn compute(&mut self, namespace: &Namespace, tokens: &[TokenId]) {
        let found = self.index.find(namespace, tokens);
        let (blocks, num_partial) = self.model.find(self.block_size, namespace, tokens);
        assert_eq!(
            (found.num_blocks, found.num_partial_tokens()),
            (blocks.len(), num_partial),
            "find {tokens:?}"
        );
        let num_newly_locked = self.index.num_newly_locked(&found);
        let num_locked = self.index.num_locked();
        let acquired = self.index.acquire(&found);
        assert_eq!(self.index.num_locked() - num_locked, num_newly_locked);
        assert_eq!(acquired.blocks, blocks);
        let num_shared = blocks.len() * self.block_size;
        if let Some((block, _)) = &acquired.partial {
            self.was_copied.insert(*block);
            let (_, prefix) = &self.model.keys[block];
            assert_eq!(prefix[..num_shared + num_partial], tokens[..num_shared + num_partial]);
        }
        let source = acquired.partial.map(|(_, lock)| lock);
        let mut holder =
            Holder { namespace: namespace.clone(), tokens: tokens.to_vec(), lock: acquired.lock, source };
        self.insert(&mut holder, num_shared);
        self.holders.push_back(holder);
    }

    /// Indexes the tokens of `holder` from `start` on.
    fn insert(&mut self, holder: &mut Holder, start: usize) {
        let end = holder.tokens.len() / self.block_size * self.block_size;
        let mut superseded = Vec::new();
        if end > start {
            let blocks: Vec<BlockId> =
                (start / self.block_size..end / self.block_size).map(|_| self.fresh()).collect();
            let new_tokens = &holder.tokens[start..end];
            let inserted = self.index.insert(&holder.namespace, holder.lock.take(), new_tokens, &blocks);
            holder.lock = Some(inserted.lock);
            superseded = inserted.superseded;
            for (nth, &block) in blocks.iter().enumerate() {
                let key =
                    (holder.namespace.clone(), holder.tokens[..start + (nth + 1) * self.block_size].to_vec());
                let known = self.model.blocks.get(&key).copied();
                assert_eq!(inserted.existing.get(nth).copied(), known, "blocks that were known are named");
                if known.is_none() {
                    self.model.add(key, block);
                }
            }
        }
        let tail = &holder.tokens[end..];
        if !tail.is_empty() {
            let block = self.fresh();
            let (_, num_known) = self.model.find(self.block_size, &holder.namespace, &holder.tokens);
            let lock = holder.lock.as_ref();
            let is_new = self.index.insert_tail(&holder.namespace, lock, (tail, block), &mut superseded);
            assert_eq!(is_new, num_known < tail.len(), "a tail is added if its tokens are new");
            if is_new {
                self.model.now += 1;
                self.model.last_used.insert(block, self.model.now);
                self.model.add((holder.namespace.clone(), holder.tokens.clone()), block);
            }
        }
        self.forget_superseded(&superseded);
    }

    fn fresh(&mut self) -> BlockId {
        self.next_block += 1;
        BlockId(self.next_block)
    }

    /// Tails whose tokens another block holds too, and more.
    fn forget_superseded(&mut self, superseded: &[BlockId]) {
        for &block in superseded {
            let (namespace, prefix) = self.model.remove(block);
            let start = (prefix.len() - 1) / self.block_size * self.block_size;
            let longer = self.model.blocks.keys().any(|(other, longer)| {
                *other == namespace && longer.starts_with(&prefix) && longer.len() <= start + self.block_size
            });
            assert!(longer, "a superseded tail is the beginning of another block");
        }
        for ((namespace, tail), block) in &self.model.blocks {
            let end = tail.len().next_multiple_of(self.block_size);
            let next =
                self.model.blocks.range((Excluded((namespace.clone(), tail.clone())), Unbounded)).next();
            let is_longer = next.is_some_and(|((other, longer), _)| {
                other == namespace && longer.starts_with(tail) && longer.len() <= end
            });
            // One that was just being copied may stay until it is evicted.
            let is_excused = end == tail.len() || self.was_copied.contains(block);
            assert!(is_excused || !is_longer, "tails that say nothing new are gone");
        }
    }

    fn unlock(&mut self, holder: Holder) {
        for lock in [holder.source, holder.lock].into_iter().flatten() {
            let (_, path) = self.index.locked_prefix(&lock);
            self.index.unlock(lock);
            let locked = self.locked();
            self.model.now += 1;
            for block in path.into_iter().filter(|block| !locked.contains(block)) {
                self.model.last_used.insert(block, self.model.now);
            }
        }
    }

    fn locks(&self) -> impl Iterator<Item = &Lock> {
        self.holders.iter().flat_map(|holder| holder.lock.iter().chain(&holder.source))
    }

    fn locked(&self) -> BTreeSet<BlockId> {
        self.locks().flat_map(|lock| self.index.locked_prefix(lock).1).collect()
    }

    /// Each evicted block must be a leaf that nobody holds, and no other such block may have been used earlier.
    fn evict(&mut self, num_blocks: usize) {
        let locked = self.locked();
        let num_evictable = self.model.blocks.values().filter(|block| !locked.contains(block)).count();
        let mut evicted = Vec::new();
        self.index.evict(num_blocks, &mut evicted);
        assert_eq!(evicted.len(), num_blocks.min(num_evictable), "all that is needed, or all there is");
        for block in evicted {
            let key = self.model.keys[&block].clone();
            assert!(!locked.contains(&block), "a held block is never evicted");
            assert!(self.model.is_leaf(self.block_size, &key), "leaves go first");
            let candidates =
                self.model.blocks.iter().filter(|(key, other)| {
                    !locked.contains(other) && self.model.is_leaf(self.block_size, key)
                });
            let oldest = candidates.map(|(_, other)| self.model.last_used[other]).min();
            assert_eq!(oldest, Some(self.model.last_used[&block]), "the least recently used goes first");
            self.model.remove(block);
        }
    }

    fn check(&self) {
        self.index.check_invariants(self.locks());
        assert_eq!(self.index.entries(), self.model.blocks);
        for holder in &self.holders {
            if let Some(lock) = &holder.lock {
                let num_full = holder.tokens.len() / self.block_size * self.block_size;
                assert_eq!(
                    self.index.locked_prefix(lock).0,
                    holder.tokens[..num_full],
                    "a lock stands where it stood"
                );
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases / 4, ..ProptestConfig::default() })]

    /// Finds, inserts, locks and evicts as the model does.
    #[test]
    fn equals_a_map_of_prefixes(block_size in 1..=8u32, ops in vec(ops(), 1..50)) {
        let mut bench = Bench::new(block_size);
        ops.iter().for_each(|op| bench.apply(op));
        while let Some(holder) = bench.take(0) {
            bench.unlock(holder);
        }
        bench.evict(usize::MAX);
        bench.check();
        prop_assert_eq!(bench.index.num_blocks(), 0);
    }
}

/// Runs longer than one node takes are chained, split and found again.
#[test]
fn long_runs_are_chained() {
    let block_size = 16;
    let mut index = PrefixIndex::new(block_size, Eviction::Lru, &BTreeMap::new());
    let namespace = Namespace::default();
    let tokens: Vec<TokenId> = (0..100_000).collect();
    let blocks: Vec<BlockId> = (0..6_250).map(BlockId).collect();
    let lock = index.insert(&namespace, None, &tokens, &blocks).lock;
    index.check_invariants([&lock]);
    assert_eq!(index.find(&namespace, &tokens).num_blocks, 6_250);

    let mut other = tokens.clone();
    other[50_000] = 0;
    let found = index.find(&namespace, &other);
    assert_eq!((found.num_blocks, found.num_partial_tokens()), (3_125, 0));
    let acquired = index.acquire(&found);
    assert_eq!(acquired.blocks, blocks[..3_125]);
    index.unlock(acquired.lock.unwrap());
    index.unlock(lock);
    index.evict(6_249, &mut Vec::new());
    index.check_invariants([]);
    assert_eq!(index.find(&namespace, &tokens).num_blocks, 1);
}
