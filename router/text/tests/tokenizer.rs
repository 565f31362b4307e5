//! Ids against Hugging Face's `tokenizers` in Python: `fixtures/make_tokenizers.py` wrote the goldens.
#![expect(clippy::unwrap_used, reason = "a test that unwraps says where it failed")]

mod common;

use anaphora_text::{Piece, TextError, Tokenizer};
use common::{STYLES, fixture, json, smollm2, tokenizer};

/// Every text encodes to its golden, and the ids decode as the golden's tokenizer would.
#[track_caller]
fn check(tokenizer: &Tokenizer, golden: &serde_json::Value, what: &str) {
    let texts: Vec<String> = serde_json::from_value(json("tiny/texts.json")).unwrap();
    let golden: Vec<Vec<u32>> = serde_json::from_value(golden.clone()).unwrap();
    assert_eq!(texts.len(), golden.len());
    for (text, ids) in texts.iter().zip(&golden) {
        assert_eq!(&tokenizer.encode(text, true).unwrap(), ids, "{what}: {text:?}");
        let pieces = tokenizer.encode_pieces(text, true).unwrap();
        assert_eq!(&pieces.iter().map(|piece| piece.id).collect::<Vec<_>>(), ids, "{what}: {text:?}");
        for Piece { text: part, start, stop, .. } in &pieces {
            assert_eq!(part.as_bytes(), &text.as_bytes()[*start..*stop], "{what}: {text:?}");
        }
    }
}

#[test]
fn both_forms_of_every_style_give_the_reference_ids() {
    let goldens = json("tiny/goldens.json");
    for style in STYLES {
        for form in ["json", "gguf"] {
            check(&tokenizer(style, form), &goldens[style], &format!("{style}.{form}"));
        }
    }
}

#[test]
fn both_forms_of_every_style_agree_on_everything_else() {
    for style in STYLES {
        let (first, second) = (tokenizer(style, "json"), tokenizer(style, "gguf"));
        assert_eq!(first.vocab_size(), second.vocab_size(), "{style}");
        for id in 0..=first.vocab_size() as u32 {
            assert_eq!(first.id_to_token(id), second.id_to_token(id), "{style} {id}");
            assert_eq!(first.is_special(id), second.is_special(id), "{style} {id}");
            for skip in [false, true] {
                let ids = [id, 5, id];
                assert_eq!(
                    first.decode(&ids, skip).unwrap(),
                    second.decode(&ids, skip).unwrap(),
                    "{style} {id}"
                );
            }
        }
    }
}

#[test]
fn smollm2_gives_the_reference_ids() {
    let tokenizer = Tokenizer::open(&smollm2()).unwrap();
    check(&tokenizer, &json("tiny/smollm2.json"), "SmolLM2");
    assert_eq!(tokenizer.vocab_size(), 49_152);
    assert_eq!(tokenizer.encode("Hello  5", true).unwrap(), [19556, 256, 37]);
    assert_eq!(tokenizer.token_to_id("<|im_end|>"), Some(2));
    assert!(tokenizer.is_special(2) && !tokenizer.is_special(19556));
}

#[test]
fn text_survives_the_round_trip() {
    let texts: Vec<String> = serde_json::from_value(json("tiny/texts.json")).unwrap();
    for style in ["gpt2", "smollm", "llama3", "tekken"] {
        let tokenizer = tokenizer(style, "gguf");
        for text in &texts {
            let ids = tokenizer.encode(text, false).unwrap();
            assert_eq!(&tokenizer.decode(&ids, false).unwrap(), text, "{style}");
        }
    }
}

#[test]
fn what_is_missing_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let failure = || Tokenizer::open(directory.path()).unwrap_err();
    assert!(failure().to_string().ends_with(
        "no tokenizer here: no tokenizer.json. Give the directory or file of one with --tokenizer."
    ));
    std::fs::write(directory.path().join("tokenizer.model"), "").unwrap();
    assert!(failure().to_string().contains("only a SentencePiece `tokenizer.model`"));
    std::fs::write(directory.path().join("tokenizer.json"), "{}").unwrap();
    assert!(matches!(failure(), TextError::Invalid { .. }));
}

/// A GGUF fixture with one string in it replaced by another of the same length.
fn patched(style: &str, from: &str, to: &str) -> Result<Tokenizer, TextError> {
    assert_eq!(from.len(), to.len());
    let mut bytes = std::fs::read(fixture(&format!("tiny/{style}.gguf"))).unwrap();
    let position = bytes.windows(from.len()).position(|window| window == from.as_bytes()).unwrap();
    bytes[position..position + to.len()].copy_from_slice(to.as_bytes());
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("patched.gguf");
    std::fs::write(&file, bytes).unwrap();
    Tokenizer::open(&file)
}

#[track_caller]
fn patch(style: &str, from: &str, to: &str) -> String {
    let error = patched(style, from, to).unwrap_err().to_string();
    error.split_once("patched.gguf").map(|(_, rest)| format!("patched.gguf{rest}")).unwrap()
}

#[test]
fn a_file_without_a_bos_adds_none() {
    let tokenizer = patched("llama3", "tokenizer.ggml.bos_token_id", "tokenizer.ggml.box_token_id").unwrap();
    assert_eq!(tokenizer.encode("a", true).unwrap(), tokenizer.encode("a", false).unwrap());
}

#[test]
fn metadata_that_cannot_be_used_is_named() {
    assert_eq!(
        patch("smollm", "smollm", "smolxx"),
        "patched.gguf: `tokenizer.ggml.pre`: expected one of gpt-2, phi-2, olmo, smollm, starcoder, refact, command-r, \
         codeshell, llama-bpe, llama3, llama-v3, qwen2, deepseek-r1-qwen, tekken, default, found smolxx"
    );
    assert_eq!(
        patch("gpt2", "tokenizer.ggml.merges", "tokenizer.ggml.mergex"),
        "patched.gguf: `tokenizer.ggml.merges`: expected an array of strings, found none"
    );
    assert_eq!(
        patch("gpt2", "tokenizer.ggml.model", "tokenizer.ggml.modex"),
        "patched.gguf: `tokenizer.ggml.model`: expected gpt2 or llama, found nothing"
    );
    assert_eq!(
        patch("sentencepiece", "tokenizer.ggml.scores", "tokenizer.ggml.scorex"),
        "patched.gguf: `tokenizer.ggml.scores`: expected one number per token, found something else"
    );
}

#[test]
fn no_flipped_byte_panics() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("flipped.gguf");
    for style in ["gpt2", "sentencepiece"] {
        let bytes = std::fs::read(fixture(&format!("tiny/{style}.gguf"))).unwrap();
        // Every byte of the keys before the vocabulary, then some of the rest.
        for position in (0..150).chain((150..bytes.len()).step_by(41)) {
            let mut flipped = bytes.clone();
            flipped[position] ^= 0x01 << (position % 8);
            std::fs::write(&file, flipped).unwrap();
            if let Ok(tokenizer) = Tokenizer::open(&file) {
                let ids = tokenizer.encode("The quick 123 你好", true).unwrap_or_default();
                tokenizer.decode(&ids, false).unwrap();
            }
        }
    }
}
