//! A tile of a product with float weights: some rows of activations with some panels of the weight, in registers.
#![expect(unsafe_code, reason = "pointers into slices whose lengths `fast.rs` has checked")]
#![expect(unsafe_op_in_unsafe_fn, reason = "every operation here is one")]
#![expect(clippy::needless_range_loop, reason = "the indices are of registers")]

use super::{
    PANEL,
    activations::{Halves, Singles},
    fast::{Emit, Span},
    isa::{Isa, on_isa},
    memory::Line,
    tiles::{Tile, tiles},
    weight::{Format, Segment},
};
use crate::simd::Level;

/// Bytes ahead of what is read.
const PREFETCH: usize = 2048;

/// How a line of a panel is multiplied.
pub(super) trait Kind {
    /// Of the activations.
    type X: Copy;
    /// Elements of the activations that a line takes.
    const COLUMNS: usize;
    /// See [`Tile`].
    const IS_LEAN: bool;

    /// Adds the products of some panels' lines with some rows of `x`, which are `stride` elements apart.
    unsafe fn add<I: Isa, const HALVES: usize, const ROWS: usize, const PANELS: usize>(
        sums: &mut [[[I::F; HALVES]; PANELS]; ROWS],
        half: usize,
        lines: [*const u8; PANELS],
        x: *const Self::X,
        stride: usize,
    );
}

/// Floats with floats.
struct F32;
/// Pairs of bf16, widened, with floats.
struct Widened;
/// Pairs of bf16 with such.
struct Pairs;

impl Kind for F32 {
    type X = f32;
    const COLUMNS: usize = 1;
    const IS_LEAN: bool = true;

    #[inline(always)]
    unsafe fn add<I: Isa, const HALVES: usize, const ROWS: usize, const PANELS: usize>(
        sums: &mut [[[I::F; HALVES]; PANELS]; ROWS],
        half: usize,
        lines: [*const u8; PANELS],
        x: *const f32,
        stride: usize,
    ) {
        let mut weights = [I::zero(); PANELS];
        for panel in 0..PANELS {
            weights[panel] = I::load_f32(lines[panel].cast());
        }
        add_column::<I, HALVES, ROWS, PANELS>(sums, half, weights, x, stride);
    }
}

impl Kind for Widened {
    type X = f32;
    const COLUMNS: usize = 2;
    const IS_LEAN: bool = false;

    #[inline(always)]
    unsafe fn add<I: Isa, const HALVES: usize, const ROWS: usize, const PANELS: usize>(
        sums: &mut [[[I::F; HALVES]; PANELS]; ROWS],
        half: usize,
        lines: [*const u8; PANELS],
        x: *const f32,
        stride: usize,
    ) {
        let (mut first, mut second) = ([I::zero(); PANELS], [I::zero(); PANELS]);
        for panel in 0..PANELS {
            [first[panel], second[panel]] = I::load_bf16_pairs(lines[panel].cast());
        }
        add_column::<I, HALVES, ROWS, PANELS>(sums, half, first, x, stride);
        add_column::<I, HALVES, ROWS, PANELS>(sums, half, second, x.add(1), stride);
    }
}

/// Adds the products of a column of some panels with an element of some rows.
#[inline(always)]
unsafe fn add_column<I: Isa, const HALVES: usize, const ROWS: usize, const PANELS: usize>(
    sums: &mut [[[I::F; HALVES]; PANELS]; ROWS],
    half: usize,
    weights: [I::F; PANELS],
    x: *const f32,
    stride: usize,
) {
    for row in 0..ROWS {
        let x = I::splat(*x.add(row * stride));
        for panel in 0..PANELS {
            sums[row][panel][half] = I::fma(weights[panel], x, sums[row][panel][half]);
        }
    }
}

impl Kind for Pairs {
    type X = u16;
    const COLUMNS: usize = 2;
    const IS_LEAN: bool = true;

    #[inline(always)]
    unsafe fn add<I: Isa, const HALVES: usize, const ROWS: usize, const PANELS: usize>(
        sums: &mut [[[I::F; HALVES]; PANELS]; ROWS],
        half: usize,
        lines: [*const u8; PANELS],
        x: *const u16,
        stride: usize,
    ) {
        for row in 0..ROWS {
            let pair = x.add(row * stride).cast::<u32>().read_unaligned();
            for panel in 0..PANELS {
                sums[row][panel][half] = I::dot_bf16(sums[row][panel][half], lines[panel].cast(), pair);
            }
        }
    }
}

/// Rows of activations.
#[derive(Clone, Copy)]
pub(super) struct Rows<X> {
    values: *const X,
    columns: usize,
}

/// Rows `span.rows` of `x` with panels `span.panels` of `segment`.
///
/// # Safety
/// The spans are within `x` and `segment`, whose format is F32 or Bf16; `level` is one of the machine's.
pub(super) unsafe fn multiply(
    x: &Singles<'_>,
    segment: &Segment,
    span: &Span,
    emit: &Emit<'_>,
    level: Level,
) {
    let x = Rows { values: x.values.as_ptr(), columns: x.columns };
    if segment.format == Format::Bf16 {
        on_isa!(level, tiles::<Widened>(x: Rows<f32>, segment: &Segment, span: &Span, emit: &Emit<'_>));
    } else {
        on_isa!(level, tiles::<F32>(x: Rows<f32>, segment: &Segment, span: &Span, emit: &Emit<'_>));
    }
}

/// The same for activations in bf16.
///
/// # Safety
/// As of `multiply`; the format is Bf16, and `level` is [`Level::Avx512Bf16`].
pub(super) unsafe fn multiply_pairs(
    x: &Halves<'_>,
    segment: &Segment,
    span: &Span,
    emit: &Emit<'_>,
    level: Level,
) {
    let x = Rows { values: x.values.as_ptr(), columns: x.columns };
    on_isa!(level, tiles::<Pairs>(x: Rows<u16>, segment: &Segment, span: &Span, emit: &Emit<'_>));
}

impl<K: Kind> Tile for K {
    type Rows = Rows<K::X>;
    const IS_LEAN: bool = K::IS_LEAN;

    #[inline(always)]
    unsafe fn compute<I: Isa, const HALVES: usize, const ROWS: usize, const PANELS: usize>(
        x: Rows<K::X>,
        segment: &Segment,
        row: usize,
        panel: usize,
        emit: &Emit<'_>,
    ) {
        tile::<I, K, HALVES, ROWS, PANELS>(x, segment, row, panel, emit);
    }
}

#[inline(always)]
unsafe fn tile<I: Isa, K: Kind, const HALVES: usize, const ROWS: usize, const PANELS: usize>(
    x: Rows<K::X>,
    segment: &Segment,
    row: usize,
    panel: usize,
    emit: &Emit<'_>,
) {
    let lines: *const Line = segment.lines.as_ptr().add(panel * segment.stride);
    let rows = x.values.add(row * x.columns);
    let mut sums = [[[I::zero(); HALVES]; PANELS]; ROWS];
    for step in 0..segment.stride {
        for half in 0..HALVES {
            let mut at = [lines.cast::<u8>(); PANELS];
            for panel in 0..PANELS {
                let line = lines.add(panel * segment.stride + step).cast::<u8>();
                I::prefetch(line.wrapping_add(PREFETCH));
                at[panel] = line.add(half * 32);
            }
            K::add::<I, HALVES, ROWS, PANELS>(&mut sums, half, at, rows.add(step * K::COLUMNS), x.columns);
        }
    }
    for (index, sums) in sums.iter().enumerate() {
        for (panel_index, halves) in sums.iter().enumerate() {
            let mut out = [0.0f32; PANEL];
            for (half, sum) in halves.iter().enumerate() {
                I::store(out.as_mut_ptr().add(half * I::LANES), *sum);
            }
            emit.panel(segment, row + index, panel + panel_index, &out);
        }
    }
}
