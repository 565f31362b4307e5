//! Stop strings against a search that sees the whole text.

use anaphora_text::{StopStep, StopStrings};
use proptest::prelude::*;

/// The text up to the stop string that is complete first, and that string: by trying every prefix of the text.
fn naive(text: &str, stops: &[&str], include: bool) -> (String, Option<String>) {
    let ends = text.char_indices().map(|(start, character)| start + character.len_utf8());
    for end in ends {
        let complete = stops.iter().filter(|stop| !stop.is_empty() && text[..end].ends_with(**stop));
        if let Some(stop) = complete.max_by_key(|stop| stop.len()) {
            let shown = if include { end } else { end - stop.len() };
            return (text[..shown].to_owned(), Some((*stop).to_owned()));
        }
    }
    (text.to_owned(), None)
}

/// Feeds the pieces; checks on the way that only what could become a stop string is held back.
fn streamed(pieces: &[&str], stops: &[&str], include: bool) -> (String, Option<String>) {
    let mut watch = StopStrings::new(stops.iter().map(|stop| (*stop).to_owned()).collect(), include);
    let (mut shown, mut given) = (String::new(), String::new());
    for piece in pieces {
        given.push_str(piece);
        let StopStep { text, stopped } = watch.push(piece);
        shown.push_str(&text);
        if stopped.is_some() {
            assert_eq!(watch.push("more"), StopStep::default());
            assert_eq!(watch.finish(), "");
            return (shown, stopped);
        }
        let held = &given[shown.len()..];
        assert!(given.starts_with(&shown));
        assert!(
            held.is_empty() || (!include && stops.iter().any(|stop| stop.starts_with(held))),
            "held {held:?}"
        );
    }
    shown.push_str(&watch.finish());
    (shown, None)
}

/// Every way to cut a short text into pieces gives the same.
#[track_caller]
fn check(text: &str, stops: &[&str], expected: (&str, Option<&str>)) {
    let characters = text.char_indices().map(|(start, _)| start).skip(1).collect::<Vec<_>>();
    for cuts in 0..1u32 << characters.len() {
        let mut pieces = Vec::new();
        let mut from = 0;
        for (index, &start) in characters.iter().enumerate() {
            if cuts >> index & 1 == 1 {
                pieces.push(&text[from..start]);
                from = start;
            }
        }
        pieces.push(&text[from..]);
        for include in [false, true] {
            let naive = naive(text, stops, include);
            assert_eq!(streamed(&pieces, stops, include), naive, "{pieces:?}, include: {include}");
            if !include {
                assert_eq!((naive.0.as_str(), naive.1.as_deref()), expected);
            }
        }
    }
}

#[test]
fn every_split_of_the_text_stops_at_the_same_place() {
    check("hello world", &[], ("hello world", None));
    check("hello world", &[""], ("hello world", None));
    check("hello STOP wo", &["STOP"], ("hello ", Some("STOP")));
    check("ab", &["ab"], ("", Some("ab")));
    // Complete first wins; of those complete together, the longest.
    check("xabcd", &["abcd", "bc"], ("xa", Some("bc")));
    check("xabcd", &["bc", "abc"], ("x", Some("abc")));
    check("xabcd", &["ab", "abc"], ("x", Some("ab")));
    // A beginning that leads nowhere, inside one that does.
    check("aaab", &["aab"], ("a", Some("aab")));
    check("ababac", &["abac"], ("ab", Some("abac")));
    check("no end \n\n", &["\n\n\n"], ("no end \n\n", None));
    check("你好。再见", &["。"], ("你好", Some("。")));
    check("a🤗b🤗🤗c", &["🤗🤗"], ("a🤗b", Some("🤗🤗")));
}

proptest! {
    #[test]
    fn random_texts_stop_where_the_naive_search_does(
        text in "[ab你]{0,24}",
        stops in proptest::collection::vec("[ab你]{0,4}", 0..4),
        cuts in proptest::collection::vec(0usize..24, 0..12),
        include in any::<bool>(),
    ) {
        let stops = stops.iter().map(String::as_str).collect::<Vec<_>>();
        let mut boundaries = text.char_indices().map(|(start, _)| start).collect::<Vec<_>>();
        boundaries.push(text.len());
        let mut cuts = cuts.iter().map(|cut| boundaries[cut % boundaries.len()]).collect::<Vec<_>>();
        cuts.extend([0, text.len()]);
        cuts.sort_unstable();
        let pieces = cuts.windows(2).map(|pair| &text[pair[0]..pair[1]]).collect::<Vec<_>>();
        prop_assert_eq!(streamed(&pieces, &stops, include), naive(&text, &stops, include));
    }
}
