//! Activations in the form that a weight's format is multiplied with.

use std::borrow::Cow;

use super::{
    BLOCK, Floats, bf16_to_f32,
    int16::{self, STRETCH},
    isa::{Isa, on_isa},
    weight::Format,
};
use crate::{
    Pool,
    simd::{LANES, Level},
};

/// Rows of activations whose scales lie side by side: a multiple of the rows of every tile.
pub(super) const STRIP: usize = 16;

/// Bytes with a scale per block of 32: `x ≈ scale * q`.
#[derive(Debug)]
pub(super) struct Quantised {
    /// Columns, rounded up to whole blocks.
    pub(super) columns: usize,
    /// `[rows, columns]`; the surplus is zero.
    pub(super) quants: Vec<i8>,
    /// `[rows / 16, columns / 32, 16]`: see [`STRIP`].
    pub(super) scales: Vec<f32>,
    /// `[rows / 16, columns / 16, 16]`: sums of the quants.
    pub(super) sums: Vec<i32>,
}

/// Single precision.
#[derive(Debug)]
pub(super) struct Singles<'a> {
    /// Columns, made even for the pairs of bf16 weights.
    pub(super) columns: usize,
    /// `[rows, columns]`; the surplus is zero.
    pub(super) values: Cow<'a, [f32]>,
}

/// bfloat16, in whole steps of a matrix tile, and of pairs.
#[derive(Debug)]
pub(super) struct Halves<'a> {
    /// A multiple of 32.
    pub(super) columns: usize,
    /// `[rows, columns]`.
    pub(super) values: &'a [u16],
}

/// 16-bit integers with a unit per [`STRETCH`] of columns: `x ≈ unit * value`.
#[derive(Debug)]
pub(super) struct Int16 {
    /// Columns, made even.
    pub(super) columns: usize,
    /// `[rows, columns]`; the surplus is zero.
    pub(super) values: Vec<i16>,
    /// `[rows, stretches]`.
    pub(super) units: Vec<f32>,
}

impl<'a> Halves<'a> {
    /// None if the values are not such.
    pub(super) fn new(values: Floats<'a>, columns: usize) -> Option<Self> {
        match values {
            Floats::Bf16(values) if columns.is_multiple_of(BLOCK) => Some(Self { columns, values }),
            _ => None,
        }
    }
}

impl<'a> Singles<'a> {
    pub(super) fn new(values: Floats<'a>, columns: usize, is_even: bool) -> Self {
        if is_even && !columns.is_multiple_of(2) {
            let row = |row: usize| {
                (row * columns..(row + 1) * columns).map(move |index| values.get(index)).chain([0.0])
            };
            return Self {
                columns: columns + 1,
                values: (0..values.len() / columns).flat_map(row).collect(),
            };
        }
        let values = match values {
            Floats::F32(values) => Cow::Borrowed(values),
            Floats::Bf16(values) => Cow::Owned(values.iter().map(|&bits| bf16_to_f32(bits)).collect()),
        };
        Self { columns, values }
    }
}

impl Int16 {
    /// Rounds `values` `[rows, columns]`.
    pub(super) fn new(values: Floats<'_>, columns: usize, pool: &Pool, level: Level) -> Self {
        let (rows, even) = (values.len() / columns, columns.next_multiple_of(2));
        let stretches = columns.div_ceil(STRETCH);
        let mut integers =
            Self { columns: even, values: vec![0; rows * even], units: vec![0.0; rows * stretches] };
        let strips =
            integers.values.chunks_mut(STRIP * even).zip(integers.units.chunks_mut(STRIP * stretches));
        let mut strips: Vec<_> = strips.collect();
        pool.for_each_chunk(&mut strips, 1, |index, strip| {
            let (rounded, units) = &mut strip[0];
            let first = index * STRIP;
            #[expect(unsafe_code, reason = "the level says that the machine has these instructions")]
            // SAFETY: `Level::available` lists only what the processor reports.
            unsafe {
                on_isa!(level, round_strip::<>(
                    values: Floats<'_>,
                    columns: usize,
                    first: usize,
                    rounded: &mut [i16],
                    units: &mut [f32],
                ));
            }
        });
        integers
    }
}

#[expect(unsafe_code, reason = "as above")]
#[inline(always)]
unsafe fn round_strip<I: Isa, const HALVES: usize>(
    values: Floats<'_>,
    columns: usize,
    first: usize,
    rounded: &mut [i16],
    units: &mut [f32],
) {
    let stretches = columns.div_ceil(STRETCH);
    let even = columns.next_multiple_of(2);
    for (index, unit) in units.iter_mut().enumerate() {
        let (row, column) = (index / stretches, index % stretches * STRETCH);
        let stretch: [f32; STRETCH] = read(values, (first + row) * columns + column, columns - column);
        *unit = int16::unit(&stretch);
        let whole = int16::round(&stretch, *unit);
        let into = &mut rounded[row * even..][column..even.min(column + STRETCH)];
        into.copy_from_slice(&whole[..into.len()]);
    }
}

/// Values from `begin` on, but no more than `left`; zeros after them.
#[inline(always)]
fn read<const LEN: usize>(values: Floats<'_>, begin: usize, left: usize) -> [f32; LEN] {
    let (mut out, len) = ([0.0; LEN], LEN.min(left));
    match values {
        Floats::F32(values) => out[..len].copy_from_slice(&values[begin..begin + len]),
        Floats::Bf16(values) => {
            for (to, &from) in out.iter_mut().zip(&values[begin..begin + len]) {
                *to = bf16_to_f32(from);
            }
        }
    }
    out
}

impl Quantised {
    /// Quantises `values` `[rows, columns]`.
    pub(super) fn new(values: Floats<'_>, columns: usize, pool: &Pool, level: Level) -> Self {
        let (rows, padded) = (values.len() / columns, columns.next_multiple_of(BLOCK));
        let mut quantised = Self {
            columns: padded,
            quants: vec![0; rows * padded],
            scales: vec![0.0; rows.next_multiple_of(STRIP) * padded / BLOCK],
            sums: vec![0; rows.next_multiple_of(STRIP) * padded / BLOCK * 2],
        };
        let strips = (quantised.quants.chunks_mut(STRIP * padded))
            .zip(quantised.scales.chunks_mut(STRIP * padded / BLOCK))
            .zip(quantised.sums.chunks_mut(STRIP * padded / BLOCK * 2));
        let mut strips: Vec<_> = strips.collect();
        pool.for_each_chunk(&mut strips, 1, |index, strip| {
            let ((quants, scales), sums) = &mut strip[0];
            let first = index * STRIP;
            #[expect(unsafe_code, reason = "the level says that the machine has these instructions")]
            // SAFETY: `Level::available` lists only what the processor reports.
            unsafe {
                on_isa!(level, quantise_strip::<>(
                    values: Floats<'_>,
                    columns: usize,
                    first: usize,
                    quants: &mut [i8],
                    scales: &mut [f32],
                    sums: &mut [i32],
                ));
            }
        });
        quantised
    }

    /// What stands in for a weight's offset or minimum, per group of columns and row (`[rows / 16, groups, 16]`): what the
    /// integer sum of a group begins with; or, as the bits of a float, what its minimum is multiplied with.
    pub(super) fn corrections(&self, format: Format) -> Vec<i32> {
        if format == Format::Q6 {
            return self.sums.iter().map(|sum| -format.offset() * sum).collect();
        }
        let halves = self.sums.as_chunks::<STRIP>().0.as_chunks::<2>().0;
        let sums = halves.iter().flat_map(|[left, right]| left.iter().zip(right).map(|(a, b)| a + b));
        if format == Format::Q4Min {
            let scaled = sums.zip(&self.scales).map(|(sum, scale)| sum as f32 * scale);
            return scaled.map(|value| value.to_bits().cast_signed()).collect();
        }
        sums.map(|sum| -format.offset() * sum).collect()
    }
}

#[expect(unsafe_code, reason = "as above")]
#[inline(always)]
unsafe fn quantise_strip<I: Isa, const HALVES: usize>(
    values: Floats<'_>,
    columns: usize,
    first: usize,
    quants: &mut [i8],
    scales: &mut [f32],
    sums: &mut [i32],
) {
    let blocks = columns.div_ceil(BLOCK);
    let (quant_blocks, _) = quants.as_chunks_mut::<BLOCK>();
    for (index, quants) in quant_blocks.iter_mut().enumerate() {
        let begin = (first + index / blocks) * columns + index % blocks * BLOCK;
        let block: [f32; BLOCK] = read(values, begin, columns - index % blocks * BLOCK);
        // SAFETY: the caller's promise.
        let (scale, halves) = unsafe { I::quantise(&block, quants) };
        let (row, block) = (index / blocks, index % blocks);
        scales[block * STRIP + row] = scale;
        sums[2 * block * STRIP + row] = halves[0];
        sums[(2 * block + 1) * STRIP + row] = halves[1];
    }
}

/// The nearest integer, to even in the middle, of what is no larger than 2^22; in loops that the compiler turns into vectors.
#[inline(always)]
pub(super) fn nearest(x: f32) -> i32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it leaves the rounded integer in the low mantissa bits
    (x + ROUND).to_bits().wrapping_sub(ROUND.to_bits()).cast_signed()
}

/// Writes the quants of a block; returns its scale, and the sums of the quants of its halves.
#[inline(always)]
pub(super) fn quantise(block: &[f32; BLOCK], quants: &mut [i8; BLOCK]) -> (f32, [i32; 2]) {
    let mut largest = [0.0f32; LANES];
    for half in block.as_chunks::<LANES>().0 {
        for lane in 0..LANES {
            let magnitude = half[lane].abs();
            largest[lane] = if magnitude > largest[lane] { magnitude } else { largest[lane] };
        }
    }
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            let other = largest[lane + width];
            largest[lane] = if other > largest[lane] { other } else { largest[lane] };
        }
        width /= 2;
    }
    let largest = largest[0];
    let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
    let mut rounded = [0i32; BLOCK];
    for (to, value) in rounded.iter_mut().zip(block) {
        *to = nearest(value * inverse);
    }
    for (to, value) in quants.iter_mut().zip(rounded) {
        *to = value as i8;
    }
    let sum = |half: &[i32]| half.iter().sum();
    (largest / 127.0, [sum(&rounded[..LANES]), sum(&rounded[LANES..])])
}
