//! `/v1/models`.

use serde::Serialize;

/// A served model.
#[derive(Clone, Debug, Serialize)]
pub struct Model {
    /// The served name.
    pub id: String,
    /// "model".
    pub object: &'static str,
    /// When it began to be served: Unix time, in seconds.
    pub created: u64,
    /// "anaphora".
    pub owned_by: &'static str,
}

/// All served models.
#[derive(Debug, Serialize)]
pub struct ModelList {
    /// "list".
    pub object: &'static str,
    /// The models.
    pub data: Vec<Model>,
}
