//! The products of [`super::halves`] in vectors: AVX-512 with BF16, a pair of each of 16 lanes at a time.
#![expect(unsafe_code, reason = "pointers that `halves.rs` vouches for")]
#![expect(unsafe_op_in_unsafe_fn, reason = "every operation here is one")]
#![expect(clippy::needless_range_loop, reason = "the indices are of registers")]

use std::{arch::x86_64::*, mem::transmute};

use super::{
    halves::{Products, STEP, TILE_BYTES, Tile},
    plan::KEY_TILE,
};
use crate::{
    amx::{ROW_BYTES, ROWS},
    vector::LANES,
};

/// Queries at a time.
const QUERIES: usize = 4;

/// AVX-512 with BF16.
pub(super) struct Pairs;

impl Products for Pairs {
    type Ready = ();

    #[inline(always)]
    unsafe fn begin() {}

    #[inline(always)]
    unsafe fn scores(tile: &Tile, query: *const u8, scores: *mut f32) {
        for first in (0..ROWS).step_by(QUERIES) {
            let query = query.add(first * tile.head_dim * 2);
            let mut sums = [[_mm512_setzero_ps(); KEY_TILE / LANES]; QUERIES];
            for step in 0..tile.head_dim / STEP {
                let keys = tile.keys.add(step * KEY_TILE / LANES * TILE_BYTES);
                for pair in 0..STEP / 2 {
                    let lines = keys.add(pair * ROW_BYTES);
                    let queries = query.add(step * STEP * 2 + pair * 4);
                    multiply(&mut sums, (lines, TILE_BYTES), (queries, tile.head_dim * 2));
                }
            }
            for row in 0..QUERIES {
                for column in 0..KEY_TILE / LANES {
                    let to = scores.add((first + row) * KEY_TILE + column * LANES);
                    _mm512_storeu_ps(to, sums[row][column]);
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn accumulate(tile: &Tile, weighted: *mut f32) {
        for first in (0..ROWS).step_by(QUERIES) {
            let columns = tile.head_dim / LANES;
            let mut column = 0;
            while column + 4 <= columns {
                accumulate::<4>(tile, weighted, first, column);
                column += 4;
            }
            if column < columns {
                accumulate::<2>(tile, weighted, first, column);
            }
        }
    }
}

/// Some columns of the sums of some queries.
#[inline(always)]
unsafe fn accumulate<const COLUMNS: usize>(tile: &Tile, weighted: *mut f32, first: usize, column: usize) {
    let at = |row: usize, c: usize| weighted.add((first + row) * tile.head_dim + (column + c) * LANES);
    let mut sums = [[_mm512_setzero_ps(); COLUMNS]; QUERIES];
    for row in 0..QUERIES {
        for c in 0..COLUMNS {
            sums[row][c] = _mm512_loadu_ps(at(row, c));
        }
    }
    let weights = tile.weights.cast_const().add(first * KEY_TILE * 2);
    for pair in 0..KEY_TILE / 2 {
        let group = pair / ROWS * (tile.head_dim / LANES) + column;
        let lines = tile.values.add(group * TILE_BYTES + pair % ROWS * ROW_BYTES);
        multiply(&mut sums, (lines, TILE_BYTES), (weights.add(pair * 4), KEY_TILE * 2));
    }
    for row in 0..QUERIES {
        for c in 0..COLUMNS {
            _mm512_storeu_ps(at(row, c), sums[row][c]);
        }
    }
}

/// Adds the products of a pair of each query with lines of pairs; both are some bytes apart.
#[inline(always)]
unsafe fn multiply<const COLUMNS: usize>(
    sums: &mut [[__m512; COLUMNS]; QUERIES],
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
            let (line, pair) =
                (transmute::<__m512i, __m512bh>(columns[c]), transmute::<__m512i, __m512bh>(pair));
            sums[row][c] = _mm512_dpbf16_ps(sums[row][c], line, pair);
        }
    }
}
