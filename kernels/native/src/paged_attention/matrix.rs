//! The products of [`super::halves`] on matrix tiles.
#![expect(unsafe_code, reason = "pointers that `halves.rs` vouches for")]
#![expect(unsafe_op_in_unsafe_fn, reason = "every operation here is one")]

use super::{
    fast::{Scratch, Work},
    halves::{self, Products, STEP, TILE_BYTES, Tile},
    plan::{Item, KEY_TILE},
};
use crate::{
    Element,
    amx::{self, ROW_BYTES, ROWS, Shapes, Tiles},
    vector::LANES,
};

/// # Safety
/// As of [`halves::compute`]; the machine has AVX-512 with BF16, and AMX.
#[target_feature(enable = "avx2,fma,avx512f,avx512vl,avx512bw,avx512dq,avx512bf16")]
pub(super) unsafe fn compute<Q: Element, K: Element>(
    work: &Work<'_, Q, K>,
    item: &Item,
    scratch: &mut Scratch,
) {
    halves::compute::<Matrix, Q, K>(work, item, scratch);
}

/// AMX with BF16.
struct Matrix;

impl Products for Matrix {
    type Ready = Tiles;

    #[inline(always)]
    unsafe fn begin() -> Tiles {
        Tiles::new(&Shapes::new([(ROWS, ROW_BYTES); 8]))
    }

    #[inline(always)]
    unsafe fn scores(tile: &Tile, _num_queries: usize, query: *const u8, scores: *mut f32) {
        amx::zero::<0>();
        amx::zero::<1>();
        amx::zero::<2>();
        amx::zero::<3>();
        for step in 0..tile.head_dim / STEP {
            let keys = tile.keys.add(step * 4 * TILE_BYTES);
            amx::load::<4>(query.add(step * ROW_BYTES), tile.head_dim * 2);
            amx::load::<6>(keys, ROW_BYTES);
            amx::multiply_bf16::<0, 4, 6>();
            amx::load::<7>(keys.add(TILE_BYTES), ROW_BYTES);
            amx::multiply_bf16::<1, 4, 7>();
            amx::load::<6>(keys.add(2 * TILE_BYTES), ROW_BYTES);
            amx::multiply_bf16::<2, 4, 6>();
            amx::load::<7>(keys.add(3 * TILE_BYTES), ROW_BYTES);
            amx::multiply_bf16::<3, 4, 7>();
        }
        amx::store::<0>(scores.cast(), KEY_TILE * 4);
        amx::store::<1>(scores.add(LANES).cast(), KEY_TILE * 4);
        amx::store::<2>(scores.add(2 * LANES).cast(), KEY_TILE * 4);
        amx::store::<3>(scores.add(3 * LANES).cast(), KEY_TILE * 4);
    }

    #[inline(always)]
    unsafe fn accumulate(tile: &Tile, _num_queries: usize, weighted: *mut f32) {
        let (columns, stride) = (tile.head_dim / LANES, tile.head_dim * 4);
        amx::load::<4>(tile.weights, KEY_TILE * 2);
        amx::load::<5>(tile.weights.add(ROW_BYTES), KEY_TILE * 2);
        for column in (0..columns).step_by(2) {
            let sums = weighted.add(column * LANES);
            let values = tile.values.add(column * TILE_BYTES);
            amx::load::<0>(sums.cast(), stride);
            amx::load::<6>(values, ROW_BYTES);
            amx::multiply_bf16::<0, 4, 6>();
            amx::load::<1>(sums.add(LANES).cast(), stride);
            amx::load::<7>(values.add(TILE_BYTES), ROW_BYTES);
            amx::multiply_bf16::<1, 4, 7>();
            amx::load::<6>(values.add(columns * TILE_BYTES), ROW_BYTES);
            amx::multiply_bf16::<0, 5, 6>();
            amx::load::<7>(values.add((columns + 1) * TILE_BYTES), ROW_BYTES);
            amx::multiply_bf16::<1, 5, 7>();
            amx::store::<0>(sums.cast(), stride);
            amx::store::<1>(sums.add(LANES).cast(), stride);
        }
    }
}
