//! The products of [`super::halves`] in integers of 16 bits: AVX-512 with VNNI, whose `vpdpwssd` multiplies two of them in
//! the time in which `vfmadd` multiplies one float. More exact than bf16, and for processors on which pairs of bf16 are slow.
//!
//! What is multiplied is scaled so that no sum leaves 32 bits:
//!
//! - a query and a key to a length of [`ONE`] each: no product of such is larger than its square (Cauchy and Schwarz);
//! - the weights of a query to a sum of [`ONE`], the values of a tile to a largest of it.
//!
//! The parts that bf16 has of a number are kept of all that is not 2^7 times smaller than the largest beside it.
#![expect(unsafe_code, reason = "pointers that `halves.rs` vouches for")]
#![expect(unsafe_op_in_unsafe_fn, reason = "every operation here is one")]

use std::arch::x86_64::*;

use super::{
    fast::{Scratch, Work},
    halves::{self, Products, STEP, TILE_BYTES, Tile, exp2},
    pairs::{self, Dot},
    plan::{Item, KEY_TILE},
};
use crate::{
    Element,
    amx::{ROW_BYTES, ROWS},
    int16::{ONE, dot},
    vector::{Avx512, LANES, Vector},
};

/// What has no length has this one. What is no number remains none: `max` gives its second operand then.
const LEAST: f32 = 1e-20;

/// # Safety
/// As of [`halves::compute`]; the machine has AVX-512 with VNNI.
#[target_feature(enable = "avx2,fma,avx512f,avx512vl,avx512bw,avx512dq,avx512vnni")]
pub(super) unsafe fn compute<Q: Element, K: Element>(
    work: &Work<'_, Q, K>,
    item: &Item,
    scratch: &mut Scratch,
) {
    halves::compute::<Int16, Q, K>(work, item, scratch);
}

/// AVX-512 with VNNI.
struct Int16;

impl Products for Int16 {
    type Ready = ();

    #[inline(always)]
    unsafe fn begin() {}

    #[inline(always)]
    unsafe fn query(query: *mut u8, head_dim: usize) -> f32 {
        let mut squares = _mm512_setzero_ps();
        for step in 0..head_dim / STEP {
            squares = add_squares(squares, query.add(step * ROW_BYTES));
        }
        let length = at_least(_mm512_reduce_add_ps(squares).sqrt());
        for step in 0..head_dim / STEP {
            let at = query.add(step * ROW_BYTES);
            to_integers(at, _mm512_set1_ps(ONE / length));
        }
        length / ONE
    }

    #[inline(always)]
    unsafe fn keys_and_values(tile: &Tile) {
        let lines = tile.head_dim / 2;
        for column in 0..KEY_TILE / LANES {
            let at = |line: usize| {
                let group = line / ROWS * (KEY_TILE / LANES) + column;
                tile.keys.add(group * TILE_BYTES + line % ROWS * ROW_BYTES)
            };
            let mut squares = [_mm512_setzero_ps(); 2];
            for line in (0..lines).step_by(2) {
                squares[0] = add_squares(squares[0], at(line));
                squares[1] = add_squares(squares[1], at(line + 1));
            }
            let lengths = _mm512_sqrt_ps(_mm512_add_ps(squares[0], squares[1]));
            let lengths = _mm512_max_ps(_mm512_set1_ps(LEAST), lengths);
            let scales = _mm512_div_ps(_mm512_set1_ps(ONE), lengths);
            for line in 0..lines {
                to_integers(at(line), scales);
            }
            let units = _mm512_mul_ps(lengths, _mm512_set1_ps(1.0 / ONE));
            _mm512_storeu_ps(tile.key_units.add(column * LANES), units);
        }
        let lines = KEY_TILE / 2 * tile.head_dim / LANES;
        let magnitude = _mm512_set1_epi16(0x7FFF);
        let mut largest = _mm512_setzero_si512();
        for line in 0..lines {
            let pairs = _mm512_loadu_si512(tile.values.add(line * ROW_BYTES).cast());
            largest = _mm512_max_epu16(largest, _mm512_and_si512(pairs, magnitude));
        }
        // Positive floats are in the order of their bits.
        let upper = _mm512_slli_epi32::<16>(largest);
        let largest = f32::from_bits(_mm512_reduce_max_epu32(_mm512_max_epu32(upper, largest)));
        let largest = at_least(largest);
        for line in 0..lines {
            to_integers(tile.values.add(line * ROW_BYTES), _mm512_set1_ps(ONE / largest));
        }
        tile.value_unit.write(largest / ONE);
    }

    #[inline(always)]
    unsafe fn scores(tile: &Tile, num_queries: usize, query: *const u8, scores: *mut f32) {
        pairs::scores::<Self>(tile, num_queries, query, scores);
    }

    #[inline(always)]
    unsafe fn weights(
        tile: &Tile,
        query: usize,
        exponents: [Avx512; KEY_TILE / LANES],
        total: *mut f32,
        scores: *mut f32,
    ) {
        let mut sum = _mm512_setzero_ps();
        for (column, exponent) in exponents.into_iter().enumerate() {
            let weight = exp2(exponent.0);
            _mm512_storeu_ps(scores.add(column * LANES), weight);
            sum = _mm512_add_ps(sum, weight);
        }
        _mm512_storeu_ps(tile.weight_sums.add(query * LANES), sum);
        _mm512_storeu_ps(total, _mm512_add_ps(_mm512_loadu_ps(total), sum));
    }

    #[inline(always)]
    unsafe fn round(tile: &Tile, num_queries: usize, scores: *const f32) {
        let mut sums = [Avx512::splat(0.0); ROWS];
        for (query, sum) in sums.iter_mut().enumerate() {
            *sum = Avx512::load(tile.weight_sums.add(query * LANES));
        }
        let sums = _mm512_max_ps(_mm512_set1_ps(LEAST), Avx512::sums(sums).0);
        _mm512_storeu_ps(tile.weight_units, _mm512_mul_ps(sums, _mm512_set1_ps(1.0 / ONE)));
        let scales = tile.weight_sums;
        _mm512_storeu_ps(scales, _mm512_div_ps(_mm512_set1_ps(ONE), sums));
        // They are joined within quarters of a register, which are then put in order.
        let order = _mm512_set_epi64(7, 5, 3, 1, 6, 4, 2, 0);
        for query in 0..num_queries {
            let scale = _mm512_set1_ps(*scales.add(query));
            for half in 0..2 {
                let weights = scores.add(query * KEY_TILE + half * 2 * LANES);
                let a = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(weights), scale));
                let b = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(weights.add(LANES)), scale));
                let both = _mm512_permutexvar_epi64(order, _mm512_packs_epi32(a, b));
                let into = tile.weights.add(query * KEY_TILE * 2 + half * ROW_BYTES);
                _mm512_storeu_si512(into.cast(), both);
            }
        }
    }

    #[inline(always)]
    unsafe fn accumulate(tile: &Tile, num_queries: usize, weighted: *mut f32) {
        pairs::accumulate::<Self>(tile, num_queries, weighted);
    }
}

impl Dot for Int16 {
    type Sum = __m512i;

    #[inline(always)]
    unsafe fn zero() -> __m512i {
        _mm512_setzero_si512()
    }

    #[inline(always)]
    unsafe fn add(sum: __m512i, line: __m512i, pair: __m512i) -> __m512i {
        dot(sum, line, pair)
    }

    #[inline(always)]
    unsafe fn score(sum: __m512i, tile: &Tile, column: usize) -> __m512 {
        _mm512_mul_ps(_mm512_cvtepi32_ps(sum), _mm512_loadu_ps(tile.key_units.add(column * LANES)))
    }

    #[inline(always)]
    unsafe fn resume(_at: *const f32) -> __m512i {
        _mm512_setzero_si512()
    }

    #[inline(always)]
    unsafe fn save(sum: __m512i, tile: &Tile, query: usize, at: *mut f32) {
        let unit = _mm512_set1_ps(*tile.weight_units.add(query) * *tile.value_unit);
        _mm512_storeu_ps(at, _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), unit, _mm512_loadu_ps(at)));
    }
}

/// See [`LEAST`].
#[inline(always)]
fn at_least(length: f32) -> f32 {
    if length < LEAST { LEAST } else { length }
}

#[inline(always)]
unsafe fn add_squares(sum: __m512, pairs: *const u8) -> __m512 {
    let (first, second) = Avx512::load(pairs.cast()).halves();
    _mm512_fmadd_ps(second.0, second.0, _mm512_fmadd_ps(first.0, first.0, sum))
}

/// Makes integers of 16 pairs of bf16.
#[inline(always)]
unsafe fn to_integers(pairs: *mut u8, scale: __m512) {
    const SECOND: u32 = 0xAAAA_AAAA;
    let (first, second) = Avx512::load(pairs.cast_const().cast()).halves();
    let first = _mm512_cvtps_epi32(_mm512_mul_ps(first.0, scale));
    let second = _mm512_slli_epi32::<16>(_mm512_cvtps_epi32(_mm512_mul_ps(second.0, scale)));
    _mm512_storeu_si512(pairs.cast(), _mm512_mask_blend_epi16(SECOND, first, second));
}
