//! Why a prompt finds as much in the cache as it does.

use crate::{
    cache::KvCache,
    ids::TokenId,
    radix::{Match, PrefixIndex},
    request::Namespace,
};

/// Tokens of the cache that are shown where a prompt parts from it.
const MAX_SHOWN_TOKENS: usize = 32;

/// What the cache holds of a prompt, and why not more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// Tokens of the prompt.
    pub num_tokens: usize,
    /// How many of its first tokens a request would not have to compute, now.
    pub num_cached_tokens: usize,
    /// Why it is not more.
    pub end: MatchEnd,
}

/// Why a match ends where it does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MatchEnd {
    /// All tokens are cached; the last is computed nevertheless, because its logits are wanted.
    Complete,
    /// The prompt parts from what is cached: the cache goes on with these tokens instead.
    Diverges {
        /// The cached tokens from the place where they part; a few.
        cached: Vec<TokenId>,
    },
    /// The cache ends here: what follows was not computed yet, or has been evicted.
    Ends,
    /// Nothing is cached for this model, adapter, tenant and salt.
    EmptyNamespace,
    /// The prefix cache is off.
    Disabled,
}

impl KvCache {
    /// Explains what is cached of `tokens`. Changes nothing. O(tokens found).
    #[must_use]
    pub fn explain(&self, namespace: &Namespace, tokens: &[TokenId]) -> Explanation {
        let num_tokens = tokens.len();
        let Some(index) = self.shared_index() else {
            return Explanation { num_tokens, num_cached_tokens: 0, end: MatchEnd::Disabled };
        };
        let found = index.find(namespace, tokens);
        let num_matched = found.num_blocks * index.block_size() + found.num_partial_tokens();
        let num_cached_tokens = num_matched.min(num_tokens.saturating_sub(1));
        let end = match_end(index, namespace, &found, num_matched == num_tokens);
        Explanation { num_tokens, num_cached_tokens, end }
    }
}

fn match_end(index: &PrefixIndex, namespace: &Namespace, found: &Match, is_complete: bool) -> MatchEnd {
    if is_complete {
        return MatchEnd::Complete;
    }
    if !index.contains_namespace(namespace) {
        return MatchEnd::EmptyNamespace;
    }
    let cached = index.continuation(namespace, found, MAX_SHOWN_TOKENS);
    if cached.is_empty() { MatchEnd::Ends } else { MatchEnd::Diverges { cached } }
}
