//! Chunks of text with their ids, looked up by content, in bounded memory.
//!
//! A keyed hash finds a chunk, the comparison of namespace and text decides. What is dropped first is what was not used
//! since the clock's hand came by last (CLOCK, Corbató 1968), so that a hit writes one flag and needs no exclusive lock.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};

/// Where a chunk lies in the store. It may be gone, or another one be there, once the lock was let go.
pub(super) type SlotId = u32;

/// What stands for no slot.
const NONE: SlotId = SlotId::MAX;
/// Bytes of a chunk besides its text and ids: the slot, its place in the index, and what allocators round up.
const OVERHEAD: usize = 192;

#[derive(Debug)]
pub(super) struct Store<N> {
    slots: Vec<Option<Chunk<N>>>,
    vacant: Vec<SlotId>,
    by_hash: HashMap<u64, SlotId>,
    hasher: RandomState,
    hand: usize,
    num_bytes: usize,
    max_bytes: usize,
}

#[derive(Debug)]
struct Chunk<N> {
    namespace: N,
    text: Box<str>,
    ids: Arc<[u32]>,
    hash: u64,
    /// The chunk that came after this one when last seen: a hint.
    next: AtomicU32,
    used: AtomicBool,
}

impl<N: Clone + Eq + Hash> Store<N> {
    pub(super) fn new(max_bytes: usize) -> Self {
        Self {
            slots: Vec::new(),
            vacant: Vec::new(),
            by_hash: HashMap::new(),
            hasher: RandomState::new(),
            hand: 0,
            num_bytes: 0,
            max_bytes,
        }
    }

    pub(super) fn num_bytes(&self) -> usize {
        self.num_bytes
    }

    /// The chunk of exactly this text.
    pub(super) fn get(&self, namespace: &N, text: &str) -> Option<SlotId> {
        let slot = *self.by_hash.get(&self.hash(namespace, text))?;
        let chunk = self.chunk(slot)?;
        let is_it = chunk.namespace == *namespace && *chunk.text == *text;
        is_it.then(|| chunk.touch(slot))
    }

    /// The chunk that came after `previous` when last seen, if `text` begins with it.
    pub(super) fn follow(&self, previous: Option<SlotId>, namespace: &N, text: &str) -> Option<SlotId> {
        let slot = self.chunk(previous?)?.next.load(Relaxed);
        let chunk = self.chunk(slot)?;
        let is_it = chunk.namespace == *namespace && text.as_bytes().starts_with(chunk.text.as_bytes());
        is_it.then(|| chunk.touch(slot))
    }

    /// Notes that `next` came after `previous`.
    pub(super) fn link(&self, previous: SlotId, next: SlotId) {
        if let Some(chunk) = self.chunk(previous).filter(|chunk| chunk.next.load(Relaxed) != next) {
            chunk.next.store(next, Relaxed);
        }
    }

    /// The text of a chunk that was just found.
    pub(super) fn text(&self, slot: SlotId) -> &str {
        self.chunk(slot).map_or("", |chunk| &chunk.text)
    }

    /// The ids of a chunk that was just found.
    pub(super) fn ids(&self, slot: SlotId) -> Arc<[u32]> {
        self.chunk(slot).map(|chunk| Arc::clone(&chunk.ids)).unwrap_or_default()
    }

    /// Keeps a chunk, dropping others if it must; `None` if this one is too big to be worth that.
    pub(super) fn insert(&mut self, namespace: &N, text: &str, ids: Arc<[u32]>) -> Option<SlotId> {
        if let Some(slot) = self.get(namespace, text) {
            return Some(slot);
        }
        let hash = self.hash(namespace, text);
        if let Some(&other) = self.by_hash.get(&hash) {
            self.remove(other);
        }
        let chunk = Chunk {
            namespace: namespace.clone(),
            text: text.into(),
            ids,
            hash,
            next: AtomicU32::new(NONE),
            used: AtomicBool::new(false),
        };
        let num_bytes = chunk.num_bytes();
        if num_bytes > self.max_bytes / 8 {
            return None;
        }
        while self.num_bytes + num_bytes > self.max_bytes {
            self.evict();
        }
        self.num_bytes += num_bytes;
        let slot = self.vacant.pop().unwrap_or_else(|| {
            self.slots.push(None);
            SlotId::try_from(self.slots.len() - 1).expect("memory ends before slots do. This is a bug.")
        });
        self.slots[slot as usize] = Some(chunk);
        self.by_hash.insert(hash, slot);
        Some(slot)
    }

    /// Drops the chunks of the namespaces that are meant.
    pub(super) fn clear(&mut self, is_meant: impl Fn(&N) -> bool) {
        for slot in 0..self.slots.len() {
            if self.slots[slot].as_ref().is_some_and(|chunk| is_meant(&chunk.namespace)) {
                self.remove(slot as SlotId);
            }
        }
    }

    /// Drops the first chunk after the hand that was not used since the hand came by.
    fn evict(&mut self) {
        loop {
            self.hand = (self.hand + 1) % self.slots.len();
            let used = self.slots[self.hand].as_ref().map(|chunk| chunk.used.swap(false, Relaxed));
            if used == Some(false) {
                return self.remove(self.hand as SlotId);
            }
        }
    }

    fn remove(&mut self, slot: SlotId) {
        if let Some(chunk) = self.slots[slot as usize].take() {
            self.num_bytes -= chunk.num_bytes();
            self.by_hash.remove(&chunk.hash);
            self.vacant.push(slot);
        }
    }

    fn chunk(&self, slot: SlotId) -> Option<&Chunk<N>> {
        self.slots.get(slot as usize)?.as_ref()
    }

    fn hash(&self, namespace: &N, text: &str) -> u64 {
        self.hasher.hash_one((namespace, text))
    }
}

// === impl Chunk ===

impl<N> Chunk<N> {
    fn num_bytes(&self) -> usize {
        self.text.len() + size_of_val(&*self.ids) + OVERHEAD
    }

    fn touch(&self, slot: SlotId) -> SlotId {
        if !self.used.load(Relaxed) {
            self.used.store(true, Relaxed);
        }
        slot
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_outlives_what_is_not() {
        let (here, there) = ("here", "there");
        let mut store = Store::new(16 * (OVERHEAD + 5));
        let kept = store.insert(&here, "a", [1].into()).unwrap();
        for round in 0..1000_u32 {
            assert_eq!(store.get(&here, "a"), Some(kept), "{round}");
            assert_eq!(store.get(&there, "a"), None, "{round}");
            store.insert(&here, &round.to_string()[..1], [round].into());
            store.insert(&there, &format!("{round:04}"), [round].into());
            assert!(store.num_bytes() <= store.max_bytes);
            let held = store.slots.iter().flatten();
            assert_eq!(held.clone().map(Chunk::num_bytes).sum::<usize>(), store.num_bytes());
            assert_eq!(held.count(), store.by_hash.len());
        }
    }

    #[test]
    fn a_chunk_that_would_drop_much_else_is_not_kept() {
        let mut store = Store::new(8 * OVERHEAD);
        assert_eq!(store.insert(&"", "a", Arc::default()), None);
        assert_eq!(store.num_bytes(), 0);
    }

    #[test]
    fn one_namespace_is_cleared_and_its_room_used_again() {
        let (here, there) = ("here", "there");
        let mut store = Store::new(1 << 20);
        let first = store.insert(&here, "a", [1].into()).unwrap();
        let other = store.insert(&there, "a", [1].into()).unwrap();
        store.link(other, first);
        let num_bytes = store.num_bytes();
        store.clear(|namespace| *namespace == here);
        assert_eq!((store.get(&here, "a"), store.get(&there, "a")), (None, Some(other)));
        assert_eq!(2 * store.num_bytes(), num_bytes);
        assert_eq!(store.insert(&there, "b", [2].into()), Some(first));
        store.clear(|_| true);
        assert_eq!((store.num_bytes(), store.by_hash.len(), store.vacant.len()), (0, 0, 2));
    }

    #[test]
    fn hints_are_only_hints() {
        let (here, there) = ("here", "there");
        let mut store = Store::new(1 << 20);
        let first = store.insert(&here, "a", [1].into()).unwrap();
        let second = store.insert(&here, "bc", [2].into()).unwrap();
        assert_eq!(store.follow(Some(first), &here, "bcd"), None);
        store.link(first, second);
        assert_eq!(store.follow(Some(first), &here, "bcd"), Some(second));
        assert_eq!(store.follow(Some(first), &here, "bd"), None);
        assert_eq!(store.follow(Some(first), &there, "bcd"), None);
        store.remove(second);
        assert_eq!(store.follow(Some(first), &here, "bcd"), None);
    }
}
