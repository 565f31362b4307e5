//! The tiles of a span: some rows of activations with some panels of the weight, in registers.
#![expect(unsafe_code, reason = "pointers into slices whose lengths `fast.rs` has checked")]
#![expect(unsafe_op_in_unsafe_fn, reason = "every operation here is one")]

use super::{
    fast::{Emit, Span},
    isa::Isa,
    weight::Segment,
};

/// One size of tile for each number of rows and of panels.
pub(super) trait Tile {
    /// Of activations.
    type Rows: Copy;
    /// Whether a tile's accumulators are all the registers that it needs many of.
    const IS_LEAN: bool;

    /// `ROWS` rows of `x` from `row` on with `PANELS` panels from `panel` on.
    ///
    /// # Safety
    /// These are there; the processor has the instructions.
    unsafe fn compute<I: Isa, const HALVES: usize, const ROWS: usize, const PANELS: usize>(
        x: Self::Rows,
        segment: &Segment,
        row: usize,
        panel: usize,
        emit: &Emit<'_>,
    );
}

/// Tiles as large as the registers allow, then smaller ones for what is left.
#[inline(always)]
pub(super) unsafe fn tiles<I: Isa, T: Tile, const HALVES: usize>(
    x: T::Rows,
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
                    T::compute::<I, HALVES, $rows, $panels>(x, segment, row, panel, emit);
                    row += $rows;
                }};
            }
            match (panels, left) {
                (4, 4..) => tile!(4, 4),
                (4, 2..) => tile!(2, 4),
                (4, _) => tile!(1, 4),
                (2, 12..) if T::IS_LEAN => tile!(12, 2),
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
