//! The fast twin against the naive one, on every instruction set that the machine has.

use anaphora_kernels::{
    Bf16, Element, Pool,
    paged_attention::{
        Batch, Heads, PagedAttention, Plan, ShapeError, paged_attention, paged_attention_naive,
    },
    simd::Level,
};
use proptest::prelude::*;

#[derive(Clone, Debug)]
struct Case {
    num_kv_heads: usize,
    group: usize,
    head_dim: usize,
    block_size: usize,
    /// (new tokens, tokens in all)
    rows: Vec<(usize, usize)>,
    /// Leading blocks that every row has in common with the first, as far as both have them cached whole.
    num_shared: usize,
    sliding_window: Option<usize>,
    soft_cap: Option<f32>,
    sinks: bool,
}

/// A deterministic stand-in for randomness, in -1..1.
fn noise(seed: usize) -> f32 {
    let mixed =
        (seed as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(31).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    (mixed >> 40) as f32 / (1u64 << 23) as f32 - 1.0
}

/// Block tables, query starts and context lengths.
fn rows_of(case: &Case) -> (Vec<i32>, Vec<i32>, Vec<i32>) {
    let Case { block_size, ref rows, .. } = *case;
    let max_blocks = rows.iter().map(|row| row.1.div_ceil(block_size)).max().unwrap_or(0) + 1;
    let mut tables = vec![-1i32; rows.len() * max_blocks];
    let mut next_block = rows.iter().map(|row| row.1.div_ceil(block_size)).sum::<usize>() as i32; // not the identity
    let (mut starts, mut contexts) = (vec![0i32], Vec::new());
    for (row, &(new, context)) in rows.iter().enumerate() {
        let cached_blocks = (context - new).min(rows[0].1 - rows[0].0) / block_size;
        for index in 0..context.div_ceil(block_size) {
            tables[row * max_blocks + index] = if row > 0 && index < case.num_shared.min(cached_blocks) {
                tables[index]
            } else {
                next_block -= 1;
                next_block
            };
        }
        starts.push(starts[row] + new as i32);
        contexts.push(context as i32);
    }
    (tables, starts, contexts)
}

/// Runs both twins and returns the largest difference; unused cache is NaN.
fn max_difference<Q: Element, K: Element>(case: &Case, level: Level, num_threads: usize) -> f32 {
    let Case { num_kv_heads, group, head_dim, block_size, ref rows, .. } = *case;
    let (tables, starts, contexts) = rows_of(case);
    let num_blocks = rows.iter().map(|row| row.1.div_ceil(block_size)).sum::<usize>() + 2;
    let element_count = num_blocks * block_size * num_kv_heads * head_dim;
    let nan = K::narrow(f32::NAN);
    let (mut keys, mut values) = (vec![nan; element_count], vec![nan; element_count]);
    let batch = Batch::new(&tables, &starts, &contexts, block_size, num_blocks).expect("valid");
    let max_blocks = tables.len() / rows.len();
    for (row, &(_, context)) in rows.iter().enumerate() {
        for position in 0..context {
            let block = tables[row * max_blocks + position / block_size] as usize;
            let width = num_kv_heads * head_dim;
            let at = (block * block_size + position % block_size) * width;
            for element in 0..width {
                keys[at + element] = K::narrow(noise(at + element) * 2.0);
                values[at + element] = K::narrow(noise(at + element + 7_777_777));
            }
        }
    }
    let heads = Heads { num_heads: num_kv_heads * group, num_kv_heads, head_dim };
    let query_stride = heads.num_heads * head_dim + 5;
    let query: Vec<Q> = (0..(batch.num_tokens() * query_stride).saturating_sub(5))
        .map(|i| Q::narrow(noise(i + 99) * 2.0))
        .collect();
    let sinks: Vec<f32> = (0..heads.num_heads).map(|head| noise(head) * 3.0).collect();
    let call = PagedAttention {
        heads,
        query: &query,
        query_stride,
        key_cache: &keys,
        value_cache: &values,
        scale: (head_dim as f32).powf(-0.5),
        sliding_window: case.sliding_window,
        soft_cap: case.soft_cap,
        sinks: case.sinks.then_some(&sinks),
    };
    let plan = Plan::new(&batch, heads, case.sliding_window, num_threads);
    let pool = Pool::new(num_threads).expect("threads");
    let output = vec![Q::narrow(f32::NAN); batch.num_tokens() * heads.num_heads * head_dim];
    let (mut got, mut want) = (output.clone(), output);
    paged_attention(&call, &batch, &plan, &mut got, &pool, level).expect("valid");
    paged_attention_naive(&call, &batch, &mut want).expect("valid");
    got.iter()
        .zip(&want)
        .map(|(got, want)| (got.widen() - want.widen()).abs())
        .fold(0.0, |a, b| if b > a || b.is_nan() { b } else { a })
}

fn check(case: &Case) {
    for level in Level::available() {
        for num_threads in [1, 3] {
            let difference = max_difference::<f32, f32>(case, level, num_threads);
            assert!(difference < 2e-5, "{level:?}, {num_threads} threads: off by {difference} in {case:?}");
            let difference = max_difference::<f32, Bf16>(case, level, num_threads);
            assert!(
                difference < 2e-5,
                "bf16 cache, {level:?}, {num_threads} threads: off by {difference} in {case:?}"
            );
        }
        // Results of at most 1 differ by a rounding at most.
        let difference = max_difference::<Bf16, Bf16>(case, level, 2);
        assert!(difference < 8e-3, "bf16, {level:?}: off by {difference} in {case:?}");
    }
}

fn plain(rows: Vec<(usize, usize)>) -> Case {
    Case {
        num_kv_heads: 2,
        group: 3,
        head_dim: 64,
        block_size: 16,
        rows,
        num_shared: 0,
        sliding_window: None,
        soft_cap: None,
        sinks: false,
    }
}

#[test]
fn a_shared_prefix_is_read_once_and_joined() {
    let shared = |num_shared, rows| Case { num_shared, ..plain(rows) };
    check(&shared(20, vec![(1, 400); 5]));
    check(&shared(20, vec![(1, 330), (2, 340), (1, 900), (40, 700), (1, 321)]));
    check(&Case { sinks: true, head_dim: 32, group: 1, ..shared(100, vec![(1, 1700), (1, 1601)]) });
    check(&shared(9, vec![(1, 150); 70]));
}

#[test]
fn prefill_of_every_length_around_the_tiles() {
    for length in [1, 2, 15, 16, 17, 63, 64, 65, 130] {
        check(&plain(vec![(length, length)]));
        check(&plain(vec![(length, length + 100)]));
    }
}

#[test]
fn one_long_row_beside_many_short_ones() {
    let mut rows = vec![(1, 1500)];
    rows.extend(std::iter::repeat_n((1, 1), 31));
    rows.push((40, 700));
    check(&plain(rows));
}

#[test]
fn a_row_without_new_tokens_is_no_one_s_concern() {
    check(&plain(vec![(0, 5), (3, 9), (0, 0)]));
}

#[test]
fn a_long_decode_is_split_and_joined() {
    check(&plain(vec![(1, 5000)]));
    check(&Case { sinks: true, ..plain(vec![(1, 4097), (2, 3000)]) });
}

#[test]
fn few_queries_over_many_keys_are_computed_for_all_heads_together() {
    check(&plain(vec![(9, 1500)]));
    check(&plain(vec![(5, 1031), (7, 20)]));
    check(&Case { num_kv_heads: 3, group: 1, head_dim: 32, sinks: true, ..plain(vec![(23, 1203)]) });
    check(&Case { head_dim: 20, soft_cap: Some(9.0), ..plain(vec![(11, 1100)]) });
    check(&Case { sliding_window: Some(1100), block_size: 8, ..plain(vec![(6, 1400)]) });
}

/// The first token sees a value of 0 alone, and those after it must not leave even a rounding: norms may blow that up.
fn check_that_nothing_masked_is_left<T: Element>(level: Level) {
    const LENGTH: usize = 80;
    let heads = Heads { num_heads: 2, num_kv_heads: 1, head_dim: 64 };
    let narrow = |numbers: Vec<f32>| numbers.into_iter().map(T::narrow).collect::<Vec<_>>();
    let query = narrow((0..LENGTH * 2 * 64).map(noise).collect());
    let keys = narrow((0..LENGTH * 64).map(|i| noise(i + 1)).collect());
    let values = narrow((0..LENGTH * 64).map(|i| if i < 64 { 0.0 } else { 1.0 }).collect());
    let batch = Batch::new(&[0], &[0, LENGTH as i32], &[LENGTH as i32], LENGTH, 1).expect("valid");
    let call = PagedAttention {
        heads,
        query: &query,
        query_stride: 2 * 64,
        key_cache: &keys,
        value_cache: &values,
        scale: 0.125,
        sliding_window: None,
        soft_cap: None,
        sinks: None,
    };
    let mut output = vec![T::narrow(f32::NAN); query.len()];
    let pool = Pool::new(1).expect("threads");
    let plan = Plan::new(&batch, heads, None, 1);
    paged_attention(&call, &batch, &plan, &mut output, &pool, level).expect("valid");
    let first: Vec<f32> = output[..2 * 64].iter().map(|element| element.widen()).collect();
    assert!(first.iter().all(|&element| element == 0.0), "{level:?}: {first:?}");
}

#[test]
fn masked_tokens_leave_nothing() {
    for level in Level::available() {
        check_that_nothing_masked_is_left::<f32>(level);
        check_that_nothing_masked_is_left::<Bf16>(level);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn twins_agree(
        num_kv_heads in 1..4usize,
        group in 1..5usize,
        head_dim in prop::sample::select(vec![8usize, 20, 32, 64, 80, 128]),
        block_size in prop::sample::select(vec![1usize, 8, 16, 32]),
        rows in prop::collection::vec((0..40usize, 0..300usize).prop_map(|(new, cached)| (new, new + cached)), 1..5),
        num_shared in 0..30usize,
        sliding_window in prop::option::of(1..90usize),
        soft_cap in prop::option::of(5.0..30.0f32),
        sinks: bool,
    ) {
        check(&Case { num_kv_heads, group, head_dim, block_size, rows, num_shared, sliding_window, soft_cap, sinks });
    }
}

#[test]
fn slices_that_do_not_fit_are_refused() {
    let refuse = |tables: &[i32], context: i32| {
        Batch::new(tables, &[0, 1], &[context], 2, 2).expect_err("must be refused")
    };
    assert_eq!(refuse(&[0, 2], 3), ShapeError::Block { row: 0, block: 2, num_blocks: 2 });
    assert_eq!(refuse(&[0, -1], 3), ShapeError::Block { row: 0, block: -1, num_blocks: 2 });
    assert_eq!(
        refuse(&[0, 1], 5),
        ShapeError::Row { row: 0, query_length: 1, context_length: 5, capacity: 4 }
    );
    let batch = Batch::new(&[0, 1], &[0, 1], &[3], 2, 2).expect("valid");
    let heads = Heads { num_heads: 2, num_kv_heads: 1, head_dim: 4 };
    let (query, cache) = ([0.0f32; 8], [0.0f32; 16]);
    let call = PagedAttention {
        heads,
        query: &query,
        query_stride: 8,
        key_cache: &cache,
        value_cache: &cache,
        scale: 1.0,
        sliding_window: None,
        soft_cap: None,
        sinks: None,
    };
    let run = |call: PagedAttention<'_, f32, f32>| paged_attention_naive(&call, &batch, &mut [0.0; 8]);
    assert_eq!(
        run(PagedAttention { query: &query[..4], ..call }),
        Err(ShapeError::Length { name: "query", expected: 8, found: 4 })
    );
    assert!(matches!(
        run(PagedAttention { value_cache: &cache[1..], ..call }),
        Err(ShapeError::Length { name: "value_cache", .. })
    ));
    let heads = Heads { num_heads: 2, num_kv_heads: 3, head_dim: 4 };
    assert!(matches!(run(PagedAttention { heads, ..call }), Err(ShapeError::Heads { .. })));
    assert!(run(call).is_ok());
}
