//! Products with a matrix of few rows, such as those of a LoRA. Panels would cost more than the product: here the large
//! matrix is read once, where it lies. Always in f32.
//!
//! Sums have a fixed order: of [`dots`] sixteen chains along the row, then these in order; of [`outer`] one chain over the
//! rows. All by fused multiply-adds, so that instruction sets and threads do not change a bit.

use crate::{
    Isa,
    threads::{each_part, map, split, split_mut},
};

/// Chains of a sum along a row, and columns that are taken together.
const LANES: usize = 16;
/// Rows of the small matrix that are taken together.
const TOGETHER: usize = 8;
/// Rows of the large matrix that one task takes.
const ROWS: usize = 16;
/// Columns of the large matrix that one task takes.
const COLUMNS: usize = 2 * LANES;
/// Rows of the small matrix up to which these are faster than panels.
pub const MOST: usize = 32;

/// `x · bᵀ`: x [N, k], b [r, k] -> [N, r]
///
/// # Panics
/// When the sizes do not fit each other.
pub fn dots(x: &[f32], b: &[f32], k: usize) -> Vec<f32> {
    dots_on(Isa::best(), x, b, k)
}

fn dots_on(isa: Isa, x: &[f32], b: &[f32], k: usize) -> Vec<f32> {
    let (n, r) = (x.len() / k, b.len() / k);
    assert!(
        x.len() == n * k && b.len() == r * k && isa.is_available(),
        "whole rows"
    );
    let mut y = vec![0.0; n * r];
    if r == 0 {
        return y;
    }
    let parts = (split_mut(&mut y, ROWS * r), split(x, ROWS * k));
    each_part(parts, |_, (y, x)| {
        for (y, x) in y.chunks_exact_mut(r).zip(x.chunks_exact(k)) {
            for (y, b) in y.chunks_mut(TOGETHER).zip(b.chunks(TOGETHER * k)) {
                match isa {
                    #[cfg(target_arch = "x86_64")]
                    // SAFETY: the instructions are available; a full group has its rows.
                    Isa::Avx512 if y.len() == TOGETHER => unsafe { x86::dots(x, b, k, y) },
                    _ => plain_dots(x, b, k, y),
                }
            }
        }
    });
    y
}

/// The oracle of a row: sixteen chains for each of the small matrix, of the elements that are as many apart.
fn plain_dots(x: &[f32], b: &[f32], k: usize, y: &mut [f32]) {
    for (y, b) in y.iter_mut().zip(b.chunks_exact(k)) {
        let mut chains = [0.0_f32; LANES];
        for (x, b) in x.chunks(LANES).zip(b.chunks(LANES)) {
            for ((chain, x), b) in chains.iter_mut().zip(x).zip(b) {
                *chain = x.mul_add(*b, *chain);
            }
        }
        *y = chains.iter().sum();
    }
}

/// `dᵀ · x`: d [N, r], x [N, c] -> [r, c]
///
/// # Panics
/// When the sizes do not fit each other.
pub fn outer(d: &[f32], x: &[f32], n: usize) -> Vec<f32> {
    outer_on(Isa::best(), d, x, n)
}

fn outer_on(isa: Isa, d: &[f32], x: &[f32], n: usize) -> Vec<f32> {
    let (r, c) = (d.len() / n, x.len() / n);
    assert!(
        d.len() == n * r && x.len() == n * c && isa.is_available(),
        "whole rows"
    );
    let mut y = vec![0.0; r * c];
    if r == 0 || c == 0 {
        return y;
    }
    let strips = map(c.div_ceil(COLUMNS), |strip| {
        let first = strip * COLUMNS;
        let width = COLUMNS.min(c - first);
        let mut sums = vec![0.0; r * width];
        for (row, sums) in (0..r)
            .step_by(TOGETHER)
            .zip(sums.chunks_mut(TOGETHER * width))
        {
            let (d, x) = ((&d[row..], r), (&x[first..], c));
            match isa {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: the instructions are available; a full group has its rows and columns.
                Isa::Avx512 if sums.len() == TOGETHER * COLUMNS => unsafe {
                    x86::outer(d, x, n, sums);
                },
                _ => plain_outer(d, x, n, width, sums),
            }
        }
        sums
    });
    for (strip, sums) in strips.iter().enumerate() {
        let width = sums.len() / r;
        for (y, sums) in y.chunks_exact_mut(c).zip(sums.chunks_exact(width)) {
            y[strip * COLUMNS..][..width].copy_from_slice(sums);
        }
    }
    y
}

/// The oracle of a strip: a chain over the rows for each element. Both matrices with the distance of their rows.
fn plain_outer(
    (d, r): (&[f32], usize),
    (x, c): (&[f32], usize),
    n: usize,
    width: usize,
    sums: &mut [f32],
) {
    for row in 0..n {
        let x = &x[row * c..][..width];
        for (sums, d) in sums.chunks_exact_mut(width).zip(&d[row * r..]) {
            for (sum, x) in sums.iter_mut().zip(x) {
                *sum = d.mul_add(*x, *sum);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{COLUMNS, LANES, TOGETHER};
    use std::arch::x86_64::{
        __m512, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_mask3_fmadd_ps, _mm512_maskz_loadu_ps,
        _mm512_set1_ps, _mm512_setzero_ps, _mm512_storeu_ps,
    };

    /// [`super::plain_dots`] for a full group.
    #[target_feature(enable = "avx512f")]
    pub(super) fn dots(x: &[f32], b: &[f32], k: usize, y: &mut [f32]) {
        assert!(x.len() == k && b.len() == TOGETHER * k && y.len() == TOGETHER);
        let mut chains: [__m512; TOGETHER] = [_mm512_setzero_ps(); TOGETHER];
        let whole = k / LANES * LANES;
        for at in (0..whole).step_by(LANES) {
            // SAFETY: 16 values from `at` on are within each row of k.
            unsafe {
                let x = _mm512_loadu_ps(x.as_ptr().add(at));
                for (r, chain) in chains.iter_mut().enumerate() {
                    let b = _mm512_loadu_ps(b.as_ptr().add(r * k + at));
                    *chain = _mm512_fmadd_ps(x, b, *chain);
                }
            }
        }
        if whole < k {
            let mask = (0xFFFF_u32 >> (LANES - (k - whole))) as u16;
            // SAFETY: the mask keeps to the rest of each row.
            unsafe {
                let x = _mm512_maskz_loadu_ps(mask, x.as_ptr().add(whole));
                for (r, chain) in chains.iter_mut().enumerate() {
                    let b = _mm512_maskz_loadu_ps(mask, b.as_ptr().add(r * k + whole));
                    *chain = _mm512_mask3_fmadd_ps(x, b, *chain, mask);
                }
            }
        }
        for (y, chain) in y.iter_mut().zip(&chains) {
            let mut lanes = [0.0_f32; LANES];
            // SAFETY: there are 16.
            unsafe { _mm512_storeu_ps(lanes.as_mut_ptr(), *chain) };
            *y = lanes.iter().sum();
        }
    }

    /// [`super::plain_outer`] for a full strip.
    #[target_feature(enable = "avx512f")]
    pub(super) fn outer(
        (d, r): (&[f32], usize),
        (x, c): (&[f32], usize),
        n: usize,
        sums: &mut [f32],
    ) {
        assert!(
            n > 0
                && d.len() >= (n - 1) * r + TOGETHER
                && x.len() >= (n - 1) * c + COLUMNS
                && sums.len() == TOGETHER * COLUMNS
        );
        let mut chains: [[__m512; 2]; TOGETHER] = [[_mm512_setzero_ps(); 2]; TOGETHER];
        for row in 0..n {
            // SAFETY: each row has the values, by the assertion.
            unsafe {
                let x = x.as_ptr().add(row * c);
                let x = [_mm512_loadu_ps(x), _mm512_loadu_ps(x.add(LANES))];
                for (i, chains) in chains.iter_mut().enumerate() {
                    let d = _mm512_set1_ps(*d.as_ptr().add(row * r + i));
                    for (chain, x) in chains.iter_mut().zip(x) {
                        *chain = _mm512_fmadd_ps(d, x, *chain);
                    }
                }
            }
        }
        for (i, chain) in chains.as_flattened().iter().enumerate() {
            // SAFETY: there is room for all of them.
            unsafe { _mm512_storeu_ps(sums.as_mut_ptr().add(i * LANES), *chain) };
        }
    }
}

/// Rows and columns exchanged. [rows, columns] -> [columns, rows]
pub fn transposed(x: &[f32], columns: usize) -> Vec<f32> {
    (0..columns)
        .flat_map(|column| x.iter().skip(column).step_by(columns).copied())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(n: usize, seed: usize) -> Vec<f32> {
        (0..n)
            .map(|i| ((i * 7919 + seed * 104_729) % 1999) as f32 / 1000.0 - 1.0)
            .collect()
    }

    const SIZES: [[usize; 3]; 7] = [
        [1, 1, 1],
        [5, 8, 64],
        [33, 8, 576],
        [40, 16, 47],
        [17, 3, 100],
        [100, 13, 33],
        [2, 9, 15],
    ];

    #[test]
    fn dots_are_the_product() {
        for [n, r, k] in SIZES {
            let (x, b) = (values(n * k, 1), values(r * k, 2));
            let y = dots(&x, &b, k);
            assert_eq!(y.len(), n * r);
            for (idx, y) in y.iter().enumerate() {
                let (x, b) = (&x[idx / r * k..][..k], &b[idx % r * k..][..k]);
                let expected: f64 = x
                    .iter()
                    .zip(b)
                    .map(|(x, b)| f64::from(*x) * f64::from(*b))
                    .sum();
                // A few roundings of the sum; there are at most k.
                assert!(
                    (f64::from(*y) - expected).abs() < 1e-6 * (1.0 + expected.abs()),
                    "{n} {r} {k}: {y} {expected}"
                );
            }
        }
    }

    #[test]
    fn outer_is_the_product() {
        for [n, r, c] in SIZES {
            let (d, x) = (values(n * r, 1), values(n * c, 2));
            let y = outer(&d, &x, n);
            assert_eq!(y.len(), r * c);
            for (idx, y) in y.iter().enumerate() {
                let term =
                    |row: usize| f64::from(d[row * r + idx / c]) * f64::from(x[row * c + idx % c]);
                let expected: f64 = (0..n).map(term).sum();
                assert!(
                    (f64::from(*y) - expected).abs() < 1e-6 * (1.0 + expected.abs()),
                    "{n} {r} {c}: {y} {expected}"
                );
            }
        }
    }

    #[test]
    fn instruction_sets_do_not_change_a_bit() {
        let bits = |y: Vec<f32>| y.into_iter().map(f32::to_bits).collect::<Vec<_>>();
        for [n, r, k] in SIZES {
            let (x, b, d) = (values(n * k, 1), values(r * k, 2), values(n * r, 3));
            for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
                assert!(
                    bits(dots_on(isa, &x, &b, k)) == bits(dots_on(Isa::Scalar, &x, &b, k))
                        && bits(outer_on(isa, &d, &x, n)) == bits(outer_on(Isa::Scalar, &d, &x, n)),
                    "{isa:?} {n} {r} {k}"
                );
            }
        }
    }

    #[test]
    fn rows_become_columns() {
        assert_eq!(
            transposed(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 3),
            [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]
        );
        assert!(transposed(&[], 4).is_empty());
    }
}
