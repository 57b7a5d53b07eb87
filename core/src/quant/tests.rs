use super::*;
use proptest::{prelude::*, strategy::ValueTree};

const METHODS: [Method; 2] = [Method::Nearest, Method::Search];

/// Types of 32 elements, for which ggml has a reference.
const SMALL: [DType; 5] = [
    DType::Q8_0,
    DType::Q4_0,
    DType::Q4_1,
    DType::Q5_0,
    DType::Q5_1,
];
const SUPER: [DType; 3] = [DType::Q4K, DType::Q5K, DType::Q6K];

fn row(dtype: DType, values: &[f32], importance: Option<&[f32]>, method: Method) -> Vec<u8> {
    let mut out = Vec::new();
    quantize_row(dtype, values, importance, method, &mut out);
    out
}

/// `Σ w (x - x̂)²`
fn weighted_error(x: &[f32], y: &[f32], w: &[f32]) -> f64 {
    let square = |((x, y), w): ((&f32, &f32), &f32)| f64::from(*w) * f64::from(x - y).powi(2);
    x.iter().zip(y).zip(w).map(square).sum()
}

/// ggml's own results: see `core/tests/fixtures/quant/make.py`.
fn fixture(name: &str) -> Vec<u8> {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/quant");
    std::fs::read(format!("{dir}/{name}")).expect("the fixture is in the repository")
}

fn fixture_values(name: &str) -> Vec<f32> {
    let bytes = fixture(name);
    bytes
        .as_chunks()
        .0
        .iter()
        .map(|b| f32::from_le_bytes(*b))
        .collect()
}

#[test]
fn blocks_hold_what_ggml_reads_from_them() {
    for dtype in SMALL.into_iter().chain(SUPER) {
        let name = dtype.name().to_lowercase();
        let values = dequantized(dtype, &fixture(&format!("{name}.blocks")));
        let expected = fixture_values(&format!("{name}.values"));
        let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&values), bits(&expected), "{dtype}");
    }
}

#[test]
fn nearest_is_ggmls_reference() {
    let x = fixture_values("input.values");
    for dtype in SMALL {
        let blocks = fixture(&format!("{}.blocks", dtype.name().to_lowercase()));
        let bytes = row(dtype, &x, None, Method::Nearest);
        assert_eq!(bytes[..], blocks[..bytes.len()], "{dtype}");
    }
}

#[test]
fn the_search_is_better_than_ggmls_reference() {
    let x = fixture_values("input.values");
    for dtype in SMALL.into_iter().chain(SUPER) {
        let theirs = &fixture_values(&format!("{}.values", dtype.name().to_lowercase()))[..256];
        let ours = dequantized(dtype, &row(dtype, &x, None, Method::Search));
        let w = weights(&x, None);
        let (theirs, ours) = (
            weighted_error(&x, theirs, &w),
            weighted_error(&x, &ours, &w),
        );
        // ggml searches too where it writes K types, under weights of its own.
        let part = if SUPER.contains(&dtype) { 1.0 } else { 0.95 };
        assert!(ours < part * theirs, "{dtype}: {ours} against {theirs}");
    }
}

/// The smallest error of any scale, by trying ten thousand.
#[test]
fn the_search_is_near_the_optimum() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let block = proptest::collection::vec(-1.0_f32..1.0, 32);
    for _ in 0..20 {
        let x = block
            .new_tree(&mut runner)
            .expect("a strategy of ours")
            .current();
        let w = weights(&x, None);
        let best = (1..10_000)
            .flat_map(|i| [1.0, -1.0].map(|sign| sign * i as f32 * 2e-5))
            .map(|d| {
                let error = |x: f32| x - d * (x / d).round().clamp(-8.0, 7.0);
                let rest: Vec<f32> = x.iter().map(|x| error(*x)).collect();
                weighted_error(&rest, &[0.0; 32], &w)
            })
            .fold(f64::INFINITY, f64::min);
        let y = dequantized(DType::Q4_0, &row(DType::Q4_0, &x, None, Method::Search));
        let ours = weighted_error(&x, &y, &w);
        assert!(ours < 1.02 * best, "{ours} against {best}");
    }
}

#[test]
fn a_column_of_importance_is_kept_exact() {
    // 31 columns that do not count, and one that does.
    let x: Vec<f32> = (0..256).map(|i| (i as f32 * 0.7).sin()).collect();
    let importance: Vec<f32> = (0..256)
        .map(|i| if i % 32 == 5 { 1.0 } else { 0.0 })
        .collect();
    for dtype in SMALL.into_iter().chain(SUPER) {
        let error = |importance: Option<&[f32]>| {
            let y = dequantized(dtype, &row(dtype, &x, importance, Method::Search));
            let mine = (5..256).step_by(32);
            mine.map(|i| f64::from(x[i] - y[i]).powi(2)).sum::<f64>()
        };
        let (with, without) = (error(Some(&importance)), error(None));
        assert!(with < 0.3 * without, "{dtype}: {with} against {without}");
    }
}

#[test]
fn importance_counts_by_ratio_and_not_by_size() {
    let x: Vec<f32> = (0..256).map(|i| (i as f32 * 0.7).sin()).collect();
    let importance: Vec<f32> = (0..256).map(|i| 1.0 + (i % 7) as f32).collect();
    let scaled: Vec<f32> = importance.iter().map(|w| w * 1024.0).collect();
    for dtype in SMALL.into_iter().chain(SUPER) {
        let search = |w: &[f32]| row(dtype, &x, Some(w), Method::Search);
        assert_eq!(search(&importance), search(&scaled), "{dtype}");
        assert_eq!(
            search(&[0.0; 256]),
            row(dtype, &x, None, Method::Search),
            "{dtype}: nothing counts is everything counts"
        );
    }
}

/// IEEE half precision by its definition: sign, 5 bits of exponent, 10 of mantissa.
fn f16_by_definition(bits: u16) -> f64 {
    let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
    let (exponent, mantissa) = (i32::from(bits >> 10 & 0x1f), f64::from(bits & 0x3ff));
    sign * match exponent {
        0 => mantissa * 2.0_f64.powi(-24),
        31 if mantissa == 0.0 => f64::INFINITY,
        31 => f64::NAN,
        _ => (1.0 + mantissa / 1024.0) * 2.0_f64.powi(exponent - 15),
    }
}

fn dequantized(dtype: DType, bytes: &[u8]) -> Vec<f32> {
    let mut out = vec![0.0; bytes.len() / dtype.block_bytes() * dtype.block_len()];
    dequantize(dtype, bytes, &mut out);
    out
}

fn quantized(dtype: DType, values: &[f32]) -> Vec<u8> {
    let mut out = Vec::new();
    quantize(dtype, values, &mut out);
    out
}

#[test]
fn all_f16_values_there_and_back() {
    for bits in 0..=u16::MAX {
        let value = dequantized(DType::F16, &bits.to_le_bytes())[0];
        let expected = f16_by_definition(bits);
        if expected.is_nan() {
            assert!(value.is_nan(), "{bits:#06x}");
            continue;
        }
        assert_eq!(
            f64::from(value).to_bits(),
            expected.to_bits(),
            "{bits:#06x}"
        );
        assert_eq!(
            quantized(DType::F16, &[value]),
            bits.to_le_bytes(),
            "{bits:#06x}"
        );
    }
}

#[test]
fn all_bf16_values_there_and_back() {
    for bits in 0..=u16::MAX {
        let value = dequantized(DType::BF16, &bits.to_le_bytes())[0];
        let expected = f32::from_bits(u32::from(bits) << 16);
        if expected.is_nan() {
            assert!(value.is_nan(), "{bits:#06x}");
            continue;
        }
        assert_eq!(value.to_bits(), expected.to_bits());
        assert_eq!(quantized(DType::BF16, &[value]), bits.to_le_bytes());
    }
}

#[test]
fn halves_round_to_even() {
    // 1 + 2^-11 lies between 0x3c00 and 0x3c01, 1 + 3 * 2^-11 between 0x3c01 and 0x3c02.
    let ulp = 2.0_f32.powi(-11);
    for (x, bits) in [
        (1.0 + ulp, 0x3c00_u16),
        (1.0 + 3.0 * ulp, 0x3c02),
        (65519.0, 0x7bff),
        (65520.0, 0x7c00),
        (1e-9, 0),
    ] {
        assert_eq!(quantized(DType::F16, &[x]), bits.to_le_bytes(), "{x}");
    }
    for (bits32, bits) in [
        (0x3f80_8000_u32, 0x3f80_u16),
        (0x3f81_8000, 0x3f82),
        (0x3f80_8001, 0x3f81),
        (0x7f7f_ffff, 0x7f80),
    ] {
        assert_eq!(
            quantized(DType::BF16, &[f32::from_bits(bits32)]),
            bits.to_le_bytes(),
            "{bits32:#x}"
        );
    }
}

#[test]
fn names_and_ids() {
    for dtype in DType::ALL {
        assert_eq!(DType::from_ggml(dtype as u32), Some(dtype));
        assert_eq!(DType::from_name(&dtype.name().to_lowercase()), Some(dtype));
        assert_eq!(ggml_type_name(dtype as u32), Some(dtype.name()));
    }
    assert_eq!(DType::from_ggml(16), None);
    assert_eq!(
        (ggml_type_name(16), ggml_type_name(99)),
        (Some("IQ2_XXS"), None)
    );
    assert_eq!(DType::from_name("q4_k"), Some(DType::Q4K));
    assert_eq!(DType::Q4_0.row_bytes(64), Some(36));
    assert_eq!(DType::Q4_0.row_bytes(33), None);
    assert_eq!(DType::F16.row_bytes(3), Some(6));
    assert_eq!(DType::F32.row_bytes(usize::MAX), None);
}

#[test]
fn a_q8_0_block_by_hand() {
    // amax 127 makes the scale exactly 1; halves go away from zero, as C's roundf does.
    let mut x = [0.0; 32];
    x[..6].copy_from_slice(&[127.0, -127.0, 0.5, -0.5, 2.5, -1.49]);
    let bytes = quantized(DType::Q8_0, &x);
    assert_eq!(bytes[..8], [0x00, 0x3c, 127, 0x81, 1, 0xff, 3, 0xff]);
    assert_eq!(
        dequantized(DType::Q8_0, &bytes)[..6],
        [127.0, -127.0, 1.0, -1.0, 3.0, -1.0]
    );
}

#[test]
fn a_q4_0_block_by_hand() {
    // The largest magnitude is 8, so d = 8 / -8 = -1 and q = x * -1 + 8.5, cut off and at most 15.
    let mut x = [0.0; 32];
    x[..4].copy_from_slice(&[8.0, -8.0, 3.0, -2.5]);
    x[16] = -7.4;
    let bytes = quantized(DType::Q4_0, &x);
    assert_eq!(bytes[..6], [0x00, 0xbc, 0xf0, 0x8f, 0x85, 0x8b]);
    let values = dequantized(DType::Q4_0, &bytes);
    assert_eq!(
        (values[..4].to_vec(), values[16]),
        (vec![8.0, -7.0, 3.0, -3.0], -7.0)
    );
}

#[test]
fn a_q4_1_block_by_hand() {
    // From -2 to 13: d = 1, m = -2 and q = x + 2, halves up.
    let mut x = [-2.0; 32];
    x[..4].copy_from_slice(&[13.0, 0.0, 0.49, 0.5]);
    x[16] = 12.0;
    let bytes = quantized(DType::Q4_1, &x);
    assert_eq!(bytes[..8], [0x00, 0x3c, 0x00, 0xc0, 0xef, 0x02, 0x02, 0x03]);
    let values = dequantized(DType::Q4_1, &bytes);
    assert_eq!(
        (values[..4].to_vec(), values[16]),
        (vec![13.0, 0.0, 0.0, 1.0], 12.0)
    );
}

#[test]
fn zeros_and_constants_stay() {
    for dtype in DType::ALL {
        for method in METHODS {
            assert_eq!(
                dequantized(dtype, &row(dtype, &[0.0; 512], None, method)),
                [0.0; 512],
                "{dtype} {method:?}"
            );
        }
    }
    let constant = row(DType::Q4_1, &[-3.0; 32], None, Method::Search);
    assert_eq!(dequantized(DType::Q4_1, &constant), [-3.0; 32]);
    assert_eq!(
        dequantized(DType::Q4_1, &quantized(DType::Q4_1, &[-3.0; 32])),
        [-3.0; 32]
    );
}

#[test]
fn values_that_are_no_numbers_do_not_panic() {
    for bad in [
        f32::NAN,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::MAX,
        f32::MIN_POSITIVE / 2.0,
    ] {
        for dtype in DType::ALL {
            for method in METHODS {
                let mut x = [1.0; 256];
                x[3] = bad;
                let importance = [bad; 256];
                let bytes = row(dtype, &x, Some(&importance), method);
                assert_eq!(bytes.len(), dtype.row_bytes(256).expect("whole blocks"));
            }
        }
    }
}

/// ggml's own test data and limits for the root mean square error of a quantisation: `tests/test-quantize-fns.cpp`,
/// `generate_data` and `MAX_QUANTIZATION_TOTAL_ERROR` (0.002), which is `sqrt(sum of squares) / n`.
#[test]
fn errors_stay_within_ggmls_limits() {
    let n = 32 * 128;
    let data: Vec<f32> = (0..n).map(|i| 0.1 + 2.0 * (i as f32).cos()).collect();
    // A uniform error has the step over sqrt(12): 2.1 / 127, 4 / 15 and 2.1 / 8 (and Q4_0 cuts one end off).
    for (dtype, limit) in [
        (DType::Q8_0, 0.005),
        (DType::Q6K, 0.02),
        (DType::Q5_1, 0.038),
        (DType::Q5K, 0.04),
        (DType::Q5_0, 0.042),
        (DType::Q4_1, 0.08),
        (DType::Q4K, 0.08),
        (DType::Q4_0, 0.085),
    ] {
        let squares = data
            .iter()
            .zip(dequantized(dtype, &quantized(dtype, &data)))
            .map(|(x, y)| f64::from(x - y).powi(2));
        let sum: f64 = squares.sum();
        assert!(
            sum.sqrt() / (n as f64) < 0.002,
            "{dtype}: {}",
            sum.sqrt() / n as f64
        );
        let rmse = (sum / n as f64).sqrt();
        assert!(rmse < limit, "{dtype}: {rmse}");
    }
}

/// The largest error that rounding to the block's grid and rounding the scale to f16 can make.
fn error_bound(dtype: DType, block: &[f32]) -> f32 {
    let amax = block.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
    let min = block.iter().copied().fold(f32::MAX, f32::min);
    let max = block.iter().copied().fold(f32::MIN, f32::max);
    // f16 keeps 11 bits, or steps of 2^-24 where it is subnormal.
    let f16_error = |x: f32| x.abs() * 2.0_f32.powi(-11) + 2.0_f32.powi(-25);
    match dtype {
        DType::Q8_0 => amax / 254.0 + 127.0 * f16_error(amax / 127.0),
        // The value opposite to the largest would need +8, and gets +7.
        DType::Q4_0 => amax / 8.0 + 8.0 * f16_error(amax / 8.0),
        DType::Q4_1 => (max - min) / 30.0 + 15.0 * f16_error((max - min) / 15.0) + f16_error(min),
        DType::Q5_0 => amax / 16.0 + 16.0 * f16_error(amax / 16.0),
        DType::Q5_1 => (max - min) / 62.0 + 31.0 * f16_error((max - min) / 31.0) + f16_error(min),
        _ => f16_error(amax) * 8.0,
    }
}

proptest! {
    #[test]
    fn errors_are_bounded_in_every_block(
        x in proptest::collection::vec(-1.0_f32..1.0, 64),
        magnitude in -8_i32..8,
    ) {
        let x: Vec<f32> = x.into_iter().map(|x| x * 4.0_f32.powi(magnitude)).collect();
        for dtype in DType::ALL.into_iter().filter(|dtype| dtype.block_len() <= 32) {
            let y = dequantized(dtype, &quantized(dtype, &x));
            for (block, values) in x.chunks(32).zip(y.chunks(32)) {
                let bound = error_bound(dtype, block) * 1.0001;
                for (x, y) in block.iter().zip(values) {
                    prop_assert!((x - y).abs() <= bound, "{}: {} became {}, more than {} off", dtype, x, y, bound);
                }
            }
        }
    }

    #[test]
    fn the_search_is_never_worse_than_nearest(
        x in proptest::collection::vec(-1.0_f32..1.0, 256),
        w in proptest::collection::vec(0.1_f32..4.0, 256),
        magnitude in -8_i32..8,
        offset in -1.0_f32..1.0,
    ) {
        let x: Vec<f32> = x.into_iter().map(|x| (x + offset) * 4.0_f32.powi(magnitude)).collect();
        for dtype in SMALL.into_iter().chain(SUPER) {
            let error = |method| {
                let y = dequantized(dtype, &row(dtype, &x, Some(&w), method));
                weighted_error(&x, &y, &weights(&x, Some(&w)))
            };
            let (search, nearest) = (error(Method::Search), error(Method::Nearest));
            // Sums in f32 decide between nearly equal candidates.
            prop_assert!(search <= nearest * 1.0001, "{}: {} against {}", dtype, search, nearest);
        }
    }

    /// Of any super-block the values lie between its extremes, and no error exceeds a step of the widest sub-block
    /// (a step of `Q6_K` is 1 / 32 of its extreme), the rounding of the sub-scales included.
    #[test]
    fn errors_are_bounded_in_every_super_block(
        x in proptest::collection::vec(-1.0_f32..1.0, 256),
        // Below, the scale of the scales has only few bits left: f16 is subnormal under 6e-5.
        magnitude in -2_i32..8,
    ) {
        let x: Vec<f32> = x.into_iter().map(|x| x * 4.0_f32.powi(magnitude)).collect();
        let amax = x.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
        for (dtype, part) in [(DType::Q4K, 0.14), (DType::Q5K, 0.075), (DType::Q6K, 0.04)] {
            for method in METHODS {
                let y = dequantized(dtype, &row(dtype, &x, None, method));
                let most = x.iter().zip(&y).fold(0.0_f32, |m, (x, y)| m.max((x - y).abs()));
                prop_assert!(most <= part * amax, "{} {:?}: {} of {}", dtype, method, most, amax);
            }
        }
    }

    #[test]
    fn blocks_are_read_where_they_lie(bytes in proptest::collection::vec(any::<u8>(), 1 + 34 * 3)) {
        // From an odd address on, so that an assumption of alignment would show.
        let blocks = blocks::<BlockQ8_0>(&bytes[1..]);
        prop_assert_eq!(blocks.len(), 3);
        prop_assert_eq!(blocks[2].qs[31], bytes[34 * 3] as i8);
        prop_assert_eq!(blocks[1].d, [bytes[35], bytes[36]]);
    }
}
