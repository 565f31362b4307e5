//! Locks: who reads a prefix keeps it from being evicted.

use super::{Match, NodeId, Partial, PrefixIndex};
use crate::ids::BlockId;

/// Holds the node where a prefix ends, and with it all nodes above. Not `Clone`: it goes back through
/// [`PrefixIndex::unlock`], once.
#[derive(Debug)]
#[must_use = "a lock that is dropped keeps its blocks for ever"]
pub struct Lock(NodeId);

impl Lock {
    pub(super) fn new(node: NodeId) -> Self {
        Self(node)
    }

    pub(super) fn node(&self) -> NodeId {
        self.0
    }
}

/// A match that is held: [`PrefixIndex::acquire`].
#[derive(Debug)]
pub struct Acquired {
    /// The blocks that match whole, in order.
    pub blocks: Vec<BlockId>,
    /// Holds their end; `None` if there are none.
    pub lock: Option<Lock>,
    /// The block of which only the first tokens match, held by a lock of its own until it is copied.
    pub partial: Option<(BlockId, Lock)>,
}

impl PrefixIndex {
    /// Locks what `found` names. A node of which only the first blocks match is split, so that a lock ends where a node ends.
    pub fn acquire(&mut self, found: &Match) -> Acquired {
        let end = found.end.map(|(node, num_blocks)| self.upper_part(node, num_blocks));
        // It is the first block of its node: if blocks before it matched, they were just split off.
        let partial = found.partial.map(|Partial { node, .. }| (self.nodes[node].blocks[0], self.lock(node)));
        let lock = end.map(|node| self.lock(node));
        self.mark_reused(end);
        Acquired { blocks: self.path_blocks(end, found.num_blocks), lock, partial }
    }

    /// How many blocks [`PrefixIndex::acquire`] would lock that are not locked now.
    #[must_use]
    pub fn num_newly_locked(&self, found: &Match) -> u32 {
        let mut num_blocks = 0;
        if let Some(partial) = found.partial {
            let node = &self.nodes[partial.node];
            if node.num_locks == 0 {
                num_blocks += node.blocks.len() - partial.index;
            }
        }
        let Some((end, num_in_end)) = found.end else { return num_blocks as u32 };
        let (mut at, mut num_here) = (end, num_in_end);
        while self.nodes[at].num_locks == 0 {
            num_blocks += num_here;
            let Some(parent) = self.nodes[at].parent() else { break };
            (at, num_here) = (parent, self.nodes[parent].blocks.len());
        }
        num_blocks as u32
    }

    /// Gives a lock back. What nobody holds any more can be evicted from now on, and counts as used just now.
    pub fn unlock(&mut self, lock: Lock) {
        let time = self.tick();
        let mut at = Some(lock.0);
        while let Some(id) = at {
            let node = &mut self.nodes[id];
            node.num_locks -= 1;
            if node.num_locks > 0 {
                return;
            }
            self.num_locked -= node.blocks.len() as u32;
            at = node.parent();
            self.touch(id, time);
            if self.nodes[id].is_evictable() {
                self.mark_evictable(id);
            }
        }
    }

    /// All above a node that was reused were, too.
    fn mark_reused(&mut self, end: Option<NodeId>) {
        let mut at = end;
        while let Some(id) = at {
            let node = &mut self.nodes[id];
            if std::mem::replace(&mut node.was_reused, true) {
                return;
            }
            at = node.parent();
        }
    }

    fn lock(&mut self, id: NodeId) -> Lock {
        self.lock_node(id);
        Lock::new(id)
    }

    pub(super) fn lock_node(&mut self, id: NodeId) {
        let mut at = Some(id);
        while let Some(id) = at {
            if self.nodes[id].is_evictable() {
                self.unmark_evictable(id);
            }
            let node = &mut self.nodes[id];
            node.num_locks += 1;
            if node.num_locks > 1 {
                return;
            }
            self.num_locked += node.blocks.len() as u32;
            at = node.parent();
        }
    }

    /// The blocks from the root to the end of `end`, in order.
    pub(super) fn path_blocks(&self, end: Option<NodeId>, num_blocks: usize) -> Vec<BlockId> {
        let mut path = Vec::new();
        let mut at = end;
        while let Some(id) = at {
            path.push(id);
            at = self.nodes[id].parent();
        }
        let mut blocks = Vec::with_capacity(num_blocks);
        for id in path.into_iter().rev() {
            blocks.extend_from_slice(&self.nodes[id].blocks);
        }
        blocks
    }
}
