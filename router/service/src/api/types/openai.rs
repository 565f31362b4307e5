//! What the OpenAI routes have in common.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, de};

use super::OneOrMany;

/// The fields that chat and text completions share; `null` is the same as absent in every one.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct CommonRequest {
    /// The served name, "tgi" or "dummy"; absent is the served name.
    pub model: Option<String>,
    /// -2 to 2; 0 is off.
    pub frequency_penalty: Option<f64>,
    /// -2 to 2; 0 is off.
    pub presence_penalty: Option<f64>,
    /// Token id (as a string) to a bias of -100 to 100.
    pub logit_bias: Option<BTreeMap<String, f64>>,
    /// The most tokens to generate.
    pub max_tokens: Option<u32>,
    /// How many choices per prompt.
    pub n: Option<u32>,
    /// With the parameters, the only source of randomness.
    pub seed: Option<Seed>,
    /// Strings that end the text, and are not part of it.
    pub stop: Option<OneOrMany>,
    /// Answer with server-sent events.
    pub stream: Option<bool>,
    /// Only with `stream`.
    pub stream_options: Option<StreamOptions>,
    /// 0 to 2; 0 is greedy; default 1.
    pub temperature: Option<f64>,
    /// Above 0, at most 1.
    pub top_p: Option<f64>,
    /// Extension: keep so many likeliest tokens; 0 and -1 are off.
    pub top_k: Option<i64>,
    /// Extension: keep tokens at least so many times as likely as the likeliest; 0 to 1.
    pub min_p: Option<f64>,
    /// Extension: locally typical sampling; above 0, at most 1.
    pub typical_p: Option<f64>,
    /// Extension: above 0; 1 is off.
    pub repetition_penalty: Option<f64>,
    /// Extension: tokens that end the text, besides the model's own.
    pub stop_token_ids: Option<Vec<u32>>,
    /// Extension: go on after the model's end-of-sequence tokens.
    pub ignore_eos: Option<bool>,
    /// Extension: the fewest tokens to generate before a stop token.
    pub min_tokens: Option<u32>,
    /// Extension: leave special tokens out of the text; default true.
    pub skip_special_tokens: Option<bool>,
    /// Extension: keep the stop string in the text.
    pub include_stop_str_in_output: Option<bool>,
    /// Extension: higher is served first; default 0.
    pub priority: Option<i32>,
    /// Extension: share the prefix cache only with requests that have the same salt.
    pub cache_salt: Option<String>,
}

/// A seed: any 64-bit integer, of either sign.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seed(pub u64);

impl<'de> Deserialize<'de> for Seed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Seed;

            fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str("a 64-bit integer")
            }

            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Seed, E> {
                Ok(Seed(value))
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Seed, E> {
                Ok(Seed(value.cast_unsigned()))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// `stream_options`.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StreamOptions {
    /// Send a last chunk with the usage, and `"usage": null` in the others.
    pub include_usage: Option<bool>,
    /// No effect: nothing is obfuscated.
    pub include_obfuscation: Option<bool>,
}

/// What a request cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Tokens of all prompts; each counts once, however many choices it has.
    pub prompt_tokens: u64,
    /// Tokens generated, of all choices.
    pub completion_tokens: u64,
    /// Their sum.
    pub total_tokens: u64,
    /// Always there.
    pub prompt_tokens_details: PromptTokensDetails,
}

/// Where the prompt's tokens came from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PromptTokensDetails {
    /// Tokens of the prompts that the prefix cache had.
    pub cached_tokens: u64,
}

impl Usage {
    /// `completion_tokens` tokens made from `prompt_tokens`, of which `cached_tokens` were not computed.
    #[must_use]
    pub fn new(prompt_tokens: u64, completion_tokens: u64, cached_tokens: u64) -> Self {
        Self {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens + completion_tokens,
            prompt_tokens_details: PromptTokensDetails { cached_tokens },
        }
    }
}

/// Why a choice ended, in OpenAI's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The model ended it, or a stop string or token did.
    Stop,
    /// The limit of tokens was reached.
    Length,
}

/// Every error of an OpenAI route, and the last event of a stream that failed.
#[derive(Debug, Serialize)]
pub struct ErrorResponse {
    /// The error.
    pub error: ErrorObject,
}

/// The `error` of an [`ErrorResponse`].
#[derive(Debug, Serialize)]
pub struct ErrorObject {
    /// For people.
    pub message: String,
    /// The kind: "`invalid_request_error`", "`rate_limit_error`", ….
    pub r#type: &'static str,
    /// The exact cause, if it has a name.
    pub code: Option<&'static str>,
    /// The path of the field to blame, as in `messages[0].role`.
    pub param: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::{CommonRequest, Seed};

    #[test]
    fn seeds() {
        let parse = |json| serde_json::from_str::<CommonRequest>(json).map(|request| request.seed);
        assert_eq!(parse(r#"{"seed":18446744073709551615}"#).unwrap(), Some(Seed(u64::MAX)));
        assert_eq!(parse(r#"{"seed":-1}"#).unwrap(), Some(Seed(u64::MAX)));
        assert_eq!(parse(r#"{"seed":null}"#).unwrap(), None);
        assert!(parse(r#"{"seed":1.5}"#).is_err());
        assert!(parse(r#"{"seed":18446744073709551616}"#).is_err());
    }
}
