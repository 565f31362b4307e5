//! Filters and tests that behave otherwise in Jinja2 than in minijinja.

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, Error, Value};

use super::{json, python};

/// Puts them in place.
pub(super) fn add_to(environment: &mut Environment<'static>) {
    environment.add_filter("tojson", json::to_json);
    environment.add_filter("string", |value: Value| python::to_str(&value).into_owned());
    environment.add_filter("join", join);
    environment.add_filter("int", int);
    environment.add_filter("float", float);
    environment.add_filter("round", round);
    environment.add_filter("replace", replace);
    environment.add_test("sequence", is_sequence);
    environment.add_test("callable", |value: &Value| value.kind() == ValueKind::Plain);
}

/// Whatever has a length and can be indexed: strings and mappings too.
fn is_sequence(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Seq | ValueKind::String | ValueKind::Map)
}

/// `value | replace(old, new, count=None)`.
fn replace(value: &Value, old: &str, new: &str, count: Option<usize>) -> String {
    let text = python::to_str(value);
    count.map_or_else(|| text.replace(old, new), |count| text.replacen(old, new, count))
}

/// `value | round(precision=0, method="common")`; halves go to the even neighbour, as in Python. Always a float.
fn round(value: f64, precision: Option<i32>, method: Option<&str>, kwargs: Kwargs) -> Result<f64, Error> {
    let precision = kwargs.get::<Option<i32>>("precision")?.or(precision).unwrap_or(0).clamp(-300, 300);
    let method = kwargs.get::<Option<&str>>("method")?.or(method).unwrap_or("common");
    kwargs.assert_all_used()?;
    let scale = 10f64.powi(precision);
    Ok(match (method, usize::try_from(precision)) {
        ("floor", _) => (value * scale).floor() / scale,
        ("ceil", _) => (value * scale).ceil() / scale,
        // Formatting rounds the exact value, which a product with a power of ten would not be.
        (_, Ok(digits)) => format!("{value:.digits$}").parse().unwrap_or(value),
        (_, Err(_)) => (value * scale).round_ties_even() / scale,
    })
}

/// `value | join(separator="", attribute=None)`, each element as Python prints it.
fn join(
    value: &Value,
    separator: Option<&str>,
    attribute: Option<&str>,
    kwargs: Kwargs,
) -> Result<String, Error> {
    let separator = kwargs.get::<Option<&str>>("d")?.or(separator).unwrap_or_default();
    let attribute = kwargs.get::<Option<&str>>("attribute")?.or(attribute);
    kwargs.assert_all_used()?;
    let mut output = String::new();
    for (index, element) in value.try_iter()?.enumerate() {
        output.push_str(if index > 0 { separator } else { "" });
        let element = attribute.map_or(Ok(element.clone()), |name| element.get_attr(name))?;
        output.push_str(&python::to_str(&element));
    }
    Ok(output)
}

/// `value | int(default=0, base=10)`: the default where Python's `int` would fail.
fn int(value: &Value, default: Option<i64>, base: Option<u32>, kwargs: Kwargs) -> Result<Value, Error> {
    let default = kwargs.get::<Option<i64>>("default")?.or(default).unwrap_or(0);
    let base = kwargs.get::<Option<u32>>("base")?.or(base).unwrap_or(10);
    kwargs.assert_all_used()?;
    Ok(match value.kind() {
        ValueKind::Bool => Value::from(i64::from(value.is_true())),
        ValueKind::Number if value.is_integer() => value.clone(),
        ValueKind::Number => truncate(f64::try_from(value.clone())?, default),
        ValueKind::String => {
            let text = value.as_str().unwrap_or_default().trim();
            let digits = text.replace('_', "");
            match i64::from_str_radix(&digits, base.clamp(2, 36)) {
                Ok(number) => Value::from(number),
                // "3.7" is 3, as Jinja2 has it; Python's own `int` would fail.
                Err(_) => text.parse().map_or(Value::from(default), |number| truncate(number, default)),
            }
        }
        _ => Value::from(default),
    })
}

/// Towards zero; the default for what has no integer.
fn truncate(number: f64, default: i64) -> Value {
    const LIMIT: f64 = 9.0e18;
    if number.abs() < LIMIT {
        #[expect(clippy::cast_possible_truncation, reason = "that is what it is for; the range is checked")]
        return Value::from(number as i64);
    }
    Value::from(default)
}

/// `value | float(default=0.0)`.
fn float(value: &Value, default: Option<f64>, kwargs: Kwargs) -> Result<f64, Error> {
    let default = kwargs.get::<Option<f64>>("default")?.or(default).unwrap_or(0.0);
    kwargs.assert_all_used()?;
    Ok(match value.kind() {
        ValueKind::Bool => f64::from(u8::from(value.is_true())),
        ValueKind::Number => f64::try_from(value.clone())?,
        ValueKind::String => value.as_str().unwrap_or_default().trim().parse().unwrap_or(default),
        _ => default,
    })
}
