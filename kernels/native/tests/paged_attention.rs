//! The fast twin against the naive one, on every instruction set that the machine has.

use anaphora_kernels::{
    Pool,
    paged_attention::{PagedAttention, Shape, ShapeError, paged_attention, paged_attention_naive},
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

/// Runs both twins and returns the largest difference; unused cache is NaN.
fn max_difference(case: &Case, level: Level, num_threads: usize) -> f32 {
    let Case { num_kv_heads, group, head_dim, block_size, ref rows, .. } = *case;
    let max_blocks = rows.iter().map(|row| row.1.div_ceil(block_size)).max().unwrap_or(0) + 1;
    let num_blocks = rows.iter().map(|row| row.1.div_ceil(block_size)).sum::<usize>() + 2;
    let element_count = num_blocks * block_size * num_kv_heads * head_dim;
    let (mut keys, mut values) = (vec![f32::NAN; element_count], vec![f32::NAN; element_count]);
    let mut tables = vec![-1i32; rows.len() * max_blocks];
    let mut next_block = num_blocks - 1; // handed out from the top, so that tables are not the identity
    let (mut starts, mut contexts) = (vec![0i32], Vec::new());
    for (row, &(new, context)) in rows.iter().enumerate() {
        for position in 0..context {
            if position % block_size == 0 {
                tables[row * max_blocks + position / block_size] = next_block as i32;
                next_block -= 1;
            }
            let block = tables[row * max_blocks + position / block_size] as usize;
            let width = num_kv_heads * head_dim;
            let at = (block * block_size + position % block_size) * width;
            for element in 0..width {
                keys[at + element] = noise(at + element) * 2.0;
                values[at + element] = noise(at + element + 7_777_777);
            }
        }
        starts.push(starts[row] + new as i32);
        contexts.push(context as i32);
    }
    let num_heads = num_kv_heads * group;
    let query: Vec<f32> =
        (0..starts[rows.len()] as usize * num_heads * head_dim).map(|i| noise(i + 99) * 2.0).collect();
    let sinks: Vec<f32> = (0..num_heads).map(|head| noise(head) * 3.0).collect();
    let call = PagedAttention {
        shape: Shape { num_heads, num_kv_heads, head_dim, block_size, max_blocks },
        query: &query,
        key_cache: &keys,
        value_cache: &values,
        block_tables: &tables,
        query_starts: &starts,
        context_lengths: &contexts,
        scale: (head_dim as f32).powf(-0.5),
        sliding_window: case.sliding_window,
        soft_cap: case.soft_cap,
        sinks: case.sinks.then_some(&sinks),
    };
    let (mut got, mut want) = (vec![f32::NAN; query.len()], vec![f32::NAN; query.len()]);
    paged_attention(&call, &mut got, &Pool::new(num_threads).expect("threads"), level).expect("valid");
    paged_attention_naive(&call, &mut want).expect("valid");
    got.iter()
        .zip(&want)
        .map(|(got, want)| (got - want).abs())
        .fold(0.0, |a, b| if b > a || b.is_nan() { b } else { a })
}

fn check(case: &Case) {
    for level in Level::available() {
        for num_threads in [1, 3] {
            let difference = max_difference(case, level, num_threads);
            assert!(difference < 2e-5, "{level:?}, {num_threads} threads: off by {difference} in {case:?}");
        }
    }
}

fn plain(rows: Vec<(usize, usize)>) -> Case {
    Case {
        num_kv_heads: 2,
        group: 3,
        head_dim: 64,
        block_size: 16,
        rows,
        sliding_window: None,
        soft_cap: None,
        sinks: false,
    }
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn twins_agree(
        num_kv_heads in 1..4usize,
        group in 1..5usize,
        head_dim in prop::sample::select(vec![8usize, 20, 32, 64, 80, 128]),
        block_size in prop::sample::select(vec![1usize, 8, 16, 32]),
        rows in prop::collection::vec((0..40usize, 0..150usize).prop_map(|(new, cached)| (new, new + cached)), 1..5),
        sliding_window in prop::option::of(1..90usize),
        soft_cap in prop::option::of(5.0..30.0f32),
        sinks: bool,
    ) {
        check(&Case { num_kv_heads, group, head_dim, block_size, rows, sliding_window, soft_cap, sinks });
    }
}

#[test]
fn slices_that_do_not_fit_are_refused() {
    let shape = Shape { num_heads: 2, num_kv_heads: 1, head_dim: 4, block_size: 2, max_blocks: 2 };
    let (query, cache) = ([0.0; 8], [0.0; 16]);
    let call = PagedAttention {
        shape,
        query: &query,
        key_cache: &cache,
        value_cache: &cache,
        block_tables: &[0, 1],
        query_starts: &[0, 1],
        context_lengths: &[3],
        scale: 1.0,
        sliding_window: None,
        soft_cap: None,
        sinks: None,
    };
    let refuse =
        |call: PagedAttention<'_>| paged_attention_naive(&call, &mut [0.0; 8]).expect_err("must be refused");
    assert_eq!(
        refuse(PagedAttention { block_tables: &[0, 2], ..call }),
        ShapeError::Block { row: 0, block: 2, num_blocks: 2 }
    );
    assert_eq!(
        refuse(PagedAttention { context_lengths: &[5], ..call }),
        ShapeError::Row { row: 0, query_length: 1, context_length: 5, capacity: 4 }
    );
    assert!(matches!(
        refuse(PagedAttention { query: &query[..4], ..call }),
        ShapeError::Length { name: "query", .. }
    ));
    assert!(paged_attention_naive(&call, &mut [0.0; 8]).is_ok());
}
