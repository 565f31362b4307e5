//! `GET /v1/models` and `/v1/models/{id}`.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State, rejection::PathRejection},
};

use crate::api::{
    ApiError, App,
    error::OpenAiError,
    types::models::{Model, ModelList},
};

pub(in crate::api) async fn list(State(app): State<Arc<App>>) -> Json<ModelList> {
    Json(ModelList { object: "list", data: vec![model(&app)] })
}

/// The id may have slashes: `org/model`.
pub(in crate::api) async fn retrieve(
    State(app): State<Arc<App>>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Model>, OpenAiError> {
    let Path(id) = id.map_err(|_| ApiError::NotFound)?;
    if id == app.model.id { Ok(Json(model(&app))) } else { Err(ApiError::ModelNotFound(id).into()) }
}

fn model(app: &App) -> Model {
    Model { id: app.model.id.clone(), object: "model", created: app.model.created, owned_by: "anaphora" }
}
