//! A weight in memory.
//!
//! ```text
//! panel of 16 rows, floats    a line of 64 bytes per column (f32) or pair of columns (bf16): 16 rows side by side
//! panel of 16 rows, integers  as pairs of bf16; then a line of units
//! panel of 16 rows, blocks    quants: per 32 columns 8 lines of bytes, or 4 of nibbles; a line holds 4 columns of each row
//!                             scales: per group of 16 or 32 columns 16 halves;  minima: as scales, for those that have them
//! ```

use crate::{Pool, simd::Level};

use super::{
    BLOCK, FloatsMut, LinearError, PANEL,
    memory::{Line, Lines},
    pack,
};

/// How the rows of a weight are held. A quantised value is `scale * (q - offset)`, or `scale * q + minimum`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Single precision.
    F32,
    /// bfloat16.
    Bf16,
    /// 16-bit integers, a unit for a row: bfloat16, for processors that multiply these faster.
    Int16,
    /// Bytes, offset 128, a scale for 32 columns: GGUF's `Q8_0`, and what plain floats are quantised to.
    Q8,
    /// Six bits in bytes, offset 32, a scale for 16 columns: GGUF's `Q6_K`.
    Q6,
    /// Nibbles, offset 8, a scale for 32 columns: GGUF's `Q4_0`.
    Q4,
    /// Nibbles, a scale and a minimum for 32 columns: GGUF's `Q4_1` and `Q4_K`.
    Q4Min,
}

/// Rows that cannot be packed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PackError {
    /// The rows are not within the weight.
    #[error("rows {start}..{end} are not within a weight of {rows} rows")]
    Rows {
        /// The first.
        start: usize,
        /// After the last.
        end: usize,
        /// Of the weight.
        rows: usize,
    },
    /// The data have another size than so many rows.
    #[error("{found} elements are not rows of {columns} columns")]
    Length {
        /// Elements (or bytes of blocks) given.
        found: usize,
        /// Of the weight.
        columns: usize,
    },
    /// Not one of the block formats that are multiplied as they are.
    #[error("GGUF type {0} is not among Q4_0, Q4_1, Q8_0, Q4_K, Q6_K")]
    Type(u32),
    /// Floats can be quantised to one format only.
    #[error("floats cannot be packed as {0:?}, only as F32, Bf16, Int16 or Q8")]
    Format(Format),
    /// Blocks need whole blocks.
    #[error("{columns} columns are not a multiple of {block}")]
    Columns {
        /// Of the weight.
        columns: usize,
        /// Columns in a block of the format.
        block: usize,
    },
}

/// Consecutive rows of one format.
#[derive(Clone, Debug)]
pub(super) struct Segment {
    /// The first row.
    pub(super) start: usize,
    pub(super) rows: usize,
    pub(super) format: Format,
    /// Panel after panel; the last one's surplus rows are zero.
    pub(super) lines: Lines,
    /// Lines of a panel.
    pub(super) stride: usize,
}

/// A matrix `[rows, columns]`, packed. Rows may come in any order and in several formats.
#[derive(Clone, Debug)]
pub struct Weight {
    rows: usize,
    columns: usize,
    segments: Vec<Segment>,
}

impl Format {
    /// What bfloat16 is best held as where `level` multiplies.
    #[must_use]
    pub fn of_bf16(level: Level) -> Self {
        match level {
            Level::Portable | Level::Avx512Bf16 | Level::Amx => Self::Bf16,
            Level::Avx2 | Level::AvxVnni | Level::Avx512 | Level::Avx512Vnni => Self::Int16,
        }
    }

    /// Of formats of bytes and less.
    pub(super) fn is_quantised(self) -> bool {
        !matches!(self, Self::F32 | Self::Bf16 | Self::Int16)
    }

    /// What is subtracted from every quantised value before it is scaled.
    pub(super) fn offset(self) -> i32 {
        match self {
            Self::Q8 => 128,
            Self::Q6 => 32,
            Self::Q4 => 8,
            _ => 0,
        }
    }

    /// Columns that share a scale.
    pub(super) fn group(self) -> usize {
        if self == Self::Q6 { 16 } else { BLOCK }
    }

    /// Lines of a panel's quants for a block of columns.
    pub(super) fn block_lines(self) -> usize {
        if matches!(self, Self::Q4 | Self::Q4Min) { BLOCK / 8 } else { BLOCK / 4 }
    }

    /// Lines of a panel before the scales, and lines of the scales.
    pub(super) fn quant_lines(self, columns: usize) -> (usize, usize) {
        let blocks = columns.div_ceil(BLOCK);
        (blocks * self.block_lines(), (blocks * BLOCK / self.group()).div_ceil(2))
    }

    /// Lines of a panel.
    pub(super) fn panel_lines(self, columns: usize) -> usize {
        match self {
            Self::F32 => columns,
            Self::Bf16 => columns.div_ceil(2),
            Self::Int16 => columns.div_ceil(2) + 1,
            _ => {
                let (quants, scales) = self.quant_lines(columns);
                quants + scales * if self == Self::Q4Min { 2 } else { 1 }
            }
        }
    }
}

impl Weight {
    /// Without any rows yet.
    #[must_use]
    pub fn new(rows: usize, columns: usize) -> Self {
        Self { rows, columns, segments: Vec::new() }
    }

    /// Output features.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Input features.
    #[must_use]
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Rows that have been packed.
    #[must_use]
    pub fn packed_rows(&self) -> usize {
        self.segments.iter().map(|segment| segment.rows).sum()
    }

    /// Whether every row has been packed.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.packed_rows() == self.rows
    }

    /// Memory of the rows.
    #[must_use]
    pub fn num_bytes(&self) -> usize {
        self.segments.iter().map(|segment| segment.lines.len() * size_of::<Line>()).sum()
    }

    /// The format of one row, if it has been packed.
    #[must_use]
    pub fn format_of(&self, row: usize) -> Option<Format> {
        let holds = |segment: &&Segment| (segment.start..segment.start + segment.rows).contains(&row);
        self.segments.iter().find(holds).map(|segment| segment.format)
    }

    /// The formats of the rows, each once, in the order of the rows.
    #[must_use]
    pub fn formats(&self) -> Vec<Format> {
        let mut formats = Vec::new();
        for segment in &self.segments {
            if !formats.contains(&segment.format) {
                formats.push(segment.format);
            }
        }
        formats
    }

    /// Packs whole rows of floats, the first of which is row `start`; rows packed there before are replaced.
    ///
    /// # Errors
    /// [`PackError`] for rows that do not fit in, and formats that floats cannot be packed in.
    pub fn pack_floats(
        &mut self,
        start: usize,
        values: super::Floats<'_>,
        format: Format,
        pool: &Pool,
    ) -> Result<(), PackError> {
        let rows = values.len().checked_div(self.columns).unwrap_or(0);
        if rows * self.columns != values.len() {
            return Err(PackError::Length { found: values.len(), columns: self.columns });
        }
        if format.is_quantised() && format != Format::Q8 {
            return Err(PackError::Format(format));
        }
        let mut segment = self.segment(start, rows, format)?;
        pack::pack_floats(&mut segment, self.columns, values, pool);
        self.insert(segment);
        Ok(())
    }

    /// Packs whole rows of GGUF blocks of type `kind` (`ggml_type`), as the file has them.
    ///
    /// # Errors
    /// [`PackError`] for rows that do not fit in, and types that are not kept quantised.
    pub fn pack_blocks(
        &mut self,
        start: usize,
        bytes: &[u8],
        kind: u32,
        pool: &Pool,
    ) -> Result<(), PackError> {
        let kind = pack::BlockType::from_ggml(kind)?;
        if !self.columns.is_multiple_of(kind.columns()) {
            return Err(PackError::Columns { columns: self.columns, block: kind.columns() });
        }
        let row_bytes = self.columns / kind.columns() * kind.bytes();
        let rows = bytes.len().checked_div(row_bytes).unwrap_or(0);
        if rows * row_bytes != bytes.len() {
            return Err(PackError::Length { found: bytes.len(), columns: self.columns });
        }
        let mut segment = self.segment(start, rows, kind.format())?;
        pack::pack_blocks(&mut segment, self.columns, bytes, kind, pool);
        self.insert(segment);
        Ok(())
    }

    /// `out[i] = weight[indices[i]]`: exactly what the packed values stand for, rounded to what `out` is.
    ///
    /// # Errors
    /// [`LinearError`] if `out` has another size, or rows are not there.
    pub fn unpack_rows(&self, indices: &[i64], out: &mut FloatsMut<'_>) -> Result<(), LinearError> {
        let expected = indices.len() * self.columns;
        if out.len() != expected {
            return Err(LinearError::Length { name: "out", expected, found: out.len() });
        }
        let mut values = vec![0.0; self.columns];
        for (row, &index) in indices.iter().enumerate() {
            let index = usize::try_from(index).unwrap_or(usize::MAX);
            let holds = |segment: &&Segment| (segment.start..segment.start + segment.rows).contains(&index);
            let missing = LinearError::NotWhole { packed: self.packed_rows(), rows: self.rows };
            let segment = self.segments.iter().find(holds).ok_or(missing)?;
            pack::unpack_row(segment, index - segment.start, &mut values);
            out.write(row * self.columns, &values);
        }
        Ok(())
    }

    pub(super) fn segments(&self) -> &[Segment] {
        &self.segments
    }

    fn segment(&self, start: usize, rows: usize, format: Format) -> Result<Segment, PackError> {
        let end = start + rows;
        if end > self.rows {
            return Err(PackError::Rows { start, end, rows: self.rows });
        }
        let stride = format.panel_lines(self.columns);
        let lines = Lines::new(rows.div_ceil(PANEL) * stride);
        Ok(Segment { start, rows, format, lines, stride })
    }

    fn insert(&mut self, segment: Segment) {
        self.segments
            .retain(|old| old.start + old.rows <= segment.start || segment.start + segment.rows <= old.start);
        self.segments.push(segment);
        self.segments.sort_by_key(|segment| segment.start);
    }
}
