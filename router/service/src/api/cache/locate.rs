//! A position in a prompt, told in words: the text around it, and the message that it is in.

use std::sync::Arc;

use anaphora_text::{Message, TextError, Tokenizer};

use crate::{
    admit::{Prompt, Tokenized},
    api::types::cache::Divergence,
};

/// Tokens of text that are shown on each side.
const NUM_SHOWN: usize = 32;

/// What must be kept of a prompt, before it becomes tokens, to find places in it again.
pub(super) struct Located {
    /// The contents of the messages; empty where there are none.
    contents: Vec<String>,
}

impl Located {
    /// The messages of a chat.
    pub(super) fn messages(prompts: &[Prompt]) -> Self {
        let messages = match prompts {
            [Prompt::Chat(chat)] => &chat.messages[..],
            _ => &[],
        };
        let content = |message: &Arc<Message>| message.text("content").unwrap_or_default().to_owned();
        Self { contents: messages.iter().map(content).collect() }
    }

    /// Where `prompt` and the cache part: at `position`, from where the cache has `cached`.
    ///
    /// # Errors
    /// If the tokenizer cannot decode the tokens there.
    pub(super) fn divergence(
        &self,
        tokenizer: &Tokenizer,
        prompt: &Tokenized,
        position: usize,
        cached: Option<&[u32]>,
    ) -> Result<Divergence, TextError> {
        let (before, after) = prompt.ids.split_at(position);
        let before = &before[before.len().saturating_sub(NUM_SHOWN)..];
        let after = &after[..after.len().min(NUM_SHOWN)];
        Ok(Divergence {
            position,
            message_index: self.message(tokenizer, prompt, position)?,
            before: tokenizer.decode(before, false)?,
            after: tokenizer.decode(after, false)?,
            cached: cached.map(|tokens| tokenizer.decode(tokens, false)).transpose()?,
        })
    }

    /// The message that the token at `position` belongs to: the first that ends behind it.
    fn message(
        &self,
        tokenizer: &Tokenizer,
        prompt: &Tokenized,
        position: usize,
    ) -> Result<Option<usize>, TextError> {
        let Some(text) = prompt.text.as_deref().filter(|_| !self.contents.is_empty()) else {
            return Ok(None);
        };
        let pieces = tokenizer.encode_pieces(text, false)?;
        let num_truncated = pieces.len().saturating_sub(prompt.ids.len());
        let offset = pieces.get(num_truncated + position).map_or(text.len(), |piece| piece.start);
        Ok(self.ends(text).find(|(_, end)| offset < *end).map(|(index, _)| index))
    }

    /// Where each message ends in the rendered `text`. Templates may trim a message, or leave it out.
    fn ends<'a>(&'a self, text: &'a str) -> impl Iterator<Item = (usize, usize)> + 'a {
        let mut from = 0;
        self.contents.iter().map(|content| content.trim()).enumerate().filter_map(move |(index, content)| {
            let found = text[from..].find(content).filter(|_| !content.is_empty())?;
            from += found + content.len();
            Some((index, from))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Located;

    #[test]
    fn messages_are_found_where_the_template_put_them() {
        let contents = ["be brief", " one\n", "", "left out", "one", "two"].map(str::to_owned).to_vec();
        let located = Located { contents };
        let text = "<s>be brief</s><u>one</u><a></a><u>one</u><a>two</a><u>";
        let ends: Vec<_> = located.ends(text).map(|(index, end)| (index, &text[end..end + 4])).collect();
        assert_eq!(ends, [(0, "</s>"), (1, "</u>"), (4, "</u>"), (5, "</a>")]);
    }
}
