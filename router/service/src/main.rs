//! `anaphora-router`: the same program as `anaphora router`, without Python.

#[expect(clippy::disallowed_methods, reason = "they are handed on unread; cli.rs reads them")]
fn main() -> std::process::ExitCode {
    anaphora_router::main_from_args(std::env::args_os().collect())
}
