//! What a pre-tokeniser's regular expression can do where two symbols meet.
//!
//! The expression is read as a set of alternatives; for each the HIR says which symbol it may read after which other
//! (a [`Reach`]'s `steps`). If nothing that has read `a` can read `b`, then no attempt at a match crosses from `a` to `b`:
//! it ends there just as it would at the end of the text. Backtracking, order of alternatives and greed play no part.

use regex_syntax::hir::{Class, Hir, HirKind, Literal};

use super::symbols::{Symbol, Symbols};

/// Follows a match that no visible character may follow; reads one character beyond it.
const NOT_BEFORE_VISIBLE: &str = r"(?!\S)";

/// What an expression can do where two symbols meet.
#[derive(Debug, Clone)]
pub(super) struct Reach {
    /// For each symbol, those that may be read after it.
    pub(super) steps: Vec<Symbols>,
    /// Symbols at which a match begins if none is under way, whatever follows.
    pub(super) begins: Symbols,
}

impl Reach {
    /// Nothing can be read after anything.
    pub(super) fn nothing() -> Self {
        Self { steps: vec![Symbols::default(); Symbol::COUNT], begins: Symbols::default() }
    }

    /// Reads `expression`; `None` if it has something in it about which nothing is proven.
    pub(super) fn of(expression: &str) -> Option<Self> {
        let mut reach = Self::nothing();
        for alternative in alternatives(expression)? {
            reach.add(alternative)?;
        }
        Some(reach)
    }

    /// Adds an alternative of the expression.
    fn add(&mut self, alternative: &str) -> Option<()> {
        let (body, looks_ahead) = match alternative.strip_suffix(NOT_BEFORE_VISIBLE) {
            Some(body) => (body, true),
            None => (alternative, false),
        };
        let possessive = ["++", "*+", "?+"].iter().any(|quantifier| body.contains(quantifier));
        let hir = regex_syntax::parse(body).ok()?;
        let part = Part::of(&hir, &mut self.steps)?;
        if part.nullable {
            return None;
        }
        if looks_ahead {
            self.step(part.last, Symbol::all().collect());
        } else if !possessive {
            self.begins = self.begins.union(alone(&hir));
        }
        Some(())
    }

    /// `to` may be read after `from`.
    pub(super) fn step(&mut self, from: Symbols, to: Symbols) {
        step(&mut self.steps, from, to);
    }
}

fn step(steps: &mut [Symbols], from: Symbols, to: Symbols) {
    for symbol in from.iter() {
        steps[symbol.index()] = steps[symbol.index()].union(to);
    }
}

/// The alternatives at the top of an expression. `None` for what regex-syntax and Oniguruma read differently: classes
/// within classes, and their operators.
fn alternatives(expression: &str) -> Option<Vec<&str>> {
    let unsure = ["&&", "--", "~~", "(?x", "(?#"];
    if unsure.iter().any(|operator| expression.contains(operator)) {
        return None;
    }
    let (mut parts, mut start, mut depth, mut in_class) = (Vec::new(), 0, 0_usize, false);
    let mut characters = expression.char_indices();
    while let Some((index, character)) = characters.next() {
        match (character, in_class) {
            ('\\', _) => drop(characters.next()),
            ('[', true) => return None,
            ('[', false) => in_class = true,
            (']', true) => in_class = false,
            ('(', false) => depth += 1,
            (')', false) => depth = depth.checked_sub(1)?,
            ('|', false) if depth == 0 => {
                parts.push(&expression[start..index]);
                start = index + 1;
            }
            _ => {}
        }
    }
    parts.push(&expression[start..]);
    Some(parts)
}

/// What a part of an expression reads first and last, and whether it may read nothing.
struct Part {
    first: Symbols,
    last: Symbols,
    nullable: bool,
}

impl Part {
    const EMPTY: Self = Self { first: Symbols::EMPTY, last: Symbols::EMPTY, nullable: true };

    /// Reads `hir` and notes the steps within it; `None` for assertions and bytes.
    fn of(hir: &Hir, steps: &mut [Symbols]) -> Option<Self> {
        match hir.kind() {
            HirKind::Empty => Some(Self::EMPTY),
            HirKind::Look(_) | HirKind::Class(Class::Bytes(_)) => None,
            HirKind::Class(Class::Unicode(class)) => Some(Self::symbols(Symbols::touching(class))),
            HirKind::Literal(Literal(bytes)) => {
                let characters = std::str::from_utf8(bytes).ok()?.chars();
                let parts =
                    characters.map(|character| Self::symbols(Symbol::of(character).into_iter().collect()));
                Some(parts.fold(Self::EMPTY, |before, part| before.then(part, steps)))
            }
            HirKind::Capture(capture) => Self::of(&capture.sub, steps),
            HirKind::Repetition(repetition) => {
                let mut part = Self::of(&repetition.sub, steps)?;
                if repetition.max.is_none_or(|max| max > 1) {
                    step(steps, part.last, part.first);
                }
                part.nullable |= repetition.min == 0;
                Some(part)
            }
            HirKind::Concat(parts) => parts.iter().try_fold(Self::EMPTY, |before, hir| {
                let part = Self::of(hir, steps)?;
                Some(before.then(part, steps))
            }),
            HirKind::Alternation(parts) => {
                let parts = parts.iter().map(|hir| Self::of(hir, steps)).collect::<Option<Vec<_>>>()?;
                parts.into_iter().reduce(Self::or)
            }
        }
    }

    fn symbols(symbols: Symbols) -> Self {
        Self { first: symbols, last: symbols, nullable: false }
    }

    fn then(self, next: Self, steps: &mut [Symbols]) -> Self {
        step(steps, self.last, next.first);
        Self {
            first: if self.nullable { self.first.union(next.first) } else { self.first },
            last: if next.nullable { self.last.union(next.last) } else { next.last },
            nullable: self.nullable && next.nullable,
        }
    }

    fn or(self, other: Self) -> Self {
        Self {
            first: self.first.union(other.first),
            last: self.last.union(other.last),
            nullable: self.nullable || other.nullable,
        }
    }
}

/// The symbols that `hir` matches by themselves, each for all of its characters.
fn alone(hir: &Hir) -> Symbols {
    match hir.kind() {
        HirKind::Empty | HirKind::Look(_) | HirKind::Class(Class::Bytes(_)) => Symbols::EMPTY,
        HirKind::Class(Class::Unicode(class)) => Symbols::within(class),
        HirKind::Literal(Literal(bytes)) => match std::str::from_utf8(bytes).map(|text| text.as_bytes()) {
            Ok(&[byte]) => Symbol::of(char::from(byte)).into_iter().collect(),
            _ => Symbols::EMPTY,
        },
        HirKind::Capture(capture) => alone(&capture.sub),
        HirKind::Repetition(repetition) if repetition.min <= 1 && repetition.max != Some(0) => {
            alone(&repetition.sub)
        }
        HirKind::Repetition(_) => Symbols::EMPTY,
        HirKind::Concat(parts) => {
            let nullable = |hir: &Hir| hir.properties().minimum_len() == Some(0);
            let others =
                |index: usize| parts.iter().enumerate().all(|(other, hir)| other == index || nullable(hir));
            let parts = parts.iter().enumerate().filter(|&(index, _)| others(index));
            parts.map(|(_, hir)| alone(hir)).fold(Symbols::EMPTY, Symbols::union)
        }
        HirKind::Alternation(parts) => parts.iter().map(alone).fold(Symbols::EMPTY, Symbols::union),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether the expression may go on from the first character of `pair` to the second, and whether a match begins
    /// at the second.
    fn meets(expression: &str, pair: &str) -> Option<(bool, bool)> {
        let reach = Reach::of(expression)?;
        let symbols = pair.chars().map(|character| Symbol::of(character).unwrap()).collect::<Vec<_>>();
        let [first, second] = symbols[..] else { panic!("{pair:?}") };
        Some((reach.steps[first.index()].contains(second), reach.begins.contains(second)))
    }

    #[test]
    fn what_follows_what() {
        let gpt2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
        for (expression, pair, expect) in [
            (gpt2, "a ", Some((false, true))),
            (gpt2, "a\n", Some((false, true))),
            (gpt2, "a.", Some((false, true))),
            (gpt2, ".a", Some((false, true))),
            (gpt2, "'s", Some((true, true))),
            (gpt2, "aé", Some((true, true))),
            (gpt2, "中。", Some((false, true))),
            (gpt2, " a", Some((true, true))),
            (gpt2, "\na", Some((true, true))),
            (gpt2, "\n ", Some((true, true))),
            (r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}", ".a", Some((true, true))),
            (r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}", "12", Some((true, true))),
            (r"\p{N}", "12", Some((false, true))),
            (r" ?[^\s\p{L}\p{N}]+[\r\n]*", ".\n", Some((true, false))),
            (r"(?i:'s|'ll)|\s+", "'S", Some((true, false))),
            (r"(ab){2}c", "ba", Some((true, false))),
            (r"a(?:b?c?)d", "ad", Some((true, false))),
            (r"[^\s\p{L}]?+\p{L}+|\s", ".a", Some((true, false))),
            (r"\s+(?!\S)", " a", Some((true, false))),
            (r"a\b|b", "ab", None),
            (r"a(?=b)|b", "ab", None),
            (r"a*|b", "ab", None),
            (r"[a[b]]|b", "ab", None),
            (r"[a-z&&b]|b", "ab", None),
        ] {
            assert_eq!(meets(expression, pair), expect, "{expression} {pair:?}");
        }
    }
}
