//! Sixteen floats at a time, in the registers of each instruction set.
//!
//! A kernel is written once, generic over [`Vector`], in functions that are all `#[inline(always)]`; [`dispatch`] compiles
//! it for AVX-512, AVX2 and the baseline and picks at run time. What `simd.rs` leaves to the compiler stands
//! here by hand: loops whose speed depends on which values stay in registers.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

#[cfg(target_arch = "x86_64")]
pub use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub use avx512::Avx512;
pub use portable::Portable;

use crate::simd::Level;

/// Floats in a [`Vector`].
pub const LANES: usize = 16;

/// Coefficients of a polynomial for `2^r`, `|r| <= 1/2`, from the constant up; minimax, relative error 7.5e-8.
pub(crate) const EXP2: [f32; 6] =
    [1.000_000_1, 0.693_146_94, 0.240_221_2, 0.055_507_13, 0.009_675_541, 0.001_327_647_2];

/// [`LANES`] floats.
///
/// # Safety
/// Every function needs a processor with the instruction set of its type; pointers must be good for [`LANES`] floats.
#[expect(clippy::missing_safety_doc, reason = "said once, above")]
#[expect(unsafe_code, reason = "instructions that the processor must have, pointers that must be good")]
pub unsafe trait Vector: Copy {
    /// Vectors of key columns that a tile of 6 query rows keeps in registers.
    const COLUMNS: usize;

    /// All lanes `x`.
    unsafe fn splat(x: f32) -> Self;
    /// Lanes from memory, at any alignment.
    unsafe fn load(from: *const f32) -> Self;
    /// Lanes to memory, at any alignment.
    unsafe fn store(self, to: *mut f32);
    /// `self + other`.
    unsafe fn add(self, other: Self) -> Self;
    /// `self * other`.
    unsafe fn mul(self, other: Self) -> Self;
    /// `self * factor + addend`.
    unsafe fn fma(self, factor: Self, addend: Self) -> Self;
    /// Quotient.
    unsafe fn div(self, other: Self) -> Self;
    /// The larger of each lane; `other` where one is NaN.
    unsafe fn max(self, other: Self) -> Self;
    /// The smaller of each lane; `other` where one is NaN.
    unsafe fn min(self, other: Self) -> Self;
    /// Whether any lane of `self` is larger.
    unsafe fn any_greater(self, other: Self) -> bool;
    /// `2^self`, relative error 2e-7; at most 2^-126 below -126, and exactly 0 below -150; infinite or wrong above 127.
    unsafe fn exp2(self) -> Self;
    /// Has the line at `at` brought nearer, which may be anywhere.
    unsafe fn prefetch(at: *const u8);
    /// Lanes as 32-bit words of two bfloat16 each: the lower halves and the upper ones, widened.
    unsafe fn halves(self) -> (Self, Self);
    /// Row `i`, lane `j` becomes row `j`, lane `i`.
    unsafe fn transpose(rows: &mut [Self; LANES]);
    /// The largest lane.
    unsafe fn highest(self) -> f32;
    /// The sum of all lanes.
    unsafe fn sum(self) -> f32;
    /// The sums of sixteen vectors, as the lanes of one.
    #[inline(always)]
    unsafe fn sums(mut rows: [Self; LANES]) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            Self::transpose(&mut rows);
            let mut width = LANES / 2;
            while width > 0 {
                for row in 0..width {
                    rows[row] = rows[row].add(rows[row + width]);
                }
                width /= 2;
            }
            rows[0]
        }
    }
}

/// Work that is compiled for every instruction set: what [`dispatch`] runs.
pub trait Kernel {
    /// Must be `#[inline(always)]`, like all that it calls on the way to a [`Vector`].
    fn run<V: Vector>(self);
}

/// Runs `kernel` as compiled for `level`, which must come from [`Level::available`].
pub fn dispatch(level: Level, kernel: impl Kernel) {
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    fn avx2(kernel: impl Kernel) {
        kernel.run::<Avx2>();
    }
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma,avx512f,avx512vl,avx512bw,avx512dq")]
    fn avx512(kernel: impl Kernel) {
        kernel.run::<Avx512>();
    }
    match level {
        #[cfg(target_arch = "x86_64")]
        #[expect(unsafe_code, reason = "the level says that the machine has these instructions")]
        // SAFETY: `Level::available` lists only what the processor reports.
        Level::Avx512 | Level::Avx512Vnni | Level::Avx512Bf16 | Level::Amx => unsafe { avx512(kernel) },
        #[cfg(target_arch = "x86_64")]
        #[expect(unsafe_code, reason = "the level says that the machine has these instructions")]
        // SAFETY: as above.
        Level::Avx2 | Level::AvxVnni => unsafe { avx2(kernel) },
        _ => kernel.run::<Portable>(),
    }
}
