//! Products of activations with weights that were repacked once, from one row (a decode, which is a read of the weights)
//! to thousands (a prefill, which is arithmetic), from the same copy.
//!
//! ```text
//!   weight.rs       a matrix [rows, columns] in memory: panels of 16 rows, in floats or in blocks of 32 quantised columns
//!   memory.rs       where its panels lie
//!   pack.rs         from plain floats and from GGUF's blocks into panels, and back
//!   activations.rs  what the other operand must look like: floats, bf16, or integers with a scale per block
//!   fast.rs         which thread computes which rows of which panels; tiles.rs, and floats.rs, int16.rs,
//!                   integers.rs (bytes and less): one tile of that, in vectors; amx_floats.rs: in matrix tiles
//!   isa/            the instructions
//! ```
//!
//! A result is the same sum in the same order, whatever is computed beside it: what a token's vector becomes does not
//! depend, to the last bit, on the batch that it is in. With one exception: quantised weights and bf16 activations on a
//! machine with matrix tiles. There a call of many rows keeps the activations' eight bits of mantissa and rounds the weights
//! to as many, where one of few rounds activations to bytes.

mod activations;
#[cfg(target_arch = "x86_64")]
mod amx_floats;
mod fast;
mod floats;
mod int16;
mod integers;
mod isa;
mod memory;
mod naive;
mod pack;
mod tiles;
mod weight;

pub use fast::linear;
pub use naive::linear_naive;
pub use weight::{Format, PackError, Weight};

use crate::{Bf16, Element};

/// Rows of a weight that are stored side by side.
const PANEL: usize = 16;
/// Columns that share a scale.
const BLOCK: usize = 32;

/// Activations.
#[derive(Clone, Copy, Debug)]
pub enum Floats<'a> {
    /// Single precision.
    F32(&'a [f32]),
    /// Bits of bfloat16.
    Bf16(&'a [u16]),
}

/// Where results go, rounded to what is there.
#[derive(Debug)]
pub enum FloatsMut<'a> {
    /// Single precision.
    F32(&'a mut [f32]),
    /// Bits of bfloat16.
    Bf16(&'a mut [u16]),
}

impl Floats<'_> {
    /// Elements.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::Bf16(values) => values.len(),
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn get(&self, index: usize) -> f32 {
        match self {
            Self::F32(values) => values[index],
            Self::Bf16(values) => bf16_to_f32(values[index]),
        }
    }
}

impl FloatsMut<'_> {
    /// Elements.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::Bf16(values) => values.len(),
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Writes `values`, rounded, from element `start` on.
    fn write(&mut self, start: usize, values: &[f32]) {
        match self {
            Self::F32(out) => out[start..start + values.len()].copy_from_slice(values),
            Self::Bf16(out) => {
                out[start..].iter_mut().zip(values).for_each(|(out, &value)| *out = f32_to_bf16(value));
            }
        }
    }
}

/// `output = x · weightᵀ + bias`.
#[derive(Clone, Copy, Debug)]
pub struct Linear<'a> {
    /// `[rows of x, weight.columns()]`.
    pub x: Floats<'a>,
    /// Whole: see [`Weight::is_whole`].
    pub weight: &'a Weight,
    /// `[weight.rows()]`.
    pub bias: Option<Floats<'a>>,
}

/// A call whose parts do not fit together.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum LinearError {
    /// A slice has the wrong length.
    #[error("{name} has {found} elements, expected {expected}")]
    Length {
        /// Which slice.
        name: &'static str,
        /// Elements that the weight calls for.
        expected: usize,
        /// Elements that it has.
        found: usize,
    },
    /// Some rows were never packed.
    #[error("{packed} of the weight's {rows} rows have been loaded")]
    NotWhole {
        /// Rows that are there.
        packed: usize,
        /// Rows that there should be.
        rows: usize,
    },
}

impl Linear<'_> {
    /// Rows of activations. Checks every length, so that the kernels need not.
    ///
    /// # Errors
    /// [`LinearError`], with the facts.
    pub fn validate(&self, output: &FloatsMut<'_>) -> Result<usize, LinearError> {
        let (rows, columns) = (self.weight.rows(), self.weight.columns());
        if !self.weight.is_whole() {
            return Err(LinearError::NotWhole { packed: self.weight.packed_rows(), rows });
        }
        let num_rows = self.x.len() / columns;
        let check = |name, found: usize, expected: usize| {
            if found == expected { Ok(()) } else { Err(LinearError::Length { name, expected, found }) }
        };
        check("x", self.x.len(), num_rows * columns)?;
        check("output", output.len(), num_rows * rows)?;
        check("bias", self.bias.map_or(rows, |bias| bias.len()), rows)?;
        Ok(num_rows)
    }
}

#[inline(always)]
fn bf16_to_f32(bits: u16) -> f32 {
    Bf16(bits).widen()
}

#[inline(always)]
fn f32_to_bf16(value: f32) -> u16 {
    Bf16::narrow(value).0
}
