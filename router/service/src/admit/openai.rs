//! What an OpenAI request asks for. Errors name the field by its path; the reasons are ours.

use anaphora_core::request::Sampling;
use serde_json::{Map, Value};

use super::{AdmitError, ChatPrompt, Prompt, Spec, Stop, invalid, messages, tgi};
use crate::{
    api::types::{
        chat::{ChatFields, ChatRequest},
        completions::{CompletionRequest, Prompts},
        openai::CommonRequest,
        strict::{ChatMessage, Object},
    },
    config::Limits,
};

/// OpenAI's default for text completions; a chat answers until it is done.
const DEFAULT_COMPLETION_TOKENS: u32 = 16;

/// Names that `chat_template_kwargs` must not redefine: fields of the request stand for them.
const RESERVED_KWARGS: [&str; 8] = [
    "messages",
    "tools",
    "add_generation_prompt",
    "continue_final_message",
    "bos_token",
    "eos_token",
    "raise_exception",
    "strftime_now",
];

/// Checks a chat request and says what to generate.
///
/// # Errors
/// The first value that cannot be.
pub fn lower_chat(request: ChatRequest, limits: &Limits) -> Result<Spec, AdmitError> {
    let ChatRequest { messages, chat, mut common } = request;
    common.max_tokens = match (common.max_tokens, chat.max_completion_tokens) {
        (Some(old), Some(new)) if old != new => {
            let message =
                "`max_tokens` and `max_completion_tokens` are two names of one thing: send one of them";
            return Err(invalid("max_completion_tokens", message));
        }
        (old, new) => new.or(old),
    };
    let asks_for_logprobs = chat.logprobs.unwrap_or(false);
    let num_top_logprobs = top_logprobs("top_logprobs", chat.top_logprobs.unwrap_or(0), limits)?;
    if chat.top_logprobs.is_some_and(|count| count > 0) && !asks_for_logprobs {
        return Err(invalid("top_logprobs", "`top_logprobs` needs `logprobs` to be true"));
    }
    let num_choices = num_choices(&common, limits)?;
    let prompt = chat_prompt(messages, chat)?;
    spec(vec![Prompt::Chat(prompt)], num_choices, num_top_logprobs, common, limits)
}

/// Checks the conversation of a chat request, and nothing else of it.
///
/// # Errors
/// The first value that cannot be.
pub fn lower_messages(request: ChatRequest) -> Result<ChatPrompt, AdmitError> {
    chat_prompt(request.messages, request.chat)
}

fn chat_prompt(messages: Vec<ChatMessage>, chat: ChatFields) -> Result<ChatPrompt, AdmitError> {
    let Object(mut kwargs) = chat.chat_template_kwargs.unwrap_or_default();
    check_kwargs(&kwargs)?;
    if let Some(effort) = chat.reasoning_effort {
        kwargs.entry("reasoning_effort").or_insert(Value::String(effort));
    }
    let role = messages.last().and_then(|ChatMessage(last)| last.text("role"));
    let ends_with_assistant = role == Some("assistant");
    let (add_generation_prompt, continue_final_message) =
        last_message(chat.add_generation_prompt, chat.continue_final_message, ends_with_assistant)?;
    let messages = messages::check(messages)?;
    Ok(ChatPrompt { messages, kwargs, add_generation_prompt, continue_final_message })
}

/// Checks a text completion request and says what to generate.
///
/// # Errors
/// The first value that cannot be.
pub fn lower_completion(request: CompletionRequest, limits: &Limits) -> Result<Spec, AdmitError> {
    let CompletionRequest { prompt, completion, mut common } = request;
    common.max_tokens = common.max_tokens.or(Some(DEFAULT_COMPLETION_TOKENS));
    let num_top_logprobs = top_logprobs("logprobs", completion.logprobs.unwrap_or(0), limits)?;
    let echo = completion.echo.unwrap_or(false);
    if echo && completion.logprobs.is_some() {
        let message =
            "`echo` with `logprobs` is not supported: the log-probabilities of a prompt are not computed";
        return Err(AdmitError::Unsupported { param: "echo".to_owned(), message: message.to_owned() });
    }
    let num_choices = num_choices(&common, limits)?;
    let num_sequences = best_of(completion.best_of, num_choices, &common, limits)?;
    let prompts = prompts(prompt, limits)?;
    if echo && matches!(prompts.first(), Some(Prompt::Tokens { .. })) {
        let message = "`echo` of a prompt of token ids is not supported: send it as text";
        return Err(AdmitError::Unsupported { param: "echo".to_owned(), message: message.to_owned() });
    }
    spec(prompts, num_sequences, num_top_logprobs, common, limits)
}

/// The prompts of a completion request: at least one, none of them empty.
fn prompts(prompts: Prompts, limits: &Limits) -> Result<Vec<Prompt>, AdmitError> {
    let prompts: Vec<Prompt> = match prompts {
        Prompts::Text(texts) => {
            texts.into_iter().map(|text| Prompt::Text { text, add_special_tokens: true }).collect()
        }
        Prompts::Tokens(prompts) => {
            let param =
                |index| if prompts.len() == 1 { "prompt".to_owned() } else { format!("prompt[{index}]") };
            let params: Vec<String> = (0..prompts.len()).map(param).collect();
            prompts.into_iter().zip(params).map(|(ids, param)| Prompt::Tokens { ids, param }).collect()
        }
    };
    let is_empty = |prompt: &Prompt| match prompt {
        Prompt::Text { text, .. } => text.is_empty(),
        Prompt::Tokens { ids, .. } => ids.is_empty(),
        Prompt::Chat(_) => false,
    };
    if prompts.len() > limits.max_client_batch_size {
        let (limit, given) = (limits.max_client_batch_size, prompts.len());
        return Err(invalid("prompt", format!("`prompt` may have {limit} prompts. Given: {given}")));
    }
    if prompts.is_empty() || prompts.iter().any(is_empty) {
        return Err(invalid("prompt", "`prompt` cannot be empty"));
    }
    Ok(prompts)
}

fn best_of(
    best_of: Option<u32>,
    num_choices: u32,
    common: &CommonRequest,
    limits: &Limits,
) -> Result<u32, AdmitError> {
    let Some(best_of) = best_of else { return Ok(num_choices) };
    if !(1..=limits.max_best_of).contains(&best_of) {
        return Err(out_of_range("best_of", &format!("between 1 and {}", limits.max_best_of), best_of));
    }
    if best_of < num_choices {
        return Err(invalid(
            "best_of",
            format!("`best_of` must not be less than `n`, which is {num_choices}"),
        ));
    }
    if best_of > num_choices && common.stream == Some(true) {
        return Err(invalid("best_of", "`best_of` greater than `n` cannot be streamed"));
    }
    Ok(best_of)
}

fn num_choices(common: &CommonRequest, limits: &Limits) -> Result<u32, AdmitError> {
    let num_choices = common.n.unwrap_or(1);
    if !(1..=limits.max_n).contains(&num_choices) {
        return Err(out_of_range("n", &format!("between 1 and {}", limits.max_n), num_choices));
    }
    Ok(num_choices)
}

fn top_logprobs(param: &str, count: u32, limits: &Limits) -> Result<u32, AdmitError> {
    if count > limits.max_top_n_tokens {
        return Err(out_of_range(param, &format!("between 0 and {}", limits.max_top_n_tokens), count));
    }
    Ok(count)
}

/// How a conversation ends: as the client says, or else open for an answer, unless it ends with the assistant's own words, which
/// are continued (as TGI does).
fn last_message(
    add_generation_prompt: Option<bool>,
    continue_final_message: Option<bool>,
    ends_with_assistant: bool,
) -> Result<(bool, bool), AdmitError> {
    match (add_generation_prompt, continue_final_message) {
        (Some(true), Some(true)) => {
            let message = "`continue_final_message` and `add_generation_prompt` exclude each other";
            Err(invalid("continue_final_message", message))
        }
        (None, None) => Ok((!ends_with_assistant, ends_with_assistant)),
        (add, Some(open)) => Ok((add.unwrap_or(!open), open)),
        (Some(add), None) => Ok((add, false)),
    }
}

fn check_kwargs(kwargs: &Map<String, Value>) -> Result<(), AdmitError> {
    match kwargs.keys().find(|key| RESERVED_KWARGS.contains(&key.as_str())) {
        Some(key) => {
            let param = format!("chat_template_kwargs.{key}");
            let message = format!("`{param}` is not a variable that a request may set");
            Err(invalid(param, message))
        }
        None => Ok(()),
    }
}

/// What both routes share.
fn spec(
    prompts: Vec<Prompt>,
    num_sequences: u32,
    num_top_logprobs: u32,
    common: CommonRequest,
    limits: &Limits,
) -> Result<Spec, AdmitError> {
    if common.stream_options.is_some() && common.stream != Some(true) {
        return Err(invalid("stream_options", "`stream_options` is only allowed when `stream` is true"));
    }
    if common.max_tokens == Some(0) {
        return Err(out_of_range("max_tokens", "at least 1", 0));
    }
    let min_new_tokens = common.min_tokens.unwrap_or(0);
    if let Some(max_tokens) = common.max_tokens.filter(|max_tokens| *max_tokens < min_new_tokens) {
        return Err(out_of_range(
            "min_tokens",
            &format!("at most `max_tokens`, which is {max_tokens}"),
            min_new_tokens,
        ));
    }
    let sampling = Sampling { num_top_logprobs, min_new_tokens, ..sampling(&common, limits)? };
    Ok(Spec {
        prompts,
        truncate: None,
        num_sequences,
        sampling,
        seed: common.seed.map(|seed| seed.0),
        max_new_tokens: common.max_tokens,
        stop: Stop {
            strings: tgi::stop(common.stop, limits)?,
            token_ids: common.stop_token_ids.unwrap_or_default(),
            ignore_eos: common.ignore_eos.unwrap_or(false),
            include_in_output: common.include_stop_str_in_output.unwrap_or(false),
        },
        skip_special_tokens: common.skip_special_tokens.unwrap_or(true),
        priority: common.priority,
        cache_salt: common.cache_salt.unwrap_or_default(),
    })
}

fn sampling(common: &CommonRequest, limits: &Limits) -> Result<Sampling, AdmitError> {
    let positive = f64::from(f32::MIN_POSITIVE);
    let number = |name: &str, value: Option<f64>, default: f64, (low, high): (f64, f64), range: &str| {
        let value = value.unwrap_or(default);
        if tgi::in_range(value, low, high) { Ok(value as f32) } else { Err(out_of_range(name, range, value)) }
    };
    let top_k = match common.top_k {
        None | Some(-1 | 0) => 0,
        Some(count) => u32::try_from(count).map_err(|_| out_of_range("top_k", "at least -1", count))?,
    };
    let fraction = "above 0 and at most 1";
    Ok(Sampling {
        temperature: number("temperature", common.temperature, 1.0, (0.0, 2.0), "between 0 and 2")?,
        top_k,
        top_p: number("top_p", common.top_p, 1.0, (positive, 1.0), fraction)?,
        min_p: number("min_p", common.min_p, 0.0, (0.0, 1.0), "between 0 and 1")?,
        typical_p: number("typical_p", common.typical_p, 1.0, (positive, 1.0), fraction)?,
        repetition_penalty: number(
            "repetition_penalty",
            common.repetition_penalty,
            1.0,
            (positive, 1e6),
            "above 0",
        )?,
        frequency_penalty: penalty("frequency_penalty", common.frequency_penalty)?,
        presence_penalty: penalty("presence_penalty", common.presence_penalty)?,
        logit_bias: logit_bias(common, limits)?,
        ..Sampling::default()
    })
}

fn penalty(name: &str, value: Option<f64>) -> Result<f32, AdmitError> {
    let value = value.unwrap_or(0.0);
    if tgi::in_range(value, -2.0, 2.0) {
        Ok(value as f32)
    } else {
        Err(out_of_range(name, "between -2 and 2", value))
    }
}

fn logit_bias(common: &CommonRequest, limits: &Limits) -> Result<Vec<(u32, f32)>, AdmitError> {
    let Some(biases) = &common.logit_bias else { return Ok(Vec::new()) };
    if biases.len() > limits.max_logit_bias {
        let (limit, given) = (limits.max_logit_bias, biases.len());
        return Err(invalid("logit_bias", format!("`logit_bias` may have {limit} entries. Given: {given}")));
    }
    let entry = |(token, bias): (&String, &f64)| {
        let param = format!("logit_bias.{token}");
        let id =
            token.parse::<u32>().map_err(|_| invalid(param.clone(), format!("`{param}`: not a token id")))?;
        if tgi::in_range(*bias, -100.0, 100.0) {
            Ok((id, *bias as f32))
        } else {
            Err(out_of_range(&param, "between -100 and 100", *bias))
        }
    };
    biases.iter().map(entry).collect()
}

fn out_of_range(param: &str, range: &str, given: impl std::fmt::Display) -> AdmitError {
    invalid(param, format!("`{param}` must be {range}. Given: {given}"))
}
