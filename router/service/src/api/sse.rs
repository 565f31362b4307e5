//! Answers as server-sent events.
//!
//! The answer begins with the first token: until then an error is a plain HTTP answer with its own status. From then on it is an
//! event, and the stream ends with it; a stream never just ends.

use std::{collections::VecDeque, convert::Infallible, sync::Arc, time::Duration};

use axum::response::{
    IntoResponse as _, Response, Sse,
    sse::{Event, KeepAlive},
};
use futures::{Stream, stream};
use http::{HeaderName, HeaderValue};
use serde::Serialize;

use super::{
    App, Context,
    context::Tally,
    error::{ApiError, Family},
    headers,
};
use crate::stream::{Choices, Delta, Totals};

/// How often a comment keeps an idle connection alive.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Tells proxies not to collect a stream before they pass it on.
const ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// How one API writes a stream.
pub(super) trait Chunks: Send + 'static {
    /// Whose errors it uses.
    const FAMILY: Family;

    /// The events that a delta of the choice `index` makes.
    ///
    /// # Errors
    /// If a token cannot be written.
    fn delta(&mut self, index: usize, delta: Delta, totals: &Totals) -> Result<Vec<Event>, ApiError>;

    /// The events after the last delta of all choices.
    fn end(&mut self, totals: &Totals) -> Vec<Event>;
}

/// Waits for the first delta, then answers with `choices` as `chunks` writes them.
///
/// # Errors
/// What goes wrong before the first delta.
pub(super) async fn respond<C: Chunks>(
    app: &App,
    context: &Context,
    mut choices: Choices,
    mut chunks: C,
) -> Result<Response, ApiError> {
    let mut ready = VecDeque::new();
    if let Some(first) = choices.next().await {
        let (index, delta) = first?;
        ready.extend(chunks.delta(index, delta, choices.totals())?);
    }
    let totals = choices.totals().clone();
    let tally = Tally::new(&app.requests, Arc::clone(&context.request_id));
    let writer = Writer { choices: Some(choices), chunks, ready, tally, context: context.clone() };
    let keep_alive = KeepAlive::new().interval(KEEP_ALIVE);
    let mut response = Sse::new(writer.into_stream()).keep_alive(keep_alive).into_response();
    headers::prefix_cache(response.headers_mut(), &totals);
    response.headers_mut().insert(ACCEL_BUFFERING, HeaderValue::from_static("no"));
    Ok(response)
}

/// A value as an event.
pub(super) fn event<T: Serialize>(value: &T) -> Event {
    Event::default().json_data(value).expect("wire structs are JSON. This is a bug.")
}

/// A stream that is being written.
struct Writer<C> {
    /// `None` once the end, or an error, is in `ready`. Dropping it cancels what still runs.
    choices: Option<Choices>,
    chunks: C,
    ready: VecDeque<Event>,
    tally: Tally,
    context: Context,
}

impl<C: Chunks> Writer<C> {
    fn into_stream(self) -> impl Stream<Item = Result<Event, Infallible>> {
        stream::unfold(self, |mut writer| async move { writer.next().await.map(|event| (Ok(event), writer)) })
    }

    async fn next(&mut self) -> Option<Event> {
        while self.ready.is_empty() {
            self.advance().await?;
        }
        self.ready.pop_front()
    }

    /// Makes the next events; `None` when there is nothing more to come.
    async fn advance(&mut self) -> Option<()> {
        let choices = self.choices.as_mut()?;
        let step = match choices.next().await {
            Some(Ok((index, delta))) => self.chunks.delta(index, delta, choices.totals()),
            Some(Err(error)) => Err(error.into()),
            None => {
                self.ready.extend(self.chunks.end(choices.totals()));
                self.tally.succeeded(&choices.totals().timings(self.context.arrived));
                self.choices = None;
                return Some(());
            }
        };
        match step {
            Ok(events) => self.ready.extend(events),
            Err(error) => {
                self.choices = None;
                self.tally.failed(error.failure());
                self.ready.push_back(error.event(C::FAMILY));
                self.ready
                    .push_back(Event::default().comment(format!("request {}", self.context.request_id)));
            }
        }
        Some(())
    }
}
