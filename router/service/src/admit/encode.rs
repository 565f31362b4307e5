//! Prompts to tokens, a bounded number at a time.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::SystemTime,
};

use anaphora_core::request::Namespace;
use anaphora_text::{Message, TemplateInput, TextConfig, TokenCache, Tokenizer};
use serde_json::{Map, Value};
use tokio::{
    runtime::{Handle, RuntimeFlavor},
    sync::Semaphore,
    task::{block_in_place, spawn_blocking},
};

use super::{AdmitError, Bounds, invalid};
use crate::api::{ApiError, App};

/// A prompt, as it comes.
#[derive(Clone, Debug, PartialEq)]
pub enum Prompt {
    /// Text, in which special tokens may be written; the tokenizer adds its own (BOS) or not.
    Text {
        /// The text.
        text: String,
        /// Let the tokenizer add what it adds.
        add_special_tokens: bool,
    },
    /// A conversation for the chat template.
    Chat(ChatPrompt),
    /// Tokens, taken as they are.
    Tokens {
        /// The tokens.
        ids: Vec<u32>,
        /// The path of the field, for errors.
        param: String,
    },
}

/// A conversation for the chat template.
#[derive(Clone, Debug, PartialEq)]
pub struct ChatPrompt {
    /// Messages whose contents are texts.
    pub messages: Vec<Arc<Message>>,
    /// More variables for the template.
    pub kwargs: Map<String, Value>,
    /// End with the opening of an assistant message.
    pub add_generation_prompt: bool,
    /// Leave the last message open.
    pub continue_final_message: bool,
}

/// A prompt as tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokenized {
    /// As text, rendered but not truncated; `None` if it came as tokens.
    pub text: Option<String>,
    /// As tokens.
    pub ids: Vec<u32>,
}

/// Tokenises `prompts` and keeps the last `truncate` tokens of each. What was tokenised before in `namespace` is not again.
///
/// # Errors
/// If the pool is full, or a prompt is empty, too long to be worth it, or cannot be rendered or tokenised.
pub async fn tokenize(
    app: &App,
    prompts: Vec<Prompt>,
    truncate: Option<u32>,
    bounds: Bounds,
    namespace: &Namespace,
) -> Result<Vec<Tokenized>, ApiError> {
    let job = TokenizeJob {
        text: Arc::clone(&app.text),
        cache: Arc::clone(&app.encoder.cache),
        permits: Arc::clone(&app.encoder.permits),
        namespace: Arc::new(namespace.clone()),
        truncate,
        bounds,
        bytes_per_token: app.encoder.bytes_per_token,
        max_id: app.encoder.max_id,
    };
    let all = move || {
        prompts.into_iter().map(|prompt| job.tokenize(prompt)).collect::<Result<Vec<_>, AdmitError>>()
    };
    Ok(app.encoder.run(all).await??)
}

/// What the chat template makes of `chat`.
///
/// # Errors
/// If the pool is full, or the template refuses.
pub async fn render(app: &App, chat: ChatPrompt) -> Result<String, ApiError> {
    let text = Arc::clone(&app.text);
    Ok(app.encoder.run(move || render_one(&text, &chat)).await??)
}

/// The prompts of one request, on their way through the pool.
struct TokenizeJob {
    text: Arc<TextConfig>,
    cache: Arc<TokenCache<Arc<Namespace>>>,
    permits: Arc<Semaphore>,
    namespace: Arc<Namespace>,
    truncate: Option<u32>,
    bounds: Bounds,
    bytes_per_token: usize,
    max_id: u32,
}

impl TokenizeJob {
    fn tokenize(&self, prompt: Prompt) -> Result<Tokenized, AdmitError> {
        let (text, add_special_tokens) = match prompt {
            Prompt::Tokens { ids, param } => return check_ids(ids, &param, self.bounds),
            Prompt::Text { text, add_special_tokens } => (text, add_special_tokens),
            Prompt::Chat(chat) => (render_one(&self.text, &chat)?, false),
        };
        let encoded = match self.truncate {
            None => {
                check_size(&text, self.bounds, self.bytes_per_token)?;
                self.encode(&text, add_special_tokens)
            }
            // What lies before the last so many bytes cannot be among the last so many tokens.
            Some(count) => {
                let max_bytes = (count as usize).saturating_mul(self.bytes_per_token);
                self.encode(last_bytes(&text, max_bytes), add_special_tokens)
            }
        };
        let mut ids = encoded?;
        if let Some(truncate) = self.truncate {
            ids.drain(..ids.len().saturating_sub(truncate as usize));
        }
        if ids.is_empty() {
            return Err(invalid("prompt", "the prompt has no tokens"));
        }
        // A tokenizer and a model that belong together agree, and then there is nothing to look for in a long prompt.
        if self.max_id >= self.bounds.vocab_size && ids.iter().any(|id| *id >= self.bounds.vocab_size) {
            let message = "the prompt has a token that the model does not know";
            return Err(AdmitError::Tokenizer(message.to_owned()));
        }
        Ok(Tokenized { text: Some(text), ids })
    }

    /// The ids of `text`. A long one takes threads of the pool that have nothing to do, besides its own.
    fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, AdmitError> {
        let lookup = self.cache.find(&self.namespace, text);
        let num_spare = self.permits.available_permits().min(lookup.num_useful_threads() - 1);
        let helpers = u32::try_from(num_spare).ok().and_then(|num| self.permits.try_acquire_many(num).ok());
        let num_threads = 1 + helpers.as_ref().map_or(0, |permit| permit.num_permits());
        let ids = lookup.encode(add_special_tokens, num_threads);
        ids.map_err(|error| AdmitError::Tokenizer(error.to_string()))
    }
}

/// A text of so many bytes that it must have too many tokens need not be tokenised.
fn check_size(text: &str, bounds: Bounds, bytes_per_token: usize) -> Result<(), AdmitError> {
    let Bounds { max_prompt: limit, context, .. } = bounds;
    if text.len() > (limit as usize).saturating_mul(bytes_per_token) {
        return Err(AdmitError::PromptTooManyBytes { limit, bytes: text.len(), context });
    }
    Ok(())
}

fn check_ids(ids: Vec<u32>, param: &str, bounds: Bounds) -> Result<Tokenized, AdmitError> {
    if ids.is_empty() {
        return Err(invalid(param, format!("`{param}` cannot be empty")));
    }
    if let Some(index) = ids.iter().position(|id| *id >= bounds.vocab_size) {
        let (id, param) = (ids[index], format!("{param}[{index}]"));
        let message = format!("`{param}`: there is no token {id}: the vocabulary has {}", bounds.vocab_size);
        return Err(invalid(param, message));
    }
    Ok(Tokenized { text: None, ids })
}

fn render_one(text_config: &TextConfig, chat: &ChatPrompt) -> Result<String, AdmitError> {
    let template = text_config.template.as_ref().ok_or(AdmitError::NoTemplate)?;
    Ok(template.render(&TemplateInput {
        messages: &chat.messages,
        tools: None,
        add_generation_prompt: chat.add_generation_prompt,
        continue_final_message: chat.continue_final_message,
        kwargs: &chat.kwargs,
        now: Some(SystemTime::now()),
    })?)
}

/// The longest end of `text` that has at most `max_bytes` bytes.
fn last_bytes(text: &str, max_bytes: usize) -> &str {
    let start = text.len().saturating_sub(max_bytes);
    let start = (start..=text.len()).find(|index| text.is_char_boundary(*index)).unwrap_or(text.len());
    &text[start..]
}

// === the pool ===

/// Bytes of the token cache: some 150 conversations of 200,000 tokens.
const CACHE_BYTES: usize = 512 << 20;

/// Work that would hold up the reactor (parsing, templates, tokenising), on a bounded number of threads. With it goes what
/// was tokenised before.
#[derive(Debug)]
pub struct Encoder {
    cache: Arc<TokenCache<Arc<Namespace>>>,
    permits: Arc<Semaphore>,
    /// Jobs running and waiting.
    num_jobs: Arc<AtomicUsize>,
    max_jobs: usize,
    num_threads: usize,
    bytes_per_token: usize,
    /// Of the tokenizer's tokens.
    max_id: u32,
}

/// Why the pool did not do a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncoderError {
    /// Too many jobs are waiting.
    #[error("too many requests are being tokenised")]
    Overloaded,
    /// The job panicked.
    #[error("a job on the CPU pool panicked")]
    Panicked,
}

impl Encoder {
    /// A pool of `num_threads` at which `max_waiting` jobs may queue. It reads `tokenizer`'s vocabulary once.
    #[must_use]
    pub fn new(num_threads: usize, max_waiting: usize, tokenizer: &Tokenizer) -> Self {
        let num_threads = num_threads.max(1);
        Self {
            cache: Arc::new(TokenCache::new(tokenizer.clone(), CACHE_BYTES)),
            permits: Arc::new(Semaphore::new(num_threads)),
            num_jobs: Arc::default(),
            max_jobs: num_threads + max_waiting,
            num_threads,
            bytes_per_token: bytes_per_token(tokenizer),
            max_id: tokenizer.max_id(),
        }
    }

    /// How many jobs run at a time.
    #[must_use]
    pub fn num_threads(&self) -> usize {
        self.num_threads
    }

    /// Forgets the tokens of the texts that `tenant` sent.
    pub fn clear_cache(&self, tenant: &str) {
        self.cache.clear(|namespace| *namespace.tenant == *tenant);
    }

    /// Whether `text` may be short enough for `bounds`; without tokenising it.
    ///
    /// # Errors
    /// If it cannot be.
    pub fn check_size(&self, text: &str, bounds: Bounds) -> Result<(), AdmitError> {
        check_size(text, bounds, self.bytes_per_token)
    }

    /// Runs `job` on the pool. A job whose caller has gone away finishes all the same if it has begun.
    ///
    /// # Errors
    /// If too many jobs wait, or `job` panics.
    pub async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, EncoderError> {
        let place = Place::take(&self.num_jobs, self.max_jobs).ok_or(EncoderError::Overloaded)?;
        let permits = Arc::clone(&self.permits);
        let permit = permits.acquire_owned().await.expect("the semaphore is never closed. This is a bug.");
        let span = tracing::Span::current();
        let job = move || {
            let _held = (place, permit);
            span.in_scope(job)
        };
        if Handle::current().runtime_flavor() == RuntimeFlavor::MultiThread {
            // On this very thread: the runtime's other work moves to another one, and the request loses no time to that.
            let outcome = block_in_place(|| catch_unwind(AssertUnwindSafe(job)));
            return outcome.map_err(|_| EncoderError::Panicked);
        }
        spawn_blocking(job).await.map_err(|_| EncoderError::Panicked)
    }
}

/// A job's place among those that run and wait.
struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(num_jobs: &Arc<AtomicUsize>, max_jobs: usize) -> Option<Self> {
        let place = Self(Arc::clone(num_jobs));
        // The place counts itself; if that was one too many, dropping it takes the count back.
        (num_jobs.fetch_add(1, Relaxed) < max_jobs).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// More bytes than a token can stand for, on average over a prompt: four times the longest token.
///
/// For a byte-level or SentencePiece tokenizer the longest token alone is a proof, since no byte of the text gets lost. Some
/// normalisers drop or shorten characters, though, which the factor allows for.
fn bytes_per_token(tokenizer: &Tokenizer) -> usize {
    let ids = 0..u32::try_from(tokenizer.vocab_size()).unwrap_or(u32::MAX);
    let longest = ids.filter_map(|id| tokenizer.id_to_token(id)).map(|token| token.len()).max();
    longest.unwrap_or(1).max(16) * 4
}

#[cfg(test)]
mod tests {
    use super::last_bytes;

    #[test]
    fn the_end_of_a_text_is_cut_between_characters() {
        for (text, max_bytes, expect) in [
            ("abc", 2, "bc"),
            ("abc", 9, "abc"),
            ("aéb", 2, "b"),
            ("aéb", 3, "éb"),
            ("é", 1, ""),
            ("", 3, ""),
        ] {
            assert_eq!(last_bytes(text, max_bytes), expect);
        }
    }
}
