//! The launcher as a plain binary: `anaphora-launcher serve MODEL`.

use std::process::ExitCode;

fn main() -> ExitCode {
    anaphora_launcher::main_from_args(std::env::args_os().collect(), Vec::new())
}
