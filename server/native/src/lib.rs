//! `anaphora._native`: what Python needs of Rust, and the only crate with PyO3.
//!
//! Short on purpose: the console entry points ([`cli`]), the CPU kernels ([`kernels`]), and the compiled protobuf
//! descriptors, from which the Python shard builds its message classes. Everything behind them is in crates that know nothing of Python.

use pyo3::{prelude::*, types::PyBytes};

mod cli;
mod kernels;

/// The router runs in this module: its bodies and token ids of megabytes come and go without new pages from the kernel.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The extension module. `server/anaphora/_native.pyi` is its typed surface.
#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("DESCRIPTORS", PyBytes::new(module.py(), anaphora_proto::DESCRIPTORS))?;
    cli::init(module)?;
    kernels::init(module)
}
