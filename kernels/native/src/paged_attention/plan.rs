//! Who computes what, decided once per step: the queries and keys of each work item, of similar cost, and which results
//! are then merged.
//!
//! ```text
//! rows with few queries   sharing a prefix:  [ shared by 3 rows ][ own ]      a segment is some rows' queries
//!                                            [       "          ][ own ]      over a stretch of keys; long ones
//!                                            [       "          ][  own  ]    are split into several items
//! rows with many          in tiles of queries:      [ keys up to the tile's last token ]
//! ```

use std::ops::Range;

use super::{Batch, Heads, window_start};

/// Query vectors (tokens × group) of an item, at most…
const QUERY_TILE: usize = 192;
/// …or so many, where nearly all of their keys are seen by all of them: keys that are packed once then serve more.
const LONG_QUERY_TILE: usize = 768;
/// Elements of these vectors, at most: what an item keeps of them should stay in a core's own cache.
const QUERY_ELEMENTS: usize = 48 << 10;
/// An item is of all key-value heads, so that memory is read as it is laid out, if its queries have at most so many
/// elements: others compute longer than they read…
const NARROW_ELEMENTS: usize = 16 << 10;
/// …and if there are so many keys, which can be divided among threads as well as heads can.
const NARROW_KEYS: usize = 1024;
/// Keys taken at a time.
pub(super) const KEY_TILE: usize = 64;
/// Up to so many query vectors per key-value head, keys are read where they lie instead of packed.
pub(super) const STREAM_VECTORS: usize = 4;
/// Rows of at most so many query vectors share prefixes.
const MAX_SHARING: usize = 32;
/// Shorter common prefixes (in tokens) are read by each row.
const MIN_SHARED: usize = 128;
/// What a key costs an item, in query vectors, before any query sees it.
const KEY_COST: usize = 6;
/// More items than threads pay from so much work per thread on.
const GRAIN: usize = 1 << 16;

/// The work items of a step.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    pub(super) items: Vec<Item>,
    pub(super) members: Vec<Member>,
    pub(super) merges: Vec<Merge>,
    pub(super) merged_parts: Vec<usize>,
    /// Of all items whose results are merged.
    pub(super) num_part_vectors: usize,
}

/// Some tokens of a row, counted from its first new one.
#[derive(Clone, Debug)]
pub(super) struct Member {
    pub(super) row: usize,
    pub(super) tokens: Range<usize>,
}

/// Queries over a stretch of keys. Its vectors are numbered by key-value head, then member, token, head of the group.
#[derive(Clone, Debug)]
pub(super) struct Item {
    /// Into [`Plan::members`]; all of them have these keys' blocks.
    pub(super) members: Range<usize>,
    pub(super) kv_heads: Range<usize>,
    /// Query vectors per key-value head.
    pub(super) num_vectors: usize,
    /// Positions.
    pub(super) keys: Range<usize>,
    /// The number of its first vector among the parts to merge; none if this is all that its queries see.
    pub(super) part: Option<usize>,
    cost: usize,
}

/// The parts of a run of tokens and one key-value head, to be joined.
#[derive(Clone, Debug)]
pub(super) struct Merge {
    pub(super) row: usize,
    pub(super) tokens: Range<usize>,
    pub(super) kv_head: usize,
    /// Into [`Plan::merged_parts`]: where these vectors begin in each part.
    pub(super) parts: Range<usize>,
}

struct Segment {
    members: Vec<Member>,
    keys: Range<usize>,
    /// Whether its queries see other segments as well.
    is_part: bool,
}

impl Plan {
    /// For layers with these heads and this window, on `num_threads` threads.
    #[must_use]
    pub fn new(batch: &Batch, heads: Heads, sliding_window: Option<usize>, num_threads: usize) -> Self {
        let segments = segments(batch, heads, sliding_window);
        let mut plan = Self::default();
        let cost = |segment: &Segment| {
            (num_vectors(&segment.members, heads.group()) + KEY_COST)
                * segment.keys.len()
                * heads.num_kv_heads
        };
        let total: usize = segments.iter().map(cost).sum();
        let pieces =
            if num_threads > 1 { num_threads * (total / num_threads / GRAIN).clamp(1, 4) } else { 1 };
        let target = total / pieces + 1;
        let mut covers = Vec::new();
        for segment in segments {
            plan.push(segment, heads, target, num_threads > 1, &mut covers);
        }
        plan.merge(covers);
        plan.items.sort_by_key(|item| std::cmp::Reverse(item.cost));
        plan
    }

    /// Makes the items of a segment, and notes what they cover if it is to be merged.
    fn push(
        &mut self,
        segment: Segment,
        heads: Heads,
        target: usize,
        may_split: bool,
        covers: &mut Vec<Cover>,
    ) {
        let group = heads.group();
        let num_vectors = num_vectors(&segment.members, group);
        let num_elements = num_vectors * heads.num_kv_heads * heads.head_dim;
        let is_narrow = num_elements <= NARROW_ELEMENTS && segment.keys.len() >= NARROW_KEYS;
        let per_item = if num_vectors <= STREAM_VECTORS || is_narrow { heads.num_kv_heads } else { 1 };
        let cost = (num_vectors + KEY_COST) * segment.keys.len() * per_item;
        let num_splits = if may_split { (cost + target / 2) / target } else { 1 };
        let num_splits = num_splits.clamp(1, segment.keys.len().div_ceil(KEY_TILE).max(1));
        let stretch = segment.keys.len().div_ceil(num_splits).next_multiple_of(KEY_TILE);
        let is_part = segment.is_part || segment.keys.len() > stretch;
        let members = self.members.len()..self.members.len() + segment.members.len();
        self.members.extend(segment.members);
        for first_head in (0..heads.num_kv_heads).step_by(per_item) {
            for begin in segment.keys.clone().step_by(stretch) {
                let keys = begin..(begin + stretch).min(segment.keys.end);
                let kv_heads = first_head..first_head + per_item;
                let mut item = Item {
                    members: members.clone(),
                    kv_heads,
                    num_vectors,
                    cost: (num_vectors + KEY_COST) * keys.len() * per_item,
                    keys,
                    part: None,
                };
                if is_part {
                    item.part = Some(self.num_part_vectors);
                    self.note(&item, group, covers);
                    self.num_part_vectors += num_vectors * per_item;
                }
                self.items.push(item);
            }
        }
    }

    fn note(&self, item: &Item, group: usize, covers: &mut Vec<Cover>) {
        let mut part = self.num_part_vectors;
        for kv_head in item.kv_heads.clone() {
            for Member { row, tokens } in &self.members[item.members.clone()] {
                covers.push(Cover { row: *row, first: tokens.start, kv_head, tokens: tokens.clone(), part });
                part += tokens.len() * group;
            }
        }
    }

    fn merge(&mut self, mut covers: Vec<Cover>) {
        covers.sort_by_key(|cover| (cover.row, cover.first, cover.kv_head));
        for same in covers.chunk_by(|a, b| (a.row, a.first, a.kv_head) == (b.row, b.first, b.kv_head)) {
            let parts = self.merged_parts.len()..self.merged_parts.len() + same.len();
            self.merged_parts.extend(same.iter().map(|cover| cover.part));
            let Cover { row, ref tokens, kv_head, .. } = same[0];
            self.merges.push(Merge { row, tokens: tokens.clone(), kv_head, parts });
        }
    }
}

/// A part's vectors for some tokens and one head.
struct Cover {
    row: usize,
    first: usize,
    kv_head: usize,
    tokens: Range<usize>,
    part: usize,
}

fn num_vectors(members: &[Member], group: usize) -> usize {
    members.iter().map(|member| member.tokens.len() * group).sum()
}

/// Tokens of an item's queries, at most, if `num_cached` tokens stand before a row's first.
fn tile_tokens(heads: Heads, num_cached: usize) -> usize {
    let long = (QUERY_ELEMENTS / heads.head_dim.max(1)).clamp(QUERY_TILE, LONG_QUERY_TILE);
    let tile = if num_cached * heads.group() >= 4 * long { long } else { QUERY_TILE };
    (tile / heads.group()).max(1)
}

fn segments(batch: &Batch, heads: Heads, sliding_window: Option<usize>) -> Vec<Segment> {
    let group = heads.group();
    let mut segments = Vec::new();
    let mut own_start = vec![0; batch.rows().len()];
    if sliding_window.is_none() {
        let few = |&row: &usize| (1..=MAX_SHARING).contains(&(batch.rows()[row].query_length * group));
        let mut rows: Vec<usize> = (0..batch.rows().len()).filter(few).collect();
        share(batch, group, &mut rows, 0, 0, &mut own_start, &mut segments);
    }
    for (index, row) in batch.rows().iter().enumerate() {
        let tile = tile_tokens(heads, sliding_window.unwrap_or(usize::MAX).min(row.num_cached()));
        for begin in (0..row.query_length).step_by(tile) {
            let tokens = begin..(begin + tile).min(row.query_length);
            let first = window_start(sliding_window, row.num_cached() + tokens.start).max(own_start[index]);
            let keys = first..row.num_cached() + tokens.end;
            let members = vec![Member { row: index, tokens }];
            segments.push(Segment { members, keys, is_part: own_start[index] > 0 });
        }
    }
    segments
}

/// Finds the prefixes that `rows` share from block `start` on; their tables are equal up to `seen`.
#[expect(clippy::too_many_arguments, reason = "it calls itself with parts of most of them")]
fn share(
    batch: &Batch,
    group: usize,
    rows: &mut [usize],
    start: usize,
    seen: usize,
    own_start: &mut [usize],
    segments: &mut Vec<Segment>,
) {
    // Blocks that hold only tokens of earlier steps: every query of the row sees all of them.
    let shareable = |row: usize| &batch.blocks(row)[..batch.rows()[row].num_cached() / batch.block_size()];
    let next = |row: usize| shareable(row).get(seen).copied();
    if rows.len() < 2 {
        return;
    }
    rows.sort_by_key(|&row| next(row));
    for alike in rows.chunk_by_mut(|&a, &b| next(a).is_some() && next(a) == next(b)) {
        if alike.len() < 2 {
            continue;
        }
        let first = &shareable(alike[0])[seen..];
        let common = alike[1..].iter().map(|&row| common_prefix(first, &shareable(row)[seen..])).min();
        let end = seen + common.unwrap_or(0);
        if (end - start) * batch.block_size() < MIN_SHARED {
            share(batch, group, alike, start, end, own_start, segments);
            continue;
        }
        let mut members = Vec::new();
        for &mut row in &mut *alike {
            own_start[row] = end * batch.block_size();
            let member = Member { row, tokens: 0..batch.rows()[row].query_length };
            if num_vectors(&members, group) + member.tokens.len() * group > QUERY_TILE {
                let keys = start * batch.block_size()..own_start[row];
                segments.push(Segment { members: std::mem::take(&mut members), keys, is_part: true });
            }
            members.push(member);
        }
        let keys = start * batch.block_size()..end * batch.block_size();
        segments.push(Segment { members, keys, is_part: true });
        share(batch, group, alike, end, end, own_start, segments);
    }
}

/// How many leading elements are equal; compares a run of them at a time.
fn common_prefix(a: &[u32], b: &[u32]) -> usize {
    const RUN: usize = 64;
    let len = a.len().min(b.len());
    let runs = a[..len].chunks(RUN).zip(b[..len].chunks(RUN)).take_while(|(a, b)| a == b).count();
    let equal = (runs * RUN).min(len);
    equal + a[equal..len].iter().zip(&b[equal..len]).take_while(|(a, b)| a == b).count()
}
