//! What can be wrong with a model's files, each said in one paragraph.
//!
//! Every message names the file, the thing in it, what was expected, what was found, and what to do: it is the whole
//! of what a user sees before anything is spawned.

use std::fmt::Write as _;
use std::path::PathBuf;

/// Why a model cannot be served. `Display` is one paragraph for a person: file, tensor, expected, found, hint.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The operating system refused to read a file.
    #[error("{}: cannot be read: {source}.", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// The system's own words.
        source: std::io::Error,
    },

    /// A file that must be there is not.
    #[error("{}: {found}. Expected {expected}. {hint}", file.display())]
    Missing {
        /// The path that was looked at.
        file: PathBuf,
        /// What should have been there.
        expected: String,
        /// What is there instead ("there is no such file").
        found: String,
        /// What to do about it.
        hint: String,
    },

    /// A file ends before its own header says that it does.
    #[error(
        "{}: {item}: expected a file of at least {} bytes, found {} bytes. The file is {} bytes shorter than its \
         header says: download it again.",
        file.display(), thousands(*expected), thousands(*found), thousands(expected.saturating_sub(*found))
    )]
    Truncated {
        /// The file.
        file: PathBuf,
        /// What was being read ("tensor `blk.0.attn_q.weight`", "the metadata").
        item: String,
        /// Bytes that the file must have at least.
        expected: u64,
        /// Bytes that it has.
        found: u64,
    },

    /// A header says something that cannot be so.
    #[error("{}: {item}: expected {expected}, found {found}. {hint}", file.display())]
    Corrupt {
        /// The file.
        file: PathBuf,
        /// The thing in it ("the tensor count", "tensor `a.b`").
        item: String,
        /// What the format or the configuration asks for.
        expected: String,
        /// What the file says.
        found: String,
        /// What to do about it.
        hint: &'static str,
    },

    /// A tensor of the architecture is not in the files.
    #[error("{}: tensor `{tensor}`: expected one of shape {}, found none. {hint}", file.display(), shape_text(shape))]
    MissingTensor {
        /// The file, or the directory of a model with several.
        file: PathBuf,
        /// Its name.
        tensor: String,
        /// The shape that the configuration asks for, outermost dimension first.
        shape: Vec<u64>,
        /// What to do about it.
        hint: String,
    },

    /// A tensor has not the shape that the configuration asks for.
    #[error(
        "{}: tensor `{tensor}`: expected shape {}, found {}. {hint}",
        file.display(), shape_text(expected), shape_text(found)
    )]
    TensorShape {
        /// The file.
        file: PathBuf,
        /// Its name.
        tensor: String,
        /// The shape that the configuration asks for, outermost dimension first.
        expected: Vec<u64>,
        /// The shape in the file.
        found: Vec<u64>,
        /// What to do about it.
        hint: &'static str,
    },

    /// The files are sound, but this version cannot serve them.
    #[error("{}: {item} {found} is not supported. Supported: {supported}. {hint}", file.display())]
    Unsupported {
        /// The file.
        file: PathBuf,
        /// What is unsupported ("architecture", "tensor `a.b`: type").
        item: String,
        /// Its value, quoted where it is a name.
        found: String,
        /// Every value that would do.
        supported: String,
        /// What to do about it.
        hint: &'static str,
    },
}

/// The hint for damage that no reader can explain otherwise.
pub(crate) const DOWNLOAD_AGAIN: &str = "The file is damaged: download it again.";

/// `1234567` as `1,234,567`.
pub(crate) fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `[576, 192]`, as a person writes a shape.
pub(crate) fn shape_text(shape: &[u64]) -> String {
    let mut text = String::from("[");
    for (i, size) in shape.iter().enumerate() {
        let separator = if i == 0 { "" } else { ", " };
        let _ = write!(text, "{separator}{size}");
    }
    text.push(']');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_their_thousands_marked() {
        for (number, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(thousands(number), text);
        }
    }
}
