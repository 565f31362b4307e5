//! Products with bf16 on matrix tiles: a panel's lines are the rows of such a tile as they lie in memory. Quantised panels
//! are unpacked into such lines, for enough rows that it pays.
//!
//! ```text
//!             panels              up to 16 rows of x:   1 tile of rows by 4 panels
//!   rows  [16×16][16×16]          more:                 2 tiles of rows by 2 panels
//!   of x  [16×16][16×16]   each the sum over all columns, 32 at a time
//! ```
#![expect(unsafe_code, reason = "pointers into slices whose lengths `fast.rs` has checked")]
#![expect(unsafe_op_in_unsafe_fn, reason = "every operation here is one")]

use std::{arch::x86_64::*, ops::Range};

use super::{
    BLOCK, PANEL,
    activations::Halves,
    fast::{Emit, Span},
    integers::{self, Kind, Q4, Q4Min, Q6, Q8},
    isa::Avx512,
    memory::Line,
    weight::{Format, Segment},
};
use crate::{
    amx::{self, ROW_BYTES, ROWS, Shapes, Tiles},
    simd::Block,
};

/// Columns of a step: what a row of a tile holds.
const COLUMNS: usize = 32;
/// Bytes of a panel in a step.
const STEP_BYTES: usize = COLUMNS / 2 * 64;
/// Panels that are multiplied with one tile of rows at a time.
const MAX_PANELS: usize = 4;
/// Bytes ahead of what is read.
const PREFETCH: usize = 4096;

/// Rows `span.rows` of `x` with panels `span.panels` of `segment`.
///
/// # Safety
/// The spans are within `x` and `segment`, whose format is not F32 and whose columns are a multiple of 32; the machine has
/// [`crate::simd::Level::Amx`].
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512vl,avx512bw,avx512dq,avx512vnni,avx512bf16")]
pub(super) unsafe fn multiply(x: &Halves<'_>, segment: &Segment, span: &Span, emit: &Emit<'_>) {
    let mut scratch = [Block::default(); 4 * ROWS];
    let num_rows = span.rows.len();
    let mut at = if num_rows <= ROWS { [num_rows, 0] } else { [ROWS; 2] };
    let tiles = Tiles::new(&shapes(at));
    let mut unpacked = Vec::new();
    let mut panel = span.panels.start;
    while panel < span.panels.end {
        let step = if num_rows <= ROWS { MAX_PANELS } else { 2 };
        let panels = step.min(span.panels.end - panel);
        let lines = lines(segment, x.columns, panel..panel + panels, &mut unpacked);
        let mut row = span.rows.start;
        while row < span.rows.end {
            let left = span.rows.end - row;
            let heights = [left.min(ROWS), left.saturating_sub(ROWS).min(ROWS)];
            if heights != at {
                tiles.reshape(&shapes(heights));
                at = heights;
            }
            let call = Call { x, row, lines };
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
    row: usize,
    /// Of each panel.
    lines: [*const u8; MAX_PANELS],
}

impl Call<'_> {
    #[inline(always)]
    unsafe fn rows(&self, tile: usize) -> *const u8 {
        self.x.values.as_ptr().add((self.row + tile * ROWS) * self.x.columns).cast()
    }

    /// Two tiles of rows by two panels; `ONCE`: there are no more rows, and the panels come from memory.
    #[inline(always)]
    unsafe fn square<const ONCE: bool>(&self, scratch: &mut [Block]) {
        let (upper, lower, stride) = (self.rows(0), self.rows(1), self.x.columns * 2);
        let (left, right) = (self.lines[0], self.lines[1]);
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
        let lines = self.lines[0];
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
        let lines = self.lines;
        amx::zero::<0>();
        amx::zero::<1>();
        amx::zero::<2>();
        amx::zero::<3>();
        for step in 0..self.x.columns / COLUMNS {
            amx::load::<4>(rows.add(step * ROW_BYTES), stride);
            for lines in &lines[..PANELS] {
                prefetch(*lines, step);
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

/// Where the lines of some panels are: in the segment, or unpacked.
#[inline(always)]
unsafe fn lines(
    segment: &Segment,
    columns: usize,
    panels: Range<usize>,
    unpacked: &mut Vec<Line>,
) -> [*const u8; MAX_PANELS] {
    let mut lines = [std::ptr::null(); MAX_PANELS];
    if segment.format == Format::Bf16 {
        for (lines, panel) in lines.iter_mut().zip(panels) {
            *lines = segment.lines.as_ptr().add(panel * segment.stride).cast();
        }
        return lines;
    }
    unpacked.resize(MAX_PANELS * columns / 2, Line([0; 64]));
    for (index, panel) in panels.enumerate() {
        let into = unpacked.as_mut_ptr().add(index * columns / 2);
        let from = segment.lines.as_ptr().add(panel * segment.stride);
        match segment.format {
            Format::Q8 => unpack::<Q8>(segment.format, from, columns, into),
            Format::Q6 => unpack::<Q6>(segment.format, from, columns, into),
            Format::Q4 => unpack::<Q4>(segment.format, from, columns, into),
            _ => unpack::<Q4Min>(segment.format, from, columns, into),
        }
        lines[index] = into.cast_const().cast();
    }
    lines
}

/// What the quants of a panel stand for, rounded to bf16: a line per pair of columns.
#[inline(always)]
unsafe fn unpack<K: Kind>(format: Format, from: *const Line, columns: usize, into: *mut Line) {
    /// Words of two vectors in turns.
    const TURNS: [u16; 32] = {
        let mut turns = [0; 32];
        let mut lane = 0;
        while lane < 16 {
            turns[2 * lane] = lane as u16;
            turns[2 * lane + 1] = lane as u16 + 16;
            lane += 1;
        }
        turns
    };
    let turns = _mm512_loadu_si512(TURNS.as_ptr().cast());
    let byte = _mm512_set1_epi32(0xFF);
    let (quant_lines, scale_lines) = format.quant_lines(columns);
    let scales = from.add(quant_lines).cast::<u16>();
    let minima = from.add(quant_lines + scale_lines).cast::<u16>();
    for block in 0..columns / BLOCK {
        let quads = integers::unpack::<Avx512<true, false>, K>(from.cast(), block, 0);
        for (quad, &quants) in quads.iter().enumerate() {
            let group = (block * BLOCK + quad * 4) / K::GROUP;
            let scale = half(scales.add(group * PANEL));
            let offset = if K::MINIMA {
                half(minima.add(group * PANEL))
            } else {
                _mm512_mul_ps(scale, _mm512_set1_ps(-(format.offset() as f32)))
            };
            for pair in 0..2 {
                let pairs = if pair == 0 { quants } else { _mm512_srli_epi32::<16>(quants) };
                let even = _mm512_cvtepi32_ps(_mm512_and_si512(pairs, byte));
                let odd = _mm512_cvtepi32_ps(_mm512_and_si512(_mm512_srli_epi32::<8>(pairs), byte));
                let even = _mm512_fmadd_ps(even, scale, offset);
                let odd = _mm512_fmadd_ps(odd, scale, offset);
                let both: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(odd, even));
                let line = into.add((block * BLOCK + quad * 4) / 2 + pair);
                _mm512_storeu_si512(line.cast(), _mm512_permutexvar_epi16(turns, both));
            }
        }
    }
}

#[inline(always)]
unsafe fn half(from: *const u16) -> __m512 {
    _mm512_cvtph_ps(_mm256_loadu_si256(from.cast()))
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
