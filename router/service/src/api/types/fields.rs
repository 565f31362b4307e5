//! Every field of the OpenAI requests, and what becomes of it: the one table.
//!
//! Nothing that matters is ignored. A field is honoured, or accepted because it cannot change the answer, or refused by
//! name; a name that is in no table is refused too. `null` asks for nothing, so any known field may be `null`.

use serde_json::{Value, value::RawValue};

/// A field of a request.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// Its name.
    pub name: &'static str,
    /// What becomes of it.
    pub treatment: Treatment,
}

/// What becomes of a field.
#[derive(Clone, Copy, Debug)]
pub enum Treatment {
    /// The request struct has it.
    Honoured,
    /// Accepted; it cannot change the answer.
    NoEffect,
    /// Refused, unless its value is one of these JSON texts, which ask for what happens anyway.
    Refused {
        /// Values that ask for nothing.
        neutral: &'static [&'static str],
        /// What to tell the client.
        reason: &'static str,
    },
}

use Treatment::{Honoured, NoEffect, Refused};

const fn field(name: &'static str, treatment: Treatment) -> Field {
    Field { name, treatment }
}

const fn refused(name: &'static str, neutral: &'static [&'static str], reason: &'static str) -> Field {
    field(name, Refused { neutral, reason })
}

const TOOLS: &str = "tool calling is not supported yet";
const STRUCTURED: &str = "constrained output is not supported yet";
const TEXT_ONLY: &str = "only text is generated";
const NOT_HERE: &str = "this server has no such thing";

/// Fields of [`super::openai::CommonRequest`] and others that both routes know.
pub const COMMON: &[Field] = &[
    field("model", Honoured),
    field("frequency_penalty", Honoured),
    field("presence_penalty", Honoured),
    field("logit_bias", Honoured),
    field("max_tokens", Honoured),
    field("n", Honoured),
    field("seed", Honoured),
    field("stop", Honoured),
    field("stream", Honoured),
    field("stream_options", Honoured),
    field("temperature", Honoured),
    field("top_p", Honoured),
    field("logprobs", Honoured),
    // Extensions that vLLM, SGLang and TGI have.
    field("top_k", Honoured),
    field("min_p", Honoured),
    field("typical_p", Honoured),
    field("repetition_penalty", Honoured),
    field("stop_token_ids", Honoured),
    field("ignore_eos", Honoured),
    field("min_tokens", Honoured),
    field("skip_special_tokens", Honoured),
    field("include_stop_str_in_output", Honoured),
    field("priority", Honoured),
    field("cache_salt", Honoured),
    // Bookkeeping of OpenAI's platform; it has no bearing on the answer.
    field("user", NoEffect),
    field("metadata", NoEffect),
    field("store", NoEffect),
    field("service_tier", NoEffect),
    field("safety_identifier", NoEffect),
    // The prefix cache is automatic: hints to it change no token.
    field("prompt_cache_key", NoEffect),
    field("prompt_cache_retention", NoEffect),
    field("prompt_cache_options", NoEffect),
    // Later.
    refused("response_format", &[r#"{"type":"text"}"#], STRUCTURED),
    refused("guided_json", &[], STRUCTURED),
    refused("guided_regex", &[], STRUCTURED),
    refused("guided_choice", &[], STRUCTURED),
    refused("guided_grammar", &[], STRUCTURED),
    refused("structured_outputs", &[], STRUCTURED),
    refused("use_beam_search", &["false"], "beam search is not supported"),
    refused("length_penalty", &["1", "1.0"], "beam search is not supported"),
    refused("prompt_logprobs", &["0"], "log-probabilities of the prompt are not supported"),
    refused("adapter_id", &[], "no adapters are loaded"),
];

/// Fields that only chat requests have.
pub const CHAT: &[Field] = &[
    field("messages", Honoured),
    field("top_logprobs", Honoured),
    field("max_completion_tokens", Honoured),
    field("reasoning_effort", Honoured),
    field("chat_template_kwargs", Honoured),
    field("add_generation_prompt", Honoured),
    field("continue_final_message", Honoured),
    // Says something about tool calls only, and those are refused.
    field("parallel_tool_calls", NoEffect),
    refused("tools", &["[]"], TOOLS),
    refused("tool_choice", &[r#""none""#, r#""auto""#], TOOLS),
    refused("tool_prompt", &[], TOOLS),
    refused("functions", &["[]"], TOOLS),
    refused("function_call", &[r#""none""#, r#""auto""#], TOOLS),
    refused("modalities", &[r#"["text"]"#], TEXT_ONLY),
    refused("audio", &[], TEXT_ONLY),
    refused("prediction", &[], "predicted outputs are not supported"),
    refused("verbosity", &[r#""medium""#], "say in the messages how long the answer should be"),
    refused("web_search_options", &[], NOT_HERE),
    refused("moderation", &[], NOT_HERE),
    refused("chat_template", &[], "the chat template is the server's"),
    refused("documents", &["[]"], "pass them in `chat_template_kwargs` if the template knows them"),
    refused("echo", &["false"], "it is for /v1/completions"),
    refused("best_of", &["1"], "it is for /v1/completions"),
];

/// Fields that only completion requests have.
pub const COMPLETIONS: &[Field] = &[
    field("prompt", Honoured),
    field("best_of", Honoured),
    field("echo", Honoured),
    refused("suffix", &[r#""""#], "it can be achieved by preprocessing the prompt"),
];

/// Why a field cannot be accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FieldError {
    /// It is in no table.
    #[error("unknown parameter: `{name}`")]
    Unknown {
        /// The field.
        name: String,
    },
    /// It asks for something that this server does not do.
    #[error("`{name}` is not supported: {reason}")]
    Unsupported {
        /// The field.
        name: &'static str,
        /// Why, or what to do instead.
        reason: &'static str,
    },
}

/// Checks the top-level `entries` of a request against `tables`.
///
/// # Errors
/// The first field that cannot be accepted.
pub fn check(entries: &[(String, &RawValue)], tables: &[&[Field]]) -> Result<(), FieldError> {
    for (name, value) in entries {
        let Some(field) = tables.iter().copied().flatten().find(|field| field.name == name) else {
            return Err(FieldError::Unknown { name: name.clone() });
        };
        match field.treatment {
            Honoured | NoEffect => {}
            Refused { neutral, reason } => {
                if !asks_for_nothing(value.get(), neutral) {
                    return Err(FieldError::Unsupported { name: field.name, reason });
                }
            }
        }
    }
    Ok(())
}

/// Whether `value` is `null` or equals one of the JSON texts in `neutral`.
fn asks_for_nothing(value: &str, neutral: &[&str]) -> bool {
    let parse = |text| serde_json::from_str::<Value>(text).ok();
    value == "null" || (!neutral.is_empty() && neutral.iter().any(|text| parse(text) == parse(value)))
}

#[cfg(test)]
mod tests {
    use super::{CHAT, COMMON, COMPLETIONS, Field, check};
    use crate::api::json;

    fn verdict(body: &str, table: &[Field]) -> String {
        let body = body.replacen('{', r#"{"bulk":0,"#, 1);
        let (_, rest) = json::split::<serde::de::IgnoredAny>(&body, "bulk").unwrap();
        check(&rest, &[COMMON, table]).map_or_else(|error| error.to_string(), |()| "ok".to_owned())
    }

    #[test]
    fn verdicts() {
        for (body, expect) in [
            (r#"{"messages":[],"user":"u","store":true,"seed":1}"#, "ok"),
            (r#"{"tools":null,"tool_choice":"auto","functions":[ ],"modalities":[ "text" ]}"#, "ok"),
            (r#"{"response_format":{ "type" : "text" }}"#, "ok"),
            (r#"{"tools":[{}]}"#, "`tools` is not supported: tool calling is not supported yet"),
            (
                r#"{"response_format":{"type":"json_object"}}"#,
                "`response_format` is not supported: constrained output is not supported yet",
            ),
            (r#"{"temprature":1}"#, "unknown parameter: `temprature`"),
            (r#"{"temprature":null}"#, "unknown parameter: `temprature`"),
        ] {
            assert_eq!(verdict(body, CHAT), expect, "{body}");
        }
        assert_eq!(verdict(r#"{"prompt":"a","suffix":""}"#, COMPLETIONS), "ok");
        assert_eq!(
            verdict(r#"{"prompt":"a","suffix":"b"}"#, COMPLETIONS),
            "`suffix` is not supported: it can be achieved by preprocessing the prompt"
        );
    }

    #[test]
    fn no_field_has_two_verdicts() {
        for table in [CHAT, COMPLETIONS] {
            let mut names: Vec<_> = COMMON.iter().chain(table).map(|field| field.name).collect();
            names.sort_unstable();
            let total = names.len();
            names.dedup();
            assert_eq!(names.len(), total);
        }
    }
}
