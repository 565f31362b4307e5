//! The fast twin against the naive one, on every instruction set that the machine has.

use anaphora_kernels::{
    Pool,
    linear::{Floats, FloatsMut, Format, Linear, LinearError, PackError, Weight, linear, linear_naive},
    simd::Level,
};
use half::{bf16, f16};
use proptest::prelude::*;

/// GGUF's numbers of block types, columns and bytes of a block, and where its halves stand.
const BLOCK_TYPES: [(u32, usize, usize, &[usize]); 5] = [
    (2, 32, 18, &[0]),
    (3, 32, 20, &[0, 2]),
    (8, 32, 34, &[0]),
    (12, 256, 144, &[0, 2]),
    (14, 256, 210, &[208]),
];

/// What one stretch of rows is packed from.
#[derive(Clone, Copy, Debug)]
enum From {
    Floats(Format),
    Blocks(usize),
}

/// A deterministic stand-in for randomness, in -1..1.
fn noise(seed: usize) -> f32 {
    let mixed =
        (seed as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(31).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    (mixed >> 40) as f32 / (1u64 << 23) as f32 - 1.0
}

fn floats(len: usize, seed: usize) -> Vec<f32> {
    (0..len).map(|index| noise(index + seed)).collect()
}

fn to_bf16(values: &[f32]) -> Vec<u16> {
    values.iter().map(|&value| bf16::from_f32(value).to_bits()).collect()
}

/// Any bytes are quants; scales must be of a reasonable size.
fn blocks(kind: usize, num_blocks: usize) -> Vec<u8> {
    let (_, _, size, halves) = BLOCK_TYPES[kind];
    let mut bytes: Vec<u8> = (0..num_blocks * size).map(|index| (noise(index) * 128.0) as i8 as u8).collect();
    for (index, block) in bytes.chunks_exact_mut(size).enumerate() {
        for &at in halves {
            block[at..at + 2].copy_from_slice(&f16::from_f32(noise(index + at) * 0.01).to_le_bytes());
        }
    }
    bytes
}

fn weight(parts: &[(From, usize)], columns: usize) -> Weight {
    let rows = parts.iter().map(|part| part.1).sum();
    let (mut weight, pool) = (Weight::new(rows, columns), Pool::new(2).expect("threads"));
    let mut start = rows;
    for &(from, rows) in parts.iter().rev() {
        start -= rows;
        match from {
            From::Floats(format) => {
                let values = floats(rows * columns, start);
                weight.pack_floats(start, Floats::F32(&values), format, &pool).expect("rows of the weight");
            }
            From::Blocks(kind) => {
                let bytes = blocks(kind, rows * columns / BLOCK_TYPES[kind].1);
                weight.pack_blocks(start, &bytes, BLOCK_TYPES[kind].0, &pool).expect("rows of the weight");
            }
        }
    }
    assert!(weight.is_whole());
    weight
}

/// Largest difference of the twins, in proportion to the largest result.
fn difference(
    weight: &Weight,
    num_rows: usize,
    (is_half, has_bias): (bool, bool),
    level: Level,
    pool: &Pool,
) -> f32 {
    let (x, bias) = (floats(num_rows * weight.columns(), 5), floats(weight.rows(), 17));
    let halves = to_bf16(&x);
    let x = if is_half { Floats::Bf16(&halves) } else { Floats::F32(&x) };
    let call = Linear { x, weight, bias: has_bias.then_some(Floats::F32(&bias)) };
    let (mut got, mut want) = (vec![f32::NAN; num_rows * weight.rows()], vec![0.0; num_rows * weight.rows()]);
    linear(&call, &mut FloatsMut::F32(&mut got), pool, level).expect("valid");
    linear_naive(&call, &mut FloatsMut::F32(&mut want)).expect("valid");
    let largest = want.iter().fold(0.0f32, |a, b| a.max(b.abs())).max(1e-3);
    got.iter().zip(&want).map(|(got, want)| (got - want).abs()).fold(0.0f32, |a, b| {
        if b >= a {
            b
        } else if b.is_nan() {
            f32::NAN
        } else {
            a
        }
    }) / largest
}

/// The naive twin rounds activations to bytes where weights are quantised; many rows on matrix tiles stay bf16, and the
/// weights become it.
fn tolerance(weight: &Weight, num_rows: usize, level: Level, is_half: bool) -> f32 {
    let is_quantised = |format: &Format| !matches!(format, Format::F32 | Format::Bf16 | Format::Int16);
    let on_tiles = level == Level::Amx && is_half && num_rows >= 16 && weight.columns().is_multiple_of(32);
    if on_tiles && weight.formats().iter().any(is_quantised) { 3e-2 } else { 2e-5 }
}

fn part() -> impl Strategy<Value = (From, usize)> {
    let from = prop_oneof![
        prop_oneof![Just(Format::F32), Just(Format::Bf16), Just(Format::Int16), Just(Format::Q8)]
            .prop_map(From::Floats),
        (0..3usize).prop_map(From::Blocks),
    ];
    (from, 1..70usize)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn twins_agree(
        parts in prop::collection::vec(part(), 1..4),
        blocks in 1..6usize,
        num_rows in 0..70usize,
        is_half: bool,
        has_bias: bool,
        num_threads in 1..4usize,
    ) {
        let (weight, pool) = (weight(&parts, blocks * 32), Pool::new(num_threads).expect("threads"));
        for level in Level::available() {
            let difference = difference(&weight, num_rows, (is_half, has_bias), level, &pool);
            prop_assert!(difference < tolerance(&weight, num_rows, level, is_half), "{level:?}: {difference}");
        }
    }

    #[test]
    fn columns_need_not_be_whole_blocks(columns in 1..100usize, num_rows in 1..20usize, is_half: bool) {
        for format in [Format::F32, Format::Bf16, Format::Int16, Format::Q8] {
            let (weight, pool) = (weight(&[(From::Floats(format), 20)], columns), Pool::new(1).expect("threads"));
            for level in Level::available() {
                let difference = difference(&weight, num_rows, (is_half, false), level, &pool);
                prop_assert!(difference < tolerance(&weight, num_rows, level, is_half), "{format:?} {level:?}: {difference}");
            }
        }
    }
}

#[test]
fn twins_agree_on_blocks_of_256() {
    let weight = weight(&[(From::Blocks(3), 33), (From::Blocks(4), 20), (From::Blocks(3), 16)], 512);
    assert_eq!(weight.formats(), [Format::Q4Min, Format::Q6]);
    let pool = Pool::new(2).expect("threads");
    for level in Level::available() {
        for (num_rows, is_half) in [(1, false), (2, true), (7, false), (13, true), (37, false), (37, true)] {
            let difference = difference(&weight, num_rows, (is_half, true), level, &pool);
            assert!(
                difference < tolerance(&weight, num_rows, level, is_half),
                "{level:?}, {num_rows} rows: {difference}"
            );
        }
    }
}

#[test]
fn a_row_s_result_does_not_depend_on_the_rows_beside_it() {
    let formats = [Format::F32, Format::Bf16, Format::Int16, Format::Q8];
    let parts = formats.map(|format| (From::Floats(format), 100));
    let weight = weight(&parts, 576);
    let x = floats(700 * 576, 3);
    let halves = to_bf16(&x);
    let pool = Pool::new(2).expect("threads");
    for (level, is_half) in Level::available().into_iter().flat_map(|level| [(level, false), (level, true)]) {
        let compute = |first: usize, len: usize| {
            let mut out = vec![f32::NAN; len * 400];
            let range = first * 576..(first + len) * 576;
            let x = if is_half { Floats::Bf16(&halves[range]) } else { Floats::F32(&x[range]) };
            let call = Linear { x, weight: &weight, bias: None };
            linear(&call, &mut FloatsMut::F32(&mut out), &pool, level).expect("valid");
            out
        };
        let all = compute(0, 700);
        for (first, len) in [(0, 1), (1, 2), (5, 3), (11, 4), (16, 7), (40, 12), (60, 33), (699, 1)] {
            // The last hundred are quantised: on matrix tiles many rows are multiplied in another form than few.
            let num_same = if level == Level::Amx && is_half { 300 } else { 400 };
            for (row, some) in compute(first, len).chunks_exact(400).enumerate() {
                let among_all = &all[(first + row) * 400..];
                assert!(
                    some[..num_same] == among_all[..num_same],
                    "{level:?}: row {row} of {len} from {first} on"
                );
            }
        }
    }
}

#[test]
fn many_rows_on_matrix_tiles_are_as_exact_as_bf16() {
    let parts = [From::Blocks(0), From::Blocks(1), From::Blocks(2), From::Blocks(3), From::Blocks(4)];
    let weight = weight(&parts.map(|from| (from, 20)), 512);
    let (num_rows, columns) = (40, weight.columns());
    let (halves, pool) = (to_bf16(&floats(num_rows * columns, 8)), Pool::new(2).expect("threads"));
    let mut rows = vec![0.0; weight.rows() * columns];
    let indices: Vec<i64> = (0..weight.rows() as i64).collect();
    weight.unpack_rows(&indices, &mut FloatsMut::F32(&mut rows)).expect("rows that are there");
    let call = Linear { x: Floats::Bf16(&halves), weight: &weight, bias: None };
    for level in Level::available().into_iter().filter(|level| *level == Level::Amx) {
        let mut out = vec![f32::NAN; num_rows * weight.rows()];
        linear(&call, &mut FloatsMut::F32(&mut out), &pool, level).expect("valid");
        for (index, &got) in out.iter().enumerate() {
            let x = &halves[index / weight.rows() * columns..][..columns];
            let w = &rows[index % weight.rows() * columns..][..columns];
            let terms = x.iter().zip(w).map(|(&x, &w)| f64::from(bf16::from_bits(x).to_f32()) * f64::from(w));
            let (want, size) = terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()));
            assert!(
                (f64::from(got) - want).abs() <= size / 256.0,
                "{level:?}, {index}: {got}, expected {want}"
            );
        }
    }
}

#[test]
fn byte_products_are_the_same_on_every_instruction_set_that_has_them() {
    let weight = weight(
        &[(From::Blocks(0), 40), (From::Blocks(1), 33), (From::Blocks(2), 16), (From::Floats(Format::Q8), 9)],
        256,
    );
    let (x, pool) = (floats(53 * 256, 4), Pool::new(2).expect("threads"));
    let results = Level::available().into_iter().filter(|level| *level >= Level::Avx2).map(|level| {
        let mut out = vec![f32::NAN; 53 * weight.rows()];
        let call = Linear { x: Floats::F32(&x), weight: &weight, bias: None };
        linear(&call, &mut FloatsMut::F32(&mut out), &pool, level).expect("valid");
        (level, out)
    });
    let results: Vec<_> = results.collect();
    for pair in results.windows(2) {
        assert!(pair[0].1 == pair[1].1, "{:?} and {:?} differ", pair[0].0, pair[1].0);
    }
}

#[test]
fn bf16_in_and_out_is_the_same_rounded() {
    let weight = weight(&[(From::Floats(Format::Bf16), 35)], 64);
    let (x, bias) = (to_bf16(&floats(5 * 64, 1)), to_bf16(&floats(35, 2)));
    let call = Linear { x: Floats::Bf16(&x), weight: &weight, bias: Some(Floats::Bf16(&bias)) };
    let pool = Pool::new(1).expect("threads");
    for level in Level::available() {
        let (mut single, mut half) = (vec![0.0; 5 * 35], vec![0; 5 * 35]);
        linear(&call, &mut FloatsMut::F32(&mut single), &pool, level).expect("valid");
        linear(&call, &mut FloatsMut::Bf16(&mut half), &pool, level).expect("valid");
        assert_eq!(half, to_bf16(&single));
    }
}

#[test]
fn rows_unpack_to_what_was_packed() {
    let (values, pool) = (floats(40 * 48, 9), Pool::new(2).expect("threads"));
    let mut out = vec![0.0; 48];
    for (format, tolerance) in [
        (Format::F32, 0.0),
        (Format::Bf16, 1.0 / 256.0),
        (Format::Int16, 8.0 / 65_000.0), // 48 values are at most 7 long
        (Format::Q8, 0.6 / 127.0),
    ] {
        let mut weight = Weight::new(50, 48);
        weight.pack_floats(10, Floats::F32(&values), format, &pool).expect("rows of the weight");
        for (row, want) in values.chunks_exact(48).enumerate() {
            weight
                .unpack_rows(&[10 + row as i64], &mut FloatsMut::F32(&mut out))
                .expect("a row that is there");
            assert!(
                out.iter().zip(want).all(|(got, want)| (got - want).abs() <= tolerance),
                "{format:?} {row}"
            );
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let (mut weight, pool) = (Weight::new(32, 64), Pool::new(1).expect("threads"));
    let values = vec![0.0; 32 * 64];
    let rows = PackError::Rows { start: 1, end: 33, rows: 32 };
    assert_eq!(weight.pack_floats(1, Floats::F32(&values), Format::F32, &pool), Err(rows));
    assert_eq!(
        weight.pack_floats(0, Floats::F32(&values[1..]), Format::F32, &pool),
        Err(PackError::Length { found: 2047, columns: 64 })
    );
    assert_eq!(
        weight.pack_floats(0, Floats::F32(&values), Format::Q4, &pool),
        Err(PackError::Format(Format::Q4))
    );
    assert_eq!(
        weight.pack_blocks(0, &[0; 144], 12, &pool),
        Err(PackError::Columns { columns: 64, block: 256 })
    );
    assert_eq!(weight.pack_blocks(0, &[], 6, &pool), Err(PackError::Type(6)));
    let mut out = vec![0.0; 32];
    let mut run = |weight: &Weight, x: &[f32]| {
        let call = Linear { x: Floats::F32(x), weight, bias: None };
        linear(&call, &mut FloatsMut::F32(&mut out), &pool, Level::best())
    };
    assert_eq!(run(&weight, &values[..64]), Err(LinearError::NotWhole { packed: 0, rows: 32 }));
    weight.pack_floats(0, Floats::F32(&values), Format::F32, &pool).expect("rows of the weight");
    weight.pack_floats(0, Floats::F32(&values[..1024]), Format::F32, &pool).expect("rows of the weight");
    assert_eq!(weight.packed_rows(), 16, "rows that are packed again replace those that they overlap");
    weight.pack_floats(0, Floats::F32(&values), Format::Bf16, &pool).expect("rows of the weight");
    assert_eq!(run(&weight, &values[..65]), Err(LinearError::Length { name: "x", expected: 64, found: 65 }));
    assert_eq!(run(&weight, &values[..64]), Ok(()));
}
