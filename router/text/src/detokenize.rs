//! Tokens to text, one at a time, never half a character.
//!
//! ```text
//! id ── Tokenizer::fragment ──► bytes ──► [ incomplete character, at most 3 bytes ] ──► whole characters, out at once
//!                          └──► text ─────────────────────────────────────────────────► out at once
//! ```
//! A token costs its own length, however long the text is. All that comes out, put together, is what
//! [`Tokenizer::decode`] gives for all ids at once, with one exception: where a SentencePiece model writes bytes that
//! turn out not to be UTF-8, `decode` gives up the whole run of bytes, good characters included; here the good ones are
//! out already, and each bad byte becomes one U+FFFD.

use std::str;

use crate::error::TextError;
use crate::tokenizer::{Fragment, Spelling, Tokenizer};

/// Decodes the tokens of one sequence as they are sampled.
#[derive(Debug, Clone)]
pub struct Detokenizer {
    tokenizer: Tokenizer,
    skip_special_tokens: bool,
    /// Whether any token that shows went before.
    begun: bool,
    /// The beginning of a character.
    incomplete: Vec<u8>,
}

impl Detokenizer {
    /// Begins behind `prompt`, the tokens that the model was given.
    pub fn new(tokenizer: Tokenizer, prompt: &[u32], skip_special_tokens: bool) -> Self {
        let shows = |&id: &u32| !(skip_special_tokens && tokenizer.is_special(id)) && tokenizer.has_id(id);
        let begun = prompt.iter().any(shows);
        Self { tokenizer, skip_special_tokens, begun, incomplete: Vec::new() }
    }

    /// Takes the next token and gives the text that is certain now: empty while a character is incomplete.
    ///
    /// # Errors
    /// If the tokenizer's decoder fails.
    pub fn push(&mut self, id: u32) -> Result<String, TextError> {
        let fragment = self.tokenizer.fragment(id, self.begun, self.skip_special_tokens)?;
        self.begun |= fragment.is_some();
        Ok(match fragment.as_deref() {
            None => String::new(),
            Some(Fragment::Bytes(bytes)) => match str::from_utf8(bytes) {
                Ok(text) if self.incomplete.is_empty() => text.to_owned(),
                _ => {
                    self.incomplete.extend(bytes);
                    self.take_complete()
                }
            },
            Some(Fragment::Text(text)) => {
                let text = text.clone();
                if self.incomplete.is_empty() { text } else { self.take_rest() + &text }
            }
        })
    }

    /// The rest of the text, now that nothing follows: an incomplete character becomes U+FFFD.
    ///
    /// # Errors
    /// None at present; a decoder that looks ahead could fail here.
    pub fn finish(&mut self) -> Result<String, TextError> {
        Ok(self.take_rest())
    }

    /// Everything but the beginning of a character at the end.
    fn take_complete(&mut self) -> String {
        let mut text = String::new();
        let mut rest = self.incomplete.as_slice();
        loop {
            match str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    rest = &[];
                    break;
                }
                Err(error) => {
                    let (valid, after) = rest.split_at(error.valid_up_to());
                    text.push_str(str::from_utf8(valid).unwrap_or_default());
                    rest = after;
                    let Some(num_bad) = error.error_len() else { break };
                    text.push_str(&self.replacement(num_bad));
                    rest = &rest[num_bad..];
                }
            }
        }
        self.incomplete = rest.to_vec();
        text
    }

    /// What is incomplete, given up.
    fn take_rest(&mut self) -> String {
        let num_bad = std::mem::take(&mut self.incomplete).len();
        if num_bad == 0 { String::new() } else { self.replacement(num_bad) }
    }

    /// What the decoder writes for a bad sequence of bytes: one U+FFFD for all of them, or one for each.
    fn replacement(&self, num_bad: usize) -> String {
        let count = if self.tokenizer.spelling() == Spelling::ByteLevel { 1 } else { num_bad };
        str::repeat("\u{FFFD}", count)
    }
}
