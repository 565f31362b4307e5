//! The tokenizer of a model, from whichever file describes it.
//!
//! `tokenizer.json` is read by the `tokenizers` crate itself; a GGUF file's metadata is translated to the same pipeline
//! by [`gguf`], so that both give the same ids.

mod cuts;
mod fragment;
mod gguf;
mod pretokenize;

use std::collections::HashSet;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use anaphora_model::Gguf;
use tokenizers::{Encoding, Token};

use crate::error::TextError;
pub(crate) use cuts::Cuts;
use fragment::Anchor;
pub(crate) use fragment::{Fragment, Spelling};

/// Turns text into token ids and back. Cheap to clone; shared between threads.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<Inner>,
}

struct Inner {
    pipeline: tokenizers::Tokenizer,
    /// Ids that `skip_special_tokens` leaves out.
    special: HashSet<u32>,
    /// Counted once: the pipeline counts anew at each call.
    vocab_size: usize,
    spelling: Spelling,
    /// Stands before other tokens to make them not the first.
    anchor: Option<Anchor>,
    /// By id, what tokens add to a text that has begun; filled as they come.
    fragments: Box<[OnceLock<Fragment>]>,
    cuts: Cuts,
    /// Ids that go before and after every text that asks for them; `None` if they depend on the text.
    around: Option<(Vec<u32>, Vec<u32>)>,
}

/// One token of a text, with where it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// The token.
    pub id: u32,
    /// The text that it stands for, empty for a token that was added around the text. A character that takes several
    /// tokens is in each of them.
    pub text: String,
    /// Byte offset of its first byte in the text.
    pub start: usize,
    /// Byte offset just past its last byte.
    pub stop: usize,
}

impl Tokenizer {
    /// Reads the tokenizer of a GGUF file, of a directory with a `tokenizer.json`, or a `tokenizer.json` itself.
    ///
    /// # Errors
    /// If there is none, or if it is of a kind that is not supported: the message names both.
    pub fn open(path: &Path) -> Result<Self, TextError> {
        if path.is_dir() {
            return Self::open_directory(path);
        }
        if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json")) {
            return Self::from_json_file(path);
        }
        Self::from_gguf(&Gguf::read(path)?)
    }

    /// Builds the tokenizer that a GGUF file's metadata describes.
    ///
    /// # Errors
    /// If a part of it is missing, damaged, or of a kind that is not supported.
    pub fn from_gguf(file: &Gguf) -> Result<Self, TextError> {
        gguf::build(file).map(Self::new)
    }

    /// The ids of a text. Special tokens written in it become their ids, as with Hugging Face's tokenizers;
    /// `add_special_tokens` adds those that the model wants around a text (a BOS, usually).
    ///
    /// # Errors
    /// If the tokenizer has no token for a part of the text.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, TextError> {
        let encoding = self.inner.pipeline.encode_fast(text, add_special_tokens).map_err(tokenizer_error)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// As [`Tokenizer::encode`], with the text and byte offsets of each token.
    ///
    /// # Errors
    /// If the tokenizer has no token for a part of the text.
    pub fn encode_pieces(&self, text: &str, add_special_tokens: bool) -> Result<Vec<Piece>, TextError> {
        let encoding = self.inner.pipeline.encode(text, add_special_tokens).map_err(tokenizer_error)?;
        let offsets = encoding.get_offsets().iter();
        let pieces = encoding.get_ids().iter().zip(offsets).map(|(&id, &(start, stop))| {
            let bytes = text.as_bytes().get(start..stop).unwrap_or_default();
            Piece { id, text: String::from_utf8_lossy(bytes).into_owned(), start, stop }
        });
        Ok(pieces.collect())
    }

    /// The text of ids. Bytes that are not UTF-8 become U+FFFD; ids out of the vocabulary vanish.
    ///
    /// # Errors
    /// If the decoder fails.
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String, TextError> {
        self.inner.pipeline.decode(ids, skip_special_tokens).map_err(tokenizer_error)
    }

    /// The id of a token, spelt as in the vocabulary.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.pipeline.token_to_id(token)
    }

    /// How the vocabulary spells a token.
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.inner.pipeline.id_to_token(id)
    }

    /// Whether this is a special token: one that `skip_special_tokens` leaves out.
    pub fn is_special(&self, id: u32) -> bool {
        self.inner.special.contains(&id)
    }

    /// Number of tokens, added ones included. Ids lie below it unless the vocabulary has gaps.
    pub fn vocab_size(&self) -> usize {
        self.inner.vocab_size
    }

    /// The highest id of a token. O(vocabulary).
    pub fn max_id(&self) -> u32 {
        self.inner.pipeline.get_vocab(true).into_values().max().unwrap_or(0)
    }

    /// Where texts may be cut.
    pub(crate) fn cuts(&self) -> &Cuts {
        &self.inner.cuts
    }

    /// The ids that `add_special_tokens` adds before and after a text; `None` if they depend on the text.
    pub(crate) fn around(&self, add_special_tokens: bool) -> Option<(&[u32], &[u32])> {
        let (before, after) = self.inner.around.as_ref()?;
        Some(if add_special_tokens { (before, after) } else { (&[], &[]) })
    }

    /// Whether there is a token of this id.
    pub(crate) fn has_id(&self, id: u32) -> bool {
        self.inner.pipeline.id_to_token(id).is_some()
    }

    fn new(pipeline: tokenizers::Tokenizer) -> Self {
        let added = pipeline.get_added_vocabulary().get_added_tokens_decoder();
        let special = added.iter().filter(|(_, token)| token.special).map(|(&id, _)| id).collect();
        let vocab_size = pipeline.get_vocab_size(true);
        let spelling = Spelling::of(pipeline.get_decoder());
        let anchor = Anchor::find(&pipeline, vocab_size);
        let fragments = (0..vocab_size).map(|_| OnceLock::new()).collect();
        let cuts = Cuts::of(&pipeline);
        let around = around(&pipeline);
        let inner = Inner { pipeline, special, vocab_size, spelling, anchor, fragments, cuts, around };
        Self { inner: Arc::new(inner) }
    }

    fn open_directory(path: &Path) -> Result<Self, TextError> {
        let json = path.join("tokenizer.json");
        if json.is_file() {
            return Self::from_json_file(&json);
        }
        let (found, hint) = if path.join("tokenizer.model").is_file() {
            (
                "only a SentencePiece `tokenizer.model`",
                "Convert it once: `transformers.AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)` writes \
                 tokenizer.json.",
            )
        } else {
            ("no tokenizer.json", "Give the directory or file of one with --tokenizer.")
        };
        Err(TextError::NoTokenizer { path: path.to_owned(), found: found.to_owned(), hint: hint.to_owned() })
    }

    fn from_json_file(path: &Path) -> Result<Self, TextError> {
        let bytes = std::fs::read(path).map_err(|source| TextError::Io { file: path.to_owned(), source })?;
        let mut pipeline = tokenizers::Tokenizer::from_bytes(bytes).map_err(|error| TextError::Invalid {
            file: path.to_owned(),
            item: "the tokenizer".to_owned(),
            expected: "a tokenizer.json as Hugging Face's `tokenizers` writes it".to_owned(),
            found: error.to_string(),
        })?;
        // A file may carry the truncation and padding of the training run that saved it: never for serving.
        pipeline.with_truncation(None).map_err(tokenizer_error)?.with_padding(None);
        Ok(Self::new(pipeline))
    }
}

/// What the pipeline's last step puts around a text, told by a stand-in for its ids.
fn around(pipeline: &tokenizers::Tokenizer) -> Option<(Vec<u32>, Vec<u32>)> {
    const TEXT: u32 = u32::MAX;
    let process = |add_special_tokens| {
        let stand_in = Encoding::from_tokens(vec![Token::new(TEXT, String::new(), (0, 0))], 0);
        Some(pipeline.post_process(stand_in, None, add_special_tokens).ok()?.get_ids().to_vec())
    };
    if process(false)? != [TEXT] {
        return None;
    }
    let ids = process(true)?;
    let (before, after) = ids.split_at(ids.iter().position(|&id| id == TEXT)?);
    let after = &after[1..];
    (!after.contains(&TEXT)).then(|| (before.to_vec(), after.to_vec()))
}

fn tokenizer_error(error: impl std::fmt::Display) -> TextError {
    TextError::Tokenizer(error.to_string())
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Tokenizer")
            .field("vocab_size", &self.inner.vocab_size)
            .finish_non_exhaustive()
    }
}
