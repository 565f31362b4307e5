//! The launcher: `anaphora serve MODEL` plans, starts and supervises every process of a host.
//!
//! ```text
//!                      cli ─► ServeArgs ─┐
//!   resolve ─► verify ─► what it is ─────┼─► plan ─► Plan ─► run ─► process ─► router
//!                    host ─► Host ───────┘    pure   ▲        │             └► shard-0 … shard-(N-1)
//!                                                    │        ▼ messages
//!                                                actions ◄─ supervise (pure)
//! ```
//!
//! It links neither the router nor the step protocol: to the launcher, its children are commands, events on stdout, log
//! lines on stderr, and exit codes. It is told how to start them; it guesses no paths.
//!
//! What must hold: no child and no socket outlives the launcher, however it ends; everything that can be refused is refused
//! before a shard is spawned; the exit codes are those that `--help` lists.

mod cache;
mod child;
mod cli;
mod error;
mod host;
mod lines;
mod logs;
mod oom;
mod plan;
mod process;
mod progress;
mod resolve;
mod run;
mod rundir;
mod supervise;
mod verify;

use std::ffi::OsString;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::ExitCode;

use cli::{CacheArgs, Command, Environment, ServeArgs};
use error::{Exit, LaunchError};
use host::Host;
use logs::Console;

/// Runs the program with the command line `args` (the first is the program's name) and returns its exit code.
///
/// `child` is the command that starts this program again, to which `router …`, `shard …` or `fetch …` is appended. If it
/// is empty, the hidden flag `--child-command` says it. Must be called on a thread that lives as long as the process:
/// children are killed when the thread that spawned them ends. Takes SIGTERM and SIGINT over while it serves.
#[must_use]
pub fn main_from_args(args: Vec<OsString>, child: Vec<OsString>) -> ExitCode {
    exit_code_from_args(args, child).into()
}

/// As [`main_from_args`], for callers that need the exit code as a number.
#[must_use]
pub fn exit_code_from_args(args: Vec<OsString>, child: Vec<OsString>) -> u8 {
    let environment = Environment::capture();
    let parsed = match cli::parse(args, &environment) {
        Ok(parsed) => parsed,
        Err(error) => {
            // Help goes to stdout, which may be closed; then there is nobody to tell.
            let _ = error.print();
            return u8::try_from(error.exit_code()).unwrap_or(Exit::Usage as u8);
        }
    };
    let child = if child.is_empty() { vec![parsed.cli.child_command] } else { child };
    match parsed.cli.command {
        Command::Serve(args) if args.print_environment => {
            let description = Host::observe(&environment).describe(&environment);
            let _ = writeln!(std::io::stdout(), "{description}");
            Exit::Clean as u8
        }
        Command::Serve(args) => serve(&args, &child, &environment, &parsed.warnings) as u8,
        Command::Router(passed_on) => hand_over(&child, "router", &passed_on.args) as u8,
        Command::Shard(passed_on) => hand_over(&child, "shard", &passed_on.args) as u8,
        Command::Fetch(passed_on) => hand_over(&child, "fetch", &passed_on.args) as u8,
        Command::Cache(args) => cache(&args) as u8,
    }
}

/// Prints what a running server says of its cache.
fn cache(args: &CacheArgs) -> Exit {
    match cache::run(args) {
        Ok(text) => {
            let _ = writeln!(std::io::stdout(), "{text}");
            Exit::Clean
        }
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error}");
            error.exit()
        }
    }
}

fn serve(args: &ServeArgs, child: &[OsString], environment: &Environment, warnings: &[String]) -> Exit {
    let (console, writer) = Console::start(args.observe.json_output);
    for warning in warnings {
        console.say(format!("warning: {warning}"));
    }
    let exit = match run::serve(args, child, environment, &console) {
        Ok(()) => Exit::Clean,
        Err(error) => {
            let message = error.to_string();
            if !message.is_empty() {
                console.error(message);
            }
            error.exit()
        }
    };
    writer.finish();
    exit
}

/// Becomes another program of ours; returns only if that fails.
fn hand_over(child: &[OsString], part: &str, args: &[OsString]) -> Exit {
    let (program, prefix) = child.split_first().expect("the child command has a program. This is a bug.");
    let source = std::process::Command::new(program).args(prefix).arg(part).args(args).exec();
    let error = LaunchError::Spawn { command: program.to_string_lossy().into_owned(), source };
    let _ = writeln!(std::io::stderr(), "error: {error}");
    error.exit()
}
