//! Log-probabilities in the shapes of both OpenAI routes. A token that ends the text is not part of it, and so not listed.

use anaphora_text::Tokenizer;

use crate::{
    api::{
        ApiError,
        types::{
            chat::{TokenLogprob, TopLogprob},
            completions::{CompletionLogprobs, TopLogprobs},
        },
    },
    stream::{Token, TokenText, token_text},
};

/// The least log-probability that is written: JSON has no infinity. OpenAI's own stand-in for "very unlikely".
const VERY_UNLIKELY: f32 = -9999.0;

fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob } else { VERY_UNLIKELY }
}

/// A token as chat completions list it; `None` if it is no part of the text.
pub(super) fn chat(tokenizer: &Tokenizer, token: &Token) -> Result<Option<TokenLogprob>, ApiError> {
    if token.ends {
        return Ok(None);
    }
    let top = |(id, logprob): &(u32, f32)| {
        let TokenText { text, bytes } = token_text(tokenizer, *id)?;
        Ok(TopLogprob { token: text, logprob: finite(*logprob), bytes })
    };
    let top_logprobs = token.top.iter().map(top).collect::<Result<Vec<_>, ApiError>>()?;
    let TokenText { text, bytes } = token_text(tokenizer, token.id)?;
    Ok(Some(TokenLogprob { token: text, logprob: finite(token.logprob), bytes, top_logprobs }))
}

/// Appends a token to the arrays of text completions. `offset` counts the characters of the tokens so far, and goes on.
pub(super) fn completion(
    tokenizer: &Tokenizer,
    token: &Token,
    offset: &mut usize,
    logprobs: &mut CompletionLogprobs,
) -> Result<(), ApiError> {
    if token.ends {
        return Ok(());
    }
    let text = token_text(tokenizer, token.id)?.text;
    let own = (token.id, token.logprob);
    // The token itself is listed even if it is not among the likeliest.
    let missing = (!token.top.is_empty() && !token.top.iter().any(|(id, _)| *id == token.id)).then_some(own);
    let top = token
        .top
        .iter()
        .copied()
        .chain(missing)
        .map(|(id, logprob)| Ok((token_text(tokenizer, id)?.text, finite(logprob))));
    logprobs.top_logprobs.push(TopLogprobs(top.collect::<Result<Vec<_>, ApiError>>()?));
    logprobs.token_logprobs.push(finite(token.logprob));
    logprobs.text_offset.push(*offset);
    *offset += text.chars().count();
    logprobs.tokens.push(text);
    Ok(())
}
