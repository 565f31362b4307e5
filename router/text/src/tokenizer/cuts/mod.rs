//! Where a text may be cut so that the ids of its parts, put together, are the ids of the whole.
//!
//! ```text
//! encode(text) == encode(text[..cut]) ++ encode(text[cut..])       for every cut, whatever stands on either side
//! ```
//! Whether a place is a cut depends on the few characters around it alone, so what was cut once stays cut however the
//! text goes on. Two kinds are proven, each from the tokenizer's own description when it is read:
//!
//! - [`Pairs`]: between two characters at which no word of the pre-tokeniser can go on;
//! - [`Added`]: before an added token, which splits text before anything else does. For all other tokenizers.

mod added;
mod expression;
mod pairs;
mod symbols;

use tokenizers::Tokenizer as Pipeline;

use self::added::Added;
use self::pairs::Pairs;

/// The cuts of a tokenizer.
pub(crate) enum Cuts {
    Pairs(Box<Pairs>),
    Added(Box<Added>),
    /// Nothing is proven: texts are encoded whole.
    Never,
}

impl Cuts {
    /// The cuts that `pipeline` is proven to have.
    pub(super) fn of(pipeline: &Pipeline) -> Self {
        if let Some(pairs) = Pairs::of(pipeline) {
            return Self::Pairs(Box::new(pairs));
        }
        Added::of(pipeline).map_or(Self::Never, |added| Self::Added(Box::new(added)))
    }

    /// Whether `text` may be cut at byte `at`, which is a character's beginning or the end.
    pub(crate) fn is_cut(&self, text: &str, at: usize) -> bool {
        match self {
            Self::Pairs(pairs) => pairs.is_cut(text, at),
            Self::Added(added) => added.is_cut(text, at),
            Self::Never => false,
        }
    }

    /// The first cut at byte `from` or after it.
    pub(crate) fn next(&self, text: &str, from: usize) -> Option<usize> {
        match self {
            Self::Pairs(pairs) => pairs.next(text, from),
            Self::Added(added) => added.next(text, from),
            Self::Never => None,
        }
    }
}

#[cfg(test)]
mod tests;
