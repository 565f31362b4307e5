//! How long a step will take: a model that is fitted to how long the steps so far took.
//!
//! ```text
//!   duration = step + row · decode rows + token · prefill tokens + pair · (query, key) pairs of the prefill + context · tokens read
//! ```
//! All five costs are at least 0. They are fitted to the error relative to the measured or the predicted duration, whichever
//! is longer: a decode of 10 ms and a prefill of 500 ms count alike. Small errors count by their squares, those over
//! [`SURPRISE`] only by their size (Huber's loss: "Robust estimation of a location parameter", 1964): a step that took far
//! too long or too short (the machine was busy with something else; an answer was noticed late) hardly moves the fit, many
//! such steps do. Old steps fade. Steps with and without a prefill fade apart, so that hours of decoding do not make the
//! model forget what a prefill costs.
//!
//! Nothing is believed far beyond what was seen: see [`CostModel::is_trusted`].

/// The costs: of a step, a decode row, a prefill token, a (query, key) pair, and a token of context that a row reads.
const NUM_COSTS: usize = 5;

/// What remains of a sample's weight after another of its kind: the last 64 or so matter.
const FADING: f64 = 1.0 - 1.0 / 64.0;

/// A relative error of a prediction beyond which a measurement counts by its size.
const SURPRISE: f64 = 0.1;

/// Rounds of the fit. It starts from the last one, so few are needed.
const NUM_ROUNDS: usize = 16;

/// A prefill of so many tokens is always tried.
pub const MIN_TOKENS: u32 = 16;

/// What the duration of a step depends on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepShape {
    /// Rows that decode.
    pub num_decodes: u64,
    /// Tokens in prefill chunks.
    pub num_prefill_tokens: u64,
    /// Pairs of a token of a prefill chunk and a token that it attends to.
    pub num_pairs: u64,
    /// Tokens that are in the KV cache before the step and that its rows attend to, all rows together.
    pub num_context_tokens: u64,
}

impl StepShape {
    /// Adds a decode row at `position`.
    pub fn add_decode(&mut self, position: usize) {
        self.num_decodes += 1;
        self.num_context_tokens += position as u64;
    }

    /// Adds a chunk of `num_tokens` from `position` on.
    pub fn add_chunk(&mut self, position: usize, num_tokens: u32) {
        let (position, num) = (position as u64, u64::from(num_tokens));
        if num > 0 {
            self.num_prefill_tokens += num;
            self.num_pairs += num * position + num * (num + 1) / 2;
            self.num_context_tokens += position;
        }
    }

    fn features(&self) -> [f64; NUM_COSTS] {
        [
            1.0,
            self.num_decodes as f64,
            self.num_prefill_tokens as f64,
            self.num_pairs as f64,
            self.num_context_tokens as f64,
        ]
    }
}

/// See the module's documentation.
#[derive(Clone, Debug, Default)]
pub struct CostModel {
    decodes: Evidence,
    prefills: Evidence,
    costs: [f64; NUM_COSTS],
    /// The most prefill tokens and pairs that a step had.
    largest: (u64, u64),
    is_stale: bool,
}

/// The normal equations of the fit.
#[derive(Clone, Debug, Default)]
struct Evidence {
    gram: [[f64; NUM_COSTS]; NUM_COSTS],
    moment: [f64; NUM_COSTS],
}

impl CostModel {
    /// A step of `shape` took `duration_us`; 0 says that nobody knows. O(1).
    pub fn observe(&mut self, shape: &StepShape, duration_us: u64) {
        if duration_us == 0 {
            return;
        }
        let (measured, predicted) = (duration_us as f64, self.predict_us(shape));
        let longest = measured.max(predicted);
        let error = (measured - predicted).abs() / longest;
        let scale = longest * (error / SURPRISE).max(1.0).sqrt();
        let evidence = if shape.num_prefill_tokens > 0 { &mut self.prefills } else { &mut self.decodes };
        evidence.add(shape.features().map(|feature| feature / scale), measured / scale);
        let (tokens, pairs) = self.largest;
        self.largest = (tokens.max(shape.num_prefill_tokens), pairs.max(shape.num_pairs));
        self.is_stale = true;
    }

    /// Fits the costs to what was observed. O(1).
    pub fn fit(&mut self) {
        if !std::mem::take(&mut self.is_stale) {
            return;
        }
        let (a, b) = (&self.decodes, &self.prefills);
        for _ in 0..NUM_ROUNDS {
            for i in 0..NUM_COSTS {
                let diagonal = a.gram[i][i] + b.gram[i][i];
                if diagonal > 0.0 {
                    let explained: f64 =
                        (0..NUM_COSTS).map(|j| (a.gram[i][j] + b.gram[i][j]) * self.costs[j]).sum();
                    let missing = a.moment[i] + b.moment[i] - explained;
                    self.costs[i] = (self.costs[i] + missing / diagonal).max(0.0);
                }
            }
        }
    }

    /// How long a step of `shape` will take by the last [`fit`](Self::fit), in microseconds.
    #[must_use]
    pub fn predict_us(&self, shape: &StepShape) -> f64 {
        shape.features().iter().zip(&self.costs).map(|(feature, cost)| feature * cost).sum()
    }

    /// Whether a step of `shape` is near enough to those seen: at most twice as many prefill tokens, and twice as many pairs.
    /// So the first long prefill beside others' decodes grows step by step, and no bad guess costs more than twice.
    #[must_use]
    pub fn is_trusted(&self, shape: &StepShape) -> bool {
        let (tokens, pairs) = self.largest;
        let is_near = shape.num_prefill_tokens <= 2 * tokens && shape.num_pairs <= 2 * pairs;
        is_near || shape.num_prefill_tokens <= u64::from(MIN_TOKENS)
    }
}

impl Evidence {
    /// Adds the equation `x · costs = y`.
    fn add(&mut self, x: [f64; NUM_COSTS], y: f64) {
        for i in 0..NUM_COSTS {
            for j in 0..NUM_COSTS {
                self.gram[i][j] = FADING * self.gram[i][j] + x[i] * x[j];
            }
            self.moment[i] = FADING * self.moment[i] + x[i] * y;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    /// A decode of `num_decodes` rows of `context` tokens beside a chunk of `num_tokens` at `position`.
    fn shape(num_decodes: u32, context: usize, num_tokens: u32, position: usize) -> StepShape {
        let mut shape = StepShape::default();
        (0..num_decodes).for_each(|_| shape.add_decode(context));
        shape.add_chunk(position, num_tokens);
        shape
    }

    fn shapes() -> impl Strategy<Value = StepShape> {
        let decodes = (0..32u32, 1..20_000usize, Just(0), Just(0));
        let mixed = (0..32u32, 1..20_000usize, 16..4096u32, 0..200_000usize);
        prop_oneof![decodes, mixed].prop_map(|(decodes, context, tokens, position)| {
            shape(decodes.max(u32::from(tokens == 0)), context, tokens, position)
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        /// A machine whose steps really cost so is predicted within a fifth, though it is jittery and now and then stalls.
        #[test]
        fn predicts_a_linear_machine(
            costs in (100.0..20_000.0f64, 1.0..3000.0f64, 1.0..600.0f64, 1e-4..1e-2f64, 0.001..0.1f64),
            samples in vec((shapes(), 0.95..1.05f64, 0..40u32), 300..400),
            unseen in vec(shapes(), 10),
        ) {
            let costs = [costs.0, costs.1, costs.2, costs.3, costs.4];
            let truth = |shape: &StepShape| {
                shape.features().iter().zip(costs).map(|(feature, cost)| feature * cost).sum::<f64>()
            };
            let mut model = CostModel::default();
            let mut nums = [0; 2];
            for (shape, jitter, stall) in &samples {
                let num = &mut nums[usize::from(shape.num_prefill_tokens > 0)];
                *num += 1;
                // At first no other step is in flight, so that no answer can be noticed late.
                let stall = if *num <= 4 { &9 } else { stall };
                let stall = [10.0, 0.001].get(*stall as usize).unwrap_or(&1.0);
                model.observe(shape, (truth(shape) * jitter * stall) as u64);
                model.fit();
            }
            for shape in &unseen {
                let ratio = model.predict_us(shape) / truth(shape);
                prop_assert!((0.8..1.25).contains(&ratio), "{shape:?}: {ratio}");
            }
        }
    }

    #[test]
    fn a_machine_that_became_slower_is_followed() {
        let mut model = CostModel::default();
        let decode = shape(8, 1000, 0, 0);
        for step in 0..1000 {
            model.observe(&decode, if step < 600 { 10_000 } else { 30_000 });
            model.fit();
        }
        let ratio = model.predict_us(&decode) / 30_000.0;
        assert!((0.8..1.25).contains(&ratio), "{ratio}");
    }

    #[test]
    fn hours_of_decoding_do_not_make_it_forget_prefills() {
        let mut model = CostModel::default();
        for position in (0..100_000).step_by(1000) {
            let shape = shape(0, 0, 1000, position);
            model.observe(&shape, 5000 + 100 * shape.num_prefill_tokens + shape.num_pairs / 1000);
        }
        for step in 0..100_000 {
            let shape = shape(4, 1000 + step, 0, 0);
            model.observe(&shape, 6000 + shape.num_context_tokens / 100);
        }
        model.fit();
        let prefill = shape(0, 0, 1000, 50_000);
        let ratio = model.predict_us(&prefill) / (105_000 + prefill.num_pairs / 1000) as f64;
        assert!((0.8..1.25).contains(&ratio), "{ratio}");
    }

    #[test]
    fn only_what_is_near_is_trusted() {
        let mut model = CostModel::default();
        assert!(model.is_trusted(&shape(3, 100, 16, 200_000)) && !model.is_trusted(&shape(3, 100, 17, 0)));
        model.observe(&shape(0, 0, 100, 0), 1000);
        assert!(model.is_trusted(&shape(3, 100, 130, 0)), "more tokens");
        assert!(!model.is_trusted(&shape(3, 100, 130, 200_000)), "many more pairs");
        model.observe(&shape(0, 0, 1000, 0), 0);
        assert!(!model.is_trusted(&shape(0, 0, 1000, 0)), "nothing is learned from an unknown duration");
    }
}
