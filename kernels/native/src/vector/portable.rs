//! [`Vector`] as an array, for whatever the compiler makes of it.
#![expect(unsafe_code, reason = "pointers that the caller vouches for")]

use super::{EXP2, LANES, Vector};

/// Sixteen floats in an array.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
pub struct Portable([f32; LANES]);

impl Portable {
    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Self(std::array::from_fn(|lane| f(self.0[lane], other.0[lane])))
    }
}

// SAFETY: nothing here needs more than the baseline.
unsafe impl Vector for Portable {
    const COLUMNS: usize = 1;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Self([x; LANES])
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's promise.
        Self(unsafe { from.cast::<[f32; LANES]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { to.cast::<[f32; LANES]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        self.zip(other, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn fma(self, factor: Self, addend: Self) -> Self {
        Self(std::array::from_fn(|lane| self.0[lane] * factor.0[lane] + addend.0[lane]))
    }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        self.zip(other, |a, b| a / b)
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        self.zip(other, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        self.zip(other, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    unsafe fn any_greater(self, other: Self) -> bool {
        (0..LANES).fold(false, |any, lane| any | (self.0[lane] > other.0[lane]))
    }
    #[inline(always)]
    unsafe fn exp2(self) -> Self {
        const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it leaves the rounded integer in the low mantissa bits
        Self(self.0.map(|x| {
            let clamped = if x < -126.0 { -126.0 } else { x };
            let shifted = clamped + ROUND;
            let r = clamped - (shifted - ROUND);
            let p = EXP2.iter().rev().fold(0.0, |p, c| p * r + c);
            let power = f32::from_bits(p.to_bits().wrapping_add(shifted.to_bits() << 23));
            if x < -126.0 { 0.0 } else { power }
        }))
    }
    #[inline(always)]
    unsafe fn prefetch(_: *const u8) {}
    #[inline(always)]
    unsafe fn halves(self) -> (Self, Self) {
        let words = self.0.map(f32::to_bits);
        (Self(words.map(|w| f32::from_bits(w << 16))), Self(words.map(|w| f32::from_bits(w & 0xFFFF_0000))))
    }
    #[inline(always)]
    unsafe fn transpose(rows: &mut [Self; LANES]) {
        for row in 0..LANES {
            for lane in row + 1..LANES {
                (rows[row].0[lane], rows[lane].0[row]) = (rows[lane].0[row], rows[row].0[lane]);
            }
        }
    }
    #[inline(always)]
    unsafe fn highest(self) -> f32 {
        self.0.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        self.0.iter().sum()
    }
}
