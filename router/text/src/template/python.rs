//! Values as Python prints them: templates are written against `str()`, and `True` is not `true`.

use std::borrow::Cow;
use std::fmt::Write as _;

use minijinja::Value;
use minijinja::value::ValueKind;

/// `str(value)`. An undefined value is empty.
pub(super) fn to_str(value: &Value) -> Cow<'_, str> {
    match value.as_str() {
        Some(text) => Cow::Borrowed(text),
        None if value.is_undefined() => Cow::Borrowed(""),
        None => {
            let mut text = String::new();
            write_repr(&mut text, value);
            Cow::Owned(text)
        }
    }
}

/// `repr(value)`.
fn write_repr(output: &mut String, value: &Value) {
    match value.kind() {
        ValueKind::None => output.push_str("None"),
        ValueKind::Bool => output.push_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::Number => write_number(output, value),
        ValueKind::String => write_quoted(output, value.as_str().unwrap_or_default()),
        ValueKind::Seq | ValueKind::Iterable => {
            output.push('[');
            for (index, element) in value.try_iter().into_iter().flatten().enumerate() {
                output.push_str(if index > 0 { ", " } else { "" });
                write_repr(output, &element);
            }
            output.push(']');
        }
        ValueKind::Map => {
            output.push('{');
            for (index, key) in value.try_iter().into_iter().flatten().enumerate() {
                output.push_str(if index > 0 { ", " } else { "" });
                write_repr(output, &key);
                output.push_str(": ");
                write_repr(output, &value.get_item(&key).unwrap_or_default());
            }
            output.push('}');
        }
        _ => {
            let _ = write!(output, "{value}");
        }
    }
}

fn write_number(output: &mut String, value: &Value) {
    if value.is_integer() {
        let _ = write!(output, "{value}");
    } else {
        write_float(output, f64::try_from(value.clone()).unwrap_or(f64::NAN));
    }
}

/// `repr` of a float: the shortest digits that read back the same, with an exponent below 1e-4 and from 1e16 on.
pub(super) fn write_float(output: &mut String, number: f64) {
    if number.is_nan() {
        output.push_str("nan");
    } else if number.is_infinite() {
        output.push_str(if number < 0.0 { "-inf" } else { "inf" });
    } else if number != 0.0 && !(1e-4..1e16).contains(&number.abs()) {
        // Rust writes 1e-5 and 1.5e20; Python writes 1e-05 and 1.5e+20.
        let text = format!("{number:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |positive| ('-', positive));
        let _ = write!(output, "{digits}e{sign}{exponent:0>2}");
    } else {
        let _ = write!(output, "{number:?}");
    }
}

fn write_quoted(output: &mut String, text: &str) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    output.push(quote);
    for character in text.chars() {
        match character {
            '\\' => output.push_str("\\\\"),
            '\n' => output.push_str("\\n"),
            '\r' => output.push_str("\\r"),
            '\t' => output.push_str("\\t"),
            character if character == quote => {
                output.push('\\');
                output.push(character);
            }
            character if character.is_control() && u32::from(character) < 0x100 => {
                let _ = write!(output, "\\x{:02x}", u32::from(character));
            }
            character => output.push(character),
        }
    }
    output.push(quote);
}
