//! The floats that tensors hold.

/// A float as it lies in a tensor's memory.
pub trait Element: Copy + Send + Sync + 'static {
    /// Whether two of them fill a 32-bit word, to be widened by [`crate::vector::Vector::halves`].
    const IS_HALF: bool;

    /// Exactly this value.
    fn widen(self) -> f32;
    /// The nearest value; to even in the middle.
    fn narrow(x: f32) -> Self;
}

impl Element for f32 {
    const IS_HALF: bool = false;

    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
    #[inline(always)]
    fn narrow(x: f32) -> Self {
        x
    }
}

/// A bfloat16: the upper half of a float.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Bf16(pub u16);

impl Element for Bf16 {
    const IS_HALF: bool = true;

    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.0) << 16)
    }
    #[inline(always)]
    fn narrow(x: f32) -> Self {
        let bits = x.to_bits();
        let rounded = bits.wrapping_add(0x7FFF + (bits >> 16 & 1));
        // Rounding up must not turn a NaN into an infinity. Compared as integers, so that the compiler does not branch and
        // turns loops over this into vectors.
        let is_nan = bits & 0x7FFF_FFFF > 0x7F80_0000;
        Self(((if is_nan { bits | 0x0040_0000 } else { rounded }) >> 16) as u16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bf16_rounds_to_nearest_even() {
        for (x, want) in [
            (1.0f32, 0x3F80u16),
            (-2.5, 0xC020),
            (f32::from_bits(0x3F80_8000), 0x3F80),
            (f32::from_bits(0x3F81_8000), 0x3F82),
            (f32::from_bits(0x3F80_8001), 0x3F81),
            (f32::MAX, 0x7F80),
            (f32::INFINITY, 0x7F80),
        ] {
            assert_eq!(Bf16::narrow(x), Bf16(want), "{x}");
        }
        assert!(Bf16::narrow(f32::from_bits(0x7F80_0001)).widen().is_nan());
    }
}
