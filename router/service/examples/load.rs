//! The client side of `benchmarks/streaming.py`: many streams at once, read with as little work as can be, so that what is measured
//! is the server.
//!
//! `load ADDRESS PATH STREAMS ROUNDS NEW_TOKENS` prints the tokens, the seconds, and the reads that they took.
//! `load floor WRITES BYTES` prints the CPU seconds that so many writes to a local socket cost: what a server pays that makes one
//! system call per token and does nothing else.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream as StdStream},
    time::Instant,
};

use rustix::time::{ClockId, clock_gettime};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// Words that are one token each with every tokenizer that is likely here, or nearly so.
const WORDS: [&str; 16] = [
    "time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school",
    "state", "family", "student", "group",
];

const PROMPT_WORDS: usize = 32;

type AnyError = Box<dyn std::error::Error + Send + Sync>;

#[expect(clippy::disallowed_methods, reason = "a program of its own, with arguments of its own")]
fn main() -> Result<(), AnyError> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["floor", num_writes, num_bytes] => floor(num_writes.parse()?, num_bytes.parse()?),
        [address, path, streams, rounds, new_tokens] => {
            let load = Load {
                address: address.parse()?,
                path: path.to_owned(),
                num_rounds: rounds.parse()?,
                num_new_tokens: new_tokens.parse()?,
            };
            load.run(streams.parse()?)
        }
        _ => Err("usage: load ADDRESS PATH STREAMS ROUNDS NEW_TOKENS | load floor WRITES BYTES".into()),
    }
}

/// What every stream does.
#[derive(Clone)]
struct Load {
    address: SocketAddr,
    path: String,
    num_rounds: usize,
    num_new_tokens: usize,
}

/// What came of it.
#[derive(Clone, Copy, Default)]
struct Tally {
    num_tokens: u64,
    num_reads: u64,
    num_bytes: u64,
}

impl Load {
    #[expect(clippy::print_stdout, reason = "the result")]
    #[expect(clippy::disallowed_methods, reason = "the tasks end with the program")]
    fn run(self, num_streams: usize) -> Result<(), AnyError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let began = Instant::now();
            let tasks: Vec<_> = (0..num_streams)
                .map(|stream| {
                    let load = self.clone();
                    tokio::spawn(async move { load.stream(stream).await })
                })
                .collect();
            let mut total = Tally::default();
            for task in tasks {
                let tally = task.await??;
                total.num_tokens += tally.num_tokens;
                total.num_reads += tally.num_reads;
                total.num_bytes += tally.num_bytes;
            }
            let Tally { num_tokens, num_reads, num_bytes } = total;
            let seconds = began.elapsed().as_secs_f64();
            println!(
                r#"{{"tokens":{num_tokens},"seconds":{seconds},"reads":{num_reads},"bytes":{num_bytes}}}"#
            );
            Ok(())
        })
    }

    /// One request after another on one connection.
    async fn stream(&self, stream: usize) -> Result<Tally, AnyError> {
        let mut connection = TcpStream::connect(self.address).await?;
        connection.set_nodelay(true)?;
        let mut tally = Tally::default();
        let mut buffer = vec![0; 64 * 1024];
        for round in 0..self.num_rounds {
            connection.write_all(self.request(stream * self.num_rounds + round).as_bytes()).await?;
            // Only the end of an answer is looked at: the usage is in its last event but one.
            let mut end = Vec::new();
            loop {
                let num_read = connection.read(&mut buffer).await?;
                if num_read == 0 {
                    return Err(format!("the server hung up: {}", String::from_utf8_lossy(&end)).into());
                }
                tally.num_reads += 1;
                tally.num_bytes += num_read as u64;
                end.extend_from_slice(&buffer[num_read.saturating_sub(1024)..num_read]);
                end.drain(..end.len().saturating_sub(1024));
                if end.ends_with(b"\r\n0\r\n\r\n") {
                    break;
                }
            }
            tally.num_tokens += completion_tokens(&end)?;
        }
        Ok(tally)
    }

    fn request(&self, number: usize) -> String {
        let word = |index: usize| WORDS[(number >> (index % 16)).wrapping_mul(index + 7) % WORDS.len()];
        let prompt: Vec<&str> = (0..PROMPT_WORDS).map(word).collect();
        let prompt = prompt.join(" ");
        let asked = if self.path.ends_with("/chat/completions") {
            format!(r#""messages":[{{"role":"user","content":"{prompt}"}}]"#)
        } else {
            format!(r#""prompt":"{prompt}""#)
        };
        let max_tokens = self.num_new_tokens;
        let body = format!(
            r#"{{{asked},"max_tokens":{max_tokens},"ignore_eos":true,"stream":true,"stream_options":{{"include_usage":true}}}}"#
        );
        let (path, length) = (&self.path, body.len());
        format!(
            "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
        )
    }
}

fn completion_tokens(end: &[u8]) -> Result<u64, AnyError> {
    let text = String::from_utf8_lossy(end);
    let (_, count) =
        text.rsplit_once(r#""completion_tokens":"#).ok_or_else(|| format!("no usage: {text}"))?;
    let digits: String = count.chars().take_while(char::is_ascii_digit).collect();
    Ok(digits.parse()?)
}

/// One thread writes, another one reads.
#[expect(clippy::print_stdout, reason = "the result")]
fn floor(num_writes: usize, num_bytes: usize) -> Result<(), AnyError> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let mut writer = StdStream::connect(listener.local_addr()?)?;
    writer.set_nodelay(true)?;
    let (mut reader, _) = listener.accept()?;
    let reading = std::thread::spawn(move || {
        let mut buffer = vec![0; 64 * 1024];
        while reader.read(&mut buffer).is_ok_and(|num_read| num_read > 0) {}
    });
    let event = vec![b'x'; num_bytes];
    let began = thread_seconds();
    for _ in 0..num_writes {
        writer.write_all(&event)?;
    }
    println!("{}", thread_seconds() - began);
    drop(writer);
    reading.join().map_err(|_| "the reader panicked".into())
}

fn thread_seconds() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}
