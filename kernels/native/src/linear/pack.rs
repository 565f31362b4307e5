//! Into panels and back. The layouts of GGUF's blocks: <https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h>.

use half::f16;

use crate::Pool;

use super::{
    BLOCK, Floats, PANEL, bf16_to_f32, f32_to_bf16,
    int16::{self, STRETCH},
    memory::Line,
    weight::{Format, PackError, Segment},
};

/// GGUF's blocks that are multiplied as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BlockType {
    Q4_0,
    Q4_1,
    Q8_0,
    Q4K,
    Q6K,
}

impl BlockType {
    pub(super) fn from_ggml(kind: u32) -> Result<Self, PackError> {
        match kind {
            2 => Ok(Self::Q4_0),
            3 => Ok(Self::Q4_1),
            8 => Ok(Self::Q8_0),
            12 => Ok(Self::Q4K),
            14 => Ok(Self::Q6K),
            _ => Err(PackError::Type(kind)),
        }
    }

    /// Columns of a block.
    pub(super) fn columns(self) -> usize {
        if matches!(self, Self::Q4K | Self::Q6K) { 256 } else { 32 }
    }

    /// Bytes of a block.
    pub(super) fn bytes(self) -> usize {
        match self {
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q8_0 => 34,
            Self::Q4K => 144,
            Self::Q6K => 210,
        }
    }

    pub(super) fn format(self) -> Format {
        match self {
            Self::Q4_0 => Format::Q4,
            Self::Q4_1 | Self::Q4K => Format::Q4Min,
            Self::Q8_0 => Format::Q8,
            Self::Q6K => Format::Q6,
        }
    }

    /// What one block holds, 32 columns at a time.
    fn read(self, block: &[u8], mut emit: impl FnMut(usize, &Quants)) {
        let half = |at: usize| f16::from_le_bytes([block[at], block[at + 1]]);
        let mut out = Quants::default();
        match self {
            Self::Q4_0 | Self::Q4_1 => {
                out.scales[0] = half(0);
                out.minimum = if self == Self::Q4_1 { half(2) } else { f16::ZERO };
                let nibbles = &block[self.bytes() - 16..];
                for (i, byte) in nibbles.iter().enumerate() {
                    (out.quants[i], out.quants[i + 16]) = (byte & 15, byte >> 4);
                }
                emit(0, &out);
            }
            Self::Q8_0 => {
                out.scales[0] = half(0);
                for (quant, byte) in out.quants.iter_mut().zip(&block[2..]) {
                    *quant = byte ^ 0x80;
                }
                emit(0, &out);
            }
            Self::Q4K => {
                let (scale, minimum) = (half(0).to_f32(), half(2).to_f32());
                for part in 0..8 {
                    let (part_scale, part_minimum) = q4k_scale(&block[4..16], part);
                    out.scales[0] = f16::from_f32(scale * f32::from(part_scale));
                    out.minimum = f16::from_f32(-minimum * f32::from(part_minimum));
                    let bytes = &block[16 + part / 2 * 32..][..32];
                    for (quant, byte) in out.quants.iter_mut().zip(bytes) {
                        *quant = if part % 2 == 0 { byte & 15 } else { byte >> 4 };
                    }
                    emit(part, &out);
                }
            }
            Self::Q6K => {
                let scale = half(208).to_f32();
                for part in 0..8 {
                    // Halves of 128 columns, quarters of 32: low nibbles of 64 bytes for two quarters, then the high ones.
                    let (half, quarter) = (part / 4, part % 4);
                    let low = &block[half * 64 + quarter % 2 * 32..][..32];
                    let high = &block[128 + half * 32..][..32];
                    for (i, quant) in out.quants.iter_mut().enumerate() {
                        let nibble = if quarter < 2 { low[i] & 15 } else { low[i] >> 4 };
                        *quant = nibble | ((high[i] >> (2 * quarter)) & 3) << 4;
                    }
                    for (i, out) in out.scales.iter_mut().enumerate() {
                        *out = f16::from_f32(scale * f32::from(block[192 + part * 2 + i].cast_signed()));
                    }
                    emit(part, &out);
                }
            }
        }
    }
}

/// The six-bit scale and minimum of one of eight parts of a `Q4_K` block.
fn q4k_scale(packed: &[u8], part: usize) -> (u8, u8) {
    if part < 4 {
        return (packed[part] & 63, packed[part + 4] & 63);
    }
    let scale = (packed[part + 4] & 15) | (packed[part - 4] >> 6) << 4;
    let minimum = (packed[part + 4] >> 4) | (packed[part] >> 6) << 4;
    (scale, minimum)
}

/// 32 columns of one row.
#[derive(Debug)]
struct Quants {
    quants: [u8; BLOCK],
    /// Of 32 columns, or of 16 each.
    scales: [f16; 2],
    minimum: f16,
}

impl Default for Quants {
    fn default() -> Self {
        Self { quants: [0; BLOCK], scales: [f16::ZERO; 2], minimum: f16::ZERO }
    }
}

/// `(line, byte)` of a panel where the quants of four columns begin, and whether they are high nibbles.
fn quad_place(format: Format, block: usize, quad: usize, row: usize) -> (usize, usize, bool) {
    let lines = format.block_lines();
    (block * lines + quad % lines, row % PANEL * 4, quad >= lines)
}

/// The index of a half among the panel's halves, 32 to a line.
fn half_place(lines: &mut [Line], index: usize) -> &mut [u8] {
    &mut lines[index / 32].0[index % 32 * 2..][..2]
}

/// Writes 32 columns of one row of a panel, which is still zero there.
fn put(panel: &mut [Line], format: Format, columns: usize, lane: usize, block: usize, quants: &Quants) {
    for (quad, bytes) in quants.quants.chunks_exact(4).enumerate() {
        let (line, at, is_high) = quad_place(format, block, quad, lane);
        for (place, byte) in panel[line].0[at..at + 4].iter_mut().zip(bytes) {
            *place |= if is_high { byte << 4 } else { *byte };
        }
    }
    let (quant_lines, scale_lines) = format.quant_lines(columns);
    let groups = BLOCK / format.group();
    let halves = &mut panel[quant_lines..];
    for group in 0..groups {
        let index = (block * groups + group) * PANEL + lane;
        half_place(halves, index).copy_from_slice(&quants.scales[group].to_le_bytes());
    }
    if format == Format::Q4Min {
        let index = block * PANEL + lane;
        half_place(&mut halves[scale_lines..], index).copy_from_slice(&quants.minimum.to_le_bytes());
    }
}

/// `pack(panel, lane, row)` for every row of the segment, a panel to a thread.
fn for_each_row(segment: &mut Segment, pool: &Pool, pack: impl Fn(&mut [Line], usize, usize) + Sync) {
    let (rows, stride) = (segment.rows, segment.stride);
    pool.for_each_chunk(&mut segment.lines, stride, |index, panel| {
        for lane in 0..PANEL.min(rows - index * PANEL) {
            pack(panel, lane, index * PANEL + lane);
        }
    });
}

pub(super) fn pack_blocks(segment: &mut Segment, columns: usize, bytes: &[u8], kind: BlockType, pool: &Pool) {
    let format = segment.format;
    let row_bytes = columns / kind.columns() * kind.bytes();
    let parts = kind.columns() / BLOCK;
    for_each_row(segment, pool, |panel, lane, row| {
        for (index, block) in bytes[row * row_bytes..][..row_bytes].chunks_exact(kind.bytes()).enumerate() {
            kind.read(block, |part, quants| put(panel, format, columns, lane, index * parts + part, quants));
        }
    });
}

/// The segment's format is F32, Bf16, Int16 or Q8.
pub(super) fn pack_floats(segment: &mut Segment, columns: usize, values: Floats<'_>, pool: &Pool) {
    let format = segment.format;
    for_each_row(segment, pool, |panel, lane, row| {
        let single;
        let values = match values {
            Floats::F32(values) => &values[row * columns..][..columns],
            Floats::Bf16(values) => {
                single = values[row * columns..][..columns]
                    .iter()
                    .map(|&bits| bf16_to_f32(bits))
                    .collect::<Vec<_>>();
                &single
            }
        };
        match format {
            Format::F32 => {
                for (line, value) in panel.iter_mut().zip(values) {
                    line.0[lane * 4..][..4].copy_from_slice(&value.to_ne_bytes());
                }
            }
            Format::Bf16 => {
                for (line, pair) in panel.iter_mut().zip(values.chunks(2)) {
                    for (place, &value) in line.0[lane * 4..][..4].chunks_exact_mut(2).zip(pair) {
                        place.copy_from_slice(&f32_to_bf16(value).to_ne_bytes());
                    }
                }
            }
            Format::Int16 => put_integers(panel, lane, values),
            _ => {
                for (block, values) in values.chunks(BLOCK).enumerate() {
                    let mut whole = [0.0; BLOCK];
                    whole[..values.len()].copy_from_slice(values);
                    put(panel, format, columns, lane, block, &quantise(&whole));
                }
            }
        }
    });
}

/// A row of a panel of 16-bit integers; see [`super::int16`].
fn put_integers(panel: &mut [Line], lane: usize, values: &[f32]) {
    let stretches = || {
        values.chunks(STRETCH).map(|values| {
            let mut whole = [0.0; STRETCH];
            whole[..values.len()].copy_from_slice(values);
            whole
        })
    };
    let unit = stretches()
        .map(|stretch| int16::unit(&stretch))
        .fold(0.0, |most: f32, unit| if most.is_nan() || unit <= most { most } else { unit });
    let rounded = stretches().flat_map(|stretch| int16::round(&stretch, unit));
    let [lines @ .., units] = panel else { unreachable!("a panel has a line of units. This is a bug.") };
    for (column, integer) in rounded.take(values.len()).enumerate() {
        let at = lane * 4 + column % 2 * 2;
        lines[column / 2].0[at..at + 2].copy_from_slice(&integer.to_ne_bytes());
    }
    units.0[lane * 4..][..4].copy_from_slice(&unit.to_ne_bytes());
}

/// To `Q8_0`: the largest magnitude becomes 127.
fn quantise(values: &[f32; BLOCK]) -> Quants {
    let largest = values.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
    let scale = f16::from_f32(largest / 127.0);
    let inverse = if scale == f16::ZERO { 0.0 } else { 1.0 / scale.to_f32() };
    let quant = |value: f32| ((value * inverse).round_ties_even().clamp(-127.0, 127.0) + 128.0) as u8;
    Quants { quants: values.map(quant), scales: [scale; 2], minimum: f16::ZERO }
}

pub(super) fn unpack_row(segment: &Segment, row: usize, out: &mut [f32]) {
    let (format, lane, columns) = (segment.format, row % PANEL, out.len());
    let panel = &segment.lines[row / PANEL * segment.stride..][..segment.stride];
    let half = |first: usize, index: usize| {
        let bytes = &panel[first + index / 32].0[index % 32 * 2..];
        f16::from_le_bytes([bytes[0], bytes[1]]).to_f32()
    };
    let (quant_lines, scale_lines) = format.quant_lines(columns);
    for (column, out) in out.iter_mut().enumerate() {
        *out = match format {
            Format::F32 => {
                let bytes = &panel[column].0[lane * 4..];
                f32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
            }
            Format::Bf16 => {
                let bytes = &panel[column / 2].0[lane * 4 + column % 2 * 2..];
                bf16_to_f32(u16::from_ne_bytes([bytes[0], bytes[1]]))
            }
            Format::Int16 => {
                let bytes = &panel[column / 2].0[lane * 4 + column % 2 * 2..];
                let unit = &panel[segment.stride - 1].0[lane * 4..];
                f32::from_ne_bytes([unit[0], unit[1], unit[2], unit[3]])
                    * f32::from(i16::from_ne_bytes([bytes[0], bytes[1]]))
            }
            _ => {
                let (line, at, is_high) = quad_place(format, column / BLOCK, column % BLOCK / 4, row);
                let byte = panel[line].0[at + column % 4];
                let quant = match format {
                    Format::Q4 | Format::Q4Min if is_high => byte >> 4,
                    Format::Q4 | Format::Q4Min => byte & 15,
                    _ => byte,
                };
                let scale = half(quant_lines, column / format.group() * PANEL + lane);
                let quant = (i32::from(quant) - format.offset()) as f32;
                if format == Format::Q4Min {
                    scale * quant + half(quant_lines + scale_lines, column / BLOCK * PANEL + lane)
                } else {
                    scale * quant
                }
            }
        };
    }
}
