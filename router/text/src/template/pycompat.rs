//! Methods that templates call on strings, lists and dictionaries, as Python has them.
//!
//! `minijinja-contrib` brings most; here are those that it lacks, counts in bytes instead of characters, or never ends.

use minijinja::value::from_args;
use minijinja::{Error, ErrorKind, State, Value};

pub(super) fn call_method(
    state: &State<'_, '_>,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    if let Some(text) = value.as_str() {
        match method {
            "isdigit" | "isnumeric" | "isspace" | "isalpha" | "isalnum" | "islower" | "isupper"
                if text.is_empty() =>
            {
                return Ok(Value::from(false));
            }
            "index" => {
                let position = find(text, args, |text, what| text.find(what))?;
                let absent = || Error::new(ErrorKind::InvalidOperation, "substring not found");
                return if position == Value::from(-1) { Err(absent()) } else { Ok(position) };
            }
            "ljust" | "rjust" | "center" => return pad(text, method, args),
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

/// Widths beyond this are no layout.
const MAX_WIDTH: usize = 10_000;

/// Filled with spaces, or another character, to a width in characters.
fn pad(text: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    let (width, fill): (usize, Option<&str>) = from_args(args)?;
    let missing = width.min(MAX_WIDTH).saturating_sub(text.chars().count());
    let left = match method {
        "ljust" => 0,
        "rjust" => missing,
        // Python puts the odd one on the left where the width is odd.
        _ => missing / 2 + (missing & width & 1),
    };
    let fill = fill.unwrap_or(" ");
    Ok(Value::from(format!("{}{text}{}", fill.repeat(left), fill.repeat(missing - left))))
}
