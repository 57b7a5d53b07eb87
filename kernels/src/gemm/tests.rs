use super::*;

fn values(n: usize, seed: usize) -> Vec<f32> {
    let mut state = seed as u32 ^ 0x9E37_79B9;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

/// The definition in f64.
fn expected(
    m: usize,
    n: usize,
    k: usize,
    a: impl Fn(usize, usize) -> f32,
    b: impl Fn(usize, usize) -> f32,
) -> Vec<f64> {
    let sum = |i, j| {
        (0..k)
            .map(|p| f64::from(a(i, p)) * f64::from(b(p, j)))
            .sum()
    };
    (0..m * n).map(|idx| sum(idx / n, idx % n)).collect()
}

const SIZES: [[usize; 3]; 10] = [
    [1, 1, 1],
    [14, 32, 256],
    [15, 33, 257],
    [28, 16, 3],
    [7, 9, 600],
    [113, 47, 300],
    [8, 576, 1300],
    [3, 4100, 5],
    [300, 8, 64],
    [6, 17, 0],
];

#[test]
fn every_layout_is_the_product() {
    for [m, n, k] in SIZES {
        let (a, b, row) = (values(m * k, 1), values(k * n, 2), values(n, 3));
        let (at, bt): (Vec<_>, Vec<_>) = (
            (0..m * k).map(|idx| a[idx % m * k + idx / m]).collect(),
            (0..n * k)
                .map(|idx| b[idx % k.max(1) * n + idx / k.max(1)])
                .collect(),
        );
        let expected = expected(m, n, k, |i, p| a[i * k + p], |p, j| b[p * n + j]);
        let old = values(m * n, 4);
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            for (a, b) in [
                (Strided::rows(&a, k), Strided::columns(&b, n)),
                (Strided::columns(&at, m), Strided::rows(&bt, k)),
            ] {
                for start in [Start::Zero, Start::Add, Start::Row(&row)] {
                    let mut c = old.clone();
                    let how = How {
                        isa,
                        precision: Precision::F32,
                        parallel: true,
                    };
                    gemm_on(how, [m, n, k], &a, &b, start, (&mut c, n));
                    for (idx, (c, expected)) in c.iter().zip(&expected).enumerate() {
                        let from = match start {
                            Start::Zero => 0.0,
                            Start::Add => old[idx],
                            Start::Row(row) => row[idx % n],
                        };
                        // Rounding of k products of numbers below 1: at most k^2 / 2 halves of an ulp, in practice sqrt(k).
                        let tolerance = 1e-6 * (k as f64).sqrt() + 1e-6;
                        let difference = (f64::from(*c) - f64::from(from) - expected).abs();
                        assert!(
                            difference < tolerance,
                            "{isa:?} {m}x{n}x{k} at {idx}: {difference}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn instruction_sets_and_threads_do_not_change_a_bit() {
    for [m, n, k] in SIZES.into_iter().chain([[500, 200, 300]]) {
        let (a, b) = (values(m * k, 1), values(k * n, 2));
        let (a, b) = (Strided::rows(&a, k), Strided::columns(&b, n));
        let of = |isa, threads| {
            let mut c = vec![0.5; m * n];
            threads::set_threads(threads);
            let how = How {
                isa,
                precision: Precision::F32,
                parallel: threads > 1,
            };
            gemm_on(how, [m, n, k], &a, &b, Start::Add, (&mut c, n));
            c.into_iter().map(f32::to_bits).collect::<Vec<_>>()
        };
        let scalar = of(Isa::Scalar, 1);
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            for threads in [1, 3] {
                assert!(
                    of(isa, threads) == scalar,
                    "{isa:?}, {threads} threads, {m}x{n}x{k}"
                );
            }
        }
    }
}

#[test]
fn rows_of_c_may_be_apart() {
    let (a, b) = (values(5 * 7, 1), values(7 * 3, 2));
    let nine = 9.0_f32.to_bits();
    let mut close = vec![0.0; 5 * 3];
    // Two rows more than the product has.
    let mut apart = vec![9.0; 6 * 10 + 3];
    let (a, b) = (Strided::rows(&a, 7), Strided::columns(&b, 3));
    gemm(5, 3, 7, &a, &b, Start::Zero, &mut close);
    gemm_serial([5, 3, 7], &a, &b, Start::Zero, &mut apart, 10);
    for row in 0..5 {
        assert_eq!(apart[row * 10..][..3], close[row * 3..][..3]);
        assert!(
            apart[row * 10..]
                .iter()
                .skip(3)
                .take(7)
                .all(|value| value.to_bits() == nine)
        );
    }
    assert!(apart[5 * 10..].iter().all(|value| value.to_bits() == nine));
}

/// The value as bf16 holds it, by rounding the f64 nearest: the definition, not the bits.
fn rounded(x: f32) -> f32 {
    if x == 0.0 {
        return x;
    }
    let unit = 2.0_f64.powi(x.abs().log2().floor() as i32 - 7);
    ((f64::from(x) / unit).round_ties_even() * unit) as f32
}

#[test]
fn bf16_multiplies_rounded_factors_on_every_instruction_set() {
    for [m, n, k] in SIZES.into_iter().chain([[90, 70, 1301], [456, 8, 576]]) {
        let (a, b, row) = (values(m * k, 1), values(k * n, 2), values(n, 3));
        let (at, bt): (Vec<_>, Vec<_>) = (
            (0..m * k).map(|idx| a[idx % m * k + idx / m]).collect(),
            (0..n * k)
                .map(|idx| b[idx % k.max(1) * n + idx / k.max(1)])
                .collect(),
        );
        let expected = expected(
            m,
            n,
            k,
            |i, p| rounded(a[i * k + p]),
            |p, j| rounded(b[p * n + j]),
        );
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            for (a, b) in [
                (Strided::rows(&a, k), Strided::columns(&b, n)),
                (Strided::columns(&at, m), Strided::rows(&bt, k)),
            ] {
                let how = How {
                    isa,
                    precision: Precision::Bf16,
                    parallel: true,
                };
                let mut c = vec![7.0; m * n];
                gemm_on(how, [m, n, k], &a, &b, Start::Row(&row), (&mut c, n));
                for (idx, (c, expected)) in c.iter().zip(&expected).enumerate() {
                    // As in f32: sums and products have that precision.
                    let tolerance = 1e-6 * (k as f64).sqrt() + 1e-6;
                    let difference = (f64::from(*c) - f64::from(row[idx % n]) - expected).abs();
                    assert!(
                        difference < tolerance,
                        "{isa:?} {m}x{n}x{k} at {idx}: {difference}"
                    );
                }
            }
        }
    }
}

#[test]
fn bf16_is_rounded_to_the_nearest_even() {
    for (x, bits) in [
        (1.0_f32, 0x3F80_u16),
        (1.0 + 2.0_f32.powi(-8), 0x3F80),
        (1.0 + 3.0 * 2.0_f32.powi(-8), 0x3F82),
        (-1.0 - 2.0_f32.powi(-8) - 2.0_f32.powi(-20), 0xBF81),
        (f32::MAX, 0x7F80),
        (f32::INFINITY, 0x7F80),
        (-0.0, 0x8000),
        (1e-40, 0),
    ] {
        assert_eq!(tile::bf16(x), bits, "{x}");
        let mut pair = [Pair(0)];
        tile::pairs(&[x], &[x], &mut pair);
        assert_eq!(pair[0].0, u32::from(bits) * 0x1_0001, "{x}");
    }
    assert!(f32::from_bits(u32::from(tile::bf16(f32::NAN)) << 16).is_nan());
}
