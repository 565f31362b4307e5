//! The HTTP listener: hyper under limits that `axum::serve` does not have.
//!
//! ```text
//! accept ─ full? 503 ─► first bytes (10 s) ─► HTTP/1 or HTTP/2 ─► head (10 s, 64 fields, 16 KiB: else 431) ─► api
//! ```
//! A drain lets connections finish the answer that they are giving, and new ones get one answer each.

mod connection;

use std::{sync::Arc, time::Duration};

use axum::Router;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::Full;
use hyper::server::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{sleep, timeout},
};

use self::connection::{HeadClock, Service, Watched, drive, speaks_http2};
use crate::{config::HttpConfig, metrics, shutdown::Shutdown};

/// An HTTP/1 connection without a request is closed after this; clients keep theirs in pools.
const IDLE_TIMEOUT: Duration = Duration::from_secs(75);

/// HTTP/2 pings tell a client that is gone from one that waits.
const PING: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(20));

/// What is read of a connection at a time, and buffered for it.
const BUFFER_BYTES: usize = 64 * 1024;

/// Out of file descriptors, or the like: nothing to do but wait for a connection to end.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

const TOO_MANY_CONNECTIONS: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";

/// What all connections share.
struct Shared {
    app: Router,
    config: HttpConfig,
    shutdown: Shutdown,
}

/// Serves `app` until [`Shutdown::stop`].
pub async fn serve(listener: TcpListener, app: Router, config: HttpConfig, shutdown: Shutdown) {
    let places = Arc::new(Semaphore::new(config.max_connections));
    let shared = Arc::new(Shared { app, config, shutdown });
    loop {
        let accepted = tokio::select! {
            biased;
            () = shared.shutdown.stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            metrics::connection_refused();
            shared.shutdown.spawn(refuse(stream));
            continue;
        };
        let connection = Arc::clone(&shared).connection(stream);
        shared.shutdown.spawn(async move {
            connection.await;
            drop(place);
        });
    }
}

async fn refuse(mut stream: TcpStream) {
    // It was told, or it was not: either way it is over.
    let _ = timeout(Duration::from_secs(1), stream.write_all(TOO_MANY_CONNECTIONS)).await;
}

impl Shared {
    async fn connection(self: Arc<Self>, stream: TcpStream) {
        // A token should leave when it is there, not when more follow.
        let _ = stream.set_nodelay(true);
        let first = timeout(self.config.header_read_timeout, speaks_http2(&stream)).await;
        let Ok(Ok(speaks_http2)) = first else { return };
        if speaks_http2 { self.http2(stream).await } else { self.http1(stream).await }
    }

    async fn http1(&self, stream: TcpStream) {
        let clock = HeadClock::new(self.config.header_read_timeout);
        let mut builder = http1::Builder::new();
        builder
            .timer(TokioTimer::new())
            .header_read_timeout(IDLE_TIMEOUT)
            .max_headers(self.config.max_header_fields)
            .max_header_size(self.config.max_header_bytes as usize)
            .max_buf_size(BUFFER_BYTES)
            .keep_alive(!self.shutdown.drain.is_cancelled());
        let service = Service::new(self.app.clone(), self.config.max_header_fields, Some(Arc::clone(&clock)));
        let connection =
            builder.serve_connection(TokioIo::new(Watched::new(stream, Arc::clone(&clock))), service);
        drive(connection, &self.shutdown, clock.expired()).await;
    }

    async fn http2(&self, stream: TcpStream) {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .max_concurrent_streams(self.config.max_streams)
            .max_header_list_size(self.config.max_header_bytes)
            .keep_alive_interval(PING.0)
            .keep_alive_timeout(PING.1);
        let service = Service::new(self.app.clone(), self.config.max_header_fields, None);
        let connection = builder.serve_connection(TokioIo::new(stream), service);
        drive(connection, &self.shutdown, std::future::pending()).await;
    }
}

/// The answer to a request with too many header fields.
fn too_many_headers() -> Response<axum::body::Body> {
    let mut response = Response::new(axum::body::Body::new(Full::from("too many header fields")));
    *response.status_mut() = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}
