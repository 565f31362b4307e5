//! Few queries per key: keys and values are read once, where they lie, all heads of a token after one another, so that the
//! memory is read as it is laid out and nothing but its bandwidth counts.
#![expect(unsafe_code, reason = "inner loops over memory that was checked beforehand")]
#![expect(clippy::needless_range_loop, reason = "the indices are of lanes")]

use std::mem::MaybeUninit;

use super::{
    fast::{Scratch, State, Work, padded},
    plan::{Item, KEY_TILE},
    tile::widen,
};
use crate::{
    Element,
    vector::{LANES, Vector},
};

/// Computes an item of any number of key-value heads, with at most `STREAM_VECTORS` query vectors each. `following` is the
/// item that this thread will probably compute next.
#[inline(always)]
pub(super) unsafe fn compute<V: Vector, Q: Element, K: Element>(
    work: &Work<'_, Q, K>,
    item: &Item,
    following: Option<&Item>,
    scratch: &mut Scratch,
) {
    // SAFETY: the caller's promise.
    unsafe {
        match item.num_vectors {
            1 => compute_vectors::<V, Q, K, 1>(work, item, following, scratch),
            2 => compute_vectors::<V, Q, K, 2>(work, item, following, scratch),
            3 => compute_vectors::<V, Q, K, 3>(work, item, following, scratch),
            _ => compute_vectors::<V, Q, K, 4>(work, item, following, scratch),
        }
    }
}

#[inline(always)]
unsafe fn compute_vectors<V: Vector, Q: Element, K: Element, const N: usize>(
    work: &Work<'_, Q, K>,
    item: &Item,
    following: Option<&Item>,
    scratch: &mut Scratch,
) {
    let heads = work.call.heads;
    let padded = padded::<K>(heads.head_dim);
    let total_vectors = item.kv_heads.len() * N;
    let [query, weighted, totals, references, scores, tail] = scratch.split([
        total_vectors * padded,
        total_vectors * padded,
        total_vectors * LANES,
        total_vectors.next_multiple_of(LANES),
        N * KEY_TILE,
        padded,
    ]);
    let all = State { weighted, totals, references };
    let mut sights = Vec::with_capacity(total_vectors);
    let mut next_cells = [0; KEY_TILE];
    let row = work.members(item)[0].row;
    // SAFETY: the lengths above; the caller's promise about `V` and the batch.
    unsafe {
        let tile = |begin: usize| begin..(begin + KEY_TILE).min(item.keys.end);
        if !item.keys.is_empty() {
            let first = tile(item.keys.start);
            work.batch.cells(row, first.clone(), &mut next_cells);
            // Asked for all at once, the first tile is there in a fraction of the time that its lines would take in turn.
            let (from, to) = (item.kv_heads.start * heads.head_dim, item.kv_heads.end * heads.head_dim);
            for cell in &next_cells[..first.len()] {
                let cell = cell * heads.num_kv_heads * heads.head_dim;
                for cache in [work.call.key_cache, work.call.value_cache] {
                    for at in (from..to).step_by(64 / size_of::<K>()) {
                        V::prefetch(cache.as_ptr().add(cell + at).cast());
                    }
                }
            }
        }
        all.clear(total_vectors, padded);
        for (index, kv_head) in item.kv_heads.clone().enumerate() {
            work.gather(item, kv_head, query.add(index * N * padded), &mut sights);
        }
        for begin in item.keys.clone().step_by(KEY_TILE) {
            let range = tile(begin);
            let cells = next_cells;
            if range.end < item.keys.end {
                work.batch.cells(row, tile(range.end), &mut next_cells);
            } else if let Some(following) = following {
                let begin = following.keys.start;
                let first = begin..(begin + KEY_TILE).min(following.keys.end);
                work.batch.cells(work.members(following)[0].row, first, &mut next_cells);
            }
            for (index, kv_head) in item.kv_heads.clone().enumerate() {
                let state = all.skip(index * N, padded);
                let at = |cell: usize| (cell * heads.num_kv_heads + kv_head) * heads.head_dim;
                let head = Head { head_dim: heads.head_dim, padded, tail };
                let keys = work.call.key_cache.as_ptr();
                head.scores::<V, K, N>(
                    query.add(index * N * padded),
                    |key| keys.add(at(cells[key])),
                    |key| keys.add(at(next_cells[key])),
                    scores,
                );
                for (vector, &sight) in sights.iter().take(N).enumerate() {
                    let scores = scores.add(vector * KEY_TILE);
                    let is_whole = sight.start <= range.start && sight.end >= range.start + KEY_TILE;
                    if !is_whole || range.len() < KEY_TILE || work.call.soft_cap.is_some() {
                        work.adjust::<V>(scores, 1.0, sight, &range);
                    }
                    state.softmax::<V>(vector, scores, work.factor(1.0), padded);
                }
                let values = work.call.value_cache.as_ptr();
                head.accumulate::<V, K, N>(
                    scores,
                    |key| values.add(at(cells[key])),
                    |key| values.add(at(next_cells[key])),
                    range.len(),
                    state.weighted,
                );
            }
        }
        for (index, kv_head) in item.kv_heads.clone().enumerate() {
            work.finish::<V>(item, kv_head, &all.skip(index * N, padded));
        }
    }
}

/// One key-value head.
struct Head {
    head_dim: usize,
    padded: usize,
    /// Room for a widened head whose length is not whole vectors.
    tail: *mut f32,
}

impl Head {
    /// The chunk of a key or value that begins at `element`: one vector, or two with the halves of words.
    #[inline(always)]
    unsafe fn chunk<V: Vector, K: Element>(&self, from: *const K, element: usize) -> (V, V) {
        // SAFETY: `from` has `head_dim` elements, `tail` `padded`; the caller fills it where they differ.
        unsafe {
            if self.head_dim != self.padded {
                (
                    V::load(self.tail.add(element)),
                    V::load(self.tail.add(element + if K::IS_HALF { LANES } else { 0 })),
                )
            } else if K::IS_HALF {
                V::load(from.add(element).cast::<f32>()).halves()
            } else {
                let x = V::load(from.add(element).cast::<f32>());
                (x, x)
            }
        }
    }

    #[inline(always)]
    unsafe fn prepare<V: Vector, K: Element>(&self, from: *const K) {
        if self.head_dim != self.padded {
            // SAFETY: as above.
            unsafe { widen::<V, K>(from, self.tail, self.head_dim, self.padded) };
        }
    }

    /// Has a key or value of the next tile brought nearer: blocks lie anywhere, so that the processor cannot foresee it.
    #[inline(always)]
    unsafe fn prefetch<V: Vector, K: Element>(&self, next: *const K) {
        for at in (0..self.head_dim * size_of::<K>()).step_by(64) {
            // SAFETY: nothing is read.
            unsafe { V::prefetch(next.cast::<u8>().wrapping_add(at)) };
        }
    }

    /// `[N, KEY_TILE]` scores.
    #[inline(always)]
    unsafe fn scores<V: Vector, K: Element, const N: usize>(
        &self,
        query: *const f32,
        key: impl Fn(usize) -> *const K,
        next: impl Fn(usize) -> *const K,
        scores: *mut f32,
    ) {
        let chunk_len = if K::IS_HALF { 2 * LANES } else { LANES };
        // SAFETY: the lengths in `compute`.
        unsafe {
            for column in (0..KEY_TILE).step_by(LANES) {
                let mut rows = [[MaybeUninit::<V>::uninit(); LANES]; N];
                for lane in 0..LANES {
                    let from = key(column + lane);
                    self.prefetch::<V, K>(next(column + lane));
                    self.prepare::<V, K>(from);
                    let mut sums = [V::splat(0.0); N];
                    for element in (0..self.padded).step_by(chunk_len) {
                        let (low, high) = self.chunk::<V, K>(from, element);
                        for (vector, sum) in sums.iter_mut().enumerate() {
                            let query = query.add(vector * self.padded + element);
                            *sum = low.fma(V::load(query), *sum);
                            if K::IS_HALF {
                                *sum = high.fma(V::load(query.add(LANES)), *sum);
                            }
                        }
                    }
                    for vector in 0..N {
                        rows[vector][lane].write(sums[vector]);
                    }
                }
                for (vector, rows) in rows.iter().enumerate() {
                    // Every lane has been written.
                    V::sums(rows.as_ptr().cast::<[V; LANES]>().read())
                        .store(scores.add(vector * KEY_TILE + column));
                }
            }
        }
    }

    /// Adds weights · values.
    #[inline(always)]
    unsafe fn accumulate<V: Vector, K: Element, const N: usize>(
        &self,
        weights: *const f32,
        value: impl Fn(usize) -> *const K,
        next: impl Fn(usize) -> *const K,
        len: usize,
        weighted: *mut f32,
    ) {
        // SAFETY: the lengths in `compute`.
        unsafe {
            let chunk_len = if K::IS_HALF { 2 * LANES } else { LANES };
            let step = 2 * LANES;
            for element in (0..self.padded).step_by(step) {
                // Two vectors of each query's sum: the halves of one chunk, or two chunks.
                let has_second = element + LANES < self.padded;
                let at = |vector: usize, second: usize| {
                    weighted.add(vector * self.padded + element + second * LANES)
                };
                let second = usize::from(has_second);
                let mut sums = [[V::splat(0.0); 2]; N];
                for (vector, sums) in sums.iter_mut().enumerate() {
                    *sums = [V::load(at(vector, 0)), V::load(at(vector, second))];
                }
                for key in 0..len {
                    let from = value(key);
                    if element == 0 {
                        self.prefetch::<V, K>(next(key));
                    }
                    self.prepare::<V, K>(from);
                    let (low, mut high) = self.chunk::<V, K>(from, element);
                    if !K::IS_HALF && has_second {
                        high = self.chunk::<V, K>(from, element + chunk_len).0;
                    }
                    for (vector, sums) in sums.iter_mut().enumerate() {
                        let weight = V::splat(*weights.add(vector * KEY_TILE + key));
                        sums[0] = low.fma(weight, sums[0]);
                        sums[1] = high.fma(weight, sums[1]);
                    }
                }
                for (vector, sums) in sums.iter().enumerate() {
                    if has_second {
                        sums[1].store(at(vector, 1));
                    }
                    sums[0].store(at(vector, 0));
                }
            }
        }
    }
}
