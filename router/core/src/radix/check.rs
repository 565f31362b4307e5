//! The invariants of the index as code, and a view of its content for models to compare with.

use std::collections::{BTreeMap, BTreeSet};

use super::{Above, Lock, Node, NodeId, PrefixIndex};
use crate::{
    ids::{BlockId, TokenId},
    request::Namespace,
};

impl PrefixIndex {
    /// Every block with the tokens from the start of its namespace to its own end.
    #[must_use]
    pub fn entries(&self) -> BTreeMap<(Namespace, Vec<TokenId>), BlockId> {
        let mut entries = BTreeMap::new();
        for (id, node) in self.nodes.iter() {
            let (namespace, before) = self.tokens_above(id);
            for (index, &block) in node.blocks.iter().enumerate() {
                let end = node.tokens.len().min((index + 1) * self.block_size);
                let tokens = [&before[..], &node.tokens[..end]].concat();
                let twin = entries.insert((namespace.clone(), tokens), block);
                assert_eq!(twin, None, "two blocks hold the same tokens");
            }
        }
        entries
    }

    /// Every block, in no particular order.
    pub fn blocks(&self) -> impl Iterator<Item = BlockId> {
        self.nodes.iter().flat_map(|(_, node)| node.blocks.iter().copied())
    }

    /// Tokens and blocks from the start of the namespace to where `lock` stands.
    #[must_use]
    pub fn locked_prefix(&self, lock: &Lock) -> (Vec<TokenId>, Vec<BlockId>) {
        let (_, mut tokens) = self.tokens_above(lock.node());
        tokens.extend_from_slice(&self.nodes[lock.node()].tokens);
        let num_blocks = tokens.len().div_ceil(self.block_size);
        (tokens, self.path_blocks(Some(lock.node()), num_blocks))
    }

    /// Blocks of the node on which `lock` stands.
    #[must_use]
    pub fn locked_run(&self, lock: &Lock) -> &[BlockId] {
        &self.nodes[lock.node()].blocks
    }

    /// Panics unless the invariants hold, given all locks that are out. O(index).
    pub fn check_invariants<'a>(&self, locks: impl IntoIterator<Item = &'a Lock>) {
        let mut num_locks: BTreeMap<NodeId, u32> = BTreeMap::new();
        for lock in locks {
            *num_locks.entry(lock.node()).or_default() += 1;
        }
        let (mut num_blocks, mut num_locked) = (0, 0);
        let mut evictable = BTreeSet::new();
        for (id, node) in self.nodes.iter() {
            self.check_node(id, node);
            let own = num_locks.get(&id).copied().unwrap_or(0);
            let below = node.children.values().filter(|child| self.nodes[**child].num_locks > 0).count();
            assert_eq!(node.num_locks, own + below as u32, "{id:?} counts its locks");
            num_blocks += node.blocks.len() as u32;
            if node.num_locks > 0 {
                num_locked += node.blocks.len() as u32;
            }
            if node.is_evictable() {
                evictable.insert((node.worth, node.last_used, id));
            }
        }
        assert_eq!((self.num_blocks, self.num_locked), (num_blocks, num_locked), "blocks are counted");
        assert_eq!(self.evictable, evictable, "the evictable set is exactly the unlocked leaves");
        for &root in self.roots.values() {
            let nodes = self.nodes.iter().filter(|(_, node)| node.root == root);
            let num_blocks: usize = nodes.map(|(_, node)| node.blocks.len()).sum();
            assert_eq!(self.nodes[root].space().num_blocks as usize, num_blocks, "namespaces are counted");
        }
        for quota in 0..self.quotas.len() {
            let is_its = |node: NodeId| self.nodes[self.nodes[node].root].space().quota == Some(quota);
            let nodes = self.nodes.iter().filter(|(id, _)| is_its(*id));
            let num_blocks: usize = nodes.map(|(_, node)| node.blocks.len()).sum();
            let leaves = evictable.iter().copied().filter(|(_, _, leaf)| is_its(*leaf)).collect();
            self.quotas.check(quota, num_blocks as u32, &leaves);
        }
        let roots: BTreeSet<NodeId> = self.roots.values().copied().collect();
        let nodes_without_parent = self.nodes.iter().filter(|(_, node)| node.is_root()).map(|(id, _)| id);
        assert_eq!(roots, nodes_without_parent.collect(), "each root has its namespace");
    }

    fn check_node(&self, id: NodeId, node: &Node) {
        if node.is_root() {
            assert!(node.blocks.is_empty() && node.tokens.is_empty(), "a root holds no blocks");
            assert!(!node.children.is_empty(), "a root without children is gone");
        } else {
            let is_full = node.tokens.len() == node.blocks.len() * self.block_size;
            let is_tail =
                node.blocks.len() == 1 && node.tokens.len() < self.block_size && node.children.is_empty();
            assert!(is_full || is_tail, "{id:?} holds whole blocks, or is a tail");
            assert!((1..=self.max_run_blocks).contains(&node.blocks.len()), "{id:?} has a bounded run");
        }
        for (key, child) in &node.children {
            let child = &self.nodes[*child];
            assert_eq!(child.start, node.start + node.tokens.len(), "children begin where their parent ends");
            assert_eq!(child.parent(), Some(id), "children know their parent");
            assert_eq!(&key[..], child.key(self.block_size), "children stand under their key");
            assert!(!child.was_reused || node.was_reused, "who reads a node reads all above it");
            assert!(
                child.num_locks > 0
                    || child.last_used <= node.last_used
                    || node.num_locks > 0
                    || node.is_root(),
                "a parent was used no earlier than its children"
            );
        }
    }

    fn tokens_above(&self, id: NodeId) -> (Namespace, Vec<TokenId>) {
        let mut runs = Vec::new();
        let mut at = id;
        loop {
            match &self.nodes[at].above {
                Above::Node(parent) => at = *parent,
                Above::Nothing(space) => {
                    let tokens = runs.iter().rev().copied().flatten().copied().collect();
                    return (space.namespace.clone(), tokens);
                }
            }
            runs.push(&self.nodes[at].tokens);
        }
    }
}
