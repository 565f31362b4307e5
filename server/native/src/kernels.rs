//! The CPU kernels, on the memory of tensors: no copies, and the GIL released while the long ones run.
//!
//! A tensor is its `data_ptr()`; sizes are arguments of their own. Whoever calls (`anaphora_kernels/OP/cpu.py`) vouches for
//! both, and for the tensors being contiguous and alive.

use std::sync::{Mutex, PoisonError};

use anaphora_kernels::Pool;
use pyo3::{
    exceptions::{PyRuntimeError, PyValueError},
    prelude::*,
};

mod attention;
mod linear;
mod program;
mod sampling;
mod small;

/// A tensor's `data_ptr()`.
type Address = usize;

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

/// Adds the kernels to the module.
pub(crate) fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(set_num_threads, module)?)?;
    attention::init(module)?;
    sampling::init(module)?;
    small::init(module)?;
    linear::init(module)?;
    program::init(module)
}
