//! `GET /metrics`: all metrics as Prometheus text.

use std::sync::Arc;

use axum::{extract::State, response::IntoResponse};
use http::header;

use crate::api::App;

pub(in crate::api) async fn metrics(State(app): State<Arc<App>>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], app.prometheus.render())
}
