//! The core depends on nothing that could do I/O, tell the time or start a thread: on `thiserror` alone.

use std::{collections::BTreeSet, process::Command};

#[test]
fn thiserror_is_the_only_dependency() {
    let output = Command::new(env!("CARGO"))
        .args([
            "tree",
            "--locked",
            "-e",
            "normal",
            "-p",
            "anaphora-core",
            "--prefix",
            "none",
            "--format",
            "{lib}",
        ])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let names = str::from_utf8(&output.stdout).expect("names are UTF-8");
    // A crate that was listed before has a mark.
    let crates: BTreeSet<&str> = names.lines().map(|line| line.trim_end_matches(" (*)")).collect();
    // The last five are the derive macro and its parser; they run in the compiler.
    let expected =
        ["anaphora_core", "proc_macro2", "quote", "syn", "thiserror", "thiserror_impl", "unicode_ident"];
    assert_eq!(crates, BTreeSet::from(expected));
}
