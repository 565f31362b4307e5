use half::f16;

use super::Isa;

/// Arrays; the compiler does what it can.
#[derive(Clone, Copy)]
pub(in crate::linear) struct Portable;

const LANES: usize = 16;

impl Isa for Portable {
    const LANES: usize = LANES;
    const ACCUMULATORS: usize = 4;
    type F = [f32; LANES];
    type I = [[u8; 4]; LANES];

    #[inline(always)]
    unsafe fn prefetch(_: *const u8) {}

    #[inline(always)]
    unsafe fn zero() -> Self::F {
        [0.0; LANES]
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::F {
        [x; LANES]
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, x: Self::F) {
        to.cast::<Self::F>().write_unaligned(x);
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self::F {
        from.cast::<[u16; LANES]>().read_unaligned().map(|bits| f16::from_bits(bits).to_f32())
    }

    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        std::array::from_fn(|lane| a[lane] * b[lane])
    }

    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        std::array::from_fn(|lane| a[lane] * b[lane] + c[lane])
    }

    #[inline(always)]
    unsafe fn load_f32(from: *const f32) -> Self::F {
        from.cast::<Self::F>().read_unaligned()
    }

    #[inline(always)]
    unsafe fn load_bf16_pairs(from: *const u32) -> [Self::F; 2] {
        let pairs = from.cast::<[u32; LANES]>().read_unaligned();
        [pairs.map(|pair| f32::from_bits(pair << 16)), pairs.map(|pair| f32::from_bits(pair & 0xFFFF_0000))]
    }

    #[inline(always)]
    unsafe fn splat_i32(x: i32) -> Self::I {
        [x.to_ne_bytes(); LANES]
    }

    #[inline(always)]
    unsafe fn add_i32(a: Self::I, b: Self::I) -> Self::I {
        std::array::from_fn(|lane| (i32::from_ne_bytes(a[lane]) + i32::from_ne_bytes(b[lane])).to_ne_bytes())
    }

    #[inline(always)]
    unsafe fn to_f32(x: Self::I) -> Self::F {
        x.map(|bytes| i32::from_ne_bytes(bytes) as f32)
    }

    #[inline(always)]
    unsafe fn load(from: *const u8) -> Self::I {
        from.cast::<Self::I>().read_unaligned()
    }

    #[inline(always)]
    unsafe fn nibbles(x: Self::I) -> (Self::I, Self::I) {
        (x.map(|bytes| bytes.map(|byte| byte & 15)), x.map(|bytes| bytes.map(|byte| byte >> 4)))
    }

    #[inline(always)]
    unsafe fn dot_u8(sum: Self::I, w: Self::I, x: u32, _wide: bool) -> Self::I {
        let x = x.to_ne_bytes().map(|byte| i32::from(byte.cast_signed()));
        std::array::from_fn(|lane| {
            let products = (0..4).map(|i| i32::from(w[lane][i]) * x[i]);
            (i32::from_ne_bytes(sum[lane]) + products.sum::<i32>()).to_ne_bytes()
        })
    }

    #[inline(always)]
    unsafe fn dot_i16(sum: Self::I, w: Self::I, x: u32) -> Self::I {
        let pair = |bytes: [u8; 4]| {
            [[bytes[0], bytes[1]], [bytes[2], bytes[3]]].map(|half| i32::from(i16::from_ne_bytes(half)))
        };
        let x = pair(x.to_ne_bytes());
        std::array::from_fn(|lane| {
            let w = pair(w[lane]);
            (i32::from_ne_bytes(sum[lane]) + w[0] * x[0] + w[1] * x[1]).to_ne_bytes()
        })
    }
}
