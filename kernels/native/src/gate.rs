//! The gates of gated MLPs (Shazeer 2020): `activation(gate) * up`, where `[gate, up]` come from one merged product.

use crate::{
    Element, Pool,
    simd::Level,
    vector::{self, Kernel, LANES, Vector},
};

/// Fewer elements than this are done before another thread would have begun.
const MIN_PARALLEL: usize = 1 << 14;

/// What is applied to the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x / (1 + e^-x)`.
    Silu,
    /// The tanh form of GELU (Hendrycks 2016), which is `x / (1 + e^-2u)` with `u = sqrt(2/π) (x + 0.044715 x³)`.
    Gelu,
}

impl Activation {
    /// `log2(e) * -x`, or the same with `2u`, as a polynomial `x (a + b x²)`.
    fn coefficients(self) -> (f32, f32) {
        let log2_e = std::f32::consts::LOG2_E;
        match self {
            Self::Silu => (-log2_e, 0.0),
            Self::Gelu => {
                let a = -2.0 * (2.0 * std::f32::consts::FRAC_1_PI).sqrt() * log2_e;
                (a, a * 0.044_715)
            }
        }
    }
}

/// `gate_up` `[rows, 2 * width]`, gate then up, into `out` `[rows, width]`.
///
/// # Panics
/// If `gate_up` is not twice as long as `out`, or these are not whole rows.
pub fn gate_mul<X: Element>(
    activation: Activation,
    gate_up: &[X],
    out: &mut [X],
    width: usize,
    pool: &Pool,
    level: Level,
) {
    assert!(gate_up.len() == 2 * out.len() && out.len().is_multiple_of(width), "rows of {width}");
    let run = |first_row: usize, out: &mut [X]| {
        let gate_up = &gate_up[2 * first_row * width..];
        vector::dispatch(level, Rows { activation, gate_up, out, width });
    };
    if out.len() < MIN_PARALLEL {
        run(0, out);
    } else {
        let rows_per_chunk = (MIN_PARALLEL / 4 / width).max(1);
        pool.for_each_chunk(out, rows_per_chunk * width, |chunk, out| run(chunk * rows_per_chunk, out));
    }
}

struct Rows<'a, X> {
    activation: Activation,
    gate_up: &'a [X],
    out: &'a mut [X],
    width: usize,
}

impl<X: Element> Kernel for Rows<'_, X> {
    #[inline(always)]
    fn run<V: Vector>(self) {
        let Self { activation, gate_up, out, width } = self;
        let coefficients = activation.coefficients();
        for (gate_up, out) in gate_up.chunks_exact(2 * width).zip(out.chunks_exact_mut(width)) {
            let (gate, up) = gate_up.split_at(width);
            let mut begin = 0;
            while begin + LANES <= width {
                let end = begin + LANES;
                block::<V, X>(coefficients, &gate[begin..end], &up[begin..end], &mut out[begin..end], LANES);
                begin = end;
            }
            if begin < width {
                block::<V, X>(coefficients, &gate[begin..], &up[begin..], &mut out[begin..], width - begin);
            }
        }
    }
}

/// `len` elements, at most a vector of them; inlined, so that a whole one is converted by vectors too.
#[inline(always)]
fn block<V: Vector, X: Element>(coefficients: (f32, f32), gate: &[X], up: &[X], out: &mut [X], len: usize) {
    assert!(len <= LANES && gate.len() >= len && up.len() >= len && out.len() >= len);
    let (mut a, mut b) = ([0.0f32; LANES], [0.0f32; LANES]);
    for lane in 0..len {
        a[lane] = gate[lane].widen();
        b[lane] = up[lane].widen();
    }
    multiply::<V>(coefficients, &mut a, &b);
    for lane in 0..len {
        out[lane] = X::narrow(a[lane]);
    }
}

#[inline(always)]
fn multiply<V: Vector>((a, b): (f32, f32), gate: &mut [f32; LANES], up: &[f32; LANES]) {
    #[expect(
        unsafe_code,
        reason = "`dispatch` has chosen a `V` of this machine; the arrays are whole vectors"
    )]
    // SAFETY: as said.
    unsafe {
        let x = V::load(gate.as_ptr());
        let exponent = x.mul(x).fma(V::splat(b), V::splat(a)).mul(x);
        // Beyond this the result is 0 to the last digit, and 2^exponent would overflow.
        let power = V::splat(126.0).min(exponent).exp2();
        x.mul(V::load(up.as_ptr())).div(power.add(V::splat(1.0))).store(gate.as_mut_ptr());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Bf16;

    /// The specification, in `f64`, and the exponent in it.
    fn naive(activation: Activation, gate: f32, up: f32) -> (f64, f64) {
        let (x, up) = (f64::from(gate), f64::from(up));
        let exponent = match activation {
            Activation::Silu => -x,
            Activation::Gelu => -2.0 * (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3)),
        };
        (x / (1.0 + exponent.exp()) * up, exponent)
    }

    fn check<X: Element>(rows: usize, width: usize, tolerance: f64) {
        let gate_up: Vec<X> =
            (0..2 * rows * width).map(|i| X::narrow(((i * 7919) % 2003) as f32 / 20.0 - 50.0)).collect();
        for (activation, level) in [Activation::Silu, Activation::Gelu]
            .into_iter()
            .flat_map(|a| Level::available().into_iter().map(move |l| (a, l)))
        {
            let mut out = vec![X::narrow(f32::NAN); rows * width];
            gate_mul(activation, &gate_up, &mut out, width, &Pool::new(2).expect("threads"), level);
            for (index, got) in out.iter().enumerate() {
                let at = index / width * 2 * width + index % width;
                let (want, exponent) = naive(activation, gate_up[at].widen(), gate_up[at + width].widen());
                let difference = (f64::from(got.widen()) - want).abs();
                // A rounded exponent is off by a share of itself, and its power by as much of the whole.
                let tolerance = tolerance + exponent.abs() * 2f64.powi(-22);
                assert!(
                    difference <= tolerance * want.abs() + 1e-30,
                    "{activation:?} {level:?}: {want}, off by {difference}"
                );
            }
        }
    }

    #[test]
    fn twins_agree() {
        for (rows, width) in [(1, 1), (3, 24), (40, 600)] {
            check::<f32>(rows, width, 2e-6);
            check::<Bf16>(rows, width, 5e-3);
        }
    }
}
