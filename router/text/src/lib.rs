//! Text to tokens and back: tokenizer, chat template, incremental detokeniser, stop strings.
//!
//! ```text
//! messages ── ChatTemplate::render ──► prompt ── Tokenizer::encode ──► ids        (in)
//! text ◄── StopStrings::push ◄── Detokenizer::push ◄── id, id, id …               (out, one per sequence)
//! ```
//! Everything is synchronous, takes no lock and touches no network; the only files read are the model's, in
//! [`TextConfig::open`]. A [`Tokenizer`] is shared by cloning it; the other two on the way out belong to one sequence.
//!
//! What must hold: ids equal those of the Hugging Face `tokenizers` package; renderings equal those of `transformers`;
//! what a [`Detokenizer`] gives out, put together, is what [`Tokenizer::decode`] gives for all ids at once.
#![forbid(unsafe_code)]

mod config;
mod detokenize;
mod error;
mod stop;
mod template;
mod tokenizer;

pub use config::TextConfig;
pub use detokenize::Detokenizer;
pub use error::{TemplateError, TextError};
pub use stop::{StopStep, StopStrings};
pub use template::{ChatTemplate, TemplateInput};
pub use tokenizer::{Piece, Tokenizer};
