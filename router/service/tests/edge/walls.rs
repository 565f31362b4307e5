//! Invariants 2 and 5 of ARCHITECTURE.md: which file may know what. (clippy.toml holds 5 too; a grep cannot be switched off by an
//! attribute.)

use std::{
    fs,
    path::{Path, PathBuf},
};

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The files of `src/` that contain any of `needles` outside of comments.
fn files_with(needles: &[&str]) -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    assert!(files.len() > 20, "the sources are where they are looked for");
    let mut found: Vec<String> = files
        .into_iter()
        .filter(|path| {
            let text = fs::read_to_string(path).unwrap();
            let mut code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
            code.any(|line| needles.iter().any(|needle| line.contains(needle)))
        })
        .map(|path| path.strip_prefix(&root).unwrap().display().to_string())
        .collect();
    found.sort();
    found
}

#[test]
fn only_the_step_protocols_client_sees_protobuf() {
    assert_eq!(files_with(&["anaphora_proto", "prost", "tonic::codec"]), ["shard/grpc.rs"]);
}

#[test]
fn only_the_command_line_reads_flags_and_environment() {
    assert_eq!(files_with(&["env::var", "env::args", "clap::Parser", "clap::{"]), ["cli.rs", "main.rs"]);
}

#[test]
fn only_telemetry_knows_opentelemetry() {
    // A span's identity may be carried; making and exporting spans is telemetry's.
    assert_eq!(
        files_with(&["opentelemetry_sdk", "opentelemetry_otlp", "tracing_opentelemetry"]),
        ["telemetry.rs"]
    );
}

#[test]
fn files_are_short_enough_to_read() {
    let mut files = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut files);
    for path in files {
        let num_lines = fs::read_to_string(&path).unwrap().lines().count();
        assert!(num_lines <= 500, "{} has {num_lines} lines", path.display());
    }
}
