//! One connection: which protocol it speaks, how long a request's head may take, and the span of each request.

use std::{
    convert::Infallible,
    io,
    pin::{Pin, pin},
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{Router, body::Body};
use bytes::Bytes;
use futures::future::BoxFuture;
use http::{Request, Response};
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use hyper_util::server::graceful::GracefulConnection;
use pin_project_lite::pin_project;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::Notify,
    time::{Instant, sleep, sleep_until},
};
use tower::ServiceExt as _;
use tracing::Instrument as _;

use super::too_many_headers;
use crate::{shutdown::Shutdown, telemetry};

/// How an HTTP/2 connection begins.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A client that sends the preface in pieces is rare, and polling for the next piece harmless.
const PEEK_AGAIN: Duration = Duration::from_millis(5);

/// Whether the connection begins like HTTP/2. Consumes nothing; waits until the first bytes tell.
pub(super) async fn speaks_http2(stream: &TcpStream) -> io::Result<bool> {
    let mut first = [0; PREFACE.len()];
    loop {
        let num_bytes = stream.peek(&mut first).await?;
        if num_bytes == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if first[..num_bytes] != PREFACE[..num_bytes] {
            return Ok(false);
        }
        if num_bytes == PREFACE.len() {
            return Ok(true);
        }
        sleep(PEEK_AGAIN).await;
    }
}

/// Runs a connection to its end, or until `expired`; in a drain, until it has given the answer that it is giving.
pub(super) async fn drive<C: GracefulConnection>(
    connection: C,
    shutdown: &Shutdown,
    expired: impl Future<Output = ()>,
) {
    let mut connection = pin!(connection);
    let mut expired = pin!(expired);
    // During the drain a connection is new, and has its one answer still to give.
    if !shutdown.drain.is_cancelled() {
        tokio::select! {
            _ = connection.as_mut() => return,
            () = expired.as_mut() => return,
            () = shutdown.drain.cancelled() => connection.as_mut().graceful_shutdown(),
        }
    }
    // How a connection broke is its client's business.
    tokio::select! {
        _ = connection.as_mut() => {}
        () = expired => {}
    }
}

// === the time of a request's head ===

/// From the first byte of a request to the end of its head, on an HTTP/1 connection. (hyper's own timeout counts the idle time
/// before the first byte too, which must be allowed to be longer.)
#[derive(Debug)]
pub(super) struct HeadClock {
    limit: Duration,
    state: Mutex<HeadState>,
    changed: Notify,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HeadState {
    /// No request: bytes that come are the beginning of one.
    Idle,
    /// It has begun; its head must be complete by then.
    Reading(Instant),
    /// The head is complete; bytes that come are its body, or the next request's.
    Serving,
}

impl HeadClock {
    pub(super) fn new(limit: Duration) -> Arc<Self> {
        Arc::new(Self { limit, state: Mutex::new(HeadState::Idle), changed: Notify::new() })
    }

    /// Completes when a head has taken too long.
    pub(super) async fn expired(&self) {
        loop {
            let state = *self.lock();
            match state {
                HeadState::Reading(deadline) => tokio::select! {
                    () = self.changed.notified() => {}
                    () = sleep_until(deadline) => return,
                },
                HeadState::Idle | HeadState::Serving => self.changed.notified().await,
            }
        }
    }

    fn received(&self) {
        let mut state = self.lock();
        if *state == HeadState::Idle {
            *state = HeadState::Reading(Instant::now() + self.limit);
            self.changed.notify_one();
        }
    }

    fn set(&self, state: HeadState) {
        *self.lock() = state;
        self.changed.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, HeadState> {
        self.state.lock().expect("nothing panics while it holds this lock. This is a bug.")
    }
}

pin_project! {
    /// A stream that tells the clock when bytes arrive.
    pub(super) struct Watched<S> {
        #[pin]
        stream: S,
        clock: Arc<HeadClock>,
    }
}

impl<S> Watched<S> {
    pub(super) fn new(stream: S, clock: Arc<HeadClock>) -> Self {
        Self { stream, clock }
    }
}

impl<S: AsyncRead> AsyncRead for Watched<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.project();
        let before = buffer.filled().len();
        ready!(this.stream.poll_read(cx, buffer))?;
        if buffer.filled().len() > before {
            this.clock.received();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite> AsyncWrite for Watched<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.project().stream.poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.project().stream.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.project().stream.poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.project().stream.poll_write_vectored(cx, buffers)
    }
}

// === requests ===

/// The app, under the header limit and within a span per request.
pub(super) struct Service {
    app: Router,
    max_header_fields: usize,
    clock: Option<Arc<HeadClock>>,
}

impl Service {
    pub(super) fn new(app: Router, max_header_fields: usize, clock: Option<Arc<HeadClock>>) -> Self {
        Self { app, max_header_fields, clock }
    }
}

impl hyper::service::Service<Request<Incoming>> for Service {
    type Response = Response<Answer>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Answer>, Infallible>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        if let Some(clock) = &self.clock {
            clock.set(HeadState::Serving);
        }
        let span = telemetry::request_span(&request);
        let guard = Guard { clock: self.clock.clone(), span: span.clone() };
        let too_many = request.headers().len() > self.max_header_fields;
        let app = self.app.clone();
        let answer = async move {
            let response = if too_many { Ok(too_many_headers()) } else { app.oneshot(request).await };
            let response = response.unwrap_or_else(|never| match never {});
            guard.span.record("http.response.status_code", response.status().as_u16());
            Ok(response.map(|body| Answer { body, guard }))
        };
        Box::pin(answer.instrument(span))
    }
}

/// What lasts as long as the answer to a request does.
struct Guard {
    clock: Option<Arc<HeadClock>>,
    span: tracing::Span,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(clock) = &self.clock {
            clock.set(HeadState::Idle);
        }
    }
}

pin_project! {
    /// An answer's body, which keeps the request's span open to its end.
    pub(super) struct Answer {
        #[pin]
        body: Body,
        guard: Guard,
    }
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = self.project();
        let _entered = this.guard.span.enter();
        this.body.poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
