//! The `tojson` filter as chat templates know it: Python's `json.dumps(value, ensure_ascii=False, …)`.

use minijinja::value::Kwargs;
use minijinja::{Error, ErrorKind, Value};
use serde_json::Value as Json;

use super::python;

/// How `json.dumps` was asked to write.
struct Style {
    ensure_ascii: bool,
    /// Text of one level of indentation; `None` writes everything on one line.
    indent: Option<String>,
    item_separator: String,
    key_separator: String,
    sort_keys: bool,
}

/// `value | tojson(ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
pub(super) fn to_json(value: &Value, ensure_ascii: Option<bool>, kwargs: Kwargs) -> Result<Value, Error> {
    let indent = match kwargs.get::<Option<Value>>("indent")? {
        None => None,
        Some(indent) if indent.is_none() => None,
        Some(indent) => Some(match indent.as_str() {
            Some(text) => text.to_owned(),
            None => " ".repeat(usize::try_from(indent)?.min(64)),
        }),
    };
    let (item_separator, key_separator) = match kwargs.get::<Option<Value>>("separators")? {
        Some(pair) if !pair.is_none() => (separator(&pair, 0)?, separator(&pair, 1)?),
        _ => (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()),
    };
    let ensure_ascii = kwargs.get::<Option<bool>>("ensure_ascii")?.or(ensure_ascii).unwrap_or(false);
    let sort_keys = kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    kwargs.assert_all_used()?;
    if value.is_undefined() {
        return Err(Error::new(ErrorKind::UndefinedError, "an undefined value has no JSON"));
    }
    let value = serde_json::to_value(value)
        .map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))?;
    let style = Style { ensure_ascii, indent, item_separator, key_separator, sort_keys };
    let mut output = String::new();
    style.write(&mut output, &value, 0);
    Ok(Value::from(output))
}

fn separator(pair: &Value, index: usize) -> Result<String, Error> {
    let text = pair.get_item(&Value::from(index))?;
    let text = text
        .as_str()
        .ok_or_else(|| Error::new(ErrorKind::InvalidOperation, "separators must be two strings"))?;
    Ok(text.to_owned())
}

impl Style {
    fn write(&self, output: &mut String, value: &Json, depth: usize) {
        match value {
            Json::Null => output.push_str("null"),
            Json::Bool(flag) => output.push_str(if *flag { "true" } else { "false" }),
            Json::Number(number) => match number.as_f64().filter(|_| number.is_f64()) {
                Some(float) => python::write_float(output, float),
                None => output.push_str(&number.to_string()),
            },
            Json::String(text) => self.write_string(output, text),
            Json::Array(values) => {
                self.write_items(output, ('[', ']'), values, depth, |style, output, value| {
                    style.write(output, value, depth + 1);
                });
            }
            Json::Object(fields) => {
                let mut fields = fields.iter().collect::<Vec<_>>();
                if self.sort_keys {
                    fields.sort_by_key(|(name, _)| *name);
                }
                self.write_items(output, ('{', '}'), &fields, depth, |style, output, (name, value)| {
                    style.write_string(output, name);
                    output.push_str(&style.key_separator);
                    style.write(output, value, depth + 1);
                });
            }
        }
    }

    fn write_items<T>(
        &self,
        output: &mut String,
        (open, close): (char, char),
        items: &[T],
        depth: usize,
        mut write: impl FnMut(&Self, &mut String, &T),
    ) {
        output.push(open);
        for (index, item) in items.iter().enumerate() {
            output.push_str(if index > 0 { &self.item_separator } else { "" });
            self.new_line(output, depth + 1);
            write(self, output, item);
        }
        if !items.is_empty() {
            self.new_line(output, depth);
        }
        output.push(close);
    }

    fn new_line(&self, output: &mut String, depth: usize) {
        if let Some(indent) = &self.indent {
            output.push('\n');
            output.extend(std::iter::repeat_n(indent.as_str(), depth));
        }
    }

    fn write_string(&self, output: &mut String, text: &str) {
        let quoted = Json::from(text).to_string();
        if !self.ensure_ascii {
            output.push_str(&quoted);
            return;
        }
        for character in quoted.chars() {
            if character.is_ascii() {
                output.push(character);
            } else {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    output.push_str(&format!("\\u{unit:04x}"));
                }
            }
        }
    }
}
