//! Request bodies: bytes -> checked JSON -> a wire struct, or an error that names the place.
//!
//! In order, and each before the next costs anything: content type, declared length, length as read (within a time), UTF-8,
//! nesting depth, syntax and types. Large bodies are parsed on the CPU pool, so that the reactor is never held up.
//!
//! What is long in a request is one field, the messages or the prompt. It is parsed in the one pass that finds the others, whose
//! values are kept as text and parsed afterwards.

use std::{marker::PhantomData, sync::Arc, time::Duration};

use axum::{
    body::Bytes,
    extract::{FromRequest, Request},
};
use http::{HeaderMap, header};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use serde::{
    Deserialize, Deserializer,
    de::{self, DeserializeOwned, DeserializeSeed, value::MapDeserializer},
};
use serde_json::value::RawValue;
use tokio::time::{Instant, timeout_at};

use super::{
    App,
    error::{ApiError, OpenAiError, TgiError},
    types::{
        cache::ExplainRequest,
        chat::ChatRequest,
        completions::CompletionRequest,
        fields::{self, FieldError},
        tgi::GenerateRequest,
    },
};

/// How deep arrays and objects may nest.
const MAX_DEPTH: usize = 64;

/// How long a client may take to send its body.
const READ_TIMEOUT: Duration = Duration::from_secs(60);

/// A client that has not sent so many bytes for every second after the first ones is not waited for any longer.
const MIN_BYTES_PER_SECOND: u64 = 8 * 1024;

/// The first seconds, in which the rate does not count.
const RATE_GRACE: Duration = Duration::from_secs(10);

/// Memory is set aside for at most so much of a body before it comes.
const MAX_RESERVED_BYTES: usize = 2 * 1024 * 1024;

/// Bodies longer than this are parsed on the CPU pool; shorter ones take less than a switch of threads is worth.
const PARSE_INLINE_BYTES: usize = 64 * 1024;

/// The body of a TGI route.
#[derive(Debug)]
pub(super) struct TgiJson<T>(pub(super) T);

/// The body of an OpenAI route.
#[derive(Debug)]
pub(super) struct OpenAiJson<T>(pub(super) T);

impl<T: Body> FromRequest<Arc<App>> for TgiJson<T> {
    type Rejection = TgiError;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, Self::Rejection> {
        Ok(Self(extract(request, app).await?))
    }
}

impl<T: Body> FromRequest<Arc<App>> for OpenAiJson<T> {
    type Rejection = OpenAiError;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, Self::Rejection> {
        Ok(Self(extract(request, app).await?))
    }
}

async fn extract<T: Body>(request: Request, app: &App) -> Result<T, ApiError> {
    check_headers(request.headers(), app.limits.payload)?;
    let bytes = read(request, app.limits.payload).await?;
    if bytes.len() <= PARSE_INLINE_BYTES {
        return Ok(decode(&bytes)?);
    }
    Ok(app.encoder.run(move || decode(&bytes)).await??)
}

/// The body must call itself JSON, not be compressed, and not be announced to be longer than `limit` bytes.
fn check_headers(headers: &HeaderMap, limit: usize) -> Result<(), ApiError> {
    let value = |name| headers.get(name).and_then(|value: &http::HeaderValue| value.to_str().ok());
    let media_type = value(header::CONTENT_TYPE).unwrap_or("").split(';').next().unwrap_or("").trim();
    let subtype = media_type.to_ascii_lowercase();
    let is_json =
        subtype.strip_prefix("application/").is_some_and(|name| name == "json" || name.ends_with("+json"));
    if !is_json {
        return Err(ApiError::UnsupportedMediaType(
            "expected a request with `Content-Type: application/json`",
        ));
    }
    if value(header::CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity") {
        return Err(ApiError::UnsupportedMediaType("compressed request bodies are not supported"));
    }
    match value(header::CONTENT_LENGTH).map(str::parse::<u64>) {
        Some(Ok(length)) if length > limit as u64 => Err(ApiError::PayloadTooLarge { limit }),
        _ => Ok(()),
    }
}

/// The whole body, which may turn out to be longer than announced, or never come.
async fn read(request: Request, limit: usize) -> Result<Bytes, ApiError> {
    let began = Instant::now();
    let mut body = request.into_body();
    // What is announced is believed up to a length.
    let announced = usize::try_from(body.size_hint().lower()).unwrap_or(limit);
    let mut bytes = Vec::with_capacity(announced.min(MAX_RESERVED_BYTES));
    loop {
        let earned = Duration::from_secs(bytes.len() as u64 / MIN_BYTES_PER_SECOND);
        let deadline = began + READ_TIMEOUT.min(RATE_GRACE + earned);
        let frame = timeout_at(deadline, body.frame()).await.map_err(|_| ApiError::RequestTimeout)?;
        let frame = match frame {
            None => return Ok(bytes.into()),
            Some(Ok(frame)) => frame,
            Some(Err(_)) => {
                return Err(JsonError::syntax("the body ended before its announced length").into());
            }
        };
        // Trailers say nothing that counts.
        let Ok(data) = frame.into_data() else { continue };
        if bytes.len() + data.len() > limit {
            return Err(ApiError::PayloadTooLarge { limit });
        }
        bytes.extend_from_slice(&data);
    }
}

/// Checks and parses a body.
///
/// # Errors
/// What is wrong with it, and where.
pub(super) fn decode<T: Body>(bytes: &[u8]) -> Result<T, JsonError> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        JsonError::syntax(format!(
            "the body is not valid UTF-8: invalid byte at offset {}",
            error.valid_up_to()
        ))
    })?;
    check_depth(text)?;
    // serde would take an array for a struct, field by field.
    if text.trim_ascii_start().starts_with('[') {
        let message = "expected a JSON object, not an array".to_owned();
        return Err(JsonError { kind: JsonErrorKind::Schema, path: None, message });
    }
    T::from_json(text)
}

// === errors ===

/// What is wrong with a body.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct JsonError {
    /// Not JSON at all, or JSON of another form.
    pub kind: JsonErrorKind,
    /// Where, as in `messages[0].role`; `None` at the top.
    pub path: Option<String>,
    /// What, with where.
    pub message: String,
}

/// The kinds of [`JsonError`], which TGI's routes answer with different statuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JsonErrorKind {
    /// It is not JSON.
    Syntax,
    /// A field is missing, of the wrong type, or twice there.
    Schema,
    /// A field that the route does not know.
    UnknownField,
    /// A field that the route knows, asking for something that it does not do.
    UnsupportedField,
}

impl JsonError {
    fn syntax(message: impl Into<String>) -> Self {
        Self { kind: JsonErrorKind::Syntax, path: None, message: message.into() }
    }
}

impl From<FieldError> for JsonError {
    fn from(error: FieldError) -> Self {
        let (kind, path) = match &error {
            FieldError::Unknown { name } => (JsonErrorKind::UnknownField, name.clone()),
            FieldError::Unsupported { name, .. } => (JsonErrorKind::UnsupportedField, (*name).to_owned()),
        };
        Self { kind, path: Some(path), message: error.to_string() }
    }
}

// === wire structs ===

/// A wire struct that knows how to read itself.
pub(super) trait Body: Sized + Send + 'static {
    /// Parses `text`.
    ///
    /// # Errors
    /// What is wrong with it, and where.
    fn from_json(text: &str) -> Result<Self, JsonError>;
}

impl Body for GenerateRequest {
    fn from_json(text: &str) -> Result<Self, JsonError> {
        parse(text)
    }
}

impl Body for ChatRequest {
    fn from_json(text: &str) -> Result<Self, JsonError> {
        let (messages, rest) = split(text, "messages")?;
        let (chat, common) = (parse_rest(&rest, text)?, parse_rest(&rest, text)?);
        fields::check(&rest, &[fields::COMMON, fields::CHAT])?;
        Ok(Self { messages, chat, common })
    }
}

impl Body for CompletionRequest {
    fn from_json(text: &str) -> Result<Self, JsonError> {
        let (prompt, rest) = split(text, "prompt")?;
        let (completion, common) = (parse_rest(&rest, text)?, parse_rest(&rest, text)?);
        fields::check(&rest, &[fields::COMMON, fields::COMPLETIONS])?;
        Ok(Self { prompt, completion, common })
    }
}

impl Body for ExplainRequest {
    fn from_json(text: &str) -> Result<Self, JsonError> {
        #[derive(Deserialize)]
        struct Kind {
            messages: Option<de::IgnoredAny>,
            prompt: Option<de::IgnoredAny>,
            inputs: Option<de::IgnoredAny>,
        }
        match parse(text)? {
            Kind { messages: Some(_), .. } => ChatRequest::from_json(text).map(Self::Chat),
            Kind { prompt: Some(_), .. } => CompletionRequest::from_json(text).map(Self::Completion),
            Kind { inputs: Some(_), .. } => GenerateRequest::from_json(text).map(Self::Generate),
            Kind { .. } => Err(JsonError {
                kind: JsonErrorKind::Schema,
                path: None,
                message: "expected a request with `messages`, a `prompt` or `inputs`".to_owned(),
            }),
        }
    }
}

// === JSON ===

/// Parses `text`; errors have a path.
fn parse<T: DeserializeOwned>(text: &str) -> Result<T, JsonError> {
    parse_seed(text, PhantomData)
}

fn parse_seed<'a, S: DeserializeSeed<'a>>(text: &'a str, seed: S) -> Result<S::Value, JsonError> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let mut track = serde_path_to_error::Track::new();
    let value = seed
        .deserialize(serde_path_to_error::Deserializer::new(&mut deserializer, &mut track))
        .map_err(|error| json_error(&error, path_of(&track.path())))?;
    deserializer.end().map_err(|error| json_error(&error, None))?;
    Ok(value)
}

/// Parses what [`split`] left of `text`.
fn parse_rest<T: DeserializeOwned>(rest: &[(String, &RawValue)], text: &str) -> Result<T, JsonError> {
    let entries = rest.iter().map(|(key, value)| (key.as_str(), *value));
    // A mistake is looked for once more in the whole text, where its place is known.
    T::deserialize(MapDeserializer::<_, serde_json::Error>::new(entries)).or_else(|_| parse(text))
}

/// `None` at the top, or if not even the first key was read.
fn path_of(path: &serde_path_to_error::Path) -> Option<String> {
    let known = path.iter().take_while(|segment| !matches!(segment, serde_path_to_error::Segment::Unknown));
    let mut text = String::new();
    for segment in known {
        match segment {
            serde_path_to_error::Segment::Seq { index } => text.push_str(&format!("[{index}]")),
            other if text.is_empty() => text = other.to_string(),
            other => text.push_str(&format!(".{other}")),
        }
    }
    (!text.is_empty()).then_some(text)
}

fn json_error(error: &serde_json::Error, path: Option<String>) -> JsonError {
    let kind = match error.classify() {
        serde_json::error::Category::Data => JsonErrorKind::Schema,
        _ => JsonErrorKind::Syntax,
    };
    let message = path.as_ref().map_or_else(|| error.to_string(), |path| format!("{path}: {error}"));
    JsonError { kind, path, message }
}

/// The field `bulk` of a JSON object, parsed, and the other keys with the texts of their values, in order. No key is there twice.
///
/// # Errors
/// If `text` is not such an object, or has no `bulk`.
pub(super) fn split<'a, T: Deserialize<'a>>(
    text: &'a str,
    bulk: &'static str,
) -> Result<(T, Entries<'a>), JsonError> {
    parse_seed(text, Split { bulk, value: PhantomData })
}

/// Keys and the texts of their values.
pub(super) type Entries<'a> = Vec<(String, &'a RawValue)>;

struct Split<T> {
    bulk: &'static str,
    value: PhantomData<T>,
}

impl<'de, T: Deserialize<'de>> DeserializeSeed<'de> for Split<T> {
    type Value = (T, Entries<'de>);

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de, T: Deserialize<'de>> de::Visitor<'de> for Split<T> {
    type Value = (T, Entries<'de>);

    fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("a JSON object")
    }

    fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let (mut value, mut rest) = (None, Entries::new());
        while let Some(key) = map.next_key::<String>()? {
            let is_bulk = key == self.bulk;
            if (is_bulk && value.is_some()) || rest.iter().any(|(earlier, _)| *earlier == key) {
                return Err(de::Error::custom(format_args!("duplicate field `{key}`")));
            }
            if is_bulk {
                value = Some(map.next_value()?);
            } else {
                rest.push((key, map.next_value()?));
            }
        }
        Ok((value.ok_or_else(|| de::Error::missing_field(self.bulk))?, rest))
    }
}

/// Refuses texts whose arrays and objects nest deeper than [`MAX_DEPTH`]. Other errors are the parser's to find.
fn check_depth(text: &str) -> Result<(), JsonError> {
    let (bytes, mut depth, mut index) = (text.as_bytes(), 0_usize, 0);
    while let Some(byte) = bytes.get(index) {
        index += 1;
        match byte {
            b'"' => index = end_of_string(bytes, index),
            b'[' | b'{' => {
                depth += 1;
                if depth > MAX_DEPTH {
                    return Err(JsonError::syntax(format!("the JSON nests deeper than {MAX_DEPTH} levels")));
                }
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    Ok(())
}

/// Behind the quotation mark that ends the string which goes on at `index`.
fn end_of_string(bytes: &[u8], mut index: usize) -> usize {
    while let Some(found) = bytes.get(index..).and_then(|rest| memchr::memchr2(b'"', b'\\', rest)) {
        index += found + 1;
        if bytes[index - 1] == b'"' {
            return index;
        }
        // What is escaped ends nothing.
        index += 1;
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check<T: Body + std::fmt::Debug>(body: &[u8], kind: JsonErrorKind, message: &str) {
        let error = decode::<T>(body).expect_err(&String::from_utf8_lossy(body));
        assert_eq!((error.kind, error.to_string().as_str()), (kind, message));
    }

    #[test]
    fn errors_say_where() {
        use JsonErrorKind::{Schema, Syntax, UnknownField, UnsupportedField};
        check::<GenerateRequest>(
            b"{\"inputs\":\"\xff\"}",
            Syntax,
            "the body is not valid UTF-8: invalid byte at offset 11",
        );
        check::<GenerateRequest>(b"{", Syntax, "EOF while parsing an object at line 1 column 1");
        check::<GenerateRequest>(b"{}", Schema, "missing field `inputs` at line 1 column 2");
        check::<GenerateRequest>(
            br#"{"inputs":"a","parameters":{"temperature":NaN}}"#,
            Syntax,
            "parameters.temperature: expected value at line 1 column 43",
        );
        check::<GenerateRequest>(
            br#"{"inputs":"a","parameters":{"temperature":1e400}}"#,
            Syntax,
            "parameters.temperature: number out of range at line 1 column 47",
        );
        check::<GenerateRequest>(
            br#"{"inputs":"a","parameters":{"max_new_tokens":-1}}"#,
            Schema,
            "parameters.max_new_tokens: invalid value: integer `-1`, expected u64 at line 1 column 47",
        );
        check::<GenerateRequest>(
            br#"{"inputs":"\ud800"}"#,
            Syntax,
            "inputs: unexpected end of hex escape at line 1 column 18",
        );
        check::<ChatRequest>(
            br#"{"messages":[{"role":"user"},3]}"#,
            Schema,
            "messages[1]: invalid type: integer `3`, expected a JSON object at line 1 column 30",
        );
        check::<ChatRequest>(
            br#"{"messages":[],"max_tokens":"7"}"#,
            Schema,
            "max_tokens: invalid type: string \"7\", expected u32 at line 1 column 31",
        );
        check::<ChatRequest>(
            br#"{"messages":[],"n":1,"n":1}"#,
            Schema,
            "duplicate field `n` at line 1 column 24",
        );
        check::<ChatRequest>(
            br#"{"messages":[{"role":"user","role":"system"}]}"#,
            Schema,
            "messages[0]: duplicate field `role` at line 1 column 34",
        );
        check::<ChatRequest>(br#"{"messages":[]} x"#, Syntax, "trailing characters at line 1 column 17");
        check::<ChatRequest>(br#"{"messages":[],"foo":1}"#, UnknownField, "unknown parameter: `foo`");
        check::<ChatRequest>(
            br#"{"messages":[],"tools":[1]}"#,
            UnsupportedField,
            "`tools` is not supported: tool calling is not supported yet",
        );
    }

    #[test]
    fn depth() {
        let nested = |depth: usize| {
            format!(r#"{{"inputs":"[[{{\"[","x":{}{}}}"#, "[".repeat(depth), "]".repeat(depth))
        };
        assert!(decode::<GenerateRequest>(nested(MAX_DEPTH - 1).as_bytes()).is_ok());
        check::<GenerateRequest>(
            nested(MAX_DEPTH).as_bytes(),
            JsonErrorKind::Syntax,
            "the JSON nests deeper than 64 levels",
        );
    }

    #[test]
    fn headers() {
        let verdict = |name: &'static str, value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(
                header::CONTENT_TYPE,
                http::HeaderValue::from_static("application/json; charset=utf-8"),
            );
            headers.insert(name, http::HeaderValue::from_static(value));
            check_headers(&headers, 100).map_err(|error| error.to_string())
        };
        assert!(verdict("x-nothing", "").is_ok());
        assert!(verdict("content-type", "application/vnd.x+json").is_ok());
        assert!(verdict("content-length", "100").is_ok());
        assert!(verdict("content-encoding", "identity").is_ok());
        for (name, value) in
            [("content-type", "text/plain"), ("content-length", "101"), ("content-encoding", "gzip")]
        {
            assert!(verdict(name, value).is_err(), "{name}: {value}");
        }
    }
}
