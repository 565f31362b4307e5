//! The alphabet in which cuts are proven: printable ASCII, and two groups of characters beyond it.
//!
//! Every character here is a starter that never composes with what stands before it (`NFC_Quick_Check=Yes`, combining
//! class 0), and its general category has been the same since Unicode 4, so that every regex engine agrees on it.

use regex_syntax::hir::ClassUnicode;

/// Letters (Lu, Ll, Lo) beyond ASCII: Latin-1, Greek, Cyrillic, Hebrew, Arabic, Devanagari, Thai, kana, Han, Hangul. Without ß, which
/// Oniguruma takes for two letters where it disregards case.
const LETTERS: &[(char, char)] = &[
    ('\u{C0}', '\u{D6}'),
    ('\u{D8}', '\u{DE}'),
    ('\u{E0}', '\u{F6}'),
    ('\u{F8}', '\u{FF}'),
    ('\u{391}', '\u{3A1}'),
    ('\u{3A3}', '\u{3A9}'),
    ('\u{3B1}', '\u{3C9}'),
    ('\u{410}', '\u{44F}'),
    ('\u{5D0}', '\u{5EA}'),
    ('\u{621}', '\u{63A}'),
    ('\u{641}', '\u{64A}'),
    ('\u{905}', '\u{939}'),
    ('\u{E01}', '\u{E30}'),
    ('\u{3041}', '\u{3094}'),
    ('\u{30A1}', '\u{30FA}'),
    ('\u{4E00}', '\u{9FA5}'),
    ('\u{AC00}', '\u{D7A3}'),
];

/// Punctuation beyond ASCII: dashes, curly quotes, the ellipsis, and what CJK texts end their clauses with.
const PUNCTUATION: &[(char, char)] = &[
    ('\u{2013}', '\u{2014}'),
    ('\u{2018}', '\u{201D}'),
    ('\u{2026}', '\u{2026}'),
    ('\u{3001}', '\u{3002}'),
    ('\u{300C}', '\u{300F}'),
    ('\u{FF01}', '\u{FF01}'),
    ('\u{FF0C}', '\u{FF0C}'),
    ('\u{FF1A}', '\u{FF1B}'),
    ('\u{FF1F}', '\u{FF1F}'),
];

const NUM_ASCII: u8 = 128;
const LETTER: Symbol = Symbol(NUM_ASCII);
const MARK: Symbol = Symbol(NUM_ASCII + 1);

/// A printable ASCII character, tab, newline or carriage return; or one of the groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Symbol(u8);

/// A set of symbols.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Symbols {
    ascii: u128,
    groups: u8,
}

impl Symbol {
    /// How many there are.
    pub(super) const COUNT: usize = NUM_ASCII as usize + 2;

    /// The symbol of a character; `None` if nothing can be proven around it.
    pub(super) fn of(character: char) -> Option<Self> {
        match character {
            '\t' | '\n' | '\r' | ' '..='~' => Some(Self(character as u8)),
            '\0'..='\u{7F}' => None,
            _ if contains(LETTERS, character) => Some(LETTER),
            _ if contains(PUNCTUATION, character) => Some(MARK),
            _ => None,
        }
    }

    /// All of them.
    pub(super) fn all() -> impl Iterator<Item = Self> {
        let ascii = (0..NUM_ASCII).filter_map(|byte| Self::of(char::from(byte)));
        ascii.chain([LETTER, MARK])
    }

    pub(super) fn index(self) -> usize {
        usize::from(self.0)
    }

    /// Whether it is a blank, tab, newline or carriage return.
    pub(super) fn is_whitespace(self) -> bool {
        self.0.is_ascii_whitespace()
    }

    /// The characters that it stands for.
    fn ranges(self) -> Vec<(char, char)> {
        match self {
            LETTER => LETTERS.to_vec(),
            MARK => PUNCTUATION.to_vec(),
            Self(byte) => vec![(char::from(byte), char::from(byte))],
        }
    }
}

fn contains(ranges: &[(char, char)], character: char) -> bool {
    ranges.iter().any(|&(first, last)| (first..=last).contains(&character))
}

// === impl Symbols ===

impl Symbols {
    pub(super) const EMPTY: Self = Self { ascii: 0, groups: 0 };

    pub(super) fn one(symbol: Symbol) -> Self {
        [symbol].into_iter().collect()
    }

    /// The symbols that stand for some character of `class`.
    pub(super) fn touching(class: &ClassUnicode) -> Self {
        let touches = |&(first, last): &(char, char)| {
            class.ranges().iter().any(|range| range.start() <= last && first <= range.end())
        };
        Symbol::all().filter(|symbol| symbol.ranges().iter().any(touches)).collect()
    }

    /// The symbols all of whose characters are in `class`.
    pub(super) fn within(class: &ClassUnicode) -> Self {
        let lies = |&(first, last): &(char, char)| {
            class.ranges().iter().any(|range| range.start() <= first && last <= range.end())
        };
        Symbol::all().filter(|symbol| symbol.ranges().iter().all(lies)).collect()
    }

    pub(super) fn contains(self, symbol: Symbol) -> bool {
        match symbol.0.checked_sub(NUM_ASCII) {
            None => self.ascii >> symbol.0 & 1 == 1,
            Some(group) => self.groups >> group & 1 == 1,
        }
    }

    pub(super) fn insert(&mut self, symbol: Symbol) {
        match symbol.0.checked_sub(NUM_ASCII) {
            None => self.ascii |= 1 << symbol.0,
            Some(group) => self.groups |= 1 << group,
        }
    }

    pub(super) fn remove(&mut self, other: Self) {
        self.ascii &= !other.ascii;
        self.groups &= !other.groups;
    }

    pub(super) fn union(self, other: Self) -> Self {
        Self { ascii: self.ascii | other.ascii, groups: self.groups | other.groups }
    }

    pub(super) fn iter(self) -> impl Iterator<Item = Symbol> {
        Symbol::all().filter(move |&symbol| self.contains(symbol))
    }
}

impl FromIterator<Symbol> for Symbols {
    fn from_iter<T: IntoIterator<Item = Symbol>>(symbols: T) -> Self {
        let mut set = Self::default();
        symbols.into_iter().for_each(|symbol| set.insert(symbol));
        set
    }
}

#[cfg(test)]
mod tests {
    use tokenizers::{NormalizedString, Normalizer, normalizers::unicode::NFC};

    use super::*;

    #[test]
    fn no_character_composes_with_what_stands_before_it() {
        let normalise = |text: &str| {
            let mut normalised = NormalizedString::from(text);
            NFC.normalize(&mut normalised).unwrap();
            normalised.get().to_owned()
        };
        let characters =
            Symbol::all().flat_map(|symbol| symbol.ranges()).flat_map(|(first, last)| first..=last);
        let characters = characters.collect::<Vec<_>>();
        // Bases that compose with much, and marks that wait for a base.
        for before in ["e", "ㄱ", "\u{1100}", "가", "は", "न", "\u{627}", "\u{301}", "\u{3099}"] {
            let after = |before: &str| {
                characters.iter().map(|character| format!("{before}{character}|")).collect::<String>()
            };
            assert!(normalise(&after(before)) == after(&normalise(before)), "{before}");
        }
    }
}
