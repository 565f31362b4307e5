//! Tenants' quotas: how many blocks they may leave in the index.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{NodeId, evict::Standing};

/// All quotas, by id. Tenants without one are not counted.
#[derive(Debug)]
pub(super) struct Quotas {
    ids: BTreeMap<Arc<str>, usize>,
    quotas: Vec<Quota>,
}

/// What a tenant may have, and has.
#[derive(Debug)]
struct Quota {
    max_blocks: u32,
    /// In all its namespaces, held by sequences or not.
    num_blocks: u32,
    /// Unlocked leaves of its namespaces, those to evict first.
    evictable: BTreeSet<Standing>,
}

impl Quotas {
    pub(super) fn new(max_blocks: &BTreeMap<Arc<str>, u32>) -> Self {
        let quota = |&max_blocks| Quota { max_blocks, num_blocks: 0, evictable: BTreeSet::new() };
        Self {
            ids: max_blocks.keys().cloned().zip(0..).collect(),
            quotas: max_blocks.values().map(quota).collect(),
        }
    }

    /// The quota of `tenant`, if it has one.
    pub(super) fn id(&self, tenant: &str) -> Option<usize> {
        self.ids.get(tenant).copied()
    }

    /// A leaf of the tenant that should be evicted, and how many blocks it has too many; `None` if it keeps to its quota, or
    /// everything that it has is held.
    pub(super) fn next_to_evict(&self, id: usize) -> Option<(NodeId, usize)> {
        let quota = &self.quotas[id];
        let num_over = quota.num_blocks.saturating_sub(quota.max_blocks);
        let &(_, _, leaf) = quota.evictable.first()?;
        (num_over > 0).then_some((leaf, num_over as usize))
    }

    pub(super) fn count_added(&mut self, id: Option<usize>, num_blocks: u32) {
        if let Some(id) = id {
            self.quotas[id].num_blocks += num_blocks;
        }
    }

    pub(super) fn count_removed(&mut self, id: Option<usize>, num_blocks: u32) {
        if let Some(id) = id {
            self.quotas[id].num_blocks -= num_blocks;
        }
    }

    pub(super) fn mark_evictable(&mut self, id: Option<usize>, leaf: Standing) {
        if let Some(id) = id {
            self.quotas[id].evictable.insert(leaf);
        }
    }

    pub(super) fn unmark_evictable(&mut self, id: Option<usize>, leaf: Standing) {
        if let Some(id) = id {
            self.quotas[id].evictable.remove(&leaf);
        }
    }

    /// Panics unless `leaves` of quota `id` are marked and `num_blocks` are counted.
    #[cfg(any(test, feature = "testing"))]
    pub(super) fn check(&self, id: usize, num_blocks: u32, leaves: &BTreeSet<Standing>) {
        let quota = &self.quotas[id];
        assert_eq!((quota.num_blocks, &quota.evictable), (num_blocks, leaves), "quotas are counted");
    }

    /// How many there are.
    #[cfg(any(test, feature = "testing"))]
    pub(super) fn len(&self) -> usize {
        self.quotas.len()
    }
}
