//! What products need of an instruction set: vectors of 16 lanes, whole or in halves, and dot products.
#![expect(unsafe_code, reason = "instructions and pointers that the callers vouch for")]
#![expect(unsafe_op_in_unsafe_fn, reason = "every operation here is one")]

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

#[cfg(target_arch = "x86_64")]
pub(super) use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(super) use avx512::Avx512;
pub(super) use portable::Portable;

use super::{BLOCK, activations::quantise};

/// One instruction set.
///
/// # Safety
/// Of every function: the processor has the instructions, and pointers are good for the lanes (of one vector) that are read
/// or written; none need be aligned.
pub(super) trait Isa {
    /// Lanes of a vector: [`super::PANEL`], or half of it.
    const LANES: usize;
    /// Float accumulators that fit into the registers beside the operands, in panels' worth of 16 lanes.
    const ACCUMULATORS: usize;
    /// Floats.
    type F: Copy;
    /// 32-bit integers, or four times as many bytes.
    type I: Copy;

    /// Has the line at `at` fetched, which may be anywhere.
    unsafe fn prefetch(at: *const u8);
    unsafe fn zero() -> Self::F;
    unsafe fn splat(x: f32) -> Self::F;
    unsafe fn store(to: *mut f32, x: Self::F);
    unsafe fn load_f16(from: *const u16) -> Self::F;
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`.
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    unsafe fn load_f32(from: *const f32) -> Self::F;
    /// The first and the second of each pair of bf16.
    unsafe fn load_bf16_pairs(from: *const u32) -> [Self::F; 2];

    unsafe fn splat_i32(x: i32) -> Self::I;
    unsafe fn add_i32(a: Self::I, b: Self::I) -> Self::I;
    unsafe fn to_f32(x: Self::I) -> Self::F;
    unsafe fn load(from: *const u8) -> Self::I;
    /// The low and the high four bits of every byte.
    unsafe fn nibbles(x: Self::I) -> (Self::I, Self::I);
    /// `sum + w[0] * x[0] + ... + w[3] * x[3]`, w unsigned bytes, x signed ones above -128, the same four in all lanes.
    /// `wide`: whether w may be above 127.
    unsafe fn dot_u8(sum: Self::I, w: Self::I, x: u32, wide: bool) -> Self::I;
    /// `sum + w[0] * x[0] + w[1] * x[1]`, pairs of 16-bit integers, the same pair of x in all lanes.
    unsafe fn dot_i16(sum: Self::I, w: Self::I, x: u32) -> Self::I;
    /// Writes the quants of a block; returns its scale, and the sums of the quants of its halves.
    #[inline(always)]
    unsafe fn quantise(block: &[f32; BLOCK], quants: &mut [i8; BLOCK]) -> (f32, [i32; 2]) {
        quantise(block, quants)
    }
    /// `sum + w[0] * x[0] + w[1] * x[1]`, pairs of bf16, the same pair of x in all lanes.
    #[inline(always)]
    unsafe fn dot_bf16(_sum: Self::F, _w: *const u32, _x: u32) -> Self::F {
        unreachable!("only a level with the instruction asks for it. This is a bug.")
    }
}

/// Compiles `$body` (an `#[inline(always)]` unsafe function, generic over an [`Isa`] and the number of its vectors in a
/// panel) once per [`crate::simd::Level`] and calls the one for `$level`, which comes from `Level::available`.
macro_rules! on_isa {
    ($level:expr, $body:ident::<$($generic:ty),*>($($argument:ident: $type:ty),* $(,)?)) => {{
        use crate::{linear::isa, simd::Level};
        macro_rules! compile {
            ($isa:ty, $halves:literal, $features:literal) => {{
                #[target_feature(enable = $features)]
                unsafe fn on_this($($argument: $type),*) {
                    // SAFETY: the caller's promise; the function has the instruction set's features.
                    unsafe { $body::<$isa, $($generic,)* $halves>($($argument),*) }
                }
                on_this($($argument),*)
            }};
        }
        match $level {
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => compile!(isa::Avx2<false>, 2, "avx2,fma,f16c"),
            #[cfg(target_arch = "x86_64")]
            Level::AvxVnni => compile!(isa::Avx2<true>, 2, "avx2,fma,f16c,avxvnni"),
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => {
                compile!(isa::Avx512<false, false>, 1, "avx2,fma,f16c,avx512f,avx512vl,avx512bw,avx512dq")
            }
            #[cfg(target_arch = "x86_64")]
            Level::Avx512Vnni | Level::Amx => {
                compile!(isa::Avx512<true, false>, 1, "avx2,fma,f16c,avx512f,avx512vl,avx512bw,avx512dq,avx512vnni")
            }
            #[cfg(target_arch = "x86_64")]
            Level::Avx512Bf16 => {
                compile!(
                    isa::Avx512<true, true>,
                    1,
                    "avx2,fma,f16c,avx512f,avx512vl,avx512bw,avx512dq,avx512vnni,avx512bf16"
                )
            }
            _ => $body::<isa::Portable, $($generic,)* 1>($($argument),*),
        }
    }};
}
pub(super) use on_isa;
