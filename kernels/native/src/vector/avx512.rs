//! [`Vector`] as one 512-bit register.
#![expect(unsafe_code, reason = "instructions that the processor must have, pointers that must be good")]
#![expect(unsafe_op_in_unsafe_fn, reason = "each line would be a block; the trait says what is promised")]

use std::arch::x86_64::*;

use super::{EXP2, LANES, Vector};

/// Sixteen floats in a register of AVX-512.
#[derive(Clone, Copy, Debug)]
pub struct Avx512(pub(crate) __m512);

// SAFETY: as the trait says; `Level::Avx512` stands for F, VL, BW and DQ.
unsafe impl Vector for Avx512 {
    const COLUMNS: usize = 4;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Self(_mm512_set1_ps(x))
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        Self(_mm512_loadu_ps(from))
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        _mm512_storeu_ps(to, self.0);
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        Self(_mm512_add_ps(self.0, other.0))
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        Self(_mm512_mul_ps(self.0, other.0))
    }
    #[inline(always)]
    unsafe fn fma(self, factor: Self, addend: Self) -> Self {
        Self(_mm512_fmadd_ps(self.0, factor.0, addend.0))
    }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        Self(_mm512_div_ps(self.0, other.0))
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        Self(_mm512_max_ps(self.0, other.0))
    }
    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        Self(_mm512_min_ps(self.0, other.0))
    }
    #[inline(always)]
    unsafe fn any_greater(self, other: Self) -> bool {
        _mm512_cmp_ps_mask::<_CMP_GT_OQ>(self.0, other.0) != 0
    }
    #[inline(always)]
    unsafe fn exp2(self) -> Self {
        const NEAREST: i32 = 0;
        let r = _mm512_reduce_ps::<NEAREST>(self.0);
        let mut p = _mm512_set1_ps(EXP2[5]);
        for c in [EXP2[4], EXP2[3], EXP2[2], EXP2[1], EXP2[0]] {
            p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(c));
        }
        Self(_mm512_scalef_ps(p, _mm512_sub_ps(self.0, r)))
    }
    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        _mm_prefetch::<_MM_HINT_T1>(at.cast());
    }
    #[inline(always)]
    unsafe fn halves(self) -> (Self, Self) {
        let words = _mm512_castps_si512(self.0);
        let upper = _mm512_and_si512(words, _mm512_set1_epi32(0xFFFF_0000_u32 as i32));
        (Self(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(words))), Self(_mm512_castsi512_ps(upper)))
    }
    #[inline(always)]
    unsafe fn transpose(rows: &mut [Self; LANES]) {
        // Pairs of rows, then of pairs, within 128 bits; then quarters of registers, twice.
        let mut a = [_mm512_setzero_ps(); LANES];
        for i in (0..LANES).step_by(2) {
            a[i] = _mm512_unpacklo_ps(rows[i].0, rows[i + 1].0);
            a[i + 1] = _mm512_unpackhi_ps(rows[i].0, rows[i + 1].0);
        }
        let mut b = [_mm512_setzero_ps(); LANES];
        for i in (0..LANES).step_by(4) {
            let pair = |i: usize| _mm512_castps_pd(a[i]);
            b[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(pair(i), pair(i + 2)));
            b[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(pair(i), pair(i + 2)));
            b[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(pair(i + 1), pair(i + 3)));
            b[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(pair(i + 1), pair(i + 3)));
        }
        for i in 0..4 {
            let low = _mm512_shuffle_f32x4::<0x88>(b[i], b[i + 4]);
            let high = _mm512_shuffle_f32x4::<0xDD>(b[i], b[i + 4]);
            let low_2 = _mm512_shuffle_f32x4::<0x88>(b[i + 8], b[i + 12]);
            let high_2 = _mm512_shuffle_f32x4::<0xDD>(b[i + 8], b[i + 12]);
            rows[i] = Self(_mm512_shuffle_f32x4::<0x88>(low, low_2));
            rows[i + 4] = Self(_mm512_shuffle_f32x4::<0x88>(high, high_2));
            rows[i + 8] = Self(_mm512_shuffle_f32x4::<0xDD>(low, low_2));
            rows[i + 12] = Self(_mm512_shuffle_f32x4::<0xDD>(high, high_2));
        }
    }
    #[inline(always)]
    unsafe fn sums(rows: [Self; LANES]) -> Self {
        // As in `transpose`, but what meets is added at once: half as many shuffles.
        let mut a = [_mm512_setzero_ps(); 8];
        for i in 0..8 {
            let (x, y) = (rows[2 * i].0, rows[2 * i + 1].0);
            a[i] = _mm512_add_ps(_mm512_unpacklo_ps(x, y), _mm512_unpackhi_ps(x, y));
        }
        let mut b = [_mm512_setzero_ps(); 4];
        for i in 0..4 {
            let (x, y) = (_mm512_castps_pd(a[2 * i]), _mm512_castps_pd(a[2 * i + 1]));
            let (low, high) = (_mm512_unpacklo_pd(x, y), _mm512_unpackhi_pd(x, y));
            b[i] = _mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high));
        }
        let c =
            _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(b[0], b[1]), _mm512_shuffle_f32x4::<0xDD>(b[0], b[1]));
        let d =
            _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(b[2], b[3]), _mm512_shuffle_f32x4::<0xDD>(b[2], b[3]));
        Self(_mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(c, d), _mm512_shuffle_f32x4::<0xDD>(c, d)))
    }
    #[inline(always)]
    unsafe fn highest(self) -> f32 {
        _mm512_reduce_max_ps(self.0)
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        _mm512_reduce_add_ps(self.0)
    }
}
