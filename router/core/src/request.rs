//! What the core must know of a request.

use std::sync::Arc;

use crate::ids::TokenId;

/// One sequence to generate. `n > 1` and `best_of` are several requests with different seeds: the prefix index makes
/// them share the prompt.
#[derive(Clone, Debug)]
pub struct Request {
    /// Which cache the sequence may share.
    pub namespace: Namespace,
    /// The prompt; not empty.
    pub prompt: Vec<TokenId>,
    /// The most tokens to generate, at least 1.
    pub max_new_tokens: u32,
    /// Tokens that end the sequence when sampled (the EOS set, `stop_token_ids`); empty with `ignore_eos`.
    pub stop_tokens: Arc<[TokenId]>,
    /// How tokens are chosen; the core passes it on to the shard unread, save for [`Sampling::needs_history`].
    pub sampling: Arc<Sampling>,
    /// Higher is served first, and preempted last. 0 unless the client says otherwise.
    pub priority: i32,
}

/// The beginning of every cache key: two sequences share blocks only if their namespaces are equal, part by part.
///
/// Parts are compared each by itself and never joined, so none can be forged by another.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Namespace {
    /// The fingerprint of the model: equal for two replicas exactly if they compute the same function.
    pub model: Arc<str>,
    /// The adapter; empty without one.
    pub adapter: Arc<str>,
    /// Whose cache it is, and whose quota it counts for; empty without tenants.
    pub tenant: Arc<str>,
    /// What the client separates its caches with (`cache_salt`); may be empty.
    pub salt: Arc<str>,
}

/// Sampling parameters of one sequence; the defaults are greedy and change nothing.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// 0 is greedy.
    pub temperature: f32,
    /// Keep the `top_k` likeliest tokens; 0 is off.
    pub top_k: u32,
    /// Nucleus sampling (Holtzman et al. 2019); 1 is off.
    pub top_p: f32,
    /// Keep tokens at least `min_p` times as likely as the likeliest (Nguyen et al. 2024); 0 is off.
    pub min_p: f32,
    /// Locally typical sampling (Meister et al. 2022); 1 is off.
    pub typical_p: f32,
    /// Divides (or multiplies, if negative) the logits of tokens in prompt and output (Keskar et al. 2019); 1 is off.
    pub repetition_penalty: f32,
    /// Subtracted once per occurrence in the output; 0 is off.
    pub frequency_penalty: f32,
    /// Subtracted once if the token is in the output; 0 is off.
    pub presence_penalty: f32,
    /// Added to the logits.
    pub logit_bias: Vec<(TokenId, f32)>,
    /// With the number of generated tokens, the only source of randomness.
    pub seed: u64,
    /// How many alternatives to report with each token.
    pub num_top_logprobs: u32,
    /// Until so many tokens exist, the stop tokens cannot be sampled.
    pub min_new_tokens: u32,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            typical_p: 1.0,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
            num_top_logprobs: 0,
            min_new_tokens: 0,
        }
    }
}

impl Sampling {
    /// Whether the shard must know the tokens so far, because a penalty counts them.
    #[must_use]
    pub fn needs_history(&self) -> bool {
        self.repetition_penalty != 1.0 || self.frequency_penalty != 0.0 || self.presence_penalty != 0.0
    }
}
