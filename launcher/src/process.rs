//! One child process: how it is started, listened to, signalled and reaped.
//!
//! ```text
//!   child ── stdout ─► reader ─┐ lines                                     ┌─► supervisor (the thread that spawned)
//!         ── stderr ─► reader ─┼─► console                                 │
//!         ── exit ───► waiter ─┴─ kill the rest of its group, then Exited ─┘   which then reaps it
//! ```
//!
//! What must hold:
//! - A child dies with the launcher, however that ends: the kernel kills it (`PR_SET_PDEATHSIG`) when the *thread* that
//!   spawned it is gone. So children are spawned from the thread that called `main_from_args`, which outlives them.
//! - Only that thread signals and reaps. The waiter sees the death without reaping (`WNOWAIT`), so the process id that a
//!   signal goes to is never someone else's.
//! - Each child leads a process group: Ctrl-C at the terminal reaches the launcher alone, and `kill` takes the child's own
//!   children along.

use std::collections::VecDeque;
use std::fmt;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, WaitIdStatus};

use crate::child::ChildId;
use crate::error::LaunchError;
use crate::lines::Lines;
use crate::logs::Console;
use crate::plan::ChildCommand;

/// How many of a child's last lines on stderr are kept for the message about its death.
const NUM_LAST_WORDS: usize = 40;

/// How long the rest of a dead child's output is waited for. Longer only if a process that left its group holds the pipe.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(500);

/// What reaches the supervising thread.
#[derive(Debug)]
pub(crate) enum Message {
    /// A line on a child's stdout.
    Line { child: ChildId, incarnation: u32, line: String },
    /// A child is dead, and all that it said has been delivered.
    Exited { child: ChildId, incarnation: u32, death: Death },
    /// The launcher was asked to stop.
    Stop,
}

/// How a child ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Death {
    pub(crate) cause: Cause,
    /// The last lines of its stderr.
    pub(crate) last_words: Vec<String>,
}

/// An exit code or the signal that killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    Code(i32),
    Signal(i32),
}

impl fmt::Display for Cause {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Code(code) => write!(formatter, "exit code {code}"),
            Self::Signal(signal) => match signal_hook::low_level::signal_name(signal) {
                Some(name) => write!(formatter, "killed by {name}"),
                None => write!(formatter, "killed by signal {signal}"),
            },
        }
    }
}

/// A child that has been started and not yet reaped.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    pid: Pid,
}

impl Process {
    /// Starts `command` as `id`. Its output, and its death, arrive at `messages` with `incarnation`; its log lines go to
    /// `console`.
    ///
    /// # Errors
    /// If the command cannot be executed.
    pub(crate) fn spawn(
        id: ChildId,
        incarnation: u32,
        command: &ChildCommand,
        messages: &Sender<Message>,
        console: &Console,
    ) -> Result<Self, LaunchError> {
        let failed =
            |source| LaunchError::Spawn { command: command.program.to_string_lossy().into_owned(), source };
        let mut child = start(command).map_err(failed)?;
        let pid = Pid::from_child(&child);
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let last_words = Arc::new(Mutex::new(VecDeque::with_capacity(NUM_LAST_WORDS)));
        // Readers hold a sender each and send nothing: when both are gone, all output has been delivered.
        let (reading, read) = mpsc::channel::<()>();

        let (lines, done) = (messages.clone(), reading.clone());
        read_lines(stdout, done, move |line| {
            // The receiver is gone only when the launcher is ending.
            let _ = lines.send(Message::Line { child: id, incarnation, line });
        });
        let (log, words) = (console.clone(), Arc::clone(&last_words));
        read_lines(stderr, reading, move |line| {
            let mut words = words.lock().unwrap_or_else(PoisonError::into_inner);
            if words.len() == NUM_LAST_WORDS {
                words.pop_front();
            }
            words.push_back(line.clone());
            drop(words);
            log.log(id, line);
        });
        let messages = messages.clone();
        thread::spawn(move || {
            let cause = wait_without_reaping(pid);
            // What the child started and left behind; the group is still named by the unreaped child.
            let _ = rustix::process::kill_process_group(pid, Signal::KILL);
            let _ = read.recv_timeout(DRAIN_TIMEOUT);
            let last_words = last_words.lock().unwrap_or_else(PoisonError::into_inner).drain(..).collect();
            let _ =
                messages.send(Message::Exited { child: id, incarnation, death: Death { cause, last_words } });
        });
        Ok(Self { child, pid })
    }

    /// Asks the process to end.
    pub(crate) fn terminate(&self) {
        // It fails only for a process that is dead already.
        let _ = rustix::process::kill_process(self.pid, Signal::TERM);
    }

    /// Ends the process and all that it started.
    pub(crate) fn kill(&self) {
        let _ = rustix::process::kill_process_group(self.pid, Signal::KILL);
    }

    /// Takes the dead process off the kernel's table; returns at once after its [`Message::Exited`].
    pub(crate) fn reap(mut self) {
        let _ = self.child.wait();
    }
}

/// Runs `command` in a process group of its own, with piped output, to be killed when this thread ends.
fn start(command: &ChildCommand) -> std::io::Result<Child> {
    let parent = rustix::process::getpid();
    let mut process = Command::new(&command.program);
    process.args(&command.args).process_group(0);
    process.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    for (name, value) in &command.variables {
        match value {
            Some(value) => process.env(name, value),
            None => process.env_remove(name),
        };
    }
    let die_with_parent = move || {
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        // The launcher may have died between the fork and the line above; then no signal would ever come.
        if rustix::process::getppid() == Some(parent) { Ok(()) } else { Err(rustix::io::Errno::SRCH.into()) }
    };
    #[expect(
        unsafe_code,
        reason = "between fork and exec; the closure makes two system calls and allocates nothing"
    )]
    // SAFETY: the closure is async-signal-safe: `prctl` and `getppid` are bare system calls in rustix's Linux backend, and
    // an `io::Error` made of an errno does not allocate.
    unsafe {
        process.pre_exec(die_with_parent);
    }
    process.spawn()
}

/// Hands every line of `pipe` to `sink` on a thread of its own, and drops `_done` at the end of the pipe.
fn read_lines<P: Read + Send + 'static>(
    pipe: Option<P>,
    done: Sender<()>,
    mut sink: impl FnMut(String) + Send + 'static,
) {
    let pipe = pipe.expect("the child's output is piped. This is a bug.");
    thread::spawn(move || {
        Lines::new(pipe).for_each(&mut sink);
        drop(done);
    });
}

/// Waits until the child is dead, and leaves it a zombie.
fn wait_without_reaping(pid: Pid) -> Cause {
    let status = loop {
        match rustix::process::waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT) {
            Ok(Some(status)) => break Some(status),
            Ok(None) | Err(rustix::io::Errno::INTR) => {}
            // Someone else has reaped it, which only a library's blanket wait() in the same process could.
            Err(_) => break None,
        }
    };
    let signal = status.as_ref().and_then(WaitIdStatus::terminating_signal);
    signal.map_or_else(|| Cause::Code(status.and_then(|s| s.exit_status()).unwrap_or(1)), Cause::Signal)
}
