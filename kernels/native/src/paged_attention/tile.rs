//! Many queries per key: keys and values are packed a tile at a time, widened and the keys transposed, and then serve all
//! queries of the item.
//!
//! ```text
//!              keys: begin ........ tile of 64 ........ end
//!   queries    ┌────────────────────────────────────────┐
//!   × group    │ 6 at a time: scores = Q Kᵀ → 2^ → · V  │      scores [6, 64] stay in the first-level cache,
//!              └────────────────────────────────────────┘      packed tiles too
//! ```
#![expect(unsafe_code, reason = "inner loops over memory that was checked beforehand")]

use super::{
    fast::{Scratch, Sight, State, Work, padded, place},
    plan::{Item, KEY_TILE},
};
use crate::{
    Element,
    vector::{LANES, Vector},
};

/// Query vectors that are multiplied at a time: with `Vector::COLUMNS`, as many sums as there are registers.
const VECTORS: usize = 6;

/// Computes an item.
#[inline(always)]
pub(super) unsafe fn compute<V: Vector, Q: Element, K: Element>(
    work: &Work<'_, Q, K>,
    item: &Item,
    scratch: &mut Scratch,
) {
    let padded = padded::<K>(work.call.heads.head_dim);
    let num_vectors = item.num_vectors.next_multiple_of(2);
    let total_vectors = item.kv_heads.len() * num_vectors;
    let [query, weighted, totals, references, keys, values, scores] = scratch.split([
        total_vectors * padded,
        total_vectors * padded,
        total_vectors * LANES,
        total_vectors.next_multiple_of(LANES),
        padded * KEY_TILE,
        KEY_TILE * padded,
        VECTORS * KEY_TILE,
    ]);
    let all = State { weighted, totals, references };
    let mut sights = Vec::with_capacity(num_vectors);
    let mut cells = [0; KEY_TILE];
    let row = work.members(item)[0].row;
    // SAFETY: the lengths above; the caller's promise about `V` and the batch.
    unsafe {
        all.clear(total_vectors, padded);
        for (index, kv_head) in item.kv_heads.clone().enumerate() {
            let query = query.add(index * num_vectors * padded);
            sights.clear();
            work.gather(item, kv_head, query, &mut sights);
            if num_vectors > item.num_vectors {
                // The odd one out computes what the last one does, on zeros.
                query.add(item.num_vectors * padded).write_bytes(0, padded);
                sights.push(sights[item.num_vectors - 1]);
            }
        }
        for begin in item.keys.clone().step_by(KEY_TILE) {
            let range = begin..(begin + KEY_TILE).min(item.keys.end);
            work.batch.cells(row, range.clone(), &mut cells);
            for (index, kv_head) in item.kv_heads.clone().enumerate() {
                let state = all.skip(index * num_vectors, padded);
                let query = query.add(index * num_vectors * padded);
                pack_keys::<V, K>(work, kv_head, &cells, keys, padded);
                pack_values::<V, K>(work, kv_head, &cells[..range.len()], values, padded);
                let tile = Tile { keys, values, scores, len: range.len(), padded };
                for first in (0..num_vectors).step_by(VECTORS) {
                    let count = VECTORS.min(num_vectors - first);
                    let sights = &sights[first..first + count];
                    if !sights.iter().any(|sight| sight.meets(&range)) {
                        continue;
                    }
                    let query = query.add(first * padded);
                    match count {
                        6 => tile.scores::<V, 6>(query),
                        4 => tile.scores::<V, 4>(query),
                        _ => tile.scores::<V, 2>(query),
                    }
                    let is_partial =
                        |sight: &Sight| sight.start > range.start || sight.end < range.start + KEY_TILE;
                    let is_partial = range.len() < KEY_TILE || sights.iter().any(is_partial);
                    for (vector, sight) in sights.iter().enumerate() {
                        let scores = scores.add(vector * KEY_TILE);
                        if is_partial || work.call.soft_cap.is_some() {
                            work.adjust::<V>(scores, 1.0, *sight, &range);
                        }
                        state.softmax::<V>(first + vector, scores, work.factor(1.0), padded);
                    }
                    let weighted = state.weighted.add(first * padded);
                    match count {
                        6 => tile.accumulate::<V, 6>(weighted),
                        4 => tile.accumulate::<V, 4>(weighted),
                        _ => tile.accumulate::<V, 2>(weighted),
                    }
                }
            }
        }
        for (index, kv_head) in item.kv_heads.clone().enumerate() {
            work.finish::<V>(item, kv_head, &all.skip(index * num_vectors, padded));
        }
    }
}

/// Packed keys `[padded, KEY_TILE]` and values `[KEY_TILE, padded]`, and room for the scores of some vectors.
#[derive(Clone, Copy)]
struct Tile {
    keys: *const f32,
    values: *const f32,
    scores: *mut f32,
    len: usize,
    padded: usize,
}

impl Tile {
    /// `R` rows of scores.
    #[inline(always)]
    unsafe fn scores<V: Vector, const R: usize>(&self, query: *const f32) {
        // SAFETY: the lengths in `compute`.
        unsafe {
            let mut column = 0;
            while column < KEY_TILE {
                if V::COLUMNS == 4 {
                    self.score_block::<V, R, 4>(query, column);
                } else {
                    self.score_block::<V, R, 1>(query, column);
                }
                column += V::COLUMNS * LANES;
            }
        }
    }

    #[inline(always)]
    unsafe fn score_block<V: Vector, const R: usize, const C: usize>(
        &self,
        query: *const f32,
        column: usize,
    ) {
        // SAFETY: as above.
        unsafe {
            let mut sums = [[V::splat(0.0); C]; R];
            let mut keys = self.keys.add(column);
            for element in 0..self.padded {
                let columns = load_columns::<V, C>(keys);
                for (r, sums) in sums.iter_mut().enumerate() {
                    let q = V::splat(*query.add(r * self.padded + element));
                    for c in 0..C {
                        sums[c] = columns[c].fma(q, sums[c]);
                    }
                }
                keys = keys.add(KEY_TILE);
            }
            for (r, sums) in sums.iter().enumerate() {
                for (c, sum) in sums.iter().enumerate() {
                    sum.store(self.scores.add(r * KEY_TILE + column + c * LANES));
                }
            }
        }
    }

    /// Adds weights · values for `R` vectors.
    #[inline(always)]
    unsafe fn accumulate<V: Vector, const R: usize>(&self, weighted: *mut f32) {
        // SAFETY: as above.
        unsafe {
            let num_columns = self.padded / LANES;
            let mut column = 0;
            while V::COLUMNS >= 4 && column + 4 <= num_columns {
                self.accumulate_block::<V, R, 4>(weighted, column);
                column += 4;
            }
            while V::COLUMNS >= 2 && column + 2 <= num_columns {
                self.accumulate_block::<V, R, 2>(weighted, column);
                column += 2;
            }
            while column < num_columns {
                self.accumulate_block::<V, R, 1>(weighted, column);
                column += 1;
            }
        }
    }

    #[inline(always)]
    unsafe fn accumulate_block<V: Vector, const R: usize, const C: usize>(
        &self,
        weighted: *mut f32,
        column: usize,
    ) {
        // SAFETY: as above.
        unsafe {
            let at = |r: usize, c: usize| weighted.add(r * self.padded + (column + c) * LANES);
            let mut sums = [[V::splat(0.0); C]; R];
            for (r, sums) in sums.iter_mut().enumerate() {
                *sums = load_columns::<V, C>(at(r, 0));
            }
            let mut values = self.values.add(column * LANES);
            for key in 0..self.len {
                let columns = load_columns::<V, C>(values);
                for (r, sums) in sums.iter_mut().enumerate() {
                    let weight = V::splat(*self.scores.add(r * KEY_TILE + key));
                    for c in 0..C {
                        sums[c] = columns[c].fma(weight, sums[c]);
                    }
                }
                values = values.add(self.padded);
            }
            for (r, sums) in sums.iter().enumerate() {
                for (c, sum) in sums.iter().enumerate() {
                    sum.store(at(r, c));
                }
            }
        }
    }
}

/// A loop, not `array::from_fn`: what that calls might not be inlined, and then be compiled for the baseline.
#[inline(always)]
unsafe fn load_columns<V: Vector, const C: usize>(from: *const f32) -> [V; C] {
    // SAFETY: the caller's promise.
    unsafe {
        let mut columns = [V::splat(0.0); C];
        for (c, column) in columns.iter_mut().enumerate() {
            *column = V::load(from.add(c * LANES));
        }
        columns
    }
}

/// The keys in `cells`, widened and transposed: `[padded, KEY_TILE]`, elements in the order of [`place`].
#[inline(always)]
unsafe fn pack_keys<V: Vector, K: Element>(
    work: &Work<'_, impl Element, K>,
    kv_head: usize,
    cells: &[usize; KEY_TILE],
    into: *mut f32,
    padded: usize,
) {
    let heads = work.call.heads;
    let key = |column: usize| {
        let at = (cells[column] * heads.num_kv_heads + kv_head) * heads.head_dim;
        // SAFETY: cells were checked against the cache.
        unsafe { work.call.key_cache.as_ptr().add(at) }
    };
    let chunk_len = if K::IS_HALF { 2 * LANES } else { LANES };
    let whole = heads.head_dim - heads.head_dim % chunk_len;
    // SAFETY: as above, and the lengths in `compute`.
    unsafe {
        for column in (0..KEY_TILE).step_by(LANES) {
            for chunk in (0..whole).step_by(chunk_len) {
                let mut rows = [V::splat(0.0); LANES];
                for (lane, row) in rows.iter_mut().enumerate() {
                    *row = V::load(key(column + lane).add(chunk).cast::<f32>());
                }
                V::transpose(&mut rows);
                for (element, row) in rows.into_iter().enumerate() {
                    let into = into.add((chunk + element) * KEY_TILE + column);
                    if K::IS_HALF {
                        let (low, high) = row.halves();
                        low.store(into);
                        high.store(into.add(LANES * KEY_TILE));
                    } else {
                        row.store(into);
                    }
                }
            }
        }
        for element in whole..padded {
            for column in 0..KEY_TILE {
                let x = if element < heads.head_dim { (*key(column).add(element)).widen() } else { 0.0 };
                let row = place::<K>(element);
                into.add(row * KEY_TILE + column).write(x);
            }
        }
    }
}

/// The values in `cells`, widened: `[cells, padded]`, elements in the order of [`place`].
#[inline(always)]
unsafe fn pack_values<V: Vector, K: Element>(
    work: &Work<'_, impl Element, K>,
    kv_head: usize,
    cells: &[usize],
    into: *mut f32,
    padded: usize,
) {
    let heads = work.call.heads;
    for (index, cell) in cells.iter().enumerate() {
        let at = (cell * heads.num_kv_heads + kv_head) * heads.head_dim;
        // SAFETY: cells were checked against the cache; the lengths in `compute`.
        unsafe {
            widen::<V, K>(
                work.call.value_cache.as_ptr().add(at),
                into.add(index * padded),
                heads.head_dim,
                padded,
            )
        };
    }
}

/// One head's elements, widened, in the order of [`place`], with zeros after the last.
#[inline(always)]
pub(super) unsafe fn widen<V: Vector, K: Element>(
    from: *const K,
    into: *mut f32,
    head_dim: usize,
    padded: usize,
) {
    let chunk_len = if K::IS_HALF { 2 * LANES } else { LANES };
    let whole = head_dim - head_dim % chunk_len;
    // SAFETY: `from` has `head_dim` elements, `into` room for `padded`.
    unsafe {
        for chunk in (0..whole).step_by(chunk_len) {
            let words = V::load(from.add(chunk).cast::<f32>());
            if K::IS_HALF {
                let (low, high) = words.halves();
                low.store(into.add(chunk));
                high.store(into.add(chunk + LANES));
            } else {
                words.store(into.add(chunk));
            }
        }
        for element in whole..padded {
            if element < head_dim {
                into.add(place::<K>(element)).write((*from.add(element)).widen());
            } else {
                into.add(place::<K>(element)).write(0.0);
            }
        }
    }
}
