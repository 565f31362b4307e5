//! A tile of a product of 16-bit integers, a pair of columns at a time: exact sums of 64 columns, scaled into floats.
//!
//! 64 activations are scaled to a length of [`ONE`], a weight's row so that each 64 of its columns have this length at most:
//! no sum of products is then larger than its square (Cauchy and Schwarz), and fits into 32 bits.
#![expect(unsafe_code, reason = "pointers into slices whose lengths `fast.rs` has checked")]
#![expect(unsafe_op_in_unsafe_fn, reason = "every operation here is one")]
#![expect(clippy::needless_range_loop, reason = "the indices are of registers")]

use super::{
    PANEL,
    activations::{Int16, nearest},
    fast::{Emit, Span},
    isa::{Isa, on_isa},
    memory::Line,
    tiles::{Tile, tiles},
    weight::Segment,
};
use crate::{int16::ONE, simd::Level};

/// Activations that share a scale.
pub(super) const STRETCH: usize = 64;
/// What has no length has this one; what is no number remains none.
const LEAST: f32 = 1e-30;
/// Bytes ahead of what is read.
const PREFETCH: usize = 2048;

/// What a 1 stands for where a stretch has the length [`ONE`].
#[inline(always)]
pub(super) fn unit(values: &[f32; STRETCH]) -> f32 {
    let mut squares = [0.0f32; 16];
    for values in values.as_chunks::<16>().0 {
        for lane in 0..16 {
            squares[lane] += values[lane] * values[lane];
        }
    }
    let length = squares.iter().sum::<f32>().sqrt();
    if length < LEAST { LEAST / ONE } else { length / ONE }
}

/// `values / unit`, rounded.
#[inline(always)]
pub(super) fn round(values: &[f32; STRETCH], unit: f32) -> [i16; STRETCH] {
    let (mut rounded, scale) = ([0; STRETCH], 1.0 / unit);
    for (to, value) in rounded.iter_mut().zip(values) {
        *to = nearest(value * scale) as i16;
    }
    rounded
}

/// Rows of activations.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    values: *const i16,
    units: *const f32,
    columns: usize,
}

struct Sums;

/// Rows `span.rows` of `x` with panels `span.panels` of `segment`.
///
/// # Safety
/// The spans are within `x` and `segment`, whose format is Int16; `level` is one of the machine's.
pub(super) unsafe fn multiply(x: &Int16, segment: &Segment, span: &Span, emit: &Emit<'_>, level: Level) {
    let x = Rows { values: x.values.as_ptr(), units: x.units.as_ptr(), columns: x.columns };
    on_isa!(level, tiles::<Sums>(x: Rows, segment: &Segment, span: &Span, emit: &Emit<'_>));
}

impl Tile for Sums {
    type Rows = Rows;
    const IS_LEAN: bool = true;

    #[inline(always)]
    unsafe fn compute<I: Isa, const HALVES: usize, const ROWS: usize, const PANELS: usize>(
        x: Rows,
        segment: &Segment,
        row: usize,
        panel: usize,
        emit: &Emit<'_>,
    ) {
        let lines: *const Line = segment.lines.as_ptr().add(panel * segment.stride);
        let (num_lines, stretches) = (segment.stride - 1, x.columns.div_ceil(STRETCH));
        let (values, units) = (x.values.add(row * x.columns), x.units.add(row * stretches));
        let mut sums = [[[I::zero(); HALVES]; PANELS]; ROWS];
        for stretch in 0..stretches {
            let mut dots = [[[I::splat_i32(0); HALVES]; PANELS]; ROWS];
            for step in stretch * STRETCH / 2..num_lines.min((stretch + 1) * STRETCH / 2) {
                for half in 0..HALVES {
                    let mut weights = [I::splat_i32(0); PANELS];
                    for panel in 0..PANELS {
                        let line = lines.add(panel * segment.stride + step).cast::<u8>();
                        I::prefetch(line.wrapping_add(PREFETCH));
                        weights[panel] = I::load(line.add(half * 32));
                    }
                    for row in 0..ROWS {
                        let pair = values.add(row * x.columns + 2 * step).cast::<u32>().read_unaligned();
                        for panel in 0..PANELS {
                            dots[row][panel][half] = I::dot_i16(dots[row][panel][half], weights[panel], pair);
                        }
                    }
                }
            }
            for row in 0..ROWS {
                let unit = I::splat(*units.add(row * stretches + stretch));
                for panel in 0..PANELS {
                    for half in 0..HALVES {
                        let dot = I::to_f32(dots[row][panel][half]);
                        sums[row][panel][half] = I::fma(dot, unit, sums[row][panel][half]);
                    }
                }
            }
        }
        for (index, sums) in sums.iter().enumerate() {
            for (panel_index, halves) in sums.iter().enumerate() {
                let units = lines.add(panel_index * segment.stride + num_lines).cast::<f32>();
                let mut out = [0.0f32; PANEL];
                for (half, sum) in halves.iter().enumerate() {
                    let unit = I::load_f32(units.add(half * I::LANES));
                    I::store(out.as_mut_ptr().add(half * I::LANES), I::mul(*sum, unit));
                }
                emit.panel(segment, row + index, panel + panel_index, &out);
            }
        }
    }
}
