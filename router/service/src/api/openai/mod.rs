//! OpenAI's routes.

pub(super) mod chat;
mod chat_stream;
pub(super) mod completions;
mod completions_stream;
mod logprobs;
pub(super) mod models;
mod reply;
