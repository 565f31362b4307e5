//! Errors on the wire: the only place where an error becomes a status and a body.
//!
//! Each API has its own shape and its own habits. TGI's routes say 422 for what a request means and 424 for a generation that
//! broke; OpenAI's say 400 and 503, and name the field. [`ApiError::wire`] is the one table of both.

use std::time::Duration;

use anaphora_text::TextError;
use axum::{
    Json,
    response::{IntoResponse, Response},
};
use http::{HeaderName, HeaderValue, StatusCode, header};

use super::{
    json::{JsonError, JsonErrorKind},
    sse::Events,
    types::{openai, tgi},
};
use crate::{
    admit::{AdmitError, EncoderError},
    engine::EngineError,
    metrics::Failure,
    stream::StreamError,
};

/// Says why a request was turned away without any work done for it.
const DROPPED_REASON: HeaderName = HeaderName::from_static("x-anaphora-dropped-reason");

/// Everything that a request can fail with.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The body is not what the route takes.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// The body is of another kind.
    #[error("{0}")]
    UnsupportedMediaType(&'static str),
    /// The body is too long.
    #[error("the request body is longer than {limit} bytes")]
    PayloadTooLarge {
        /// The limit.
        limit: usize,
    },
    /// The body did not come in time.
    #[error("the request body did not arrive in time")]
    RequestTimeout,
    /// No key, or a wrong one.
    #[error("a valid API key is required: send `Authorization: Bearer <key>`")]
    Unauthorized,
    /// There is no such route.
    #[error("there is no such route")]
    NotFound,
    /// The route knows other methods.
    #[error("this route does not take this method")]
    MethodNotAllowed,
    /// There is no such model.
    #[error("the model `{0}` does not exist")]
    ModelNotFound(String),
    /// The request asks for what cannot be.
    #[error(transparent)]
    Admit(#[from] AdmitError),
    /// The replica refused it or failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// Something of ours is broken. The text is for the log and never sent.
    #[error("{0}")]
    Internal(String),
}

impl From<EncoderError> for ApiError {
    fn from(error: EncoderError) -> Self {
        match error {
            EncoderError::Overloaded => {
                EngineError::Overloaded { retry_after: Duration::from_secs(1) }.into()
            }
            EncoderError::Panicked => Self::Internal("a job on the CPU pool panicked".to_owned()),
        }
    }
}

impl From<TextError> for ApiError {
    fn from(error: TextError) -> Self {
        Self::Internal(error.to_string())
    }
}

impl From<StreamError> for ApiError {
    fn from(error: StreamError) -> Self {
        match error {
            StreamError::Engine(error) => error.into(),
            StreamError::Decode(cause) => Self::Internal(cause),
        }
    }
}

/// An error on its way out of an OpenAI route.
#[derive(Debug)]
pub struct OpenAiError(pub ApiError);

/// An error on its way out of a TGI route.
#[derive(Debug)]
pub struct TgiError(pub ApiError);

impl<E: Into<ApiError>> From<E> for OpenAiError {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl<E: Into<ApiError>> From<E> for TgiError {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl IntoResponse for OpenAiError {
    fn into_response(self) -> Response {
        self.0.respond(Family::OpenAi)
    }
}

impl IntoResponse for TgiError {
    fn into_response(self) -> Response {
        self.0.respond(Family::Tgi)
    }
}

/// Whose shapes a route speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// `{"error": {"message", "type", "code", "param"}}`
    OpenAi,
    /// `{"error", "error_type"}`
    Tgi,
}

impl Family {
    /// Of the route or, if there is none, of what the path looks like.
    #[must_use]
    pub fn of_path(path: &str) -> Self {
        if path.starts_with("/v1/") { Self::OpenAi } else { Self::Tgi }
    }
}

/// An error, as both families say it.
struct Wire {
    openai: (StatusCode, &'static str, Option<&'static str>),
    tgi: (StatusCode, &'static str),
    failure: Failure,
}

const INVALID: &str = "invalid_request_error";
const SERVER: &str = "server_error";

impl Wire {
    /// The client's mistake: `status` in both families.
    const fn refused(status: StatusCode, code: &'static str, error_type: &'static str) -> Self {
        Self {
            openai: (status, INVALID, Some(code)),
            tgi: (status, error_type),
            failure: Failure::Validation,
        }
    }

    /// What the request says cannot be: 400 with OpenAI, 422 with TGI.
    const fn invalid(code: &'static str, error_type: &'static str) -> Self {
        Self {
            openai: (StatusCode::BAD_REQUEST, INVALID, Some(code)),
            tgi: (StatusCode::UNPROCESSABLE_ENTITY, error_type),
            failure: Failure::Validation,
        }
    }

    /// Not the client's fault, and likely to pass.
    const fn unavailable(code: &'static str, tgi: (StatusCode, &'static str), failure: Failure) -> Self {
        Self { openai: (StatusCode::SERVICE_UNAVAILABLE, SERVER, Some(code)), tgi, failure }
    }
}

// === impl ApiError ===

impl ApiError {
    /// The table.
    fn wire(&self) -> Wire {
        use StatusCode as S;
        match self {
            Self::Json(error) => match error.kind {
                JsonErrorKind::Syntax => Wire::refused(S::BAD_REQUEST, "invalid_json", "validation"),
                JsonErrorKind::Schema => Wire::invalid("invalid_value", "validation"),
                JsonErrorKind::UnknownField => Wire::invalid("unknown_parameter", "validation"),
                JsonErrorKind::UnsupportedField => Wire::invalid("unsupported_parameter", "validation"),
            },
            Self::UnsupportedMediaType(_) => {
                Wire::refused(S::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", "validation")
            }
            Self::PayloadTooLarge { .. } => {
                Wire::refused(S::PAYLOAD_TOO_LARGE, "payload_too_large", "validation")
            }
            Self::RequestTimeout => Wire::refused(S::REQUEST_TIMEOUT, "request_timeout", "validation"),
            Self::Unauthorized => Wire::refused(S::UNAUTHORIZED, "invalid_api_key", "unauthorized"),
            Self::NotFound => Wire::refused(S::NOT_FOUND, "not_found", "not_found"),
            Self::MethodNotAllowed => {
                Wire::refused(S::METHOD_NOT_ALLOWED, "method_not_allowed", "method_not_allowed")
            }
            Self::ModelNotFound(_) => Wire::refused(S::NOT_FOUND, "model_not_found", "not_found"),
            Self::Admit(error) => error.wire(),
            Self::Engine(error) => error.wire(),
            Self::Internal(_) => Wire {
                openai: (S::INTERNAL_SERVER_ERROR, SERVER, Some("internal_error")),
                tgi: (S::INTERNAL_SERVER_ERROR, "incomplete_generation"),
                failure: Failure::Generation,
            },
        }
    }

    /// What to count the request under.
    #[must_use]
    pub fn failure(&self) -> Failure {
        self.wire().failure
    }

    /// The status, the body and the headers that go with them.
    #[must_use]
    pub fn respond(&self, family: Family) -> Response {
        let wire = self.wire();
        if let Self::Internal(cause) = self {
            tracing::error!(cause, "a request failed inside the router");
        }
        let mut response = match family {
            Family::OpenAi => (wire.openai.0, Json(self.openai_body(&wire, false))).into_response(),
            Family::Tgi => (wire.tgi.0, Json(self.tgi_body(&wire))).into_response(),
        };
        let headers = response.headers_mut();
        if let Some(retry_after) = self.retry_after() {
            let seconds = retry_after.as_secs() + u64::from(retry_after.subsec_nanos() > 0);
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds.max(1)));
        }
        match self {
            Self::Unauthorized => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            Self::Engine(EngineError::Overloaded { .. }) => {
                headers.insert(DROPPED_REASON, HeaderValue::from_static("rejected-saturated"));
            }
            Self::Engine(EngineError::QueueTimeout { .. }) => {
                headers.insert(DROPPED_REASON, HeaderValue::from_static("rejected-ttl-expired"));
            }
            Self::Engine(EngineError::ShuttingDown) => {
                headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            _ => {}
        }
        response.extensions_mut().insert(wire.failure);
        response
    }

    /// Writes the event that ends a stream which has begun.
    pub(super) fn event(&self, family: Family, events: &mut Events) {
        let wire = self.wire();
        if let Self::Internal(cause) = self {
            tracing::error!(cause, "a stream failed inside the router");
        }
        match family {
            Family::OpenAi => events.json(&self.openai_body(&wire, true)),
            Family::Tgi => events.json(&self.tgi_body(&wire)),
        }
    }

    fn openai_body(&self, wire: &Wire, has_begun: bool) -> openai::ErrorResponse {
        let (_, r#type, mut code) = wire.openai;
        if has_begun && matches!(self, Self::Engine(EngineError::ShardLost { .. })) {
            code = Some("engine_lost");
        }
        let param = match self {
            Self::Json(error) => error.path.clone(),
            Self::Admit(error) => error.param(),
            Self::ModelNotFound(_) => Some("model".to_owned()),
            _ => None,
        };
        openai::ErrorResponse {
            error: openai::ErrorObject { message: self.openai_message(), r#type, code, param },
        }
    }

    fn openai_message(&self) -> String {
        match self {
            Self::Admit(error) => error.openai_message(),
            Self::Internal(_) => "internal error".to_owned(),
            other => other.to_string(),
        }
    }

    fn tgi_body(&self, wire: &Wire) -> tgi::ErrorResponse {
        tgi::ErrorResponse { error: self.tgi_message(), error_type: wire.tgi.1 }
    }

    /// TGI's own sentences, word for word where it has one.
    fn tgi_message(&self) -> String {
        match self {
            Self::Json(error) => format!("Input validation error: {error}"),
            Self::Admit(AdmitError::NoTemplate) => "Template error: template not found".to_owned(),
            Self::Admit(AdmitError::Template(error)) => format!("Template error: {error}"),
            Self::Admit(AdmitError::TemplateVariable(error)) => format!("Missing template variable: {error}"),
            Self::Admit(error) => format!("Input validation error: {error}"),
            Self::Engine(EngineError::Overloaded { .. }) => "Model is overloaded".to_owned(),
            Self::Engine(EngineError::Rejected(rejection)) => format!("Input validation error: {rejection}"),
            Self::Engine(error @ (EngineError::ShardLost { .. } | EngineError::SlowClient)) => {
                format!("Request failed during generation: {error}")
            }
            Self::Internal(_) => "Incomplete generation".to_owned(),
            other => other.to_string(),
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Engine(
                EngineError::Overloaded { retry_after }
                | EngineError::QueueTimeout { retry_after }
                | EngineError::Unavailable { retry_after }
                | EngineError::ShardLost { retry_after },
            ) => Some(*retry_after),
            Self::Engine(EngineError::ShuttingDown) => Some(Duration::from_secs(1)),
            _ => None,
        }
    }
}

// === the parts of the table that belong to other enums ===

impl EngineError {
    fn wire(&self) -> Wire {
        use StatusCode as S;
        match self {
            Self::Overloaded { .. } => Wire {
                openai: (S::TOO_MANY_REQUESTS, "rate_limit_error", Some("overloaded")),
                tgi: (S::TOO_MANY_REQUESTS, "overloaded"),
                failure: Failure::Overloaded,
            },
            Self::QueueTimeout { .. } => {
                let tgi = (S::SERVICE_UNAVAILABLE, "overloaded");
                Wire::unavailable("queue_timeout", tgi, Failure::Overloaded)
            }
            Self::Unavailable { .. } => {
                let tgi = (S::SERVICE_UNAVAILABLE, "healthcheck");
                Wire::unavailable("shard_unavailable", tgi, Failure::Unavailable)
            }
            Self::ShuttingDown => {
                let tgi = (S::SERVICE_UNAVAILABLE, "healthcheck");
                Wire::unavailable("shutting_down", tgi, Failure::Unavailable)
            }
            Self::ShardLost { .. } => {
                let tgi = (S::FAILED_DEPENDENCY, "generation");
                Wire::unavailable("shard_unavailable", tgi, Failure::Generation)
            }
            Self::SlowClient => {
                let tgi = (S::FAILED_DEPENDENCY, "generation");
                Wire::unavailable("slow_client", tgi, Failure::SlowClient)
            }
            Self::Rejected(_) => Wire::invalid("context_length_exceeded", "validation"),
        }
    }
}

impl AdmitError {
    fn wire(&self) -> Wire {
        match self {
            Self::Invalid { .. } => Wire::invalid("invalid_value", "validation"),
            Self::Unsupported { .. } => Wire::invalid("unsupported_value", "validation"),
            Self::PromptTooLong { .. } | Self::PromptTooManyBytes { .. } | Self::TotalTooLong { .. } => {
                Wire::invalid("context_length_exceeded", "validation")
            }
            Self::Tokenizer(_) => Wire::invalid("tokenizer_error", "validation"),
            Self::NoTemplate | Self::Template(_) => {
                Wire { failure: Failure::Template, ..Wire::invalid("template_error", "template_error") }
            }
            Self::TemplateVariable(_) => Wire {
                failure: Failure::Template,
                ..Wire::invalid("template_error", "missing_template_variable")
            },
        }
    }
}
