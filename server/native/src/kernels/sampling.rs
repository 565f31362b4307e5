//! Sampling.

use anaphora_kernels::{
    Bf16, Element,
    sampling::{Random, Row, Sample, sample, uniform},
    simd::Level,
};
use pyo3::prelude::*;

use super::{Address, Dtype, elements, elements_mut, with_pool};

/// The rows that draw: how many, which (int64; none: all), temperatures (float32), seeds and counters (int64).
type RandomRows = (usize, Option<Address>, Address, Address, Address);
/// Top-k (int64), top-p and min-p (float32), of those rows.
type Truncations = (Option<Address>, Option<Address>, Option<Address>);
/// The rows that want alternatives: how many, which (int64), how many each; then tokens (int64) and logprobs to fill.
type TopRows = (usize, Address, usize, Address, Address);

/// See `anaphora_kernels.sampling`. `logits` is (dtype, address, elements from row to row), `scores` contiguous float32;
/// `out` is (tokens, int64; logprobs, float32).
#[pyfunction]
#[pyo3(name = "sample")]
#[expect(clippy::too_many_arguments, reason = "grouped as far as it says something")]
#[expect(unsafe_code, reason = "the boundary to Python, typed in `_native.pyi`")]
fn sample_rows(
    py: Python<'_>,
    logits: (Dtype, Address, usize),
    scores: Option<Address>,
    rows: usize,
    vocab_size: usize,
    random: Option<RandomRows>,
    truncations: Truncations,
    top: Option<TopRows>,
    out: (Address, Address),
) -> PyResult<()> {
    let (dtype, address, stride) = logits;
    let batch = Batch { address, stride, scores, rows, vocab_size, random, truncations, top };
    // SAFETY: `sampling/cpu.py` passes tensors of these sizes and dtypes, keeps them alive, and has just made the outputs.
    py.detach(|| unsafe {
        let samples = match dtype {
            Dtype::Float32 => batch.sample::<f32>(),
            Dtype::Bfloat16 => batch.sample::<Bf16>(),
        }?;
        let (tokens, logprobs) = (elements_mut::<i64>(out.0, rows), elements_mut::<f32>(out.1, rows));
        for ((sample, token), logprob) in samples.iter().zip(tokens).zip(logprobs) {
            (*token, *logprob) = (sample.token as i64, sample.logprob);
        }
        if let Some((num_rows, which, count, tokens, logprobs)) = top {
            let tokens = elements_mut::<i64>(tokens, num_rows * count).chunks_exact_mut(count.max(1));
            let logprobs = elements_mut::<f32>(logprobs, num_rows * count).chunks_exact_mut(count.max(1));
            for ((&row, tokens), logprobs) in
                elements::<i64>(which, num_rows).iter().zip(tokens).zip(logprobs)
            {
                for (index, &(token, logprob)) in samples[row as usize].top.iter().enumerate() {
                    (tokens[index], logprobs[index]) = (token as i64, logprob);
                }
            }
        }
        Ok(())
    })
}

struct Batch {
    address: Address,
    stride: usize,
    scores: Option<Address>,
    rows: usize,
    vocab_size: usize,
    random: Option<RandomRows>,
    truncations: Truncations,
    top: Option<TopRows>,
}

impl Batch {
    /// # Safety
    /// As `elements`.
    #[expect(unsafe_code, reason = "the boundary to Python")]
    unsafe fn sample<L: Element>(&self) -> PyResult<Vec<Sample>> {
        let vocab_size = self.vocab_size;
        // SAFETY: the caller's promise, also below.
        let row = |row: usize| unsafe {
            Row {
                logits: elements::<L>(self.address + row * self.stride * size_of::<L>(), vocab_size),
                scores: self
                    .scores
                    .map(|scores| elements(scores + row * vocab_size * size_of::<f32>(), vocab_size)),
                random: None,
                num_top: 0,
            }
        };
        let mut rows: Vec<Row<'_, L>> = (0..self.rows).map(row).collect();
        // SAFETY: as above.
        unsafe {
            if let Some((count, which, temperatures, seeds, counters)) = self.random {
                let floats =
                    |address: Option<Address>| address.map(|address| elements::<f32>(address, count));
                let integers = |address: Address| elements::<i64>(address, count);
                let (top_k, top_p, min_p) = self.truncations;
                let (which, top_k, top_p, min_p) =
                    (which.map(integers), top_k.map(integers), floats(top_p), floats(min_p));
                let (temperatures, seeds, counters) =
                    (elements::<f32>(temperatures, count), integers(seeds), integers(counters));
                for index in 0..count {
                    rows[which.map_or(index, |which| which[index] as usize)].random = Some(Random {
                        temperature: temperatures[index],
                        top_k: top_k.map_or(vocab_size, |top_k| top_k[index] as usize),
                        top_p: top_p.map_or(1.0, |top_p| top_p[index]),
                        min_p: min_p.map_or(0.0, |min_p| min_p[index]),
                        uniform: uniform(seeds[index] as u64, counters[index] as u64),
                    });
                }
            }
            if let Some((count, which, num_top, ..)) = self.top {
                for &row in elements::<i64>(which, count) {
                    rows[row as usize].num_top = num_top;
                }
            }
        }
        with_pool(|pool| sample(&rows, pool, Level::best()))
    }
}

/// Adds this file's function to the module.
pub(super) fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(sample_rows, module)?)
}
