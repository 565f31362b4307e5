//! The nodes of the tree and the slab that holds them.

use std::collections::BTreeMap;

use crate::{
    ids::{BlockId, TokenId},
    request::Namespace,
};

/// A node of the tree; stable while the node lives, reused afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct NodeId(pub(super) u32);

/// What stands above a node.
#[derive(Debug)]
pub(super) enum Above {
    /// Nothing: the root of this namespace, a node without blocks.
    Nothing(Space),
    /// The parent.
    Node(NodeId),
}

/// What the index keeps of a namespace.
#[derive(Debug)]
pub(super) struct Space {
    pub(super) namespace: Namespace,
    /// In all its nodes.
    pub(super) num_blocks: u32,
    /// Index of the quota that they count for.
    pub(super) quota: Option<usize>,
}

/// A run of blocks. Either all of them are full (`tokens.len() == blocks.len() * block_size`), or the node is a *tail*: a
/// leaf of one block that is not full.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) above: Above,
    /// The root above it, or itself.
    pub(super) root: NodeId,
    /// Tokens from the start of the namespace to the run.
    pub(super) start: usize,
    /// The tokens of the run, contiguous, so that a match is a slice comparison.
    pub(super) tokens: Vec<TokenId>,
    pub(super) blocks: Vec<BlockId>,
    /// By the tokens of their first block. Ordered, so that the child with the longest common prefix is a neighbour of
    /// where the searched tokens would stand; and no hash is trusted, or can be attacked.
    pub(super) children: BTreeMap<Box<[TokenId]>, NodeId>,
    /// Locks on this node itself, plus one for each child that is locked.
    pub(super) num_locks: u32,
    /// Logical time at which the node was last unlocked (or inserted unlocked).
    pub(super) last_used: u64,
    /// What it was worth then, by the policy of eviction.
    pub(super) worth: u64,
    /// Whether a later sequence has read it.
    pub(super) was_reused: bool,
}

impl Node {
    fn root(space: Space) -> Self {
        Self::new(Above::Nothing(space), NodeId(0), 0, (Vec::new(), Vec::new()))
    }

    /// An unlocked run of tokens and blocks at the end of `parent`, which has the id `parent_id`.
    pub(super) fn below(parent: &Self, parent_id: NodeId, run: (Vec<TokenId>, Vec<BlockId>)) -> Self {
        Self::new(Above::Node(parent_id), parent.root, parent.start + parent.tokens.len(), run)
    }

    fn new(above: Above, root: NodeId, start: usize, (tokens, blocks): (Vec<TokenId>, Vec<BlockId>)) -> Self {
        let children = BTreeMap::new();
        Self {
            above,
            root,
            start,
            tokens,
            blocks,
            children,
            num_locks: 0,
            last_used: 0,
            worth: 0,
            was_reused: false,
        }
    }

    pub(super) fn is_root(&self) -> bool {
        matches!(self.above, Above::Nothing(_))
    }

    pub(super) fn parent(&self) -> Option<NodeId> {
        match self.above {
            Above::Nothing(_) => None,
            Above::Node(parent) => Some(parent),
        }
    }

    /// The namespace whose root it is.
    pub(super) fn space(&self) -> &Space {
        match &self.above {
            Above::Nothing(space) => space,
            Above::Node(_) => unreachable!("only a root has a namespace. This is a bug."),
        }
    }

    /// A leaf that holds blocks which nobody reads.
    pub(super) fn is_evictable(&self) -> bool {
        self.children.is_empty() && self.num_locks == 0 && !self.is_root()
    }

    /// The key of this node among its siblings.
    pub(super) fn key(&self, block_size: usize) -> &[TokenId] {
        &self.tokens[..block_size.min(self.tokens.len())]
    }
}

/// Nodes by id, with the ids of removed nodes reused.
#[derive(Debug, Default)]
pub(super) struct Slab {
    nodes: Vec<Option<Node>>,
    vacant: Vec<NodeId>,
}

impl Slab {
    pub(super) fn insert(&mut self, node: Node) -> NodeId {
        if let Some(id) = self.vacant.pop() {
            self.nodes[id.0 as usize] = Some(node);
            return id;
        }
        self.nodes.push(Some(node));
        NodeId(self.nodes.len() as u32 - 1)
    }

    /// Adds the root of `namespace`, whose blocks count for `quota`.
    pub(super) fn insert_root(&mut self, namespace: Namespace, quota: Option<usize>) -> NodeId {
        let id = self.insert(Node::root(Space { namespace, num_blocks: 0, quota }));
        self[id].root = id;
        id
    }

    /// What is kept of the namespace under `root`.
    pub(super) fn space_mut(&mut self, root: NodeId) -> &mut Space {
        match &mut self[root].above {
            Above::Nothing(space) => space,
            Above::Node(_) => unreachable!("only a root has a namespace. This is a bug."),
        }
    }

    pub(super) fn remove(&mut self, id: NodeId) -> Node {
        self.vacant.push(id);
        self.nodes[id.0 as usize].take().expect("removed a node that lives. This is a bug.")
    }

    #[cfg(any(test, feature = "testing"))]
    pub(super) fn iter(&self) -> impl Iterator<Item = (NodeId, &Node)> {
        self.nodes.iter().enumerate().filter_map(|(id, node)| Some((NodeId(id as u32), node.as_ref()?)))
    }
}

impl std::ops::Index<NodeId> for Slab {
    type Output = Node;

    fn index(&self, id: NodeId) -> &Node {
        self.nodes[id.0 as usize].as_ref().expect("looked at a node that lives. This is a bug.")
    }
}

impl std::ops::IndexMut<NodeId> for Slab {
    fn index_mut(&mut self, id: NodeId) -> &mut Node {
        self.nodes[id.0 as usize].as_mut().expect("looked at a node that lives. This is a bug.")
    }
}

/// How many tokens two runs share from their start. Mostly all: that is one `memcmp`. Otherwise it compares in stretches.
pub(crate) fn common_prefix(a: &[TokenId], b: &[TokenId]) -> usize {
    const STRETCH: usize = 512;
    let len = a.len().min(b.len());
    let (a, b) = (&a[..len], &b[..len]);
    if a == b {
        return len;
    }
    let mut start = 0;
    while start < len {
        let end = (start + STRETCH).min(len);
        if a[start..end] != b[start..end] {
            let same = a[start..end].iter().zip(&b[start..end]).take_while(|(x, y)| x == y).count();
            return start + same;
        }
        start = end;
    }
    len
}
