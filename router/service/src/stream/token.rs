//! Single tokens, for clients that ask about them.

use anaphora_text::Tokenizer;

use super::StreamError;

/// A generated token.
#[derive(Clone, Debug, PartialEq)]
pub struct Token {
    /// The token.
    pub id: u32,
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// The text that it added to those before it; empty in the middle of a character, and if nobody asked.
    pub text: String,
    /// Whether texts without special tokens leave it out.
    pub is_special: bool,
    /// Whether it is one of the tokens that end the sequence.
    pub ends: bool,
    /// The likeliest tokens of its position, likeliest first, if asked for.
    pub top: Vec<(u32, f32)>,
}

/// A token by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenText {
    /// As text, with U+FFFD where it has part of a character.
    pub text: String,
    /// Its bytes; `None` if the tokenizer does not tell.
    pub bytes: Option<Vec<u8>>,
}

/// The text and the bytes of a token by itself.
///
/// # Errors
/// If the tokenizer cannot decode it.
pub fn token_text(tokenizer: &Tokenizer, id: u32) -> Result<TokenText, StreamError> {
    let text = tokenizer.decode(&[id], false)?;
    let bytes = if text.contains(char::REPLACEMENT_CHARACTER) {
        tokenizer.id_to_token(id).and_then(|token| raw_bytes(&token))
    } else {
        Some(text.clone().into_bytes())
    };
    Ok(TokenText { text, bytes })
}

/// The bytes of a vocabulary entry that is not whole characters: `<0xE2>` as SentencePiece writes bytes, or the printable
/// alphabet of byte-level BPE (Radford et al. 2019).
fn raw_bytes(token: &str) -> Option<Vec<u8>> {
    if let Some(digits) = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>')) {
        return u8::from_str_radix(digits, 16).ok().map(|byte| vec![byte]);
    }
    token.chars().map(byte_of).collect()
}

/// The byte that a character of the byte-level alphabet stands for: printable Latin-1 stands for itself, and the other 68 bytes,
/// in order, are at U+0100 and after.
fn byte_of(character: char) -> Option<u8> {
    let prints = |code: u32| matches!(code, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let code = u32::from(character);
    if prints(code) {
        return u8::try_from(code).ok();
    }
    let index = code.checked_sub(0x100)? as usize;
    (0..=0xff_u8).filter(|byte| !prints(u32::from(*byte))).nth(index)
}

#[cfg(test)]
mod tests {
    use super::raw_bytes;

    #[test]
    fn bytes_of_vocabulary_entries() {
        for (token, expect) in [
            ("<0xE2>", Some(vec![0xe2])),
            ("Ġa", Some(vec![0x20, 0x61])),
            ("âĤ", Some(vec![0xe2, 0x82])),
            ("Ċ", Some(vec![0x0a])),
            ("Ń", Some(vec![0xad])),
            ("€", None),
        ] {
            assert_eq!(raw_bytes(token), expect, "{token}");
        }
    }
}
