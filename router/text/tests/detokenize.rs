//! What comes out token by token is what decoding everything at once gives.
#![expect(clippy::unwrap_used, reason = "a test that unwraps says where it failed")]

mod common;

use anaphora_text::{Detokenizer, Tokenizer};
use common::{BYTE_LEVEL, json, tokenizer};
use proptest::prelude::*;

/// The pieces, one for each token, and what `finish` gives.
fn pieces(tokenizer: &Tokenizer, prompt: &[u32], ids: &[u32], skip_special_tokens: bool) -> Vec<String> {
    let mut detokenizer = Detokenizer::new(tokenizer.clone(), prompt, skip_special_tokens);
    let mut pieces = ids.iter().map(|&id| detokenizer.push(id).unwrap()).collect::<Vec<_>>();
    pieces.push(detokenizer.finish().unwrap());
    pieces
}

/// What `ids` add to the text of `prompt`.
fn expected(tokenizer: &Tokenizer, prompt: &[u32], ids: &[u32], skip_special_tokens: bool) -> String {
    let before = tokenizer.decode(prompt, skip_special_tokens).unwrap();
    let all = tokenizer.decode(&[prompt, ids].concat(), skip_special_tokens).unwrap();
    all[before.len()..].to_owned()
}

#[track_caller]
fn check(tokenizer: &Tokenizer, prompt: &[u32], ids: &[u32]) {
    for skip_special_tokens in [false, true] {
        let pieces = pieces(tokenizer, prompt, ids, skip_special_tokens);
        let whole = pieces.concat();
        assert_eq!(whole, expected(tokenizer, prompt, ids, skip_special_tokens), "{pieces:?}");
    }
}

#[test]
fn the_texts_come_back_whole() {
    let texts: Vec<String> = serde_json::from_value(json("tiny/texts.json")).unwrap();
    for style in common::STYLES {
        let tokenizer = tokenizer(style, "gguf");
        for text in &texts {
            let ids = tokenizer.encode(text, false).unwrap();
            for (prompt, add) in [("", false), ("", true), ("So:", true), ("你好", false)] {
                check(&tokenizer, &tokenizer.encode(prompt, add).unwrap(), &ids);
            }
        }
    }
}

#[test]
fn no_half_character_comes_out_before_the_end() {
    // Each emoji is four bytes and, for vocabularies this small, four tokens.
    for style in common::STYLES {
        let tokenizer = tokenizer(style, "gguf");
        let ids = tokenizer.encode("🤗a🤗", false).unwrap();
        let pieces = pieces(&tokenizer, &[], &ids, true);
        assert_eq!(pieces.concat(), "🤗a🤗", "{style}");
        assert!(pieces.iter().all(|piece| !piece.contains('\u{FFFD}')), "{style}: {pieces:?}");
        // Cut inside the last emoji: only `finish` may say so.
        let pieces = self::pieces(&tokenizer, &[], &ids[..ids.len() - 1], true);
        let (last, before) = pieces.split_last().unwrap();
        assert_eq!(before.concat(), "🤗a", "{style}");
        assert!(
            !last.is_empty() && last.chars().all(|character| character == '\u{FFFD}'),
            "{style}: {last:?}"
        );
    }
}

#[test]
fn characters_of_several_bytes_come_out_as_they_complete() {
    // SentencePiece would decode one long run of bytes; waiting for its end would stop the stream.
    let tokenizer = tokenizer("sentencepiece", "gguf");
    let ids = tokenizer.encode("สวัสดี", false).unwrap();
    let pieces = pieces(&tokenizer, &tokenizer.encode("x", false).unwrap(), &ids[1..], true);
    assert_eq!(pieces.iter().filter(|piece| !piece.is_empty()).count(), "สวัสดี".chars().count());
}

#[test]
fn a_replacement_character_is_a_character() {
    for style in common::STYLES {
        let tokenizer = tokenizer(style, "gguf");
        for text in ["\u{FFFD}", "\u{FFFD}\u{FFFD}🤗", "a\u{FFFD}你"] {
            check(&tokenizer, &[], &tokenizer.encode(text, false).unwrap());
        }
    }
}

#[test]
fn a_run_of_bytes_that_turns_bad_keeps_the_characters_before() {
    let tokenizer = tokenizer("sentencepiece", "gguf");
    let byte = |byte: u8| tokenizer.token_to_id(&format!("<0x{byte:02X}>")).unwrap();
    let ids =
        [byte(0xE4), byte(0xBD), byte(0xA0), byte(0xFF), byte(b'a'), tokenizer.token_to_id("a").unwrap()];
    // All at once the whole run, the good character with it, would be lost.
    assert_eq!(expected(&tokenizer, &[], &ids, true), "\u{FFFD}\u{FFFD}\u{FFFD}\u{FFFD}\u{FFFD}a");
    assert_eq!(pieces(&tokenizer, &[], &ids, true).concat(), "你\u{FFFD}aa");
}

#[test]
fn special_tokens_show_only_if_asked() {
    let tokenizer = tokenizer("smollm", "gguf");
    let ids = tokenizer.encode("a<|im_end|>b", false).unwrap();
    assert_eq!(pieces(&tokenizer, &[], &ids, true).concat(), "ab");
    assert_eq!(pieces(&tokenizer, &[], &ids, false).concat(), "a<|im_end|>b");
}

#[test]
fn endless_garbage_comes_out_too() {
    for (style, token) in
        [("gpt2", "ÿ"), ("sentencepiece", "<0xFF>"), ("gpt2", "ä"), ("sentencepiece", "<0xE4>")]
    {
        let tokenizer = tokenizer(style, "gguf");
        let ids = vec![tokenizer.token_to_id(token).unwrap(); 3000];
        let whole = pieces(&tokenizer, &[], &ids, true).concat();
        assert_eq!(whole, expected(&tokenizer, &[], &ids, true), "{style} {token}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn random_ids_of_byte_level_vocabularies_come_back_whole(
        style in 0..BYTE_LEVEL.len(),
        prompt in proptest::collection::vec(0u32..383, 0..8),
        ids in proptest::collection::vec(0u32..400, 0..200),
    ) {
        let tokenizer = tokenizer(BYTE_LEVEL[style], "gguf");
        // A prompt is text: it ends with a whole character.
        let prompt = tokenizer.encode(&tokenizer.decode(&prompt, false).unwrap(), true).unwrap();
        check(&tokenizer, &prompt, &ids);
    }

    #[test]
    fn random_ids_of_sentencepiece_come_back_whole(
        prompt in proptest::collection::vec(259u32..479, 0..4),
        parts in proptest::collection::vec(prop_oneof![
            // Pieces and special tokens; runs of bytes that are characters; one bad byte behind a piece.
            proptest::collection::vec(259u32..479, 1..8),
            proptest::collection::vec(0u32..3, 1..2),
            any::<char>().prop_map(|character| character.to_string().bytes().map(|byte| 3 + u32::from(byte)).collect()),
            (259u32..479, 0x80u32..0x100, 259u32..479).prop_map(|(a, byte, b)| vec![a, 3 + byte, b]),
        ], 0..24),
    ) {
        let tokenizer = tokenizer("sentencepiece", "gguf");
        let ids = parts.concat();
        check(&tokenizer, &prompt, &ids);
    }

    #[test]
    fn any_ids_at_all_are_taken(ids in proptest::collection::vec(0u32..500, 0..200), skip in any::<bool>()) {
        let tokenizer = tokenizer("sentencepiece", "gguf");
        let whole = pieces(&tokenizer, &[], &ids, skip).concat();
        // Bytes aside, nothing is lost and nothing moves.
        let pieces_only = ids.into_iter().filter(|id| !(3..259).contains(id)).collect::<Vec<_>>();
        let mut rest = whole.chars();
        for character in tokenizer.decode(&pieces_only, skip).unwrap().chars() {
            prop_assert!(rest.any(|other| other == character), "{:?} lacks {:?}", whole, character);
        }
    }
}
