//! Token ids of text that was encoded before, so that a conversation that grows costs its new text alone.
//!
//! ```text
//! text      │ coarse chunk │ coarse chunk │  fine │ fine │ fine │ rest │
//! seen      └──── hit ─────┴──── hit ─────┴─ hit ─┴─ hit ┘              ─► find
//! encoded                                                └ new ─┴─ new ─┘  ─► encode, on several threads if it is long
//! ```
//! A chunk lies between two cuts of the tokenizer (`tokenizer/cuts`), so its ids depend on its text alone: it is looked up by
//! content, compared byte by byte, wherever it stands and whatever stands before it. Where chunks end depends on the
//! text around the end (`chunk.rs`): after an edit in the middle the old chunks are found again. Texts seen before
//! are walked by coarse chunks, each of which remembers the one that came after it; fine ones keep what must be encoded small.
//!
//! What must hold: ids are those of [`Tokenizer::encode`], always; no namespace sees what another one cached; the store
//! never holds more bytes than it may.

mod chunk;
mod store;

use std::hash::Hash;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, PoisonError, RwLock};

use self::chunk::{COARSE, FINE};
use self::store::{SlotId, Store};
use crate::error::TextError;
use crate::tokenizer::Tokenizer;

/// Below so many bytes of new text, another thread costs more than it saves.
const MIN_BYTES_PER_THREAD: usize = 16 << 10;

/// Room left behind the ids of a prompt, so that the first tokens of an answer do not move them all.
const ROOM: usize = 1024;

/// A tokenizer that remembers, for each namespace `N` by itself. Share it between threads.
#[derive(Debug)]
pub struct TokenCache<N> {
    tokenizer: Tokenizer,
    store: RwLock<Store<N>>,
}

/// A text, and which of its chunks are known.
#[derive(Debug)]
pub struct Lookup<'a, N> {
    cache: &'a TokenCache<N>,
    namespace: &'a N,
    text: &'a str,
    parts: Vec<Part>,
    /// The coarse chunks, in order.
    coarse: Vec<Coarse>,
}

#[derive(Debug)]
struct Part {
    bytes: Range<usize>,
    ids: Option<Arc<[u32]>>,
}

/// A coarse chunk: known, or to be put together from these parts.
#[derive(Debug)]
enum Coarse {
    Known(SlotId),
    New(Range<usize>),
}

/// Indices of parts, and their ids.
type Encoded = Vec<(usize, Arc<[u32]>)>;

impl<N: Clone + Eq + Hash + Send + Sync> TokenCache<N> {
    /// A cache of at most `max_bytes`, bookkeeping included.
    #[must_use]
    pub fn new(tokenizer: Tokenizer, max_bytes: usize) -> Self {
        Self { tokenizer, store: RwLock::new(Store::new(max_bytes)) }
    }

    /// Looks up what of `text` was encoded before in `namespace`.
    pub fn find<'a>(&'a self, namespace: &'a N, text: &'a str) -> Lookup<'a, N> {
        let mut lookup = Lookup { cache: self, namespace, text, parts: Vec::new(), coarse: Vec::new() };
        lookup.walk(&self.store.read().unwrap_or_else(PoisonError::into_inner));
        lookup
    }

    /// Bytes that the cache holds, bookkeeping included.
    pub fn num_bytes(&self) -> usize {
        self.store.read().unwrap_or_else(PoisonError::into_inner).num_bytes()
    }

    /// Forgets what the namespaces that are meant have cached. O(chunks in the cache).
    pub fn clear(&self, is_meant: impl Fn(&N) -> bool) {
        self.store.write().unwrap_or_else(PoisonError::into_inner).clear(is_meant);
    }
}

// === impl Lookup ===

impl<N: Clone + Eq + Hash + Send + Sync> Lookup<'_, N> {
    /// Bytes of the text that have to be encoded.
    pub fn num_new_bytes(&self) -> usize {
        self.new_parts().map(|part| part.bytes.len()).sum()
    }

    /// How many threads are worth their while.
    pub fn num_useful_threads(&self) -> usize {
        (self.num_new_bytes() / MIN_BYTES_PER_THREAD).clamp(1, self.new_parts().count().max(1))
    }

    /// The ids of the text, as [`Tokenizer::encode`] gives them; encodes what is new on up to `num_threads` threads, this one
    /// included.
    ///
    /// # Errors
    /// If the tokenizer has no token for a part of the text.
    pub fn encode(mut self, add_special_tokens: bool, num_threads: usize) -> Result<Vec<u32>, TextError> {
        let tokenizer = &self.cache.tokenizer;
        let Some((before, after)) = tokenizer.around(add_special_tokens) else {
            return tokenizer.encode(self.text, add_special_tokens);
        };
        let is_new = self.parts.iter().map(|part| part.ids.is_none()).collect::<Vec<_>>();
        self.encode_new(num_threads.clamp(1, self.num_useful_threads()))?;
        let known = || self.parts.iter().filter_map(|part| part.ids.as_deref());
        let num_ids = known().map(<[u32]>::len).sum::<usize>();
        let mut ids = Vec::with_capacity(before.len() + num_ids + after.len() + ROOM);
        ids.extend_from_slice(before);
        known().for_each(|part| ids.extend_from_slice(part));
        ids.extend_from_slice(after);
        if is_new.contains(&true) {
            self.remember(&is_new);
        }
        Ok(ids)
    }

    fn new_parts(&self) -> impl Iterator<Item = &Part> {
        self.parts.iter().filter(|part| part.ids.is_none())
    }

    /// Cuts the text into parts, and fills in the ids of those that `store` has.
    fn walk(&mut self, store: &Store<N>) {
        let (cuts, text) = (self.cache.tokenizer.cuts(), self.text);
        let (mut at, mut previous) = (0, None);
        while at < text.len() {
            let followed = store.follow(previous, self.namespace, &text[at..]).filter(|&slot| {
                let end = at + store.text(slot).len();
                end == text.len() || cuts.is_cut(text, end)
            });
            let Some(end) =
                followed.map(|slot| at + store.text(slot).len()).or_else(|| COARSE.end(cuts, text, at))
            else {
                self.walk_fine(store, at..text.len());
                return;
            };
            let found = followed.or_else(|| store.get(self.namespace, &text[at..end]));
            match found {
                Some(slot) => {
                    self.parts.push(Part { bytes: at..end, ids: Some(store.ids(slot)) });
                    self.coarse.push(Coarse::Known(slot));
                    if let Some(previous) = previous {
                        store.link(previous, slot);
                    }
                }
                None => {
                    let first = self.parts.len();
                    self.walk_fine(store, at..end);
                    self.coarse.push(Coarse::New(first..self.parts.len()));
                }
            }
            (at, previous) = (end, found);
        }
    }

    fn walk_fine(&mut self, store: &Store<N>, range: Range<usize>) {
        let cuts = self.cache.tokenizer.cuts();
        let mut at = range.start;
        while at < range.end {
            let end = FINE.end(cuts, self.text, at).map_or(range.end, |end| end.min(range.end));
            let ids = store.get(self.namespace, &self.text[at..end]).map(|slot| store.ids(slot));
            self.parts.push(Part { bytes: at..end, ids });
            at = end;
        }
    }

    /// Encodes the parts that are not known.
    fn encode_new(&mut self, num_threads: usize) -> Result<(), TextError> {
        let new = (0..self.parts.len()).filter(|&index| self.parts[index].ids.is_none()).collect::<Vec<_>>();
        let num_taken = AtomicUsize::new(0);
        let work = || self.encode_next(&new, &num_taken);
        let encoded = std::thread::scope(|scope| {
            let others = (1..num_threads).map(|_| scope.spawn(work)).collect::<Vec<_>>();
            let mut encoded = work()?;
            for other in others {
                encoded.extend(other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
            }
            Ok::<Encoded, TextError>(encoded)
        })?;
        for (index, ids) in encoded {
            self.parts[index].ids = Some(ids);
        }
        Ok(())
    }

    /// One thread's share of the parts `new`: always the next one that none has taken.
    fn encode_next(&self, new: &[usize], num_taken: &AtomicUsize) -> Result<Encoded, TextError> {
        let mut encoded = Vec::new();
        while let Some(&index) = new.get(num_taken.fetch_add(1, Relaxed)) {
            let text = &self.text[self.parts[index].bytes.clone()];
            encoded.push((index, Arc::from(self.cache.tokenizer.encode(text, false)?)));
        }
        Ok(encoded)
    }

    /// Puts what was new into the store: fine chunks, the coarse ones that they make up, and which came after which. The lock
    /// is let go between coarse chunks, so that a long text holds nobody up.
    fn remember(&self, is_new: &[bool]) {
        let (mut previous, mut first_left) = (None, 0);
        for coarse in &self.coarse {
            let slot = match coarse {
                Coarse::Known(slot) => {
                    first_left += 1;
                    Some(*slot)
                }
                Coarse::New(parts) => {
                    first_left = parts.end;
                    self.write(|store| {
                        self.insert_fine(store, parts.clone(), is_new);
                        self.insert_coarse(store, &self.parts[parts.clone()])
                    })
                }
            };
            if let (Some(previous), Some(slot)) = (previous, slot) {
                self.write(|store| store.link(previous, slot));
            }
            previous = slot;
        }
        self.write(|store| self.insert_fine(store, first_left..self.parts.len(), is_new));
    }

    fn insert_fine(&self, store: &mut Store<N>, parts: Range<usize>, is_new: &[bool]) {
        for part in parts.filter(|&part| is_new[part]).map(|part| &self.parts[part]) {
            // The rest of a text ends in no cut: what comes after it may change its ids.
            if let Some(ids) = part.ids.as_ref().filter(|_| part.bytes.end < self.text.len()) {
                store.insert(self.namespace, &self.text[part.bytes.clone()], Arc::clone(ids));
            }
        }
    }

    fn insert_coarse(&self, store: &mut Store<N>, parts: &[Part]) -> Option<SlotId> {
        let bytes = parts.first()?.bytes.start..parts.last()?.bytes.end;
        let ids = parts.iter().filter_map(|part| part.ids.as_deref()).collect::<Vec<_>>().concat();
        store.insert(self.namespace, &self.text[bytes], Arc::from(ids))
    }

    fn write<T>(&self, change: impl FnOnce(&mut Store<N>) -> T) -> T {
        change(&mut self.cache.store.write().unwrap_or_else(PoisonError::into_inner))
    }
}
