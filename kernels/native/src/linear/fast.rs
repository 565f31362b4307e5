//! Which thread computes what. The weights are read once for up to [`SPAN_BYTES`] of activations, which stay in the
//! second-level cache meanwhile; panels go to the threads as they come for more.

use std::ops::Range;

use super::{
    Floats, FloatsMut, Linear, LinearError, PANEL,
    activations::{Halves, Int16, Quantised, STRIP, Singles},
    f32_to_bf16, floats, int16, integers,
    memory::Line,
    weight::{Format, Segment},
};
use crate::{
    Pool,
    pool::SharedMut,
    simd::{Block, Level},
};

/// Activations that are multiplied with a panel before the next is read.
const SPAN_BYTES: usize = 640 * 1024;
/// Panels are handed out a few at a time, at least so many bytes of them.
const MIN_ITEM_BYTES: usize = 32 * 1024;
/// And at most so many shares to a thread.
const SHARES: usize = 8;
/// From so many rows of activations on, unpacking quantised weights to bf16 for matrix tiles pays.
const MIN_UNPACKED_ROWS: usize = 16;
/// The tiles of floats take so many panels, or a multiple.
const PANEL_GROUP: usize = 2;

/// `output = x · weightᵀ + bias`, on the threads of `pool`.
///
/// # Errors
/// [`LinearError`] if the parts do not fit together.
pub fn linear(
    call: &Linear<'_>,
    output: &mut FloatsMut<'_>,
    pool: &Pool,
    level: Level,
) -> Result<(), LinearError> {
    let num_rows = call.validate(output)?;
    let operands = Operands::new(call, pool, level);
    let emit = Emit::new(call, output);
    let items = items(call, num_rows, pool.num_threads());
    pool.for_each(items.len(), |index| {
        let item = &items[index];
        operands.multiply(&call.weight.segments()[item.segment], &item.span, &emit, level);
    });
    Ok(())
}

/// Rows of activations and panels of a segment.
#[derive(Debug)]
pub(super) struct Span {
    pub(super) rows: Range<usize>,
    pub(super) panels: Range<usize>,
}

#[derive(Debug)]
struct Item {
    segment: usize,
    span: Span,
}

fn items(call: &Linear<'_>, num_rows: usize, num_threads: usize) -> Vec<Item> {
    let segments = call.weight.segments();
    let element_bytes = if matches!(call.x, Floats::Bf16(_)) { 2 } else { 4 };
    let max_rows = (SPAN_BYTES / (element_bytes * call.weight.columns())).max(1);
    // Spans of equal length: a short one at the end would read the weights for next to nothing.
    let span = num_rows.div_ceil(num_rows.div_ceil(max_rows).max(1)).next_multiple_of(3 * STRIP);
    let mut items = Vec::new();
    for first in (0..num_rows).step_by(span.max(1)) {
        let rows = first..(first + span).min(num_rows);
        for (index, segment) in segments.iter().enumerate() {
            let panels = segment.rows.div_ceil(PANEL);
            let bytes = segment.lines.len() * size_of::<Line>();
            // With many rows an item is long enough with a few panels.
            let long_enough = (bytes * rows.len().min(8) / MIN_ITEM_BYTES).clamp(1, num_threads * SHARES);
            let group = if segment.format.is_quantised() { 1 } else { PANEL_GROUP };
            let few = match num_threads {
                1 => panels,
                _ => (panels / long_enough.next_multiple_of(num_threads) / group).max(1) * group,
            };
            items.extend((0..panels).step_by(few).map(|panel| Item {
                segment: index,
                span: Span { rows: rows.clone(), panels: panel..(panel + few).min(panels) },
            }));
        }
    }
    items
}

/// The activations, in every form that the weight's segments ask for.
struct Operands<'a> {
    /// Multiplied on matrix tiles or in pairs, where the machine has such and the activations are in bf16.
    halves: Option<Halves<'a>>,
    /// Whether quantised weights are, too.
    unpacks: bool,
    singles: Option<Singles<'a>>,
    int16: Option<Int16>,
    quantised: Option<Quantised>,
    /// By format.
    corrections: Vec<(Format, Vec<i32>)>,
}

impl<'a> Operands<'a> {
    fn new(call: &Linear<'a>, pool: &Pool, level: Level) -> Self {
        let columns = call.weight.columns();
        let formats = call.weight.formats();
        let halves =
            if matches!(level, Level::Avx512Bf16 | Level::Amx) { Halves::new(call.x, columns) } else { None };
        let unpacks = level == Level::Amx && halves.is_some() && call.x.len() / columns >= MIN_UNPACKED_ROWS;
        let quantised = (!unpacks && formats.iter().any(|format| format.is_quantised()))
            .then(|| Quantised::new(call.x, columns, pool, level));
        let corrections = quantised.iter().flat_map(|quantised| {
            let formats = formats.iter().filter(|format| format.is_quantised());
            formats.map(|&format| (format, quantised.corrections(format)))
        });
        let needs_singles =
            |format: &Format| *format == Format::F32 || (*format == Format::Bf16 && halves.is_none());
        Self {
            singles: (formats.iter().any(needs_singles))
                .then(|| Singles::new(call.x, columns, formats.contains(&Format::Bf16))),
            int16: formats.contains(&Format::Int16).then(|| Int16::new(call.x, columns, pool, level)),
            halves,
            unpacks,
            corrections: corrections.collect(),
            quantised,
        }
    }

    fn multiply(&self, segment: &Segment, span: &Span, emit: &Emit<'_>, level: Level) {
        #[expect(unsafe_code, reason = "the tiles work on pointers")]
        // SAFETY: `validate` has compared all lengths, items are within them, and the format is the one that is named;
        // `level` comes from `Level::available`.
        unsafe {
            if let (Some(x), Format::Int16) = (&self.int16, segment.format) {
                return int16::multiply(x, segment, span, emit, level);
            }
            match (&self.halves, &self.singles, &self.quantised) {
                #[cfg(target_arch = "x86_64")]
                (Some(x), _, _) if level == Level::Avx512Bf16 && segment.format == Format::Bf16 => {
                    floats::multiply_pairs(x, segment, span, emit, level);
                }
                #[cfg(target_arch = "x86_64")]
                (Some(x), _, _)
                    if segment.format == Format::Bf16 || (self.unpacks && segment.format.is_quantised()) =>
                {
                    super::amx_floats::multiply(x, segment, span, emit);
                }
                (_, Some(x), _) if !segment.format.is_quantised() => {
                    floats::multiply(x, segment, span, emit, level);
                }
                (_, _, Some(x)) => {
                    let corrections = self.corrections.iter().find(|(format, _)| *format == segment.format);
                    let (_, corrections) = corrections.expect("of every format. This is a bug.");
                    integers::multiply(x, corrections, segment, span, emit, level);
                }
                _ => unreachable!("the activations are there in every form that is needed. This is a bug."),
            }
        }
    }
}

/// Where the sums go.
pub(super) struct Emit<'a> {
    bias: Option<Floats<'a>>,
    output: Output,
    /// Of the output.
    columns: usize,
}

enum Output {
    F32(SharedMut<f32>),
    Bf16(SharedMut<u16>),
}

impl<'a> Emit<'a> {
    fn new(call: &Linear<'a>, output: &mut FloatsMut<'_>) -> Self {
        let output = match output {
            FloatsMut::F32(values) => Output::F32(SharedMut::new(values)),
            FloatsMut::Bf16(values) => Output::Bf16(SharedMut::new(values)),
        };
        Self { bias: call.bias, output, columns: call.weight.rows() }
    }

    /// The sums of one row of activations with one panel.
    ///
    /// # Safety
    /// The row is one of the call's, the panel one of the segment's, and no other thread has the same.
    #[expect(unsafe_code, reason = "threads write to parts of one slice")]
    #[inline(always)]
    pub(super) unsafe fn panel(&self, segment: &Segment, row: usize, panel: usize, sums: &Block) {
        let first = segment.start + panel * PANEL;
        let at = row * self.columns + first;
        let len = segment.rows - panel * PANEL;
        let mut sums = *sums;
        // SAFETY: within the output, whose length `validate` has compared; nobody else has these elements.
        unsafe {
            if len < PANEL {
                return self.part(first, at, &sums[..len]);
            }
            if let Some(bias) = self.bias {
                for (lane, sum) in sums.iter_mut().enumerate() {
                    *sum += bias.get(first + lane);
                }
            }
            match &self.output {
                Output::F32(output) => output.get().add(at).cast::<Block>().write_unaligned(sums),
                Output::Bf16(output) => {
                    // Not by `map`, which the compiler might leave as sixteen calls.
                    let mut rounded = [0; PANEL];
                    for lane in 0..PANEL {
                        rounded[lane] = f32_to_bf16(sums[lane]);
                    }
                    output.get().add(at).cast::<[u16; PANEL]>().write_unaligned(rounded);
                }
            }
        }
    }

    /// The sums of one row of activations with the last rows of a weight, from `first` on, to element `at`. Not among the
    /// instructions of a whole panel, which come every few hundred cycles.
    ///
    /// # Safety
    /// As of [`Self::panel`].
    #[expect(unsafe_code, reason = "threads write to parts of one slice")]
    #[inline(never)]
    unsafe fn part(&self, first: usize, at: usize, sums: &[f32]) {
        for (lane, &sum) in sums.iter().enumerate() {
            let sum = sum + self.bias.map_or(0.0, |bias| bias.get(first + lane));
            // SAFETY: the caller's promise.
            unsafe {
                match &self.output {
                    Output::F32(output) => output.get().add(at + lane).write(sum),
                    Output::Bf16(output) => output.get().add(at + lane).write(f32_to_bf16(sum)),
                }
            }
        }
    }
}
