//! The wire, as plain structs: what clients send and what they get, field by field. Only serde lives here; what a field
//! *means* is decided in [`crate::admit`].

pub mod cache;
pub mod chat;
pub mod completions;
pub mod fields;
pub mod models;
pub mod openai;
pub mod strict;
pub mod tgi;

use serde::{Deserialize, Deserializer, de};

/// A string or an array of strings: `stop` in every API.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OneOrMany(pub Vec<String>);

impl<'de> Deserialize<'de> for OneOrMany {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = OneOrMany;

            fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str("a string or an array of strings")
            }

            fn visit_str<E: de::Error>(self, value: &str) -> Result<Self::Value, E> {
                Ok(OneOrMany(vec![value.to_owned()]))
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
                let mut values = Vec::new();
                while let Some(item) = items.next_element()? {
                    values.push(item);
                }
                Ok(OneOrMany(values))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::OneOrMany;

    #[test]
    fn one_or_many() {
        let parse = |json| serde_json::from_str::<OneOrMany>(json).map(|OneOrMany(items)| items);
        assert_eq!(parse(r#""a""#).unwrap(), ["a"]);
        assert_eq!(parse(r#"["a","b"]"#).unwrap(), ["a", "b"]);
        assert_eq!(
            parse("3").unwrap_err().to_string(),
            "invalid type: integer `3`, expected a string or an array of strings at line 1 column 1"
        );
    }
}
