//! The law of cuts, over random texts and every kind of tokenizer.
//!
//! To hunt deeper: `PROPTEST_CASES=1000000 cargo test --release -p anaphora-text --lib cuts`

use std::sync::OnceLock;

use proptest::prelude::*;
use proptest::sample::Index;

use super::Cuts;
use crate::Tokenizer;
use crate::testing::texts;

fn tokenizers() -> &'static [(String, Tokenizer)] {
    static TOKENIZERS: OnceLock<Vec<(String, Tokenizer)>> = OnceLock::new();
    TOKENIZERS.get_or_init(texts::tokenizers)
}

#[test]
fn what_is_proven_of_whom() {
    let kind = |tokenizer: &Tokenizer| match tokenizer.cuts() {
        Cuts::Pairs(_) => "pairs",
        Cuts::Added(_) => "added",
        Cuts::Never => "never",
    };
    let kinds = tokenizers().iter().map(|(name, tokenizer)| format!("{name}: {}", kind(tokenizer)));
    assert_eq!(
        kinds.collect::<Vec<_>>(),
        [
            "gpt2: pairs",
            "smollm: pairs",
            "llama3: pairs",
            "qwen2: pairs",
            "tekken: pairs",
            "sentencepiece: added",
            "gemma: added",
            "roberta: pairs",
            "cl100k: pairs",
            "deepseek: pairs",
            "digits: pairs",
            "unknown: added",
            "rounds: added",
            "metaspace: added",
            "stripping: pairs",
            "whole words: added",
            "normalised: never",
        ]
    );
}

#[test]
fn cuts_are_plenty_in_plain_text() {
    for (name, text) in [
        ("llama3", "user: What is it, then?\nIt is what it is.\n"),
        ("qwen2", "def f(x):\n    return {\"key\": x}\n"),
        ("smollm", "这是一个句子。这是另一个句子，对吗？好的。"),
        ("tekken", "Это новый текст, который мы режем. Да?"),
    ] {
        let (_, tokenizer) = tokenizers().iter().find(|(other, _)| other == name).unwrap();
        let count = (0..text.len())
            .filter(|&at| text.is_char_boundary(at) && tokenizer.cuts().is_cut(text, at))
            .count();
        assert!(count >= 4, "{name}: {count} in {text:?}");
    }
}

proptest! {
    #[test]
    fn the_ids_of_the_parts_are_those_of_the_whole(which in any::<Index>(), text in texts::text(16)) {
        let (name, tokenizer) = which.get(tokenizers());
        let whole = tokenizer.encode(&text, false).unwrap();
        let cuts = (0..text.len()).filter(|&at| text.is_char_boundary(at) && tokenizer.cuts().is_cut(&text, at));
        let cuts = cuts.collect::<Vec<_>>();
        for &cut in &cuts {
            let mut parts = tokenizer.encode(&text[..cut], false).unwrap();
            parts.extend(tokenizer.encode(&text[cut..], false).unwrap());
            prop_assert_eq!(&parts, &whole, "{}: {:?} at {}", name, &text, cut);
        }
        for from in 0..text.len() {
            let next = cuts.iter().copied().find(|&cut| cut >= from);
            prop_assert_eq!(tokenizer.cuts().next(&text, from), next, "{}: {:?} from {}", name, &text, from);
        }
    }
}
