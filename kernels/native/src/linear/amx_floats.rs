//! Products of bf16 with bf16 on matrix tiles: a panel's lines are the rows of such a tile as they lie in memory.
//!
//! ```text
//!             panels              up to 16 rows of x:   1 tile of rows by 4 panels
//!   rows  [16×16][16×16]          more:                 2 tiles of rows by 2 panels
//!   of x  [16×16][16×16]   each the sum over all columns, 32 at a time
//! ```
#![expect(unsafe_code, reason = "pointers into slices whose lengths `fast.rs` has checked")]
#![expect(unsafe_op_in_unsafe_fn, reason = "every operation here is one")]

use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};

use super::{
    PANEL,
    activations::Halves,
    fast::{Emit, Span},
    memory::Line,
    weight::Segment,
};
use crate::{
    amx::{self, ROW_BYTES, ROWS, Shapes, Tiles},
    simd::Block,
};

/// Columns of a step: what a row of a tile holds.
const COLUMNS: usize = 32;
/// Bytes of a panel in a step.
const STEP_BYTES: usize = COLUMNS / 2 * 64;
/// Bytes ahead of what is read.
const PREFETCH: usize = 4096;

/// Rows `span.rows` of `x` with panels `span.panels` of `segment`.
///
/// # Safety
/// The spans are within `x` and `segment`, whose format is Bf16 and whose columns are a multiple of 32; the machine has
/// [`crate::simd::Level::Amx`].
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512vl,avx512bw,avx512dq")]
pub(super) unsafe fn multiply(x: &Halves<'_>, segment: &Segment, span: &Span, emit: &Emit<'_>) {
    let mut scratch = [Block::default(); 4 * ROWS];
    let num_rows = span.rows.len();
    let mut at = if num_rows <= ROWS { [num_rows, 0] } else { [ROWS; 2] };
    let tiles = Tiles::new(&shapes(at));
    let mut panel = span.panels.start;
    while panel < span.panels.end {
        let step = if num_rows <= ROWS { 4 } else { 2 };
        let panels = step.min(span.panels.end - panel);
        let mut row = span.rows.start;
        while row < span.rows.end {
            let left = span.rows.end - row;
            let heights = [left.min(ROWS), left.saturating_sub(ROWS).min(ROWS)];
            if heights != at {
                tiles.reshape(&shapes(heights));
                at = heights;
            }
            let call = Call { x, segment, row, panel };
            match (heights[1] > 0, panels) {
                (true, 2) if num_rows <= 2 * ROWS => call.square::<true>(&mut scratch),
                (true, 2) => call.square::<false>(&mut scratch),
                (true, _) => call.column(&mut scratch),
                (false, 4) => call.row::<4>(&mut scratch),
                (false, 3) => call.row::<3>(&mut scratch),
                (false, 2) => call.row::<2>(&mut scratch),
                (false, _) => call.row::<1>(&mut scratch),
            }
            // Tiles of sums lie in the scratch by panel, and within a panel by row.
            let height = heights[0] + heights[1];
            let stride = if heights[1] > 0 { 2 * ROWS } else { ROWS };
            for index in 0..height {
                for offset in 0..panels {
                    emit.panel(segment, row + index, panel + offset, &scratch[offset * stride + index]);
                }
            }
            row += height;
        }
        panel += panels;
    }
}

/// Tiles 0 to 3 are sums (0 and 2 of the first tile of rows, 1 and 3 of the second; or all of the first, if there is no
/// second), 4 and 5 activations, 6 and 7 weights.
fn shapes(heights: [usize; 2]) -> Shapes {
    let [first, second] = heights;
    let other = if second > 0 { second } else { first };
    let rows = [first, other, first, other, first, second, ROWS, ROWS];
    Shapes::new(rows.map(|rows| (rows, ROW_BYTES)))
}

struct Call<'a> {
    x: &'a Halves<'a>,
    segment: &'a Segment,
    row: usize,
    panel: usize,
}

impl Call<'_> {
    #[inline(always)]
    unsafe fn rows(&self, tile: usize) -> *const u8 {
        self.x.values.as_ptr().add((self.row + tile * ROWS) * self.x.columns).cast()
    }

    #[inline(always)]
    unsafe fn lines(&self, offset: usize) -> *const u8 {
        let lines: *const Line = self.segment.lines.as_ptr();
        lines.add((self.panel + offset) * self.segment.stride).cast()
    }

    /// Two tiles of rows by two panels; `ONCE`: there are no more rows, and the panels come from memory.
    #[inline(always)]
    unsafe fn square<const ONCE: bool>(&self, scratch: &mut [Block]) {
        let (upper, lower, stride) = (self.rows(0), self.rows(1), self.x.columns * 2);
        let (left, right) = (self.lines(0), self.lines(1));
        amx::zero::<0>();
        amx::zero::<1>();
        amx::zero::<2>();
        amx::zero::<3>();
        for step in 0..self.x.columns / COLUMNS {
            if ONCE {
                prefetch(left, step);
                prefetch(right, step);
            }
            amx::load::<6>(left.add(step * STEP_BYTES), 64);
            amx::load::<4>(upper.add(step * ROW_BYTES), stride);
            amx::multiply_bf16::<0, 4, 6>();
            amx::load::<5>(lower.add(step * ROW_BYTES), stride);
            amx::multiply_bf16::<1, 5, 6>();
            amx::load::<7>(right.add(step * STEP_BYTES), 64);
            amx::multiply_bf16::<2, 4, 7>();
            amx::multiply_bf16::<3, 5, 7>();
        }
        store::<0>(scratch, 0);
        store::<1>(scratch, 1);
        store::<2>(scratch, 2);
        store::<3>(scratch, 3);
    }

    /// Two tiles of rows by the last panel.
    #[inline(always)]
    unsafe fn column(&self, scratch: &mut [Block]) {
        let (upper, lower, stride) = (self.rows(0), self.rows(1), self.x.columns * 2);
        let lines = self.lines(0);
        amx::zero::<0>();
        amx::zero::<1>();
        for step in 0..self.x.columns / COLUMNS {
            amx::load::<6>(lines.add(step * STEP_BYTES), 64);
            amx::load::<4>(upper.add(step * ROW_BYTES), stride);
            amx::multiply_bf16::<0, 4, 6>();
            amx::load::<5>(lower.add(step * ROW_BYTES), stride);
            amx::multiply_bf16::<1, 5, 6>();
        }
        store::<0>(scratch, 0);
        store::<1>(scratch, 1);
    }

    /// One tile of rows by some panels, whose lines are read once and from memory.
    #[inline(always)]
    unsafe fn row<const PANELS: usize>(&self, scratch: &mut [Block]) {
        let (rows, stride) = (self.rows(0), self.x.columns * 2);
        let lines: [*const u8; PANELS] = std::array::from_fn(|offset| self.lines(offset));
        amx::zero::<0>();
        amx::zero::<1>();
        amx::zero::<2>();
        amx::zero::<3>();
        for step in 0..self.x.columns / COLUMNS {
            amx::load::<4>(rows.add(step * ROW_BYTES), stride);
            for lines in lines {
                prefetch(lines, step);
            }
            amx::load::<6>(lines[0].add(step * STEP_BYTES), 64);
            amx::multiply_bf16::<0, 4, 6>();
            if PANELS > 1 {
                amx::load::<7>(lines[1].add(step * STEP_BYTES), 64);
                amx::multiply_bf16::<1, 4, 7>();
            }
            if PANELS > 2 {
                amx::load::<6>(lines[2].add(step * STEP_BYTES), 64);
                amx::multiply_bf16::<2, 4, 6>();
            }
            if PANELS > 3 {
                amx::load::<7>(lines[3].add(step * STEP_BYTES), 64);
                amx::multiply_bf16::<3, 4, 7>();
            }
        }
        store::<0>(scratch, 0);
        store::<1>(scratch, 1);
        store::<2>(scratch, 2);
        store::<3>(scratch, 3);
    }
}

/// Has a panel's lines fetched some steps ahead.
#[inline(always)]
unsafe fn prefetch(lines: *const u8, step: usize) {
    for line in 0..STEP_BYTES / 64 {
        let ahead = lines.wrapping_add(step * STEP_BYTES + line * 64 + PREFETCH);
        _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
    }
}

/// Writes a tile of sums as the `index`th of the scratch.
#[inline(always)]
unsafe fn store<const TILE: u8>(scratch: &mut [Block], index: usize) {
    amx::store::<TILE>(scratch[index * ROWS..][..ROWS].as_mut_ptr().cast(), size_of::<[f32; PANEL]>());
}
