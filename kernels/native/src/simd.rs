//! Which instruction sets there are, and a block of lanes.

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
    /// The same with AVX-VNNI: such products in one instruction.
    AvxVnni,
    /// x86-64 with AVX-512 F, VL, BW and DQ.
    Avx512,
    /// The same with VNNI: products of bytes, and of pairs of 16-bit integers.
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
