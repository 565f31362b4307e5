//! Root-mean-square normalisation with the residual sum before it (Zhang and Sennrich 2019), the row in the cache between
//! its two passes.

use crate::{
    Element, Pool,
    pool::SharedMut,
    simd::Level,
    vector::{self, Kernel, LANES, Vector},
};

/// Fewer elements than this are done before another thread would have begun.
const MIN_PARALLEL: usize = 1 << 15;

/// Normalises the rows of `x` (`[rows, weight.len()]`) into `out`; with a residual, `residual + x` instead, which stays in
/// `residual`, rounded. The normalised value is rounded to `W` before it is multiplied by the weight.
///
/// # Panics
/// If the slices differ in length, or are not whole rows.
#[expect(clippy::too_many_arguments, reason = "a struct of them would be made for one call")]
pub fn rms_norm<X: Element, W: Element>(
    x: &[X],
    residual: Option<&mut [X]>,
    weight: &[W],
    eps: f32,
    out: &mut [X],
    pool: &Pool,
    level: Level,
) {
    let width = weight.len();
    assert!(
        x.len() == out.len() && x.len().is_multiple_of(width),
        "rows of {width}, {} and {}",
        x.len(),
        out.len()
    );
    assert!(
        residual.as_ref().is_none_or(|residual| residual.len() == x.len()),
        "a residual for every element"
    );
    let residual = residual.map(SharedMut::new);
    let rows_per_chunk = (MIN_PARALLEL / 4 / width).max(1);
    let run = |first: usize, out: &mut [X]| {
        let elements = first..first + out.len();
        #[expect(unsafe_code, reason = "chunks do not overlap")]
        // SAFETY: as long as `x`, checked above; this chunk is this call's alone.
        let residual = residual.as_ref().map(|residual| unsafe {
            std::slice::from_raw_parts_mut(residual.get().add(first), elements.len())
        });
        vector::dispatch(level, Rows { x: &x[elements], residual, weight, eps, out });
    };
    if x.len() < MIN_PARALLEL {
        run(0, out);
    } else {
        pool.for_each_chunk(out, rows_per_chunk * width, |chunk, out| {
            run(chunk * rows_per_chunk * width, out)
        });
    }
}

struct Rows<'a, X, W> {
    x: &'a [X],
    residual: Option<&'a mut [X]>,
    weight: &'a [W],
    eps: f32,
    out: &'a mut [X],
}

impl<X: Element, W: Element> Kernel for Rows<'_, X, W> {
    #[inline(always)]
    fn run<V: Vector>(self) {
        let Self { x, mut residual, weight, eps, out } = self;
        let width = weight.len();
        for (row, (x, out)) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)).enumerate() {
            let x: &[X] = match &mut residual {
                None => x,
                Some(residual) => {
                    let residual = &mut residual[row * width..(row + 1) * width];
                    for (sum, x) in residual.iter_mut().zip(x) {
                        *sum = X::narrow(sum.widen() + x.widen());
                    }
                    residual
                }
            };
            let factor = 1.0 / (square_sum(x) / width as f32 + eps).sqrt();
            for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
                *out = X::narrow(W::narrow(x.widen() * factor).widen() * weight.widen());
            }
        }
    }
}

#[inline(always)]
fn square_sum<X: Element>(x: &[X]) -> f32 {
    let mut sums = [0.0f32; LANES];
    let (blocks, tail) = x.as_chunks::<LANES>();
    for block in blocks {
        for lane in 0..LANES {
            sums[lane] += block[lane].widen() * block[lane].widen();
        }
    }
    sums.iter().sum::<f32>() + tail.iter().map(|x| x.widen() * x.widen()).sum::<f32>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Bf16;

    /// The specification: one element after another, sums in `f64`.
    fn naive<X: Element, W: Element>(x: &[X], residual: &mut [X], weight: &[W], eps: f32) -> Vec<f32> {
        let mut out = Vec::new();
        for (x, residual) in x.chunks(weight.len()).zip(residual.chunks_mut(weight.len())) {
            for (sum, x) in residual.iter_mut().zip(x) {
                *sum = X::narrow(sum.widen() + x.widen());
            }
            let mean =
                residual.iter().map(|x| f64::from(x.widen()).powi(2)).sum::<f64>() / weight.len() as f64;
            let factor = 1.0 / (mean + f64::from(eps)).sqrt();
            out.extend(
                residual.iter().zip(weight).map(|(x, w)| (f64::from(x.widen()) * factor) as f32 * w.widen()),
            );
        }
        out
    }

    fn check<X: Element, W: Element>(rows: usize, width: usize, tolerance: f32) {
        let noise = |i: usize| ((i * 7919) % 1013) as f32 / 500.0 - 1.0;
        let x: Vec<X> = (0..rows * width).map(|i| X::narrow(noise(i))).collect();
        let before: Vec<X> = (0..rows * width).map(|i| X::narrow(noise(i + 77))).collect();
        let weight: Vec<W> = (0..width).map(|i| W::narrow(noise(i + 5))).collect();
        let mut want_residual = before.clone();
        let want = naive(&x, &mut want_residual, &weight, 1e-5);
        for level in Level::available() {
            let (mut residual, mut out) = (before.clone(), vec![X::narrow(f32::NAN); x.len()]);
            let pool = Pool::new(2).expect("threads");
            rms_norm(&x, Some(&mut residual), &weight, 1e-5, &mut out, &pool, level);
            assert!(residual.iter().zip(&want_residual).all(|(a, b)| a.widen() == b.widen()), "{level:?}");
            for (got, want) in out.iter().zip(&want) {
                assert!((got.widen() - want).abs() <= tolerance * want.abs().max(0.1), "{level:?} {want}");
            }
            rms_norm(&want_residual, None, &weight, 1e-5, &mut residual, &pool, level);
            assert!(residual.iter().zip(&out).all(|(a, b)| a.widen() == b.widen()), "{level:?}");
        }
    }

    #[test]
    fn twins_agree() {
        for (rows, width) in [(1, 1), (3, 576), (70, 600), (2, 33)] {
            check::<f32, f32>(rows, width, 1e-5);
            check::<Bf16, Bf16>(rows, width, 1e-2);
            check::<Bf16, f32>(rows, width, 1e-2);
        }
    }
}
