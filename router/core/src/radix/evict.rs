//! Taking blocks out of the index: leaves first, by the policy of eviction, and from the end of their runs.

use std::{
    collections::BTreeSet,
    ops::Bound::{Excluded, Unbounded},
};

use super::{Match, NodeId, PrefixIndex};
use crate::{
    ids::{BlockId, TokenId},
    request::Namespace,
};

/// Where an unlocked leaf stands among those that can be evicted: by what it is worth, then by when it was last used.
pub(super) type Standing = (u64, u64, NodeId);

/// What an eviction would lose that was of use before: blocks which a later sequence has read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stake {
    /// When the last used of them was used, in the index's time (microseconds, or a little ahead of them).
    pub last_used: u64,
    /// Tokens to compute if they are wanted again…
    pub num_tokens: u64,
    /// …and pairs of one of these tokens and a token that it attends to.
    pub num_pairs: u64,
}

impl PrefixIndex {
    /// What is at stake if `num_blocks` blocks are evicted while `reader` is held. O(nodes that would lose blocks).
    #[must_use]
    pub fn stake(&self, num_blocks: usize, reader: &Match) -> Stake {
        let above = |id: &NodeId| self.nodes[*id].parent();
        let held: BTreeSet<NodeId> = std::iter::successors(reader.end.map(|(node, _)| node), above).collect();
        let (mut stake, mut num_left) = (Stake::default(), num_blocks);
        for (_, _, leaf) in &self.evictable {
            // What it hangs from can go next, if nothing else hangs from that.
            let mut at = Some(*leaf).filter(|leaf| !held.contains(leaf));
            while let Some(id) = at {
                let node = &self.nodes[id];
                let num_taken = num_left.min(node.blocks.len());
                num_left -= num_taken;
                if node.was_reused {
                    let num_tokens = (num_taken * self.block_size) as u64;
                    let end = (node.start + node.tokens.len()) as u64;
                    stake.last_used = stake.last_used.max(node.last_used);
                    stake.num_tokens += num_tokens;
                    stake.num_pairs += num_tokens * (2 * end - num_tokens.min(end)) / 2;
                }
                if num_left == 0 {
                    return stake;
                }
                at = node.parent().filter(|parent| {
                    let node = &self.nodes[*parent];
                    node.num_locks == 0
                        && node.children.len() == 1
                        && !node.is_root()
                        && !held.contains(parent)
                });
            }
        }
        stake
    }

    /// Takes out up to `num_blocks` blocks that nobody holds, and appends them to `evicted`.
    ///
    /// A run loses its last blocks first, so what remains of it is still a prefix.
    pub fn evict(&mut self, num_blocks: usize, evicted: &mut Vec<BlockId>) {
        let mut num_left = num_blocks;
        while num_left > 0 {
            let Some(&(worth, _, id)) = self.evictable.first() else { return };
            self.inflation = self.inflation.max(worth);
            num_left -= self.evict_from(id, num_left, evicted);
        }
    }

    /// Takes out all blocks that nobody holds of the namespaces that `is_meant` picks, and appends them to `evicted`.
    pub fn clear(&mut self, is_meant: impl Fn(&Namespace) -> bool, evicted: &mut Vec<BlockId>) {
        let namespace =
            |index: &Self, id: NodeId| is_meant(&index.nodes[index.nodes[id].root].space().namespace);
        loop {
            let ids = self.evictable.iter().map(|(_, _, id)| *id);
            let leaves: Vec<_> = ids.filter(|id| namespace(self, *id)).collect();
            if leaves.is_empty() {
                return;
            }
            // What they hung from can be taken out in the next round.
            for leaf in leaves {
                self.remove_leaf(leaf, evicted);
            }
        }
    }

    /// Takes out blocks of the tenant of `namespace` that nobody holds, until it keeps to its quota or has no more of them.
    pub fn enforce_quota(&mut self, namespace: &Namespace, evicted: &mut Vec<BlockId>) {
        let Some(id) = self.quotas.id(&namespace.tenant) else { return };
        while let Some((leaf, num_over)) = self.quotas.next_to_evict(id) {
            self.evict_from(leaf, num_over, evicted);
        }
    }

    /// Takes up to `num_blocks` blocks from the end of an unlocked leaf. Returns how many.
    fn evict_from(&mut self, id: NodeId, num_blocks: usize, evicted: &mut Vec<BlockId>) -> usize {
        let node = &mut self.nodes[id];
        let num_taken = num_blocks.min(node.blocks.len());
        if num_taken == node.blocks.len() {
            self.remove_leaf(id, evicted);
            return num_taken;
        }
        let num_kept = node.blocks.len() - num_taken;
        evicted.extend(node.blocks.drain(num_kept..).rev());
        node.tokens.truncate(num_kept * self.block_size);
        let root = node.root;
        self.count_removed(root, num_taken);
        num_taken
    }

    /// A node was used just now.
    pub(super) fn touch(&mut self, id: NodeId, time: u64) {
        let node = &mut self.nodes[id];
        node.last_used = time;
        node.worth = self.eviction.worth(node.start, self.inflation);
    }

    /// An unlocked node has become a leaf, or a leaf unlocked.
    pub(super) fn mark_evictable(&mut self, id: NodeId) {
        let node = &self.nodes[id];
        let standing = (node.worth, node.last_used, id);
        self.evictable.insert(standing);
        self.quotas.mark_evictable(self.nodes[node.root].space().quota, standing);
    }

    /// Takes back [`mark_evictable`](Self::mark_evictable).
    pub(super) fn unmark_evictable(&mut self, id: NodeId) {
        let node = &self.nodes[id];
        let standing = (node.worth, node.last_used, id);
        self.evictable.remove(&standing);
        self.quotas.unmark_evictable(self.nodes[node.root].space().quota, standing);
    }

    /// Removes tails below `at` that hold nothing but the beginning of `key`, unless somebody is copying them.
    pub(super) fn remove_superseded(&mut self, at: NodeId, key: &[TokenId], removed: &mut Vec<BlockId>) {
        // A key that is a prefix of `key` stands before it, and no further than `key` has in common with its predecessor.
        let children = &self.nodes[at].children;
        let mut before = children.range::<[TokenId], _>((Unbounded, Excluded(key)));
        let Some((predecessor, _)) = before.next_back() else { return };
        for len in (1..=super::common_prefix(predecessor, key)).rev() {
            let Some(&tail) = self.nodes[at].children.get(&key[..len]) else { continue };
            if self.nodes[tail].is_evictable() {
                self.remove_leaf_of(tail, at, removed);
            }
        }
    }

    fn remove_leaf(&mut self, id: NodeId, removed: &mut Vec<BlockId>) {
        let parent = self.nodes[id].parent().expect("a root is never evictable. This is a bug.");
        self.remove_leaf_of(id, parent, removed);
        let node = &self.nodes[parent];
        if node.is_evictable() {
            self.mark_evictable(parent);
        } else if node.is_root() && node.children.is_empty() {
            self.roots.remove(&node.space().namespace);
            self.nodes.remove(parent);
        }
    }

    /// Removes an unlocked leaf; whoever calls decides what becomes of the parent.
    fn remove_leaf_of(&mut self, id: NodeId, parent: NodeId, removed: &mut Vec<BlockId>) {
        self.unmark_evictable(id);
        let node = self.nodes.remove(id);
        self.nodes[parent].children.remove(node.key(self.block_size));
        self.count_removed(node.root, node.blocks.len());
        removed.extend(node.blocks.into_iter().rev());
    }
}
