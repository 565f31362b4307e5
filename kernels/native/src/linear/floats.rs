//! A tile of a product with float weights: some rows of activations with some panels of the weight, in registers.
#![expect(unsafe_code, reason = "pointers into slices whose lengths `fast.rs` has checked")]
#![expect(unsafe_op_in_unsafe_fn, reason = "every operation here is one")]
#![expect(clippy::needless_range_loop, reason = "the indices are of registers")]

use super::{
    PANEL,
    activations::Singles,
    fast::{Emit, Span},
    isa::{Isa, on_isa},
    memory::Line,
    weight::{Format, Segment},
};
use crate::simd::Level;

/// Bytes ahead of what is read.
const PREFETCH: usize = 2048;

/// How a line of a panel is read.
trait Kind {
    /// Columns in a line.
    const COLUMNS: usize;
    unsafe fn load<I: Isa>(line: *const u8) -> [I::F; 2];
}

struct F32;
struct Bf16;

impl Kind for F32 {
    const COLUMNS: usize = 1;

    #[inline(always)]
    unsafe fn load<I: Isa>(line: *const u8) -> [I::F; 2] {
        [I::load_f32(line.cast()), I::zero()]
    }
}

impl Kind for Bf16 {
    const COLUMNS: usize = 2;

    #[inline(always)]
    unsafe fn load<I: Isa>(line: *const u8) -> [I::F; 2] {
        I::load_bf16_pairs(line.cast())
    }
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
    if segment.format == Format::Bf16 {
        on_isa!(level, tiles::<Bf16>(x: &Singles<'_>, segment: &Segment, span: &Span, emit: &Emit<'_>));
    } else {
        on_isa!(level, tiles::<F32>(x: &Singles<'_>, segment: &Segment, span: &Span, emit: &Emit<'_>));
    }
}

/// Tiles as large as the registers allow, then smaller ones for what is left.
#[inline(always)]
unsafe fn tiles<I: Isa, K: Kind, const HALVES: usize>(
    x: &Singles<'_>,
    segment: &Segment,
    span: &Span,
    emit: &Emit<'_>,
) {
    let mut panel = span.panels.start;
    while panel < span.panels.end {
        let left = span.panels.end - panel;
        let few_rows = span.rows.len() < 8;
        let panels = if I::ACCUMULATORS < 24 || left == 1 {
            1
        } else if few_rows && left >= 4 {
            4
        } else {
            2
        };
        let mut row = span.rows.start;
        while row < span.rows.end {
            let left = span.rows.end - row;
            macro_rules! tile {
                ($rows:literal, $panels:literal) => {{
                    tile::<I, K, HALVES, $rows, $panels>(x, segment, row, panel, emit);
                    row += $rows;
                }};
            }
            match (panels, left) {
                (4, 4..) => tile!(4, 4),
                (4, 2..) => tile!(2, 4),
                (4, _) => tile!(1, 4),
                (2, 12..) if K::COLUMNS == 1 => tile!(12, 2),
                (2, 8..) => tile!(8, 2),
                (2, 4..) => tile!(4, 2),
                (2, _) => tile!(1, 2),
                (_, 6..) => tile!(6, 1),
                (_, 4..) => tile!(4, 1),
                (_, 2..) => tile!(2, 1),
                (_, _) => tile!(1, 1),
            }
        }
        panel += panels;
    }
}

#[inline(always)]
unsafe fn tile<I: Isa, K: Kind, const HALVES: usize, const ROWS: usize, const PANELS: usize>(
    x: &Singles<'_>,
    segment: &Segment,
    row: usize,
    panel: usize,
    emit: &Emit<'_>,
) {
    let lines: *const Line = segment.lines.as_ptr().add(panel * segment.stride);
    let rows = x.values.as_ptr().add(row * x.columns);
    let mut sums = [[[I::zero(); HALVES]; PANELS]; ROWS];
    for step in 0..segment.stride {
        for half in 0..HALVES {
            let mut weights = [[I::zero(); 2]; PANELS];
            for panel in 0..PANELS {
                let line = lines.add(panel * segment.stride + step).cast::<u8>();
                I::prefetch(line.wrapping_add(PREFETCH));
                weights[panel] = K::load::<I>(line.add(half * 32));
            }
            for column in 0..K::COLUMNS {
                for row in 0..ROWS {
                    let x = I::splat(*rows.add(row * x.columns + step * K::COLUMNS + column));
                    for panel in 0..PANELS {
                        let sum = &mut sums[row][panel][half];
                        *sum = I::fma(weights[panel][column], x, *sum);
                    }
                }
            }
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
