//! One source, several instruction sets: blocks of lanes that the compiler vectorises, and the choice among the results.

/// Floats per block. Two AVX2 registers or one of AVX-512.
pub const LANES: usize = 16;

/// A block of [`LANES`] floats.
pub type Block = [f32; LANES];

/// What a kernel can be compiled for, best last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// The baseline of the target architecture.
    Portable,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// The same with AVX-VNNI: products of bytes.
    AvxVnni,
    /// x86-64 with AVX-512 F, VL, BW and DQ.
    Avx512,
    /// The same with VNNI: products of bytes.
    Avx512Vnni,
    /// The same with BF16, where its products of pairs run at the rate of `vfmadd`: on AMD's cores from Zen 4 on. On Intel's
    /// they run at a quarter of it, so that two of the latter are twice as fast.
    Avx512Bf16,
    /// AVX-512 with VNNI as above, with AMX and BF16: products of tiles.
    Amx,
}

impl Level {
    /// The levels that this machine can run, best last; never empty.
    #[must_use]
    pub fn available() -> Vec<Self> {
        let mut levels = vec![Self::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c");
            let avx512 = avx2
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq");
            let avx512_vnni = avx512 && is_x86_feature_detected!("avx512vnni");
            let avx512_bf16 = avx512_vnni && is_x86_feature_detected!("avx512bf16");
            let found = [
                (Self::Avx2, avx2),
                (Self::AvxVnni, avx2 && is_x86_feature_detected!("avxvnni")),
                (Self::Avx512, avx512),
                (Self::Avx512Vnni, avx512_vnni),
                (Self::Avx512Bf16, avx512_bf16 && is_amd()),
                (Self::Amx, avx512_bf16 && crate::amx::is_available()),
            ];
            levels.extend(found.into_iter().filter_map(|(level, is_there)| is_there.then_some(level)));
        }
        levels
    }

    /// The best level of this machine.
    #[must_use]
    pub fn best() -> Self {
        static BEST: std::sync::OnceLock<Level> = std::sync::OnceLock::new();
        *BEST.get_or_init(|| Self::available().last().copied().unwrap_or(Self::Portable))
    }
}

#[cfg(target_arch = "x86_64")]
fn is_amd() -> bool {
    let vendor = std::arch::x86_64::__cpuid(0);
    [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes).as_flattened() == b"AuthenticAMD"
}

/// Compiles `$body` (an `#[inline(always)]` function) once per [`Level`] and calls the one for `$level`.
///
/// The body is ordinary Rust over [`Block`]s, generic over `const FUSED: bool` for [`fma`]. The caller vouches that `$level` comes from [`Level::available`].
#[macro_export]
macro_rules! dispatch {
    ($level:expr, $body:ident, ($($argument:ident: $type:ty = $value:expr),* $(,)?) $(-> $result:ty)?) => {{
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma")]
        fn avx2($($argument: $type),*) $(-> $result)? { $body::<true>($($argument),*) }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma,avx512f,avx512vl,avx512bw,avx512dq")]
        fn avx512($($argument: $type),*) $(-> $result)? { $body::<true>($($argument),*) }
        $(let $argument: $type = $value;)*
        match $level {
            #[cfg(target_arch = "x86_64")]
            #[expect(unsafe_code, reason = "the level says that the machine has these instructions")]
            // SAFETY: `Level::available` lists only what the processor reports.
            $crate::simd::Level::Avx2 | $crate::simd::Level::AvxVnni => unsafe { avx2($($argument),*) },
            #[cfg(target_arch = "x86_64")]
            #[expect(unsafe_code, reason = "the level says that the machine has these instructions")]
            // SAFETY: as above.
            $crate::simd::Level::Avx512
            | $crate::simd::Level::Avx512Vnni
            | $crate::simd::Level::Avx512Bf16
            | $crate::simd::Level::Amx => unsafe { avx512($($argument),*) },
            _ => $body::<false>($($argument),*),
        }
    }};
}

/// `a * b + c`; `FUSED` where the instruction set has it, since without it `mul_add` is a library call.
#[inline(always)]
#[must_use]
pub fn fma<const FUSED: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FUSED { a.mul_add(b, c) } else { a * b + c }
}

/// Dot product of two slices of one length.
#[inline(always)]
#[must_use]
pub fn dot<const FUSED: bool>(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0f32; LANES];
    let (a_blocks, a_tail) = a.as_chunks::<LANES>();
    let (b_blocks, b_tail) = b.as_chunks::<LANES>();
    for (a, b) in a_blocks.iter().zip(b_blocks) {
        for lane in 0..LANES {
            sums[lane] = fma::<FUSED>(a[lane], b[lane], sums[lane]);
        }
    }
    let tail: f32 = a_tail.iter().zip(b_tail).map(|(a, b)| a * b).sum();
    sum(&sums) + tail
}

/// Sum of a block, by halves.
#[inline(always)]
#[must_use]
pub fn sum(block: &Block) -> f32 {
    let mut halves = *block;
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            halves[lane] += halves[lane + width];
        }
        width /= 2;
    }
    halves[0]
}

/// `e^x` for `x <= 0`, to about 2 units in the last place; exactly 0 below -87.
///
/// Range reduction to `[-ln2/2, ln2/2]` and a polynomial (Cephes `expf`), without branches, so that loops over it vectorise.
#[inline(always)]
#[must_use]
pub fn exp_nonpositive<const FUSED: bool>(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it leaves the rounded integer in the low mantissa bits
    let clamped = x.max(-87.0);
    let shifted = fma::<FUSED>(clamped, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = fma::<FUSED>(n, 2.121_944_4e-4, fma::<FUSED>(n, -0.693_359_4, clamped));
    let mut p = fma::<FUSED>(1.987_569_1e-4, r, 1.398_2e-3);
    p = fma::<FUSED>(p, r, 8.333_452e-3);
    p = fma::<FUSED>(p, r, 4.166_579_6e-2);
    p = fma::<FUSED>(p, r, 1.666_666_5e-1);
    p = fma::<FUSED>(p, r, 0.5);
    let e = fma::<FUSED>(p, r * r, r) + 1.0;
    let power = f32::from_bits(shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23);
    if x < -87.0 { 0.0 } else { e * power }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_close_on_its_whole_range() {
        for step in 0..60_000u16 {
            let x = -f32::from(step) * 1.6e-3;
            let (got, want) = (exp_nonpositive::<false>(x), x.exp());
            assert!((got - want).abs() <= 3e-7 * want + 1e-37, "exp({x}) = {got}, expected {want}");
        }
        assert_eq!(exp_nonpositive::<false>(-100.0), 0.0);
        assert_eq!(exp_nonpositive::<false>(f32::MIN), 0.0);
    }

    #[test]
    fn dot_handles_every_length() {
        for len in 0..70usize {
            let a: Vec<f32> = (0..len).map(|i| i as f32).collect();
            let want: f32 = a.iter().map(|x| x * x).sum();
            assert_eq!(dot::<false>(&a, &a), want);
        }
    }
}
