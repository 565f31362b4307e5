//! Tokens to text, one at a time, never half a character.
//!
//! A token is not a piece of text: a character may take several, and SentencePiece writes the first token of a text
//! without the space that the same token has elsewhere. So pending tokens are decoded behind an *anchor*, a plain token
//! that makes them "not the first", and text comes out once it cannot change any more:
//!
//! ```text
//! decode([anchor] + pending)  =  anchor's text │ given out already │ new, complete │ U+FFFD: perhaps half a character
//!                                                                  └── push gives this
//! ```
//! Once nothing is incomplete the pending tokens are forgotten, so a token costs the decoding of a few, however long
//! the text.

use crate::error::TextError;
use crate::tokenizer::Tokenizer;

/// What a decoder writes for bytes that are not (yet) a character.
const REPLACEMENT: char = '\u{FFFD}';
/// An incomplete character is at most three bytes, each of which may show as one replacement character.
const MAX_INCOMPLETE: usize = 3;
/// Pending tokens beyond this are garbage, not a character: the older ones are let go.
const MAX_PENDING: usize = 64;
/// How many of them are kept then: enough for what is incomplete, and to fall in step with it.
const KEPT_PENDING: usize = 16;

/// Decodes the tokens of one sequence as they are sampled.
#[derive(Clone)]
pub struct Detokenizer {
    tokenizer: Tokenizer,
    skip_special_tokens: bool,
    /// Goes before pending tokens; `None` while the text has not begun.
    anchor: Option<u32>,
    /// Tokens whose text is not all out.
    pending: Vec<u32>,
    /// Bytes of the pending tokens' text that are out.
    given: usize,
}

impl Detokenizer {
    /// Begins behind `prompt`, the tokens that the model was given.
    pub fn new(tokenizer: Tokenizer, prompt: &[u32], skip_special_tokens: bool) -> Self {
        let begun = prompt.iter().any(|&id| shows(&tokenizer, id, skip_special_tokens));
        let anchor = if begun { tokenizer.anchor() } else { None };
        Self { tokenizer, skip_special_tokens, anchor, pending: Vec::new(), given: 0 }
    }

    /// Takes the next token and gives the text that is certain now: empty while a character is incomplete.
    ///
    /// # Errors
    /// If the tokenizer's decoder fails.
    pub fn push(&mut self, id: u32) -> Result<String, TextError> {
        if !shows(&self.tokenizer, id, self.skip_special_tokens) {
            return Ok(String::new());
        }
        self.pending.push(id);
        let text = self.pending_text()?;
        let incomplete =
            text.chars().rev().take(MAX_INCOMPLETE).take_while(|&character| character == REPLACEMENT);
        let incomplete = incomplete.count() * REPLACEMENT.len_utf8();
        let certain = text.len() - incomplete;
        let new = text.get(self.given..certain).unwrap_or_default().to_owned();
        self.given = self.given.max(certain);
        if incomplete == 0 {
            self.forget();
        } else if self.pending.len() > MAX_PENDING {
            self.pending.drain(..MAX_PENDING - KEPT_PENDING);
            self.anchor = self.anchor.or_else(|| self.tokenizer.anchor());
            self.given = self.pending_text()?.len().saturating_sub(incomplete);
        }
        Ok(new)
    }

    /// The rest of the text, now that nothing follows: what is incomplete becomes U+FFFD.
    ///
    /// # Errors
    /// If the tokenizer's decoder fails.
    pub fn finish(&mut self) -> Result<String, TextError> {
        let text = self.pending_text()?;
        let rest = text.get(self.given..).unwrap_or_default().to_owned();
        self.forget();
        Ok(rest)
    }

    fn forget(&mut self) {
        if !self.pending.is_empty() {
            self.anchor = self.anchor.or_else(|| self.tokenizer.anchor());
        }
        self.pending.clear();
        self.given = 0;
    }

    fn pending_text(&self) -> Result<String, TextError> {
        let Some(anchor) = self.anchor else {
            return self.tokenizer.decode(&self.pending, self.skip_special_tokens);
        };
        let before = self.tokenizer.decode(&[anchor], self.skip_special_tokens)?.len();
        let ids = std::iter::once(anchor).chain(self.pending.iter().copied()).collect::<Vec<_>>();
        let mut text = self.tokenizer.decode(&ids, self.skip_special_tokens)?;
        text.drain(..before.min(text.len()));
        Ok(text)
    }
}

/// Whether a token has any part in the text.
fn shows(tokenizer: &Tokenizer, id: u32, skip_special_tokens: bool) -> bool {
    !(skip_special_tokens && tokenizer.is_special(id)) && tokenizer.has_id(id)
}
