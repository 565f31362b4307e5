//! Paged attention.

use std::sync::Arc;

use anaphora_kernels::{
    Bf16, Element, Pool,
    paged_attention::{self, Batch, Heads, PagedAttention, Plan, ShapeError},
    simd::Level,
};
use pyo3::{exceptions::PyValueError, prelude::*};

use super::{
    Address, Dtype, elements, elements_mut,
    program::{self, Kernel},
    with_pool,
};

/// The rows of a step and how their attention is divided into work: made once per step, run in every layer.
#[pyclass(frozen, module = "anaphora._native")]
pub(super) struct AttentionPlan(pub(super) Arc<Planned>);

/// What it holds.
pub(super) struct Planned {
    batch: Batch,
    plan: Plan,
    heads: Heads,
    sliding_window: Option<usize>,
}

/// One layer's attention, without the rows.
struct Layer {
    query_dtype: Dtype,
    cache_dtype: Dtype,
    query: Address,
    query_stride: usize,
    key_cache: Address,
    value_cache: Address,
    output: Address,
    scale: f32,
    soft_cap: Option<f32>,
    sinks: Option<Address>,
    /// Which of the step's plans.
    plan: usize,
}

#[pymethods]
impl AttentionPlan {
    /// `rows` is (number of rows, columns of the block table, its address, query starts, context lengths), int32;
    /// `heads` is (query heads, key-value heads, head size); `cache` is (blocks, block size).
    #[new]
    #[expect(unsafe_code, reason = "the boundary to Python, typed in `_native.pyi`")]
    fn new(
        rows: (usize, usize, Address, Address, Address),
        heads: (usize, usize, usize),
        cache: (usize, usize),
        sliding_window: Option<usize>,
    ) -> PyResult<Self> {
        let (num_rows, max_blocks, block_tables, query_starts, context_lengths) = rows;
        let (num_heads, num_kv_heads, head_dim) = heads;
        if num_kv_heads == 0 || num_heads % num_kv_heads != 0 {
            return Err(value_error(&ShapeError::Heads { num_heads, num_kv_heads }));
        }
        let heads = Heads { num_heads, num_kv_heads, head_dim };
        // SAFETY: `paged_attention/cpu.py` passes contiguous int32 tensors of these sizes and keeps them alive.
        let batch = unsafe {
            Batch::new(
                elements(block_tables, num_rows * max_blocks),
                elements(query_starts, num_rows + 1),
                elements(context_lengths, num_rows),
                cache.1,
                cache.0,
            )
        }
        .map_err(|error| value_error(&error))?;
        let plan = with_pool(|pool| Plan::new(&batch, heads, sliding_window, pool.num_threads()))?;
        Ok(Self(Arc::new(Planned { batch, plan, heads, sliding_window })))
    }

    /// Attention of one layer; the dtypes are the query's (and output's) and the caches'; `query_stride` in elements.
    #[expect(clippy::too_many_arguments, reason = "a tuple of them would cost a call 100 ns")]
    fn run(
        &self,
        py: Python<'_>,
        query_dtype: Dtype,
        cache_dtype: Dtype,
        query: Address,
        query_stride: usize,
        key_cache: Address,
        value_cache: Address,
        output: Address,
        scale: f32,
        soft_cap: Option<f32>,
        sinks: Option<Address>,
    ) -> PyResult<()> {
        let plan = program::number_of(&self.0);
        let layer = Layer {
            query_dtype,
            cache_dtype,
            query,
            query_stride,
            key_cache,
            value_cache,
            output,
            scale,
            soft_cap,
            sinks,
            plan,
        };
        py.detach(|| with_pool(|pool| layer.attend(&self.0, pool)))??;
        program::record(self.0.batch.num_tokens(), layer)
    }
}

impl Kernel for Layer {
    fn run(&self, rows: usize, plans: &[Arc<Planned>], pool: &Pool) -> PyResult<()> {
        let plan = plans
            .get(self.plan)
            .ok_or_else(|| PyValueError::new_err(format!("plan {} is missing", self.plan)))?;
        if plan.batch.num_tokens() != rows {
            let message = format!("a plan of {} tokens for a step of {rows}", plan.batch.num_tokens());
            return Err(PyValueError::new_err(message));
        }
        self.attend(plan, pool)
    }
}

impl Layer {
    fn attend(&self, plan: &Planned, pool: &Pool) -> PyResult<()> {
        match (self.query_dtype, self.cache_dtype) {
            (Dtype::Float32, Dtype::Float32) => self.typed::<f32, f32>(plan, pool),
            (Dtype::Float32, Dtype::Bfloat16) => self.typed::<f32, Bf16>(plan, pool),
            (Dtype::Bfloat16, Dtype::Float32) => {
                Err(PyValueError::new_err("bfloat16 queries of a float32 cache"))
            }
            (Dtype::Bfloat16, Dtype::Bfloat16) => self.typed::<Bf16, Bf16>(plan, pool),
        }
    }

    #[expect(unsafe_code, reason = "the boundary to Python, typed in `_native.pyi`")]
    fn typed<Q: Element, K: Element>(&self, plan: &Planned, pool: &Pool) -> PyResult<()> {
        let Heads { num_heads, num_kv_heads, head_dim } = plan.heads;
        let num_cache = plan.batch.num_blocks() * plan.batch.block_size() * num_kv_heads * head_dim;
        let head_elements = num_heads * head_dim;
        let num_output = plan.batch.num_tokens() * head_elements;
        let num_query = plan.batch.num_tokens().saturating_sub(1) * self.query_stride + head_elements;
        // SAFETY: `paged_attention/cpu.py` passes contiguous tensors of these sizes and dtypes, keeps them alive during the
        // call, and has just made the output itself.
        let (call, output) = unsafe {
            let call = PagedAttention::<Q, K> {
                heads: plan.heads,
                query: elements(self.query, if num_output == 0 { 0 } else { num_query }),
                query_stride: self.query_stride,
                key_cache: elements(self.key_cache, num_cache),
                value_cache: elements(self.value_cache, num_cache),
                scale: self.scale,
                sliding_window: plan.sliding_window,
                soft_cap: self.soft_cap,
                sinks: self.sinks.map(|sinks| elements(sinks, num_heads)),
            };
            (call, elements_mut(self.output, num_output))
        };
        paged_attention::paged_attention(&call, &plan.batch, &plan.plan, output, pool, Level::best())
            .map_err(|error| value_error(&error))
    }
}

fn value_error(error: &ShapeError) -> PyErr {
    PyValueError::new_err(error.to_string())
}

/// Adds this file's class to the module.
pub(super) fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<AttentionPlan>()
}
