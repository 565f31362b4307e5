//! What all answers of a request have in common.

use uuid::Uuid;

use crate::{
    api::{
        ApiError, App,
        app::unix_time,
        types::openai::{CommonRequest, FinishReason, Usage},
    },
    stream::{Finish, Totals},
};

/// Names that stand for whatever is served: what TGI's clients and `huggingface_hub` send.
const ANY_MODEL: [&str; 2] = ["tgi", "dummy"];

/// Changes when the same request may get another answer.
pub(super) const SYSTEM_FINGERPRINT: &str = concat!("anaphora-", env!("CARGO_PKG_VERSION"));

/// The fields that an answer, or all chunks of one, begin with.
#[derive(Clone, Debug)]
pub(super) struct Reply {
    pub(super) id: String,
    pub(super) created: u64,
    pub(super) model: String,
}

impl Reply {
    /// A new answer whose id begins with `prefix`.
    pub(super) fn new(app: &App, prefix: &str) -> Self {
        let id = format!("{prefix}-{}", Uuid::new_v4().simple());
        Self { id, created: unix_time(), model: app.model.id.clone() }
    }
}

/// Whether the model that the client names is served.
pub(super) fn check_model(app: &App, common: &CommonRequest) -> Result<(), ApiError> {
    match common.model.as_deref() {
        None => Ok(()),
        Some(name) if name == app.model.id || ANY_MODEL.contains(&name) => Ok(()),
        Some(name) => Err(ApiError::ModelNotFound(name.to_owned())),
    }
}

/// Why a choice ended, in OpenAI's words.
pub(super) fn finish_reason(finish: &Finish) -> FinishReason {
    match finish {
        Finish::Length => FinishReason::Length,
        Finish::StopToken | Finish::StopString(_) => FinishReason::Stop,
    }
}

/// What the sequences cost together.
pub(super) fn usage(totals: &Totals) -> Usage {
    Usage::new(totals.num_prompt(), u64::from(totals.num_generated), totals.num_cached())
}

/// Whether a stream is to say what it cost.
pub(super) fn includes_usage(common: &CommonRequest) -> bool {
    common.stream_options.and_then(|options| options.include_usage).unwrap_or(false)
}
