//! Dropout before a LoRA's first matrix, as PEFT has it: an input is left out with probability p, the others are
//! divided by 1 - p; each layer draws for itself, and nothing is left out outside training.
//!
//! The draws are a function of the run's seed, the step, the layer, the row's number within the step, the position and
//! the column: a resumed run draws the same, and so does one that splits a step into other batches. Nothing is
//! kept for the backward pass, which draws again.

use fledgling_kernels::{
    Strided,
    gemm::product,
    threads::{each_part, split_mut},
};

/// Rows that one task draws for.
const ROWS: usize = 16;

/// The draws of one layer for one batch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Draw {
    key: u64,
    /// Number of the batch's first row within the step.
    first_row: u64,
    /// Positions of a row, T.
    n_tokens: usize,
    /// Width of x, and of the rows of A.
    n_in: usize,
    probability: f64,
}

/// Where in a run the draws are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// The run's seed.
    pub seed: u64,
    /// The optimiser step.
    pub step: u64,
    /// Number of the batch's first row within the step.
    pub first_row: u64,
    /// Positions of a row, T.
    pub n_tokens: usize,
}

/// The mixing function of `SplitMix64` (Steele, Lea and Flood): every bit of the input decides about every bit of the output.
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

impl Draw {
    /// The draws of the layer with number `layer`, whose input has `n_in` columns.
    pub fn new(moment: &Moment, layer: u64, n_in: usize, probability: f64) -> Self {
        let key = [moment.seed, moment.step, layer]
            .into_iter()
            .fold(0x64_726F_706F_7574, |key, part| mix(key ^ mix(part)));
        Self {
            key,
            first_row: moment.first_row,
            n_tokens: moment.n_tokens,
            n_in,
            probability,
        }
    }

    /// The gradient of x from that of `dropout(x) Aᵀ`: `mask ⊙ (dy A)`. [N, in]
    pub fn dx(&self, a: &[f32], dy: &[f32]) -> Vec<f32> {
        let (rank, n_in) = (a.len() / self.n_in, self.n_in);
        let size = [dy.len() / rank, n_in, rank];
        let (dy, a) = (Strided::rows(dy, rank), Strided::columns(a, n_in));
        self.dropped(product(size, &dy, &a, None))
    }

    /// Values with some left out and the others raised. [N, C]
    pub fn dropped(&self, mut values: Vec<f32>) -> Vec<f32> {
        let threshold = (self.probability * (1_u64 << 32) as f64) as u64;
        let kept = (1.0 / (1.0 - self.probability)) as f32;
        let each = |i: usize, row: &mut [f32]| {
            let (number, t) = (
                self.first_row + (i / self.n_tokens) as u64,
                i % self.n_tokens,
            );
            let key = mix(mix(self.key ^ number) ^ t as u64);
            // A number gives two draws of 32 bits.
            for (pair, values) in row.chunks_mut(2).enumerate() {
                let bits = mix(key ^ pair as u64);
                for (half, value) in values.iter_mut().enumerate() {
                    let drawn = (bits >> (32 * half)) & 0xFFFF_FFFF;
                    *value *= if drawn < threshold { 0.0 } else { kept };
                }
            }
        };
        each_part(split_mut(&mut values, ROWS * self.n_in), |task, rows| {
            for (i, row) in rows.chunks_mut(self.n_in).enumerate() {
                each(task * ROWS + i, row);
            }
        });
        values
    }

    /// What n rows of x are multiplied by: 0, or 1 / (1 - p). [N, in]
    pub fn mask(&self, n: usize) -> Vec<f32> {
        self.dropped(vec![1.0; n * self.n_in])
    }
}
