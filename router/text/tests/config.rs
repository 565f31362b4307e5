//! What a model's files say of its text, wherever they say it.
#![expect(clippy::unwrap_used, reason = "a test that unwraps says where it failed")]

mod common;

use std::path::Path;

use anaphora_text::{TextConfig, TextError};
use common::{fixture, smollm2};
use serde_json::{Value as Json, json};

/// A directory with the llama3-style tokenizer and these files.
fn directory(files: &[(&str, Json)]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    std::fs::copy(fixture("tiny/llama3.json"), directory.path().join("tokenizer.json")).unwrap();
    for (name, content) in files {
        // A string is the file's text; anything else is JSON.
        let text = content.as_str().map_or_else(|| content.to_string(), str::to_owned);
        std::fs::write(directory.path().join(name), text).unwrap();
    }
    directory
}

fn open(path: &Path) -> TextConfig {
    TextConfig::open(path, None, None).unwrap()
}

fn source(config: &TextConfig) -> Option<&str> {
    config.template.as_ref().map(anaphora_text::ChatTemplate::source)
}

#[test]
fn a_bare_tokenizer_is_enough() {
    let directory = directory(&[]);
    let config = open(directory.path());
    assert!(config.template.is_none() && config.eos_token_ids.is_empty() && config.max_context.is_none());
}

#[test]
fn every_end_of_text_counts() {
    let directory = directory(&[
        ("config.json", json!({"eos_token_id": [7, 9], "max_position_embeddings": 512})),
        ("generation_config.json", json!({"eos_token_id": 5})),
        (
            "tokenizer_config.json",
            json!({"eos_token": {"content": "<|im_end|>"}, "bos_token": "<|endoftext|>"}),
        ),
    ]);
    let config = open(directory.path());
    assert_eq!(config.eos_token_ids, [2, 5, 7, 9]);
    assert_eq!(
        (config.eos_token.as_deref(), config.bos_token.as_deref()),
        (Some("<|im_end|>"), Some("<|endoftext|>"))
    );
    assert_eq!((config.max_context, config.add_bos), (Some(512), true));
}

#[test]
fn a_template_is_found_in_any_of_its_places() {
    let named = json!({"chat_template": [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]});
    let plain = json!({"chat_template": "C"});
    assert_eq!(source(&open(directory(&[("tokenizer_config.json", plain.clone())]).path())), Some("C"));
    assert_eq!(source(&open(directory(&[("tokenizer_config.json", named.clone())]).path())), Some("D"));
    let both = directory(&[("tokenizer_config.json", named.clone()), ("chat_template.json", plain)]);
    assert_eq!(source(&open(both.path())), Some("C"));
    let jinja = directory(&[("tokenizer_config.json", named), ("chat_template.jinja", json!("J"))]);
    assert_eq!(source(&open(jinja.path())), Some("J"));
    // One that is given wins over all.
    let given = directory(&[("mine.jinja", json!("M")), ("mine.json", json!({"chat_template": "N"}))]);
    for (name, expected) in [("mine.jinja", "M"), ("mine.json", "N")] {
        let config = TextConfig::open(jinja.path(), None, Some(&given.path().join(name))).unwrap();
        assert_eq!(source(&config), Some(expected));
    }
}

#[test]
fn a_gguf_file_says_it_all_itself() {
    let config = open(&fixture("tiny/sentencepiece.gguf"));
    assert_eq!((config.bos_token.as_deref(), config.eos_token.as_deref()), (Some("<s>"), Some("</s>")));
    assert_eq!((config.eos_token_ids.as_slice(), config.max_context), ([2].as_slice(), Some(64)));
    assert!(config.add_bos && config.template.is_none());
    let config = open(&smollm2());
    assert_eq!(
        (config.bos_token.as_deref(), config.eos_token.as_deref()),
        (Some("<|im_start|>"), Some("<|im_end|>"))
    );
    assert_eq!((config.eos_token_ids.as_slice(), config.max_context), ([2].as_slice(), Some(8192)));
    assert!(!config.add_bos && config.template.is_some());
}

#[test]
fn a_gguf_file_that_names_no_end_of_turn_has_the_usual_one() {
    let config = open(&fixture("tiny/gemma.gguf"));
    let end_of_turn = config.tokenizer.token_to_id("<end_of_turn>").unwrap();
    assert_eq!(config.eos_token_ids, [2, end_of_turn]);
    assert!(config.tokenizer.is_special(end_of_turn));
}

#[test]
fn a_tokenizer_can_be_given_apart() {
    // A directory with a configuration and nothing else, as for random weights.
    let model = tempfile::tempdir().unwrap();
    std::fs::write(model.path().join("config.json"), json!({"max_position_embeddings": 32}).to_string())
        .unwrap();
    let tokenizer =
        directory(&[("tokenizer_config.json", json!({"chat_template": "C", "eos_token": "<|im_end|>"}))]);
    for path in [tokenizer.path().to_owned(), tokenizer.path().join("tokenizer.json")] {
        let config = TextConfig::open(model.path(), Some(&path), None).unwrap();
        assert_eq!((config.max_context, source(&config)), (Some(32), Some("C")));
        assert_eq!(config.eos_token_ids, [2]);
    }
    let config = TextConfig::open(model.path(), Some(&fixture("tiny/gpt2.gguf")), None).unwrap();
    assert_eq!(config.eos_token_ids, [2]);
    assert!(matches!(TextConfig::open(model.path(), None, None), Err(TextError::NoTokenizer { .. })));
}

#[test]
fn files_that_cannot_be_used_are_named() {
    let broken = directory(&[("tokenizer_config.json", json!("{"))]);
    let error = TextConfig::open(broken.path(), None, None).unwrap_err().to_string();
    assert!(error.contains("tokenizer_config.json: the whole file: expected JSON, found EOF"), "{error}");
    let broken = directory(&[("chat_template.jinja", json!("{% if %}"))]);
    let error = TextConfig::open(broken.path(), None, None).unwrap_err().to_string();
    assert!(
        error.contains("chat_template.jinja: the chat template does not compile: syntax error"),
        "{error}"
    );
    let error =
        TextConfig::open(broken.path(), None, Some(Path::new("/nowhere.json"))).unwrap_err().to_string();
    assert!(error.starts_with("/nowhere.json: cannot be read: "), "{error}");
}
