//! What the index holds, told to people.

use super::{Match, PrefixIndex};
use crate::{ids::TokenId, request::Namespace};

/// What the index holds of one namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamespaceUsage {
    /// The namespace.
    pub namespace: Namespace,
    /// Its blocks, held by sequences or not.
    pub num_blocks: u32,
}

impl PrefixIndex {
    /// All namespaces that have blocks in the index, in order. O(namespaces).
    pub fn usage(&self) -> impl Iterator<Item = NamespaceUsage> {
        self.roots.iter().map(|(namespace, root)| NamespaceUsage {
            namespace: namespace.clone(),
            num_blocks: self.nodes[*root].space().num_blocks,
        })
    }

    /// Whether anything of `namespace` is in the index.
    #[must_use]
    pub fn contains_namespace(&self, namespace: &Namespace) -> bool {
        self.roots.contains_key(namespace)
    }

    /// Up to `limit` tokens with which the index goes on where `found`, the longest match in `namespace`, ends. Empty if it
    /// ends there too. Where the index goes on in several ways, these are of one of them.
    #[must_use]
    pub fn continuation(&self, namespace: &Namespace, found: &Match, limit: usize) -> Vec<TokenId> {
        let (mut at, mut start) = match (found.partial, found.end) {
            (Some(partial), _) => (partial.node, partial.index * self.block_size + partial.num_tokens),
            (None, Some((node, num_blocks))) => (node, num_blocks * self.block_size),
            (None, None) => match self.roots.get(namespace) {
                Some(&root) => (root, 0),
                None => return Vec::new(),
            },
        };
        let mut tokens = Vec::new();
        loop {
            let node = &self.nodes[at];
            tokens.extend(node.tokens[start..].iter().take(limit - tokens.len()));
            match node.children.values().next() {
                Some(&child) if tokens.len() < limit => (at, start) = (child, 0),
                _ => return tokens,
            }
        }
    }
}
