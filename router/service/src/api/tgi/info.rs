//! `GET /info`: what is served, and within which limits. Public, so nothing in it says where things are on this machine.

use std::sync::Arc;

use axum::{Json, extract::State};

use crate::{
    admit::Bounds,
    api::{App, types::tgi::Info},
    engine::Status,
};

pub(in crate::api) async fn info(State(app): State<Arc<App>>) -> Json<Info> {
    let replica = match app.engine.status() {
        Status::Ready(replica) => Some(replica),
        _ => None,
    };
    let bounds = replica.as_ref().map(|replica| Bounds::new(&app, replica));
    let max_input_tokens = bounds.map(|bounds| bounds.max_prompt);
    let device_type = |device: &str| device.split([':', ' ']).next().unwrap_or(device).to_owned();
    Json(Info {
        model_id: app.model.id.clone(),
        model_sha: None,
        model_pipeline_tag: "text-generation",
        max_concurrent_requests: app.max_concurrent_requests,
        max_best_of: app.limits.max_best_of,
        max_stop_sequences: app.limits.max_stop_sequences,
        max_input_tokens,
        max_total_tokens: bounds.map(|bounds| bounds.context),
        validation_workers: app.encoder.num_threads(),
        max_client_batch_size: app.limits.max_client_batch_size,
        router: env!("CARGO_PKG_NAME"),
        version: env!("CARGO_PKG_VERSION"),
        sha: None,
        docker_label: None,
        model_dtype: replica.as_ref().map(|replica| replica.dtype.clone()),
        model_device_type: replica.as_ref().map(|replica| device_type(&replica.device)),
        max_input_length: max_input_tokens,
        max_batch_total_tokens: replica.as_ref().map(|replica| replica.kv_tokens),
        max_batch_prefill_tokens: replica.as_ref().map(|replica| replica.max_step_tokens),
        max_batch_size: replica.as_ref().map(|replica| replica.max_rows),
        waiting_served_ratio: 0.0,
        max_waiting_tokens: 0,
        speculate: 0,
    })
}
