//! What the text of a 200,000-token turn costs, against a full encode in the same run.
//!
//! `cargo bench -p anaphora-text` (it needs the model that `make model` fetches). Medians; each ratio is to the full encode,
//! which is one call of Hugging Face's `tokenizers` on one thread.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anaphora_text::{Message, TemplateInput, TextConfig, TokenCache};
use serde_json::Map;

// As in the router.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const NUM_TOKENS: usize = 200_000;
const NUM_TURNS: usize = 60;
/// What a turn adds: an answer and a question, of some 200 tokens together.
const NEW_WORDS: usize = 90;

#[expect(clippy::print_stdout, reason = "the result")]
fn main() {
    let text = TextConfig::open(&model(), None, None).expect("the model's text side can be read");
    let num_threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut words = Words(1);
    let mut messages = Vec::new();
    // SmolLM2 takes about 2.4 tokens for one of these words.
    for turn in 0..2 * NUM_TURNS {
        messages.push(message(turn, &mut words, NUM_TOKENS * 10 / 24 / (2 * NUM_TURNS)));
    }
    let prompt = render(&text, &messages);
    let ids = text.tokenizer.encode(&prompt, false).expect("it encodes");
    println!("{} tokens, {:.2} MB, {} messages", ids.len(), prompt.len() as f64 / 1e6, messages.len());

    let full = median(5, || drop(text.tokenizer.encode(&prompt, false)));
    report("full encode", full, full);
    let mut round = 0;
    let empty = TokenCache::new(text.tokenizer.clone(), 256 << 20);
    let cold = median(5, || {
        round += 1;
        drop(empty.find(&round, &prompt).encode(false, num_threads));
    });
    report(&format!("cold, {num_threads} threads"), cold, full);

    let cache = TokenCache::new(text.tokenizer.clone(), 256 << 20);
    let encode = |prompt: &str| cache.find(&(), prompt).encode(false, num_threads).expect("it encodes");
    encode(&prompt);
    let (mut rendered, mut encoded, mut same) = (Vec::new(), Vec::new(), Vec::new());
    for turn in 0..100 {
        messages.push(message(2 * turn + 1, &mut words, NEW_WORDS / 2));
        messages.push(message(2 * turn, &mut words, NEW_WORDS / 2));
        let began = Instant::now();
        let prompt = render(&text, &messages);
        rendered.push(began.elapsed());
        let began = Instant::now();
        let ids = encode(&prompt);
        encoded.push(began.elapsed());
        let began = Instant::now();
        assert_eq!(encode(&prompt), ids);
        same.push(began.elapsed());
        if turn % 20 == 0 {
            assert_eq!(ids, text.tokenizer.encode(&prompt, false).expect("it encodes"));
        }
    }
    let both = rendered.iter().zip(&encoded).map(|(render, encode)| *render + *encode).collect();
    report("warm turn: template", middle(rendered), full);
    report("warm turn: tokens", middle(encoded), full);
    report("warm turn: both", middle(both), full);
    report("the same prompt again: tokens", middle(same), full);
}

fn message(index: usize, words: &mut Words, num_words: usize) -> Arc<Message> {
    let role = if index.is_multiple_of(2) { "user" } else { "assistant" };
    let content = (0..num_words).map(|_| words.next()).collect::<Vec<_>>().join(" ");
    let mut message = Message::default();
    message.set("role", role.into());
    message.set("content", content.as_str().into());
    Arc::new(message)
}

fn render(text: &TextConfig, messages: &[Arc<Message>]) -> String {
    let template = text.template.as_ref().expect("the model has a template");
    let input = TemplateInput {
        messages,
        tools: None,
        add_generation_prompt: true,
        continue_final_message: false,
        kwargs: &Map::new(),
        now: None,
    };
    template.render(&input).expect("it renders")
}

/// Words of one to three syllables, the same in every run.
struct Words(u64);

impl Words {
    fn draw(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % below
    }

    fn next(&mut self) -> String {
        const SYLLABLES: [&str; 12] =
            ["ta", "ri", "mo", "sen", "ka", "lo", "ver", "in", "de", "con", "er", "al"];
        const ENDS: [&str; 8] = ["", "", "", "", "", ",", ".", ".\n"];
        let count = 1 + self.draw(3);
        let word = (0..count).map(|_| SYLLABLES[self.draw(SYLLABLES.len())]).collect::<String>();
        word + ENDS[self.draw(ENDS.len())]
    }
}

fn median(rounds: usize, mut work: impl FnMut()) -> Duration {
    let time = |_| {
        let began = Instant::now();
        work();
        began.elapsed()
    };
    middle((0..rounds).map(time).collect())
}

fn middle(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

#[expect(clippy::print_stdout, reason = "the result")]
fn report(what: &str, time: Duration, full: Duration) {
    let ratio = full.as_secs_f64() / time.as_secs_f64();
    println!("{what:32} {:9.3} ms   full / this {ratio:8.1}", time.as_secs_f64() * 1e3);
}

/// The SmolLM2 file that `make model` fetches.
fn model() -> PathBuf {
    let variable = |name| std::env::var_os(name).map(PathBuf::from);
    let cache = variable("ANAPHORA_CACHE").or_else(|| Some(variable("XDG_CACHE_HOME")?.join("anaphora")));
    let cache = cache.or_else(|| Some(variable("HOME")?.join(".cache/anaphora"))).unwrap_or_default();
    cache.join("models/smollm2-135m/SmolLM2-135M-Instruct.Q4_1.gguf")
}
