//! What TGI says of tokens and ends.

use anaphora_text::Tokenizer;

use crate::{
    api::types::tgi,
    stream::{Finish, Finished, StreamError, Token, token_text},
};

/// A token as TGI writes it.
pub(super) fn token(token: Token) -> tgi::Token {
    tgi::Token { id: token.id, text: token.text, logprob: token.logprob, special: token.is_special }
}

/// The likeliest tokens at the position of `token`.
pub(super) fn top_tokens(tokenizer: &Tokenizer, token: &Token) -> Result<Vec<tgi::Token>, StreamError> {
    let one = |(id, logprob): &(u32, f32)| {
        let text = token_text(tokenizer, *id)?.text;
        Ok(tgi::Token { id: *id, text, logprob: *logprob, special: tokenizer.is_special(*id) })
    };
    token.top.iter().map(one).collect()
}

/// Why a sequence ended, in TGI's words: a stop token is the model's own, or the client wrote it as a string.
pub(super) fn finish_reason(finish: &Finish) -> tgi::FinishReason {
    match finish {
        Finish::Length => tgi::FinishReason::Length,
        Finish::StopToken => tgi::FinishReason::EosToken,
        Finish::StopString(_) => tgi::FinishReason::StopSequence,
    }
}

/// Puts the sequence with the best mean log-probability first.
pub(super) fn best_first(finished: &mut [Finished]) {
    finished.sort_by(|one, other| other.mean_logprob().total_cmp(&one.mean_logprob()));
}
