//! How byte-level vocabularies cut text into words before BPE: `tokenizer.ggml.pre` names one of these.
//!
//! The expressions are those of the models' own `tokenizer.json` files. A wrong one still gives plausible text and a
//! quietly worse model, so an unknown name is an error, never a guess.

use tokenizers::normalizers::unicode::NFC;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::SplitDelimiterBehavior;
use tokenizers::{NormalizerWrapper, PreTokenizerWrapper};

/// One step of cutting.
#[derive(Debug, Clone, Copy)]
enum Cut {
    /// Every digit by itself.
    Digits,
    /// The expression of GPT-2.
    Gpt2,
    /// What an expression matches, and what lies between.
    Regex(&'static str),
}

/// What a name in `tokenizer.ggml.pre` stands for.
#[derive(Debug, Clone, Copy)]
pub(super) struct PreTokenizer {
    names: &'static [&'static str],
    cuts: &'static [Cut],
    /// Whether text is brought to Unicode's composed form first.
    composes: bool,
    /// Whether a word that is in the vocabulary is one token, whatever the merges say.
    pub(super) ignores_merges: bool,
    /// Whether a BOS goes before a text when the file does not say.
    pub(super) adds_bos: bool,
}

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// llama.cpp's cuts for files that name none: each expression cuts what the one before left.
const DEFAULT: &[Cut] = &[
    Cut::Regex(r"[\p{P}\$\+<=>\^~\|]+"),
    Cut::Regex(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"),
    Cut::Regex(r"\p{N}+"),
    Cut::Regex(r"[0-9][0-9][0-9]"),
];

const fn plain(names: &'static [&'static str], cuts: &'static [Cut]) -> PreTokenizer {
    PreTokenizer { names, cuts, composes: false, ignores_merges: false, adds_bos: false }
}

const PRE_TOKENIZERS: &[PreTokenizer] = &[
    plain(&["gpt-2", "phi-2", "olmo"], &[Cut::Gpt2]),
    plain(&["smollm", "starcoder", "refact", "command-r", "codeshell"], &[Cut::Digits, Cut::Gpt2]),
    PreTokenizer {
        ignores_merges: true,
        adds_bos: true,
        ..plain(&["llama-bpe", "llama3", "llama-v3"], &[Cut::Regex(LLAMA3)])
    },
    PreTokenizer { composes: true, ..plain(&["qwen2", "deepseek-r1-qwen"], &[Cut::Regex(QWEN2)]) },
    PreTokenizer { ignores_merges: true, adds_bos: true, ..plain(&["tekken"], &[Cut::Regex(TEKKEN)]) },
    plain(&["default"], DEFAULT),
];

impl PreTokenizer {
    /// The cutter of this name.
    pub(super) fn from_name(name: &str) -> Option<Self> {
        PRE_TOKENIZERS.iter().copied().find(|entry| entry.names.contains(&name))
    }

    /// Every known name, for messages.
    pub(super) fn names() -> String {
        PRE_TOKENIZERS.iter().flat_map(|entry| entry.names).copied().collect::<Vec<_>>().join(", ")
    }

    /// What is done to text before it is cut.
    pub(super) fn normalizer(self) -> Option<NormalizerWrapper> {
        self.composes.then(|| NFC.into())
    }

    /// The cutter as `tokenizers` wants it; its last step writes bytes as the vocabulary spells them.
    pub(super) fn build(self) -> Result<PreTokenizerWrapper, tokenizers::Error> {
        let mut steps: Vec<PreTokenizerWrapper> = Vec::new();
        let mut gpt2 = false;
        for cut in self.cuts {
            match *cut {
                Cut::Digits => steps.push(Digits::new(true).into()),
                Cut::Gpt2 => gpt2 = true,
                Cut::Regex(expression) => {
                    let pattern = SplitPattern::Regex(expression.to_owned());
                    steps.push(Split::new(pattern, SplitDelimiterBehavior::Isolated, false)?.into());
                }
            }
        }
        steps.push(ByteLevel::new(false, false, gpt2).into());
        Ok(Sequence::new(steps).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cutter_builds() {
        for entry in PRE_TOKENIZERS {
            entry.build().unwrap_or_else(|error| panic!("{:?}: {error}", entry.names));
        }
    }

    #[test]
    fn no_name_stands_twice() {
        let mut names = PRE_TOKENIZERS.iter().flat_map(|entry| entry.names).collect::<Vec<_>>();
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
