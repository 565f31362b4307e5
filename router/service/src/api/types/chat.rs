//! `/v1/chat/completions`.

use serde::{Deserialize, Serialize};

use super::{
    openai::{CommonRequest, FinishReason, Usage},
    strict::{ChatMessage, Object},
};

/// Body of `/v1/chat/completions` and `/chat_tokenize`.
#[derive(Clone, Debug)]
pub struct ChatRequest {
    /// The conversation. Each message is checked by [`crate::admit`] and handed to the chat template with all its keys.
    pub messages: Vec<ChatMessage>,
    /// What else only chat has.
    pub chat: ChatFields,
    /// What it shares with text completions.
    pub common: CommonRequest,
}

/// The options of a chat request that text completions do not have.
#[derive(Clone, Debug, Deserialize)]
pub struct ChatFields {
    /// Report the log-probability of each token.
    #[serde(default)]
    pub logprobs: Option<bool>,
    /// Report so many likeliest tokens with each; needs `logprobs`.
    #[serde(default)]
    pub top_logprobs: Option<u32>,
    /// Newer name of `max_tokens`.
    #[serde(default)]
    pub max_completion_tokens: Option<u32>,
    /// Handed to the chat template as `reasoning_effort`.
    #[serde(default)]
    pub reasoning_effort: Option<String>,
    /// Extension: more variables for the chat template.
    #[serde(default)]
    pub chat_template_kwargs: Option<Object>,
    /// Extension: end the prompt with the opening of an assistant message. Default: unless the last message is one.
    #[serde(default)]
    pub add_generation_prompt: Option<bool>,
    /// Extension: leave the last message open, so that the model goes on with it. Default: if it is the assistant's.
    #[serde(default)]
    pub continue_final_message: Option<bool>,
}

/// The answer.
#[derive(Debug, Serialize)]
pub struct ChatCompletion {
    /// `chatcmpl-…`.
    pub id: String,
    /// "chat.completion".
    pub object: &'static str,
    /// Unix time, in seconds.
    pub created: u64,
    /// The served name.
    pub model: String,
    /// Version of anaphora.
    pub system_fingerprint: &'static str,
    /// By index.
    pub choices: Vec<ChatChoice>,
    /// Of all choices together.
    pub usage: Usage,
}

/// One answer to the conversation.
#[derive(Debug, Serialize)]
pub struct ChatChoice {
    /// `0..n`.
    pub index: usize,
    /// What the assistant says.
    pub message: AssistantMessage,
    /// `null` unless asked for.
    pub logprobs: Option<ChatLogprobs>,
    /// Why it ended.
    pub finish_reason: FinishReason,
}

/// The assistant's message.
#[derive(Debug, Serialize)]
pub struct AssistantMessage {
    /// "assistant".
    pub role: &'static str,
    /// The text.
    pub content: String,
    /// Always `null`.
    pub refusal: Option<String>,
}

/// Log-probabilities of a choice or of a chunk.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ChatLogprobs {
    /// One per token.
    pub content: Vec<TokenLogprob>,
    /// Always `null`.
    pub refusal: Option<Vec<TokenLogprob>>,
}

/// Log-probability of a token, with the likeliest ones beside it.
#[derive(Clone, Debug, Serialize)]
pub struct TokenLogprob {
    /// The token's text, with U+FFFD where it has part of a character.
    pub token: String,
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// The token's bytes.
    pub bytes: Option<Vec<u8>>,
    /// Likeliest first.
    pub top_logprobs: Vec<TopLogprob>,
}

/// One of the likeliest tokens of a position.
#[derive(Clone, Debug, Serialize)]
pub struct TopLogprob {
    /// As in [`TokenLogprob`].
    pub token: String,
    /// As in [`TokenLogprob`].
    pub logprob: f32,
    /// As in [`TokenLogprob`].
    pub bytes: Option<Vec<u8>>,
}

/// One event of a stream.
#[derive(Debug, Serialize)]
pub struct ChatCompletionChunk<'a> {
    /// The same in all chunks.
    pub id: &'a str,
    /// "chat.completion.chunk".
    pub object: &'static str,
    /// The same in all chunks.
    pub created: u64,
    /// The same in all chunks.
    pub model: &'a str,
    /// The same in all chunks.
    pub system_fingerprint: &'static str,
    /// One; none in the chunk that brings the usage.
    pub choices: &'a [ChunkChoice<'a>],
    /// Absent without `include_usage`; with it `null` in all chunks but the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Option<Usage>>,
}

/// What a chunk adds to a choice.
#[derive(Debug, Serialize)]
pub struct ChunkChoice<'a> {
    /// `0..n`.
    pub index: usize,
    /// What is new.
    pub delta: Delta<'a>,
    /// Of the tokens in `delta`; `null` unless asked for.
    pub logprobs: Option<ChatLogprobs>,
    /// In the last chunk of the choice.
    pub finish_reason: Option<FinishReason>,
}

/// What is new: the role first, then text, then nothing.
#[derive(Debug, Default, Serialize)]
pub struct Delta<'a> {
    /// In the first chunk of the choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<&'static str>,
    /// Text to append.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<&'a str>,
}
