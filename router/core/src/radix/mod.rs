//! The prefix index: which tokens are already in the KV cache, and in which blocks.
//!
//! ```text
//!   namespace ─ root
//!                │ 5 1 7 3 | 9 9 2 4        a run of full blocks (block_size 4), at most MAX_RUN_TOKENS long
//!                ├── 6 6 6 6 | 1 2 3 4      siblings differ somewhere in their first block,
//!                ├── 6 6 8 0                  not necessarily at its first token
//!                └── 6 7                    a tail: one block, partly filled; always a leaf
//! ```
//! A radix tree over token ids at block granularity: nodes own whole blocks, and matching compares ids, never hashes.
//! Siblings stand in the order of their first block's tokens, so one look-up finds the child that continues a prompt, or the
//! block that shares the longest part of its next block (which is then copied: see [`Match`]).
//!
//! Who reads a prefix holds a [`Lock`] on the node where it ends. A locked node keeps its ancestors locked, so what a
//! sequence reads is never evicted, and locking or unlocking stops at the first ancestor that others keep locked anyway.
//!
//! Costs, in the number of tokens or blocks that are *new*: insert O(new), evict O(log nodes) per node plus O(1) per block,
//! lock and unlock O(nodes that change). A match is one `memcmp` per run. Runs are bounded, so that splitting one, where two
//! prompts part, moves a bounded number of tokens.
//!
//! There is no hint that says where a session's last prompt ended: to believe it without comparing would be unsound, and to
//! compare is all that a match costs.
//!
//! Must hold: every block of the index stands in one node; a node's run differs from its siblings' in the first block;
//! `num_locked` counts the blocks of nodes with `num_locks > 0`; the evictable set is exactly the unlocked leaves; above a node
//! that was reused all were; a tenant over its quota has no blocks that nobody holds.

#[cfg(any(test, feature = "testing"))]
mod check;
mod evict;
mod explain;
mod lock;
mod node;
mod quota;

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound::{Excluded, Included, Unbounded},
    sync::Arc,
};

pub(crate) use self::node::common_prefix;
pub use self::{
    evict::Stake,
    explain::NamespaceUsage,
    lock::{Acquired, Lock},
};
use self::{
    evict::Standing,
    node::{Above, Node, NodeId, Slab},
    quota::Quotas,
};
use crate::{
    ids::{BlockId, Tick, TokenId},
    policy::Eviction,
    request::Namespace,
};

/// The longest run of one node, in tokens (a run has at least one block). It bounds what a split copies (16 KiB) while a
/// walk over 200,000 tokens passes only about fifty nodes.
const MAX_RUN_TOKENS: usize = 4096;

/// Token prefixes and the blocks that hold their keys and values.
#[derive(Debug)]
pub struct PrefixIndex {
    block_size: usize,
    max_run_blocks: usize,
    nodes: Slab,
    roots: BTreeMap<Namespace, NodeId>,
    /// Unlocked leaves, those to evict first.
    evictable: BTreeSet<Standing>,
    eviction: Eviction,
    /// What the last evicted run was worth, at most: see [`Eviction::CostAware`].
    inflation: u64,
    quotas: Quotas,
    /// Counts uses, and is no less than the time that it was told last, in microseconds: no clock is read.
    time: u64,
    num_blocks: u32,
    num_locked: u32,
}

/// The longest prefix that [`PrefixIndex::find`] found; valid until the index is changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Match {
    /// Whole blocks that can be shared as they are.
    pub num_blocks: usize,
    /// Where they end: the node, and how many of its blocks.
    end: Option<(NodeId, usize)>,
    /// A further block that begins with the tokens that follow.
    partial: Option<Partial>,
}

/// A block of which only the first tokens match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Partial {
    node: NodeId,
    /// Index of the block in the node.
    index: usize,
    num_tokens: usize,
}

impl Match {
    /// Tokens of the next block that match too; they can be had by copying that block.
    #[must_use]
    pub fn num_partial_tokens(&self) -> usize {
        self.partial.map_or(0, |partial| partial.num_tokens)
    }

    /// The same match without the partly matched block.
    #[must_use]
    pub fn whole_blocks(self) -> Self {
        Self { partial: None, ..self }
    }
}

/// What [`PrefixIndex::insert`] did.
#[derive(Debug)]
pub struct Inserted {
    /// Holds the end of the inserted tokens.
    pub lock: Lock,
    /// The index knew the first `existing.len()` of the blocks before, under these ids; the others are its own now.
    pub existing: Vec<BlockId>,
    /// Tails that the new blocks made superfluous; they left the index.
    pub superseded: Vec<BlockId>,
}

impl PrefixIndex {
    /// An empty index over blocks of `block_size` tokens. `quotas` are the most blocks that tenants may leave in it.
    #[must_use]
    pub fn new(block_size: u32, eviction: Eviction, quotas: &BTreeMap<Arc<str>, u32>) -> Self {
        let block_size = block_size as usize;
        assert!(block_size > 0, "the configuration was validated. This is a bug.");
        Self {
            block_size,
            max_run_blocks: (MAX_RUN_TOKENS / block_size).max(1),
            nodes: Slab::default(),
            roots: BTreeMap::new(),
            evictable: BTreeSet::new(),
            eviction,
            inflation: 0,
            quotas: Quotas::new(quotas),
            time: 0,
            num_blocks: 0,
            num_locked: 0,
        }
    }

    /// It is `now`: what is used from now on counts as used no earlier.
    pub fn set_time(&mut self, now: Tick) {
        self.time = self.time.max(now.0);
    }

    /// Tokens of a block.
    #[must_use]
    pub fn block_size(&self) -> usize {
        self.block_size
    }

    /// Blocks in the index.
    #[must_use]
    pub fn num_blocks(&self) -> u32 {
        self.num_blocks
    }

    /// Blocks in the index that somebody holds locked; the others can be evicted.
    #[must_use]
    pub fn num_locked(&self) -> u32 {
        self.num_locked
    }

    /// The longest prefix of `tokens` in the index. Changes nothing, not even the order of eviction.
    #[must_use]
    pub fn find(&self, namespace: &Namespace, tokens: &[TokenId]) -> Match {
        let mut found = Match::default();
        let Some(&root) = self.roots.get(namespace) else { return found };
        let (mut at, mut rest) = (root, tokens);
        while let Some((child, num_common)) = self.best_child(at, rest) {
            let node = &self.nodes[child];
            let whole = num_common / self.block_size;
            if whole > 0 {
                found.end = Some((child, whole));
                found.num_blocks += whole;
            }
            if whole < node.blocks.len() || node.tokens.len() < self.block_size {
                let num_tokens = num_common % self.block_size;
                found.partial = (num_tokens > 0).then_some(Partial { node: child, index: whole, num_tokens });
                break;
            }
            (at, rest) = (child, &rest[num_common..]);
        }
        found
    }

    /// Adds full blocks that continue the prefix which `lock` holds (`None`: the empty prefix), and moves the lock to their
    /// end. Blocks that the index knows already are not added.
    ///
    /// `tokens` are those of `blocks`, `block_size` for each.
    pub fn insert(
        &mut self,
        namespace: &Namespace,
        lock: Option<Lock>,
        tokens: &[TokenId],
        blocks: &[BlockId],
    ) -> Inserted {
        assert!(!blocks.is_empty() && tokens.len() == blocks.len() * self.block_size, "This is a bug.");
        let start = lock.as_ref().map_or_else(|| self.root(namespace), Lock::node);
        let mut existing = Vec::new();
        let mut end = start;
        while existing.len() < blocks.len() {
            let rest = &tokens[existing.len() * self.block_size..];
            let Some(&child) = self.nodes[end].children.get(&rest[..self.block_size]) else { break };
            let num_common = common_prefix(&self.nodes[child].tokens, rest) / self.block_size;
            end = self.upper_part(child, num_common);
            existing.extend_from_slice(&self.nodes[end].blocks);
        }
        if end != start {
            self.lock_node(end);
            if let Some(lock) = lock {
                self.unlock(lock);
            }
        }
        let mut superseded = Vec::new();
        let mut done = existing.len();
        while done < blocks.len() {
            let rest = &tokens[done * self.block_size..];
            self.remove_superseded(end, &rest[..self.block_size], &mut superseded);
            let num_new = self.append(&mut end, rest, &blocks[done..]);
            done += num_new;
        }
        Inserted { lock: Lock::new(end), existing, superseded }
    }

    /// Adds a partly filled block that continues the prefix which `lock` holds. Returns whether it was added (not if the
    /// index already holds these tokens) and appends tails that it made superfluous to `superseded`.
    pub fn insert_tail(
        &mut self,
        namespace: &Namespace,
        lock: Option<&Lock>,
        (tokens, block): (&[TokenId], BlockId),
        superseded: &mut Vec<BlockId>,
    ) -> bool {
        assert!(!tokens.is_empty() && tokens.len() < self.block_size, "This is a bug.");
        let at = lock.map_or_else(|| self.root(namespace), Lock::node);
        if self.best_child(at, tokens).is_some_and(|(_, num_common)| num_common == tokens.len()) {
            return false;
        }
        self.remove_superseded(at, tokens, superseded);
        let tail = Node::below(&self.nodes[at], at, (tokens.to_vec(), vec![block]));
        self.add_child(at, tail);
        true
    }

    // === Walking ===

    /// The child of `at` that shares most tokens with `rest`, and how many; `None` if none shares any.
    fn best_child(&self, at: NodeId, rest: &[TokenId]) -> Option<(NodeId, usize)> {
        let children = &self.nodes[at].children;
        if rest.len() >= self.block_size
            && let Some(&child) = children.get(&rest[..self.block_size])
        {
            return Some((child, common_prefix(&self.nodes[child].tokens, rest)));
        }
        // No child has this first block. Among ordered keys, a neighbour shares the longest prefix.
        let key = &rest[..self.block_size.min(rest.len())];
        let below = children.range::<[TokenId], _>((Unbounded, Excluded(key))).next_back();
        let above = children.range::<[TokenId], _>((Included(key), Unbounded)).next();
        let neighbours = [below, above].into_iter().flatten();
        let best =
            neighbours.map(|(other, &child)| (child, common_prefix(other, key))).max_by_key(|(_, num)| *num);
        best.filter(|(_, num_common)| *num_common > 0)
    }

    /// The root of a namespace, made if need be. A root that stays without children must be removed again.
    fn root(&mut self, namespace: &Namespace) -> NodeId {
        if let Some(&root) = self.roots.get(namespace) {
            return root;
        }
        let root = self.nodes.insert_root(namespace.clone(), self.quotas.id(&namespace.tenant));
        self.roots.insert(namespace.clone(), root);
        root
    }

    // === Changing the tree ===

    /// Adds blocks below `end`, as many as one node takes, and moves `end` there. The caller's lock on `end` moves along.
    fn append(&mut self, end: &mut NodeId, tokens: &[TokenId], blocks: &[BlockId]) -> usize {
        let node = &mut self.nodes[*end];
        let room = self.max_run_blocks.saturating_sub(node.blocks.len());
        // Only the caller ends here: its own run grows in place.
        if !node.is_root() && node.children.is_empty() && node.num_locks == 1 && room > 0 {
            let num_new = room.min(blocks.len());
            node.tokens.extend_from_slice(&tokens[..num_new * self.block_size]);
            node.blocks.extend_from_slice(&blocks[..num_new]);
            self.num_locked += num_new as u32;
            let root = node.root;
            self.count_added(root, num_new);
            return num_new;
        }
        // The lock leaves `end` and comes back as that of a locked child; only a root had none before.
        if node.is_root() {
            node.num_locks += 1;
        }
        let num_new = self.max_run_blocks.min(blocks.len());
        let run = tokens[..num_new * self.block_size].to_vec();
        let mut child = Node::below(node, *end, (run, blocks[..num_new].to_vec()));
        child.num_locks = 1;
        *end = self.add_child(*end, child);
        num_new
    }

    /// Hangs `node` below `parent` and counts its blocks.
    fn add_child(&mut self, parent: NodeId, node: Node) -> NodeId {
        let key = node.key(self.block_size).into();
        let num_blocks = node.blocks.len() as u32;
        let is_locked = node.num_locks > 0;
        self.count_added(node.root, node.blocks.len());
        let id = self.nodes.insert(node);
        if is_locked {
            self.num_locked += num_blocks;
        } else {
            let time = self.tick();
            self.touch(id, time);
            self.mark_evictable(id);
        }
        let parent = &mut self.nodes[parent];
        if parent.is_evictable() {
            unreachable!("a parent is a root or locked when it gets a child. This is a bug.");
        }
        parent.children.insert(key, id);
        id
    }

    /// The node that ends after the first `num_blocks` blocks of `node`: itself, or its upper part after a split. The lower
    /// part keeps the id of `node`, so that locks on its end stay true.
    fn upper_part(&mut self, id: NodeId, num_blocks: usize) -> NodeId {
        let node = &mut self.nodes[id];
        if num_blocks == node.blocks.len() {
            return id;
        }
        let lower_tokens = node.tokens.split_off(num_blocks * self.block_size);
        let upper_tokens = std::mem::replace(&mut node.tokens, lower_tokens);
        let lower_blocks = node.blocks.split_off(num_blocks);
        let upper_blocks = std::mem::replace(&mut node.blocks, lower_blocks);
        let lower_key = node.key(self.block_size).into();
        node.start += upper_tokens.len();
        let parent = node.parent().expect("roots hold no blocks. This is a bug.");
        let mut upper = Node::below(&self.nodes[parent], parent, (upper_tokens, upper_blocks));
        let node = &self.nodes[id];
        upper.num_locks = u32::from(node.num_locks > 0);
        (upper.last_used, upper.worth, upper.was_reused) = (node.last_used, node.worth, node.was_reused);
        upper.children.insert(lower_key, id);
        let upper = self.nodes.insert(upper);
        self.nodes[id].above = Above::Node(upper);
        let key: Box<[TokenId]> = self.nodes[upper].key(self.block_size).into();
        self.nodes[parent].children.insert(key, upper);
        upper
    }

    fn count_added(&mut self, root: NodeId, num_blocks: usize) {
        self.num_blocks += num_blocks as u32;
        let space = self.nodes.space_mut(root);
        space.num_blocks += num_blocks as u32;
        self.quotas.count_added(space.quota, num_blocks as u32);
    }

    fn count_removed(&mut self, root: NodeId, num_blocks: usize) {
        self.num_blocks -= num_blocks as u32;
        let space = self.nodes.space_mut(root);
        space.num_blocks -= num_blocks as u32;
        self.quotas.count_removed(space.quota, num_blocks as u32);
    }

    fn tick(&mut self) -> u64 {
        self.time += 1;
        self.time
    }
}
