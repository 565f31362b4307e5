//! Everything that people read: the children's log lines and our own on stderr, progress and the final block on stdout.
//!
//! One thread owns both streams and the progress bar, so that lines never tear each other. Everyone else hands items to it
//! through a bounded queue and never waits: if nobody reads our stderr, log lines are dropped and counted, and neither a
//! child nor the supervision of it comes to a halt.

use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Map, Value};

use crate::child::ChildId;
use crate::progress::Output;

/// How many items may wait to be written.
const QUEUE: usize = 4096;

/// How long the end of the launcher waits for a slow reader of its output.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// Where lines are handed in. Cheap to clone; never blocks.
#[derive(Debug, Clone)]
pub(crate) struct Console {
    items: SyncSender<Item>,
    num_dropped: Arc<AtomicU64>,
}

/// The writing end of a [`Console`]; see [`ConsoleWriter::finish`].
#[derive(Debug)]
pub(crate) struct ConsoleWriter {
    items: SyncSender<Item>,
    written: Receiver<()>,
}

#[derive(Debug)]
enum Item {
    Log {
        child: Option<ChildId>,
        line: String,
    },
    Progress(Output),
    /// Why it all ends.
    Error(String),
    End,
}

impl Console {
    /// Starts the writing thread. With `json`, everything becomes JSON lines on stderr.
    pub(crate) fn start(json: bool) -> (Self, ConsoleWriter) {
        let (items, queue) = mpsc::sync_channel(QUEUE);
        let (done, written) = mpsc::channel();
        let num_dropped = Arc::new(AtomicU64::new(0));
        let dropped = Arc::clone(&num_dropped);
        thread::spawn(move || {
            let mut writer = Writer { json, bar: None, num_dropped: dropped };
            queue
                .into_iter()
                .take_while(|item| !matches!(item, Item::End))
                .for_each(|item| writer.write(item));
            writer.end_bar();
            let _ = done.send(());
        });
        (Self { items: items.clone(), num_dropped }, ConsoleWriter { items, written })
    }

    /// A log line of `child`.
    pub(crate) fn log(&self, child: ChildId, line: String) {
        self.put(Item::Log { child: Some(child), line });
    }

    /// A log line of the launcher itself.
    pub(crate) fn say(&self, line: impl Into<String>) {
        self.put(Item::Log { child: None, line: line.into() });
    }

    /// A step of the start-up, for stdout.
    pub(crate) fn progress(&self, output: Output) {
        self.put(Item::Progress(output));
    }

    /// Why the launcher ends, for the person at the terminal.
    pub(crate) fn error(&self, message: String) {
        self.put(Item::Error(message));
    }

    fn put(&self, item: Item) {
        if self.items.try_send(item).is_err() {
            self.num_dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl ConsoleWriter {
    /// Waits until all that was handed in before has been written, but not for ever.
    pub(crate) fn finish(self) {
        if self.items.try_send(Item::End).is_ok() {
            let _ = self.written.recv_timeout(FLUSH_TIMEOUT);
        }
    }
}

/// What the writing thread owns.
struct Writer {
    json: bool,
    bar: Option<ProgressBar>,
    num_dropped: Arc<AtomicU64>,
}

// === impl Writer ===

impl Writer {
    fn write(&mut self, item: Item) {
        match item {
            Item::Log { child, line } => self.log(&origin(child), &line),
            Item::Progress(Output::Bar { label, done, total, unit }) if self.on_terminal() => {
                self.draw(label, done, total, unit);
            }
            Item::Progress(Output::Heartbeat(line)) if !self.on_terminal() => self.line(&line),
            Item::Progress(Output::Line(line)) => {
                self.end_bar();
                self.line(&line);
            }
            Item::Progress(Output::Block(lines)) => {
                self.end_bar();
                lines.iter().for_each(|line| self.line(line));
            }
            Item::Error(message) => {
                self.end_bar();
                let message = format!("error: {message}");
                if self.json {
                    self.log(&origin(None), &message);
                } else {
                    let _ = writeln!(std::io::stderr().lock(), "{message}");
                }
            }
            Item::Progress(_) | Item::End => {}
        }
        let dropped = self.num_dropped.swap(0, Ordering::Relaxed);
        if dropped > 0 {
            self.log(
                &origin(None),
                &format!("{dropped} lines dropped: this output was not read fast enough"),
            );
        }
    }

    /// Writes one line to stdout, or to the log where all output is JSON.
    fn line(&self, line: &str) {
        if self.json {
            if !line.is_empty() {
                self.log(&origin(None), line);
            }
        } else {
            let mut stdout = std::io::stdout().lock();
            // A closed stdout is no reason to stop serving.
            let _ = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
        }
    }

    fn log(&self, origin: &str, line: &str) {
        let text =
            if self.json { to_json(origin, line, SystemTime::now()) } else { format!("{origin} | {line}") };
        let write = || {
            let _ = writeln!(std::io::stderr().lock(), "{text}");
        };
        match &self.bar {
            Some(bar) => bar.suspend(write),
            None => write(),
        }
    }

    fn on_terminal(&self) -> bool {
        !self.json && std::io::stdout().is_terminal()
    }

    fn draw(&mut self, label: &'static str, done: u64, total: u64, unit: String) {
        let bar = self.bar.get_or_insert_with(|| {
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stdout());
            let template = "{prefix:17}  {bar:30}  {pos}/{len} {msg}  {elapsed}";
            bar.set_style(
                ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()),
            );
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        bar.set_prefix(label);
        bar.set_message(unit);
        bar.set_length(total);
        bar.set_position(done);
    }

    fn end_bar(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

fn origin(child: Option<ChildId>) -> String {
    child.map_or_else(|| "launcher".to_owned(), |child| child.to_string())
}

/// `line` as one JSON object: a child's own object with its origin added, anything else as a message.
fn to_json(origin: &str, line: &str, now: SystemTime) -> String {
    let mut object = match serde_json::from_str(line) {
        Ok(Value::Object(object)) => object,
        _ => Map::from_iter([
            ("timestamp".to_owned(), Value::from(rfc3339(now))),
            ("message".to_owned(), Value::from(line)),
        ]),
    };
    object.insert("origin".to_owned(), Value::from(origin));
    Value::Object(object).to_string()
}

/// `time` in UTC, to the millisecond. The calendar is Howard Hinnant's `civil_from_days`
/// (<https://howardhinnant.github.io/date_algorithms.html>): years that begin in March put the leap day last.
fn rfc3339(time: SystemTime) -> String {
    let since_epoch = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since_epoch.as_secs() / 86_400 + 719_468, since_epoch.as_secs() % 86_400);
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = 400 * era + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!(
        "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z",
        since_epoch.subsec_millis()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_lines() {
        let now = UNIX_EPOCH + Duration::from_millis(1_709_210_096_789);
        let check = |line, expect: &str| assert_eq!(to_json("shard-0", line, now), expect);
        check(
            "loaded \"x\"",
            r#"{"timestamp":"2024-02-29T12:34:56.789Z","message":"loaded \"x\"","origin":"shard-0"}"#,
        );
        check(r#"{"level":"INFO","message":"m"}"#, r#"{"level":"INFO","message":"m","origin":"shard-0"}"#);
        check("[1]", r#"{"timestamp":"2024-02-29T12:34:56.789Z","message":"[1]","origin":"shard-0"}"#);
    }

    #[test]
    fn calendar() {
        let check = |seconds, expect: &str| {
            assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_secs(seconds)), format!("{expect}.000Z"));
        };
        check(0, "1970-01-01T00:00:00");
        check(951_782_399, "2000-02-28T23:59:59");
        check(951_782_400, "2000-02-29T00:00:00");
        check(978_307_199, "2000-12-31T23:59:59");
        check(1_798_761_600, "2027-01-01T00:00:00");
        check(4_107_542_400, "2100-03-01T00:00:00");
    }
}
