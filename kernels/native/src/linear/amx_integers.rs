//! Products of bytes on matrix tiles, 16 or 8 rows of activations at a time: the same integer sums, scaled in the same order, as in
//! `integers.rs`, so that the results are equal to the last bit. What is left of the rows is done there.
//!
//! A tile of sums holds one group of columns only, since the next has other scales: it goes through memory into the
//! registers that hold the floats.
#![expect(unsafe_code, reason = "pointers into slices whose lengths `fast.rs` has checked")]
#![expect(unsafe_op_in_unsafe_fn, reason = "every operation here is one")]
#![expect(clippy::needless_range_loop, reason = "the indices are of registers")]

use std::{arch::x86_64::*, mem::MaybeUninit};

use super::{
    BLOCK, PANEL,
    activations::{Quantised, STRIP},
    fast::{Emit, Span},
    integers::{Kind, QUADS},
    memory::Line,
    weight::Segment,
};
use crate::{
    amx::{self, ROW_BYTES, ROWS, Shapes, Tiles},
    simd::Block,
};

/// Rows of the smaller tile; with fewer, vectors are as fast.
const MIN_ROWS: usize = 8;
/// Groups of columns whose sums are in memory at a time: half of the first-level cache.
const CHUNK: usize = 16;

/// Rows from `span.rows.start` on, in tiles, with panels `span.panels` of `segment`; returns the first row that is left, which
/// are fewer than [`MIN_ROWS`].
///
/// # Safety
/// As of `integers::multiply`; the machine has [`crate::simd::Level::Amx`].
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512vl,avx512bw,avx512dq")]
pub(super) unsafe fn multiply<K: Kind>(
    x: &Quantised,
    corrections: &[i32],
    segment: &Segment,
    span: &Span,
    emit: &Emit<'_>,
) -> usize {
    if span.rows.len() < MIN_ROWS {
        return span.rows.start;
    }
    let (b, unused) = ((K::GROUP / 4, ROW_BYTES), (1, 4));
    let shapes = [
        (ROWS, ROW_BYTES),
        (MIN_ROWS, ROW_BYTES),
        (ROWS, K::GROUP),
        (MIN_ROWS, K::GROUP),
        b,
        unused,
        unused,
        unused,
    ];
    let _tiles = Tiles::new(&Shapes::new(shapes));
    let mut unpacked = Vec::new();
    let mut row = span.rows.start;
    for panel in span.panels.clone() {
        let lines: *const Line = segment.lines.as_ptr().add(panel * segment.stride);
        let weights = if K::NIBBLES { unpack(lines, x.columns, &mut unpacked) } else { lines };
        let tile = Tile { x, corrections, segment, panel, weights: weights.cast(), emit };
        row = span.rows.start;
        while row + ROWS <= span.rows.end {
            tile.multiply::<K, ROWS>(row);
            row += ROWS;
        }
        if row + MIN_ROWS <= span.rows.end {
            tile.multiply::<K, MIN_ROWS>(row);
            row += MIN_ROWS;
        }
    }
    row
}

/// The nibbles of a panel as bytes, a line per four columns.
#[inline(always)]
unsafe fn unpack(lines: *const Line, columns: usize, unpacked: &mut Vec<Line>) -> *const Line {
    unpacked.resize(columns / 4, Line([0; 64]));
    let (low, out) = (_mm512_set1_epi8(15), unpacked.as_mut_ptr());
    for block in 0..columns / BLOCK {
        for line in 0..QUADS / 2 {
            let packed = _mm512_loadu_si512(lines.add(block * QUADS / 2 + line).cast());
            let out = out.add(block * QUADS + line);
            _mm512_storeu_si512(out.cast(), _mm512_and_si512(packed, low));
            _mm512_storeu_si512(
                out.add(QUADS / 2).cast(),
                _mm512_and_si512(_mm512_srli_epi16(packed, 4), low),
            );
        }
    }
    out
}

/// A panel's tiles.
struct Tile<'a> {
    x: &'a Quantised,
    corrections: &'a [i32],
    segment: &'a Segment,
    panel: usize,
    /// A line per four columns.
    weights: *const u8,
    emit: &'a Emit<'a>,
}

impl Tile<'_> {
    /// `HEIGHT` rows from `row` on: [`ROWS`] or [`MIN_ROWS`].
    #[inline(always)]
    unsafe fn multiply<K: Kind, const HEIGHT: usize>(&self, row: usize) {
        let Self { x, segment, panel, .. } = *self;
        let (groups, blocks) = (x.columns / K::GROUP, x.columns / BLOCK);
        let (quant_lines, scale_lines) = segment.format.quant_lines(x.columns);
        let lines: *const Line = segment.lines.as_ptr().add(panel * segment.stride);
        let scales = lines.add(quant_lines).cast::<u16>();
        let minima = lines.add(quant_lines + scale_lines).cast::<u16>();
        let quants = x.quants.as_ptr().add(row * x.columns).cast::<u8>();
        let (strip, lane) = (row / STRIP * STRIP, row % STRIP);
        let x_scales = x.scales.as_ptr().add(strip * blocks + lane);
        let corrections = self.corrections.as_ptr().add(strip * groups + lane);
        let mut scratch = [MaybeUninit::<[Block; HEIGHT]>::uninit(); CHUNK];
        let mut sums = [_mm512_setzero_ps(); HEIGHT];
        for first in (0..groups).step_by(CHUNK) {
            let last = (first + CHUNK).min(groups);
            for (group, dots) in (first..last).zip(&mut scratch) {
                let a = quants.add(group * K::GROUP);
                let b = self.weights.add(group * K::GROUP / 4 * 64);
                if HEIGHT == ROWS {
                    dot::<0, 2>(a, x.columns, b, dots.as_mut_ptr().cast());
                } else {
                    dot::<1, 3>(a, x.columns, b, dots.as_mut_ptr().cast());
                }
            }
            for (group, dots) in (first..last).zip(&scratch) {
                let block = group * K::GROUP / BLOCK;
                let scale = _mm512_cvtph_ps(_mm256_loadu_si256(scales.add(group * PANEL).cast()));
                let minimum = if K::MINIMA {
                    _mm512_cvtph_ps(_mm256_loadu_si256(minima.add(group * PANEL).cast()))
                } else {
                    _mm512_setzero_ps()
                };
                let dots = dots.as_ptr().cast::<Block>();
                for row in 0..HEIGHT {
                    let mut dot = _mm512_loadu_si512(dots.add(row).cast());
                    let correction = *corrections.add(group * STRIP + row);
                    if !K::MINIMA {
                        dot = _mm512_add_epi32(dot, _mm512_set1_epi32(correction));
                    }
                    let both = _mm512_mul_ps(scale, _mm512_set1_ps(*x_scales.add(block * STRIP + row)));
                    sums[row] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), both, sums[row]);
                    if K::MINIMA {
                        let correction = _mm512_set1_ps(f32::from_bits(correction.cast_unsigned()));
                        sums[row] = _mm512_fmadd_ps(minimum, correction, sums[row]);
                    }
                }
            }
        }
        for (index, sum) in sums.into_iter().enumerate() {
            let mut out = Block::default();
            _mm512_storeu_ps(out.as_mut_ptr(), sum);
            self.emit.panel(segment, row + index, panel, &out);
        }
    }
}

/// The sums of one group: rows of activations at `a`, lines of weights at `b`.
#[inline(always)]
unsafe fn dot<const SUM: u8, const A: u8>(a: *const u8, columns: usize, b: *const u8, into: *mut u8) {
    amx::zero::<SUM>();
    amx::load::<A>(a, columns);
    amx::load::<4>(b, 64);
    amx::multiply_bytes::<SUM, A, 4>();
    amx::store::<SUM>(into, ROW_BYTES);
}
