//! Answers as server-sent events.
//!
//! The answer begins with the first token: until then an error is a plain HTTP answer with its own status. From then on it is an
//! event, and the stream ends with it; a stream never just ends.
//!
//! Whatever is ready when the connection asks becomes one frame, and so one write: a client that keeps up gets every token when it
//! is there, and one that does not costs a system call for many.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context as TaskContext, Poll, ready},
    time::Duration,
};

use axum::{
    body::{Body, Bytes},
    response::Response,
};
use http::{HeaderName, HeaderValue, header};
use http_body::Frame;
use serde::Serialize;
use tokio::time::{Instant, Sleep, sleep};

use super::{
    App, Context,
    context::Tally,
    error::{ApiError, Family},
    headers,
};
use crate::stream::{Choices, Delta, StreamError, Totals};

/// A comment keeps a connection alive that was idle for at least so long, and at most twice as long.
const KEEP_ALIVE: Duration = Duration::from_millis(7500);

/// A frame that is longer is sent, even if more is ready.
const FRAME_BYTES: usize = 16 * 1024;

/// Room for some events.
const MIN_BUFFER_BYTES: usize = 1024;

/// Tells proxies not to collect a stream before they pass it on.
const ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// How one API writes a stream.
pub(super) trait Chunks: Send + Unpin + 'static {
    /// Whose errors it uses.
    const FAMILY: Family;

    /// Writes the events that a delta of the choice `index` makes.
    ///
    /// # Errors
    /// If a token cannot be written.
    fn delta(
        &mut self,
        index: usize,
        delta: Delta,
        totals: &Totals,
        events: &mut Events,
    ) -> Result<(), ApiError>;

    /// Writes the events after the last delta of all choices.
    fn end(&mut self, totals: &Totals, events: &mut Events);
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
    let mut events = Events::default();
    if let Some(first) = choices.next().await {
        let (index, delta) = first?;
        chunks.delta(index, delta, choices.totals(), &mut events)?;
    }
    let mut response = Response::new(Body::empty());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(ACCEL_BUFFERING, HeaderValue::from_static("no"));
    headers::prefix_cache(headers, choices.totals());
    *response.body_mut() = Body::new(Stream {
        tally: Tally::new(&app.requests, Arc::clone(&context.request_id)),
        choices: Some(choices),
        chunks,
        events,
        keep_alive: Box::pin(sleep(KEEP_ALIVE)),
        is_idle: false,
        context: context.clone(),
    });
    Ok(response)
}

/// Events that wait to be sent.
#[derive(Debug, Default)]
pub(super) struct Events(Vec<u8>);

impl Events {
    /// A value as an event.
    pub(super) fn json<T: Serialize>(&mut self, value: &T) {
        self.0.extend_from_slice(b"data: ");
        serde_json::to_writer(&mut self.0, value).expect("wire structs are JSON. This is a bug.");
        self.0.extend_from_slice(b"\n\n");
    }

    /// An event like others but for its text.
    pub(super) fn text(&mut self, mold: &Mold, text: &str) {
        self.0.extend_from_slice(&mold.before);
        serde_json::to_writer(&mut self.0, text).expect("a string is JSON. This is a bug.");
        self.0.extend_from_slice(&mold.after);
    }

    /// A line of text as an event.
    pub(super) fn line(&mut self, text: &str) {
        self.0.extend_from_slice(b"data: ");
        self.0.extend_from_slice(text.as_bytes());
        self.0.extend_from_slice(b"\n\n");
    }

    /// A line that clients do not see.
    fn comment(&mut self, text: &str) {
        self.0.extend_from_slice(b": ");
        self.0.extend_from_slice(text.as_bytes());
        self.0.extend_from_slice(b"\n\n");
    }
}

/// An event that differs from others in one text alone, as nearly all of a stream's do: all of it but that is written once.
#[derive(Debug)]
pub(super) struct Mold {
    before: Vec<u8>,
    after: Vec<u8>,
}

impl Mold {
    /// Stands for the text in the event that a mold is made of.
    pub(super) const TEXT: &str = "\0";

    /// The mold of the event that `write` writes with [`TEXT`](Self::TEXT) in it.
    pub(super) fn new(write: impl FnOnce(&mut Events)) -> Self {
        let mut events = Events::default();
        write(&mut events);
        let mark = br#""\u0000""#;
        let place = events.0.windows(mark.len()).position(|window| window == mark);
        let place = place.expect("a mold is made of an event with a text. This is a bug.");
        Self { before: events.0[..place].to_vec(), after: events.0[place + mark.len()..].to_vec() }
    }
}

/// A stream that is being written.
struct Stream<C> {
    /// `None` once the end, or an error, is in `events`. Dropping it cancels what still runs.
    choices: Option<Choices>,
    chunks: C,
    events: Events,
    tally: Tally,
    keep_alive: Pin<Box<Sleep>>,
    /// Nothing was sent since `keep_alive` was set.
    is_idle: bool,
    context: Context,
}

impl<C: Chunks> http_body::Body for Stream<C> {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = &mut *self;
        while this.events.0.len() < FRAME_BYTES {
            let Some(choices) = &mut this.choices else { break };
            let Poll::Ready(step) = choices.poll_next(cx) else { break };
            this.advance(step);
        }
        if !this.events.0.is_empty() {
            this.is_idle = false;
            let capacity = this.events.0.len().max(MIN_BUFFER_BYTES);
            let frame = std::mem::replace(&mut this.events.0, Vec::with_capacity(capacity));
            return Poll::Ready(Some(Ok(Frame::data(frame.into()))));
        }
        if this.choices.is_none() {
            return Poll::Ready(None);
        }
        loop {
            ready!(this.keep_alive.as_mut().poll(cx));
            this.keep_alive.as_mut().reset(Instant::now() + KEEP_ALIVE);
            if std::mem::replace(&mut this.is_idle, true) {
                return Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b":\n\n")))));
            }
        }
    }
}

impl<C: Chunks> Stream<C> {
    /// Writes what came of the choices.
    fn advance(&mut self, step: Option<Result<(usize, Delta), StreamError>>) {
        let Some(choices) = &self.choices else { return };
        let totals = choices.totals();
        let written = match step {
            Some(Ok((index, delta))) => self.chunks.delta(index, delta, totals, &mut self.events),
            Some(Err(error)) => Err(error.into()),
            None => {
                self.chunks.end(totals, &mut self.events);
                self.tally.succeeded(&totals.timings(self.context.arrived));
                self.choices = None;
                return;
            }
        };
        if let Err(error) = written {
            self.choices = None;
            self.tally.failed(error.failure());
            error.event(C::FAMILY, &mut self.events);
            self.events.comment(&format!("request {}", self.context.request_id));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{Events, Mold};

    #[test]
    fn what_comes_out_of_a_mold_is_what_json_writes() {
        let value = |text: &str| json!({"id": "a\\u0000b", "choices": [{"index": 3, "text": text, "logprobs": null}]});
        let mold = Mold::new(|events| events.json(&value(Mold::TEXT)));
        for text in ["", "word", "\"quoted\"\\\n\r\t", "\0", "é🙂\u{2028}"] {
            let (mut molded, mut written) = (Events::default(), Events::default());
            molded.text(&mold, text);
            written.json(&value(text));
            assert_eq!(molded.0, written.0, "{text:?}");
        }
    }
}
