//! The program itself, with its fake shard: what it prints, how it answers, how it ends.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// A running router.
struct Router {
    child: Child,
    _stdout: BufReader<ChildStdout>,
    ready: Value,
}

fn command(args: &[&str]) -> Command {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/letters");
    let mut command = Command::new(env!("CARGO_BIN_EXE_anaphora-router"));
    command.env_clear().arg("--model-path").arg(model).args(["--model-id", "letters", "--fake"]);
    if !args.contains(&"--port") {
        command.args(["--port", "0"]);
    }
    command.args(args).stdin(Stdio::null());
    command
}

impl Router {
    /// Starts one and waits for its first line.
    fn start(args: &[&str]) -> Self {
        let mut child = command(args).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        Self { child, _stdout: stdout, ready: serde_json::from_str(&line).unwrap() }
    }

    fn connect(&self) -> TcpStream {
        let url = self.ready["url"].as_str().unwrap();
        let stream = TcpStream::connect(url.strip_prefix("http://").unwrap()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }

    /// Sends a request; the answer is to be read from the stream.
    fn send(&self, method: &str, path: &str, body: &str) -> TcpStream {
        let mut stream = self.connect();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nhost: h\r\nconnection: close\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        stream
    }

    fn exchange(&self, method: &str, path: &str, body: &str) -> String {
        read_all(self.send(method, path, body))
    }

    fn signal(&self) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
    }

    fn exit_code(mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }
}

fn read_all(mut stream: TcpStream) -> String {
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// Reads a stream until it has shown `text`.
fn read_until(stream: &mut TcpStream, text: &str) -> String {
    let mut seen = Vec::new();
    let mut buffer = [0; 1024];
    while !String::from_utf8_lossy(&seen).contains(text) {
        let num_bytes = stream.read(&mut buffer).unwrap();
        assert_ne!(num_bytes, 0, "{}", String::from_utf8_lossy(&seen));
        seen.extend_from_slice(&buffer[..num_bytes]);
    }
    String::from_utf8(seen).unwrap()
}

fn generate(max_new_tokens: u32) -> String {
    format!(r#"{{"inputs":"abc","parameters":{{"max_new_tokens":{max_new_tokens}}}}}"#)
}

#[test]
fn it_says_that_it_is_ready_and_streams() {
    let router = Router::start(&["--fake-step-ms", "1"]);
    assert_eq!((&router.ready["event"], &router.ready["model"]), (&"ready".into(), &"letters".into()));
    assert!(router.exchange("GET", "/health", "").starts_with("HTTP/1.1 200"));
    let answer = router.exchange("POST", "/generate_stream", &generate(5));
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(answer.matches("data:").count(), 5, "{answer}");
    let metrics = router.exchange("GET", "/metrics", "");
    for expected in [
        r#"anaphora_kv_blocks{model="letters",state="free"}"#,
        r#"anaphora_kv_blocks_total{model="letters"} 4096"#,
        r#"anaphora_time_to_first_token_seconds_count{model="letters"} 1"#,
        r#"anaphora_inter_token_latency_seconds_count{model="letters"} 4"#,
        r#"anaphora_request_queue_seconds_count{model="letters"} 1"#,
        r#"anaphora_prefix_cache_tokens_total{model="letters",result="hit"} 0"#,
        r#"anaphora_preemptions_total{model="letters"} 0"#,
        r#"anaphora_requests_running{model="letters"} 0"#,
        r#"anaphora_requests_waiting{model="letters"} 0"#,
        r#"tgi_batch_inference_count{model="letters",method="prefill"} 1"#,
        r#"tgi_queue_size{model="letters"} 0"#,
        "# TYPE tgi_request_count counter",
        "# TYPE anaphora_inter_token_latency_seconds histogram",
    ] {
        assert!(metrics.contains(expected), "{expected} is not in {metrics}");
    }
    router.signal();
    assert_eq!(router.exit_code(), Some(0));
}

#[test]
fn a_signal_drains() {
    let router = Router::start(&["--fake-step-ms", "20"]);
    let mut stream = router.send("POST", "/generate_stream", &generate(50));
    let beginning = read_until(&mut stream, "data:");
    router.signal();
    let refused = loop {
        let answer = router.exchange("POST", "/generate", &generate(5));
        if !answer.starts_with("HTTP/1.1 200") {
            break answer;
        }
    };
    assert!(refused.starts_with("HTTP/1.1 503"), "{refused}");
    assert!(router.exchange("GET", "/health", "").starts_with("HTTP/1.1 503"));
    let answer = beginning + &read_all(stream);
    assert_eq!(answer.matches("data:").count(), 50, "{answer}");
    assert_eq!(router.exit_code(), Some(0));
}

#[test]
fn what_does_not_finish_in_time_is_told_so() {
    let router = Router::start(&["--fake-step-ms", "20", "--graceful-termination-timeout", "1"]);
    let mut stream = router.send("POST", "/generate_stream", &generate(4000));
    read_until(&mut stream, "data:");
    let began = Instant::now();
    router.signal();
    let answer = read_all(stream);
    assert!(answer.contains("\"error\""), "{answer}");
    assert_eq!(router.exit_code(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
}

#[test]
fn a_second_signal_ends_at_once() {
    let router = Router::start(&["--fake-step-ms", "20"]);
    let mut stream = router.send("POST", "/generate_stream", &generate(4000));
    read_until(&mut stream, "data:");
    router.signal();
    while !router.exchange("GET", "/health", "").starts_with("HTTP/1.1 503") {}
    let began = Instant::now();
    router.signal();
    assert_eq!(router.exit_code(), Some(1));
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
}

#[test]
fn what_keeps_it_from_running_has_a_code() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    for (args, code, words) in [
        (&["--port", &port][..], 4, "cannot listen on 127.0.0.1"),
        (&["--model-path", "/no/such/model"], 2, "cannot be used multiple times"),
        (&["--max-batch-size", "0"], 2, "--max-batch-size must be at least 1"),
        (&["--tokenizer", "/no/such/tokenizer.json"], 3, "/no/such/tokenizer.json"),
        (&["--log-level", "=,="], 2, "--log-level =,="),
        (&["--otlp-endpoint", "not a url"], 2, "--otlp-endpoint not a url"),
    ] {
        let output = command(args).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {stderr}");
        assert!(stderr.contains(words), "{args:?}: {stderr}");
        assert!(output.stdout.is_empty(), "{args:?}");
    }
}
