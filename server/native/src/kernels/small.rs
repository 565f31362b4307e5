//! The ops that are over in microseconds when a step decodes: these keep the GIL unless there is much to do.

use anaphora_kernels::{
    Bf16, Element, Pool,
    gate::{Activation, gate_mul},
    rms_norm::rms_norm as normalise,
    rope_kv_store::{Heads, RopeKvStore, rope_kv_store as rotate_and_store},
    simd::Level,
};
use pyo3::prelude::*;

use super::{Address, Dtype, elements, elements_mut, with_pool};

/// From so many elements on, other Python threads may run meanwhile.
const MIN_DETACH: usize = 1 << 17;

fn run(py: Python<'_>, num_elements: usize, work: impl FnOnce(&Pool) + Send) -> PyResult<()> {
    if num_elements < MIN_DETACH { with_pool(work) } else { py.detach(|| with_pool(work)) }
}

/// See `anaphora_kernels.rms_norm`; `dtypes` of the activations and of the weight.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "a tuple of them would cost a call 100 ns")]
#[expect(unsafe_code, reason = "the boundary to Python, typed in `_native.pyi`")]
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
    /// # Safety
    /// As `elements`.
    unsafe fn typed<X: Element, W: Element>(
        (x, residual, weight, out): (Address, Option<Address>, Address, Address),
        (rows, width): (usize, usize),
        eps: f32,
        pool: &Pool,
    ) {
        let len = rows * width;
        // SAFETY: the caller's promise.
        unsafe {
            let residual = residual.map(|residual| elements_mut::<X>(residual, len));
            let weight = elements::<W>(weight, width);
            normalise(elements(x, len), residual, weight, eps, elements_mut(out, len), pool, Level::best());
        }
    }
    let (tensors, sizes) = ((x, residual, weight, out), (rows, width));
    // SAFETY: `rms_norm/cpu.py` passes contiguous tensors of these sizes and dtypes, and has just made `out`.
    run(py, rows * width, |pool| unsafe {
        match (dtype, weight_dtype) {
            (Dtype::Float32, Dtype::Float32) => typed::<f32, f32>(tensors, sizes, eps, pool),
            (Dtype::Float32, Dtype::Bfloat16) => typed::<f32, Bf16>(tensors, sizes, eps, pool),
            (Dtype::Bfloat16, Dtype::Float32) => typed::<Bf16, f32>(tensors, sizes, eps, pool),
            (Dtype::Bfloat16, Dtype::Bfloat16) => typed::<Bf16, Bf16>(tensors, sizes, eps, pool),
        }
    })
}

/// See `anaphora_kernels.silu_mul` and `gelu_mul`; `width` of the output.
#[pyfunction]
#[expect(unsafe_code, reason = "the boundary to Python, typed in `_native.pyi`")]
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
    let len = rows * width;
    // SAFETY: `silu_mul/cpu.py` and `gelu_mul/cpu.py` pass contiguous tensors of these sizes, and have just made `out`.
    run(py, len, |pool| unsafe {
        match dtype {
            Dtype::Float32 => {
                gate_mul::<f32>(
                    activation,
                    elements(gate_up, 2 * len),
                    elements_mut(out, len),
                    width,
                    pool,
                    Level::best(),
                );
            }
            Dtype::Bfloat16 => {
                gate_mul::<Bf16>(
                    activation,
                    elements(gate_up, 2 * len),
                    elements_mut(out, len),
                    width,
                    pool,
                    Level::best(),
                );
            }
        }
    })
}

/// The sizes and addresses of a `rope_kv_store`.
#[derive(Clone, Copy)]
struct Store {
    tensors: (Address, Address, Address),
    strides: (usize, usize, usize),
    angles: (Address, Address, usize),
    caches: (Address, Address, usize),
    indices: (Address, usize),
    heads: (usize, usize, usize),
}

/// See `anaphora_kernels.rope_kv_store`: dtypes of the activations and of the caches; addresses and token strides of query,
/// key and value; (cosines, sines, angles per token); (key cache, value cache, cells); (indices, tokens); (query heads,
/// key heads, head size).
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "grouped as far as it is free")]
#[expect(unsafe_code, reason = "the boundary to Python, typed in `_native.pyi`")]
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
    /// # Safety
    /// As `elements`.
    unsafe fn typed<X: Element, C: Element>(store: &Store, pool: &Pool) {
        let (num_query, num_key, head_dim) = store.heads;
        let num_angles = store.indices.1 * store.angles.2;
        let heads = |start: Address, stride, count| Heads { start: start as *mut X, stride, count };
        // SAFETY: the caller's promise.
        unsafe {
            let call = RopeKvStore::<X, C> {
                query: heads(store.tensors.0, store.strides.0, num_query),
                key: heads(store.tensors.1, store.strides.1, num_key),
                value: heads(store.tensors.2, store.strides.2, num_key),
                head_dim,
                cos: elements(store.angles.0, num_angles),
                sin: elements(store.angles.1, num_angles),
                indices: elements(store.indices.0, store.indices.1),
                key_cache: store.caches.0 as *mut C,
                value_cache: store.caches.1 as *mut C,
                num_cells: store.caches.2,
            };
            rotate_and_store(&call, pool, Level::best());
        }
    }
    let store = Store { tensors, strides, angles, caches, indices, heads };
    // SAFETY: `rope_kv_store/cpu.py` passes tensors of these sizes, strides and dtypes, and keeps them alive.
    run(py, indices.1 * heads.0 * heads.2, |pool| unsafe {
        match (dtype, cache_dtype) {
            (Dtype::Float32, Dtype::Float32) => typed::<f32, f32>(&store, pool),
            (Dtype::Float32, Dtype::Bfloat16) => typed::<f32, Bf16>(&store, pool),
            (Dtype::Bfloat16, Dtype::Float32) => typed::<Bf16, f32>(&store, pool),
            (Dtype::Bfloat16, Dtype::Bfloat16) => typed::<Bf16, Bf16>(&store, pool),
        }
    })
}

/// Adds this file's functions to the module.
pub(super) fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(rms_norm, module)?)?;
    module.add_function(wrap_pyfunction!(gate_mul_rows, module)?)?;
    module.add_function(wrap_pyfunction!(rope_kv_store, module)?)
}
