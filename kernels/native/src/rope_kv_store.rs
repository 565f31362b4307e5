//! Rotary embedding (Su et al. 2021) of queries and keys, and the storing of keys and values in the paged cache, in one pass.
#![expect(unsafe_code, reason = "views of one tensor, which Rust cannot see to be disjoint")]

use crate::{
    Element, Pool,
    simd::Level,
    vector::{self, Kernel, Vector},
};

/// Fewer elements than this are done before another thread would have begun.
const MIN_PARALLEL: usize = 1 << 14;

/// `[num_tokens, heads, head_dim]`: token `t` begins at `start + t * stride`.
#[derive(Clone, Copy, Debug)]
pub struct Heads<X> {
    /// The first token.
    pub start: *mut X,
    /// Elements from one token to the next.
    pub stride: usize,
    /// Heads of a token, one after another.
    pub count: usize,
}

/// What one call does.
#[derive(Clone, Copy, Debug)]
pub struct RopeKvStore<'a, X, C> {
    /// Rotated in place.
    pub query: Heads<X>,
    /// Stored rotated; itself not changed.
    pub key: Heads<X>,
    /// Stored.
    pub value: Heads<X>,
    /// Elements of a head.
    pub head_dim: usize,
    /// `[num_tokens, rotary_dim / 2]`.
    pub cos: &'a [X],
    /// As `cos`.
    pub sin: &'a [X],
    /// Each token's cell of the caches; a negative one stores nothing.
    pub indices: &'a [i64],
    /// `[num_cells, key heads, head_dim]`.
    pub key_cache: *mut C,
    /// As `key_cache`.
    pub value_cache: *mut C,
    /// Tokens that a cache has room for.
    pub num_cells: usize,
}

// SAFETY: threads work on tokens of their own, whose cells are all different.
unsafe impl<X: Element, C: Element> Sync for RopeKvStore<'_, X, C> {}

/// Rotates the first `rotary_dim` elements of each query and key head (halves `a`, `b` become `a cos - b sin`,
/// `b cos + a sin`, rounded once) and stores keys and values.
///
/// # Safety
/// The pointers must be good for what the fields say, and nobody else may use that memory meanwhile.
///
/// # Panics
/// If the slices do not fit together, or an index is beyond the caches.
pub unsafe fn rope_kv_store<X: Element, C: Element>(call: &RopeKvStore<'_, X, C>, pool: &Pool, level: Level) {
    let num_tokens = call.indices.len();
    assert!(call.cos.len() == call.sin.len() && call.cos.len().is_multiple_of(num_tokens.max(1)));
    assert!(call.cos.len() * 2 <= num_tokens * call.head_dim, "more angles than elements");
    let in_range = |&index: &i64| index < call.num_cells as i64;
    assert!(call.indices.iter().all(in_range), "an index is beyond the {} cells", call.num_cells);
    let num_elements = num_tokens * (call.query.count + 2 * call.key.count) * call.head_dim;
    let run = |tokens| vector::dispatch(level, Tokens { call, tokens });
    if num_elements < MIN_PARALLEL {
        run(0..num_tokens);
    } else {
        let per_chunk = (MIN_PARALLEL * num_tokens / num_elements / 4).max(1);
        pool.for_each(num_tokens.div_ceil(per_chunk), |chunk| {
            run(chunk * per_chunk..((chunk + 1) * per_chunk).min(num_tokens));
        });
    }
}

struct Tokens<'a, X, C> {
    call: &'a RopeKvStore<'a, X, C>,
    tokens: std::ops::Range<usize>,
}

impl<X: Element, C: Element> Kernel for Tokens<'_, X, C> {
    #[inline(always)]
    fn run<V: Vector>(self) {
        let RopeKvStore { query, key, value, head_dim, cos, sin, indices, .. } = *self.call;
        let half = cos.len() / indices.len().max(1);
        for token in self.tokens {
            let (cos, sin) = (&cos[token * half..(token + 1) * half], &sin[token * half..(token + 1) * half]);
            // SAFETY: the caller's promise; cells are in range and different.
            unsafe {
                for head in 0..query.count {
                    let head = std::slice::from_raw_parts_mut(
                        query.start.add(token * query.stride + head * head_dim),
                        head_dim,
                    );
                    rotate(head, cos, sin);
                }
                let Ok(cell) = usize::try_from(indices[token]) else { continue };
                let at = cell * key.count * head_dim;
                let stored =
                    |cache: *mut C| std::slice::from_raw_parts_mut(cache.add(at), key.count * head_dim);
                let given = |heads: Heads<X>| {
                    std::slice::from_raw_parts(
                        heads.start.add(token * heads.stride).cast_const(),
                        key.count * head_dim,
                    )
                };
                let keys = stored(self.call.key_cache).chunks_exact_mut(head_dim);
                for (stored, head) in keys.zip(given(key).chunks_exact(head_dim)) {
                    store_rotated(stored, head, cos, sin);
                }
                for (stored, x) in stored(self.call.value_cache).iter_mut().zip(given(value)) {
                    *stored = C::narrow(x.widen());
                }
            }
        }
    }
}

#[inline(always)]
fn rotate<X: Element>(head: &mut [X], cos: &[X], sin: &[X]) {
    let (a, b) = head.split_at_mut(cos.len());
    for ((a, b), (cos, sin)) in a.iter_mut().zip(b).zip(cos.iter().zip(sin)) {
        let (x, y) = (a.widen(), b.widen());
        *a = X::narrow(x * cos.widen() - y * sin.widen());
        *b = X::narrow(y * cos.widen() + x * sin.widen());
    }
}

/// As [`rotate`], from one place to another; a rotated element is rounded to `X` before it is to `C`.
#[inline(always)]
fn store_rotated<X: Element, C: Element>(into: &mut [C], head: &[X], cos: &[X], sin: &[X]) {
    let half = cos.len();
    let (rotated, rest) = into.split_at_mut(2 * half);
    let (into_a, into_b) = rotated.split_at_mut(half);
    let halves = head[..half].iter().zip(&head[half..2 * half]).zip(cos.iter().zip(sin));
    for ((into_a, into_b), ((a, b), (cos, sin))) in into_a.iter_mut().zip(into_b).zip(halves) {
        let (x, y) = (a.widen(), b.widen());
        *into_a = C::narrow(X::narrow(x * cos.widen() - y * sin.widen()).widen());
        *into_b = C::narrow(X::narrow(y * cos.widen() + x * sin.widen()).widen());
    }
    for (into, x) in rest.iter_mut().zip(&head[2 * half..]) {
        *into = C::narrow(x.widen());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Bf16;

    const HEAD_DIM: usize = 20;
    const HALF: usize = 8;

    fn noise(i: usize) -> f32 {
        ((i * 7919) % 1013) as f32 / 500.0 - 1.0
    }

    /// A merged `[tokens, 3 + 2 + 2 heads]` against one element at a time.
    fn check<X: Element, C: Element>(num_tokens: usize, tolerance: f32) {
        let stride = 7 * HEAD_DIM;
        let before: Vec<X> = (0..num_tokens * stride).map(|i| X::narrow(noise(i))).collect();
        let angles = |f: fn(f32) -> f32| -> Vec<X> {
            (0..num_tokens * HALF).map(|i| X::narrow(f(noise(i + 3) * 9.0))).collect()
        };
        let (cos, sin) = (angles(f32::cos), angles(f32::sin));
        let indices: Vec<i64> =
            (0..num_tokens as i64).map(|t| if t == 1 { -1 } else { num_tokens as i64 - t }).collect();
        let num_cells = num_tokens + 1;
        let rotated = |token: usize, head: usize, element: usize| {
            let x = |element: usize| before[token * stride + head * HEAD_DIM + element].widen();
            let pair = element % HALF;
            let (cos, sin) = (cos[token * HALF + pair].widen(), sin[token * HALF + pair].widen());
            match element / HALF {
                0 => x(element) * cos - x(element + HALF) * sin,
                1 => x(element) * cos + x(element - HALF) * sin,
                _ => x(element),
            }
        };
        for level in Level::available() {
            let mut merged = before.clone();
            let nan = C::narrow(f32::NAN);
            let (mut keys, mut values) =
                (vec![nan; num_cells * 2 * HEAD_DIM], vec![nan; num_cells * 2 * HEAD_DIM]);
            let start = merged.as_mut_ptr();
            let heads =
                |first: usize, count| Heads { start: start.wrapping_add(first * HEAD_DIM), stride, count };
            let call = RopeKvStore {
                query: heads(0, 3),
                key: heads(3, 2),
                value: heads(5, 2),
                head_dim: HEAD_DIM,
                cos: &cos,
                sin: &sin,
                indices: &indices,
                key_cache: keys.as_mut_ptr(),
                value_cache: values.as_mut_ptr(),
                num_cells,
            };
            // SAFETY: the pointers are into the vectors above, which are as long as they must be.
            unsafe { rope_kv_store(&call, &Pool::new(2).expect("threads"), level) };
            let close = |got: f32, want: f32| (got - want).abs() <= tolerance;
            for token in 0..num_tokens {
                for element in 0..HEAD_DIM {
                    for head in 0..3 {
                        let got = merged[token * stride + head * HEAD_DIM + element].widen();
                        assert!(
                            close(got, rotated(token, head, element)),
                            "{level:?} {token} {head} {element}"
                        );
                    }
                    let Ok(cell) = usize::try_from(indices[token]) else { continue };
                    for head in 0..2 {
                        let at = (cell * 2 + head) * HEAD_DIM + element;
                        assert!(
                            close(keys[at].widen(), rotated(token, 3 + head, element)),
                            "{level:?} {token}"
                        );
                        let value = before[token * stride + (5 + head) * HEAD_DIM + element].widen();
                        assert!(close(values[at].widen(), value), "{level:?} {token}");
                    }
                }
            }
            let unused =
                keys.chunks(2 * HEAD_DIM).filter(|cell| cell.iter().all(|x| x.widen().is_nan())).count();
            assert_eq!(unused, num_cells - indices.iter().filter(|&&index| index >= 0).count());
        }
    }

    #[test]
    fn twins_agree() {
        for num_tokens in [1, 2, 300] {
            check::<f32, f32>(num_tokens, 1e-6);
            check::<f32, Bf16>(num_tokens, 1e-2);
            check::<Bf16, Bf16>(num_tokens, 1e-2);
        }
    }
}
