//! The console script: `anaphora router …` is the router, everything else is the launcher.

use std::ffi::OsString;

use pyo3::prelude::*;

/// Runs the router (`argv[1] == "router"`) or the launcher, with the GIL released, and returns its exit code.
///
/// `child` is the command that starts this program again, and to which the launcher appends `router …`, `shard …` or
/// `fetch …`. Call it on the main thread: the launcher's children live as long as the thread that spawned them.
#[pyfunction]
fn main(py: Python<'_>, argv: Vec<OsString>, child: Vec<OsString>) -> PyResult<u8> {
    release_interrupts(py)?;
    Ok(py.detach(|| run(argv, child)))
}

fn run(mut argv: Vec<OsString>, child: Vec<OsString>) -> u8 {
    if argv.get(1).is_some_and(|command| command == "router") {
        argv.splice(..2, ["anaphora router".into()]);
        anaphora_router::exit_code_from_args(argv)
    } else {
        anaphora_launcher::exit_code_from_args(argv, child)
    }
}

/// Takes SIGINT from Python, whose handler only sets a flag for an interpreter that does not run now, and would raise
/// `KeyboardInterrupt` when it does again, after a clean stop. (Python leaves SIGTERM alone by itself.)
fn release_interrupts(py: Python<'_>) -> PyResult<()> {
    let signal = py.import("_signal")?;
    signal.call_method1("signal", (signal.getattr("SIGINT")?, signal.getattr("SIG_DFL")?))?;
    Ok(())
}

/// Adds this file's functions to the module.
pub(crate) fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(main, module)?)
}
