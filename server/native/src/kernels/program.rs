//! Kernels one by one, and recorded: a forward pass on a CPU as one call, as a CUDA graph is on a GPU.
//!
//! While a [`Program`] is entered, each kernel that runs is also written down: its addresses and sizes, and how many rows it
//! has per token. Later the program runs the same kernels on the same memory for any number of tokens that fits there.

use std::{
    cell::RefCell,
    sync::{Arc, Mutex, PoisonError},
};

use anaphora_kernels::Pool;
use pyo3::{exceptions::PyValueError, prelude::*};

use super::{
    attention::{AttentionPlan, Planned},
    with_pool,
};

/// From so much work on (in elements written), other Python threads may run meanwhile: some tenths of a millisecond. To take
/// the interpreter back can take longer than a short kernel.
const MIN_DETACH: usize = 1 << 17;

/// A call of a kernel with all that it needs but the number of rows.
pub(super) trait Kernel: Send + Sync + 'static {
    /// Elements that it writes per row, or what takes as long.
    fn work_per_row(&self) -> usize {
        0
    }

    /// On so many rows, with the plans of the step's attention.
    fn run(&self, rows: usize, plans: &[Arc<Planned>], pool: &Pool) -> PyResult<()>;
}

struct Recorded {
    kernel: Box<dyn Kernel>,
    rows_per_token: usize,
}

#[derive(Default)]
struct Recording {
    num_tokens: usize,
    kernels: Vec<Recorded>,
    plans: Vec<Arc<Planned>>,
}

thread_local! {
    static RECORDING: RefCell<Option<Recording>> = const { RefCell::new(None) };
}

/// Runs a kernel, and writes it down if this thread records.
pub(super) fn issue(py: Python<'_>, rows: usize, kernel: impl Kernel) -> PyResult<()> {
    let run = || with_pool(|pool| kernel.run(rows, &[], pool));
    let is_short = rows * kernel.work_per_row() < MIN_DETACH;
    if is_short { run() } else { py.detach(run) }??;
    record(rows, kernel)
}

/// Writes a kernel down, if this thread records.
pub(super) fn record(rows: usize, kernel: impl Kernel) -> PyResult<()> {
    RECORDING.with_borrow_mut(|recording| {
        let Some(recording) = recording else { return Ok(()) };
        if rows == 0 || !rows.is_multiple_of(recording.num_tokens) {
            let message = format!("{rows} rows in a recording of {} tokens", recording.num_tokens);
            return Err(PyValueError::new_err(message));
        }
        let rows_per_token = rows / recording.num_tokens;
        recording.kernels.push(Recorded { kernel: Box::new(kernel), rows_per_token });
        Ok(())
    })
}

/// The number of a plan among those of the recording; 0 if there is none.
pub(super) fn number_of(plan: &Arc<Planned>) -> usize {
    RECORDING.with_borrow_mut(|recording| {
        let Some(recording) = recording else { return 0 };
        let known = recording.plans.iter().position(|other| Arc::ptr_eq(other, plan));
        known.unwrap_or_else(|| {
            recording.plans.push(Arc::clone(plan));
            recording.plans.len() - 1
        })
    })
}

/// Kernels in the order in which they ran in a `with` block, on `num_tokens` tokens; their memory holds `max_tokens`.
#[pyclass(frozen, module = "anaphora._native")]
struct Program {
    num_tokens: usize,
    max_tokens: usize,
    kernels: Mutex<Arc<Vec<Recorded>>>,
}

#[pymethods]
impl Program {
    #[new]
    fn new(num_tokens: usize, max_tokens: usize) -> Self {
        Self { num_tokens: num_tokens.max(1), max_tokens, kernels: Mutex::default() }
    }

    fn __enter__(&self) {
        RECORDING.set(Some(Recording { num_tokens: self.num_tokens, ..Recording::default() }));
    }

    fn __exit__(&self, _kind: &Bound<'_, PyAny>, _error: &Bound<'_, PyAny>, _traceback: &Bound<'_, PyAny>) {
        let recording = RECORDING.take().unwrap_or_default();
        *self.kernels.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(recording.kernels);
    }

    /// The same kernels on the first `num_tokens` tokens of the same memory; `plans` as they came up in the recording.
    fn run(&self, py: Python<'_>, num_tokens: usize, plans: Vec<Bound<'_, AttentionPlan>>) -> PyResult<()> {
        if num_tokens > self.max_tokens {
            let message = format!("{num_tokens} tokens, but the memory is for {}", self.max_tokens);
            return Err(PyValueError::new_err(message));
        }
        let plans: Vec<_> = plans.iter().map(|plan| Arc::clone(&plan.get().0)).collect();
        let kernels = Arc::clone(&self.kernels.lock().unwrap_or_else(PoisonError::into_inner));
        let run = |pool: &Pool| {
            let mut run =
                |recorded: &Recorded| recorded.kernel.run(num_tokens * recorded.rows_per_token, &plans, pool);
            kernels.iter().try_for_each(&mut run)
        };
        py.detach(|| with_pool(run))?
    }

    fn __len__(&self) -> usize {
        self.kernels.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

/// Adds this file's class to the module.
pub(super) fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Program>()
}
