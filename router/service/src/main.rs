//! `anaphora-router`: the same program as `anaphora router`, without Python.

fn main() -> std::process::ExitCode {
    anaphora_router::main_from_args(std::env::args_os().collect())
}
