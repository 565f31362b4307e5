//! CPU kernels: plain functions over slices, with no Python and no tensors in sight.
//!
//! Every kernel has two twins of one signature: a naive one, a few loops that are plainly right, and a fast one, spread over
//! the threads of a [`Pool`]. One source serves every instruction set: what the compiler turns into SIMD by itself goes
//! through [`simd`], what it must be told through [`vector`]; both compile it for AVX-512, AVX2 and the baseline, and pick at
//! run time. The tests hold the twins against each other on every path that the machine can run.

#[cfg(target_arch = "x86_64")]
mod amx;
mod element;
pub mod gate;
mod int16;
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
