//! TGI's native routes: `/`, `/generate`, `/generate_stream`, `/tokenize`, `/info`.
//!
//! Unknown fields are ignored, as TGI does. Numbers are wider here than they mean, so that a value out of range gets
//! TGI's own sentence and not a type error.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::OneOrMany;

/// Body of `/generate`, `/generate_stream`, `/tokenize`; with `stream` also of `/`.
#[derive(Debug, Deserialize)]
pub struct GenerateRequest {
    /// The prompt.
    pub inputs: String,
    /// How to generate. Absent is not the same as `{}`: without it, `do_sample` defaults to true.
    #[serde(default)]
    pub parameters: Option<GenerateParameters>,
    /// Only `/` reads it.
    #[serde(default)]
    pub stream: Option<bool>,
    /// Only `/tokenize` reads it; TGI keeps it internal. Default true.
    #[serde(default)]
    pub add_special_tokens: Option<bool>,
}

/// `parameters` of a [`GenerateRequest`]; `null` is the same as absent in every field.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct GenerateParameters {
    /// How many sequences to generate; the one with the best mean log-probability is the answer.
    pub best_of: Option<u64>,
    /// Above 0; 0 is greedy.
    pub temperature: Option<f64>,
    /// Above 0; 1 is off.
    pub repetition_penalty: Option<f64>,
    /// -2 to 2; 0 is off.
    pub frequency_penalty: Option<f64>,
    /// Above 0.
    pub top_k: Option<i64>,
    /// Above 0, at most 1.
    pub top_p: Option<f64>,
    /// Above 0, at most 1.
    pub typical_p: Option<f64>,
    /// Sample even if nothing else asks for it.
    pub do_sample: Option<bool>,
    /// Default: what the context has room for.
    pub max_new_tokens: Option<u64>,
    /// Put the prompt before the generated text.
    pub return_full_text: Option<bool>,
    /// Strings that end the text, and stay in it.
    pub stop: Option<OneOrMany>,
    /// Keep only the last so many tokens of the prompt.
    pub truncate: Option<u64>,
    /// Not supported.
    pub watermark: Option<bool>,
    /// Answer with `details`.
    pub details: Option<bool>,
    /// Answer with `details`; `details.prefill` is empty all the same, as in TGI without `--enable-prefill-logprobs`.
    pub decoder_input_details: Option<bool>,
    /// The only source of randomness.
    pub seed: Option<u64>,
    /// How many likeliest tokens to report with each token.
    pub top_n_tokens: Option<u64>,
    /// Not supported yet.
    pub grammar: Option<Value>,
    /// Not supported yet.
    pub adapter_id: Option<String>,
    /// Extension: higher is served first; default 0.
    pub priority: Option<i32>,
    /// Extension: share the prefix cache only with requests that have the same salt.
    pub cache_salt: Option<String>,
}

/// Why a sequence ended, in TGI's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// `max_new_tokens` were generated.
    Length,
    /// The model ended it.
    EosToken,
    /// A string of `stop` was generated.
    StopSequence,
}

/// A token of the prompt. Never built: see [`GenerateParameters::decoder_input_details`].
#[derive(Clone, Debug, Serialize)]
pub struct PrefillToken {
    /// The token.
    pub id: u32,
    /// Its text.
    pub text: String,
    /// `null` for the first.
    pub logprob: Option<f32>,
}

/// A generated token.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Token {
    /// The token.
    pub id: u32,
    /// The text that it added; empty in the middle of a character.
    pub text: String,
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// Whether it is left out of `generated_text`.
    pub special: bool,
}

/// Answer of `/generate`, and of `/` in an array of one.
#[derive(Debug, Serialize)]
pub struct GenerateResponse {
    /// With the stop string, without special tokens.
    pub generated_text: String,
    /// Only if asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub details: Option<Details>,
}

/// What became of a sequence.
#[derive(Debug, Serialize)]
pub struct Details {
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// Tokens generated, the last one included.
    pub generated_tokens: u32,
    /// `null` if nothing was left to chance.
    pub seed: Option<u64>,
    /// Always empty.
    pub prefill: Vec<PrefillToken>,
    /// Every generated token.
    pub tokens: Vec<Token>,
    /// The others, with `best_of`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub best_of_sequences: Option<Vec<BestOfSequence>>,
    /// The likeliest tokens of each position, with `top_n_tokens`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub top_tokens: Vec<Vec<Token>>,
}

/// A sequence that `best_of` did not choose.
#[derive(Debug, Serialize)]
pub struct BestOfSequence {
    /// As in [`GenerateResponse`].
    pub generated_text: String,
    /// As in [`Details`].
    pub finish_reason: FinishReason,
    /// As in [`Details`].
    pub generated_tokens: u32,
    /// As in [`Details`].
    pub seed: Option<u64>,
    /// As in [`Details`].
    pub prefill: Vec<PrefillToken>,
    /// As in [`Details`].
    pub tokens: Vec<Token>,
    /// As in [`Details`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub top_tokens: Vec<Vec<Token>>,
}

/// One event of `/generate_stream`.
#[derive(Debug, Serialize)]
pub struct StreamResponse {
    /// Counts up from 1.
    pub index: u32,
    /// The token.
    pub token: Token,
    /// The likeliest tokens, with `top_n_tokens`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub top_tokens: Vec<Token>,
    /// The whole text, in the last event only.
    pub generated_text: Option<String>,
    /// In the last event only, if asked for.
    pub details: Option<StreamDetails>,
}

/// `details` of the last event of a stream.
#[derive(Debug, Serialize)]
pub struct StreamDetails {
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// Tokens generated, the last one included.
    pub generated_tokens: u32,
    /// `null` if nothing was left to chance.
    pub seed: Option<u64>,
    /// Tokens of the prompt.
    pub input_length: u32,
}

/// Every error of a TGI route, and the last event of a stream that failed.
#[derive(Debug, Serialize)]
pub struct ErrorResponse {
    /// For people.
    pub error: String,
    /// For programs; a closed set.
    pub error_type: &'static str,
}

/// One token of `/tokenize`.
#[derive(Debug, Serialize)]
pub struct SimpleToken {
    /// The token.
    pub id: u32,
    /// The stretch of the input that it stands for.
    pub text: String,
    /// Byte offset of that stretch.
    pub start: usize,
    /// Byte offset after it.
    pub stop: usize,
}

/// Answer of `/chat_tokenize`.
#[derive(Debug, Serialize)]
pub struct ChatTokenizeResponse {
    /// The tokens of `templated_text`.
    pub tokenize_response: Vec<SimpleToken>,
    /// What the chat template made of the messages.
    pub templated_text: String,
}

/// Answer of `/info`: TGI 3's fields, then those that TGI 2 had and many dashboards still read.
#[derive(Debug, Serialize)]
pub struct Info {
    /// The served name.
    pub model_id: String,
    /// Revision of the weights, if known.
    pub model_sha: Option<String>,
    /// Always "text-generation".
    pub model_pipeline_tag: &'static str,
    /// Requests running and waiting; beyond, 429.
    pub max_concurrent_requests: usize,
    /// Limit of `best_of`.
    pub max_best_of: u32,
    /// Limit of `stop`.
    pub max_stop_sequences: usize,
    /// Limit of the prompt, in tokens; `null` until the shards answered.
    pub max_input_tokens: Option<u32>,
    /// Limit of prompt and output, in tokens; `null` until the shards answered.
    pub max_total_tokens: Option<u32>,
    /// Threads that template and tokenise.
    pub validation_workers: usize,
    /// Limit of the prompts in one `/v1/completions` request.
    pub max_client_batch_size: usize,
    /// "anaphora-router".
    pub router: &'static str,
    /// Of anaphora.
    pub version: &'static str,
    /// Commit that it was built from, if known.
    pub sha: Option<&'static str>,
    /// Label of the container image, if known.
    pub docker_label: Option<&'static str>,
    /// Element type of the weights as computed with.
    pub model_dtype: Option<String>,
    /// "cpu" or "cuda".
    pub model_device_type: Option<String>,
    /// TGI 2's name of `max_input_tokens`.
    pub max_input_length: Option<u32>,
    /// KV pool, in tokens.
    pub max_batch_total_tokens: Option<u64>,
    /// Token budget of one step.
    pub max_batch_prefill_tokens: Option<u32>,
    /// Rows of one step.
    pub max_batch_size: Option<u32>,
    /// Always 0: chunked prefill made it meaningless.
    pub waiting_served_ratio: f32,
    /// Always 0: chunked prefill made it meaningless.
    pub max_waiting_tokens: u32,
    /// Tokens guessed ahead per step; always 0.
    pub speculate: u32,
}
