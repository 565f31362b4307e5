//! A shard that believes nothing.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::{
    BlockCopy, BlockId, FinishReason, Namespace, Request, Row, RowInput, RowStart, Sample, SchedulerConfig,
    SequenceId, Slot, StepId, StepOutput, StepPlan, TokenId,
};

/// Names a namespace and a prefix of tokens; what the keys and values at the prefix's last position depend on.
type PrefixHash = u64;

/// The model's "weights": the token that follows a prefix. Over the vocabulary {0, 1}, so that prefixes are shared often,
/// and now and then [`STOP_TOKEN`](super::STOP_TOKEN).
#[must_use]
pub fn next_token(prefix: u64) -> TokenId {
    let bits = mix(prefix);
    if bits.is_multiple_of(17) { super::STOP_TOKEN } else { (bits >> 32) as TokenId & 1 }
}

/// What a request must get, computed on its own: tokens, and why they end.
#[must_use]
pub fn expected_tokens(request: &Request) -> (Vec<TokenId>, FinishReason) {
    let mut text = Text::new(request);
    let mut tokens = Vec::new();
    loop {
        let token = next_token(text.hash(text.tokens.len()));
        text.push(token);
        tokens.push(token);
        if request.stop_tokens.contains(&token) {
            return (tokens, FinishReason::StopToken);
        }
        if tokens.len() == request.max_new_tokens as usize {
            return (tokens, FinishReason::Length);
        }
    }
}

/// A sequence as it really is: the shard model's own account of it.
#[derive(Debug)]
struct Text {
    tokens: Vec<TokenId>,
    num_prompt: usize,
    needs_history: bool,
    /// `hashes[n]` names the prefix of `n` tokens.
    hashes: Vec<PrefixHash>,
}

impl Text {
    fn new(request: &Request) -> Self {
        let mut text = Self {
            tokens: Vec::new(),
            num_prompt: request.prompt.len(),
            needs_history: request.sampling.needs_history(),
            hashes: vec![namespace_hash(&request.namespace)],
        };
        request.prompt.iter().for_each(|token| text.push(*token));
        text
    }

    fn push(&mut self, token: TokenId) {
        self.tokens.push(token);
        let before = self.hashes[self.hashes.len() - 1];
        self.hashes.push(mix(before ^ (u64::from(token) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)));
    }

    fn hash(&self, num_tokens: usize) -> PrefixHash {
        self.hashes[num_tokens]
    }
}

/// The mirror of a row slot.
#[derive(Debug)]
struct Mirror {
    occupant: SequenceId,
    table: Vec<BlockId>,
    last_sampled: Option<TokenId>,
}

/// Executes plans as `proto/shard.proto` says, on prefixes instead of numbers, and panics where a real shard would silently
/// compute nonsense.
#[derive(Debug)]
pub struct ShardModel {
    config: SchedulerConfig,
    /// The prefix whose last position stands here, by block and offset; `None` before the first write.
    kv: Vec<Option<PrefixHash>>,
    slots: BTreeMap<Slot, Mirror>,
    texts: BTreeMap<SequenceId, Text>,
    last_step: StepId,
    /// Per step in flight: which blocks it touches, for which sequence.
    in_flight: VecDeque<(StepId, BTreeSet<(BlockId, SequenceId)>)>,
}

impl ShardModel {
    /// A shard with the limits of `config`.
    #[must_use]
    pub fn new(config: &SchedulerConfig) -> Self {
        Self {
            kv: vec![None; config.num_blocks as usize * config.block_size as usize],
            slots: BTreeMap::new(),
            texts: BTreeMap::new(),
            last_step: StepId(0),
            in_flight: VecDeque::new(),
            config: config.clone(),
        }
    }

    /// A sequence that has ended is not asked for again.
    pub fn forget(&mut self, id: SequenceId) {
        self.texts.remove(&id);
    }

    /// Tells what a sequence is, so that its rows can be checked.
    pub fn introduce(&mut self, id: SequenceId, request: &Request) {
        self.texts.insert(id, Text::new(request));
    }

    /// Executes `plan`; `occupant` tells which sequence the scheduler has in a slot.
    pub fn execute(&mut self, plan: &StepPlan, occupant: impl Fn(Slot) -> Option<SequenceId>) -> StepOutput {
        assert_eq!(plan.id.0, self.last_step.0 + 1, "steps count up");
        self.last_step = plan.id;
        for slot in &plan.finished {
            assert!(self.slots.remove(slot).is_some(), "{slot:?} was in use when it was said to be free");
        }
        for start in &plan.started {
            let occupant = occupant(start.slot).expect("a slot that starts has a sequence");
            self.start(start, occupant);
        }
        for delta in &plan.block_tables {
            let table = &mut self.slots.get_mut(&delta.slot).expect("the slot is in use").table;
            let start = delta.start as usize;
            assert!(start <= table.len(), "block tables have no holes");
            table.resize(table.len().max(start + delta.blocks.len()), BlockId(u32::MAX));
            table[start..start + delta.blocks.len()].copy_from_slice(&delta.blocks);
        }
        self.check_limits(plan);
        self.copy_blocks(&plan.block_copies);
        self.check_release(plan);
        plan.rows.iter().for_each(|row| self.check_row(row));
        let mut written = BTreeSet::new();
        let samples = plan.rows.iter().filter_map(|row| self.compute(row, &mut written)).collect();
        // A token of prefill takes ten times as long as a decode, in a step that takes a while anyway.
        let cost = |row: &Row| match &row.input {
            RowInput::LastSampled => 1,
            RowInput::Tokens(tokens) => 10 * tokens.len() as u64,
        };
        let duration_us = 20 + plan.rows.iter().map(cost).sum::<u64>();
        StepOutput { id: plan.id, samples, duration_us }
    }

    /// The oldest step in flight was committed.
    pub fn committed(&mut self, id: StepId) {
        let (oldest, _) = self.in_flight.pop_front().expect("a step is in flight");
        assert_eq!(oldest, id);
    }

    fn start(&mut self, start: &RowStart, occupant: SequenceId) {
        let text = &self.texts[&occupant];
        assert_eq!(
            start.num_generated as usize,
            text.tokens.len() - text.num_prompt,
            "it counts what it generated"
        );
        assert_eq!(start.num_prompt_tokens as usize, text.num_prompt);
        let history: &[TokenId] = if text.needs_history { &text.tokens } else { &[] };
        assert_eq!(start.history, history, "the history is sent exactly if a penalty needs it");
        let mirror = Mirror { occupant, table: Vec::new(), last_sampled: None };
        assert!(self.slots.insert(start.slot, mirror).is_none(), "{:?} was free when it started", start.slot);
    }

    fn check_limits(&self, plan: &StepPlan) {
        let slots: BTreeSet<Slot> = plan.rows.iter().map(|row| row.slot).collect();
        assert!(!plan.rows.is_empty(), "a plan has rows");
        assert_eq!(slots.len(), plan.rows.len(), "a slot has at most one row");
        assert!(slots.iter().all(|slot| slot.0 < self.config.max_rows));
        let num_tokens: usize = plan.rows.iter().map(|row| row.input.num_tokens()).sum();
        assert!(num_tokens <= self.config.max_step_tokens as usize, "a plan keeps to the token budget");
    }

    fn copy_blocks(&mut self, copies: &[BlockCopy]) {
        let block_size = self.config.block_size as usize;
        for copy in copies {
            let is_source = copies.iter().any(|other| other.source == copy.destination);
            assert!(!is_source, "copies of a step can be made in any order");
            let source = copy.source.0 as usize * block_size;
            self.kv.copy_within(source..source + block_size, copy.destination.0 as usize * block_size);
        }
    }

    /// What this step writes, no other sequence's step in flight may touch, read or written.
    fn check_release(&mut self, plan: &StepPlan) {
        let mut touched = BTreeSet::new();
        let mut written = BTreeSet::new();
        for row in &plan.rows {
            let mirror = &self.slots[&row.slot];
            touched.extend(mirror.table.iter().map(|block| (*block, mirror.occupant)));
            let range = row.position as usize..row.position as usize + row.input.num_tokens();
            let blocks = range.map(|position| mirror.table[position / self.config.block_size as usize]);
            written.extend(blocks.map(|block| (block, mirror.occupant)));
            for copy in &plan.block_copies {
                if mirror.table.contains(&copy.destination) {
                    touched.insert((copy.source, mirror.occupant));
                    written.insert((copy.destination, mirror.occupant));
                }
            }
        }
        for (_, earlier) in &self.in_flight {
            for (block, occupant) in &written {
                let other = earlier.iter().find(|(touched, by)| touched == block && by != occupant);
                assert_eq!(other, None, "{block:?} changed hands while a step in flight knows it");
            }
        }
        self.in_flight.push_back((plan.id, touched));
    }

    /// All that the row reads is there before the step's rows write anything.
    fn check_row(&self, row: &Row) {
        let block_size = self.config.block_size as usize;
        let mirror = &self.slots[&row.slot];
        let text = &self.texts[&mirror.occupant];
        let position = row.position as usize;
        for before in 0..position {
            let place = mirror.table[before / block_size].0 as usize * block_size + before % block_size;
            let expected = Some(text.hash(before + 1));
            assert_eq!(
                self.kv[place], expected,
                "position {before} of {:?} holds its prefix",
                mirror.occupant
            );
        }
        match &row.input {
            RowInput::Tokens(tokens) => {
                assert!(!tokens.is_empty());
                assert_eq!(
                    tokens[..],
                    text.tokens[position..position + tokens.len()],
                    "the prefill's own tokens"
                );
            }
            RowInput::LastSampled => {
                assert_eq!(position, text.tokens.len() - 1, "a decode continues at the end");
                assert_eq!(mirror.last_sampled, text.tokens.last().copied(), "the slot sampled this token");
            }
        }
    }

    fn compute(&mut self, row: &Row, written: &mut BTreeSet<usize>) -> Option<Sample> {
        let block_size = self.config.block_size as usize;
        let mirror = self.slots.get_mut(&row.slot).expect("the slot is in use");
        let text = self.texts.get_mut(&mirror.occupant).expect("the sequence was introduced");
        let end = row.position as usize + row.input.num_tokens();
        for position in row.position as usize..end {
            let place = mirror.table[position / block_size].0 as usize * block_size + position % block_size;
            assert!(written.insert(place), "rows of a step write to different places");
            self.kv[place] = Some(text.hash(position + 1));
        }
        if !row.sample {
            return None;
        }
        assert_eq!(end, text.tokens.len(), "a token is sampled after the last one only");
        let token = next_token(text.hash(end));
        text.push(token);
        mirror.last_sampled = Some(token);
        Some(Sample { token, logprob: 0.0, top: Vec::new() })
    }
}

fn namespace_hash(namespace: &Namespace) -> u64 {
    format!("{namespace:?}").bytes().fold(1, |hash, byte| mix(hash ^ u64::from(byte)))
}

/// The finaliser of splitmix64 (Steele et al. 2014).
fn mix(mut bits: u64) -> u64 {
    bits = bits.wrapping_add(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}
