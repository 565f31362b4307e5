use std::arch::x86_64::*;

use super::Isa;

/// AVX2 with FMA and F16C: half a panel to a vector. `VNNI`: with the byte products of AVX-VNNI.
#[derive(Clone, Copy)]
pub(in crate::linear) struct Avx2<const VNNI: bool>;

impl<const VNNI: bool> Isa for Avx2<VNNI> {
    const LANES: usize = 8;
    const ACCUMULATORS: usize = 6;
    type F = __m256;
    type I = __m256i;

    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        _mm_prefetch::<_MM_HINT_T0>(at.cast());
    }

    #[inline(always)]
    unsafe fn zero() -> Self::F {
        _mm256_setzero_ps()
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::F {
        _mm256_set1_ps(x)
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, x: Self::F) {
        _mm256_storeu_ps(to, x);
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self::F {
        _mm256_cvtph_ps(_mm_loadu_si128(from.cast()))
    }

    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        _mm256_mul_ps(a, b)
    }

    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        _mm256_fmadd_ps(a, b, c)
    }

    #[inline(always)]
    unsafe fn load_f32(from: *const f32) -> Self::F {
        _mm256_loadu_ps(from)
    }

    #[inline(always)]
    unsafe fn load_bf16_pairs(from: *const u32) -> [Self::F; 2] {
        // A bf16 is the upper half of a float.
        let pairs = _mm256_loadu_si256(from.cast());
        let upper = _mm256_set1_epi32(0xFFFF_0000_u32.cast_signed());
        [
            _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)),
            _mm256_castsi256_ps(_mm256_and_si256(pairs, upper)),
        ]
    }

    #[inline(always)]
    unsafe fn splat_i32(x: i32) -> Self::I {
        _mm256_set1_epi32(x)
    }

    #[inline(always)]
    unsafe fn add_i32(a: Self::I, b: Self::I) -> Self::I {
        _mm256_add_epi32(a, b)
    }

    #[inline(always)]
    unsafe fn to_f32(x: Self::I) -> Self::F {
        _mm256_cvtepi32_ps(x)
    }

    #[inline(always)]
    unsafe fn load(from: *const u8) -> Self::I {
        _mm256_loadu_si256(from.cast())
    }

    #[inline(always)]
    unsafe fn nibbles(x: Self::I) -> (Self::I, Self::I) {
        let mask = _mm256_set1_epi8(15);
        (_mm256_and_si256(x, mask), _mm256_and_si256(_mm256_srli_epi16(x, 4), mask))
    }

    #[inline(always)]
    unsafe fn dot_u8(sum: Self::I, w: Self::I, x: u32, wide: bool) -> Self::I {
        let x = _mm256_set1_epi32(x.cast_signed());
        if VNNI {
            return _mm256_dpbusd_avx_epi32(sum, w, x);
        }
        if !wide {
            let pairs = _mm256_maddubs_epi16(w, x);
            return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
        }
        // Two products of bytes above 127 do not fit into 16 bits, so that the uppermost bit goes by itself.
        let low = _mm256_maddubs_epi16(_mm256_and_si256(w, _mm256_set1_epi8(127)), x);
        let high = _mm256_and_si256(_mm256_srli_epi16(w, 7), _mm256_set1_epi8(1));
        let low = _mm256_madd_epi16(low, _mm256_set1_epi16(1));
        let high = _mm256_madd_epi16(_mm256_maddubs_epi16(high, x), _mm256_set1_epi16(128));
        _mm256_add_epi32(sum, _mm256_add_epi32(low, high))
    }

    #[inline(always)]
    unsafe fn dot_i16(sum: Self::I, w: Self::I, x: u32) -> Self::I {
        let x = _mm256_set1_epi32(x.cast_signed());
        if VNNI { _mm256_dpwssd_avx_epi32(sum, w, x) } else { _mm256_add_epi32(sum, _mm256_madd_epi16(w, x)) }
    }
}
