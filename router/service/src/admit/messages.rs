//! The messages of a chat: checked one by one, and made into what chat templates expect, with content as one string.
//!
//! Keys that this file does not know go to the template as they are: templates differ in what they read.

use std::sync::Arc;

use anaphora_text::{Field, Message};
use serde_json::Value;

use super::{AdmitError, invalid};
use crate::api::types::strict::ChatMessage;

const ROLES: &str = "`system`, `developer`, `user` or `assistant`";

/// Checks `messages` and returns them as the template wants them.
///
/// # Errors
/// The path of the first thing that cannot be.
pub(super) fn check(messages: Vec<ChatMessage>) -> Result<Vec<Arc<Message>>, AdmitError> {
    if messages.is_empty() {
        return Err(invalid("messages", "`messages` cannot be empty"));
    }
    let check = |(index, ChatMessage(message)): (usize, ChatMessage)| {
        check_message(&format!("messages[{index}]"), message).map(Arc::new)
    };
    messages.into_iter().enumerate().map(check).collect()
}

fn check_message(path: &str, mut message: Message) -> Result<Message, AdmitError> {
    refuse_tools(path, &mut message)?;
    let Some(role) = message.text("role") else {
        return Err(invalid(format!("{path}.role"), format!("`{path}.role` must be {ROLES}")));
    };
    match role {
        "system" | "user" | "assistant" => {}
        // What newer clients call the system: templates know only the older name.
        "developer" => message.set("role", "system".into()),
        "tool" | "function" => {
            return Err(unsupported(format!("{path}.role"), "tool calling is not supported yet"));
        }
        other => {
            let message = format!("`{path}.role` must be {ROLES}. Given: `{other}`");
            return Err(invalid(format!("{path}.role"), message));
        }
    }
    if message.text("content").is_none() {
        let content = text(&format!("{path}.content"), message.get("content"))?;
        message.set("content", content.as_str().into());
    }
    Ok(message)
}

/// Tool calls in the history would be lost on a template that does not know them; saying that there are none is fine.
fn refuse_tools(path: &str, message: &mut Message) -> Result<(), AdmitError> {
    for name in ["tool_calls", "function_call", "tool_call_id", "audio"] {
        let asks_for_nothing = match &message.remove(name) {
            None | Some(Field::Json(Value::Null)) => true,
            Some(Field::Json(Value::Array(items))) => items.is_empty(),
            Some(_) => false,
        };
        if !asks_for_nothing {
            return Err(unsupported(format!("{path}.{name}"), "only text is supported yet"));
        }
    }
    Ok(())
}

/// Content of parts as one string: their texts, put together.
fn text(path: &str, content: Option<&Field>) -> Result<String, AdmitError> {
    match content {
        Some(Field::Json(Value::Array(parts))) => {
            let part = |(index, part)| part_text(&format!("{path}[{index}]"), part);
            parts.iter().enumerate().map(part).collect()
        }
        _ => Err(invalid(path, format!("`{path}` must be a string or an array of parts"))),
    }
}

fn part_text<'a>(path: &str, part: &'a Value) -> Result<&'a str, AdmitError> {
    let Value::Object(part) = part else {
        return Err(invalid(path, format!("`{path}` must be an object with `type` and `text`")));
    };
    match part.get("type").and_then(Value::as_str) {
        Some("text") => match part.get("text") {
            Some(Value::String(text)) => Ok(text),
            _ => Err(invalid(format!("{path}.text"), format!("`{path}.text` must be a string"))),
        },
        Some(other) => Err(unsupported(
            format!("{path}.type"),
            &format!("the model takes text only, and this is `{other}`"),
        )),
        None => Err(invalid(format!("{path}.type"), format!("`{path}.type` must be `text`"))),
    }
}

fn unsupported(param: String, reason: &str) -> AdmitError {
    AdmitError::Unsupported { message: format!("`{param}` is not supported: {reason}"), param }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(messages: &str) -> Result<Vec<Arc<Message>>, String> {
        check(serde_json::from_str(messages).unwrap()).map_err(|error| error.to_string())
    }

    #[test]
    fn messages_become_what_templates_expect() {
        for (messages, expect) in [
            (r#"[{"role":"user","content":"a"}]"#, r#"[{"role":"user","content":"a"}]"#),
            (r#"[{"content":"a","role":"developer"}]"#, r#"[{"content":"a","role":"system"}]"#),
            (
                r#"[{"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}],"name":"n"}]"#,
                r#"[{"role":"user","content":"ab","name":"n"}]"#,
            ),
            (
                r#"[{"role":"assistant","content":"a","refusal":null,"tool_calls":[],"reasoning_content":"r"}]"#,
                r#"[{"role":"assistant","content":"a","refusal":null,"reasoning_content":"r"}]"#,
            ),
        ] {
            let ChatMessage(expect) = serde_json::from_str::<[ChatMessage; 1]>(expect).unwrap()[0].clone();
            assert_eq!(checked(messages), Ok(vec![Arc::new(expect)]), "{messages}");
        }
    }

    #[test]
    fn errors_name_the_place() {
        for (messages, expect) in [
            ("[]", "`messages` cannot be empty"),
            (
                r#"[{"content":"a"}]"#,
                "`messages[0].role` must be `system`, `developer`, `user` or `assistant`",
            ),
            (
                r#"[{"role":"user","content":"a"},{"role":"king","content":"a"}]"#,
                "`messages[1].role` must be `system`, `developer`, `user` or `assistant`. Given: `king`",
            ),
            (r#"[{"role":"user"}]"#, "`messages[0].content` must be a string or an array of parts"),
            (
                r#"[{"role":"user","content":null}]"#,
                "`messages[0].content` must be a string or an array of parts",
            ),
            (
                r#"[{"role":"user","content":["a"]}]"#,
                "`messages[0].content[0]` must be an object with `type` and `text`",
            ),
            (
                r#"[{"role":"user","content":[{"type":"text"}]}]"#,
                "`messages[0].content[0].text` must be a string",
            ),
            (
                r#"[{"role":"user","content":[{"type":"image_url","image_url":{"url":"u"}}]}]"#,
                "`messages[0].content[0].type` is not supported: the model takes text only, and this is `image_url`",
            ),
            (
                r#"[{"role":"tool","content":"a"}]"#,
                "`messages[0].role` is not supported: tool calling is not supported yet",
            ),
            (
                r#"[{"role":"assistant","content":"a","tool_calls":[{}]}]"#,
                "`messages[0].tool_calls` is not supported: only text is supported yet",
            ),
        ] {
            assert_eq!(checked(messages), Err(expect.to_owned()), "{messages}");
        }
    }
}
