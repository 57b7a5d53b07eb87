//! Each function of each table against its scalar twin.

use crate::{
    cpu::{
        Isa,
        kernels::{ACTIVATION_MAX, Activations, BLOCK, Kernels, KvRows, QuantBlock, Scratch},
        scalar,
        weights::Matrix,
    },
    quant::{DType, quantize},
};
use fledgling_pool::Columns;
use half::{f16, slice::HalfFloatSliceExt};

/// The tables to test on this machine, without the oracle's own.
fn tables() -> Vec<&'static Kernels> {
    let others = Isa::ALL.into_iter().filter(|&isa| isa != Isa::Scalar);
    let tables: Vec<_> = others.filter_map(Kernels::for_isa).collect();
    let expects_one = cfg!(any(
        target_arch = "x86_64",
        target_arch = "aarch64",
        target_feature = "simd128"
    ));
    assert!(
        !tables.is_empty() || !expects_one,
        "machines that run these tests have AVX2, NEON or simd128"
    );
    tables
}

/// A generator that is the same everywhere (Steele, Lea and Flood, 2014).
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Between -1 and 1.
    fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    fn values(&mut self, n: usize, scale: f32) -> Vec<f32> {
        (0..n).map(|_| self.unit() * scale).collect()
    }

    /// Magnitudes from subnormal to huge, zeros of both signs among them.
    fn wild(&mut self, n: usize) -> Vec<f32> {
        let zeros = [0.0, -0.0, f32::from_bits(1), -f32::MIN_POSITIVE / 3.0];
        let value = |r: &mut Self| match r.next() % 8 {
            0 => zeros[r.next() as usize % zeros.len()],
            k => r.unit() * 10f32.powi(k as i32 * 3 - 12),
        };
        (0..n).map(|_| value(self)).collect()
    }
}

/// Bits, all NaN alike: which NaN comes out is not part of the definition.
fn bits(values: &[f32]) -> Vec<u32> {
    let canonical = |x: &f32| {
        if x.is_nan() {
            f32::NAN.to_bits()
        } else {
            x.to_bits()
        }
    };
    values.iter().map(canonical).collect()
}

fn matrix(dtype: DType, n_cols: usize, bytes: Vec<u8>) -> Matrix {
    let row_bytes = dtype.row_bytes(n_cols).unwrap();
    Matrix {
        name: "test".to_owned(),
        dtype,
        n_rows: bytes.len() / row_bytes,
        n_cols,
        row_bytes,
        bytes: bytes.into(),
    }
}

fn activations(n_cols: usize, x: Vec<f32>) -> Activations {
    let mut acts = Activations::default();
    acts.reshape(x.len() / n_cols, n_cols);
    acts.x = x;
    if n_cols.is_multiple_of(BLOCK) {
        scalar::quantize_row(&acts.x, &mut acts.blocks);
    }
    acts
}

fn matmul(table: &Kernels, w: &Matrix, x: &Activations) -> Vec<f32> {
    let mut out = vec![f32::NAN; x.n_rows * w.n_rows];
    let mut columns = Columns::all(&mut out, w.n_rows);
    (table.matmul)(w, 0..w.n_rows, x, &mut columns, &mut Scratch::default());
    out
}

fn check_matmul(w: &Matrix, x: &Activations) {
    let want = matmul(&scalar::KERNELS, w, x);
    for table in tables() {
        let got = matmul(table, w, x);
        let (dtype, n_rows) = (w.dtype, w.n_rows);
        assert_eq!(
            bits(&got),
            bits(&want),
            "{table:?} {dtype} ({n_rows}, {}) @ ({}, K)",
            w.n_cols,
            x.n_rows
        );
    }
}

#[test]
fn products_of_every_type_and_size_agree() {
    let mut rng = Rng(1);
    for dtype in DType::ALL {
        let widths: &[usize] = match dtype.block_len() {
            1 => &[1, 2, 7, 15, 16, 17, 31, 33, 64, 100, 576],
            32 => &[32, 64, 96, 576],
            _ => &[256, 768],
        };
        for &n_cols in widths {
            for n_rows in [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 24, 31] {
                for n_tokens in [1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 17] {
                    let mut bytes = Vec::new();
                    quantize(dtype, &rng.values(n_rows * n_cols, 0.3), &mut bytes);
                    let x = activations(n_cols, rng.values(n_tokens * n_cols, 4.0));
                    check_matmul(&matrix(dtype, n_cols, bytes), &x);
                }
            }
        }
    }
}

/// Many rows and tokens, none of them a multiple of a step of any instruction set.
#[test]
fn products_of_many_rows_and_tokens_agree() {
    let mut rng = Rng(12);
    for dtype in DType::ALL {
        let n_cols = dtype.block_len().max(96);
        for (n_rows, n_tokens) in [(1, 130), (33, 130), (47, 21), (50, 64), (100, 12)] {
            let mut bytes = Vec::new();
            quantize(dtype, &rng.values(n_rows * n_cols, 0.3), &mut bytes);
            let x = activations(n_cols, rng.values(n_tokens * n_cols, 4.0));
            check_matmul(&matrix(dtype, n_cols, bytes), &x);
        }
    }
}

/// Rows that are asked for by part, as threads do.
#[test]
fn parts_of_a_product_are_parts_of_the_whole() {
    let mut rng = Rng(13);
    for dtype in DType::ALL {
        let n_cols = dtype.block_len().max(64);
        let mut bytes = Vec::new();
        quantize(dtype, &rng.values(70 * n_cols, 0.3), &mut bytes);
        let w = matrix(dtype, n_cols, bytes);
        for n_tokens in [1, 3, 9] {
            let x = activations(n_cols, rng.values(n_tokens * n_cols, 4.0));
            let want = matmul(&scalar::KERNELS, &w, &x);
            for table in tables() {
                let mut got = vec![f32::NAN; want.len()];
                let mut columns = Columns::all(&mut got, w.n_rows);
                for rows in [0..16, 16..53, 53..54, 54..70] {
                    let mut part = columns.narrow(rows.clone());
                    (table.matmul)(&w, rows, &x, &mut part, &mut Scratch::default());
                }
                assert_eq!(bits(&got), bits(&want), "{table:?} {dtype} {n_tokens}");
            }
        }
    }
}

/// Every byte value in the integers, scales of both signs, zero and subnormal, against the largest activations.
#[test]
fn products_of_extreme_blocks_agree() {
    let mut rng = Rng(2);
    let scales = [1.0, -2.0, 0.0, 6e-8, 60000.0].map(f16::from_f32);
    let fills: [fn(&mut Rng) -> u8; 5] = [|_| 0x80, |_| 0x7f, |_| 0xff, |_| 0, |r| r.next() as u8];
    let signs: [fn(usize) -> f32; 3] = [|_| 1.0, |_| -1.0, |i| if i % 2 == 0 { 1.0 } else { -1.0 }];
    for (dtype, halves) in [
        (DType::Q8_0, &[0][..]),
        (DType::Q4_0, &[0]),
        (DType::Q4_1, &[0, 2]),
        (DType::Q5_0, &[0]),
        (DType::Q5_1, &[0, 2]),
        (DType::Q4K, &[0, 2]),
        (DType::Q5K, &[0, 2]),
        (DType::Q6K, &[208]),
    ] {
        let n_cols = 3 * dtype.block_len();
        for fill in fills {
            for sign in signs {
                for n_tokens in [1, 4, 5] {
                    let mut bytes: Vec<u8> = (0..17 * 3 * dtype.block_bytes())
                        .map(|_| fill(&mut rng))
                        .collect();
                    for block in bytes.chunks_exact_mut(dtype.block_bytes()) {
                        for at in halves {
                            let half = scales[rng.next() as usize % scales.len()];
                            block[*at..at + 2].copy_from_slice(&half.to_le_bytes());
                        }
                    }
                    let x = (0..n_tokens * n_cols).map(|i| sign(i) * 3.0).collect();
                    check_matmul(&matrix(dtype, n_cols, bytes), &activations(n_cols, x));
                }
            }
        }
    }
}

/// The definition of a product against the dequantised row, in f64, with activations as they were quantised.
#[test]
fn products_are_those_with_the_dequantised_rows() {
    let mut rng = Rng(11);
    for dtype in DType::ALL.into_iter().filter(|dtype| dtype.is_quantized()) {
        let n_cols = 512;
        let mut bytes = Vec::new();
        quantize(dtype, &rng.values(4 * n_cols, 0.3), &mut bytes);
        let w = matrix(dtype, n_cols, bytes);
        let x = activations(n_cols, rng.values(n_cols, 4.0));
        let quantized = x
            .blocks
            .iter()
            .flat_map(|b| b.q.map(|q| f64::from(q) * f64::from(b.scale)));
        let quantized: Vec<f64> = quantized.collect();
        let got = matmul(&scalar::KERNELS, &w, &x);
        for (r, got) in got.iter().enumerate() {
            let mut row = vec![0.0; n_cols];
            w.dequantize_row(r, &mut row);
            let terms = || row.iter().zip(&quantized).map(|(w, x)| f64::from(*w) * x);
            let (want, size) = (terms().sum::<f64>(), terms().map(f64::abs).sum::<f64>());
            assert!(
                (f64::from(*got) - want).abs() < 1e-6 * size,
                "{dtype}: {got} for {want}"
            );
        }
    }
}

#[test]
fn products_of_wild_floats_agree() {
    let mut rng = Rng(3);
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        for n_cols in [5, 16, 50] {
            let mut bytes = Vec::new();
            quantize(dtype, &rng.wild(9 * n_cols), &mut bytes);
            check_matmul(
                &matrix(dtype, n_cols, bytes),
                &activations(n_cols, rng.wild(5 * n_cols)),
            );
        }
    }
}

#[test]
fn weights_need_no_alignment() {
    let mut rng = Rng(4);
    for dtype in DType::ALL {
        let mut bytes = vec![0];
        quantize(dtype, &rng.values(16 * 256, 1.0), &mut bytes);
        let mut w = matrix(dtype, 256, bytes[1..].to_vec());
        w.bytes = bytes::Bytes::from(bytes).slice(1..);
        for n_tokens in [1, 6] {
            check_matmul(&w, &activations(256, rng.values(n_tokens * 256, 1.0)));
        }
    }
}

#[test]
fn quantised_activations_agree() {
    let mut rng = Rng(5);
    let mut rows: Vec<Vec<f32>> = (0..500).map(|_| rng.wild(64)).collect();
    rows.extend((0..500).map(|i| rng.values(96, 10f32.powi(i % 70 - 40))));
    for special in [
        f32::NAN,
        -f32::NAN,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::MAX,
        f32::from_bits(1),
        1e-7,
        0.0,
    ] {
        for i in [0, 15, 31] {
            let mut row = rng.values(32, 1.0);
            row[i] = special;
            rows.push(row);
        }
        rows.push(vec![special; 32]);
    }
    // Exact halves after scaling by 1: amax is the largest quantised value.
    rows.push(
        (0..32)
            .map(|i| {
                if i == 0 {
                    ACTIVATION_MAX
                } else {
                    i as f32 - 16.5
                }
            })
            .collect(),
    );
    for row in &rows {
        let quantized = |table: &Kernels| {
            let mut out = vec![
                QuantBlock {
                    q: [99; BLOCK],
                    scale: 99.0,
                    sum: 99
                };
                row.len() / BLOCK
            ];
            (table.quantize_row)(row, &mut out);
            out
        };
        let want = quantized(&scalar::KERNELS);
        for table in tables() {
            for (got, want) in quantized(table).iter().zip(&want) {
                assert_eq!((got.q, got.sum), (want.q, want.sum), "{table:?} {row:?}");
                assert_eq!(bits(&[got.scale]), bits(&[want.scale]), "{table:?} {row:?}");
            }
        }
    }
}

#[test]
fn a_nan_or_infinity_among_activations_is_not_lost() {
    for special in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut row = vec![1.0; 32];
        row[7] = special;
        let mut bytes = Vec::new();
        quantize(DType::Q8_0, &[0.5; 32], &mut bytes);
        let y = matmul(
            &scalar::KERNELS,
            &matrix(DType::Q8_0, 32, bytes),
            &activations(32, row),
        );
        assert!(!y[0].is_finite(), "{special} gave {}", y[0]);
    }
}

#[test]
fn norms_agree() {
    let mut rng = Rng(6);
    for n in (1..100).chain([576, 768]) {
        for scale in [1e-3, 1.0, 1e3] {
            let (x, w, b) = (rng.values(n, scale), rng.values(n, 2.0), rng.values(n, 1.0));
            let run = |table: &Kernels| {
                let (mut rms, mut layer) = (vec![0.0; n], vec![0.0; n]);
                (table.rms_norm)(&x, &w, 1e-5, &mut rms);
                (table.layer_norm)(&x, &w, &b, 1e-5, &mut layer);
                (bits(&rms), bits(&layer))
            };
            for table in tables() {
                assert_eq!(run(table), run(&scalar::KERNELS), "{table:?} n {n}");
            }
        }
    }
}

#[test]
fn activation_functions_agree() {
    let mut rng = Rng(7);
    let mut x = rng.wild(2000);
    x.extend((-1000..1000).map(|i| i as f32 * 0.1));
    x.extend([
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        -87.0,
        -87.1,
        87.0,
        88.0,
        88.1,
        f32::MAX,
        f32::MIN,
    ]);
    let up = rng.values(x.len(), 3.0);
    for n in (0..40).chain([x.len()]) {
        let (x, up) = (&x[x.len() - n..], &up[..n]);
        let run = |table: &Kernels| {
            let (mut silu, mut gelu) = (vec![0.0; n], vec![0.0; n]);
            (table.silu_mul)(x, up, &mut silu);
            (table.gelu)(x, &mut gelu);
            (bits(&silu), bits(&gelu))
        };
        for table in tables() {
            assert_eq!(run(table), run(&scalar::KERNELS), "{table:?} n {n}");
        }
    }
}

#[test]
fn rotations_and_sums_agree() {
    let mut rng = Rng(8);
    for n_pairs in [1, 2, 3, 4, 7, 8, 16, 32, 33] {
        let angles = rng.values(n_pairs, 3.0);
        let rotations: Vec<_> = angles.iter().map(|a| (a.cos(), a.sin())).collect();
        let (x, y) = (rng.wild(2 * n_pairs), rng.wild(2 * n_pairs));
        let run = |table: &Kernels| {
            let mut x = x.clone();
            (table.rope)(&mut x, &rotations);
            (table.rope_halves)(&mut x, &rotations);
            (table.add)(&mut x, &y);
            bits(&x)
        };
        for table in tables() {
            assert_eq!(
                run(table),
                run(&scalar::KERNELS),
                "{table:?} {n_pairs} pairs"
            );
        }
    }
}

#[test]
fn rotating_halves_is_rotating_neighbours_in_another_order() {
    let mut rng = Rng(8);
    for n_pairs in [1, 2, 7, 32] {
        let x = rng.values(2 * n_pairs, 3.0);
        let rotations: Vec<_> = (0..n_pairs)
            .map(|i| ((i as f32).cos(), (i as f32).sin()))
            .collect();
        let mut halves = x.clone();
        (scalar::KERNELS.rope_halves)(&mut halves, &rotations);
        let mut neighbours: Vec<f32> = (0..n_pairs).flat_map(|i| [x[i], x[i + n_pairs]]).collect();
        (scalar::KERNELS.rope)(&mut neighbours, &rotations);
        let reordered: Vec<f32> = (0..2 * n_pairs)
            .map(|i| neighbours[2 * (i % n_pairs) + i / n_pairs])
            .collect();
        assert_eq!(bits(&halves), bits(&reordered));
    }
}

#[test]
fn attention_agrees() {
    let mut rng = Rng(9);
    for d in [1, 3, 16, 20, 32, 64, 80, 96, 128, 130] {
        for n in (1..20).chain([31, 32, 33, 100]) {
            let n_head = 1 + n % 5;
            let q = rng.values(n_head * d, 3.0);
            let (k, v) = (rng.values(n * d, 2.0), rng.values(n * d, 2.0));
            let to_f16 = |x: &[f32]| {
                let mut out = vec![f16::ZERO; x.len()];
                out.convert_from_f32_slice(x);
                out
            };
            let (k16, v16) = (to_f16(&k), to_f16(&v));
            let run = |table: &Kernels| {
                let attend = |k, v| {
                    let (mut out, mut scores) = (vec![9.0; n_head * d], vec![9.0; n_head * n]);
                    (table.attend)(d, &q, k, v, &mut scores, &mut out);
                    (bits(&out), bits(&scores))
                };
                (
                    attend(KvRows::F32(&k), KvRows::F32(&v)),
                    attend(KvRows::F16(&k16), KvRows::F16(&v16)),
                )
            };
            for table in tables() {
                assert_eq!(
                    run(table),
                    run(&scalar::KERNELS),
                    "{table:?} D {d} n {n} heads {n_head}"
                );
            }
        }
    }
}
