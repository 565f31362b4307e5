//! CPU kernels: plain functions over slices, with no Python and no tensors in sight.
//!
//! Every kernel is a folder with two twins of one signature: `naive`, a few loops that are plainly right, and `fast`,
//! written in blocks that the compiler turns into SIMD and spread over the threads of a [`Pool`]. One source serves
//! every instruction set: [`simd::dispatch`] compiles its body for AVX-512, AVX2 and the baseline, and picks at run time.
//! `tests/` holds the twins against each other on every path that the machine can run.

mod element;
pub mod gate;
pub mod linear;
pub mod paged_attention;
pub mod pool;
pub mod rms_norm;
pub mod rope_kv_store;
pub mod sampling;
pub mod simd;
pub mod vector;

pub use element::{Bf16, Element};
pub use pool::Pool;
