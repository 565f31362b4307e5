//! A message of a chat: as its client wrote it, and as templates see it.

use std::sync::Arc;

use minijinja::Value;
use minijinja::value::{Enumerator, Object};
use serde_json::{Map, Value as Json};

/// Names under which clients pass a message's reasoning; templates read the first, some the second.
const REASONING_FIELDS: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// A message: fields in the order in which they were written, each name once.
///
/// Text is shared from the request's body to the template. It is most of a long chat, and a chat comes again with each turn.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Message {
    fields: Vec<(Box<str>, Field)>,
}

/// The value of a field.
#[derive(Debug, Clone, PartialEq)]
pub enum Field {
    /// A string.
    Text(Arc<str>),
    /// Anything else.
    Json(Json),
}

impl Message {
    /// The field of this name.
    pub fn get(&self, name: &str) -> Option<&Field> {
        self.fields.iter().find(|(other, _)| **other == *name).map(|(_, field)| field)
    }

    /// The text of this name; `None` if there is none, or if it is no text.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.get(name)?.as_str()
    }

    /// Sets a field, in its place if there is one of its name, or else as the last.
    pub fn set(&mut self, name: &str, field: Field) {
        match self.fields.iter_mut().find(|(other, _)| **other == *name) {
            Some((_, old)) => *old = field,
            None => self.fields.push((name.into(), field)),
        }
    }

    /// Takes a field out.
    pub fn remove(&mut self, name: &str) -> Option<Field> {
        let index = self.fields.iter().position(|(other, _)| **other == *name)?;
        Some(self.fields.remove(index).1)
    }

    /// The fields, in order.
    pub fn fields(&self) -> impl Iterator<Item = (&str, &Field)> {
        self.fields.iter().map(|(name, field)| (&**name, field))
    }

    /// As templates see it: without null fields, and with reasoning under each of its names, as in `transformers`.
    pub(super) fn prepared(self: &Arc<Self>) -> Arc<Self> {
        let is_null = |field: &Field| *field == Field::Json(Json::Null);
        let is_plain = |(name, field): (&str, &Field)| !is_null(field) && !REASONING_FIELDS.contains(&name);
        if self.fields().all(is_plain) {
            return Arc::clone(self);
        }
        let mut message = Self::clone(self);
        message.fields.retain(|(_, field)| !is_null(field));
        if let Some(reasoning) = REASONING_FIELDS.into_iter().find_map(|name| message.get(name).cloned()) {
            if message.get("thinking").is_none() {
                message.set("thinking", reasoning.clone());
            }
            message.set("reasoning_content", reasoning);
        }
        Arc::new(message)
    }
}

impl From<Map<String, Json>> for Message {
    fn from(fields: Map<String, Json>) -> Self {
        let field = |(name, value): (String, Json)| (name.into_boxed_str(), Field::from(value));
        Self { fields: fields.into_iter().map(field).collect() }
    }
}

impl Object for Message {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.get(key.as_str()?).map(Field::value)
    }

    fn get_value_by_str(self: &Arc<Self>, key: &str) -> Option<Value> {
        self.get(key).map(Field::value)
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values(self.fields().map(|(name, _)| Value::from(name)).collect())
    }
}

// === impl Field ===

impl Field {
    /// The text, if it is one.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Json(_) => None,
        }
    }

    fn value(&self) -> Value {
        match self {
            Self::Text(text) => Value::from(Arc::clone(text)),
            Self::Json(value) => Value::from_serialize(value),
        }
    }
}

impl From<Json> for Field {
    fn from(value: Json) -> Self {
        match value {
            Json::String(text) => Self::Text(text.into()),
            other => Self::Json(other),
        }
    }
}

impl From<&str> for Field {
    fn from(text: &str) -> Self {
        Self::Text(text.into())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn message(fields: Json) -> Arc<Message> {
        let Json::Object(fields) = fields else { panic!("{fields}") };
        Arc::new(fields.into())
    }

    #[test]
    fn templates_see_reasoning_under_each_name_and_no_null() {
        for (written, seen) in [
            (json!({"role": "user", "content": "a"}), json!({"role": "user", "content": "a"})),
            (json!({"a": null, "b": 1}), json!({"b": 1})),
            (
                json!({"reasoning": "r", "content": "a"}),
                json!({"reasoning": "r", "content": "a", "thinking": "r", "reasoning_content": "r"}),
            ),
            (
                json!({"thinking": "t", "reasoning_content": "r"}),
                json!({"thinking": "t", "reasoning_content": "r"}),
            ),
            (
                json!({"thinking": "t", "reasoning_content": null}),
                json!({"thinking": "t", "reasoning_content": "t"}),
            ),
        ] {
            assert_eq!(message(written.clone()).prepared(), message(seen), "{written}");
        }
    }

    #[test]
    fn text_is_not_copied() {
        let message = message(json!({"content": "a text that is too long to be kept in a value itself"}));
        let value = Value::from_dyn_object(message.prepared()).get_attr("content").unwrap();
        assert!(std::ptr::eq(value.as_str().unwrap(), message.text("content").unwrap()));
    }
}
