//! Integers of 16 bits in place of floats: twice as many to an instruction, and closer to what bf16 stands for than bf16.

/// What the largest of some numbers, or their length, becomes: nearly the largest integer, so that rounding leaves it one. Two
/// vectors of this length have a product of less than 2^31 (Cauchy and Schwarz).
pub(crate) const ONE: f32 = 32_750.0;

/// `sum + a[0] * b[0] + a[1] * b[1]`, in each of 16 lanes, in one instruction. The compiler splits its own intrinsic for it
/// into a product and a sum, for the latency's sake (`genAlternativeDpCodeSequence` in LLVM's `X86InstrInfo.cpp`): twice the
/// work where many sums are under way.
#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "an instruction that the features stand for")]
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
pub(crate) fn dot(
    mut sum: std::arch::x86_64::__m512i,
    a: std::arch::x86_64::__m512i,
    b: std::arch::x86_64::__m512i,
) -> std::arch::x86_64::__m512i {
    // SAFETY: no memory is touched.
    unsafe {
        std::arch::asm!(
            "vpdpwssd {}, {}, {}",
            inlateout(zmm_reg) sum,
            in(zmm_reg) a,
            in(zmm_reg) b,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sum
}
