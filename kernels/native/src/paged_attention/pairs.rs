//! The products of [`super::halves`] in vectors, a pair of each of 16 lanes at a time; and those of AVX-512 with BF16.
#![expect(unsafe_code, reason = "pointers that `halves.rs` vouches for")]
#![expect(unsafe_op_in_unsafe_fn, reason = "every operation here is one")]
#![expect(clippy::needless_range_loop, reason = "the indices are of registers")]

use std::{arch::x86_64::*, mem::transmute};

use super::{
    fast::{Scratch, Work},
    halves::{self, Products, STEP, TILE_BYTES, Tile},
    plan::{Item, KEY_TILE},
};
use crate::{
    Element,
    amx::{ROW_BYTES, ROWS},
    vector::LANES,
};

/// Queries at a time, with four columns; with two it is twice as many.
const QUERIES: usize = 4;

/// # Safety
/// As of [`halves::compute`]; the machine has AVX-512 with BF16.
#[target_feature(enable = "avx2,fma,avx512f,avx512vl,avx512bw,avx512dq,avx512bf16")]
pub(super) unsafe fn compute<Q: Element, K: Element>(
    work: &Work<'_, Q, K>,
    item: &Item,
    scratch: &mut Scratch,
) {
    halves::compute::<Pairs, Q, K>(work, item, scratch);
}

/// AVX-512 with BF16.
struct Pairs;

impl Products for Pairs {
    type Ready = ();

    #[inline(always)]
    unsafe fn begin() {}

    #[inline(always)]
    unsafe fn scores(tile: &Tile, num_queries: usize, query: *const u8, scores: *mut f32) {
        self::scores::<Self>(tile, num_queries, query, scores);
    }

    #[inline(always)]
    unsafe fn accumulate(tile: &Tile, num_queries: usize, weighted: *mut f32) {
        self::accumulate::<Self>(tile, num_queries, weighted);
    }
}

impl Dot for Pairs {
    type Sum = __m512;

    #[inline(always)]
    unsafe fn zero() -> __m512 {
        _mm512_setzero_ps()
    }

    #[inline(always)]
    unsafe fn add(sum: __m512, line: __m512i, pair: __m512i) -> __m512 {
        _mm512_dpbf16_ps(sum, transmute::<__m512i, __m512bh>(line), transmute::<__m512i, __m512bh>(pair))
    }

    #[inline(always)]
    unsafe fn score(sum: __m512, _tile: &Tile, _column: usize) -> __m512 {
        sum
    }

    #[inline(always)]
    unsafe fn resume(at: *const f32) -> __m512 {
        _mm512_loadu_ps(at)
    }

    #[inline(always)]
    unsafe fn save(sum: __m512, _tile: &Tile, _query: usize, at: *mut f32) {
        _mm512_storeu_ps(at, sum);
    }
}

/// How pairs are multiplied.
///
/// # Safety
/// Of every function: the processor has the instructions; pointers are good for a vector.
pub(super) trait Dot {
    /// Sums of 16 lanes.
    type Sum: Copy;

    unsafe fn zero() -> Self::Sum;
    /// Adds the products of two pairs, lane by lane.
    unsafe fn add(sum: Self::Sum, line: __m512i, pair: __m512i) -> Self::Sum;
    /// The scores of 16 keys, from `16 * column` on.
    unsafe fn score(sum: Self::Sum, tile: &Tile, column: usize) -> __m512;
    /// What weighted values are added to, if these are there already.
    unsafe fn resume(at: *const f32) -> Self::Sum;
    /// Leaves there what was there and the weighted values of a query of 16.
    unsafe fn save(sum: Self::Sum, tile: &Tile, query: usize, at: *mut f32);
}

/// As of [`Products::scores`].
#[inline(always)]
pub(super) unsafe fn scores<D: Dot>(tile: &Tile, num_queries: usize, query: *const u8, scores: *mut f32) {
    for first in (0..num_queries).step_by(QUERIES) {
        let query = query.add(first * tile.head_dim * 2);
        let mut sums = [[D::zero(); KEY_TILE / LANES]; QUERIES];
        for step in 0..tile.head_dim / STEP {
            let keys = tile.keys.add(step * KEY_TILE / LANES * TILE_BYTES);
            for pair in 0..STEP / 2 {
                let lines = keys.add(pair * ROW_BYTES);
                let queries = query.add(step * STEP * 2 + pair * 4);
                multiply::<D, _, _>(&mut sums, (lines, TILE_BYTES), (queries, tile.head_dim * 2));
            }
        }
        for row in 0..QUERIES {
            for column in 0..KEY_TILE / LANES {
                let to = scores.add((first + row) * KEY_TILE + column * LANES);
                _mm512_storeu_ps(to, D::score(sums[row][column], tile, column));
            }
        }
    }
}

/// As of [`Products::accumulate`].
#[inline(always)]
pub(super) unsafe fn accumulate<D: Dot>(tile: &Tile, num_queries: usize, weighted: *mut f32) {
    let columns = tile.head_dim / LANES;
    let mut column = 0;
    while column + 4 <= columns {
        for first in (0..num_queries).step_by(QUERIES) {
            accumulate_columns::<D, QUERIES, 4>(tile, weighted, first, column);
        }
        column += 4;
    }
    if column < columns {
        for first in (0..num_queries).step_by(2 * QUERIES) {
            accumulate_columns::<D, { 2 * QUERIES }, 2>(tile, weighted, first, column);
        }
    }
}

/// Some columns of the sums of some queries.
#[inline(always)]
unsafe fn accumulate_columns<D: Dot, const QUERIES: usize, const COLUMNS: usize>(
    tile: &Tile,
    weighted: *mut f32,
    first: usize,
    column: usize,
) {
    let at = |row: usize, c: usize| weighted.add((first + row) * tile.head_dim + (column + c) * LANES);
    let mut sums = [[D::zero(); COLUMNS]; QUERIES];
    for row in 0..QUERIES {
        for c in 0..COLUMNS {
            sums[row][c] = D::resume(at(row, c));
        }
    }
    let weights = tile.weights.cast_const().add(first * KEY_TILE * 2);
    for group in 0..KEY_TILE / 2 / ROWS {
        let values = tile.values.add((group * (tile.head_dim / LANES) + column) * TILE_BYTES);
        for pair in 0..ROWS {
            let weights = weights.add((group * ROWS + pair) * 4);
            multiply::<D, _, _>(
                &mut sums,
                (values.add(pair * ROW_BYTES), TILE_BYTES),
                (weights, KEY_TILE * 2),
            );
        }
    }
    for row in 0..QUERIES {
        for c in 0..COLUMNS {
            D::save(sums[row][c], tile, first + row, at(row, c));
        }
    }
}

/// Adds the products of a pair of each query with lines of pairs; both are some bytes apart.
#[inline(always)]
unsafe fn multiply<D: Dot, const QUERIES: usize, const COLUMNS: usize>(
    sums: &mut [[D::Sum; COLUMNS]; QUERIES],
    (lines, line_stride): (*const u8, usize),
    (pairs, pair_stride): (*const u8, usize),
) {
    let mut columns = [_mm512_setzero_si512(); COLUMNS];
    for c in 0..COLUMNS {
        columns[c] = _mm512_loadu_si512(lines.add(c * line_stride).cast());
    }
    for row in 0..QUERIES {
        let pair = _mm512_set1_epi32(pairs.add(row * pair_stride).cast::<i32>().read_unaligned());
        for c in 0..COLUMNS {
            sums[row][c] = D::add(sums[row][c], columns[c], pair);
        }
    }
}
