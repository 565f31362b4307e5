//! Random requests and operations for property tests.

use std::collections::BTreeMap;

use proptest::{collection::vec, prelude::*};

use super::{STOP_TOKEN, World};
use crate::{Eviction, Namespace, Request, Sampling, SchedulerConfig, SequenceId, TokenId};

/// Something done to a [`World`].
#[derive(Clone, Debug)]
pub enum Op {
    /// Submit a request.
    Submit(Draft),
    /// Cancel the sequence that was submitted as the so-many-th (modulo their number).
    Cancel(usize),
    /// Plan a step.
    Plan,
    /// Commit the oldest step in flight.
    Commit,
    /// Evict what can be.
    ClearCache,
}

/// How a prompt begins.
#[derive(Clone, Debug)]
pub enum Beginning {
    /// With nothing that anybody had.
    Fresh,
    /// With so many tokens of what the so-many-th sequence had, as the next turn of a conversation does.
    Continues(usize, usize),
    /// With the whole prompt of the so-many-th sequence; nothing follows.
    Twin(usize),
}

/// A request in the making.
#[derive(Clone, Debug)]
pub struct Draft {
    /// How the prompt begins.
    pub beginning: Beginning,
    /// Then come these.
    pub prompt: Vec<TokenId>,
    /// See [`Request::max_new_tokens`].
    pub max_new_tokens: u32,
    /// See [`Request::stop_tokens`].
    pub stop_tokens: Vec<TokenId>,
    /// Which of the namespaces.
    pub namespace: u8,
    /// See [`Request::priority`].
    pub priority: i32,
    /// Whether the sampling has a penalty.
    pub has_penalty: bool,
}

/// Small schedulers, in which everything that can be scarce is.
pub fn configs() -> impl Strategy<Value = SchedulerConfig> {
    let num_blocks = prop_oneof![8..=24u32, 8..=100u32];
    let block_size = prop_oneof![1..=4u32, 1..=16u32];
    let sizes = (num_blocks, block_size, 1..=8u32, 1..=40u32, 1..=3u32);
    let target_itl_us = prop_oneof![Just(u64::MAX), 1..200u64];
    let eviction = prop_oneof![Just(Eviction::Lru), Just(Eviction::CostAware)];
    let no_quotas = Just(BTreeMap::new());
    let quotas = (0..20u32).prop_map(|num_blocks| BTreeMap::from([("0".into(), num_blocks)]));
    let quotas = prop_oneof![2 => no_quotas, 1 => quotas];
    // Each plan takes a microsecond of the world's time.
    let max_queue_time_us = prop_oneof![5 => Just(u64::MAX), 1 => 10..200u64];
    let policies = (prop::bool::weighted(0.9), target_itl_us, max_queue_time_us, eviction, quotas);
    (sizes, policies).prop_map(|(sizes, policies)| {
        let (prefix_cache, target_itl_us, max_queue_time_us, eviction, quotas) = policies;
        let (num_blocks, block_size, max_rows, max_step_tokens, max_in_flight) = sizes;
        SchedulerConfig {
            num_blocks,
            block_size,
            max_rows,
            max_step_tokens,
            max_context: 200,
            max_in_flight,
            prefix_cache,
            target_itl_us,
            max_queue_time_us,
            eviction,
            quotas,
        }
    })
}

/// Schedulers that are too small, with sequences that begin short and grow long: the pool runs out again and again.
pub fn tight_configs() -> impl Strategy<Value = (SchedulerConfig, Vec<Op>)> {
    let sizes = (configs(), 8..=20u32, 1..=4u32, 3..=8u32);
    sizes.prop_flat_map(|(config, num_blocks, block_size, max_rows)| {
        let num_tokens = num_blocks * block_size;
        let config = SchedulerConfig { num_blocks, block_size, max_rows, ..config };
        let draft = (drafts(), num_tokens / 3..=num_tokens - 4).prop_map(|(mut draft, max_new_tokens)| {
            draft.prompt.truncate(4);
            Op::Submit(Draft { max_new_tokens, stop_tokens: Vec::new(), ..draft })
        });
        let op = prop_oneof![1 => draft, 2 => Just(Op::Plan), 2 => Just(Op::Commit)];
        (Just(config), vec(op, 10..50))
    })
}

/// Requests over a vocabulary of two, so that prefixes collide.
pub fn drafts() -> impl Strategy<Value = Draft> {
    let beginning = prop_oneof![
        3 => Just(Beginning::Fresh),
        2 => (0..100usize, 0..120usize).prop_map(|(nth, num)| Beginning::Continues(nth, num)),
        2 => (0..100usize).prop_map(Beginning::Twin),
    ];
    let prompt = prop_oneof![3 => vec(0..2u32, 1..10), 1 => vec(0..2u32, 1..60)];
    let max_new_tokens = prop_oneof![1..20u32, 1..80u32];
    let stop_tokens =
        prop_oneof![2 => Just(vec![]), 1 => Just(vec![STOP_TOKEN]), 1 => Just(vec![0, STOP_TOKEN])];
    let namespace = prop::bool::weighted(0.1).prop_map(u8::from);
    let priority = prop_oneof![8 => Just(0), 1 => -1..=1];
    let has_penalty = prop::bool::weighted(0.2);
    (beginning, prompt, max_new_tokens, stop_tokens, namespace, priority, has_penalty).prop_map(
        |(beginning, prompt, max_new_tokens, stop_tokens, namespace, priority, has_penalty)| Draft {
            beginning,
            prompt,
            max_new_tokens,
            stop_tokens,
            namespace,
            priority,
            has_penalty,
        },
    )
}

/// Operations in the proportions of a busy server with impatient clients.
pub fn ops() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => drafts().prop_map(Op::Submit),
        1 => (0..100usize).prop_map(Op::Cancel),
        12 => Just(Op::Plan),
        10 => Just(Op::Commit),
        1 => prop::bool::weighted(0.2).prop_map(|clear| if clear { Op::ClearCache } else { Op::Plan }),
    ]
}

impl World {
    /// Does `op`.
    pub fn apply(&mut self, op: &Op) {
        match op {
            Op::Submit(draft) => {
                let request = self.request(draft);
                // Some are too long for the pool, and refused.
                let _ = self.submit(request);
            }
            Op::Cancel(nth) => {
                if let Some(id) = self.nth(*nth) {
                    self.cancel(id);
                }
            }
            Op::Plan => {
                self.plan();
            }
            Op::Commit => {
                self.commit();
            }
            Op::ClearCache => self.clear_cache(),
        }
    }

    /// Makes a request of a draft.
    #[must_use]
    pub fn request(&self, draft: &Draft) -> Request {
        let other = |nth| self.nth(nth).map(|id| &self.outcomes[&id]);
        let begin = match draft.beginning {
            Beginning::Fresh => None,
            Beginning::Continues(nth, num_tokens) => other(nth).map(|other| {
                let mut tokens = [&other.request.prompt[..], &other.tokens].concat();
                tokens.truncate(num_tokens);
                [&tokens, &draft.prompt[..]].concat()
            }),
            Beginning::Twin(nth) => other(nth).map(|other| other.request.prompt.clone()),
        };
        let prompt = begin.unwrap_or_else(|| draft.prompt.clone());
        let repetition_penalty = if draft.has_penalty { 1.5 } else { 1.0 };
        Request {
            namespace: Namespace { tenant: draft.namespace.to_string().into(), ..Namespace::default() },
            prompt,
            max_new_tokens: draft.max_new_tokens,
            stop_tokens: draft.stop_tokens.clone().into(),
            sampling: Sampling { repetition_penalty, ..Sampling::default() }.into(),
            priority: draft.priority,
        }
    }

    fn nth(&self, nth: usize) -> Option<SequenceId> {
        self.outcomes.keys().nth(nth.checked_rem(self.outcomes.len())?).copied()
    }
}
