//! The CPU kernels, on the memory of tensors: no copies, and the GIL released while the long ones run.
//!
//! A tensor is its `data_ptr()`; sizes are arguments of their own. Whoever calls (`anaphora_kernels/OP/cpu.py`) vouches for
//! both, and for the tensors being contiguous and alive.

use std::sync::{Mutex, PoisonError};

use anaphora_kernels::{
    Pool,
    paged_attention::{self, PagedAttention, Shape},
    simd::Level,
};
use pyo3::{
    exceptions::{PyRuntimeError, PyValueError},
    prelude::*,
};

mod linear;

/// A tensor's `data_ptr()`.
type Address = usize;

/// A contiguous tensor: `(tensor.data_ptr(), tensor.numel())`.
type Memory = (usize, usize);

/// A dtype that the kernels know, as Python names it by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dtype {
    Float32,
    Bfloat16,
}

impl FromPyObject<'_, '_> for Dtype {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, '_, PyAny>) -> PyResult<Self> {
        match object.extract::<u8>()? {
            0 => Ok(Self::Float32),
            1 => Ok(Self::Bfloat16),
            other => Err(PyValueError::new_err(format!("no dtype has the number {other}"))),
        }
    }
}

/// The elements of a tensor.
///
/// # Safety
/// `address` must be that of a live, contiguous tensor of at least `len` `T` that nobody writes to while the slice is in use.
#[expect(unsafe_code, reason = "a tensor's memory is known to Python only")]
unsafe fn elements<'a, T>(address: Address, len: usize) -> &'a [T] {
    if len == 0 {
        return &[];
    }
    // SAFETY: the caller's promise.
    unsafe { std::slice::from_raw_parts(address as *const T, len) }
}

/// As [`elements`], for a tensor that nobody else reads or writes meanwhile.
///
/// # Safety
/// `address` must be that of a live, contiguous tensor of at least `len` `T` that nobody else uses while the slice is in use.
#[expect(unsafe_code, reason = "a tensor's memory is known to Python only")]
unsafe fn elements_mut<'a, T>(address: Address, len: usize) -> &'a mut [T] {
    if len == 0 {
        return &mut [];
    }
    // SAFETY: the caller's promise.
    unsafe { std::slice::from_raw_parts_mut(address as *mut T, len) }
}

static POOL: Mutex<Option<Pool>> = Mutex::new(None);

/// Starts the threads that all kernels of this process share: as many as are asked for, the caller's included.
#[pyfunction]
fn set_num_threads(num_threads: usize) -> PyResult<()> {
    let pool = Pool::new(num_threads).map_err(|error| PyRuntimeError::new_err(error.to_string()))?;
    *POOL.lock().unwrap_or_else(PoisonError::into_inner) = Some(pool);
    Ok(())
}

/// Runs `work` with the process's kernel threads; with one for each core, if nobody has said how many.
fn with_pool<T>(work: impl FnOnce(&Pool) -> T) -> PyResult<T> {
    let mut pool = POOL.lock().unwrap_or_else(PoisonError::into_inner);
    if pool.is_none() {
        let num_threads = std::thread::available_parallelism().map_or(1, usize::from);
        *pool = Some(Pool::new(num_threads).map_err(|error| PyRuntimeError::new_err(error.to_string()))?);
    }
    Ok(work(pool.as_ref().expect("it was just made. This is a bug.")))
}

/// Attention over a paged cache of float32; see `anaphora_kernels.paged_attention`. Tensors are `(data_ptr, numel)`;
/// `shape` is `(num_heads, num_kv_heads, head_dim, block_size, max_blocks)`; `rows` is `(block_tables, query_starts,
/// context_lengths)`, int32; `options` is `(scale, sliding_window, soft_cap, sinks)`.
#[pyfunction]
#[expect(unsafe_code, reason = "the boundary to Python, typed in `_native.pyi`")]
fn paged_attention_f32(
    py: Python<'_>,
    tensors: (Memory, Memory, Memory, Memory),
    rows: (Memory, Memory, Memory),
    shape: (usize, usize, usize, usize, usize),
    options: (f32, Option<usize>, Option<f32>, Option<Memory>),
) -> PyResult<()> {
    let (query, key_cache, value_cache, output) = tensors;
    let (block_tables, query_starts, context_lengths) = rows;
    let (num_heads, num_kv_heads, head_dim, block_size, max_blocks) = shape;
    let (scale, sliding_window, soft_cap, sinks) = options;
    // SAFETY: `paged_attention/cpu.py` passes contiguous tensors of these types, keeps them alive during the call, and has
    // just made `output` itself.
    let (call, output) = unsafe {
        let call = PagedAttention {
            shape: Shape { num_heads, num_kv_heads, head_dim, block_size, max_blocks },
            query: elements(query.0, query.1),
            key_cache: elements(key_cache.0, key_cache.1),
            value_cache: elements(value_cache.0, value_cache.1),
            block_tables: elements(block_tables.0, block_tables.1),
            query_starts: elements(query_starts.0, query_starts.1),
            context_lengths: elements(context_lengths.0, context_lengths.1),
            scale,
            sliding_window,
            soft_cap,
            sinks: sinks.map(|sinks| elements(sinks.0, sinks.1)),
        };
        (call, elements_mut(output.0, output.1))
    };
    py.detach(|| with_pool(|pool| paged_attention::paged_attention(&call, output, pool, Level::best())))?
        .map_err(|error| PyValueError::new_err(error.to_string()))
}

/// Adds the kernels to the module.
pub(crate) fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(set_num_threads, module)?)?;
    module.add_function(wrap_pyfunction!(paged_attention_f32, module)?)?;
    linear::init(module)
}
