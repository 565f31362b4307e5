//! Cuts before added tokens (`<|im_start|>`), which split text before the tokenizer does anything else to it.
//!
//! The stretches between them are normalised, split into words and encoded each by itself, and the part after a cut
//! begins with the token, as it did in the whole text: a tokenizer that treats the very first stretch in its own way still
//! does so, and only there.

use std::collections::BTreeSet;

use aho_corasick::{AhoCorasick, Anchored, Input, MatchKind, StartKind};
use tokenizers::Tokenizer as Pipeline;
use tokenizers::tokenizer::AddedToken;

/// The added tokens of a tokenizer.
pub(crate) struct Added {
    automaton: AhoCorasick,
    /// For each of the automaton's patterns, whether there is a cut before it.
    begins_cut: Vec<bool>,
}

impl Added {
    /// `None` if there is no cut before any.
    pub(super) fn of(pipeline: &Pipeline) -> Option<Self> {
        let tokens = pipeline.get_added_vocabulary().get_added_tokens_decoder().values();
        // Tokens that are looked for in normalised text come second, within what these leave.
        let tokens = tokens.filter(|token| !token.normalized).collect::<Vec<_>>();
        let contents = tokens.iter().map(|token| token.content.as_str()).collect::<BTreeSet<_>>();
        let overlapped = overlapped(&contents);
        let begins_cut = tokens
            .iter()
            .map(|token| plain(token) && !overlapped.contains(token.content.as_str()))
            .collect::<Vec<_>>();
        let automaton = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .start_kind(StartKind::Both)
            .build(tokens.iter().map(|token| &token.content))
            .ok()?;
        begins_cut.contains(&true).then_some(Self { automaton, begins_cut })
    }

    pub(super) fn is_cut(&self, text: &str, at: usize) -> bool {
        let found = self.automaton.find(Input::new(text).range(at..).anchored(Anchored::Yes));
        found.is_some_and(|found| self.begins_cut[found.pattern()])
    }

    /// A token before which there is a cut begins within no other one, so it does not matter where the search begins.
    pub(super) fn next(&self, text: &str, from: usize) -> Option<usize> {
        let found = self.automaton.find_iter(Input::new(text).range(from.min(text.len())..));
        found.into_iter().find(|found| self.begins_cut[found.pattern()]).map(|found| found.start())
    }
}

/// Whether a token takes nothing but its own characters, wherever they stand, and a whole word may stand before it.
fn plain(token: &AddedToken) -> bool {
    let first = token.content.chars().next();
    let apart = first.is_some_and(|character| character.is_ascii_punctuation() && character != '_');
    apart && !token.single_word && !token.lstrip
}

/// The tokens that may begin within another one, whether or not they end in it too.
fn overlapped<'a>(contents: &BTreeSet<&'a str>) -> BTreeSet<&'a str> {
    let mut overlapped = BTreeSet::new();
    for content in contents {
        for (start, _) in content.char_indices().skip(1) {
            let rest = &content[start..];
            overlapped.extend(contents.range(rest..).take_while(|other| other.starts_with(rest)));
            let ends = rest.char_indices().map(|(index, character)| index + character.len_utf8());
            overlapped.extend(ends.filter_map(|end| contents.get(&rest[..end])));
        }
    }
    overlapped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_that_may_begin_within_others() {
        for (contents, expect) in [
            (vec!["<a>", "<b>"], vec![]),
            (vec!["<a>", "a"], vec!["a"]),
            (vec!["\n", "\n\n"], vec!["\n", "\n\n"]),
            (vec!["<a", "a<b"], vec!["a<b"]),
            (vec!["<a>", "<a><b"], vec![]),
            (vec!["<s>x<", "<s>"], vec!["<s>", "<s>x<"]),
        ] {
            let contents = contents.into_iter().collect();
            assert_eq!(overlapped(&contents), expect.into_iter().collect(), "{contents:?}");
        }
    }
}
