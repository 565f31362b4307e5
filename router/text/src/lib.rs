//! Text to tokens and back: tokenizer, chat template, incremental detokeniser, stop strings.
//!
//! ```text
//! messages ── ChatTemplate::render ──► prompt ── TokenCache::find, encode ──► ids (in)
//! text ◄── StopStrings::push ◄── Detokenizer::push ◄── id, id, id …               (out, one per sequence)
//! ```
//! Everything is synchronous and touches no network; the only files read are the model's, in [`TextConfig::open`]. The only
//! lock is that of a [`TokenCache`], held while what it knows is looked up, never while text is encoded. A [`Tokenizer`] is
//! shared by cloning it; the other two on the way out belong to one sequence.
//!
//! What must hold: ids equal those of the Hugging Face `tokenizers` package, cached or not; renderings equal those of `transformers`;
//! what a [`Detokenizer`] gives out, put together, is what [`Tokenizer::decode`] gives for all ids at once.
#![forbid(unsafe_code)]

mod cache;
mod config;
mod detokenize;
mod error;
mod stop;
mod template;
mod tokenizer;

pub use cache::{Lookup, TokenCache};
pub use config::TextConfig;
pub use detokenize::Detokenizer;
pub use error::{TemplateError, TextError};
pub use stop::{StopStep, StopStrings};
pub use template::{ChatTemplate, Field, Message, Rewrite, TemplateInput};
pub use tokenizer::{Piece, Tokenizer};

#[cfg(test)]
extern crate self as anaphora_text;
#[cfg(test)]
#[path = "../tests/common/mod.rs"]
mod testing;
