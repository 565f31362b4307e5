//! A cursor over the head of a GGUF file that never believes a length: every read is checked against what is left of the
//! file before a byte is allocated for it.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use super::value::Value;
use crate::error::{DOWNLOAD_AGAIN, ModelError, thousands};

/// No key, token or template is longer; a length beyond it is damage.
const MAX_STRING_BYTES: u64 = 64 << 20;
/// No vocabulary or merge table is longer; a length beyond it is damage.
const MAX_ARRAY_LENGTH: u64 = 16 << 20;
/// Arrays in arrays, and no deeper: the format allows any depth, no writer uses more than two.
const MAX_ARRAY_DEPTH: u32 = 3;

/// Reads little-endian values and knows where it is.
pub(super) struct Reader {
    pub(super) path: PathBuf,
    file: BufReader<File>,
    /// Bytes consumed.
    pub(super) position: u64,
    /// Bytes of the whole file.
    pub(super) length: u64,
}

impl Reader {
    pub(super) fn open(path: &Path) -> Result<Self, ModelError> {
        let io = |source| ModelError::Io { file: path.to_owned(), source };
        let file = File::open(path).map_err(io)?;
        let length = file.metadata().map_err(io)?.len();
        Ok(Self {
            path: path.to_owned(),
            file: BufReader::with_capacity(64 << 10, file),
            position: 0,
            length,
        })
    }

    /// A value in the header that cannot be so.
    pub(super) fn corrupt(
        &self,
        item: impl Into<String>,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) -> ModelError {
        ModelError::Corrupt {
            file: self.path.clone(),
            item: item.into(),
            expected: expected.into(),
            found: found.into(),
            hint: DOWNLOAD_AGAIN,
        }
    }

    /// Fails unless `num_bytes` more bytes are in the file.
    pub(super) fn require(&self, num_bytes: u64, item: &str) -> Result<(), ModelError> {
        if num_bytes <= self.length - self.position {
            return Ok(());
        }
        Err(ModelError::Truncated {
            file: self.path.clone(),
            item: item.to_owned(),
            expected: self.position.saturating_add(num_bytes),
            found: self.length,
        })
    }

    fn bytes(&mut self, num_bytes: u64, item: &str) -> Result<Vec<u8>, ModelError> {
        self.require(num_bytes, item)?;
        let mut bytes = vec![0; usize::try_from(num_bytes).unwrap_or(usize::MAX)];
        self.file
            .read_exact(&mut bytes)
            .map_err(|source| ModelError::Io { file: self.path.clone(), source })?;
        self.position += num_bytes;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self, item: &str) -> Result<[u8; N], ModelError> {
        self.require(N as u64, item)?;
        let mut bytes = [0; N];
        self.file
            .read_exact(&mut bytes)
            .map_err(|source| ModelError::Io { file: self.path.clone(), source })?;
        self.position += N as u64;
        Ok(bytes)
    }

    pub(super) fn u32(&mut self, item: &str) -> Result<u32, ModelError> {
        self.array(item).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, item: &str) -> Result<u64, ModelError> {
        self.array(item).map(u64::from_le_bytes)
    }

    pub(super) fn magic(&mut self) -> Result<[u8; 4], ModelError> {
        self.array("the magic number")
    }

    /// A count of things that take at least `min_bytes` each: more than the file has room for is damage.
    pub(super) fn count(&mut self, item: &str, min_bytes: u64) -> Result<u64, ModelError> {
        let count = self.u64(item)?;
        let room = (self.length - self.position) / min_bytes;
        if count > room {
            let expected = format!("at most {}, for which the file has room", thousands(room));
            return Err(self.corrupt(item, expected, thousands(count)));
        }
        Ok(count)
    }

    pub(super) fn string(&mut self, item: &str) -> Result<String, ModelError> {
        let length = self.u64(item)?;
        if length > MAX_STRING_BYTES {
            let expected = format!("a string of at most {} bytes", thousands(MAX_STRING_BYTES));
            return Err(self.corrupt(item, expected, format!("a length of {}", thousands(length))));
        }
        let bytes = self.bytes(length, item)?;
        String::from_utf8(bytes).map_err(|_| self.corrupt(item, "valid UTF-8", "other bytes"))
    }

    /// A value with its type number before it.
    pub(super) fn value(&mut self, item: &str) -> Result<Value, ModelError> {
        let kind = self.u32(item)?;
        self.value_of(kind, item, 0)
    }

    fn value_of(&mut self, kind: u32, item: &str, depth: u32) -> Result<Value, ModelError> {
        Ok(match kind {
            0 => Value::Unsigned(u8::from_le_bytes(self.array(item)?).into()),
            1 => Value::Signed(i8::from_le_bytes(self.array(item)?).into()),
            2 => Value::Unsigned(u16::from_le_bytes(self.array(item)?).into()),
            3 => Value::Signed(i16::from_le_bytes(self.array(item)?).into()),
            4 => Value::Unsigned(self.u32(item)?.into()),
            5 => Value::Signed(i32::from_le_bytes(self.array(item)?).into()),
            6 => Value::Float(f32::from_le_bytes(self.array(item)?).into()),
            7 => match self.array::<1>(item)?[0] {
                0 => Value::Bool(false),
                1 => Value::Bool(true),
                other => return Err(self.corrupt(item, "a boolean of 0 or 1", other.to_string())),
            },
            8 => Value::String(self.string(item)?),
            9 => self.array_value(item, depth)?,
            10 => Value::Unsigned(self.u64(item)?),
            11 => Value::Signed(i64::from_le_bytes(self.array(item)?)),
            12 => Value::Float(f64::from_le_bytes(self.array(item)?)),
            other => return Err(self.corrupt(item, "a value type from 0 to 12", other.to_string())),
        })
    }

    fn array_value(&mut self, item: &str, depth: u32) -> Result<Value, ModelError> {
        if depth >= MAX_ARRAY_DEPTH {
            return Err(self.corrupt(item, format!("arrays nested at most {MAX_ARRAY_DEPTH} deep"), "more"));
        }
        let kind = self.u32(item)?;
        let min_bytes = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            8 | 10..=12 => 8,
            9 => 12,
            other => return Err(self.corrupt(item, "an element type from 0 to 12", other.to_string())),
        };
        let count = self.count(item, min_bytes)?;
        if count > MAX_ARRAY_LENGTH {
            let expected = format!("an array of at most {} elements", thousands(MAX_ARRAY_LENGTH));
            return Err(self.corrupt(item, expected, thousands(count)));
        }
        (0..count).map(|_| self.value_of(kind, item, depth + 1)).collect::<Result<_, _>>().map(Value::Array)
    }
}
