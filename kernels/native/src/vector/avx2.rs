//! [`Vector`] as two 256-bit registers.
#![expect(unsafe_code, reason = "instructions that the processor must have, pointers that must be good")]
#![expect(unsafe_op_in_unsafe_fn, reason = "each line would be a block; the trait says what is promised")]

use std::arch::x86_64::*;

use super::{EXP2, LANES, Vector};

/// Sixteen floats in two registers of AVX2.
#[derive(Clone, Copy, Debug)]
pub struct Avx2(__m256, __m256);

impl Avx2 {
    #[inline(always)]
    unsafe fn exp2_half(x: __m256) -> __m256 {
        const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it leaves the rounded integer in the low mantissa bits
        let lowest = _mm256_set1_ps(-126.0);
        let is_normal = _mm256_cmp_ps::<_CMP_NLT_UQ>(x, lowest);
        let x = _mm256_max_ps(lowest, x);
        let shifted = _mm256_add_ps(x, _mm256_set1_ps(ROUND));
        let r = _mm256_sub_ps(x, _mm256_sub_ps(shifted, _mm256_set1_ps(ROUND)));
        let mut p = _mm256_set1_ps(EXP2[5]);
        for c in [EXP2[4], EXP2[3], EXP2[2], EXP2[1], EXP2[0]] {
            p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(c));
        }
        let power = _mm256_slli_epi32::<23>(_mm256_castps_si256(shifted));
        _mm256_and_ps(is_normal, _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), power)))
    }

    #[inline(always)]
    unsafe fn halves_of(x: __m256) -> (__m256, __m256) {
        let words = _mm256_castps_si256(x);
        let upper = _mm256_and_si256(words, _mm256_set1_epi32(0xFFFF_0000_u32 as i32));
        (_mm256_castsi256_ps(_mm256_slli_epi32::<16>(words)), _mm256_castsi256_ps(upper))
    }

    /// Eight registers as an 8 x 8 matrix, transposed.
    #[inline(always)]
    unsafe fn transpose_8(rows: [__m256; 8]) -> [__m256; 8] {
        let mut a = [_mm256_setzero_ps(); 8];
        for i in (0..8).step_by(2) {
            a[i] = _mm256_unpacklo_ps(rows[i], rows[i + 1]);
            a[i + 1] = _mm256_unpackhi_ps(rows[i], rows[i + 1]);
        }
        let mut b = [_mm256_setzero_ps(); 8];
        for i in [0, 4] {
            b[i] = _mm256_shuffle_ps::<0x44>(a[i], a[i + 2]);
            b[i + 1] = _mm256_shuffle_ps::<0xEE>(a[i], a[i + 2]);
            b[i + 2] = _mm256_shuffle_ps::<0x44>(a[i + 1], a[i + 3]);
            b[i + 3] = _mm256_shuffle_ps::<0xEE>(a[i + 1], a[i + 3]);
        }
        let mut out = [_mm256_setzero_ps(); 8];
        for i in 0..4 {
            out[i] = _mm256_permute2f128_ps::<0x20>(b[i], b[i + 4]);
            out[i + 4] = _mm256_permute2f128_ps::<0x31>(b[i], b[i + 4]);
        }
        out
    }
}

// SAFETY: as the trait says; `Level::Avx2` stands for AVX2 and FMA.
unsafe impl Vector for Avx2 {
    const COLUMNS: usize = 1;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Self(_mm256_set1_ps(x), _mm256_set1_ps(x))
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        Self(_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8)))
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        _mm256_storeu_ps(to, self.0);
        _mm256_storeu_ps(to.add(8), self.1);
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        Self(_mm256_add_ps(self.0, other.0), _mm256_add_ps(self.1, other.1))
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        Self(_mm256_mul_ps(self.0, other.0), _mm256_mul_ps(self.1, other.1))
    }
    #[inline(always)]
    unsafe fn fma(self, factor: Self, addend: Self) -> Self {
        Self(_mm256_fmadd_ps(self.0, factor.0, addend.0), _mm256_fmadd_ps(self.1, factor.1, addend.1))
    }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        Self(_mm256_div_ps(self.0, other.0), _mm256_div_ps(self.1, other.1))
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        Self(_mm256_max_ps(self.0, other.0), _mm256_max_ps(self.1, other.1))
    }
    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        Self(_mm256_min_ps(self.0, other.0), _mm256_min_ps(self.1, other.1))
    }
    #[inline(always)]
    unsafe fn any_greater(self, other: Self) -> bool {
        let low = _mm256_cmp_ps::<_CMP_GT_OQ>(self.0, other.0);
        let high = _mm256_cmp_ps::<_CMP_GT_OQ>(self.1, other.1);
        _mm256_movemask_ps(_mm256_or_ps(low, high)) != 0
    }
    #[inline(always)]
    unsafe fn exp2(self) -> Self {
        Self(Self::exp2_half(self.0), Self::exp2_half(self.1))
    }
    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        _mm_prefetch::<_MM_HINT_T1>(at.cast());
    }
    #[inline(always)]
    unsafe fn halves(self) -> (Self, Self) {
        let ((a, b), (c, d)) = (Self::halves_of(self.0), Self::halves_of(self.1));
        (Self(a, c), Self(b, d))
    }
    #[inline(always)]
    unsafe fn transpose(rows: &mut [Self; LANES]) {
        // Four quarters, the two off the diagonal exchanged.
        let quarter = |first: usize, left: bool| -> [__m256; 8] {
            std::array::from_fn(|i| if left { rows[first + i].0 } else { rows[first + i].1 })
        };
        let top_left = Self::transpose_8(quarter(0, true));
        let top_right = Self::transpose_8(quarter(8, true));
        let bottom_left = Self::transpose_8(quarter(0, false));
        let bottom_right = Self::transpose_8(quarter(8, false));
        for i in 0..8 {
            rows[i] = Self(top_left[i], top_right[i]);
            rows[i + 8] = Self(bottom_left[i], bottom_right[i]);
        }
    }
    #[inline(always)]
    unsafe fn highest(self) -> f32 {
        let mut lanes = [0.0; 8];
        _mm256_storeu_ps(lanes.as_mut_ptr(), _mm256_max_ps(self.0, self.1));
        lanes.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        let sum = _mm256_add_ps(self.0, self.1);
        let sum = _mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps::<1>(sum));
        let sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
        _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)))
    }
}
