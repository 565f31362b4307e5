//! `anaphora serve`, from the first check to the last child reaped: the thin shell around [`plan`](crate::plan) and
//! [`supervise`](crate::supervise).
//!
//! ```text
//!   address ─► resolve ─► verify ─► place ─► run directory ─► loop { message or wake ─► supervisor ─► actions }
//! ```
//!
//! Everything up to the loop fails before a shard or a router has been spawned.

use std::collections::HashMap;
use std::ffi::OsString;
use std::net::TcpListener;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::child::{ChildId, Event};
use crate::cli::{Environment, ServeArgs};
use crate::error::{Exit, LaunchError};
use crate::host::Host;
use crate::logs::Console;
use crate::oom::OomWatch;
use crate::plan::{Placement, Plan};
use crate::process::{Cause, Message, Process};
use crate::progress::{Facts, Output, Phase, Progress, block};
use crate::resolve::{self, Source};
use crate::rundir::RunDirectory;
use crate::supervise::{Action, Input, Policy, Supervisor, Verdict};
use crate::verify::verify;

/// How much longer than its own drain timeout the router gets before it is killed.
const DRAIN_MARGIN: Duration = Duration::from_secs(10);

/// How long a child may take to end when nothing is in flight.
const END_TIMEOUT: Duration = Duration::from_secs(5);

/// Serves until told to stop.
///
/// # Errors
/// Why it never served, or serves no longer.
pub(crate) fn serve(
    args: &ServeArgs,
    child: &[OsString],
    environment: &Environment,
    console: &Console,
) -> Result<(), LaunchError> {
    let started = Instant::now();
    let (sender, receiver) = mpsc::channel();
    watch_signals(sender.clone())?;
    check_address(args)?;

    let mut progress = Progress::new(started.elapsed());
    let source = resolve::locate(args.model.name().unwrap_or_default())?;
    let model_path = match &source {
        Source::Path(path) => path.clone(),
        Source::Known(known) => {
            // The end of it is told by the line with the path.
            let show = |done, total, unit: &str| {
                let report = || progress.report((Phase::Resolve, 0), (done, total), unit, started.elapsed());
                if let Some(output) = (done < total).then(report).flatten() {
                    console.progress(output);
                }
            };
            resolve::fetch(known, child, (&sender, &receiver), console, show)?
        }
    };
    console.progress(progress.finish(Phase::Resolve, &model_path.display().to_string(), started.elapsed()));

    let model = verify(&model_path, &args.model)?;
    console.progress(progress.finish(Phase::Verify, &model.detail(), started.elapsed()));

    let placement = Placement::choose(args, model.heads, &Host::observe(environment))?;
    let world_size = placement.world_size();
    let run_directory = RunDirectory::create(args, environment)?;
    let served_name = resolve::served_name(&source);
    let plan = Plan {
        args,
        child,
        model_path: &model_path,
        served_name: &served_name,
        placement,
        run_directory: run_directory.path(),
    };
    plan.check()?;

    let facts = Facts {
        summary: model.summary,
        world_size,
        has_chat_template: model.has_chat_template,
        needs_api_key: !args.http.api_key.is_empty() || args.http.api_key_file.is_some(),
    };
    let children =
        Children { plan, console, messages: sender, processes: HashMap::new(), port: None, spawned: 0 };
    let shell = Shell { children, progress, facts, oom: OomWatch::start(), console, started, ready: false };
    let verdict = shell.run(Supervisor::new(policy(args), world_size), &receiver)?;
    match verdict.exit {
        Exit::Clean => Ok(()),
        exit => Err(LaunchError::Stopped { message: verdict.message, exit }),
    }
}

fn policy(args: &ServeArgs) -> Policy {
    let graceful = Duration::from_secs(u64::from(args.http.graceful_termination_timeout));
    Policy {
        first_backoff: Duration::from_millis(500),
        longest_backoff: Duration::from_secs(10),
        max_deaths: 5,
        budget_window: Duration::from_secs(5 * 60),
        drain_timeout: graceful + DRAIN_MARGIN,
        end_timeout: END_TIMEOUT,
    }
}

/// Turns SIGTERM and SIGINT into messages, for as long as the process lives.
fn watch_signals(messages: Sender<Message>) -> Result<(), LaunchError> {
    let mut signals = Signals::new([SIGTERM, SIGINT]).map_err(LaunchError::Signals)?;
    thread::spawn(move || signals.forever().try_for_each(|_| messages.send(Message::Stop)));
    Ok(())
}

/// Binds the address for a moment: better to say at once that it is taken than after the weights are loaded.
fn check_address(args: &ServeArgs) -> Result<(), LaunchError> {
    let (hostname, port) = (args.http.hostname.as_str(), args.http.port);
    match TcpListener::bind((hostname.trim_matches(['[', ']']), port)) {
        Ok(_) => Ok(()),
        Err(source) => Err(LaunchError::CannotBind { address: format!("{hostname}:{port}"), source }),
    }
}

/// The loop's state.
struct Shell<'a> {
    children: Children<'a>,
    progress: Progress,
    facts: Facts,
    oom: OomWatch,
    console: &'a Console,
    started: Instant,
    ready: bool,
}

/// The processes that run.
struct Children<'a> {
    plan: Plan<'a>,
    console: &'a Console,
    messages: Sender<Message>,
    processes: HashMap<ChildId, (u32, Process)>,
    /// The port of the first router, for its successors.
    port: Option<u16>,
    /// How many children have been spawned: the number of each is its incarnation.
    spawned: u32,
}

// === impl Shell ===

impl Shell<'_> {
    fn run(
        mut self,
        mut supervisor: Supervisor,
        messages: &Receiver<Message>,
    ) -> Result<Verdict, LaunchError> {
        self.progress.ranks(self.facts.world_size, self.now());
        let mut actions = supervisor.start();
        loop {
            for action in actions {
                if let Some(verdict) = self.carry_out(action)? {
                    return Ok(verdict);
                }
            }
            let input = self.next_input(&supervisor, messages);
            actions = input.map_or_else(Vec::new, |input| supervisor.handle(input, self.now()));
        }
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// Waits for the next thing that the supervisor must know; `None` if what came is of no concern to it.
    fn next_input(&mut self, supervisor: &Supervisor, messages: &Receiver<Message>) -> Option<Input> {
        let message = match supervisor.next_wake() {
            Some(wake) => match messages.recv_timeout(wake.saturating_sub(self.now())) {
                Err(RecvTimeoutError::Timeout) => return Some(Input::Wake),
                message => message.ok(),
            },
            None => messages.recv().ok(),
        };
        match message.expect("the launcher holds a sender of its own. This is a bug.") {
            Message::Stop => Some(Input::Stop),
            Message::Line { child, incarnation, line } if self.children.is_current(child, incarnation) => {
                self.line(child, line)
            }
            Message::Exited { child, incarnation, death } if self.children.is_current(child, incarnation) => {
                self.children.reap(child);
                if death.cause == Cause::Signal(9)
                    && let Some(reason) = self.oom.look()
                {
                    self.console.say(format!("{child}: {reason}"));
                }
                Some(Input::Exited(child, death))
            }
            Message::Line { .. } | Message::Exited { .. } => None,
        }
    }

    /// A line of a child's stdout: an event, or something that belongs in the log.
    fn line(&mut self, child: ChildId, line: String) -> Option<Input> {
        let Some(event) = Event::parse(&line) else {
            self.console.log(child, line);
            return None;
        };
        self.show(child, &event);
        Some(Input::Event(child, event))
    }

    fn show(&mut self, child: ChildId, event: &Event) {
        let now = self.now();
        match (event, child) {
            (Event::Phase { phase, done, total, unit }, ChildId::Shard { rank }) => {
                let phase = Phase::from_event(phase);
                let report =
                    phase.and_then(|phase| self.progress.report((phase, rank), (*done, *total), unit, now));
                if let Some(output) = report.filter(|_| !self.ready) {
                    self.console.progress(output);
                }
            }
            (Event::Ready(ready), _) if self.ready => {
                self.console.say(format!("serving again at {}", ready.url))
            }
            (Event::Ready(ready), _) => {
                self.ready = true;
                self.children.port = ready.port();
                self.progress
                    .finish_all(ready, now)
                    .into_iter()
                    .for_each(|output| self.console.progress(output));
                self.console.progress(Output::Block(block(ready, &self.facts)));
            }
            _ => {}
        }
    }

    fn carry_out(&mut self, action: Action) -> Result<Option<Verdict>, LaunchError> {
        match action {
            Action::Spawn { child, restart } => {
                if matches!(child, ChildId::Shard { rank: 0 }) && restart > 0 {
                    self.progress.ranks(self.facts.world_size, self.now());
                }
                self.children.spawn(child, restart)?;
            }
            Action::Terminate(child) => self.children.with(child, Process::terminate),
            Action::Kill(child) => self.children.with(child, Process::kill),
            Action::Log(line) => self.console.say(line),
            Action::Finish(verdict) => return Ok(Some(verdict)),
        }
        Ok(None)
    }
}

// === impl Children ===

impl Children<'_> {
    fn spawn(&mut self, child: ChildId, restart: u32) -> Result<(), LaunchError> {
        let command = match child {
            ChildId::Shard { rank } => {
                // A predecessor that was killed has left its socket behind, and nothing can be bound over it.
                let _ = std::fs::remove_file(self.plan.socket(rank));
                self.plan.shard_command(rank, restart)
            }
            ChildId::Router | ChildId::Fetch => self.plan.router_command(self.port),
        };
        self.spawned += 1;
        let process = Process::spawn(child, self.spawned, &command, &self.messages, self.console)?;
        self.processes.insert(child, (self.spawned, process));
        Ok(())
    }

    /// Whether a message is of the child that runs now, and not of one before it.
    fn is_current(&self, child: ChildId, incarnation: u32) -> bool {
        self.processes.get(&child).is_some_and(|(current, _)| *current == incarnation)
    }

    fn with(&self, child: ChildId, signal: impl FnOnce(&Process)) {
        if let Some((_, process)) = self.processes.get(&child) {
            signal(process);
        }
    }

    fn reap(&mut self, child: ChildId) {
        if let Some((_, process)) = self.processes.remove(&child) {
            process.reap();
        }
    }
}

impl Drop for Children<'_> {
    /// Whatever went wrong, nobody is left behind.
    fn drop(&mut self) {
        for (_, (_, process)) in self.processes.drain() {
            process.kill();
            process.reap();
        }
    }
}
