//! What surrounds every request: its id, its arrival, what catches a panic, and how it is counted. (Its span is the listener's.)

use std::{any::Any, panic::AssertUnwindSafe, sync::Arc, time::Instant};

use axum::{
    extract::{Request, State},
    middleware::Next,
    response::Response,
};
use futures::FutureExt as _;
use http::{HeaderName, HeaderValue};
use uuid::Uuid;

use super::{
    App, Tenant,
    error::{ApiError, Family},
};
use crate::admit::AdmitError;
use crate::metrics::{Failure, RequestMetrics, Timings};

/// Names a request in answers and in the log.
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// How urgent a request is: higher is served first.
pub(super) const PRIORITY: HeaderName = HeaderName::from_static("x-priority");

/// Longest id that a client may choose.
const MAX_REQUEST_ID: usize = 128;

/// What handlers know of the request as such.
#[derive(Clone, Debug)]
pub struct Context {
    /// The client's `x-request-id`, or a fresh one.
    pub request_id: Arc<str>,
    /// When its headers had been read.
    pub arrived: Instant,
    /// Whose it is; empty where no key is required.
    pub tenant: Tenant,
    /// What `x-priority` says; the body's `priority` goes before it.
    pub priority: Option<i32>,
}

/// Gives every request its context, and every answer the request's id. A handler that panics has answered with an internal error:
/// a bug in one request must not take others with it.
pub(super) async fn attach(mut request: Request, next: Next) -> Response {
    let id = request.headers().get(REQUEST_ID).filter(|id| is_sane(id)).cloned();
    let id = id.unwrap_or_else(|| {
        let id = Uuid::new_v4().simple().to_string();
        HeaderValue::try_from(id).expect("hexadecimal digits are a header value. This is a bug.")
    });
    let family = Family::of_path(request.uri().path());
    let mut response = match priority(&request) {
        Err(error) => error.respond(family),
        Ok(priority) => {
            let request_id: Arc<str> = id.to_str().unwrap_or_default().into();
            let context =
                Context { request_id, arrived: Instant::now(), tenant: Tenant::default(), priority };
            request.extensions_mut().insert(context);
            let answer = AssertUnwindSafe(next.run(request)).catch_unwind().await;
            answer.unwrap_or_else(|cause| ApiError::Internal(message(&*cause)).respond(family))
        }
    };
    response.headers_mut().insert(REQUEST_ID, id);
    response
}

/// What `x-priority` says.
fn priority(request: &Request) -> Result<Option<i32>, ApiError> {
    let Some(value) = request.headers().get(PRIORITY) else { return Ok(None) };
    let priority = value.to_str().ok().and_then(|text| text.trim().parse().ok());
    let message = || format!("`{PRIORITY}` must be a 32-bit integer");
    let error = || AdmitError::Invalid { param: PRIORITY.to_string(), message: message() };
    priority.map(Some).ok_or_else(error).map_err(ApiError::from)
}

/// What a panic said.
fn message(cause: &(dyn Any + Send)) -> String {
    let text =
        cause.downcast_ref::<String>().map(String::as_str).or_else(|| cause.downcast_ref::<&str>().copied());
    format!("a handler panicked: {}", text.unwrap_or("it did not say why"))
}

fn is_sane(id: &HeaderValue) -> bool {
    (1..=MAX_REQUEST_ID).contains(&id.len()) && id.as_bytes().iter().all(u8::is_ascii_graphic)
}

/// Counts the requests of the routes that generate, and those that fail before their answer begins. What becomes of an answer that
/// has begun is for whoever writes it to count.
pub(super) async fn count(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    app.requests.received();
    let id = request.extensions().get::<Context>().map(|context| Arc::clone(&context.request_id));
    let id = id.unwrap_or_else(|| "".into());
    let mut tally = Tally::new(&app.requests, id);
    let response = next.run(request).await;
    match response.extensions().get::<Failure>() {
        Some(failure) => tally.failed(*failure),
        None => tally.passed_on(),
    }
    response
}

/// Counts how a request ends, once; one that is dropped before it has ended was given up by its client.
pub(super) struct Tally {
    metrics: RequestMetrics,
    request_id: Arc<str>,
    has_ended: bool,
}

impl Tally {
    /// For a request that has not ended yet.
    pub(super) fn new(metrics: &RequestMetrics, request_id: Arc<str>) -> Self {
        Self { metrics: metrics.clone(), request_id, has_ended: false }
    }

    /// It failed.
    pub(super) fn failed(&mut self, failure: Failure) {
        tracing::info!(request_id = &*self.request_id, ?failure, "request failed");
        self.metrics.failed(failure);
        self.has_ended = true;
    }

    /// It was answered in full, and [`RequestMetrics::succeeded`] says so.
    pub(super) fn succeeded(&mut self, timings: &Timings) {
        self.metrics.succeeded(timings);
        self.has_ended = true;
    }

    /// Somebody else counts how it ends.
    pub(super) fn passed_on(&mut self) {
        self.has_ended = true;
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        if !self.has_ended {
            self.failed(Failure::Dropped);
        }
    }
}
