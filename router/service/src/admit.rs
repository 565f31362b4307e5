//! Admission: a wire request becomes core requests, or an error that says what cannot be.
//!
//! ```text
//! wire struct ── tgi::lower, openai::lower_* ──► Spec      values in range; pure
//! Spec ── admit ──► template ── tokenise ──► Admitted      on the CPU pool, never on the reactor
//! ```
//! Everything is checked before it costs anything: ranges before text, the replica's state and the queue before the tokenizer,
//! bytes before tokens. From a [`Spec`] on, nothing knows which API a request came through.

mod encode;
mod error;
mod messages;
pub mod openai;
pub mod tgi;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

pub use self::encode::{ChatPrompt, Encoder, EncoderError, Prompt, Tokenized, render, tokenize};
pub use self::error::AdmitError;
use self::error::invalid;
use crate::{
    api::{ApiError, App, Context},
    engine::ReplicaInfo,
};
use anaphora_core::request::{Namespace, Request, Sampling};

/// Longest `cache_salt`.
const MAX_CACHE_SALT_BYTES: usize = 256;

/// A request whose values are in range: what to generate, whatever API asked.
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    /// At least one.
    pub prompts: Vec<Prompt>,
    /// Keep only the last so many tokens of each prompt.
    pub truncate: Option<u32>,
    /// Sequences to generate per prompt, at least 1.
    pub num_sequences: u32,
    /// How to sample; its seed and `min_new_tokens` are set per sequence.
    pub sampling: Sampling,
    /// The client's seed.
    pub seed: Option<u64>,
    /// `None`: what the context has room for.
    pub max_new_tokens: Option<u32>,
    /// When to stop.
    pub stop: Stop,
    /// Leave special tokens out of the text.
    pub skip_special_tokens: bool,
    /// Higher is served first; `None`: what the request's header says, or 0.
    pub priority: Option<i32>,
    /// Separates prefix caches.
    pub cache_salt: String,
}

/// When a sequence ends, besides at its limit of tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stop {
    /// Strings that end the text.
    pub strings: Vec<String>,
    /// Tokens that end it, besides the model's own.
    pub token_ids: Vec<u32>,
    /// The model's own do not end it.
    pub ignore_eos: bool,
    /// What ended the text is part of it.
    pub include_in_output: bool,
}

/// What to run, and what to know while it runs.
#[derive(Debug)]
pub struct Admitted {
    /// In the order of the request.
    pub prompts: Vec<AdmittedPrompt>,
    /// What all sequences have in common.
    pub output: Arc<Output>,
    /// How long admission took.
    pub duration: Duration,
}

/// One prompt and the sequences to generate from it.
#[derive(Debug)]
pub struct AdmittedPrompt {
    /// As text; `None` if it came as tokens.
    pub text: Option<String>,
    /// Its length, after truncation.
    pub num_tokens: u32,
    /// One per sequence; they differ in their seeds only.
    pub requests: Vec<Request>,
}

/// How tokens become text, for all sequences of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// When to stop.
    pub stop: Stop,
    /// Tokens at which the replica ends a sequence, in ascending order.
    pub stop_tokens: Arc<[u32]>,
    /// Those among them that the client wrote as stop *strings*, each one special token.
    pub stop_string_tokens: Vec<u32>,
    /// Stop strings count from here on.
    pub min_new_tokens: u32,
    /// Leave special tokens out of the text.
    pub skip_special_tokens: bool,
}

/// Turns `spec` into core requests.
///
/// # Errors
/// If the replica would not take it, or the prompts cannot be rendered, tokenised or fit.
pub async fn admit(app: &App, context: &Context, mut spec: Spec) -> Result<Admitted, ApiError> {
    let began = Instant::now();
    let replica = app.engine.would_accept()?;
    let bounds = Bounds::new(app, &replica);
    check_token_ids(&spec, bounds)?;
    check_truncate(spec.truncate, bounds)?;
    check_cache_salt(&spec.cache_salt)?;
    check_num_sequences(&spec, app.max_concurrent_requests)?;
    let namespace = namespace(context, &replica, &spec.cache_salt);
    let prompts = std::mem::take(&mut spec.prompts);
    let tokenized = tokenize(app, prompts, spec.truncate, bounds, &namespace).await?;
    spec.priority = spec.priority.or(context.priority);
    let output = Arc::new(Output::new(app, &spec));
    let prompts = tokenized
        .into_iter()
        .map(|tokenized| admit_prompt(tokenized, &spec, &output, &namespace, bounds))
        .collect::<Result<Vec<_>, AdmitError>>()?;
    let duration = began.elapsed();
    for prompt in &prompts {
        let max_new_tokens = prompt.requests.first().map_or(0, |request| request.max_new_tokens);
        app.requests.validated(duration, prompt.num_tokens as usize, max_new_tokens);
    }
    Ok(Admitted { prompts, output, duration })
}

/// Whose cache a request may share: that of the same model, tenant and salt.
#[must_use]
pub fn namespace(context: &Context, replica: &ReplicaInfo, cache_salt: &str) -> Namespace {
    Namespace {
        model: replica.fingerprint.as_str().into(),
        adapter: "".into(),
        tenant: Arc::clone(&context.tenant),
        salt: cache_salt.into(),
    }
}

/// How many tokens a request may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Of the prompt.
    pub max_prompt: u32,
    /// Of prompt and output.
    pub context: u32,
    /// Ids at or above it do not exist.
    pub vocab_size: u32,
}

impl Bounds {
    /// What the flags and the replica bear.
    #[must_use]
    pub fn new(app: &App, replica: &ReplicaInfo) -> Self {
        let context = app.limits.max_total_tokens.unwrap_or(u32::MAX).min(replica.context);
        let room = context.saturating_sub(1);
        let max_prompt = app.limits.max_input_tokens.unwrap_or(u32::MAX).min(room);
        Self { max_prompt, context, vocab_size: replica.vocab_size }
    }
}

fn admit_prompt(
    tokenized: Tokenized,
    spec: &Spec,
    output: &Output,
    namespace: &Namespace,
    bounds: Bounds,
) -> Result<AdmittedPrompt, AdmitError> {
    let Tokenized { text, ids } = tokenized;
    let max_new_tokens = max_new_tokens(ids.len(), spec.max_new_tokens, bounds)?;
    let num_tokens = u32::try_from(ids.len()).unwrap_or(u32::MAX);
    let base = spec.seed.unwrap_or_else(rand::random);
    let prompts = std::iter::repeat_n(ids, spec.num_sequences as usize);
    let requests = (0..).zip(prompts).map(|(index, prompt)| Request {
        namespace: namespace.clone(),
        prompt,
        max_new_tokens,
        stop_tokens: Arc::clone(&output.stop_tokens),
        sampling: Arc::new(Sampling { seed: sequence_seed(base, index), ..spec.sampling.clone() }),
        priority: spec.priority.unwrap_or(0),
    });
    Ok(AdmittedPrompt { text, num_tokens, requests: requests.collect() })
}

/// How many tokens a prompt of `num_prompt` may get.
fn max_new_tokens(num_prompt: usize, asked: Option<u32>, bounds: Bounds) -> Result<u32, AdmitError> {
    let Bounds { max_prompt: limit, context, .. } = bounds;
    let fits = u32::try_from(num_prompt).ok().filter(|prompt| *prompt <= limit);
    if let Some(max_new_tokens) = asked
        && num_prompt as u64 + u64::from(max_new_tokens) > u64::from(context)
    {
        return Err(AdmitError::TotalTooLong { context, prompt: num_prompt, max_new_tokens });
    }
    let Some(prompt) = fits else {
        return Err(AdmitError::PromptTooLong { limit, given: num_prompt, context });
    };
    Ok(asked.unwrap_or(context - prompt))
}

/// Token ids that the client wrote must exist.
fn check_token_ids(spec: &Spec, bounds: Bounds) -> Result<(), AdmitError> {
    let exists = |id: u32| id < bounds.vocab_size;
    let missing = |param: &str, id: u32| {
        Err(invalid(
            param,
            format!("`{param}`: there is no token {id}: the vocabulary has {}", bounds.vocab_size),
        ))
    };
    if let Some((id, _)) = spec.sampling.logit_bias.iter().find(|(id, _)| !exists(*id)) {
        return missing("logit_bias", *id);
    }
    spec.stop.token_ids.iter().find(|id| !exists(**id)).map_or(Ok(()), |id| missing("stop_token_ids", *id))
}

/// It is part of every cache key of the request, for as long as that lasts.
fn check_cache_salt(salt: &str) -> Result<(), AdmitError> {
    if salt.len() > MAX_CACHE_SALT_BYTES {
        let given = salt.len();
        let message = format!("`cache_salt` may have {MAX_CACHE_SALT_BYTES} bytes. Given: {given}");
        return Err(invalid("cache_salt", message));
    }
    Ok(())
}

fn check_truncate(truncate: Option<u32>, bounds: Bounds) -> Result<(), AdmitError> {
    let Bounds { max_prompt, .. } = bounds;
    match truncate {
        Some(count) if !(1..=max_prompt).contains(&count) => {
            let message =
                format!("`truncate` must be strictly positive and less than {max_prompt}. Given: {count}");
            Err(invalid("parameters.truncate", message))
        }
        _ => Ok(()),
    }
}

/// More sequences than may ever be alive would never be taken, so waiting would not help.
fn check_num_sequences(spec: &Spec, limit: usize) -> Result<(), AdmitError> {
    let given = spec.prompts.len() * spec.num_sequences as usize;
    if given > limit {
        return Err(invalid(
            "n",
            format!("the request asks for {given} sequences at once, of which there may be {limit}"),
        ));
    }
    Ok(())
}

/// The seed of the `index`th sequence of a prompt: the client's own for the first, and unrelated ones after it.
fn sequence_seed(base: u64, index: u32) -> u64 {
    if index == 0 {
        return base;
    }
    // SplitMix64 (Steele et al. 2014), one draw per sequence.
    let mut word = base.wrapping_add(u64::from(index).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

// === impl Output ===

impl Output {
    /// A stop string that is one special token (`<|eot_id|>`) never shows in a text that leaves special tokens out, so the
    /// token itself is watched too.
    fn new(app: &App, spec: &Spec) -> Self {
        let tokenizer = &app.text.tokenizer;
        let as_token = |stop: &String| tokenizer.token_to_id(stop).filter(|id| tokenizer.is_special(*id));
        let stop_string_tokens: Vec<u32> = spec.stop.strings.iter().filter_map(as_token).collect();
        let own: &[u32] = if spec.stop.ignore_eos { &[] } else { &app.text.eos_token_ids };
        let mut stop_tokens = [own, &spec.stop.token_ids, &stop_string_tokens].concat();
        stop_tokens.sort_unstable();
        stop_tokens.dedup();
        Self {
            stop: spec.stop.clone(),
            stop_tokens: stop_tokens.into(),
            stop_string_tokens,
            min_new_tokens: spec.sampling.min_new_tokens,
            skip_special_tokens: spec.skip_special_tokens,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { max_prompt: 9, context: 12, vocab_size: 100 };

    #[test]
    fn room_for_new_tokens() {
        for (num_prompt, asked, expect) in [
            (1, None, Ok(11)),
            (9, None, Ok(3)),
            (9, Some(3), Ok(3)),
            (1, Some(11), Ok(11)),
            (
                9,
                Some(4),
                Err(
                    "`inputs` tokens + `max_new_tokens` must be <= 12. Given: 9 `inputs` tokens and 4 `max_new_tokens`",
                ),
            ),
            (
                1,
                Some(u32::MAX),
                Err(
                    "`inputs` tokens + `max_new_tokens` must be <= 12. Given: 1 `inputs` tokens and 4294967295 `max_new_tokens`",
                ),
            ),
            (10, Some(1), Err("`inputs` must have less than 9 tokens. Given: 10")),
            (10, None, Err("`inputs` must have less than 9 tokens. Given: 10")),
        ] {
            let result = max_new_tokens(num_prompt, asked, BOUNDS).map_err(|error| error.to_string());
            assert_eq!(result, expect.map_err(str::to_owned), "{num_prompt} {asked:?}");
        }
    }

    #[test]
    fn seeds_of_a_prompt_differ_and_the_first_is_the_clients() {
        let seeds: std::collections::HashSet<u64> = (0..16).map(|index| sequence_seed(7, index)).collect();
        assert_eq!(seeds.len(), 16);
        assert_eq!(sequence_seed(7, 0), 7);
    }
}
