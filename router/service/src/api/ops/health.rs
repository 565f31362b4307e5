//! Health: `/live` says that the process runs, `/ready` and `/health` that it serves.

use std::sync::Arc;

use axum::{Json, extract::State};
use http::StatusCode;
use serde_json::{Value, json};

use crate::{api::App, engine::Status};

/// `GET /health`, `/ping` and `/`: 200 if requests are served now; else 503 with TGI's body and with how far the start is.
pub(in crate::api) async fn health(State(app): State<Arc<App>>) -> (StatusCode, Json<Value>) {
    report(&app.engine.status())
}

/// `GET /ready`: the same, for whoever decides where requests go.
pub(in crate::api) async fn ready(State(app): State<Arc<App>>) -> (StatusCode, Json<Value>) {
    report(&app.engine.status())
}

/// `GET /live`: 200 whenever it is answered.
pub(in crate::api) async fn live() -> (StatusCode, Json<Value>) {
    (StatusCode::OK, Json(json!({"live": true})))
}

fn report(status: &Status) -> (StatusCode, Json<Value>) {
    let (phase, percent) = match status {
        Status::Ready(_) => return (StatusCode::OK, Json(json!({"phase": "ready", "percent": 100}))),
        Status::Starting { phase, percent } => (*phase, *percent),
        Status::Lost => ("lost", 0),
        Status::Draining => ("draining", 100),
    };
    let body = json!({"error": "unhealthy", "error_type": "healthcheck", "phase": phase, "percent": percent});
    (StatusCode::SERVICE_UNAVAILABLE, Json(body))
}
