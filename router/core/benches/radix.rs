//! What the prefix index costs at the sizes that matter: a prompt of 200,000 tokens, and 1,000,000 indexed blocks.
//!
//! `cargo bench -p anaphora-core --bench radix`

use std::{collections::BTreeMap, hint::black_box};

use anaphora_core::{BlockId, Eviction, Namespace, TokenId, radix::PrefixIndex};
use criterion::{Criterion, criterion_group, criterion_main};

const BLOCK_SIZE: u32 = 16;
const PROMPT_TOKENS: u32 = 200_000;

fn namespace() -> Namespace {
    Namespace { model: "model".into(), tenant: "tenant".into(), ..Namespace::default() }
}

/// A text that shares nothing with that of another `seed`.
fn text(seed: u32, num_tokens: u32) -> Vec<TokenId> {
    (0..num_tokens)
        .map(|i| (seed.wrapping_mul(0x9e37_79b9) ^ i.wrapping_mul(0x85eb_ca6b)) % 128_256)
        .collect()
}

/// Indexes `tokens` in pieces of `num_blocks` blocks, as the chunks or turns of a sequence do, and lets go of them.
fn insert(index: &mut PrefixIndex, tokens: &[TokenId], num_blocks: u32, first: &mut u32) {
    let mut lock = None;
    for piece in tokens.chunks_exact((num_blocks * BLOCK_SIZE) as usize) {
        let blocks: Vec<BlockId> = (*first..*first + num_blocks).map(BlockId).collect();
        *first += num_blocks;
        lock = Some(index.insert(&namespace(), lock, piece, &blocks).lock);
    }
    index.unlock(lock.expect("there is at least one piece"));
}

/// A conversation of 200,000 tokens, every turn of which was once continued in another way, so that its runs are short.
fn branching_conversation() -> (PrefixIndex, Vec<TokenId>) {
    let mut index = PrefixIndex::new(BLOCK_SIZE, Eviction::Lru, &BTreeMap::new());
    let tokens = text(1, PROMPT_TOKENS);
    let mut first = 0;
    insert(&mut index, &tokens, 1, &mut first);
    for turn in 1..PROMPT_TOKENS / 640 {
        let shared = &tokens[..(turn * 640) as usize];
        let found = index.find(&namespace(), shared);
        let lock = index.acquire(&found).lock;
        first += 1;
        let inserted = index.insert(&namespace(), lock, &text(turn + 2, BLOCK_SIZE), &[BlockId(first)]);
        index.unlock(inserted.lock);
    }
    (index, tokens)
}

/// An index of 1,000,000 blocks: 1,000 conversations of 16,000 tokens.
fn million_blocks() -> (PrefixIndex, u32) {
    let mut index = PrefixIndex::new(BLOCK_SIZE, Eviction::Lru, &BTreeMap::new());
    let mut first = 0;
    for seed in 0..1000 {
        insert(&mut index, &text(seed, 16_000), 40, &mut first);
    }
    assert_eq!(index.num_blocks(), 1_000_000);
    (index, first)
}

fn find(c: &mut Criterion) {
    let mut index = PrefixIndex::new(BLOCK_SIZE, Eviction::Lru, &BTreeMap::new());
    let tokens = text(1, PROMPT_TOKENS);
    insert(&mut index, &tokens, 10, &mut 0);
    let found = index.find(&namespace(), &tokens);
    assert_eq!(found.num_blocks as u32, PROMPT_TOKENS / BLOCK_SIZE);
    c.bench_function("find 200,000 tokens", |b| b.iter(|| index.find(&namespace(), black_box(&tokens))));
    c.bench_function("acquire and unlock 200,000 tokens", |b| {
        b.iter(|| {
            let acquired = index.acquire(black_box(&found));
            index.unlock(acquired.lock.expect("the match has blocks"));
            acquired.blocks
        });
    });
    c.bench_function("memcmp 200,000 tokens (the floor)", |b| {
        let twin = tokens.clone();
        b.iter(|| black_box(&tokens) == black_box(&twin));
    });
    let (index, tokens) = branching_conversation();
    assert_eq!(index.find(&namespace(), &tokens).num_blocks as u32, PROMPT_TOKENS / BLOCK_SIZE);
    c.bench_function("find 200,000 tokens, 312 branches", |b| {
        b.iter(|| index.find(&namespace(), black_box(&tokens)));
    });
}

fn change(c: &mut Criterion) {
    let (mut index, mut next) = million_blocks();
    let mut seed = 1000;
    let mut evicted = Vec::new();
    c.bench_function("evict 40 and insert 40 blocks of 1,000,000", |b| {
        b.iter(|| {
            seed += 1;
            evicted.clear();
            index.evict(40, &mut evicted);
            insert(&mut index, &text(seed, 640), 40, &mut next);
        });
    });
    let known = text(u32::MAX, 16_000);
    insert(&mut index, &known, 40, &mut next);
    let found = index.find(&namespace(), &known);
    assert_eq!(found.num_blocks, 1000);
    c.bench_function("find 16,000 tokens of 1,000,000 blocks", |b| {
        b.iter(|| index.find(&namespace(), black_box(&known)));
    });
    c.bench_function("miss in 1,000,000 blocks", |b| {
        let unknown = text(u32::MAX - 1, 1000);
        b.iter(|| index.find(&namespace(), black_box(&unknown)));
    });
    let mut lock = index.acquire(&found).lock;
    let mut length = 0;
    c.bench_function("append 1 block to a context of 1,000 and more", |b| {
        b.iter(|| {
            (next, length) = (next + 1, length + 1);
            let tokens = text(length, BLOCK_SIZE);
            lock = Some(index.insert(&namespace(), lock.take(), &tokens, &[BlockId(next)]).lock);
        });
    });
    index.unlock(lock.expect("the lock came back"));
}

criterion_group!(benches, find, change);
criterion_main!(benches);
