//! `/v1/cache`: what the prefix cache holds, and why a prompt finds no more of it.

use serde::Serialize;

use super::{chat::ChatRequest, completions::CompletionRequest, tgi::GenerateRequest};

/// Body of `/v1/cache/explain`: any request that generates. Which one, its longest field tells.
#[derive(Debug)]
pub enum ExplainRequest {
    /// It has `messages`.
    Chat(ChatRequest),
    /// It has a `prompt`.
    Completion(CompletionRequest),
    /// It has `inputs`.
    Generate(GenerateRequest),
}

/// Answer of `/v1/cache/explain`.
#[derive(Debug, Serialize)]
pub struct CacheExplanation {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// How many of its first tokens would not have to be computed, now.
    pub matched_tokens: MatchedTokens,
    /// Where the match ends; `null` if nothing, or everything, matches.
    pub divergence: Option<Divergence>,
    /// Why it ends there.
    pub reason: Reason,
}

/// Cached tokens, by where they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MatchedTokens {
    /// In the device's memory.
    pub device: usize,
    /// Always 0: there is no such tier.
    pub host: usize,
    /// Always 0: there is no such tier.
    pub disk: usize,
}

/// Where a prompt and the cache part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Divergence {
    /// The first token that is not cached, counted from 0.
    pub position: usize,
    /// The message that it belongs to; `null` after the last one, and where there are none.
    pub message_index: Option<usize>,
    /// The prompt's text before the position; a few tokens.
    pub before: String,
    /// The prompt's text from the position on; a few tokens.
    pub after: String,
    /// What the cache has there instead; `null` if it ends.
    pub cached: Option<String>,
}

/// Why a match ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The whole prompt is cached; its last token is computed nevertheless.
    Complete,
    /// The cache goes on with other tokens.
    Diverges,
    /// The cache goes no further: the rest was not computed yet, or has been evicted.
    Ends,
    /// Nothing is cached for this model, tenant and salt.
    NothingCached,
    /// The prefix cache is off.
    Disabled,
}

/// Answer of `GET /v1/cache`.
#[derive(Debug, Serialize)]
pub struct CacheList {
    /// "list".
    pub object: &'static str,
    /// What the caller may know of: its own tenant's namespaces.
    pub data: Vec<CacheNamespace>,
}

/// What belongs together in the cache: nothing is shared between two of these.
#[derive(Debug, Serialize)]
pub struct CacheNamespace {
    /// Fingerprint of the model.
    pub model: String,
    /// Empty without one.
    pub adapter: String,
    /// Empty where no key is required.
    pub tenant: String,
    /// A digest of the salt, which is its client's own business; empty without one.
    pub salt_digest: String,
    /// Blocks, whether sequences use them now or not.
    pub blocks: u32,
    /// Tokens that these can hold.
    pub tokens: u64,
}

/// Answer of `POST /v1/cache/clear`.
#[derive(Debug, Serialize)]
pub struct CacheCleared {
    /// Blocks that were cached and are free now.
    pub blocks: u32,
}
