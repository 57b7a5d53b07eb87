//! Rounding with feedback: columns are rounded one after the other, and what is lost in one is made good, as far as the text's
//! inputs correlate, by the columns after it (Frantar et al., "GPTQ", 2022; Chee et al., "`QuIP`", 2023).
//!
//! The scales of a block are searched when its turn comes, for the values that the errors before it have moved.

use crate::{factor::Factor, moments::exactly};
use fledgling_core::quant::{DType, Grid};
use fledgling_kernels::{
    Strided,
    gemm::{Start, gemm_on},
    threads,
};

/// A matrix whose errors are as small as its inputs allow.
#[derive(Debug, Clone, PartialEq)]
pub struct Compensated {
    /// The blocks of its rows, as they stand in a file.
    pub bytes: Vec<u8>,
    /// The mean square of the error of an output on the text, summed over outputs: `tr(E H E^T)`.
    pub error: f64,
}

/// A matrix in a quantised type. [N, K]
///
/// # Panics
/// When the values are no whole number of rows of the factor's width, or a row is no whole number of blocks.
pub fn quantize_with_feedback(dtype: DType, values: &[f32], factor: &Factor) -> Compensated {
    let (n, len) = (factor.n_cols, dtype.block_len());
    let row_bytes = dtype.row_bytes(n).expect("rows are whole blocks");
    let n_rows = values.len() / n;
    assert_eq!(n_rows * n, values.len(), "whole rows");
    let mut bytes = vec![0; n_rows * row_bytes];
    let mut wanted = values.to_vec(); // [N, K]
    let mut lost = vec![0.0; n_rows * len]; // [N, block]
    let mut errors = vec![0.0; n_rows];
    for start in (0..n).step_by(len) {
        let block = Block {
            dtype,
            factor,
            start,
        };
        let parts = (
            threads::split_mut(&mut wanted, n),
            threads::split_mut(&mut lost, len),
            threads::split_mut(&mut bytes, row_bytes),
            threads::split_mut(&mut errors, 1),
        );
        threads::each_part(parts, |r, (wanted, lost, bytes, error)| {
            let at = start / len * dtype.block_bytes();
            let bytes = &mut bytes[at..at + dtype.block_bytes()];
            error[0] += block.round(&values[r * n..][..n], &mut wanted[start..], lost, bytes);
        });
        let end = start + len;
        if end < n {
            // [N, block] @ [block, the rest]
            gemm_on(
                exactly(),
                [n_rows, n - end, len],
                &Strided::rows(&lost, len),
                &Strided::columns(&factor.upper[start * n + end..], n),
                Start::Add,
                (&mut wanted[end..], n),
            );
        }
    }
    Compensated {
        bytes,
        error: errors.iter().sum(),
    }
}

/// Some columns.
struct Block<'a> {
    dtype: DType,
    factor: &'a Factor,
    start: usize,
}

impl Block<'_> {
    /// One row: `wanted` begins at the block; `lost` becomes what is lost there. Returns the weighted squared error.
    fn round(&self, row: &[f32], wanted: &mut [f32], lost: &mut [f32], bytes: &mut [u8]) -> f64 {
        let (n, len) = (self.factor.n_cols, lost.len());
        let row = &row[self.start..];
        let wanted = &mut wanted[..len];
        let weights = &self.factor.diagonal[self.start..][..len];
        let mut grid = Grid::new(self.dtype);
        grid.fit(wanted, weights);
        let mut q = [0; 256];
        let mut error = 0.0;
        for i in 0..len {
            q[i] = grid.nearest(i, wanted[i]);
            let value = grid.value(i, q[i]);
            error += f64::from(weights[i]) * f64::from(wanted[i] - value).powi(2);
            lost[i] = row[i] - value;
            let upper = &self.factor.upper[(self.start + i) * n + self.start..][..len];
            for (wanted, upper) in wanted[i + 1..].iter_mut().zip(&upper[i + 1..]) {
                *wanted += lost[i] * upper;
            }
        }
        bytes.copy_from_slice(grid.block(&q[..len]));
        error
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Input, Moments, quantize_rows};
    use fledgling_core::quant::{Method, dequantize};

    const N_ROWS: usize = 24;
    const N_COLS: usize = 512;

    fn quantized() -> impl Iterator<Item = DType> {
        DType::ALL.into_iter().filter(|dtype| dtype.is_quantized())
    }

    /// Inputs that correlate, and weights.
    fn case() -> (Moments, Vec<f32>) {
        let mut state = 3_u64;
        let mut next = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 40) as f32 / (1 << 24) as f32 - 0.5
        };
        let mut rows = vec![0.0; 2000 * N_COLS];
        for row in rows.chunks_exact_mut(N_COLS) {
            let mut last = 0.0;
            for (i, x) in row.iter_mut().enumerate() {
                last = 0.9 * last + next();
                *x = last * (1.0 + (i % 7) as f32);
            }
        }
        let mut moments = Moments::default();
        moments.add(&["a"], &rows, N_COLS);
        (moments, (0..N_ROWS * N_COLS).map(|_| next()).collect())
    }

    /// `tr(E H E^T)` with the damped H, in f64.
    fn output_error(input: &Input, values: &[f32], dtype: DType, bytes: &[u8]) -> f64 {
        let n = input.n_cols;
        let mut rounded = vec![0.0; values.len()];
        dequantize(dtype, bytes, &mut rounded);
        let mean = (0..n)
            .map(|i| f64::from(input.sums[i * (n + 1)]))
            .sum::<f64>()
            / n as f64;
        let mut error = 0.0;
        for (row, rounded) in values.chunks_exact(n).zip(rounded.chunks_exact(n)) {
            let e: Vec<f64> = row
                .iter()
                .zip(rounded)
                .map(|(x, y)| f64::from(x - y))
                .collect();
            for i in 0..n {
                let of = |j: usize| e[j] * f64::from(input.sums[i * n + j]);
                error += e[i] * ((0..n).map(of).sum::<f64>() + 0.01 * mean * e[i]);
            }
        }
        error / input.n_rows as f64
    }

    #[test]
    fn outputs_err_less_than_with_rows_rounded_by_themselves() {
        let (moments, values) = case();
        let (_, input) = moments.of("a").expect("it was added");
        let factor = Factor::new(input).expect("finite");
        let importance: Vec<f32> = (0..N_COLS).map(|i| input.sums[i * (N_COLS + 1)]).collect();
        for dtype in quantized() {
            let ours = quantize_with_feedback(dtype, &values, &factor);
            let error = output_error(input, &values, dtype, &ours.bytes);
            assert!(
                (ours.error / error - 1.0).abs() < 1e-2,
                "{dtype}: {} {error}",
                ours.error
            );
            let alone = quantize_rows(dtype, &values, N_COLS, Some(&importance), Method::Search);
            let alone = output_error(input, &values, dtype, &alone);
            assert!(error < 0.6 * alone, "{dtype}: {error} {alone}");
        }
    }

    #[test]
    fn without_correlation_blocks_are_those_of_the_search() {
        let (_, values) = case();
        let mut sums = vec![0.0; N_COLS * N_COLS];
        sums.iter_mut().step_by(N_COLS + 1).for_each(|x| *x = 1.0);
        let input = Input {
            n_cols: N_COLS,
            n_rows: 1,
            sums,
        };
        let factor = Factor::new(&input).expect("finite");
        for dtype in quantized() {
            let ours = quantize_with_feedback(dtype, &values, &factor);
            let mut grid = Grid::new(dtype);
            let len = dtype.block_len();
            let blocks = values.chunks_exact(len).flat_map(|x| {
                grid.fit(x, &factor.diagonal[..len]);
                let q: Vec<i8> = (0..len).map(|i| grid.nearest(i, x[i])).collect();
                grid.block(&q).to_vec()
            });
            assert_eq!(ours.bytes, blocks.collect::<Vec<u8>>(), "{dtype}");
        }
    }
}
