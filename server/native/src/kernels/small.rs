//! The ops that are over in microseconds when a step decodes.

use std::sync::Arc;

use anaphora_kernels::{
    Bf16, Element, Pool,
    gate::{Activation, gate_mul},
    rms_norm::rms_norm as normalise,
    rope_kv_store::{Heads, RopeKvStore, rope_kv_store as rotate_and_store},
    simd::Level,
};
use pyo3::prelude::*;

use super::{
    Address, Dtype,
    attention::Planned,
    elements, elements_mut,
    program::{Kernel, issue},
};

/// Calls `typed` of a kernel with the elements that two dtypes name.
macro_rules! typed_by {
    ($first:expr, $second:expr, $kernel:expr, $rows:expr, $pool:expr) => {
        match ($first, $second) {
            (Dtype::Float32, Dtype::Float32) => $kernel.typed::<f32, f32>($rows, $pool),
            (Dtype::Float32, Dtype::Bfloat16) => $kernel.typed::<f32, Bf16>($rows, $pool),
            (Dtype::Bfloat16, Dtype::Float32) => $kernel.typed::<Bf16, f32>($rows, $pool),
            (Dtype::Bfloat16, Dtype::Bfloat16) => $kernel.typed::<Bf16, Bf16>($rows, $pool),
        }
    };
}

struct RmsNorm {
    dtype: Dtype,
    weight_dtype: Dtype,
    x: Address,
    residual: Option<Address>,
    weight: Address,
    out: Address,
    width: usize,
    eps: f32,
}

impl RmsNorm {
    /// # Safety
    /// As [`elements`].
    #[expect(unsafe_code, reason = "a tensor's memory is known to Python only")]
    unsafe fn typed<X: Element, W: Element>(&self, rows: usize, pool: &Pool) {
        let len = rows * self.width;
        // SAFETY: the caller's promise.
        unsafe {
            let residual = self.residual.map(|residual| elements_mut::<X>(residual, len));
            let (x, weight) = (elements(self.x, len), elements::<W>(self.weight, self.width));
            normalise(x, residual, weight, self.eps, elements_mut(self.out, len), pool, Level::best());
        }
    }
}

impl Kernel for RmsNorm {
    fn work_per_row(&self) -> usize {
        self.width
    }

    #[expect(unsafe_code, reason = "the boundary to Python, typed in `_native.pyi`")]
    fn run(&self, rows: usize, _: &[Arc<Planned>], pool: &Pool) -> PyResult<()> {
        // SAFETY: `rms_norm/cpu.py` passes contiguous tensors of these sizes and dtypes, and has just made `out`.
        unsafe {
            typed_by!(self.dtype, self.weight_dtype, self, rows, pool);
        }
        Ok(())
    }
}

/// See `anaphora_kernels.rms_norm`; `dtypes` of the activations and of the weight.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "a tuple of them would cost a call 100 ns")]
fn rms_norm(
    py: Python<'_>,
    dtype: Dtype,
    weight_dtype: Dtype,
    x: Address,
    residual: Option<Address>,
    weight: Address,
    out: Address,
    rows: usize,
    width: usize,
    eps: f32,
) -> PyResult<()> {
    issue(py, rows, RmsNorm { dtype, weight_dtype, x, residual, weight, out, width, eps })
}

struct Gate {
    dtype: Dtype,
    activation: Activation,
    gate_up: Address,
    out: Address,
    width: usize,
}

impl Gate {
    /// # Safety
    /// As [`elements`].
    #[expect(unsafe_code, reason = "a tensor's memory is known to Python only")]
    unsafe fn typed<X: Element>(&self, rows: usize, pool: &Pool) {
        let len = rows * self.width;
        // SAFETY: the caller's promise.
        unsafe {
            let (gate_up, out) = (elements::<X>(self.gate_up, 2 * len), elements_mut(self.out, len));
            gate_mul(self.activation, gate_up, out, self.width, pool, Level::best());
        }
    }
}

impl Kernel for Gate {
    fn work_per_row(&self) -> usize {
        self.width
    }

    #[expect(unsafe_code, reason = "the boundary to Python, typed in `_native.pyi`")]
    fn run(&self, rows: usize, _: &[Arc<Planned>], pool: &Pool) -> PyResult<()> {
        // SAFETY: `gate_mul/cpu.py` passes contiguous tensors of these sizes, and have just made `out`.
        unsafe {
            match self.dtype {
                Dtype::Float32 => self.typed::<f32>(rows, pool),
                Dtype::Bfloat16 => self.typed::<Bf16>(rows, pool),
            }
        }
        Ok(())
    }
}

/// See `anaphora_kernels.gate_mul`; `width` of the output.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "a struct of them would be made for one call")]
fn gate_mul_rows(
    py: Python<'_>,
    dtype: Dtype,
    is_gelu: bool,
    gate_up: Address,
    out: Address,
    rows: usize,
    width: usize,
) -> PyResult<()> {
    let activation = if is_gelu { Activation::Gelu } else { Activation::Silu };
    issue(py, rows, Gate { dtype, activation, gate_up, out, width })
}

/// The sizes and addresses of a `rope_kv_store`.
struct Store {
    dtype: Dtype,
    cache_dtype: Dtype,
    tensors: (Address, Address, Address),
    strides: (usize, usize, usize),
    angles: (Address, Address, usize),
    caches: (Address, Address, usize),
    indices: Address,
    heads: (usize, usize, usize),
}

impl Store {
    /// # Safety
    /// As [`elements`].
    #[expect(unsafe_code, reason = "a tensor's memory is known to Python only")]
    unsafe fn typed<X: Element, C: Element>(&self, rows: usize, pool: &Pool) {
        let (num_query, num_key, head_dim) = self.heads;
        let num_angles = rows * self.angles.2;
        let heads = |start: Address, stride, count| Heads { start: start as *mut X, stride, count };
        // SAFETY: the caller's promise.
        unsafe {
            let call = RopeKvStore::<X, C> {
                query: heads(self.tensors.0, self.strides.0, num_query),
                key: heads(self.tensors.1, self.strides.1, num_key),
                value: heads(self.tensors.2, self.strides.2, num_key),
                head_dim,
                cos: elements(self.angles.0, num_angles),
                sin: elements(self.angles.1, num_angles),
                indices: elements(self.indices, rows),
                key_cache: self.caches.0 as *mut C,
                value_cache: self.caches.1 as *mut C,
                num_cells: self.caches.2,
            };
            rotate_and_store(&call, pool, Level::best());
        }
    }
}

impl Kernel for Store {
    fn work_per_row(&self) -> usize {
        self.heads.0 * self.heads.2
    }

    #[expect(unsafe_code, reason = "the boundary to Python, typed in `_native.pyi`")]
    fn run(&self, rows: usize, _: &[Arc<Planned>], pool: &Pool) -> PyResult<()> {
        // SAFETY: `rope_kv_store/cpu.py` passes tensors of these sizes, strides and dtypes, and keeps them alive.
        unsafe {
            typed_by!(self.dtype, self.cache_dtype, self, rows, pool);
        }
        Ok(())
    }
}

/// See `anaphora_kernels.rope_kv_store`: dtypes of the activations and of the caches; addresses and token strides of query,
/// key and value; (cosines, sines, angles per token); (key cache, value cache, cells); (indices, tokens); (query heads,
/// key heads, head size).
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "grouped as far as it is free")]
fn rope_kv_store(
    py: Python<'_>,
    dtype: Dtype,
    cache_dtype: Dtype,
    tensors: (Address, Address, Address),
    strides: (usize, usize, usize),
    angles: (Address, Address, usize),
    caches: (Address, Address, usize),
    indices: (Address, usize),
    heads: (usize, usize, usize),
) -> PyResult<()> {
    let (indices, rows) = indices;
    issue(py, rows, Store { dtype, cache_dtype, tensors, strides, angles, caches, indices, heads })
}

/// Adds this file's functions to the module.
pub(super) fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(rms_norm, module)?)?;
    module.add_function(wrap_pyfunction!(gate_mul_rows, module)?)?;
    module.add_function(wrap_pyfunction!(rope_kv_store, module)?)
}
