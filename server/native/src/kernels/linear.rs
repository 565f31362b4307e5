//! Packed weights, and products with them.

use anaphora_kernels::{
    linear::{self, Floats, FloatsMut, Format, Linear, Weight},
    simd::Level,
};
use pyo3::{
    exceptions::{PyIndexError, PyValueError},
    prelude::*,
};

use super::{Address, Dtype, elements, elements_mut, with_pool};

/// Multiplications from which on other Python threads may run meanwhile: some tenths of a millisecond. To take the
/// interpreter back can take longer than a short product.
const LONG: usize = 50_000_000;

/// A weight `[rows, columns]`, repacked for this machine; see `anaphora_kernels.linear`.
#[pyclass(module = "anaphora._native")]
struct PackedWeight(Weight);

/// The names that Python has for formats: where there is one, that of the GGUF type that is held so.
const FORMATS: [(Format, &str); 6] = [
    (Format::F32, "float32"),
    (Format::Bf16, "bfloat16"),
    (Format::Q8, "q8_0"),
    (Format::Q6, "q6_k"),
    (Format::Q4, "q4_0"),
    (Format::Q4Min, "q4_1"),
];

#[pymethods]
#[expect(unsafe_code, reason = "the boundary to Python, typed in `_native.pyi`")]
impl PackedWeight {
    #[new]
    fn new(rows: usize, columns: usize) -> Self {
        Self(Weight::new(rows, columns))
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
        with_pool(|pool| self.0.pack_floats(start, values, *format, pool))?.map_err(value_error)
    }

    /// Rows of GGUF blocks of type `kind`.
    fn pack_blocks(&mut self, start: usize, blocks: Address, num_bytes: usize, kind: u32) -> PyResult<()> {
        // SAFETY: `linear/cpu.py` passes a contiguous tensor of so many bytes.
        let blocks = unsafe { elements(blocks, num_bytes) };
        with_pool(|pool| self.0.pack_blocks(start, blocks, kind, pool))?.map_err(value_error)
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
        let (rows, columns) = (self.0.rows(), self.0.columns());
        // SAFETY: `linear/cpu.py` passes contiguous tensors of these sizes and of one type, keeps them alive during the
        // call, and has just made `out` itself.
        let (call, mut out) = unsafe {
            let x = floats(x, num_rows * columns, dtype);
            let bias = bias.map(|bias| floats(bias, rows, dtype));
            (Linear { x, weight: &self.0, bias }, floats_mut(out, num_rows * rows, dtype))
        };
        let mut run = || with_pool(|pool| linear::linear(&call, &mut out, pool, Level::best()));
        let is_long = num_rows * rows * columns >= LONG;
        if is_long { py.detach(run) } else { run() }?.map_err(value_error)
    }

    /// `out[i] = weight[indices[i]]`.
    fn unpack_rows(&self, num_indices: usize, indices: Address, out: Address, dtype: Dtype) -> PyResult<()> {
        // SAFETY: `embedding/cpu.py` passes contiguous tensors of these sizes and types, and has just made `out` itself.
        let (indices, mut out) = unsafe {
            (elements::<i64>(indices, num_indices), floats_mut(out, num_indices * self.0.columns(), dtype))
        };
        let rows = self.0.rows();
        if let Some(index) = indices.iter().find(|&&index| index < 0 || index as usize >= rows) {
            return Err(PyIndexError::new_err(format!("row {index} of a weight of {rows} rows")));
        }
        self.0.unpack_rows(indices, &mut out).map_err(value_error)
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
        let found = FORMATS.iter().find(|(known, _)| *known == format);
        Ok(found.expect("every format has a name. This is a bug.").1)
    }

    /// Of the rows, each once.
    #[getter]
    fn formats(&self) -> Vec<&'static str> {
        let formats = self.0.formats();
        FORMATS.iter().filter(|(format, _)| formats.contains(format)).map(|(_, name)| *name).collect()
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
