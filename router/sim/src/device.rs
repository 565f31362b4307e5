//! How long a step takes: a roofline, which the scheduler's own linear model has to approximate.

use anaphora_core::{RowInput, StepPlan};

/// What a device needs, in microseconds.
#[derive(Clone, Copy, Debug)]
pub struct Device {
    /// Per step: launches, sampling, the way there and back.
    pub step_us: f64,
    /// To read all weights once.
    pub weights_us: f64,
    /// Per token of a row, in everything but attention.
    pub token_us: f64,
    /// Per pair of a token and one that it attends to.
    pub pair_us: f64,
    /// To read the keys and values of a token of context.
    pub context_us: f64,
}

/// An H200 with an 8B model in bfloat16: 15.01 GB of weights and 131,072 B per token at 4.3 TB/s; 13.96 GFLOP per token at
/// 790 TFLOP/s and 524,288 FLOP per pair at 610.
pub const H200_8B: Device =
    Device { step_us: 300.0, weights_us: 3490.0, token_us: 17.7, pair_us: 0.000_86, context_us: 0.0305 };

impl Device {
    /// How long `plan` takes, in microseconds.
    #[must_use]
    pub fn duration_us(&self, plan: &StepPlan) -> u64 {
        let mut attention_us = 0.0;
        let mut num_tokens = 0.0;
        for row in &plan.rows {
            let (position, num) = (f64::from(row.position), row.input.num_tokens() as f64);
            let num_pairs = num * position + num * (num + 1.0) / 2.0;
            attention_us += (self.context_us * position).max(self.pair_us * num_pairs);
            num_tokens += match row.input {
                RowInput::LastSampled => 1.0,
                RowInput::Tokens(_) => num,
            };
        }
        (self.step_us + self.weights_us.max(self.token_us * num_tokens) + attention_us) as u64
    }
}
