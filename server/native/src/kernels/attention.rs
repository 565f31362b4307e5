//! Paged attention.

use anaphora_kernels::{
    Bf16, Element,
    paged_attention::{self, Batch, Heads, PagedAttention, Plan, ShapeError},
    simd::Level,
};
use pyo3::{exceptions::PyValueError, prelude::*};

use super::{Address, Dtype, elements, elements_mut, with_pool};

/// The rows of a step and how their attention is divided into work: made once per step, run in every layer.
#[pyclass(frozen, module = "anaphora._native")]
struct AttentionPlan {
    batch: Batch,
    plan: Plan,
    heads: Heads,
    sliding_window: Option<usize>,
}

/// The arguments of one layer.
struct Layer {
    query: Address,
    query_stride: usize,
    key_cache: Address,
    value_cache: Address,
    output: Address,
    scale: f32,
    soft_cap: Option<f32>,
    sinks: Option<Address>,
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
        Ok(Self { batch, plan, heads, sliding_window })
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
        let layer = Layer { query, query_stride, key_cache, value_cache, output, scale, soft_cap, sinks };
        py.detach(|| match (query_dtype, cache_dtype) {
            (Dtype::Float32, Dtype::Float32) => self.attend::<f32, f32>(&layer),
            (Dtype::Float32, Dtype::Bfloat16) => self.attend::<f32, Bf16>(&layer),
            (Dtype::Bfloat16, Dtype::Float32) => {
                Err(PyValueError::new_err("bfloat16 queries of a float32 cache"))
            }
            (Dtype::Bfloat16, Dtype::Bfloat16) => self.attend::<Bf16, Bf16>(&layer),
        })
    }
}

impl AttentionPlan {
    #[expect(unsafe_code, reason = "the boundary to Python, typed in `_native.pyi`")]
    fn attend<Q: Element, K: Element>(&self, layer: &Layer) -> PyResult<()> {
        let Heads { num_heads, num_kv_heads, head_dim } = self.heads;
        let num_cache = self.batch.num_blocks() * self.batch.block_size() * num_kv_heads * head_dim;
        let head_elements = num_heads * head_dim;
        let num_output = self.batch.num_tokens() * head_elements;
        let num_query = self.batch.num_tokens().saturating_sub(1) * layer.query_stride + head_elements;
        // SAFETY: `paged_attention/cpu.py` passes contiguous tensors of these sizes and dtypes, keeps them alive during the
        // call, and has just made the output itself.
        let (call, output) = unsafe {
            let call = PagedAttention::<Q, K> {
                heads: self.heads,
                query: elements(layer.query, if num_output == 0 { 0 } else { num_query }),
                query_stride: layer.query_stride,
                key_cache: elements(layer.key_cache, num_cache),
                value_cache: elements(layer.value_cache, num_cache),
                scale: layer.scale,
                sliding_window: self.sliding_window,
                soft_cap: layer.soft_cap,
                sinks: layer.sinks.map(|sinks| elements(sinks, num_heads)),
            };
            (call, elements_mut(layer.output, num_output))
        };
        with_pool(|pool| {
            paged_attention::paged_attention(&call, &self.batch, &self.plan, output, pool, Level::best())
        })?
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
