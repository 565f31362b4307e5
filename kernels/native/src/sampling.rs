//! Choosing a token from a row of logits, without sorting the vocabulary.
//!
//! ```text
//! greedy    argmax
//! random    / temperature → threshold (top-k, top-p, min-p: all keep what is at least so large) → inverse CDF
//! ```
//!
//! `anaphora_kernels.sampling` (Python) is the contract; `reference.py` there is the naive twin, of the same random numbers.

use std::cell::RefCell;

use crate::{
    Element, Pool,
    pool::SharedMut,
    simd::Level,
    vector::{self, Kernel, LANES, Vector},
};

/// Tokens less likely than e^-80 of the likeliest are never drawn.
const NEVER: f32 = 80.0;

/// How a row draws.
#[derive(Clone, Copy, Debug)]
pub struct Random {
    /// Above 0.
    pub temperature: f32,
    /// At least 1; the size of the vocabulary: off.
    pub top_k: usize,
    /// In (0, 1]; 1: off.
    pub top_p: f32,
    /// In [0, 1]; 0: off.
    pub min_p: f32,
    /// In [0, 1): see [`uniform`].
    pub uniform: f64,
}

/// A row of the batch.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a, L> {
    /// Of the whole vocabulary.
    pub logits: &'a [L],
    /// The logits after biases and penalties, if there are any.
    pub scores: Option<&'a [f32]>,
    /// None: the likeliest.
    pub random: Option<Random>,
    /// How many of the likeliest tokens to report; at most the vocabulary.
    pub num_top: usize,
}

/// What came of a row.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sample {
    /// The token chosen.
    pub token: usize,
    /// Its log-probability under the unmodified logits, at temperature 1.
    pub logprob: f32,
    /// Tokens and log-probabilities, likeliest first.
    pub top: Vec<(usize, f32)>,
}

/// A number in [0, 1) of `seed` and `counter` alone: two rounds of splitmix64's finaliser (Steele, Lea, Flood 2014).
#[must_use]
pub fn uniform(seed: u64, counter: u64) -> f64 {
    const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;
    let mix = |x: u64| {
        let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^ (x >> 31)
    };
    let bits = mix(mix(seed.wrapping_add(GOLDEN)).wrapping_add(counter.wrapping_mul(GOLDEN)));
    (bits >> 11) as f64 * 2.0f64.powi(-53)
}

/// One token for each row, a row to a thread.
pub fn sample<L: Element>(rows: &[Row<'_, L>], pool: &Pool, level: Level) -> Vec<Sample> {
    thread_local!(static SCRATCH: RefCell<Scratch> = RefCell::default());
    let mut samples = vec![Sample::default(); rows.len()];
    let out = SharedMut::new(&mut samples);
    pool.for_each(rows.len(), |index| {
        #[expect(unsafe_code, reason = "every index is another sample")]
        // SAFETY: as said; within the vector.
        let sample = unsafe { &mut *out.get().add(index) };
        // Borrowed out here: a closure in there might not be inlined, and then be compiled for the baseline.
        SCRATCH.with_borrow_mut(|scratch| {
            vector::dispatch(level, Draw { row: rows[index], sample, scratch });
        });
    });
    samples
}

struct Draw<'a, L> {
    row: Row<'a, L>,
    sample: &'a mut Sample,
    scratch: &'a mut Scratch,
}

#[derive(Default)]
struct Scratch {
    logits: Vec<f32>,
    scaled: Vec<f32>,
    weights: Vec<f32>,
    candidates: Vec<f32>,
}

impl<L: Element> Kernel for Draw<'_, L> {
    #[inline(always)]
    fn run<V: Vector>(self) {
        let Scratch { logits, scaled, weights, candidates } = self.scratch;
        logits.clear();
        logits.extend(self.row.logits.iter().map(|x| x.widen()));
        let highest = highest::<V>(logits);
        let normalizer = highest + sum_of_weights::<V>(logits, highest, weights).ln() as f32;
        let scores = self.row.scores.unwrap_or(logits);
        self.sample.token = match self.row.random {
            None => first_at_least(
                scores,
                if self.row.scores.is_some() { self::highest::<V>(scores) } else { highest },
            ),
            Some(random) => {
                scaled.clear();
                scaled.extend(scores.iter().map(|x| x / random.temperature));
                draw::<V>(scaled, &random, weights, candidates)
            }
        };
        self.sample.logprob = logits[self.sample.token] - normalizer;
        self.sample.top = top::<V>(logits, self.row.num_top, normalizer, candidates);
    }
}

/// The position of the first element that is at least `bound`; 0 if there is none, which takes NaN.
#[inline(always)]
fn first_at_least(x: &[f32], bound: f32) -> usize {
    x.iter().position(|&x| x >= bound).unwrap_or(0)
}

#[inline(always)]
fn highest<V: Vector>(x: &[f32]) -> f32 {
    let (blocks, tail) = x.as_chunks::<LANES>();
    #[expect(unsafe_code, reason = "`dispatch` has chosen a `V` of this machine; blocks are whole vectors")]
    // SAFETY: as said.
    let highest = unsafe {
        let mut highest = V::splat(f32::NEG_INFINITY);
        for block in blocks {
            highest = V::load(block.as_ptr()).max(highest);
        }
        highest.highest()
    };
    tail.iter().copied().fold(highest, f32::max)
}

/// Fills `weights` with `e^(x - highest)`, 0 below `e^-80`; the sum of each block of lanes is rounded once.
#[inline(always)]
fn sum_of_weights<V: Vector>(x: &[f32], highest: f32, weights: &mut Vec<f32>) -> f64 {
    weights.resize(x.len(), 0.0);
    let (blocks, tail) = x.as_chunks::<LANES>();
    let (into, into_tail) = weights.as_chunks_mut::<LANES>();
    let mut sum = 0.0f64;
    for (block, into) in blocks.iter().zip(into) {
        #[expect(
            unsafe_code,
            reason = "`dispatch` has chosen a `V` of this machine; blocks are whole vectors"
        )]
        // SAFETY: as said.
        unsafe {
            let log2_e = V::splat(std::f32::consts::LOG2_E);
            V::load(block.as_ptr()).add(V::splat(-highest)).mul(log2_e).exp2().store(into.as_mut_ptr());
        }
        for lane in 0..LANES {
            into[lane] = if block[lane] >= highest - NEVER { into[lane] } else { 0.0 };
        }
        sum += f64::from(into.iter().sum::<f32>());
    }
    for (x, into) in tail.iter().zip(into_tail) {
        *into = if *x >= highest - NEVER { (x - highest).exp() } else { 0.0 };
        sum += f64::from(*into);
    }
    sum
}

/// Draws from scores at the row's temperature.
#[inline(always)]
fn draw<V: Vector>(
    scaled: &mut [f32],
    random: &Random,
    weights: &mut Vec<f32>,
    candidates: &mut Vec<f32>,
) -> usize {
    let highest = highest::<V>(scaled);
    let mut threshold = f32::NEG_INFINITY;
    if random.top_k < scaled.len() {
        threshold = largest::<V>(scaled, random.top_k, candidates);
    }
    if random.top_p < 1.0 {
        remove_below(scaled, threshold);
        threshold = top_p_threshold::<V>(scaled, highest, random.top_p, weights, candidates).max(threshold);
    }
    if random.min_p > 0.0 {
        threshold = threshold.max(highest + random.min_p.ln());
    }
    remove_below(scaled, threshold);
    let total = sum_of_weights::<V>(scaled, highest, weights);
    let target = random.uniform * total;
    let mut before = 0.0f64;
    let mut last = 0;
    for (index, block) in weights.chunks(LANES).enumerate() {
        let sum = f64::from(block.iter().sum::<f32>());
        if before + sum > target {
            // Within the block as it was summed: by rounding, its end may be missed, but not its last possible token.
            for (lane, &weight) in block.iter().enumerate().filter(|(_, weight)| **weight > 0.0) {
                last = index * LANES + lane;
                before += f64::from(weight);
                if before > target {
                    break;
                }
            }
            return last;
        }
        before += sum;
    }
    first_at_least(scaled, highest)
}

#[inline(always)]
fn remove_below(x: &mut [f32], threshold: f32) {
    for x in x {
        *x = if *x >= threshold { *x } else { f32::NEG_INFINITY };
    }
}

/// The `count`-th largest element (from 1), by way of candidates above a bound that rises.
#[inline(always)]
fn largest<V: Vector>(x: &[f32], count: usize, candidates: &mut Vec<f32>) -> f32 {
    let capacity = 2 * count + 8 * LANES;
    let mut bound = f32::NEG_INFINITY;
    candidates.clear();
    for block in x.chunks(LANES) {
        #[expect(
            unsafe_code,
            reason = "`dispatch` has chosen a `V` of this machine; the block is a whole vector"
        )]
        // SAFETY: as said.
        let is_below =
            block.len() == LANES && unsafe { !V::load(block.as_ptr()).any_greater(V::splat(bound)) };
        if is_below {
            continue;
        }
        candidates.extend(block.iter().filter(|x| **x > bound));
        if candidates.len() >= capacity {
            candidates.select_nth_unstable_by(count - 1, |a, b| b.total_cmp(a));
            candidates.truncate(count);
            bound = candidates[count - 1];
        }
    }
    if candidates.len() < count {
        return f32::NEG_INFINITY;
    }
    *candidates.select_nth_unstable_by(count - 1, |a, b| b.total_cmp(a)).1
}

/// The least likely score of the smallest set of likeliest tokens with at least `top_p` of the probability.
#[inline(always)]
fn top_p_threshold<V: Vector>(
    scaled: &[f32],
    highest: f32,
    top_p: f32,
    weights: &mut Vec<f32>,
    candidates: &mut Vec<f32>,
) -> f32 {
    let total = sum_of_weights::<V>(scaled, highest, weights);
    let wanted = f64::from(top_p) * total;
    // All tokens below this together are less than what may be left out.
    let cut = highest + (f64::from(1.0 - top_p) * total / scaled.len() as f64).ln() as f32;
    candidates.clear();
    candidates.extend(scaled.iter().filter(|x| **x >= cut.min(highest)));
    let mut before = 0.0f64;
    let mut last = highest;
    let mut rest = &mut candidates[..];
    // Sorted a stretch at a time: usually a few tokens are enough.
    let mut stretch = 256;
    while !rest.is_empty() {
        if rest.len() > stretch {
            rest.select_nth_unstable_by(stretch, |a, b| b.total_cmp(a));
        }
        let (now, later) = rest.split_at_mut(stretch.min(rest.len()));
        now.sort_unstable_by(|a, b| b.total_cmp(a));
        for &x in &*now {
            if before >= wanted {
                return last;
            }
            last = x;
            before += f64::from((x - highest).exp());
        }
        (rest, stretch) = (later, 4 * stretch);
    }
    last
}

/// The `count` likeliest tokens and their log-probabilities; of equals, the first.
#[inline(always)]
fn top<V: Vector>(
    logits: &[f32],
    count: usize,
    normalizer: f32,
    candidates: &mut Vec<f32>,
) -> Vec<(usize, f32)> {
    if count == 0 {
        return Vec::new();
    }
    let bound = largest::<V>(logits, count, candidates);
    let mut top: Vec<(usize, f32)> =
        logits.iter().copied().enumerate().filter(|(_, logit)| *logit >= bound).collect();
    top.sort_by(|a, b| b.1.total_cmp(&a.1));
    top.truncate(count);
    top.iter_mut().for_each(|(_, logit)| *logit -= normalizer);
    top
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(i: usize) -> f32 {
        ((i * 7919) % 10_007) as f32 / 1000.0 - 5.0
    }

    /// The threshold and the draw by sorting everything, in `f64`.
    fn naive(logits: &[f32], random: &Random) -> usize {
        let mut scaled: Vec<f64> = logits.iter().map(|x| f64::from(x / random.temperature)).collect();
        let mut sorted = scaled.clone();
        sorted.sort_by(|a, b| b.total_cmp(a));
        let mut keep = |threshold: f64| {
            scaled.iter_mut().for_each(|x| *x = if *x < threshold { f64::NEG_INFINITY } else { *x });
        };
        keep(sorted[random.top_k.min(sorted.len()) - 1]);
        sorted.truncate(random.top_k);
        if random.top_p < 1.0 {
            let weights: Vec<f64> = sorted.iter().map(|x| (x - sorted[0]).exp()).collect();
            let total: f64 = weights.iter().sum();
            let mut before = 0.0;
            let mut kept = 0;
            while kept < weights.len() && before < f64::from(random.top_p) * total {
                before += weights[kept];
                kept += 1;
            }
            keep(sorted[kept.max(1) - 1]);
        }
        keep(sorted[0] + f64::from(random.min_p).ln());
        let weights: Vec<f64> = scaled.iter().map(|x| (x - sorted[0]).exp()).collect();
        let target = random.uniform * weights.iter().sum::<f64>();
        let mut sum = 0.0;
        weights
            .iter()
            .position(|weight| {
                sum += weight;
                sum > target
            })
            .expect("below the total")
    }

    #[test]
    fn draws_are_those_of_a_sorted_vocabulary() {
        for (size, spread) in [(1usize, 1.0f32), (7, 1.0), (1000, 1.0), (5003, 0.05)] {
            let logits: Vec<f32> = (0..size).map(|i| noise(i) * spread).collect();
            for index in 0..300u64 {
                let random = Random {
                    temperature: [0.3, 1.0, 1.7][index as usize % 3],
                    top_k: [size, 1, 5.min(size), 40.min(size), 700.min(size)][index as usize % 5],
                    top_p: [1.0, 0.9, 0.3, 0.999][index as usize % 4],
                    min_p: [0.0, 0.05][index as usize % 2],
                    uniform: uniform(index, 3),
                };
                let want = naive(&logits, &random);
                for level in Level::available() {
                    let row = Row { logits: &logits, scores: None, random: Some(random), num_top: 0 };
                    let got = &sample(&[row], &Pool::new(1).expect("threads"), level)[0];
                    assert_eq!(got.token, want, "{level:?} {size} {random:?}");
                }
            }
        }
    }

    #[test]
    fn greedy_takes_the_first_of_the_likeliest_and_reports_alternatives() {
        let mut logits: Vec<f32> = (0..1234).map(noise).collect();
        logits[1233] = 9.0;
        logits[77] = 9.0;
        logits[500] = 8.5;
        let total: f64 = logits.iter().map(|x| f64::from(*x).exp()).sum();
        let logprob = |logit: f64| (logit - total.ln()) as f32;
        let close = |a: f32, b: f32| (a - b).abs() < 1e-5;
        for level in Level::available() {
            let row = Row { logits: &logits, scores: None, random: None, num_top: 3 };
            let got = &sample(&[row], &Pool::new(1).expect("threads"), level)[0];
            assert_eq!(got.token, 77);
            assert!(close(got.logprob, logprob(9.0)));
            assert_eq!(got.top.iter().map(|top| top.0).collect::<Vec<_>>(), [77, 1233, 500]);
            assert!(close(got.top[2].1, logprob(8.5)));
        }
    }
}
