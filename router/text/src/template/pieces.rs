//! Sums of texts that are written at once are written piece by piece.
//!
//! ```text
//! {{ '<|im_start|>' + message.role + '\n' + message.content }}
//! {{ '<|im_start|>' }}{{ message.role | as_text }}{{ '\n' }}{{ message.content | as_text }}
//! ```
//! Templates add up each message like this, and every `+` copies all that stands before it. A sum with a string literal in it
//! is a text exactly if each of its parts is one, which the filter sees to; so both lines render the same, or both fail.

use minijinja::{Error, ErrorKind, Value};

/// The filter that takes nothing but text.
pub(super) const AS_TEXT: &str = "as_text";

/// Words that make an expression something else than a sum.
const OPERATORS: [&str; 7] = ["if", "else", "and", "or", "not", "in", "is"];

/// `value`, if `+` would add it to a text.
///
/// # Errors
/// Those of `+`.
pub(super) fn as_text(value: Value) -> Result<Value, Error> {
    if value.as_str().is_some() {
        return Ok(value);
    }
    let message = format!("tried to use + operator on unsupported types string and {}", value.kind());
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

/// The template `source` with its sums of texts in pieces.
pub(super) fn split_sums(source: &str) -> String {
    let mut output = String::with_capacity(source.len() * 2);
    let mut rest = source;
    while let Some(start) = rest.find("{{").into_iter().chain(rest.find("{%")).chain(rest.find("{#")).min() {
        let (text, tag) = rest.split_at(start);
        output.push_str(text);
        let length = match &tag[..2] {
            "{#" => tag.find("#}").map(|end| end + 2),
            "{%" => block_end(tag),
            _ => write_expression(tag, &mut output),
        };
        // What does not end is for the parser to refuse.
        let Some(length) = length else {
            output.push_str(tag);
            return output;
        };
        if !tag.starts_with("{{") {
            output.push_str(&tag[..length]);
        }
        rest = &tag[length..];
    }
    output.push_str(rest);
    output
}

/// Where the block tag that `tag` begins with ends; a raw block ends with its end tag.
fn block_end(tag: &str) -> Option<usize> {
    let end = Parts::of(&tag[2..], "%}")?.end + 4;
    let name = tag[2..end - 2].trim_matches(['-', '+']).trim();
    if name != "raw" {
        return Some(end);
    }
    let last = tag.find("endraw")?;
    Some(last + tag[last..].find("%}")? + 2)
}

/// Writes the expression tag that `tag` begins with, in pieces if it is a sum of texts; returns where it ends.
fn write_expression(tag: &str, output: &mut String) -> Option<usize> {
    let parts = Parts::of(&tag[2..], "}}")?;
    let inner = &tag[2..2 + parts.end];
    match parts.operands(inner) {
        Some(operands) => {
            let trims = |end: bool| if end { "-" } else { "" };
            let (first, last) = (0, operands.len() - 1);
            for (index, operand) in operands.into_iter().enumerate() {
                let before = trims(index == first && inner.starts_with('-'));
                let after = trims(index == last && inner.ends_with('-'));
                let filter = if is_literal(operand) { String::new() } else { format!("| {AS_TEXT} ") };
                output.push_str(&format!("{{{{{before} {operand} {filter}{after}}}}}"));
            }
        }
        None => output.push_str(&tag[..parts.end + 4]),
    }
    Some(parts.end + 4)
}

/// What stands in a tag.
struct Parts {
    /// Where its last two characters begin.
    end: usize,
    /// Where a `+` stands outside of all brackets.
    sums: Vec<usize>,
    /// Whether it may be a sum: there is no other operator outside of all brackets.
    plain: bool,
}

impl Parts {
    /// Reads a tag up to `close`; `None` if it does not end.
    fn of(inner: &str, close: &str) -> Option<Self> {
        let bytes = inner.as_bytes();
        let (mut sums, mut plain, mut depth, mut at) = (Vec::new(), true, 0_usize, 0);
        while at < bytes.len() {
            if depth == 0 && inner[at..].starts_with(close) {
                return Some(Self { end: at, sums, plain });
            }
            let length = match bytes[at] {
                quote @ (b'"' | b'\'') => string_length(&bytes[at..], quote)?,
                b'(' | b'[' | b'{' => {
                    depth += 1;
                    1
                }
                b')' | b']' | b'}' => {
                    depth = depth.checked_sub(1)?;
                    1
                }
                byte if byte.is_ascii_alphabetic() || byte == b'_' => {
                    let is_word = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
                    let length = bytes[at..].iter().take_while(|byte| is_word(byte)).count();
                    plain &= depth > 0 || !OPERATORS.contains(&&inner[at..at + length]);
                    length
                }
                b'+' if depth == 0 => {
                    sums.push(at);
                    1
                }
                // Whitespace control at either end is no operator.
                b'-' if at == 0 || inner[at + 1..].starts_with(close) => 1,
                byte => {
                    plain &= depth > 0 || byte.is_ascii_digit() || b" \t\r\n.|".contains(&byte);
                    inner[at..].chars().next().map_or(1, char::len_utf8)
                }
            };
            at += length;
        }
        None
    }

    /// The parts of the sum, if it is one that a string literal makes a text.
    fn operands<'a>(&self, inner: &'a str) -> Option<Vec<&'a str>> {
        if !self.plain || self.sums.is_empty() {
            return None;
        }
        let ends = self.sums.iter().copied().chain([inner.len()]);
        let starts = [0].into_iter().chain(self.sums.iter().map(|at| at + 1));
        let operands: Vec<&str> =
            starts.zip(ends).map(|(start, end)| inner[start..end].trim_matches('-').trim()).collect();
        let is_sum = operands.iter().any(|operand| is_literal(operand))
            && operands.iter().all(|operand| !operand.is_empty());
        is_sum.then_some(operands)
    }
}

/// Whether `operand` is one string literal.
fn is_literal(operand: &str) -> bool {
    let bytes = operand.as_bytes();
    bytes.first().is_some_and(|&quote| {
        matches!(quote, b'"' | b'\'') && string_length(bytes, quote) == Some(bytes.len())
    })
}

/// The length of the string literal that `bytes` begin with, quotes included.
fn string_length(bytes: &[u8], quote: u8) -> Option<usize> {
    let mut at = 1;
    while *bytes.get(at)? != quote {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    Some(at + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_with_a_literal_are_split() {
        for (source, expect) in [
            ("a{{ 'x' + b }}c", "a{{ 'x' }}{{ b | as_text }}c"),
            ("{{- b['+'] + \"\\\"+\" -}}", "{{- b['+'] | as_text }}{{ \"\\\"+\" -}}"),
            ("{{ f(a + 1) | trim + '\n' }}", "{{ f(a + 1) | trim | as_text }}{{ '\n' }}"),
            (
                "{{ 'é' + b.c[0] + (d if e else 'f') }}",
                "{{ 'é' }}{{ b.c[0] | as_text }}{{ (d if e else 'f') | as_text }}",
            ),
        ] {
            assert_eq!(split_sums(source), expect);
        }
    }

    #[test]
    fn everything_else_stays() {
        for source in [
            "{{ a + b }}",
            "{{ 1 + 2 }}",
            "{{ ['x' + y] }}",
            "{{ 'x' + y if z else w }}",
            "{{ 'x' + y * 2 }}",
            "{{ 'x' + y - z }}",
            "{{ 'x' + -y }}",
            "{{ 'x' ~ y + 'z' }}",
            "{{ 'x' + y == z }}",
            "{{ 'x' + y in z }}",
            "{{ + 'x' }}",
            "{{+ 'x' + y }}",
            "{{ 'x' + y +}}",
            "{# {{ 'x' + y }} #}{{ z }}",
            "{% if \"{{ 'x' + y }}\" %}{% endif %}",
            "{%- raw -%}{{ 'x' + y }}{% endraw %}",
            "{{ 'x' + y",
            "{{ 'x' + y } }",
            "{% if 'x",
            "{# {{ 'x' + y }}",
            "{% raw %}{{ 'x' + y }}",
            "{{ 'x' + {'y': 1}",
        ] {
            assert_eq!(split_sums(source), source);
        }
    }
}
