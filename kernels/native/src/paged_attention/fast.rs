//! Runs a plan: items on all threads, then merges.
#![expect(unsafe_code, reason = "items write disjoint parts of one output; their inner loops check nothing")]

use std::cell::RefCell;

use super::{
    Batch, PagedAttention, Plan, ShapeError,
    plan::{Item, KEY_TILE, Member, Merge, STREAM_VECTORS},
    stream, tile, window_start,
};
#[cfg(target_arch = "x86_64")]
use super::{halves, int16, matrix, pairs};
use crate::{
    Element, Pool,
    simd::Level,
    vector::{self, Kernel, LANES, Vector},
};

/// -2^100: a score that no real score is as low as, from which differences are finite, and whose products are exact.
pub(super) const MASKED: f32 = f32::from_bits(0xF180_0000);
/// Elements of a head that are joined at a time: whole chunks of [`place`], and most heads.
const STRETCH: usize = 64;
/// How far above a row's reference a score may be, in powers of two, before the reference moves: `2^SLACK` is small enough
/// for any sum, and most tiles need no rescaling (FlashAttention-4).
const SLACK: f32 = 12.0;

/// Attention of every row into `output` (`[num_tokens, num_heads, head_dim]`), on the threads of `pool`. `plan` is of this
/// batch, for these heads and this window.
///
/// The softmax is in float32, whatever the elements are; its exponential has a relative error of 2e-7, or of 8e-5 where
/// weights are then rounded to 16 bits.
///
/// # Errors
/// [`ShapeError`] if the slices do not fit together.
pub fn paged_attention<Q: Element, K: Element>(
    call: &PagedAttention<'_, Q, K>,
    batch: &Batch,
    plan: &Plan,
    output: &mut [Q],
    pool: &Pool,
    level: Level,
) -> Result<(), ShapeError> {
    thread_local! {
        static PARTS: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
        static SCRATCH: RefCell<Scratch> = RefCell::default();
    }
    call.validate(batch, output)?;
    let row_len = part_len(padded::<K>(call.heads.head_dim));
    PARTS.with_borrow_mut(|parts| {
        if parts.len() < plan.num_part_vectors * row_len {
            parts.resize(plan.num_part_vectors * row_len, 0.0);
        }
        #[cfg(target_arch = "x86_64")]
        let in_halves = halves::fits::<Q, K>(call.heads.head_dim).then_some(level);
        #[cfg(not(target_arch = "x86_64"))]
        let in_halves = None;
        let (output, parts) = (output.as_mut_ptr(), parts.as_mut_ptr());
        let work = Work { call, batch, plan, in_halves, output, parts };
        pool.for_each(plan.items.len(), |index| {
            // Borrowed out here: a closure in there might not be inlined, and then be compiled for the baseline.
            SCRATCH.with_borrow_mut(|scratch| {
                // Items are handed out one by one, to all threads.
                let following = plan.items.get(index + pool.num_threads());
                vector::dispatch(
                    level,
                    Compute { work: &work, item: &plan.items[index], following, scratch },
                );
            });
        });
        let merge = |index: usize| work.merge(&plan.merges[index]);
        // A few additions are over before another thread has begun.
        if plan.num_part_vectors * row_len < 1 << 14 {
            (0..plan.merges.len()).for_each(merge);
        } else {
            pool.for_each(plan.merges.len(), merge);
        }
    });
    Ok(())
}

/// What all items of a call share.
pub(super) struct Work<'a, Q: Element, K: Element> {
    pub(super) call: &'a PagedAttention<'a, Q, K>,
    pub(super) batch: &'a Batch,
    pub(super) plan: &'a Plan,
    /// The level, if heads are such that many queries can be multiplied in 16 bits.
    in_halves: Option<Level>,
    output: *mut Q,
    /// By part vector: what it has summed, `[padded head]`, then its reference and its total.
    parts: *mut f32,
}

// SAFETY: every vector of the output, and of the parts, is written by one item or one merge, and a part is read only when
// all items are done.
unsafe impl<Q: Element, K: Element> Sync for Work<'_, Q, K> {}

struct Compute<'a, Q: Element, K: Element> {
    work: &'a Work<'a, Q, K>,
    item: &'a Item,
    following: Option<&'a Item>,
    scratch: &'a mut Scratch,
}

impl<Q: Element, K: Element> Kernel for Compute<'_, Q, K> {
    #[inline(always)]
    fn run<V: Vector>(self) {
        // SAFETY: the batch and the slices were checked; `dispatch` has chosen a `V` of this machine.
        unsafe {
            if self.item.num_vectors <= STREAM_VECTORS {
                // What comes near is of the same heads.
                let (heads, is_empty) = (&self.item.kv_heads, |item: &&Item| item.keys.is_empty());
                let following = self.following.filter(|item| item.kv_heads == *heads && !is_empty(item));
                stream::compute::<V, Q, K>(self.work, self.item, following, self.scratch);
                return;
            }
            #[cfg(target_arch = "x86_64")]
            match self.work.in_halves {
                Some(Level::Amx) => return matrix::compute(self.work, self.item, self.scratch),
                Some(Level::Avx512Bf16) => return pairs::compute(self.work, self.item, self.scratch),
                Some(Level::Avx512Vnni) => return int16::compute(self.work, self.item, self.scratch),
                _ => {}
            }
            tile::compute::<V, Q, K>(self.work, self.item, self.scratch);
        }
    }
}

/// A thread's memory, kept from item to item.
#[derive(Default)]
pub(super) struct Scratch {
    memory: Vec<Line>,
}

#[derive(Clone, Copy, Default)]
#[repr(align(64))]
struct Line(#[expect(dead_code, reason = "memory, used through pointers")] [f32; LANES]);

impl Scratch {
    /// Stretches of these lengths, each a multiple of [`LANES`], aligned to cache lines, with anything in them.
    #[inline(always)]
    pub(super) fn split<const N: usize>(&mut self, lengths: [usize; N]) -> [*mut f32; N] {
        let lines = lengths.iter().sum::<usize>() / LANES;
        if self.memory.len() < lines {
            self.memory.resize(lines, Line::default());
        }
        let mut next = self.memory.as_mut_ptr().cast::<f32>();
        lengths.map(|length| {
            let begin = next;
            next = next.wrapping_add(length);
            begin
        })
    }
}

/// The softmax so far of a run of query vectors.
#[derive(Clone, Copy)]
pub(super) struct State {
    /// `[vectors, padded head]`: Σ 2^(score - reference) · value.
    pub(super) weighted: *mut f32,
    /// `[vectors, LANES]`: Σ 2^(score - reference), in lanes.
    pub(super) totals: *mut f32,
    /// `[vectors]`: in powers of two; at most [`SLACK`] below the highest score so far.
    pub(super) references: *mut f32,
}

impl State {
    /// The vectors from `vector` on.
    #[inline(always)]
    pub(super) fn skip(&self, vector: usize, padded: usize) -> Self {
        Self {
            weighted: self.weighted.wrapping_add(vector * padded),
            totals: self.totals.wrapping_add(vector * LANES),
            references: self.references.wrapping_add(vector),
        }
    }

    /// Nothing seen yet.
    #[inline(always)]
    pub(super) unsafe fn clear(&self, num_vectors: usize, padded: usize) {
        // SAFETY: the caller's memory has these sizes.
        unsafe {
            self.weighted.write_bytes(0, num_vectors * padded);
            self.totals.write_bytes(0, num_vectors * LANES);
            std::slice::from_raw_parts_mut(self.references, num_vectors).fill(MASKED);
        }
    }

    /// Turns the scores of one vector, `[KEY_TILE]`, into weights, and adds them up.
    #[inline(always)]
    pub(super) unsafe fn softmax<V: Vector>(
        &self,
        vector: usize,
        scores: *mut f32,
        factor: f32,
        padded: usize,
    ) {
        // SAFETY: as above.
        unsafe {
            let exponents = self.exponents::<V>(vector, scores, factor, padded);
            let mut total = V::load(self.totals.add(vector * LANES));
            for (i, exponent) in exponents.into_iter().enumerate() {
                let weight = exponent.exp2();
                weight.store(scores.add(i * LANES));
                total = total.add(weight);
            }
            total.store(self.totals.add(vector * LANES));
        }
    }

    /// What two must be raised to for the weights of these scores; moves the vector's reference if need be.
    #[inline(always)]
    pub(super) unsafe fn exponents<V: Vector>(
        &self,
        vector: usize,
        scores: *const f32,
        factor: f32,
        padded: usize,
    ) -> [V; KEY_TILE / LANES] {
        const VECTORS: usize = KEY_TILE / LANES;
        // SAFETY: as above.
        unsafe {
            let reference = &mut *self.references.add(vector);
            // Loops, not `array::from_fn`: what that calls might not be inlined, and then be compiled for the baseline.
            let mut scores_now = [V::splat(0.0); VECTORS];
            for (i, now) in scores_now.iter_mut().enumerate() {
                *now = V::load(scores.add(i * LANES));
            }
            let (mut exponents, factors) = (scores_now, V::splat(factor));
            for exponent in &mut exponents {
                *exponent = exponent.fma(factors, V::splat(-*reference));
            }
            let highest = exponents[0].max(exponents[1]).max(exponents[2].max(exponents[3]));
            if highest.any_greater(V::splat(SLACK)) {
                let highest =
                    scores_now[0].max(scores_now[1]).max(scores_now[2].max(scores_now[3])).highest();
                let raised = highest * factor;
                self.rescale::<V>(vector, (*reference - raised).exp2(), padded);
                *reference = raised;
                for (exponent, now) in exponents.iter_mut().zip(scores_now) {
                    *exponent = now.fma(factors, V::splat(-raised));
                }
            }
            exponents
        }
    }

    #[inline(always)]
    unsafe fn rescale<V: Vector>(&self, vector: usize, by: f32, padded: usize) {
        // SAFETY: as above.
        unsafe {
            let by = V::splat(by);
            for at in (0..padded).step_by(LANES) {
                let at = self.weighted.add(vector * padded + at);
                V::load(at).mul(by).store(at);
            }
            let total = self.totals.add(vector * LANES);
            V::load(total).mul(by).store(total);
        }
    }
}

/// The positions that a query vector sees.
#[derive(Clone, Copy)]
pub(super) struct Sight {
    pub(super) start: usize,
    pub(super) end: usize,
}

impl Sight {
    /// Whether some of these keys are seen.
    pub(super) fn meets(&self, keys: &std::ops::Range<usize>) -> bool {
        self.end > keys.start && self.start < keys.end
    }
}

impl<Q: Element, K: Element> Work<'_, Q, K> {
    pub(super) fn members(&self, item: &Item) -> &[Member] {
        &self.plan.members[item.members.clone()]
    }

    /// The queries of an item's vectors with one key-value head, widened and in the order of [`place`], and what they see.
    #[inline(always)]
    pub(super) unsafe fn gather(
        &self,
        item: &Item,
        kv_head: usize,
        query: *mut f32,
        sights: &mut Vec<Sight>,
    ) {
        let (head_dim, padded) = (self.call.heads.head_dim, padded::<K>(self.call.heads.head_dim));
        self.each_vector(item, kv_head, |vector, from, sight| {
            // SAFETY: the caller's memory has room for all vectors of the item.
            let into = unsafe { std::slice::from_raw_parts_mut(query.add(vector * padded), padded) };
            into.fill(0.0);
            for (element, x) in self.call.query[from..from + head_dim].iter().enumerate() {
                into[place::<K>(element)] = x.widen();
            }
            sights.push(sight);
        });
    }

    /// `take(number, where its query begins, what it sees)` for each of an item's vectors with one key-value head.
    #[inline(always)]
    pub(super) fn each_vector(&self, item: &Item, kv_head: usize, mut take: impl FnMut(usize, usize, Sight)) {
        let (group, head_dim) = (self.call.heads.group(), self.call.heads.head_dim);
        let mut vector = 0;
        for Member { row, tokens } in self.members(item) {
            let row = self.batch.rows()[*row];
            for token in tokens.clone() {
                let position = row.num_cached() + token;
                let start = window_start(self.call.sliding_window, position);
                for head in 0..group {
                    let from =
                        (row.start + token) * self.call.query_stride + (kv_head * group + head) * head_dim;
                    take(vector, from, Sight { start, end: position + 1 });
                    vector += 1;
                }
            }
        }
    }

    /// What scores of this unit are multiplied with to count in powers of two; with a soft cap they are scaled before.
    pub(super) fn factor(&self, unit: f32) -> f32 {
        if self.call.soft_cap.is_some() {
            std::f32::consts::LOG2_E
        } else {
            unit * self.call.scale * std::f32::consts::LOG2_E
        }
    }

    /// Soft cap, causality, window and the end of the tile, on one vector's scores (of this unit) over `keys`.
    #[inline(always)]
    pub(super) unsafe fn adjust<V: Vector>(
        &self,
        scores: *mut f32,
        unit: f32,
        sight: Sight,
        keys: &std::ops::Range<usize>,
    ) {
        // SAFETY: the caller's memory holds KEY_TILE scores.
        unsafe {
            if let Some(cap) = self.call.soft_cap {
                // tanh(y) = 1 - 2 / (e^2y + 1)
                let to_exponent = V::splat(2.0 * std::f32::consts::LOG2_E * unit * self.call.scale / cap);
                for i in (0..KEY_TILE).step_by(LANES) {
                    // Beyond +-60 it is 1 to the last digit.
                    let power = V::splat(-60.0).max(V::load(scores.add(i)).mul(to_exponent));
                    let power = V::splat(60.0).min(power).exp2();
                    let quotient = V::splat(-2.0 * cap).div(power.add(V::splat(1.0)));
                    quotient.add(V::splat(cap)).store(scores.add(i));
                }
            }
            let scores = std::slice::from_raw_parts_mut(scores, KEY_TILE);
            let seen_from = sight.start.clamp(keys.start, keys.end) - keys.start;
            let seen_to = sight.end.clamp(keys.start, keys.end) - keys.start;
            scores[..seen_from].fill(MASKED);
            scores[seen_to.max(seen_from)..].fill(MASKED);
        }
    }

    /// Hands on what a run of vectors has computed: vector `i` of the item's key-value head `kv_head`.
    #[inline(always)]
    pub(super) unsafe fn finish<V: Vector>(&self, item: &Item, kv_head: usize, state: &State) {
        let padded = padded::<K>(self.call.heads.head_dim);
        // SAFETY: as `State` and the plan say.
        unsafe {
            let total = |vector: usize| V::load(state.totals.add(vector * LANES)).sum();
            if let Some(part) = item.part {
                let first = part + (kv_head - item.kv_heads.start) * item.num_vectors;
                for vector in 0..item.num_vectors {
                    let into = self.parts.add((first + vector) * part_len(padded));
                    into.copy_from_nonoverlapping(state.weighted.add(vector * padded), padded);
                    into.add(padded).write(*state.references.add(vector));
                    into.add(padded + 1).write(total(vector));
                }
                return;
            }
            let mut vector = 0;
            for Member { row, tokens } in self.members(item) {
                for token in tokens.clone() {
                    for head in 0..self.call.heads.group() {
                        let weighted =
                            std::slice::from_raw_parts(state.weighted.add(vector * padded), padded);
                        let reference = *state.references.add(vector);
                        self.write(
                            *row,
                            token,
                            (kv_head, head),
                            &mut [(weighted, reference, total(vector))].into_iter(),
                        );
                        vector += 1;
                    }
                }
            }
        }
    }

    /// Joins the parts of a run of tokens and one key-value head.
    fn merge(&self, merge: &Merge) {
        let padded = padded::<K>(self.call.heads.head_dim);
        let group = self.call.heads.group();
        let parts = &self.plan.merged_parts[merge.parts.clone()];
        for (index, token) in merge.tokens.clone().enumerate() {
            for head in 0..group {
                let mut parts = parts.iter().map(|part| {
                    // SAFETY: all items are done; the plan has numbered these vectors.
                    let memory = unsafe { self.parts.add((part + index * group + head) * part_len(padded)) };
                    // SAFETY: as above.
                    let part = unsafe { std::slice::from_raw_parts(memory, part_len(padded)) };
                    (&part[..padded], part[padded], part[padded + 1])
                });
                // SAFETY: no item and no other merge writes this vector.
                unsafe { self.write(merge.row, token, (merge.kv_head, head), &mut parts) };
            }
        }
    }

    /// Joins (weighted sum, reference, total) of one query vector, adds the sink, normalises, and writes to the output.
    #[inline(always)]
    unsafe fn write<'p>(
        &self,
        row: usize,
        token: usize,
        (kv_head, head): (usize, usize),
        parts: &mut (impl Iterator<Item = (&'p [f32], f32, f32)> + Clone),
    ) {
        let heads = self.call.heads;
        let head = kv_head * heads.group() + head;
        let sink = self.call.sinks.map_or(MASKED, |sinks| sinks[head] * std::f32::consts::LOG2_E);
        let highest = parts.clone().map(|(_, reference, _)| reference).fold(sink, f32::max);
        let share = |reference: f32| (reference - highest).exp2();
        let total: f32 = parts.clone().map(|(_, reference, total)| share(reference) * total).sum();
        let total = total + share(sink);
        let at = ((self.batch.rows()[row].start + token) * heads.num_heads + head) * heads.head_dim;
        // SAFETY: the batch and the output were checked against each other; nobody else writes this vector.
        let out = unsafe { std::slice::from_raw_parts_mut(self.output.add(at), heads.head_dim) };
        // A stretch of elements at a time, so that a part's share is computed once for all of them.
        for (index, out) in out.chunks_mut(STRETCH).enumerate() {
            let mut sums = [0.0f32; STRETCH];
            for (weighted, reference, _) in parts.clone() {
                let factor = share(reference) / total;
                let weighted = &weighted[index * STRETCH..];
                for (sum, weighted) in sums.iter_mut().zip(weighted) {
                    *sum += factor * weighted;
                }
            }
            for (element, out) in out.iter_mut().enumerate() {
                *out = Q::narrow(sums[place::<K>(element)]);
            }
        }
    }
}

/// Where an element of a head stands in what is widened from `K`: halves of 32-bit words are separated by vectors.
#[inline(always)]
pub(super) fn place<K: Element>(element: usize) -> usize {
    if !K::IS_HALF {
        return element;
    }
    let (chunk, element) = (element / (2 * LANES), element % (2 * LANES));
    chunk * 2 * LANES + element % 2 * LANES + element / 2
}

/// The length of a head in whole vectors.
#[inline(always)]
pub(super) fn padded<K: Element>(head_dim: usize) -> usize {
    head_dim.next_multiple_of(if K::IS_HALF { 2 * LANES } else { LANES })
}

/// Floats of a vector among the parts.
fn part_len(padded: usize) -> usize {
    padded + 2
}
