//! Cuts between two characters at which no word of the pre-tokeniser can go on.
//!
//! Between `a` and `b` is a cut if, in every step of the pre-tokeniser, nothing that has read `a` can read `b`, and if in
//! some step a word surely begins at `b`. Then no attempt at a word crosses the cut and none before it sees past it, so
//! each step finds the same words on both sides with the other side there or not. Added tokens are found before words are: no
//! pair that stands within one is a cut.
//!
//! Source of the expressions: the `Split`, `Digits` and `ByteLevel` pre-tokenisers of Hugging Face's `tokenizers`.

use serde_json::Value as Json;
use tokenizers::Tokenizer as Pipeline;
use tokenizers::tokenizer::AddedToken;

use super::expression::Reach;
use super::symbols::{Symbol, Symbols};

/// What `ByteLevel` cuts with.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// The pairs of symbols between which a text may be cut.
pub(crate) struct Pairs {
    /// For each symbol before the cut, those after it.
    after: Vec<Symbols>,
}

impl Pairs {
    /// `None` if a part of the pipeline is not among those about which something is proven.
    pub(super) fn of(pipeline: &Pipeline) -> Option<Self> {
        let composes = match pipeline.get_normalizer() {
            None => false,
            Some(normalizer) => only_composes(&serde_json::to_value(normalizer).ok()?).then_some(true)?,
        };
        let pre_tokenizer = serde_json::to_value(pipeline.get_pre_tokenizer()?).ok()?;
        let mut pairs = Self::between_words(&pre_tokenizer)?;
        for token in pipeline.get_added_vocabulary().get_added_tokens_decoder().values() {
            pairs.keep_whole(token, composes)?;
        }
        pairs.after.iter().any(|symbols| *symbols != Symbols::EMPTY).then_some(pairs)
    }

    /// Pairs of which `pre_tokenizer` makes two words.
    fn between_words(pre_tokenizer: &Json) -> Option<Self> {
        let mut allowed: Symbols = Symbol::all().collect();
        let mut begins = Symbols::EMPTY;
        let mut steps = Reach::nothing().steps;
        for part in flatten(pre_tokenizer, "pretokenizers") {
            let reach = reach(part)?;
            begins = begins.union(reach.begins);
            for (all, these) in steps.iter_mut().zip(reach.steps) {
                *all = all.union(these);
            }
            // It puts a space before every word that has none, so the second part must begin with one.
            if part["add_prefix_space"] == true {
                allowed = Symbol::of(' ').into_iter().collect();
            }
        }
        let begins: Symbols = begins.iter().filter(|&symbol| allowed.contains(symbol)).collect();
        let after = |index: usize| {
            let mut after = begins;
            after.remove(steps[index]);
            after
        };
        Some(Self { after: (0..Symbol::COUNT).map(after).collect() })
    }

    /// Takes away the pairs that may stand within `token`; `None` if it looks at more than its own characters.
    fn keep_whole(&mut self, token: &AddedToken, composes: bool) -> Option<()> {
        if token.single_word || (composes && token.normalized && !token.content.is_ascii()) {
            return None;
        }
        let symbols = token.content.chars().map(Symbol::of).collect::<Vec<_>>();
        for pair in symbols.windows(2) {
            if let &[Some(first), Some(second)] = pair {
                self.after[first.index()].remove(Symbols::one(second));
            }
        }
        let blanks: Symbols = Symbol::all().filter(|symbol| symbol.is_whitespace()).collect();
        if token.rstrip {
            self.after.iter_mut().for_each(|after| after.remove(blanks));
        }
        if token.lstrip {
            blanks.iter().for_each(|blank| self.after[blank.index()] = Symbols::EMPTY);
        }
        Some(())
    }

    /// Whether there is a cut at byte `at`. The character after the next must be a symbol too: a combining mark there
    /// could change the one that the cut stands before.
    pub(super) fn is_cut(&self, text: &str, at: usize) -> bool {
        let (before, after) = text.split_at(at);
        let mut after = after.chars();
        let symbol = |character: Option<char>| character.and_then(Symbol::of);
        let Some(first) = symbol(before.chars().next_back()) else { return false };
        let Some(second) = symbol(after.next()) else { return false };
        self.after[first.index()].contains(second) && symbol(after.next()).is_some()
    }

    pub(super) fn next(&self, text: &str, from: usize) -> Option<usize> {
        let from = (from..text.len()).find(|&at| text.is_char_boundary(at))?;
        let (before, after) = text.split_at(from);
        let mut before = before.chars().next_back().and_then(Symbol::of);
        let mut symbols =
            after.char_indices().map(|(offset, next)| (from + offset, Symbol::of(next))).peekable();
        while let Some((at, symbol)) = symbols.next() {
            // As in `is_cut`, with each character looked at once.
            let meets =
                before.zip(symbol).is_some_and(|(first, second)| self.after[first.index()].contains(second));
            if meets && symbols.peek().is_some_and(|(_, third)| third.is_some()) {
                return Some(at);
            }
            before = symbol;
        }
        None
    }
}

/// Whether a normaliser does nothing but bring text to Unicode's composed form.
fn only_composes(normalizer: &Json) -> bool {
    flatten(normalizer, "normalizers").all(|part| part["type"] == "NFC")
}

/// The parts of a sequence, or the one part that it is.
fn flatten<'a>(part: &'a Json, parts: &str) -> Box<dyn Iterator<Item = &'a Json> + 'a> {
    match &part[parts] {
        Json::Array(inner) => {
            let parts = parts.to_owned();
            Box::new(inner.iter().flat_map(move |part| flatten(part, &parts)))
        }
        _ => Box::new(std::iter::once(part)),
    }
}

/// What one step of a pre-tokeniser can do where two symbols meet.
fn reach(part: &Json) -> Option<Reach> {
    let digits: Symbols = ('0'..='9').filter_map(Symbol::of).collect();
    match part["type"].as_str()? {
        "ByteLevel" if part["use_regex"] == false => Some(Reach::nothing()),
        "ByteLevel" => Reach::of(GPT2),
        "Digits" => {
            let mut reach = Reach::nothing();
            reach.begins = digits;
            if part["individual_digits"] != true {
                reach.step(digits, digits);
            }
            Some(reach)
        }
        "Split" => match (part["behavior"].as_str()?, part["invert"].as_bool()?) {
            ("Isolated", false) | ("Removed", true) => Reach::of(part["pattern"]["Regex"].as_str()?),
            _ => None,
        },
        _ => None,
    }
}
