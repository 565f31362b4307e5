//! A product of pairs of 16-bit integers in one instruction. The compiler splits its own intrinsic for it into a product and
//! a sum, for the latency's sake (`genAlternativeDpCodeSequence` in LLVM's `X86InstrInfo.cpp`): twice the work where many
//! sums are under way.
#![expect(unsafe_code, reason = "an instruction that the caller vouches for")]

use std::arch::{asm, x86_64::__m512i};

/// `sum + a[0] * b[0] + a[1] * b[1]`, in each of 16 lanes.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
pub(crate) fn dot_i16(mut sum: __m512i, a: __m512i, b: __m512i) -> __m512i {
    // SAFETY: no memory is touched.
    unsafe {
        asm!(
            "vpdpwssd {}, {}, {}",
            inlateout(zmm_reg) sum,
            in(zmm_reg) a,
            in(zmm_reg) b,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sum
}
