//! Many queries per key, all in 16 bits: keys and values are packed a tile at a time into pairs, and then serve all queries
//! of the item, 16 at a time. What multiplies is [`Products`]: matrix tiles (AMX), or vectors of pairs, of bf16 or of
//! integers.
//!
//! ```text
//!   scores [16, 64] = Q Kᵀ     f32, through memory into registers    → 2^ →    weights [16, 64], 16 bits
//!   weighted [16, padded] += weights · V     f32, in memory between key tiles
//! ```
//!
//! The scores of the next 16 queries are computed while those of the last are made weights, since matrix tiles and vectors
//! are different parts of a core.
#![expect(unsafe_code, reason = "inner loops over memory that was checked beforehand")]
#![expect(unsafe_op_in_unsafe_fn, reason = "every operation here is one")]

use std::{arch::x86_64::*, ops::Range};

use super::{
    fast::{Scratch, Sight, State, Work, padded},
    plan::{Item, KEY_TILE},
};
use crate::{
    Element,
    amx::{ROW_BYTES, ROWS},
    vector::{Avx512, LANES, Vector},
};

/// Elements of a row of a tile of bf16.
pub(super) const STEP: usize = 32;
/// Bytes of a tile.
pub(super) const TILE_BYTES: usize = ROWS * ROW_BYTES;
/// Of a tile's keys, weights and values, in whole vectors.
const NUM_UNITS: usize = KEY_TILE + ROWS + ROWS * LANES + LANES;
/// Minimax on [0, 1): relative error 8e-5, where weights are rounded to bf16.
const EXP2: [f32; 4] = [0.999_925_2, 0.695_833_5, 0.226_067_16, 0.078_024_52];

/// Whether elements and heads are what [`compute`] is for.
pub(super) fn fits<Q: Element, K: Element>(head_dim: usize) -> bool {
    Q::IS_HALF && K::IS_HALF && head_dim.is_multiple_of(STEP)
}

/// Computes an item.
///
/// # Safety
/// The call's elements and heads fit; the machine has what `P` needs, and the caller is compiled for it.
#[inline(always)]
pub(super) unsafe fn compute<P: Products, Q: Element, K: Element>(
    work: &Work<'_, Q, K>,
    item: &Item,
    scratch: &mut Scratch,
) {
    let head_dim = work.call.heads.head_dim;
    debug_assert_eq!(padded::<K>(head_dim), head_dim);
    let num_vectors = item.num_vectors.next_multiple_of(ROWS);
    let total_vectors = item.kv_heads.len() * num_vectors;
    let [query, weighted, totals, references, keys, values, scores, weights, query_units, units] = scratch
        .split([
            total_vectors * head_dim / 2,
            total_vectors * head_dim,
            total_vectors * LANES,
            total_vectors,
            KEY_TILE * head_dim / 2,
            KEY_TILE * head_dim / 2,
            2 * ROWS * KEY_TILE,
            ROWS * KEY_TILE / 2,
            total_vectors,
            NUM_UNITS,
        ]);
    let all = State { weighted, totals, references };
    let tile = Tile::new([keys, values, weights], units, head_dim);
    let query: *mut u8 = query.cast();
    let mut sights = Vec::with_capacity(item.num_vectors);
    let mut blocks = Vec::with_capacity(num_vectors / ROWS);
    let mut next_cells = [0; KEY_TILE];
    let row = work.members(item)[0].row;
    all.clear(total_vectors, head_dim);
    for (index, kv_head) in item.kv_heads.clone().enumerate() {
        let (first, into) = (index * num_vectors, query.add(index * num_vectors * head_dim * 2));
        gather(work, item, kv_head, into, &mut sights);
        for vector in 0..num_vectors {
            query_units.add(first + vector).write(P::query(into.add(vector * head_dim * 2), head_dim));
        }
    }

    let _ready = P::begin();
    let caches = [work.call.key_cache.as_ptr(), work.call.value_cache.as_ptr()];
    let range_from = |begin: usize| begin..(begin + KEY_TILE).min(item.keys.end);
    // Where the heads of each key of a tile begin.
    let find = |range: Range<usize>, cells: &mut [usize; KEY_TILE]| {
        work.batch.cells(row, range, cells);
        for cell in cells {
            *cell = (*cell * work.call.heads.num_kv_heads + item.kv_heads.start) * head_dim;
        }
    };
    find(range_from(item.keys.start), &mut next_cells);
    for begin in item.keys.clone().step_by(KEY_TILE) {
        let range = range_from(begin);
        let cells = next_cells;
        blocks.clear();
        for first in (0..item.num_vectors).step_by(ROWS) {
            let block = first..(first + ROWS).min(item.num_vectors);
            if sights[block.clone()].iter().any(|sight| sight.meets(&range)) {
                blocks.push(block);
            }
        }
        let num_times = item.kv_heads.len() * blocks.iter().map(Range::len).sum::<usize>();
        let mut ahead = Ahead {
            cells: &[],
            num_at_once: KEY_TILE.div_ceil(num_times.max(1)),
            caches,
            num_elements: item.kv_heads.len() * head_dim,
        };
        if range.end < item.keys.end {
            find(range_from(range.end), &mut next_cells);
            ahead.cells = &next_cells;
        }
        for index in 0..item.kv_heads.len() {
            let at = |key: usize| cells[key] + index * head_dim;
            pack_keys(|key| caches[0].add(at(key)).cast(), keys, head_dim);
            pack_values(|key| caches[1].add(at(key)).cast(), values, head_dim);
            P::keys_and_values(&tile);
            let queries = Queries {
                vectors: query.add(index * num_vectors * head_dim * 2),
                units: query_units.add(index * num_vectors),
                sights: &sights,
                state: all.skip(index * num_vectors, head_dim),
            };
            attend::<P, Q, K>(work, (&tile, &range), &queries, &blocks, scores, &mut ahead);
        }
    }
    for (index, kv_head) in item.kv_heads.clone().enumerate() {
        work.finish::<Avx512>(item, kv_head, &all.skip(index * num_vectors, head_dim));
    }
}

/// The queries of an item with one key-value head, as they are, and what they see. Matrix tiles are of 16: the surplus is
/// zeros, and what is computed of it is left.
#[inline(always)]
unsafe fn gather<Q: Element, K: Element>(
    work: &Work<'_, Q, K>,
    item: &Item,
    kv_head: usize,
    into: *mut u8,
    sights: &mut Vec<Sight>,
) {
    let bytes = work.call.heads.head_dim * 2;
    let num_vectors = item.num_vectors.next_multiple_of(ROWS);
    sights.clear();
    into.add(item.num_vectors * bytes).write_bytes(0, (num_vectors - item.num_vectors) * bytes);
    work.each_vector(item, kv_head, |vector, from, sight| {
        let query = work.call.query.as_ptr().add(from).cast();
        into.add(vector * bytes).copy_from_nonoverlapping(query, bytes);
        sights.push(sight);
    });
}

/// The queries of an item with one key-value head, and what they have seen so far.
struct Queries<'a> {
    /// `[vectors, head_dim]`, 16 bits.
    vectors: *const u8,
    /// `[vectors]`.
    units: *const f32,
    sights: &'a [Sight],
    state: State,
}

/// The keys and values of the next tile. They are asked for little by little while this one is computed: blocks lie
/// anywhere, so that the processor cannot foresee it.
struct Ahead<'a, K> {
    /// Where they begin.
    cells: &'a [usize],
    num_at_once: usize,
    caches: [*const K; 2],
    num_elements: usize,
}

impl<K> Ahead<'_, K> {
    #[inline(always)]
    unsafe fn ask(&mut self) {
        let (now, later) = self.cells.split_at(self.num_at_once.min(self.cells.len()));
        self.cells = later;
        for cell in now {
            for element in (0..self.num_elements).step_by(STEP) {
                for cache in self.caches {
                    Avx512::prefetch(cache.add(cell + element).cast());
                }
            }
        }
    }
}

/// Blocks of at most 16 queries over one tile of keys, those at positions `range`. `scores` has room for two blocks.
#[inline(always)]
unsafe fn attend<P: Products, Q: Element, K: Element>(
    work: &Work<'_, Q, K>,
    (tile, range): (&Tile, &Range<usize>),
    queries: &Queries<'_>,
    blocks: &[Range<usize>],
    scores: *mut f32,
    ahead: &mut Ahead<'_, K>,
) {
    let scores = |index: usize| scores.add(index % 2 * ROWS * KEY_TILE);
    let vectors = |block: &Range<usize>| queries.vectors.add(block.start * tile.head_dim * 2);
    if let Some(first) = blocks.first() {
        P::scores(tile, first.len(), vectors(first), scores(0));
    }
    for (index, block) in blocks.iter().enumerate() {
        if let Some(next) = blocks.get(index + 1) {
            P::scores(tile, next.len(), vectors(next), scores(index + 1));
        }
        let is_partial = |sight: &Sight| sight.start > range.start || sight.end < range.start + KEY_TILE;
        let adjusts = range.len() < KEY_TILE
            || work.call.soft_cap.is_some()
            || queries.sights[block.clone()].iter().any(is_partial);
        for vector in block.clone() {
            ahead.ask();
            let number = vector - block.start;
            let (scores, unit) = (scores(index).add(number * KEY_TILE), *queries.units.add(vector));
            if adjusts {
                work.adjust::<Avx512>(scores, unit, queries.sights[vector], range);
            }
            let factor = work.factor(unit);
            let exponents = queries.state.exponents::<Avx512>(vector, scores, factor, tile.head_dim);
            P::weights(tile, number, exponents, queries.state.totals.add(vector * LANES), scores);
        }
        P::round(tile, block.len(), scores(index));
        P::accumulate(tile, block.len(), queries.state.weighted.add(block.start * tile.head_dim));
    }
}

/// `2^x`, to 8e-5; 0 far below.
#[inline(always)]
pub(super) unsafe fn exp2(x: __m512) -> __m512 {
    const DOWN: i32 = 1;
    let fraction = _mm512_reduce_ps::<DOWN>(x);
    let mut p = _mm512_set1_ps(EXP2[3]);
    for c in [EXP2[2], EXP2[1], EXP2[0]] {
        p = _mm512_fmadd_ps(p, fraction, _mm512_set1_ps(c));
    }
    // It takes the power's floor by itself.
    _mm512_scalef_ps(p, x)
}

/// Packed keys and values, and room for the weights of 16 queries. A unit is what a 1 among these stands for; those are
/// left alone where it is bf16 that is multiplied.
pub(super) struct Tile {
    /// By step of elements and 16 keys: a tile whose rows are pairs of elements.
    pub(super) keys: *mut u8,
    /// By 32 keys and 16 elements (in the order of `place`): a tile whose rows are pairs of keys.
    pub(super) values: *mut u8,
    /// `[16, KEY_TILE]`, 16 bits.
    pub(super) weights: *mut u8,
    /// `[KEY_TILE]`.
    pub(super) key_units: *mut f32,
    /// `[16]`, and as many sums of [`LANES`] to make them from.
    pub(super) weight_units: *mut f32,
    pub(super) weight_sums: *mut f32,
    /// One.
    pub(super) value_unit: *mut f32,
    pub(super) head_dim: usize,
}

impl Tile {
    fn new([keys, values, weights]: [*mut f32; 3], units: *mut f32, head_dim: usize) -> Self {
        Self {
            keys: keys.cast(),
            values: values.cast(),
            weights: weights.cast(),
            key_units: units,
            weight_units: units.wrapping_add(KEY_TILE),
            weight_sums: units.wrapping_add(KEY_TILE + ROWS),
            value_unit: units.wrapping_add(KEY_TILE + ROWS + ROWS * LANES),
            head_dim,
        }
    }
}

/// What multiplies 16 queries at a time. Without more said, bf16.
///
/// # Safety
/// Of every function: the processor has the instructions; pointers are good for what is said of them.
pub(super) trait Products {
    /// What must live as long as tiles are multiplied.
    type Ready;

    unsafe fn begin() -> Self::Ready;
    /// Makes of a query, `[head_dim]` bf16, what is multiplied; returns its unit.
    #[inline(always)]
    unsafe fn query(_query: *mut u8, _head_dim: usize) -> f32 {
        1.0
    }
    /// The same of packed keys and values.
    #[inline(always)]
    unsafe fn keys_and_values(_tile: &Tile) {}
    /// Q Kᵀ of so many queries of `[16, head_dim]` at least, into `[16, KEY_TILE]`, in units of the query.
    unsafe fn scores(tile: &Tile, num_queries: usize, query: *const u8, scores: *mut f32);
    /// Two to the power of each exponent, added to `total` `[LANES]`, and rounded into the weights of this query of 16; or
    /// left for [`Products::round`] where its scores, which are no longer needed, were.
    #[inline(always)]
    unsafe fn weights(
        tile: &Tile,
        query: usize,
        exponents: [Avx512; KEY_TILE / LANES],
        total: *mut f32,
        _scores: *mut f32,
    ) {
        let [a, b, c, d] = exponents;
        let (a, b, c, d) = (exp2(a.0), exp2(b.0), exp2(c.0), exp2(d.0));
        let sum = _mm512_add_ps(_mm512_add_ps(a, b), _mm512_add_ps(c, d));
        _mm512_storeu_ps(total, _mm512_add_ps(_mm512_loadu_ps(total), sum));
        let rounded: [__m512i; 2] =
            std::mem::transmute([_mm512_cvtne2ps_pbh(b, a), _mm512_cvtne2ps_pbh(d, c)]);
        let weights = tile.weights.add(query * KEY_TILE * 2);
        _mm512_storeu_si512(weights.cast(), rounded[0]);
        _mm512_storeu_si512(weights.add(64).cast(), rounded[1]);
    }
    /// Rounds what was left, of so many queries.
    #[inline(always)]
    unsafe fn round(_tile: &Tile, _num_queries: usize, _scores: *const f32) {}
    /// Adds weights · V to the sums of so many queries of `[16, head_dim]` at least.
    unsafe fn accumulate(tile: &Tile, num_queries: usize, weighted: *mut f32);
}

/// Pairs of elements of 16 keys side by side.
#[inline(always)]
unsafe fn pack_keys(key: impl Fn(usize) -> *const f32, into: *mut f32, head_dim: usize) {
    for step in 0..head_dim / STEP {
        for tile in 0..KEY_TILE / LANES {
            let mut rows = [Avx512::splat(0.0); LANES];
            for (lane, row) in rows.iter_mut().enumerate() {
                *row = Avx512::load(key(tile * LANES + lane).add(step * LANES));
            }
            Avx512::transpose(&mut rows);
            let into = into.add((step * 4 + tile) * TILE_BYTES / 4);
            for (pair, row) in rows.into_iter().enumerate() {
                row.store(into.add(pair * LANES));
            }
        }
    }
}

/// Pairs of keys' elements side by side: first the even ones of a step, then the odd ones.
#[inline(always)]
unsafe fn pack_values(value: impl Fn(usize) -> *const f32, into: *mut f32, head_dim: usize) {
    let into: *mut u8 = into.cast();
    let (low, columns) = (_mm512_set1_epi32(0xFFFF), head_dim / LANES);
    for pair in 0..KEY_TILE / 2 {
        let (first, second) = (value(2 * pair), value(2 * pair + 1));
        for step in 0..head_dim / STEP {
            let a = _mm512_loadu_si512(first.add(step * LANES).cast());
            let b = _mm512_loadu_si512(second.add(step * LANES).cast());
            let even = _mm512_or_si512(_mm512_and_si512(a, low), _mm512_slli_epi32::<16>(b));
            let odd = _mm512_or_si512(_mm512_srli_epi32::<16>(a), _mm512_andnot_si512(low, b));
            let into = into.add(((pair / ROWS * columns + 2 * step) * ROWS + pair % ROWS) * ROW_BYTES);
            _mm512_storeu_si512(into.cast(), even);
            _mm512_storeu_si512(into.add(TILE_BYTES).cast(), odd);
        }
    }
}
