//! The moments as `H = (U + I) D (U + I)^T`, U strictly upper triangular: what an error in a column adds to the best values
//! of the columns after it (Chee et al., "`QuIP`", 2023, section 3; the same as GPTQ's Cholesky factor of the inverse).

use crate::moments::{Input, exactly};
use anyhow::{Result, ensure};
use fledgling_kernels::{
    Strided,
    gemm::{Start, gemm_on},
};

/// Added to the diagonal, as a part of its mean: columns that the text hardly used keep some weight.
const DAMPING: f64 = 0.01;
/// Columns that are factored together.
const BLOCK: usize = 64;

/// Of what a matrix reads.
#[derive(Debug, Clone)]
pub struct Factor {
    /// Width. (K)
    pub n_cols: usize,
    /// U: what an error of 1 in column i (row of this) adds to the wanted value of column k > i; 0 elsewhere. [K, K]
    pub upper: Vec<f32>,
    /// D: what a squared error weighs that no column after it makes good. [K]
    pub diagonal: Vec<f32>,
    /// The diagonal of H: what a squared error weighs that nothing makes good. [K]
    pub squares: Vec<f32>,
}

impl Factor {
    /// Factors the mean moments of an input.
    ///
    /// # Errors
    /// When they are not finite.
    pub fn new(input: &Input) -> Result<Self> {
        let n = input.n_cols;
        let scale = 1.0 / input.n_rows.max(1) as f64;
        let diagonal = |i: usize| f64::from(input.sums[i * (n + 1)]) * scale;
        let mean = (0..n).map(diagonal).sum::<f64>() / n as f64;
        ensure!(
            mean.is_finite(),
            "the activations of the calibration text are not finite"
        );
        let mut h: Vec<f32> = input
            .sums
            .iter()
            .map(|sum| (f64::from(*sum) * scale) as f32)
            .collect();
        // A text that a matrix reads zeros of says nothing: all columns weigh the same.
        let damping = if mean > 0.0 { DAMPING * mean } else { 1.0 };
        for i in 0..n {
            h[i * (n + 1)] = (diagonal(i) + damping) as f32;
        }
        let squares = (0..n).map(|i| h[i * (n + 1)]).collect();
        for start in (0..n).step_by(BLOCK).rev() {
            factor_block(&mut h, n, start..(start + BLOCK).min(n))?;
        }
        Ok(Self::of_root(n, h, squares))
    }

    /// From R, upper triangular, with `H = R R^T`.
    fn of_root(n: usize, mut r: Vec<f32>, squares: Vec<f32>) -> Self {
        let root: Vec<f32> = (0..n).map(|k| r[k * (n + 1)]).collect();
        for (i, row) in r.chunks_exact_mut(n).enumerate() {
            row[..=i].fill(0.0);
            for (value, root) in row[i + 1..].iter_mut().zip(&root[i + 1..]) {
                *value /= root;
            }
        }
        Self {
            n_cols: n,
            upper: r,
            diagonal: root.iter().map(|root| root * root).collect(),
            squares,
        }
    }
}

/// Makes columns of R of columns of H, and takes their part off the columns before them.
fn factor_block(h: &mut [f32], n: usize, block: std::ops::Range<usize>) -> Result<()> {
    let (start, end) = (block.start, block.end);
    // The block on the diagonal, its last column first.
    for k in (start..end).rev() {
        let sum = |h: &[f32], i: usize| {
            let of = |p: usize| f64::from(h[i * n + p]) * f64::from(h[k * n + p]);
            f64::from(h[i * n + k]) - (k + 1..end).map(of).sum::<f64>()
        };
        let root = sum(h, k).sqrt();
        ensure!(
            root.is_finite() && root > 0.0,
            "the activations of the calibration text are not finite, or too large"
        );
        h[k * n + k] = root as f32;
        for i in start..k {
            h[i * n + k] = (sum(h, i) / root) as f32;
        }
    }
    // The rows above it: X R^T = H, its last column first.
    for i in 0..start {
        let (above, of_block) = h.split_at_mut(start * n);
        let row = &mut above[i * n..][start..end];
        for k in (0..end - start).rev() {
            let r = &of_block[k * n + start..][..end - start];
            let known = row[k + 1..].iter().zip(&r[k + 1..]).map(|(x, r)| x * r);
            row[k] = (row[k] - known.sum::<f32>()) / r[k];
        }
    }
    // H of the columns before: - X X^T.
    let x: Vec<f32> = (0..start)
        .flat_map(|i| h[i * n + start..i * n + end].to_vec())
        .collect();
    let minus: Vec<f32> = x.iter().map(|x| -x).collect();
    let width = end - start;
    gemm_on(
        exactly(),
        [start, start, width],
        &Strided::rows(&minus, width),
        &Strided::rows(&x, width),
        Start::Add,
        (h, n),
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Moments;

    /// Rows of which each column is a mixture of others.
    pub(crate) fn correlated(n_rows: usize, n_cols: usize) -> Vec<f32> {
        let mut state = 7_u64;
        let mut next = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 40) as f32 / (1 << 24) as f32 - 0.5
        };
        let mut rows = vec![0.0; n_rows * n_cols];
        for row in rows.chunks_exact_mut(n_cols) {
            let mut last = 0.0;
            for x in row {
                last = 0.8 * last + next();
                *x = last;
            }
        }
        rows
    }

    #[test]
    fn the_factor_multiplies_to_the_moments() {
        for n in [1, 2, 63, 64, 65, 200] {
            let mut moments = Moments::default();
            moments.add(&["a"], &correlated(300, n), n);
            let (_, input) = moments.of("a").expect("it was added");
            let factor = Factor::new(input).expect("finite");
            let mean = (0..n)
                .map(|i| f64::from(input.sums[i * (n + 1)]))
                .sum::<f64>()
                / n as f64;
            let unit = |i: usize, k: usize| match i.cmp(&k) {
                std::cmp::Ordering::Equal => 1.0,
                _ => f64::from(factor.upper[i * n + k]),
            };
            for i in 0..n {
                for j in 0..n {
                    let of = |k: usize| unit(i, k) * f64::from(factor.diagonal[k]) * unit(j, k);
                    let product: f64 = (0..n).map(of).sum();
                    let damping = if i == j { DAMPING * mean } else { 0.0 };
                    let want = (f64::from(input.sums[i * n + j]) + damping) / 300.0;
                    assert!(
                        (product - want).abs() < 1e-5 * mean / 300.0 * n as f64 + 1e-7,
                        "{n} {i} {j}: {product} {want}"
                    );
                    assert!(
                        i <= j || factor.upper[i * n + j].to_bits() == 0,
                        "strictly upper"
                    );
                }
            }
        }
    }

    #[test]
    fn numbers_that_are_not_finite_are_refused() {
        let input = |x: f32| Input {
            n_cols: 2,
            n_rows: 1,
            sums: vec![1.0, 0.0, 0.0, x],
        };
        assert!(Factor::new(&input(f32::NAN)).is_err());
        assert!(Factor::new(&input(f32::INFINITY)).is_err());
        let zeros = Input {
            sums: vec![0.0; 4],
            ..input(0.0)
        };
        let factor = Factor::new(&zeros).expect("nothing is known");
        assert_eq!(factor.diagonal, [1.0, 1.0]);
    }
}
