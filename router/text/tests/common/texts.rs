//! Tokenizers of every kind, and texts made to find where they disagree with themselves.

use std::path::Path;

use anaphora_text::Tokenizer;
use proptest::prelude::*;
use serde_json::{Value, json};

/// Fragments that pre-tokenisers and added tokens treat in ways of their own.
const FRAGMENTS: &[&str] = &[
    " ",
    " ",
    " ",
    "  ",
    "   ",
    "\n",
    "\n",
    "\n\n",
    "\r\n",
    "\r",
    "\t",
    "\u{a0}",
    "\u{3000}",
    "\u{2028}",
    "\u{b}",
    "\u{85}",
    "the",
    "token",
    "isn't",
    "'s",
    "'LL",
    "'",
    "I'm",
    "x",
    "A",
    "é",
    "ſ",
    "e\u{301}",
    "\u{301}",
    "\u{338}",
    "ﬁ",
    "Å",
    "\u{212a}",
    "1",
    "12",
    "123",
    "1234",
    "½",
    "٣",
    "Ⅷ",
    ".",
    ",",
    "...",
    "/",
    "_",
    "-",
    "=>",
    "{\"",
    "\":",
    "<",
    ">",
    "|",
    "<|",
    "|>",
    "▁",
    "你好",
    "世",
    "。",
    "，",
    "日本",
    "は",
    "\u{3099}",
    "한국",
    "\u{11a8}",
    "ㄱ",
    "\u{1100}",
    "привет",
    "й",
    "ا",
    "نم",
    "न",
    "\u{93c}",
    "สวัส",
    "🤗",
    "👨‍👩‍👧",
    "\u{fe0f}",
    "🏳️",
    "\u{0}",
    "\u{7f}",
    "\u{fffd}",
    "\u{feff}",
    "\u{10348}",
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<think>",
    "</think>",
    "<|im_start",
    "im_end|>",
    "<|im_start|",
    "<s>",
    "</s>",
    "<start_of_turn>",
    "<unk>",
    "a b",
    "user\n",
    "word word ",
    "abc, def.",
    "<|im_end|>\n<think>",
    "theuser\n",
];

/// A text of up to `max` fragments and characters.
pub(crate) fn text(max: usize) -> impl Strategy<Value = String> {
    let fragment = prop_oneof![
        20 => proptest::sample::select(FRAGMENTS).prop_map(str::to_owned),
        2 => proptest::char::range(' ', '~').prop_map(String::from),
        1 => any::<char>().prop_map(String::from),
        1 => (proptest::sample::select(FRAGMENTS), 1..12_usize).prop_map(|(fragment, count)| fragment.repeat(count)),
    ];
    proptest::collection::vec(fragment, 0..=max).prop_map(|fragments| fragments.concat())
}

/// A tokenizer of each style that is served, by name: the fixtures, and others made of them.
pub(crate) fn tokenizers() -> Vec<(String, Tokenizer)> {
    let styles = super::STYLES.map(|style| (style.to_owned(), super::tokenizer(style, "json")));
    let variants =
        variants().into_iter().map(|(name, style, change)| (name.to_owned(), variant(style, change)));
    styles.into_iter().chain(variants).collect()
}

fn regex(expression: &str, behavior: &str, invert: bool) -> Value {
    json!({"type": "Split", "pattern": {"Regex": expression}, "behavior": behavior, "invert": invert})
}

fn words(steps: &[Value]) -> Value {
    let mut steps = steps.to_vec();
    steps.push(
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}),
    );
    json!({"pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}})
}

fn added(content: &str, options: &[&str]) -> Value {
    let mut token = json!({"id": 0, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": false});
    for option in options {
        token[*option] = true.into();
    }
    token
}

/// Name, the fixture that it is made of, and the parts that it changes.
fn variants() -> Vec<(&'static str, &'static str, Value)> {
    let cl100k = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";
    let deepseek = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;
    let unknown = r"\p{L}+\s?|[^\p{L}]+?";
    vec![
        (
            "roberta",
            "gpt2",
            json!({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}}),
        ),
        ("cl100k", "gpt2", words(&[regex(cl100k, "Removed", true)])),
        (
            "deepseek",
            "llama3",
            words(&[
                regex(r"\p{N}{1,3}", "Isolated", false),
                regex("[一-龥぀-ゟ゠-ヿ]+", "Isolated", false),
                regex(deepseek, "Isolated", false),
            ]),
        ),
        (
            "digits",
            "gpt2",
            words(&[
                json!({"type": "Digits", "individual_digits": false}),
                regex(r"\s+|\S+", "Isolated", false),
            ]),
        ),
        ("unknown", "gpt2", words(&[regex(unknown, "MergedWithNext", false)])),
        ("rounds", "gpt2", two_rounds(words(&[regex(unknown, "MergedWithNext", false)]))),
        (
            "metaspace",
            "sentencepiece",
            json!({
                "normalizer": null,
                "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": false},
            }),
        ),
        (
            "stripping",
            "smollm",
            json!({"added_tokens": [added("<|im_start|>", &["rstrip"]), added("</think>", &["lstrip"]), added("a b", &[]), added("user\n", &["normalized"])]}),
        ),
        (
            "whole words",
            "smollm",
            json!({"added_tokens": [added("token", &["single_word"]), added("<|im_start|>", &["special"])]}),
        ),
        (
            "normalised",
            "qwen2",
            json!({"added_tokens": [added("é", &["normalized"]), added("<|im_start|>", &["normalized"]), added("<think>", &["normalized", "lstrip"])]}),
        ),
    ]
}

/// With added tokens of which some are looked for first, and some within what those leave, or only as whole words.
fn two_rounds(mut change: Value) -> Value {
    change["added_tokens"] = json!([
        added("<|im_end|>\n<think>", &["normalized"]),
        added("<think>", &[]),
        added("<|im_start|>", &["special", "rstrip"]),
        added("the", &["single_word"]),
        added("user\n", &[]),
        added("</think>", &["lstrip"]),
    ]);
    change
}

fn variant(style: &str, change: Value) -> Tokenizer {
    let mut file = super::json(&format!("tiny/{style}.json"));
    for (part, mut value) in change.as_object().cloned().unwrap_or_default() {
        if part == "added_tokens" {
            let first = file["model"]["vocab"].as_object().map_or(0, serde_json::Map::len) + 100;
            for (index, token) in value.as_array_mut().into_iter().flatten().enumerate() {
                let id = &file["model"]["vocab"][token["content"].as_str().unwrap_or_default()];
                token["id"] = if id.is_null() { (first + index).into() } else { id.clone() };
            }
        }
        file[part] = value;
    }
    let directory = tempfile::tempdir().expect("there is a temporary directory");
    let path = directory.path().join("tokenizer.json");
    std::fs::write(&path, file.to_string()).expect("it can be written to");
    open(&path, style)
}

fn open(path: &Path, style: &str) -> Tokenizer {
    Tokenizer::open(path).unwrap_or_else(|error| panic!("{style}: {error}"))
}
