//! The listener's limits, on real sockets and with short times.

use std::{net::SocketAddr, time::Duration};

use anaphora_router::{config::HttpConfig, listener, shutdown::Shutdown};
use axum::{
    Router,
    body::Body,
    routing::{get, post},
};
use bytes::Bytes;
use futures::StreamExt as _;
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::{Instant, sleep, timeout},
};

const HEAD_TIMEOUT: Duration = Duration::from_millis(300);

/// A server of a few routes.
struct Server {
    address: SocketAddr,
    shutdown: Shutdown,
}

async fn start(config: HttpConfig) -> Server {
    let app = Router::new()
        .route("/", get(|| async { "hello" }))
        .route("/echo", post(|body: Bytes| async { body }))
        .route("/stream", get(|| async { Body::from_stream(ticks()) }));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, shutdown) = (listener.local_addr().unwrap(), Shutdown::new());
    shutdown.spawn(listener::serve(listener, app, config, shutdown.clone()));
    Server { address, shutdown }
}

/// Five ticks, 50 ms apart.
fn ticks() -> impl futures::Stream<Item = Result<&'static str, std::io::Error>> {
    futures::stream::iter(0..5).then(|_| async {
        sleep(Duration::from_millis(50)).await;
        Ok("tick ")
    })
}

fn config() -> HttpConfig {
    HttpConfig { header_read_timeout: HEAD_TIMEOUT, ..HttpConfig::default() }
}

/// Sends `request` and reads until the server closes the connection.
async fn exchange(address: SocketAddr, request: impl AsRef<[u8]>) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_ref()).await.unwrap();
    read_all(&mut stream).await
}

async fn read_all(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    // A reset after the answer is an end too.
    let _ = timeout(Duration::from_secs(5), stream.read_to_end(&mut answer)).await.unwrap();
    String::from_utf8(answer).unwrap()
}

/// Reads one answer whose body is `body`, and leaves the connection open.
async fn read_answer(stream: &mut TcpStream, body: &str) -> String {
    let mut answer = Vec::new();
    while !answer.ends_with(body.as_bytes()) {
        assert_ne!(stream.read_buf(&mut answer).await.unwrap(), 0, "{answer:?}");
    }
    String::from_utf8(answer).unwrap()
}

#[tokio::test]
async fn requests_are_answered_within_the_limits_of_their_heads() {
    let server = start(config()).await;
    let fields = |num_fields: usize| (0..num_fields).map(|n| format!("x-{n}: 1\r\n")).collect::<String>();
    let long = |num_bytes: usize| format!("x-long: {}\r\n", "a".repeat(num_bytes));
    for (headers, status) in [
        (String::new(), 200),
        (fields(61), 200),
        (fields(65), 431),
        (fields(5000), 431),
        (long(15_000), 200),
        (long(17_000), 431),
        (long(1_000_000), 431),
    ] {
        let request = format!("GET / HTTP/1.1\r\nhost: h\r\nconnection: close\r\n{headers}\r\n");
        let answer = exchange(server.address, request).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{} bytes: {answer}", headers.len());
    }
}

#[tokio::test]
async fn http2_is_spoken_and_limited_too() {
    let server = start(config()).await;
    for (num_fields, status) in [(0, 200), (62, 200), (65, 431)] {
        let stream = TokioIo::new(TcpStream::connect(server.address).await.unwrap());
        let (mut client, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await.unwrap();
        #[allow(clippy::disallowed_methods, reason = "the test's runtime ends with the test")]
        tokio::spawn(connection);
        let mut request = http::Request::get("http://h/");
        for n in 0..num_fields {
            request = request.header(format!("x-{n}"), "1");
        }
        let response = client.send_request(request.body(Empty::<Bytes>::new()).unwrap()).await.unwrap();
        assert_eq!(response.status().as_u16(), status, "{num_fields} fields");
        if status == 200 {
            assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "hello");
        }
    }
}

#[tokio::test]
async fn a_head_that_does_not_come_closes_the_connection() {
    let server = start(config()).await;
    for beginning in ["", "P", "PRI * HTTP/2.0\r\n", "GET / HT", "GET / HTTP/1.1\r\nhost: h\r\n"] {
        let began = Instant::now();
        let answer = exchange(server.address, beginning).await;
        let elapsed = began.elapsed();
        assert_eq!(answer, "", "{beginning:?}");
        assert!(elapsed >= HEAD_TIMEOUT && elapsed < 3 * HEAD_TIMEOUT, "{beginning:?}: {elapsed:?}");
    }
}

#[tokio::test]
async fn a_head_that_trickles_is_cut_off() {
    let server = start(config()).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let began = Instant::now();
    // A byte every 20 ms would take 2 s; the whole head has 0.3 s (and its first byte may wait as long before).
    for byte in
        "GET / HTTP/1.1\r\nhost: h\r\nx-slow: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
            .bytes()
    {
        if stream.write_all(&[byte]).await.is_err() {
            break;
        }
        sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(read_all(&mut stream).await, "");
    assert!(began.elapsed() < Duration::from_millis(2500), "{:?}", began.elapsed());
}

#[tokio::test]
async fn an_idle_connection_is_kept_for_the_next_request() {
    let server = start(config()).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    for _ in 0..2 {
        stream.write_all(b"GET / HTTP/1.1\r\nhost: h\r\n\r\n").await.unwrap();
        let answer = read_answer(&mut stream, "hello").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        sleep(2 * HEAD_TIMEOUT).await;
    }
    // And on it too, a head that has begun must come to its end.
    stream.write_all(b"GET / HT").await.unwrap();
    let began = Instant::now();
    assert_eq!(read_all(&mut stream).await, "");
    assert!(began.elapsed() < 3 * HEAD_TIMEOUT);
}

#[tokio::test]
async fn a_body_or_an_answer_may_take_longer_than_a_head() {
    let server = start(HttpConfig { header_read_timeout: Duration::from_millis(50), ..config() }).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream
        .write_all(b"POST /echo HTTP/1.1\r\nhost: h\r\nconnection: close\r\ncontent-length: 4\r\n\r\n")
        .await
        .unwrap();
    for byte in b"slow" {
        sleep(Duration::from_millis(40)).await;
        stream.write_all(&[*byte]).await.unwrap();
    }
    assert!(read_all(&mut stream).await.ends_with("slow"));
    let answer =
        exchange(server.address, "GET /stream HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n").await;
    assert_eq!(answer.matches("tick").count(), 5);
}

#[tokio::test]
async fn over_the_bound_connections_are_told_so() {
    let server = start(HttpConfig { max_connections: 2, ..config() }).await;
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nhost: h\r\n\r\n").await.unwrap();
        read_answer(&mut stream, "hello").await;
        held.push(stream);
    }
    let answer = read_all(&mut TcpStream::connect(server.address).await.unwrap()).await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("retry-after: 1"), "{answer}");
    drop(held.pop());
    sleep(Duration::from_millis(50)).await;
    let answer = exchange(server.address, "GET / HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n").await;
    assert!(answer.ends_with("hello"), "{answer}");
}

#[tokio::test]
async fn a_drain_finishes_answers_and_closes_connections() {
    let server = start(config()).await;
    let mut idle = TcpStream::connect(server.address).await.unwrap();
    idle.write_all(b"GET / HTTP/1.1\r\nhost: h\r\n\r\n").await.unwrap();
    read_answer(&mut idle, "hello").await;
    let mut busy = TcpStream::connect(server.address).await.unwrap();
    busy.write_all(b"GET /stream HTTP/1.1\r\nhost: h\r\n\r\n").await.unwrap();
    sleep(Duration::from_millis(80)).await;

    server.shutdown.drain.cancel();
    assert_eq!(read_all(&mut idle).await, "");
    assert_eq!(read_all(&mut busy).await.matches("tick").count(), 5);
    // The listener is still open, so that a load balancer can be told, and says that this is the last answer.
    let answer = exchange(server.address, "GET / HTTP/1.1\r\nhost: h\r\n\r\n").await;
    assert!(answer.contains("connection: close") && answer.ends_with("hello"), "{answer}");

    assert!(server.shutdown.finish(Duration::from_secs(1)).await);
    assert!(TcpStream::connect(server.address).await.is_err());
}
