//! `/v1/completions`.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser::SerializeMap as _};

use super::openai::{CommonRequest, FinishReason, Usage};

/// Body of `/v1/completions`.
#[derive(Clone, Debug)]
pub struct CompletionRequest {
    /// One prompt or several.
    pub prompt: Prompts,
    /// What else only text completions have.
    pub completion: CompletionFields,
    /// What they share with chat.
    pub common: CommonRequest,
}

/// The options of a completion request that chat does not have.
#[derive(Clone, Debug, Deserialize)]
pub struct CompletionFields {
    /// Generate so many, answer with the `n` that have the best mean log-probability.
    #[serde(default)]
    pub best_of: Option<u32>,
    /// Put the prompt before the text.
    #[serde(default)]
    pub echo: Option<bool>,
    /// Report the log-probability of each token and so many likeliest ones.
    #[serde(default)]
    pub logprobs: Option<u32>,
}

/// `prompt`: a string, an array of strings, an array of token ids, or an array of such arrays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompts {
    /// To tokenise.
    Text(Vec<String>),
    /// Tokenised.
    Tokens(Vec<Vec<u32>>),
}

/// An element of a `prompt` array.
enum Item {
    Text(String),
    Token(u32),
    Tokens(Vec<u32>),
}

struct ItemVisitor;

impl<'de> de::Visitor<'de> for ItemVisitor {
    type Value = Item;

    fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("a string, a token id or an array of token ids")
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Item, E> {
        Ok(Item::Text(value.to_owned()))
    }

    fn visit_string<E: de::Error>(self, value: String) -> Result<Item, E> {
        Ok(Item::Text(value))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Item, E> {
        let unexpected = de::Unexpected::Unsigned(value);
        u32::try_from(value).map(Item::Token).map_err(|_| E::invalid_value(unexpected, &"a token id"))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Item, E> {
        Err(E::invalid_value(de::Unexpected::Signed(value), &"a token id"))
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, mut items: A) -> Result<Item, A::Error> {
        let mut tokens = Vec::new();
        while let Some(token) = items.next_element()? {
            tokens.push(token);
        }
        Ok(Item::Tokens(tokens))
    }
}

impl<'de> Deserialize<'de> for Item {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ItemVisitor)
    }
}

impl<'de> Deserialize<'de> for Prompts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Prompts;

            fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str(
                    "a string, an array of strings, an array of token ids or an array of such arrays",
                )
            }

            fn visit_str<E: de::Error>(self, value: &str) -> Result<Prompts, E> {
                Ok(Prompts::Text(vec![value.to_owned()]))
            }

            fn visit_string<E: de::Error>(self, value: String) -> Result<Prompts, E> {
                Ok(Prompts::Text(vec![value]))
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, mut items: A) -> Result<Prompts, A::Error> {
                match items.next_element()? {
                    None => Ok(Prompts::Text(Vec::new())),
                    Some(Item::Text(first)) => collect(first, items).map(Prompts::Text),
                    Some(Item::Token(first)) => {
                        collect(first, items).map(|tokens| Prompts::Tokens(vec![tokens]))
                    }
                    Some(Item::Tokens(first)) => collect(first, items).map(Prompts::Tokens),
                }
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// The first element and all that follow, which must be of its type.
fn collect<'de, T: Deserialize<'de>, A: de::SeqAccess<'de>>(
    first: T,
    mut items: A,
) -> Result<Vec<T>, A::Error> {
    let mut values = vec![first];
    while let Some(value) = items.next_element()? {
        values.push(value);
    }
    Ok(values)
}

/// The answer, and each event of a stream.
#[derive(Debug, Serialize)]
pub struct Completion<'a> {
    /// `cmpl-…`.
    pub id: &'a str,
    /// "`text_completion`".
    pub object: &'static str,
    /// Unix time, in seconds.
    pub created: u64,
    /// The served name.
    pub model: &'a str,
    /// Version of anaphora.
    pub system_fingerprint: &'static str,
    /// By index; in a stream one, and none in the event that brings the usage.
    pub choices: &'a [CompletionChoice],
    /// Absent in a stream without `include_usage`; with it `null` in all events but the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Option<Usage>>,
}

/// One continuation of one prompt.
#[derive(Debug, Serialize)]
pub struct CompletionChoice {
    /// `prompt * n + choice`.
    pub index: usize,
    /// The text; in a stream what is new.
    pub text: String,
    /// `null` unless asked for.
    pub logprobs: Option<CompletionLogprobs>,
    /// `null` in all events of a stream but the choice's last.
    pub finish_reason: Option<FinishReason>,
}

/// Log-probabilities, as parallel arrays with one element per token.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct CompletionLogprobs {
    /// Where the token begins in the choice's whole text, in characters.
    pub text_offset: Vec<usize>,
    /// Natural logarithm of its probability.
    pub token_logprobs: Vec<f32>,
    /// Its text.
    pub tokens: Vec<String>,
    /// The likeliest tokens.
    pub top_logprobs: Vec<TopLogprobs>,
}

/// Tokens' texts with their log-probabilities, likeliest first; a JSON object. Of two tokens with one text only the likelier
/// is there.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TopLogprobs(pub Vec<(String, f32)>);

impl Serialize for TopLogprobs {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (index, (text, logprob)) in self.0.iter().enumerate() {
            if !self.0[..index].iter().any(|(earlier, _)| earlier == text) {
                map.serialize_entry(text, logprob)?;
            }
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::{Prompts, TopLogprobs};

    #[test]
    fn prompts() {
        let text = |items: &[&str]| Prompts::Text(items.iter().map(ToString::to_string).collect());
        for (json, expect) in [
            (r#""a""#, text(&["a"])),
            (r#"["a","b"]"#, text(&["a", "b"])),
            ("[]", text(&[])),
            ("[1,2]", Prompts::Tokens(vec![vec![1, 2]])),
            ("[[1],[2,3]]", Prompts::Tokens(vec![vec![1], vec![2, 3]])),
            ("[[]]", Prompts::Tokens(vec![vec![]])),
        ] {
            assert_eq!(serde_json::from_str::<Prompts>(json).unwrap(), expect, "{json}");
        }
        for json in
            ["3", "null", r#"["a",1]"#, r#"[1,"a"]"#, "[-1]", "[1.5]", "[4294967296]", "[[[1]]]", "{}"]
        {
            assert!(serde_json::from_str::<Prompts>(json).is_err(), "{json}");
        }
    }

    #[test]
    fn top_logprobs_keep_their_order_and_the_likelier_of_two() {
        let top = TopLogprobs(vec![("b".into(), -0.1), ("a".into(), -2.5), ("b".into(), -3.0)]);
        assert_eq!(serde_json::to_string(&top).unwrap(), r#"{"b":-0.1,"a":-2.5}"#);
    }
}
