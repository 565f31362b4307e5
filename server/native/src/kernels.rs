//! The CPU kernels, on the memory of tensors: no copies, and the GIL released while they run.

use std::sync::{Mutex, OnceLock, PoisonError};

use anaphora_kernels::{
    Pool,
    paged_attention::{self, PagedAttention, Shape},
    simd::Level,
};
use pyo3::{
    exceptions::{PyRuntimeError, PyValueError},
    prelude::*,
};

/// A contiguous tensor: `(tensor.data_ptr(), tensor.numel())`.
type Memory = (usize, usize);

/// The elements of a tensor.
///
/// # Safety
/// `memory` must be a live, contiguous tensor of `T` that nobody writes to while the slice is in use.
#[expect(unsafe_code, reason = "a tensor's memory is known to Python only")]
unsafe fn elements<'a, T>((address, len): Memory) -> &'a [T] {
    if len == 0 {
        return &[];
    }
    // SAFETY: the caller's promise.
    unsafe { std::slice::from_raw_parts(address as *const T, len) }
}

/// As [`elements`], for a tensor that nobody else reads or writes meanwhile.
///
/// # Safety
/// `memory` must be a live, contiguous tensor of `T` that nobody else uses while the slice is in use.
#[expect(unsafe_code, reason = "a tensor's memory is known to Python only")]
unsafe fn elements_mut<'a, T>((address, len): Memory) -> &'a mut [T] {
    if len == 0 {
        return &mut [];
    }
    // SAFETY: the caller's promise.
    unsafe { std::slice::from_raw_parts_mut(address as *mut T, len) }
}

/// The process's kernel threads; made anew when the number changes.
fn with_pool<T>(num_threads: usize, work: impl FnOnce(&Pool) -> T) -> PyResult<T> {
    static POOL: OnceLock<Mutex<Option<Pool>>> = OnceLock::new();
    let mut pool = POOL.get_or_init(|| Mutex::new(None)).lock().unwrap_or_else(PoisonError::into_inner);
    if pool.as_ref().is_none_or(|pool| pool.num_threads() != num_threads.max(1)) {
        *pool = Some(Pool::new(num_threads).map_err(|error| PyRuntimeError::new_err(error.to_string()))?);
    }
    let pool = pool.as_ref().expect("it was just made. This is a bug.");
    Ok(work(pool))
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
    num_threads: usize,
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
            query: elements(query),
            key_cache: elements(key_cache),
            value_cache: elements(value_cache),
            block_tables: elements(block_tables),
            query_starts: elements(query_starts),
            context_lengths: elements(context_lengths),
            scale,
            sliding_window,
            soft_cap,
            sinks: sinks.map(|sinks| elements(sinks)),
        };
        (call, elements_mut(output))
    };
    py.detach(|| {
        with_pool(num_threads, |pool| paged_attention::paged_attention(&call, output, pool, Level::best()))
    })?
    .map_err(|error| PyValueError::new_err(error.to_string()))
}

/// Adds this file's functions to the module.
pub(crate) fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(paged_attention_f32, module)?)
}
