//! What one token adds to a text: bytes, for vocabularies that can cut a character in two, or text.

use std::{borrow::Cow, sync::OnceLock};

use tokenizers::{Decoder, DecoderWrapper};

use super::{Tokenizer, tokenizer_error};
use crate::error::TextError;

/// How a vocabulary spells characters that it has no token for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Spelling {
    /// Every token is a string of bytes, each written as one printable character (GPT-2, Llama 3).
    ByteLevel,
    /// Tokens are text, but for 256 that are a byte each: `<0xE4>` (SentencePiece).
    ByteFallback,
    /// Tokens are text.
    Text,
}

/// What one token adds to a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fragment {
    /// Bytes that may begin or end inside a character.
    Bytes(Vec<u8>),
    /// Whole characters.
    Text(String),
}

impl Spelling {
    /// The spelling that a decoder reads.
    pub(super) fn of(decoder: Option<&DecoderWrapper>) -> Self {
        match decoder {
            Some(DecoderWrapper::ByteLevel(_)) => Self::ByteLevel,
            Some(DecoderWrapper::ByteFallback(_)) => Self::ByteFallback,
            Some(DecoderWrapper::Sequence(sequence)) => {
                let mut kinds = sequence.get_decoders().iter().map(|decoder| Self::of(Some(decoder)));
                kinds.find(|&kind| kind != Self::Text).unwrap_or(Self::Text)
            }
            _ => Self::Text,
        }
    }
}

impl Tokenizer {
    /// How the vocabulary spells characters that it has no token for.
    pub(crate) fn spelling(&self) -> Spelling {
        self.inner.spelling
    }

    /// What a token adds to a text; `None` if it has no part in one: a special token that is to be skipped, or an id
    /// out of the vocabulary. `begun` tells whether other tokens went before: SentencePiece writes the first without
    /// its space. Behind others a token always adds the same, which is worked out once.
    ///
    /// # Errors
    /// If the decoder fails.
    pub(crate) fn fragment(
        &self,
        id: u32,
        begun: bool,
        skip_special_tokens: bool,
    ) -> Result<Option<Cow<'_, Fragment>>, TextError> {
        if skip_special_tokens && self.is_special(id) {
            return Ok(None);
        }
        let known = self.inner.fragments.get(id as usize).filter(|_| begun);
        if let Some(fragment) = known.and_then(OnceLock::get) {
            return Ok(Some(Cow::Borrowed(fragment)));
        }
        let fragment = self.new_fragment(id, begun)?;
        Ok(fragment.map(|fragment| match known {
            Some(place) => Cow::Borrowed(place.get_or_init(|| fragment)),
            None => Cow::Owned(fragment),
        }))
    }

    fn new_fragment(&self, id: u32, begun: bool) -> Result<Option<Fragment>, TextError> {
        let Some(token) = self.id_to_token(id) else { return Ok(None) };
        let bytes = match self.inner.spelling {
            Spelling::ByteLevel => Some(byte_level_bytes(&token)),
            // At the beginning of a text a byte may be the space that is left out: let the decoder see to it.
            Spelling::ByteFallback => {
                fallback_byte(&token).filter(|byte| begun || !byte.is_ascii()).map(|byte| vec![byte])
            }
            Spelling::Text => None,
        };
        match bytes {
            Some(bytes) => Ok(Some(Fragment::Bytes(bytes))),
            None => self.decode_one(token, begun).map(|text| Some(Fragment::Text(text))),
        }
    }

    /// The text of a token by itself. Where others went before, it is decoded behind a plain one, the anchor, so that
    /// it is not the first.
    fn decode_one(&self, token: String, begun: bool) -> Result<String, TextError> {
        let Some(decoder) = self.inner.pipeline.get_decoder() else { return Ok(token) };
        match self.inner.anchor.as_ref().filter(|_| begun) {
            Some(anchor) => {
                let text = decoder.decode(vec![anchor.token.clone(), token]).map_err(tokenizer_error)?;
                Ok(text.get(anchor.text_length..).unwrap_or_default().to_owned())
            }
            None => decoder.decode(vec![token]).map_err(tokenizer_error),
        }
    }
}

/// An ordinary token whose text is one visible character.
pub(super) struct Anchor {
    token: String,
    /// Bytes of its text at the beginning of a text.
    text_length: usize,
}

impl Anchor {
    pub(super) fn find(pipeline: &tokenizers::Tokenizer, vocab_size: usize) -> Option<Self> {
        let usual = ["a", "A", "e", "0"].iter().filter_map(|token| pipeline.token_to_id(token));
        let ids = usual.chain(0..u32::try_from(vocab_size).unwrap_or(u32::MAX));
        let added = pipeline.get_added_vocabulary().get_added_tokens_decoder();
        ids.filter(|id| !added.contains_key(id)).find_map(|id| {
            let text = pipeline.decode(&[id], false).ok()?;
            let visible = text.len() == 1 && text.chars().all(|character| character.is_ascii_graphic());
            visible.then_some(Self { token: pipeline.id_to_token(id)?, text_length: text.len() })
        })
    }
}

/// `<0xE4>`
fn fallback_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 { u8::from_str_radix(digits, 16).ok() } else { None }
}

/// The bytes that a byte-level token stands for. A token with any other character, an added one, stands for itself.
fn byte_level_bytes(token: &str) -> Vec<u8> {
    token
        .chars()
        .map(byte_level_byte)
        .collect::<Option<Vec<_>>>()
        .unwrap_or_else(|| token.as_bytes().to_vec())
}

/// GPT-2's alphabet: printable Latin-1 characters are themselves, and the other 68 bytes follow from U+0100 on.
fn byte_level_byte(character: char) -> Option<u8> {
    let code = u32::from(character);
    match u8::try_from(code) {
        Ok(byte) => is_printable(byte).then_some(byte),
        Err(_) => (0..=u8::MAX).filter(|&byte| !is_printable(byte)).nth((code - 0x100) as usize),
    }
}

fn is_printable(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF)
}

#[cfg(test)]
mod tests {
    use tokenizers::pre_tokenizers::byte_level::ByteLevel;

    use super::*;

    #[test]
    fn the_alphabet_is_that_of_tokenizers() {
        let alphabet = ByteLevel::alphabet();
        let ours =
            (0..0x200).filter_map(char::from_u32).filter(|&character| byte_level_byte(character).is_some());
        let ours = ours.collect::<Vec<_>>();
        assert_eq!(ours.len(), 256);
        assert!(ours.iter().all(|character| alphabet.contains(character)));
        for (character, byte) in [('a', b'a'), ('Ġ', b' '), ('Ċ', b'\n'), ('ÿ', 0xFF), ('Ń', 0xAD), ('Ā', 0)]
        {
            assert_eq!(byte_level_byte(character), Some(byte));
        }
    }
}
