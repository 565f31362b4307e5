//! Where the fixtures are.

#![allow(dead_code, reason = "each test file uses its part of this module")]

use std::path::{Path, PathBuf};

pub(crate) mod texts;

use anaphora_text::Tokenizer;

/// The styles of byte-level tokenizers in `fixtures/tiny`, each as `tokenizer.json` and as GGUF.
pub(crate) const BYTE_LEVEL: [&str; 5] = ["gpt2", "smollm", "llama3", "qwen2", "tekken"];
/// All styles.
pub(crate) const STYLES: [&str; 7] =
    ["gpt2", "smollm", "llama3", "qwen2", "tekken", "sentencepiece", "gemma"];

pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

pub(crate) fn json(name: &str) -> serde_json::Value {
    let text = std::fs::read_to_string(fixture(name)).expect("the fixture is checked in");
    serde_json::from_str(&text).expect("the fixture is JSON")
}

pub(crate) fn tokenizer(style: &str, form: &str) -> Tokenizer {
    Tokenizer::open(&fixture(&format!("tiny/{style}.{form}"))).expect("the fixture is a tokenizer")
}

/// The SmolLM2 file that `make model` fetches. It is not checked in; tests that need it say how to get it.
pub(crate) fn smollm2() -> PathBuf {
    let cache = std::env::var_os("ANAPHORA_CACHE").map(PathBuf::from).or_else(|| {
        let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        Some(
            cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))?.join("anaphora"),
        )
    });
    let file = cache.unwrap_or_default().join("models/smollm2-135m/SmolLM2-135M-Instruct.Q4_1.gguf");
    assert!(file.is_file(), "{} is not there: `make model` fetches it", file.display());
    file
}
