//! The head of a safetensors file: a length, and a JSON table of names, types, shapes and byte ranges.
//!
//! ```text
//! u64 length | JSON of that length | data …
//!              {"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, …, "__metadata__": {…}}
//! ```
//! The ranges must cover the data exactly: no gap, no overlap, nothing beyond the end, each as long as its type and
//! shape say.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

use crate::error::{DOWNLOAD_AGAIN, ModelError, shape_text, thousands};

/// No head is longer (the format's own limit); a length beyond it is damage.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// Bits of one element. Those marked as weights can be loaded as such.
const DTYPES: &[(&str, u64, bool)] = &[
    ("F64", 64, true),
    ("F32", 32, true),
    ("F16", 16, true),
    ("BF16", 16, true),
    ("BOOL", 8, false),
    ("U8", 8, false),
    ("I8", 8, false),
    ("F8_E5M2", 8, false),
    ("F8_E4M3", 8, false),
    ("F8_E8M0", 8, false),
    ("F4", 4, false),
    ("F6_E2M3", 6, false),
    ("F6_E3M2", 6, false),
    ("I16", 16, false),
    ("U16", 16, false),
    ("I32", 32, false),
    ("U32", 32, false),
    ("I64", 64, false),
    ("U64", 64, false),
    ("C64", 64, false),
];

/// The head of a safetensors file.
#[derive(Debug, Clone)]
pub struct Safetensors {
    /// Where it was read from.
    pub path: PathBuf,
    /// The tensors, in the order of their data.
    pub tensors: Vec<SafetensorsTensor>,
}

/// One row of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SafetensorsTensor {
    /// Its name.
    pub name: String,
    /// Its type, as the format names it: `BF16`.
    pub dtype: String,
    /// Outermost dimension first.
    pub shape: Vec<u64>,
    /// How many bytes its data takes.
    pub num_bytes: u64,
}

#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

impl Safetensors {
    /// Reads and checks the head of the file at `path`; data is not read.
    ///
    /// # Errors
    /// [`ModelError::Io`] if it cannot be read; [`ModelError::Truncated`] if it ends early; [`ModelError::Corrupt`] if
    /// it says something impossible.
    pub fn read(path: &Path) -> Result<Self, ModelError> {
        let io = |source| ModelError::Io { file: path.to_owned(), source };
        let mut file = File::open(path).map_err(io)?;
        let length = file.metadata().map_err(io)?.len();
        let head = Head { path, length };
        head.require(8, "the length of the header")?;
        let mut bytes = [0; 8];
        file.read_exact(&mut bytes).map_err(io)?;
        let header_bytes = u64::from_le_bytes(bytes);
        if header_bytes > MAX_HEADER_BYTES {
            let expected = format!("at most {} bytes", thousands(MAX_HEADER_BYTES));
            return Err(head.corrupt("the length of the header", expected, thousands(header_bytes)));
        }
        head.require(8 + header_bytes, "the header")?;
        let mut json = vec![0; usize::try_from(header_bytes).unwrap_or(usize::MAX)];
        file.read_exact(&mut json).map_err(io)?;
        let table: Table = serde_json::from_slice(&json)
            .map_err(|error| head.corrupt("the header", "a JSON table of tensors", error.to_string()))?;
        let tensors = head.check(table.0, 8 + header_bytes)?;
        Ok(Self { path: path.to_owned(), tensors })
    }
}

impl SafetensorsTensor {
    /// Whether a shard can load a weight of this type.
    pub(crate) fn is_weight(&self) -> bool {
        DTYPES.iter().any(|(name, _, weight)| *name == self.dtype && *weight)
    }
}

/// The names of all types that weights can have, for messages.
pub(crate) fn weight_dtype_names() -> String {
    DTYPES.iter().filter(|entry| entry.2).map(|entry| entry.0).collect::<Vec<_>>().join(", ")
}

/// The file that a table is checked against.
struct Head<'a> {
    path: &'a Path,
    length: u64,
}

impl Head<'_> {
    fn check(
        &self,
        mut entries: Vec<(String, Entry)>,
        data: u64,
    ) -> Result<Vec<SafetensorsTensor>, ModelError> {
        self.check_names(&entries)?;
        entries.sort_by_key(|(_, entry)| entry.data_offsets);
        let mut tensors = Vec::with_capacity(entries.len());
        let mut end = 0;
        for (name, entry) in entries {
            let item = format!("tensor `{name}`");
            let num_bytes = self.num_bytes(&item, &entry)?;
            let (from, to) = entry.data_offsets;
            if from != end {
                let expected = format!("data from byte {}, where the tensor before it ends", thousands(end));
                return Err(self.corrupt(item, expected, format!("byte {}", thousands(from))));
            }
            if to.checked_sub(from) != Some(num_bytes) {
                let expected =
                    format!("{} bytes ({} {})", thousands(num_bytes), entry.dtype, shape_text(&entry.shape));
                let found = format!("bytes {} to {}", thousands(from), thousands(to));
                return Err(self.corrupt(item, expected, found));
            }
            end = to;
            tensors.push(SafetensorsTensor { name, dtype: entry.dtype, shape: entry.shape, num_bytes });
        }
        self.check_end(&tensors, data, end)?;
        Ok(tensors)
    }

    fn check_names(&self, entries: &[(String, Entry)]) -> Result<(), ModelError> {
        let mut names = entries.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>();
        names.sort_unstable();
        match names.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(self.corrupt(format!("tensor `{}`", pair[0]), "each name once", "it twice")),
            None => Ok(()),
        }
    }

    /// The file ends where the last tensor does.
    fn check_end(&self, tensors: &[SafetensorsTensor], data: u64, end: u64) -> Result<(), ModelError> {
        let expected = data.saturating_add(end);
        if self.length < expected {
            let mut reached = data;
            let cut = tensors.iter().find(|tensor| {
                reached = reached.saturating_add(tensor.num_bytes);
                reached > self.length
            });
            let item = cut.map_or("the data".to_owned(), |tensor| format!("tensor `{}`", tensor.name));
            return self.require(expected, &item);
        }
        if self.length > expected {
            let expected = format!("{} bytes, where the last tensor ends", thousands(expected));
            return Err(self.corrupt(
                "the end of the file",
                expected,
                format!("{} bytes", thousands(self.length)),
            ));
        }
        Ok(())
    }

    fn num_bytes(&self, item: &str, entry: &Entry) -> Result<u64, ModelError> {
        let Some((_, bits, _)) = DTYPES.iter().find(|(name, ..)| *name == entry.dtype) else {
            let expected = "a type of the safetensors format";
            return Err(self.corrupt(item, expected, format!("`{}`", entry.dtype)));
        };
        let elements = entry.shape.iter().try_fold(1u64, |product, &size| product.checked_mul(size));
        let num_bits = elements.and_then(|elements| elements.checked_mul(*bits)).filter(|bits| bits % 8 == 0);
        num_bits.map(|bits| bits / 8).ok_or_else(|| {
            let found = format!("{} {}", entry.dtype, shape_text(&entry.shape));
            self.corrupt(item, "a shape of a whole number of bytes below 2^61", found)
        })
    }

    fn require(&self, num_bytes: u64, item: &str) -> Result<(), ModelError> {
        if num_bytes <= self.length {
            return Ok(());
        }
        let (file, item) = (self.path.to_owned(), item.to_owned());
        Err(ModelError::Truncated { file, item, expected: num_bytes, found: self.length })
    }

    fn corrupt(
        &self,
        item: impl Into<String>,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) -> ModelError {
        ModelError::Corrupt {
            file: self.path.to_owned(),
            item: item.into(),
            expected: expected.into(),
            found: found.into(),
            hint: DOWNLOAD_AGAIN,
        }
    }
}

/// The table with its duplicates: a map type would hide them.
struct Table(Vec<(String, Entry)>);

impl<'de> Deserialize<'de> for Table {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;

        impl<'de> Visitor<'de> for Entries {
            type Value = Table;

            fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Table, A::Error> {
                let mut entries = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                    } else {
                        entries.push((name, map.next_value()?));
                    }
                }
                Ok(Table(entries))
            }
        }

        deserializer.deserialize_map(Entries)
    }
}
