//! What a [`TokenCache`] gives against what the tokenizer gives, over texts that grow, change, and are put together of others.
//!
//! A quick number of cases by default. To hunt deeper:
//! `PROPTEST_CASES=1000000 cargo test --release -p anaphora-text --test cache`
#![expect(clippy::unwrap_used, reason = "a test that unwraps says where it failed")]

mod common;

use std::sync::OnceLock;

use anaphora_text::{TokenCache, Tokenizer};
use common::{smollm2, texts};
use proptest::prelude::*;
use proptest::sample::Index;

/// One change to the text so far.
#[derive(Debug, Clone)]
enum Edit {
    Append(String),
    /// Bytes between the two places become this.
    Replace(Index, Index, String),
    /// What stands between the two places comes again, at the end.
    Repeat(Index, Index),
    /// Back to an earlier text.
    Return(Index),
    /// The earlier text goes before.
    Prepend(Index),
}

fn edit() -> impl Strategy<Value = Edit> {
    let place = any::<Index>;
    prop_oneof![
        6 => texts::text(24).prop_map(Edit::Append),
        3 => (place(), place(), texts::text(4)).prop_map(|(from, to, text)| Edit::Replace(from, to, text)),
        1 => (place(), place()).prop_map(|(from, to)| Edit::Repeat(from, to)),
        1 => place().prop_map(Edit::Return),
        1 => place().prop_map(Edit::Prepend),
    ]
}

/// The two places in order, each at a character's beginning or the end.
fn places(text: &str, from: Index, to: Index) -> (usize, usize) {
    let place = |index: Index| floor(text, index.index(text.len() + 1));
    let (from, to) = (place(from), place(to));
    (from.min(to), from.max(to))
}

/// The last character's beginning at `at` or before it.
fn floor(text: &str, at: usize) -> usize {
    (0..=at.min(text.len())).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0)
}

fn apply(edit: Edit, earlier: &[String]) -> String {
    let mut text = earlier.last().cloned().unwrap_or_default();
    match edit {
        Edit::Append(more) => text.push_str(&more),
        Edit::Replace(from, to, other) => {
            let (from, to) = places(&text, from, to);
            text.replace_range(from..floor(&text, to.min(from + 40)), &other);
        }
        Edit::Repeat(from, to) => {
            let (from, to) = places(&text, from, to);
            let again = text[from..to].to_owned();
            text.push_str(&again);
        }
        Edit::Return(index) if !earlier.is_empty() => text.clone_from(index.get(earlier)),
        Edit::Prepend(index) if !earlier.is_empty() => text.insert_str(0, index.get::<String>(earlier)),
        Edit::Return(_) | Edit::Prepend(_) => {}
    }
    text.truncate(floor(&text, 6000));
    text
}

/// Name, tokenizer, and a cache for it.
type Caching = (String, Tokenizer, TokenCache<bool>);

/// Every tokenizer with a cache that outlives the cases, so that they disturb one another; small, so that it drops things.
fn caches() -> &'static [Caching] {
    static CACHES: OnceLock<Vec<Caching>> = OnceLock::new();
    CACHES.get_or_init(|| {
        let smollm2 = ("SmolLM2".to_owned(), Tokenizer::open(&smollm2()).unwrap());
        let all = texts::tokenizers().into_iter().chain([smollm2]);
        all.map(|(name, tokenizer)| {
            let cache = TokenCache::new(tokenizer.clone(), 1 << 20);
            (name, tokenizer, cache)
        })
        .collect()
    })
}

fn config() -> ProptestConfig {
    // A case is up to five edits: a quarter of what is asked for, and a few seconds' worth by default.
    ProptestConfig::with_cases(ProptestConfig::default().cases / 4)
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn ids_are_those_of_a_full_encode(which in any::<Index>(), edits in proptest::collection::vec(edit(), 1..6), threads in 1..3_usize, special in any::<bool>()) {
        let (name, tokenizer, cache) = which.get(caches());
        let mut earlier = Vec::new();
        for edit in edits {
            let text = apply(edit, &earlier);
            let ids = cache.find(&special, &text).encode(special, threads).unwrap();
            prop_assert_eq!(ids, tokenizer.encode(&text, special).unwrap(), "{}: {:?}", name, &text);
            prop_assert!(cache.num_bytes() <= 1 << 20);
            earlier.push(text);
        }
    }
}

/// About `num_bytes` of a conversation.
fn conversation(num_bytes: usize) -> String {
    let mut text = String::new();
    let mut state = 1_u64;
    for turn in 0.. {
        if text.len() >= num_bytes {
            break;
        }
        text.push_str("<|im_start|>user\n");
        for _ in 0..400 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let word =
                ["alpha", "beta,", "gamma.\n", "x=5;", "日本語", "été", "don't"][(state >> 33) as usize % 7];
            text.push_str(word);
            text.push(' ');
        }
        text.push_str(&format!("{turn}<|im_end|>\n"));
    }
    text
}

#[test]
fn a_text_that_grows_costs_what_is_new() {
    let tokenizer = Tokenizer::open(&smollm2()).unwrap();
    let cache = TokenCache::new(tokenizer.clone(), 16 << 20);
    let (here, there) = ("here", "there");
    let mut text = conversation(60_000);
    let new_bytes = |namespace: &&'static str, text: &str| {
        let lookup = cache.find(namespace, text);
        let num_new = lookup.num_new_bytes();
        assert_eq!(lookup.encode(true, 2).unwrap(), tokenizer.encode(text, true).unwrap());
        num_new
    };
    assert_eq!(new_bytes(&here, &text), text.len());
    for _ in 0..4 {
        text.push_str(" and that is what is new about it.<|im_end|>\n<|im_start|>user\nWhat then?");
        assert!(new_bytes(&here, &text) < 1024);
    }
    // An edit in the middle, and a text that goes before all of it.
    let middle = floor(&text, text.len() / 2);
    text.insert_str(middle, "EDITED");
    assert!(new_bytes(&here, &text) < 24 << 10);
    text.insert_str(0, "<|im_start|>system\nBe brief.<|im_end|>\n");
    assert!(new_bytes(&here, &text) < 24 << 10);
    // Nobody profits from what another one cached.
    assert_eq!(new_bytes(&there, &text), text.len());
}

#[test]
fn many_long_texts_stay_within_the_bound() {
    let tokenizer = common::tokenizer("smollm", "json");
    let cache = TokenCache::new(tokenizer, 1 << 18);
    for round in 0..8 {
        let text = format!("{round}{}", conversation(20_000).replace("alpha", &format!("w{round}")));
        cache.find(&(), &text).encode(false, 1).unwrap();
        assert!(cache.num_bytes() <= 1 << 18);
    }
    assert!(cache.num_bytes() > 1 << 17);
}
