//! The prefix index of `router/core` beside that of `kv-index` (SMG's router, after SGLang's), in the same run:
//! `cargo run --release --manifest-path benchmarks/prefix_index/Cargo.toml`.
//!
//! The two do not do quite the same: ours names the block of every token and holds it against eviction, theirs names the worker
//! that is likely to have it. Each is asked what it is asked in a server: match a prompt of 200,000 tokens, and add the 632
//! new tokens of an agent's turn (theirs is given the whole prompt, as its interface wants it).
#![expect(clippy::disallowed_types, clippy::disallowed_methods, reason = "a benchmark reads the clock")]

use std::{
    collections::BTreeMap,
    hint::black_box,
    time::{Duration, Instant},
};

use anaphora_core::{BlockId, Eviction, Namespace, TokenId, radix::PrefixIndex};
use kv_index::TokenTree;

const BLOCK_SIZE: u32 = 16;
const PROMPT_TOKENS: u32 = 200_000;
const TURN_TOKENS: u32 = 632;
const NUM_ROUNDS: u32 = 200;

/// A text that shares nothing with that of another `seed`.
fn text(seed: u32, num_tokens: u32) -> Vec<TokenId> {
    (0..num_tokens).map(|i| (seed.wrapping_mul(0x9e37_79b9) ^ i.wrapping_mul(0x85eb_ca6b)) % 128_256).collect()
}

/// An index with `tokens`, added as the chunks of a prefill are.
fn ours(tokens: &[TokenId]) -> PrefixIndex {
    let mut index = PrefixIndex::new(BLOCK_SIZE, Eviction::Lru, &BTreeMap::new());
    let mut lock = None;
    for (chunk, first) in tokens.chunks_exact(2000).zip((0..).step_by(125)) {
        let blocks: Vec<BlockId> = (first..first + 125).map(BlockId).collect();
        lock = Some(index.insert(&Namespace::default(), lock, chunk, &blocks).lock);
    }
    index.unlock(lock.expect("there is at least one chunk"));
    index
}

/// Minimum and median.
fn time(mut round: impl FnMut(u32) -> Duration) -> (Duration, Duration) {
    let mut times: Vec<Duration> = (0..NUM_ROUNDS).map(&mut round).collect();
    times.sort_unstable();
    (times[0], times[times.len() / 2])
}

fn timed<T>(work: impl FnOnce() -> T) -> Duration {
    let start = Instant::now();
    black_box(work());
    start.elapsed()
}

fn print(name: &str, ours: (Duration, Duration), peer: (Duration, Duration)) {
    let us = |time: Duration| time.as_secs_f64() * 1e6;
    let ratio = us(peer.1) / us(ours.1);
    println!(
        "| {name} | {:.1} / {:.1} | {:.1} / {:.1} | {ratio:.1} |",
        us(ours.0),
        us(ours.1),
        us(peer.0),
        us(peer.1)
    );
}

fn main() {
    let namespace = Namespace::default();
    let prompt = text(1, PROMPT_TOKENS);
    let mut index = ours(&prompt);
    let tree = TokenTree::new();
    tree.insert_tokens(&prompt, "worker");
    assert_eq!(index.find(&namespace, &prompt).num_blocks as u32, PROMPT_TOKENS / BLOCK_SIZE);

    println!("| us: best / median of {NUM_ROUNDS} | anaphora | kv-index 2.0.0 | ratio of medians |");
    println!("| --- | ---: | ---: | ---: |");
    let twin = prompt.clone();
    let floor = time(|_| timed(|| black_box(&prompt) == black_box(&twin)));
    let matched = time(|_| timed(|| index.find(&namespace, black_box(&prompt))));
    print("match 200,000 tokens", matched, time(|_| timed(|| tree.match_prefix_with_counts(black_box(&prompt)))));
    print("one comparison of 200,000 tokens (the floor)", floor, floor);

    let turn = |seed: u32| [&prompt[..], &text(seed + 2, TURN_TOKENS)].concat();
    let mut next = PROMPT_TOKENS / BLOCK_SIZE;
    let inserted = time(|seed| {
        let turn = turn(seed);
        let num_blocks = TURN_TOKENS / BLOCK_SIZE;
        let blocks: Vec<BlockId> = (next..next + num_blocks).map(BlockId).collect();
        next += num_blocks;
        let new = &turn[PROMPT_TOKENS as usize..][..(num_blocks * BLOCK_SIZE) as usize];
        let found = index.find(&namespace, &turn);
        let lock = index.acquire(&found).lock;
        let mut held = None;
        let time = timed(|| held = Some(index.insert(&namespace, lock, new, &blocks).lock));
        index.unlock(held.expect("it was inserted"));
        time
    });
    let peer = time(|seed| {
        let turn = turn(seed);
        timed(|| tree.insert_tokens(&turn, "worker"))
    });
    print("add the 632 new tokens of a turn", inserted, peer);
}
