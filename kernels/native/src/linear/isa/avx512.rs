use std::{arch::x86_64::*, mem::transmute};

use super::Isa;
use crate::{int16, linear::BLOCK};

/// AVX-512 F, VL, BW, DQ: a panel to a vector. `VNNI`: with byte products. `BF16`: with products of pairs of bf16.
#[derive(Clone, Copy)]
pub(in crate::linear) struct Avx512<const VNNI: bool, const BF16: bool>;

impl<const VNNI: bool, const BF16: bool> Isa for Avx512<VNNI, BF16> {
    const LANES: usize = 16;
    const ACCUMULATORS: usize = 24;
    type F = __m512;
    type I = __m512i;

    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        _mm_prefetch::<_MM_HINT_T0>(at.cast());
    }

    #[inline(always)]
    unsafe fn zero() -> Self::F {
        _mm512_setzero_ps()
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::F {
        _mm512_set1_ps(x)
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, x: Self::F) {
        _mm512_storeu_ps(to, x);
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self::F {
        _mm512_cvtph_ps(_mm256_loadu_si256(from.cast()))
    }

    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        _mm512_mul_ps(a, b)
    }

    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        _mm512_fmadd_ps(a, b, c)
    }

    #[inline(always)]
    unsafe fn load_f32(from: *const f32) -> Self::F {
        _mm512_loadu_ps(from)
    }

    #[inline(always)]
    unsafe fn load_bf16_pairs(from: *const u32) -> [Self::F; 2] {
        // A bf16 is the upper half of a float.
        let pairs = _mm512_loadu_si512(from.cast());
        let upper = _mm512_set1_epi32(0xFFFF_0000_u32.cast_signed());
        [
            _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)),
            _mm512_castsi512_ps(_mm512_and_si512(pairs, upper)),
        ]
    }

    #[inline(always)]
    unsafe fn splat_i32(x: i32) -> Self::I {
        _mm512_set1_epi32(x)
    }

    #[inline(always)]
    unsafe fn add_i32(a: Self::I, b: Self::I) -> Self::I {
        _mm512_add_epi32(a, b)
    }

    #[inline(always)]
    unsafe fn to_f32(x: Self::I) -> Self::F {
        _mm512_cvtepi32_ps(x)
    }

    #[inline(always)]
    unsafe fn load(from: *const u8) -> Self::I {
        _mm512_loadu_si512(from.cast())
    }

    #[inline(always)]
    unsafe fn nibbles(x: Self::I) -> (Self::I, Self::I) {
        let mask = _mm512_set1_epi8(15);
        (_mm512_and_si512(x, mask), _mm512_and_si512(_mm512_srli_epi16(x, 4), mask))
    }

    #[inline(always)]
    unsafe fn dot_u8(sum: Self::I, w: Self::I, x: u32, wide: bool) -> Self::I {
        let x = _mm512_set1_epi32(x.cast_signed());
        if VNNI {
            return _mm512_dpbusd_epi32(sum, w, x);
        }
        if !wide {
            let pairs = _mm512_maddubs_epi16(w, x);
            return _mm512_add_epi32(sum, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
        }
        // Two products of bytes above 127 do not fit into 16 bits, so that the uppermost bit goes by itself.
        let low = _mm512_maddubs_epi16(_mm512_and_si512(w, _mm512_set1_epi8(127)), x);
        let high = _mm512_and_si512(_mm512_srli_epi16(w, 7), _mm512_set1_epi8(1));
        let low = _mm512_madd_epi16(low, _mm512_set1_epi16(1));
        let high = _mm512_madd_epi16(_mm512_maddubs_epi16(high, x), _mm512_set1_epi16(128));
        _mm512_add_epi32(sum, _mm512_add_epi32(low, high))
    }

    #[inline(always)]
    unsafe fn dot_i16(sum: Self::I, w: Self::I, x: u32) -> Self::I {
        let x = _mm512_set1_epi32(x.cast_signed());
        if VNNI { int16::dot(sum, w, x) } else { _mm512_add_epi32(sum, _mm512_madd_epi16(w, x)) }
    }

    #[inline(always)]
    unsafe fn quantise(block: &[f32; BLOCK], quants: &mut [i8; BLOCK]) -> (f32, [i32; 2]) {
        let halves = [_mm512_loadu_ps(block.as_ptr()), _mm512_loadu_ps(block.as_ptr().add(16))];
        // In this order a NaN is passed over.
        let largest = _mm512_max_ps(_mm512_abs_ps(halves[0]), _mm512_setzero_ps());
        let largest = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(halves[1]), largest));
        let inverse = _mm512_set1_ps(if largest > 0.0 { 127.0 / largest } else { 0.0 });
        let mut sums = [0; 2];
        for half in 0..2 {
            let rounded = _mm512_cvtps_epi32(_mm512_mul_ps(halves[half], inverse));
            let bytes = _mm512_cvtepi32_epi8(rounded);
            _mm_storeu_si128(quants.as_mut_ptr().add(half * 16).cast(), bytes);
            // Sums of eight bytes at a time, which are made unsigned by adding 128.
            let eights = _mm_sad_epu8(_mm_xor_si128(bytes, _mm_set1_epi8(-128)), _mm_setzero_si128());
            let sum = _mm_add_epi64(eights, _mm_unpackhi_epi64(eights, eights));
            sums[half] = _mm_cvtsi128_si32(sum) - 16 * 128;
        }
        (largest / 127.0, sums)
    }

    #[inline(always)]
    unsafe fn dot_bf16(sum: Self::F, w: *const u32, x: u32) -> Self::F {
        if BF16 {
            let pair = transmute::<__m512i, __m512bh>(_mm512_set1_epi32(x.cast_signed()));
            return _mm512_dpbf16_ps(sum, transmute::<__m512i, __m512bh>(_mm512_loadu_si512(w.cast())), pair);
        }
        unreachable!("only a level with the instruction asks for it. This is a bug.")
    }
}
