//! A deterministic shard inside this process, for tests and `--fake`.
//!
//! It has no model, but it has the real thing's memory: a KV pool in blocks. The cell of a position holds a hash of the cell before
//! it, *found through the block table*, and of the token there; the next token is a function of the last cell. So the tokens of
//! a sequence depend on its whole context, and are right exactly if the scheduler's tables, positions and copies are.

mod control;
mod memory;

use std::{collections::VecDeque, ops::Range, sync::Arc, time::Duration};

use anaphora_core::{
    ids::TokenId,
    plan::{StepOutput, StepPlan},
    request::Sampling,
};
use tokio::time::Instant;

pub use self::control::FakeControl;
use self::{control::Fate, memory::Memory};
use super::{Description, PoolRequest, Shard, ShardError};

/// What a fake shard pretends to be.
#[derive(Clone, Debug)]
pub struct FakeOptions {
    /// The tokens that it says.
    pub vocab: Range<TokenId>,
    /// How long a step takes.
    pub step: Duration,
    /// How long `configure` takes.
    pub warm_up: Duration,
    /// Blocks, if the pool request leaves it open.
    pub num_blocks: u32,
    /// Positions that the model can represent, in tokens.
    pub max_context: u32,
    /// What it says that it runs on.
    pub device: String,
}

impl Default for FakeOptions {
    fn default() -> Self {
        Self {
            vocab: 3..1000,
            step: Duration::ZERO,
            warm_up: Duration::ZERO,
            num_blocks: 4096,
            max_context: 8192,
            device: "cpu (fake)".to_owned(),
        }
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub struct FakeShard {
    options: FakeOptions,
    control: FakeControl,
    memory: Option<Memory>,
    /// Outputs, and when they are due. They are computed on sending: time is all that a fake step takes.
    due: VecDeque<(Instant, StepOutput)>,
}

impl FakeShard {
    /// A shard, and what makes it die, stall and tell what it saw.
    #[must_use]
    pub fn new(options: FakeOptions) -> (Self, FakeControl) {
        let control = FakeControl::default();
        (Self { options, control: control.clone(), memory: None, due: VecDeque::new() }, control)
    }

    /// The `num_tokens` tokens that a shard with these options says after `prompt`, however it is scheduled.
    #[must_use]
    pub fn continuation(
        options: &FakeOptions,
        prompt: &[TokenId],
        sampling: &Sampling,
        num_tokens: usize,
    ) -> Vec<TokenId> {
        let mut cell = prompt.iter().fold(memory::ORIGIN, |cell, token| memory::next_cell(cell, *token));
        let mut tokens = Vec::with_capacity(num_tokens);
        for _ in 0..num_tokens {
            let token = memory::next_token(cell, sampling, &options.vocab);
            tokens.push(token);
            cell = memory::next_cell(cell, token);
        }
        tokens
    }
}

impl Shard for FakeShard {
    async fn connect(&mut self) -> Result<Description, ShardError> {
        self.memory = None;
        self.due.clear();
        if self.control.fate() == Fate::Dead {
            return Err(ShardError::Unreachable { rank: 0, reason: "it was killed".to_owned() });
        }
        Ok(Description {
            fingerprint: "fake".to_owned(),
            architecture: "FakeForCausalLM".to_owned(),
            dtype: "float32".to_owned(),
            device: self.options.device.clone(),
            world_size: 1,
            vocab_size: self.options.vocab.end,
            max_context: self.options.max_context,
        })
    }

    async fn configure(&mut self, pool: &PoolRequest) -> Result<u32, ShardError> {
        tokio::time::sleep(self.options.warm_up).await;
        let num_blocks = self.control.num_blocks().or(pool.num_blocks).unwrap_or(self.options.num_blocks);
        self.memory = Some(Memory::new(pool, num_blocks, self.options.vocab.clone()));
        Ok(num_blocks)
    }

    fn send(&mut self, plan: &StepPlan, traceparent: &str) -> Result<(), ShardError> {
        let protocol = |reason| ShardError::Protocol { rank: 0, reason };
        let memory = self.memory.as_mut().ok_or_else(|| protocol("a step before Configure".to_owned()))?;
        let output = memory.execute(plan).map_err(protocol)?;
        self.control.saw(plan, traceparent, memory.occupied());
        let start = self.due.back().map_or_else(Instant::now, |(due, _)| (*due).max(Instant::now()));
        self.due.push_back((start + self.options.step, output));
        Ok(())
    }

    async fn receive(&mut self) -> Result<StepOutput, ShardError> {
        let control = self.control.clone();
        loop {
            let changed = control.changed();
            match (control.fate(), self.due.front()) {
                (Fate::Dead, _) => {
                    return Err(ShardError::Failed {
                        rank: 0,
                        call: "Execute",
                        reason: "it was killed".to_owned(),
                    });
                }
                (Fate::Alive, Some((due, _))) if !self.options.step.is_zero() => tokio::select! {
                    biased;
                    () = changed => continue,
                    () = tokio::time::sleep_until(*due) => {}
                },
                // A step that takes no time must still let others run, as a real one does.
                (Fate::Alive, Some(_)) => tokio::task::yield_now().await,
                (Fate::Stalled, _) | (Fate::Alive, None) => {
                    changed.await;
                    continue;
                }
            }
            if let Some((_, output)) = self.due.pop_front() {
                control.answered();
                return Ok(output);
            }
        }
    }
}

/// The first of the tokens in `range` at or after `token` that is not in `stop`, cyclically; `token` itself if all are.
fn skip_stops(token: TokenId, range: &Range<TokenId>, stop: &Arc<[TokenId]>) -> TokenId {
    let span = range.end - range.start;
    let candidates = (0..span).map(|step| range.start + (token - range.start + step) % span);
    candidates.into_iter().find(|candidate| !stop.contains(candidate)).unwrap_or(token)
}
