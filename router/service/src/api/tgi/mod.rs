//! TGI's native routes, as Text Generation Inference 3 speaks them.

pub(super) mod chat_tokenize;
pub(super) mod compat;
mod details;
pub(super) mod generate;
pub(super) mod generate_stream;
pub(super) mod info;
pub(super) mod tokenize;
