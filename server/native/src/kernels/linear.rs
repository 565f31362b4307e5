//! Packed weights, and products with them.

use std::sync::Arc;

use anaphora_kernels::{
    Pool,
    linear::{self, Floats, FloatsMut, Format, Linear, Weight},
    simd::Level,
};
use pyo3::{
    exceptions::{PyIndexError, PyValueError},
    prelude::*,
};

use super::{
    Address, Dtype,
    attention::Planned,
    elements, elements_mut,
    program::{Kernel, issue},
    with_pool,
};

/// A weight `[rows, columns]`, repacked for this machine; see `anaphora_kernels.linear`.
#[pyclass(module = "anaphora._native")]
struct PackedWeight(Arc<Weight>);

/// The names that Python has for formats: where there is one, that of the GGUF type that is held so.
const FORMATS: [(Format, &str); 7] = [
    (Format::F32, "float32"),
    (Format::Bf16, "bfloat16"),
    (Format::Int16, "int16"),
    (Format::Q8, "q8_0"),
    (Format::Q6, "q6_k"),
    (Format::Q4, "q4_0"),
    (Format::Q4Min, "q4_1"),
];

fn name_of(format: Format) -> &'static str {
    let found = FORMATS.iter().find(|(known, _)| *known == format);
    found.expect("every format has a name. This is a bug.").1
}

#[pymethods]
#[expect(unsafe_code, reason = "the boundary to Python, typed in `_native.pyi`")]
impl PackedWeight {
    #[new]
    fn new(rows: usize, columns: usize) -> Self {
        Self(Arc::new(Weight::new(rows, columns)))
    }

    /// `num_rows` rows of floats at `values`, the first of which is row `start`.
    fn pack_floats(
        &mut self,
        start: usize,
        num_rows: usize,
        values: Address,
        dtype: Dtype,
        format: &str,
    ) -> PyResult<()> {
        let known = FORMATS.iter().find(|(_, name)| *name == format);
        let (format, _) =
            known.ok_or_else(|| PyValueError::new_err(format!("there is no format {format}")))?;
        // SAFETY: `linear/cpu.py` passes a contiguous tensor of this size and type.
        let values = unsafe { floats(values, num_rows * self.0.columns(), dtype) };
        let weight = self.fillable()?;
        with_pool(|pool| weight.pack_floats(start, values, *format, pool))?.map_err(value_error)
    }

    /// Rows of GGUF blocks of type `kind`.
    fn pack_blocks(&mut self, start: usize, blocks: Address, num_bytes: usize, kind: u32) -> PyResult<()> {
        // SAFETY: `linear/cpu.py` passes a contiguous tensor of so many bytes.
        let blocks = unsafe { elements(blocks, num_bytes) };
        let weight = self.fillable()?;
        with_pool(|pool| weight.pack_blocks(start, blocks, kind, pool))?.map_err(value_error)
    }

    /// `out[num_rows, rows] = x[num_rows, columns] · weightᵀ + bias`; `tensors` are x, bias and out, all of type `dtype`.
    fn linear(
        &self,
        py: Python<'_>,
        num_rows: usize,
        tensors: (Address, Option<Address>, Address),
        dtype: Dtype,
    ) -> PyResult<()> {
        let (x, bias, out) = tensors;
        issue(py, num_rows, Product { weight: Arc::clone(&self.0), x, bias, out, dtype })
    }

    /// `out[i] = weight[indices[i]]`.
    fn unpack_rows(
        &self,
        py: Python<'_>,
        num_indices: usize,
        indices: Address,
        out: Address,
        dtype: Dtype,
    ) -> PyResult<()> {
        issue(py, num_indices, Lookup { weight: Arc::clone(&self.0), indices, out, dtype })
    }

    /// What bfloat16 is best held as on this machine.
    #[staticmethod]
    fn bfloat16_format() -> &'static str {
        name_of(Format::of_bf16(Level::best()))
    }

    #[getter]
    fn num_bytes(&self) -> usize {
        self.0.num_bytes()
    }

    /// Of one row.
    fn format_of(&self, row: usize) -> PyResult<&'static str> {
        let format = self
            .0
            .format_of(row)
            .ok_or_else(|| PyIndexError::new_err(format!("row {row} was not packed")))?;
        Ok(name_of(format))
    }

    /// Of the rows, each once.
    #[getter]
    fn formats(&self) -> Vec<&'static str> {
        let formats = self.0.formats();
        FORMATS.iter().filter(|(format, _)| formats.contains(format)).map(|(_, name)| *name).collect()
    }
}

impl PackedWeight {
    fn fillable(&mut self) -> PyResult<&mut Weight> {
        let in_use =
            || PyValueError::new_err("a weight that a program multiplies with cannot be packed again");
        Arc::get_mut(&mut self.0).ok_or_else(in_use)
    }
}

struct Product {
    weight: Arc<Weight>,
    x: Address,
    bias: Option<Address>,
    out: Address,
    dtype: Dtype,
}

impl Kernel for Product {
    fn work_per_row(&self) -> usize {
        self.weight.rows() * self.weight.columns() / 256
    }

    #[expect(unsafe_code, reason = "the boundary to Python, typed in `_native.pyi`")]
    fn run(&self, num_rows: usize, _: &[Arc<Planned>], pool: &Pool) -> PyResult<()> {
        let (rows, columns) = (self.weight.rows(), self.weight.columns());
        // SAFETY: `linear/cpu.py` passes contiguous tensors of these sizes and of one type, keeps them alive during the
        // call, and has just made `out` itself.
        let (call, mut out) = unsafe {
            let x = floats(self.x, num_rows * columns, self.dtype);
            let bias = self.bias.map(|bias| floats(bias, rows, self.dtype));
            (Linear { x, weight: &self.weight, bias }, floats_mut(self.out, num_rows * rows, self.dtype))
        };
        linear::linear(&call, &mut out, pool, Level::best()).map_err(value_error)
    }
}

struct Lookup {
    weight: Arc<Weight>,
    indices: Address,
    out: Address,
    dtype: Dtype,
}

impl Kernel for Lookup {
    fn work_per_row(&self) -> usize {
        self.weight.columns()
    }

    #[expect(unsafe_code, reason = "the boundary to Python, typed in `_native.pyi`")]
    fn run(&self, num_rows: usize, _: &[Arc<Planned>], _: &Pool) -> PyResult<()> {
        // SAFETY: `embedding/cpu.py` passes contiguous tensors of these sizes and types, and has just made `out` itself.
        let (indices, mut out) = unsafe {
            let out = floats_mut(self.out, num_rows * self.weight.columns(), self.dtype);
            (elements::<i64>(self.indices, num_rows), out)
        };
        let rows = self.weight.rows();
        if let Some(index) = indices.iter().find(|&&index| index < 0 || index as usize >= rows) {
            return Err(PyIndexError::new_err(format!("row {index} of a weight of {rows} rows")));
        }
        self.weight.unpack_rows(indices, &mut out).map_err(value_error)
    }
}

fn value_error(error: impl std::fmt::Display) -> PyErr {
    PyValueError::new_err(error.to_string())
}

/// # Safety
/// As [`elements`].
#[expect(unsafe_code, reason = "a tensor's memory is known to Python only")]
unsafe fn floats<'a>(address: Address, len: usize, dtype: Dtype) -> Floats<'a> {
    // SAFETY: the caller's promise.
    unsafe {
        match dtype {
            Dtype::Float32 => Floats::F32(elements(address, len)),
            Dtype::Bfloat16 => Floats::Bf16(elements(address, len)),
        }
    }
}

/// # Safety
/// As [`elements_mut`].
#[expect(unsafe_code, reason = "a tensor's memory is known to Python only")]
unsafe fn floats_mut<'a>(address: Address, len: usize, dtype: Dtype) -> FloatsMut<'a> {
    // SAFETY: the caller's promise.
    unsafe {
        match dtype {
            Dtype::Float32 => FloatsMut::F32(elements_mut(address, len)),
            Dtype::Bfloat16 => FloatsMut::Bf16(elements_mut(address, len)),
        }
    }
}

/// Adds this file's class to the module.
pub(super) fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PackedWeight>()
}
