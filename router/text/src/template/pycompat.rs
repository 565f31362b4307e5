//! Methods that templates call on strings, lists and dictionaries, as Python has them.
//!
//! `minijinja-contrib` brings most; here are those that it lacks, counts in bytes instead of characters, or never ends.

use minijinja::value::from_args;
use minijinja::{Error, State, Value};

pub(super) fn call_method(
    state: &State<'_, '_>,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    if let Some(text) = value.as_str() {
        match method {
            "find" => return find(text, args, |text, what| text.find(what)),
            "rfind" => return find(text, args, |text, what| text.rfind(what)),
            "count" => {
                let (what,): (&str,) = from_args(args)?;
                // Python counts the gaps between characters; the crate's loop would not end.
                let count =
                    if what.is_empty() { text.chars().count() + 1 } else { text.matches(what).count() };
                return Ok(Value::from(count));
            }
            "removeprefix" => {
                let (prefix,): (&str,) = from_args(args)?;
                return Ok(Value::from(text.strip_prefix(prefix).unwrap_or(text)));
            }
            "removesuffix" => {
                let (suffix,): (&str,) = from_args(args)?;
                return Ok(Value::from(text.strip_suffix(suffix).unwrap_or(text)));
            }
            _ => {}
        }
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args)
}

/// The position in characters, or -1.
fn find(text: &str, args: &[Value], search: fn(&str, &str) -> Option<usize>) -> Result<Value, Error> {
    let (what,): (&str,) = from_args(args)?;
    Ok(match search(text, what) {
        Some(position) => Value::from(text[..position].chars().count()),
        None => Value::from(-1),
    })
}
