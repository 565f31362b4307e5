//! JSON whose objects have every key once. A plain [`Value`] keeps the last of two, and whoever looked at the request before us may
//! have seen the first.

use std::{borrow::Cow, marker::PhantomData};

use anaphora_text::{Field, Message};
use serde::{Deserialize, Deserializer, de};
use serde_json::{Map, Number, Value};

/// A JSON object without duplicate keys, at any depth.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Object(pub Map<String, Value>);

/// A message of a chat, likewise.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ChatMessage(pub Message);

/// A JSON value without duplicate keys, at any depth.
struct Strict(Value);

/// A field of a message, likewise. Text goes at once to where it stays.
struct StrictField(Field);

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match deserializer.deserialize_map(Visitor(PhantomData))? {
            Strict(Value::Object(map)) => Ok(Self(map)),
            Strict(other) => Err(de::Error::custom(format_args!("expected an object, not {other}"))),
        }
    }
}

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Visitor(PhantomData))
    }
}

impl<'de> Deserialize<'de> for StrictField {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Visitor(PhantomData))
    }
}

/// What a value becomes.
trait Build: From<Strict> {
    fn text(text: &str) -> Self;
}

impl Build for Strict {
    fn text(text: &str) -> Self {
        Self(text.into())
    }
}

impl Build for StrictField {
    fn text(text: &str) -> Self {
        Self(text.into())
    }
}

impl From<Strict> for StrictField {
    fn from(Strict(value): Strict) -> Self {
        Self(value.into())
    }
}

struct Visitor<T>(PhantomData<T>);

impl<'de, T: Build> de::Visitor<'de> for Visitor<T> {
    type Value = T;

    fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("a JSON object")
    }

    fn visit_unit<E>(self) -> Result<T, E> {
        Ok(Strict(Value::Null).into())
    }

    fn visit_bool<E>(self, value: bool) -> Result<T, E> {
        Ok(Strict(value.into()).into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<T, E> {
        Ok(Strict(value.into()).into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<T, E> {
        Ok(Strict(value.into()).into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<T, E> {
        Ok(Strict(Number::from_f64(value).map_or(Value::Null, Value::Number)).into())
    }

    fn visit_str<E>(self, value: &str) -> Result<T, E> {
        Ok(T::text(value))
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, mut items: A) -> Result<T, A::Error> {
        let mut values = Vec::new();
        while let Some(Strict(value)) = items.next_element()? {
            values.push(value);
        }
        Ok(Strict(Value::Array(values)).into())
    }

    fn visit_map<A: de::MapAccess<'de>>(self, mut entries: A) -> Result<T, A::Error> {
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            if map.contains_key(&key) {
                return Err(de::Error::custom(format_args!("duplicate field `{key}`")));
            }
            let Strict(value) = entries.next_value()?;
            map.insert(key, value);
        }
        Ok(Strict(Value::Object(map)).into())
    }
}

// === impl ChatMessage ===

impl<'de> Deserialize<'de> for ChatMessage {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(MessageVisitor)
    }
}

struct MessageVisitor;

impl<'de> de::Visitor<'de> for MessageVisitor {
    type Value = ChatMessage;

    fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("a JSON object")
    }

    fn visit_map<A: de::MapAccess<'de>>(self, mut entries: A) -> Result<ChatMessage, A::Error> {
        let mut message = Message::default();
        while let Some(Text(name)) = entries.next_key()? {
            if message.get(&name).is_some() {
                return Err(de::Error::custom(format_args!("duplicate field `{name}`")));
            }
            let StrictField(field) = entries.next_value()?;
            message.set(&name, field);
        }
        Ok(ChatMessage(message))
    }
}

/// A string that is borrowed if it can be.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_key_is_there_twice() {
        let good = r#"{"a":[1,-2,0.5,null,true,{"b":"c"}],"d":{}}"#;
        let Object(map) = serde_json::from_str(good).unwrap();
        assert_eq!(Value::Object(map).to_string(), good);
        for bad in [r#"{"a":1,"a":1}"#, r#"{"a":[{"b":1,"b":2}]}"#, "[]", "1", r#""a""#, "null"] {
            assert!(serde_json::from_str::<Object>(bad).is_err(), "{bad}");
            assert!(serde_json::from_str::<ChatMessage>(bad).is_err(), "{bad}");
        }
        let ChatMessage(message) = serde_json::from_str(good).unwrap();
        assert_eq!(message, serde_json::from_str::<Map<String, Value>>(good).unwrap().into());
    }
}
