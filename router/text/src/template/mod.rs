//! Chat templates: Jinja that comes with the model, run in a sandbox.
//!
//! A template sees plain JSON only, has no way to files or the network, and stops at a budget of steps and of output,
//! both in proportion to the chat that it is given. What it renders equals `transformers`' `apply_chat_template`,
//! character for character: the goldens in `tests/` hold it to that. What is known to differ, and met in no template that
//! we know: `~` writes a boolean, none or a container as minijinja does (`true`, `none`), tuples print as lists, and `%`
//! does not format strings.

mod filters;
mod json;
mod message;
mod pieces;
mod pycompat;
mod python;
mod rewrites;
mod strftime;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::SystemTime;

use minijinja::{Environment, Error, ErrorKind, UndefinedBehavior, Value};
use serde_json::{Map, Value as Json};

use crate::error::TemplateError;
pub use message::{Field, Message};
pub use rewrites::Rewrite;

/// The one template of each environment.
const NAME: &str = "chat";
/// Steps that any rendering may take, however small the chat.
const BASE_FUEL: u64 = 2_000_000;
/// Steps for each value (a message, a field, an element) of the chat.
const FUEL_PER_VALUE: u64 = 20_000;
/// Bytes that any rendering may have.
const MAX_OUTPUT_BYTES: usize = 64 << 20;
/// Stands after the final message while it is rendered, to find its end. As in `transformers`.
const CONTINUE_TAG: &str = "CONTINUE_FINAL_MESSAGE_TAG ";

/// A compiled chat template. Rendering takes `&self`: share it freely.
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    bos_token: Option<String>,
    eos_token: Option<String>,
}

/// What a chat template is given.
#[derive(Debug, Clone, Copy)]
pub struct TemplateInput<'a> {
    /// The chat: messages with `role` and `content`. Fields that are null are left out.
    pub messages: &'a [Arc<Message>],
    /// The tools that the model may call, as an array of JSON schemas.
    pub tools: Option<&'a Json>,
    /// Whether to end with the opening of the assistant's answer.
    pub add_generation_prompt: bool,
    /// Whether to end right after the final message's text, so that the model goes on with it. Excludes
    /// `add_generation_prompt`.
    pub continue_final_message: bool,
    /// Further variables (`chat_template_kwargs`). They can replace `bos_token` and `eos_token`, not the chat itself.
    pub kwargs: &'a Map<String, Json>,
    /// The time that `strftime_now` shows, in UTC. Without it, a template that asks is an error.
    pub now: Option<SystemTime>,
}

impl ChatTemplate {
    /// Compiles a template. `bos` and `eos` are the texts that it may show as `bos_token` and `eos_token`.
    ///
    /// # Errors
    /// [`TemplateError::Syntax`] if it is not valid.
    pub fn new(source: &str, bos: Option<&str>, eos: Option<&str>) -> Result<Self, TemplateError> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_undefined_behavior(UndefinedBehavior::Lenient);
        environment.set_unknown_method_callback(pycompat::call_method);
        environment
            .set_formatter(|output, _, value| output.write_str(&python::to_str(value)).map_err(Error::from));
        filters::add_to(&mut environment);
        environment.add_filter(pieces::AS_TEXT, pieces::as_text);
        environment.add_function("raise_exception", raise_exception);
        environment
            .add_template_owned(NAME, pieces::split_sums(&strip_generation_tags(source)))
            .map_err(|error| TemplateError::Syntax(describe(&error)))?;
        Ok(Self {
            environment,
            source: source.to_owned(),
            bos_token: bos.map(str::to_owned),
            eos_token: eos.map(str::to_owned),
        })
    }

    /// The text of the template, as the model has it.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Renders a chat to the prompt that the model is to continue.
    ///
    /// # Errors
    /// Every variant of [`TemplateError`] but `Syntax`.
    pub fn render(&self, input: &TemplateInput<'_>) -> Result<String, TemplateError> {
        let mut messages = input.messages.iter().map(Message::prepared).collect::<Vec<_>>();
        let continued =
            if input.continue_final_message { Some(self.mark_final(input, &mut messages)?) } else { None };
        let fuel = BASE_FUEL
            + FUEL_PER_VALUE * (1 + count_fields(input.messages) + input.tools.map_or(0, count_values));
        // A clone shares the compiled template; only the budget is its own.
        let mut environment = self.environment.clone();
        environment.set_fuel(Some(fuel));
        let template = environment.get_template(NAME).map_err(|error| render_error(&error, fuel))?;
        // Mostly the messages themselves, once.
        let num_bytes = input.messages.iter().map(|message| count_bytes(message)).sum::<usize>();
        let mut output = Capped { bytes: Vec::with_capacity(num_bytes + num_bytes / 16), over: false };
        let messages = messages.into_iter().map(Value::from_dyn_object).collect();
        let variables = self.variables(input, messages);
        if let Err(error) = template.render_captured_to(variables, &mut output) {
            return Err(if output.over {
                TemplateError::TooLong(MAX_OUTPUT_BYTES)
            } else {
                render_error(&error, fuel)
            });
        }
        let text = String::from_utf8(output.bytes).expect("minijinja writes UTF-8. This is a bug.");
        match continued {
            Some(final_text) => cut_after_final(text, &final_text),
            None => Ok(text),
        }
    }

    fn variables(&self, input: &TemplateInput<'_>, messages: Value) -> Value {
        let mut variables: BTreeMap<&str, Value> = BTreeMap::new();
        for (name, token) in [("bos_token", &self.bos_token), ("eos_token", &self.eos_token)] {
            if let Some(token) = token {
                variables.insert(name, Value::from(token.as_str()));
            }
        }
        variables
            .extend(input.kwargs.iter().map(|(name, value)| (name.as_str(), Value::from_serialize(value))));
        let now = input.now;
        variables.insert("strftime_now", Value::from_function(move |format: &str| strftime_now(now, format)));
        variables.insert("messages", messages);
        variables.insert("tools", input.tools.map_or(Value::from(()), Value::from_serialize));
        variables.entry("documents").or_insert(Value::from(()));
        variables.insert("add_generation_prompt", Value::from(input.add_generation_prompt));
        Value::from_serialize(variables)
    }

    /// Puts the tag behind the final message's text, and returns that text.
    fn mark_final(
        &self,
        input: &TemplateInput<'_>,
        messages: &mut [Arc<Message>],
    ) -> Result<String, TemplateError> {
        let fail = |reason: &str| Err(TemplateError::CannotContinue(reason.to_owned()));
        if input.add_generation_prompt {
            return fail("continue_final_message and add_generation_prompt exclude each other");
        }
        let Some(message) = messages.last_mut().map(Arc::make_mut) else {
            return fail("continue_final_message is set but there are no messages");
        };
        if !self.source.contains("content") {
            return fail("continue_final_message is set but the chat template does not show `content`");
        }
        match message.remove("content") {
            Some(Field::Text(text)) => {
                message.set("content", Field::Text(format!("{text}{CONTINUE_TAG}").into()));
                Ok(text.to_string())
            }
            Some(Field::Json(Json::Array(mut blocks))) => {
                let last = blocks.iter_mut().rev().find_map(|block| block.get_mut("text"));
                let Some(Json::String(text)) = last else {
                    return fail(
                        "continue_final_message is set but the final message has no text to continue",
                    );
                };
                let original = text.clone();
                text.push_str(CONTINUE_TAG);
                message.set("content", Field::Json(Json::Array(blocks)));
                Ok(original)
            }
            _ => fail("continue_final_message is set but the final message has no text to continue"),
        }
    }
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("ChatTemplate").field("source", &self.source).finish_non_exhaustive()
    }
}

/// Cuts a rendering where its final message ends. Trailing space that the template trimmed away is not put back.
fn cut_after_final(mut text: String, final_text: &str) -> Result<String, TemplateError> {
    let tag = CONTINUE_TAG.trim_end();
    match text.rfind(tag) {
        Some(position) if text.contains(final_text.trim()) => {
            let keeps_spacing = text[position..].starts_with(CONTINUE_TAG);
            text.truncate(position);
            if !keeps_spacing {
                text.truncate(text.trim_end().len());
            }
            Ok(text)
        }
        _ => Err(TemplateError::CannotContinue(
            "continue_final_message is set but the chat template does not show the final message as it is"
                .to_owned(),
        )),
    }
}

/// Values of messages and their fields.
fn count_fields(messages: &[Arc<Message>]) -> u64 {
    let count = |(_, field): (&str, &Field)| match field {
        Field::Text(_) => 1,
        Field::Json(value) => count_values(value),
    };
    messages.iter().map(|message| 1 + message.fields().map(count).sum::<u64>()).sum()
}

fn count_values(value: &Json) -> u64 {
    1 + match value {
        Json::Array(values) => values.iter().map(count_values).sum(),
        Json::Object(fields) => fields.values().map(count_values).sum(),
        _ => 0,
    }
}

/// Bytes of the text of a message.
fn count_bytes(message: &Message) -> usize {
    message.fields().filter_map(|(_, field)| field.as_str()).map(str::len).sum()
}

/// `{% generation %}` marks the assistant's words for training. Here it is a block that does nothing, with its own
/// whitespace control kept.
fn strip_generation_tags(source: &str) -> String {
    let mut output = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(length) = rest[start..].find("%}") else { break };
        let tag = &rest[start + 2..start + length];
        let word = tag.trim_start_matches(['-', '+']).trim_end_matches(['-', '+']).trim();
        let replacement = match word {
            "generation" => Some("if true"),
            "endgeneration" => Some("endif"),
            _ => None,
        };
        output.push_str(&rest[..start + 2]);
        match replacement {
            Some(replacement) => output.push_str(&tag.replacen(word, &format!(" {replacement} "), 1)),
            None => output.push_str(tag),
        }
        output.push_str("%}");
        rest = &rest[start + length + 2..];
    }
    output.push_str(rest);
    output
}

/// The template's own refusal, told apart from our errors.
#[derive(Debug)]
struct Raised(String);

impl std::fmt::Display for Raised {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

fn raise_exception(message: &Value) -> Result<Value, Error> {
    let message = python::to_str(message).into_owned();
    Err(Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Raised(message)))
}

fn strftime_now(now: Option<SystemTime>, format: &str) -> Result<String, Error> {
    let now =
        now.ok_or_else(|| Error::new(ErrorKind::InvalidOperation, "there is no clock to ask for the time"))?;
    strftime::format(now, format).map_err(|message| Error::new(ErrorKind::InvalidOperation, message))
}

fn render_error(error: &Error, fuel: u64) -> TemplateError {
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if let Some(Raised(message)) = cause.downcast_ref::<Raised>() {
            return TemplateError::Raised(message.clone());
        }
        source = cause.source();
    }
    match error.kind() {
        ErrorKind::OutOfFuel => TemplateError::OutOfFuel(fuel),
        ErrorKind::UndefinedError => TemplateError::Undefined(describe(error)),
        _ => TemplateError::Render(describe(error)),
    }
}

/// "unknown filter: filter foo is unknown (line 3)"
fn describe(error: &Error) -> String {
    let mut text = error.kind().to_string();
    if let Some(detail) = error.detail() {
        text.push_str(": ");
        text.push_str(detail);
    }
    if let Some(line) = error.line() {
        text.push_str(&format!(" (line {line} of the chat template)"));
    }
    text
}

/// Output that refuses to grow past [`MAX_OUTPUT_BYTES`].
struct Capped {
    bytes: Vec<u8>,
    over: bool,
}

impl io::Write for Capped {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > MAX_OUTPUT_BYTES {
            self.over = true;
            return Err(io::Error::other("the output is too long"));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
