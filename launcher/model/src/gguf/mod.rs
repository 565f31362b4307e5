//! The head of a GGUF file: metadata and tensor table, without the tensors' data.
//!
//! ```text
//! magic "GGUF" | version | tensor count | metadata count | metadata … | tensor table … | padding | data …
//!                                                                                      └ data_offset, aligned
//! ```
//! Everything is checked on the way in: counts and lengths against what is left of the file, names for being unique,
//! offsets for alignment, and the byte range of every tensor against the end of the file and against its neighbours.

mod reader;
mod types;
mod value;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub(crate) use types::weight_type_names;
pub use types::{GGML_TYPES, GgmlType};
pub use value::{Metadata, Value};

use crate::error::{ModelError, thousands};
use reader::Reader;

/// Tensors have at most this many dimensions (`GGML_MAX_DIMS`).
const MAX_DIMENSIONS: u32 = 4;
/// The alignment of tensor data where the file does not name one.
const DEFAULT_ALIGNMENT: u64 = 32;

/// The head of a GGUF file.
#[derive(Debug, Clone)]
pub struct Gguf {
    /// Where it was read from.
    pub path: PathBuf,
    /// Format version: 2 or 3.
    pub version: u32,
    /// Everything that the file says of itself.
    pub metadata: Metadata,
    /// The tensor table, in file order.
    pub tensors: Vec<TensorInfo>,
    /// Where tensor data begins, in bytes from the start of the file.
    pub data_offset: u64,
}

/// One row of the tensor table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its name, as `blk.0.attn_q.weight`.
    pub name: String,
    /// Outermost dimension first, as torch has it: the reverse of the order in the file.
    pub shape: Vec<u64>,
    /// How its elements are stored.
    pub ggml_type: GgmlType,
    /// Where its data begins, in bytes from the start of the file.
    pub offset: u64,
    /// How many bytes it takes.
    pub num_bytes: u64,
}

impl Gguf {
    /// Reads and checks the head of the file at `path`. Costs one pass over the head; data is not read.
    ///
    /// # Errors
    /// [`ModelError::Io`] if it cannot be read; [`ModelError::Truncated`] if it ends early; [`ModelError::Corrupt`] or
    /// [`ModelError::Unsupported`] if it says something impossible or of another version.
    pub fn read(path: &Path) -> Result<Self, ModelError> {
        let mut reader = Reader::open(path)?;
        let version = read_version(&mut reader)?;
        // name length, dimension count, one dimension, type, offset; and key length, value type, one byte.
        let num_tensors = reader.count("the tensor count", 8 + 4 + 8 + 4 + 8)?;
        let num_metadata = reader.count("the metadata count", 8 + 4 + 1)?;
        let metadata = read_metadata(&mut reader, num_metadata)?;
        let alignment = read_alignment(&reader, &metadata)?;
        let mut tensors = Vec::new();
        for _ in 0..num_tensors {
            tensors.push(read_tensor(&mut reader, alignment)?);
        }
        let data_offset = reader.position.next_multiple_of(alignment);
        for tensor in &mut tensors {
            tensor.offset = data_offset.saturating_add(tensor.offset);
        }
        check_names(&reader, &tensors)?;
        check_ranges(&reader, &tensors)?;
        Ok(Self { path: path.to_owned(), version, metadata, tensors, data_offset })
    }

    /// The tensor of this name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.iter().find(|tensor| tensor.name == name)
    }
}

fn read_version(reader: &mut Reader) -> Result<u32, ModelError> {
    let magic = reader.magic()?;
    if magic != *b"GGUF" {
        let found = format!("`{}`", magic.escape_ascii());
        return Err(reader.corrupt("the first four bytes", "`GGUF`", found));
    }
    let version = reader.u32("the format version")?;
    let hint = match version {
        2 | 3 => return Ok(version),
        1 => "Convert the model again with a current llama.cpp.",
        version if version.swap_bytes() <= 3 => "The file is big-endian: convert it to little-endian.",
        _ => "Convert the model again, or ask for this version to be supported.",
    };
    Err(ModelError::Unsupported {
        file: reader.path.clone(),
        item: "GGUF version".to_owned(),
        found: version.to_string(),
        supported: "2, 3".to_owned(),
        hint,
    })
}

fn read_metadata(reader: &mut Reader, count: u64) -> Result<Metadata, ModelError> {
    let mut metadata = BTreeMap::new();
    for _ in 0..count {
        let key = reader.string("a metadata key")?;
        let item = format!("the metadata value `{key}`");
        let value = reader.value(&item)?;
        if metadata.insert(key, value).is_some() {
            return Err(reader.corrupt(item, "each key once", "it twice"));
        }
    }
    Ok(Metadata(metadata))
}

fn read_alignment(reader: &Reader, metadata: &Metadata) -> Result<u64, ModelError> {
    let Some(value) = metadata.get("general.alignment") else { return Ok(DEFAULT_ALIGNMENT) };
    match value.as_u64() {
        Some(alignment) if alignment.is_power_of_two() && alignment <= 1 << 20 => Ok(alignment),
        _ => Err(reader.corrupt("`general.alignment`", "a power of two up to 1,048,576", value.to_string())),
    }
}

fn read_tensor(reader: &mut Reader, alignment: u64) -> Result<TensorInfo, ModelError> {
    let name = reader.string("a tensor's name")?;
    let item = format!("tensor `{name}`");
    let num_dimensions = reader.u32(&item)?;
    if num_dimensions > MAX_DIMENSIONS {
        let expected = format!("at most {MAX_DIMENSIONS} dimensions");
        return Err(reader.corrupt(item, expected, thousands(num_dimensions.into())));
    }
    let mut shape = (0..num_dimensions).map(|_| reader.u64(&item)).collect::<Result<Vec<_>, _>>()?;
    shape.reverse();
    let type_id = reader.u32(&item)?;
    let offset = reader.u64(&item)?;
    let Some(ggml_type) = GgmlType::from_id(type_id) else {
        return Err(ModelError::Unsupported {
            file: reader.path.clone(),
            item: format!("{item}: type number"),
            found: type_id.to_string(),
            supported: weight_type_names(),
            hint: "Quantise the model to one of these types, or, if it should be one: the file is damaged, download \
                   it again.",
        });
    };
    let Some(num_bytes) = ggml_type.num_bytes(&shape) else {
        let expected =
            format!("rows of a multiple of {} elements ({})", ggml_type.block_size, ggml_type.name);
        return Err(reader.corrupt(item, expected, format!("shape {}", crate::error::shape_text(&shape))));
    };
    if !offset.is_multiple_of(alignment) {
        let expected = format!("an offset that is a multiple of {alignment}");
        return Err(reader.corrupt(item, expected, thousands(offset)));
    }
    Ok(TensorInfo { name, shape, ggml_type, offset, num_bytes })
}

fn check_names(reader: &Reader, tensors: &[TensorInfo]) -> Result<(), ModelError> {
    let mut names = tensors.iter().map(|tensor| tensor.name.as_str()).collect::<Vec<_>>();
    names.sort_unstable();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(reader.corrupt(format!("tensor `{}`", pair[0]), "each name once", "it twice")),
        None => Ok(()),
    }
}

/// Every tensor inside the file, none over another.
fn check_ranges(reader: &Reader, tensors: &[TensorInfo]) -> Result<(), ModelError> {
    let mut by_offset = tensors.iter().filter(|tensor| tensor.num_bytes > 0).collect::<Vec<_>>();
    by_offset.sort_unstable_by_key(|tensor| tensor.offset);
    for pair in by_offset.windows(2) {
        let end = pair[0].offset.saturating_add(pair[0].num_bytes);
        if end > pair[1].offset {
            let expected = format!("data at or after byte {}, where `{}` ends", thousands(end), pair[0].name);
            let item = format!("tensor `{}`", pair[1].name);
            return Err(reader.corrupt(item, expected, format!("byte {}", thousands(pair[1].offset))));
        }
    }
    // The last one to end says how long the file should be.
    let Some(last) = by_offset.last() else { return Ok(()) };
    let end = last.offset.saturating_add(last.num_bytes);
    if end > reader.length {
        let first_cut =
            by_offset.iter().find(|tensor| tensor.offset.saturating_add(tensor.num_bytes) > reader.length);
        let name = first_cut.map_or(&last.name, |tensor| &tensor.name);
        return Err(ModelError::Truncated {
            file: reader.path.clone(),
            item: format!("tensor `{name}`"),
            expected: end,
            found: reader.length,
        });
    }
    Ok(())
}
