//! A tile of a product with quantised weights: the quants of a block of a panel, unpacked once for some rows of
//! activations; integer sums per group of columns, scaled into floats.
#![expect(unsafe_code, reason = "pointers into slices whose lengths `fast.rs` has checked")]
#![expect(unsafe_op_in_unsafe_fn, reason = "every operation here is one")]
#![expect(clippy::needless_range_loop, reason = "the indices are of registers")]

use super::{
    BLOCK, PANEL,
    activations::{Quantised, STRIP},
    fast::{Emit, Span},
    isa::{Isa, on_isa},
    memory::Line,
    weight::{Format, Segment},
};
use crate::simd::Level;

/// Lines of quants that are asked for ahead of what is read.
const LINES_AHEAD: usize = 64;
/// Lines of four columns in a block.
pub(super) const QUADS: usize = BLOCK / 4;

/// A format, as the compiler must know it.
pub(super) trait Kind {
    const NIBBLES: bool;
    /// Columns that share a scale.
    const GROUP: usize;
    const MINIMA: bool;
    /// Whether a quant may be above 127.
    const WIDE: bool;
}

pub(super) struct Q8;
pub(super) struct Q6;
pub(super) struct Q4;
pub(super) struct Q4Min;

impl Kind for Q8 {
    const NIBBLES: bool = false;
    const GROUP: usize = 32;
    const MINIMA: bool = false;
    const WIDE: bool = true;
}

impl Kind for Q6 {
    const NIBBLES: bool = false;
    const GROUP: usize = 16;
    const MINIMA: bool = false;
    const WIDE: bool = false;
}

impl Kind for Q4 {
    const NIBBLES: bool = true;
    const GROUP: usize = 32;
    const MINIMA: bool = false;
    const WIDE: bool = false;
}

impl Kind for Q4Min {
    const NIBBLES: bool = true;
    const GROUP: usize = 32;
    const MINIMA: bool = true;
    const WIDE: bool = false;
}

/// Rows `span.rows` of `x` with panels `span.panels` of `segment`; `corrections` are `x.corrections(segment.format)`.
///
/// # Safety
/// The spans are within `x` and `segment`, whose format is quantised; `level` is one of the machine's.
pub(super) unsafe fn multiply(
    x: &Quantised,
    corrections: &[i32],
    segment: &Segment,
    span: &Span,
    emit: &Emit<'_>,
    level: Level,
) {
    macro_rules! run {
        ($kind:ty) => {
            on_isa!(level, tiles::<$kind>(
                x: &Quantised, corrections: &[i32], segment: &Segment, span: &Span, emit: &Emit<'_>
            ))
        };
    }
    match segment.format {
        Format::Q8 => run!(Q8),
        Format::Q6 => run!(Q6),
        Format::Q4 => run!(Q4),
        Format::Q4Min => run!(Q4Min),
        Format::F32 | Format::Bf16 | Format::Int16 => {
            unreachable!("these are multiplied elsewhere. This is a bug.")
        }
    }
}

#[inline(always)]
unsafe fn tiles<I: Isa, K: Kind, const HALVES: usize>(
    x: &Quantised,
    corrections: &[i32],
    segment: &Segment,
    span: &Span,
    emit: &Emit<'_>,
) {
    for panel in span.panels.clone() {
        let mut row = span.rows.start;
        while row < span.rows.end {
            macro_rules! tile {
                ($rows:literal) => {{
                    tile::<I, K, HALVES, $rows>(x, corrections, segment, row, panel, emit);
                    row += $rows;
                }};
            }
            match span.rows.end - row {
                8.. if I::ACCUMULATORS >= 24 => tile!(8),
                4.. => tile!(4),
                2.. => tile!(2),
                _ => tile!(1),
            }
        }
    }
}

#[inline(always)]
unsafe fn tile<I: Isa, K: Kind, const HALVES: usize, const ROWS: usize>(
    x: &Quantised,
    corrections: &[i32],
    segment: &Segment,
    row: usize,
    panel: usize,
    emit: &Emit<'_>,
) {
    let blocks = x.columns / BLOCK;
    let groups = BLOCK / K::GROUP;
    let (quant_lines, scale_lines) = segment.format.quant_lines(x.columns);
    let lines: *const Line = segment.lines.as_ptr().add(panel * segment.stride);
    let scales = lines.add(quant_lines).cast::<u16>();
    let minima = lines.add(quant_lines + scale_lines).cast::<u16>();
    let quants = x.quants.as_ptr().add(row * x.columns);
    // The rows of a tile are of one strip.
    let (strip, lane) = (row / STRIP * STRIP, row % STRIP);
    let x_scales = x.scales.as_ptr().add(strip * blocks + lane);
    let corrections = corrections.as_ptr().add(strip * blocks * groups + lane);
    let mut sums = [[I::zero(); HALVES]; ROWS];
    for block in 0..blocks {
        for line in block * segment.format.block_lines()..(block + 1) * segment.format.block_lines() {
            // Of this panel or the next one.
            let ahead = line + LINES_AHEAD;
            let ahead = if ahead < quant_lines { ahead } else { ahead + segment.stride - quant_lines };
            I::prefetch(lines.wrapping_add(ahead).cast());
        }
        // The next panel's scales and minima, which are needed from its first block on; no more lines than blocks.
        I::prefetch(lines.wrapping_add(segment.stride + quant_lines + block).cast());
        for half in 0..HALVES {
            let weights = unpack::<I, K>(lines.cast::<u8>(), block, half);
            for group in 0..groups {
                let first_quad = group * K::GROUP / 4;
                let scale = I::load_f16(scales.add((block * groups + group) * PANEL + half * I::LANES));
                let corrections = corrections.add((block * groups + group) * STRIP);
                for row in 0..ROWS {
                    let quads = quants.add(row * x.columns + block * BLOCK).cast::<u32>();
                    // Two sums, since each waits for its last product.
                    let start = if K::MINIMA { 0 } else { *corrections.add(row) };
                    let mut dots = [I::splat_i32(start), I::splat_i32(0)];
                    for quad in first_quad..first_quad + K::GROUP / 4 {
                        let x = quads.add(quad).read_unaligned();
                        dots[quad % 2] = I::dot_u8(dots[quad % 2], weights[quad], x, K::WIDE);
                    }
                    let dot = I::add_i32(dots[0], dots[1]);
                    let both = I::mul(scale, I::splat(*x_scales.add(block * STRIP + row)));
                    let sum = &mut sums[row][half];
                    *sum = I::fma(I::to_f32(dot), both, *sum);
                    if K::MINIMA {
                        let minimum = I::load_f16(minima.add(block * PANEL + half * I::LANES));
                        let correction = f32::from_bits((*corrections.add(row)).cast_unsigned());
                        *sum = I::fma(minimum, I::splat(correction), *sum);
                    }
                }
            }
        }
    }
    for (index, halves) in sums.iter().enumerate() {
        let mut out = [0.0f32; PANEL];
        for (half, sum) in halves.iter().enumerate() {
            I::store(out.as_mut_ptr().add(half * I::LANES), *sum);
        }
        emit.panel(segment, row + index, panel, &out);
    }
}

/// The quants of a block, four columns to a vector.
#[inline(always)]
pub(super) unsafe fn unpack<I: Isa, K: Kind>(lines: *const u8, block: usize, half: usize) -> [I::I; QUADS] {
    let mut weights = [I::splat_i32(0); QUADS];
    if K::NIBBLES {
        for line in 0..QUADS / 2 {
            let packed = I::load(lines.add((block * QUADS / 2 + line) * 64 + half * 32));
            (weights[line], weights[line + QUADS / 2]) = I::nibbles(packed);
        }
    } else {
        for (quad, weights) in weights.iter_mut().enumerate() {
            *weights = I::load(lines.add((block * QUADS + quad) * 64 + half * 32));
        }
    }
    weights
}
