//! Muon: momentum, orthogonalised (Jordan et al. 2024, <https://kellerjordan.github.io/posts/muon/>), for the matrices of the
//! blocks; everything else goes by AdamW.
//!
//! An update is `lr * 0.2 * sqrt(max(rows, columns))` times the orthogonalised mean of the gradients, as Moonlight scales it
//! (Liu et al. 2025, arXiv 2502.16982): its root mean square is then that of AdamW's updates, so both take the same `lr` and
//! the same weight decay (PyTorch calls this `match_rms_adamw`). A fused projection of q, k and v is three matrices, because each
//! has a meaning of its own. The iteration runs in f32 where PyTorch's runs in bf16.

use super::AdamW;
use crate::train::{
    loss::Gradients,
    model::{Transformer, update_parameters},
};
use burn::tensor::Tensor;
use std::collections::BTreeMap;

/// Coefficients of the quintic, chosen for its slope at zero.
const COEFFICIENTS: (f64, f64, f64) = (3.4445, -4.7750, 2.0315);
/// Rounds of Newton and Schulz.
const ROUNDS: usize = 5;
/// A smaller norm is taken as this, so that a gradient of zero stays zero.
const EPS: f64 = 1e-7;

/// The optimiser's state.
#[derive(Debug)]
pub struct Muon {
    /// Decay of the mean of the gradients.
    pub momentum: f64,
    /// Share of `lr` by which a matrix shrinks in a step.
    pub weight_decay: f64,
    /// Means of the gradients by parameter name, flattened.
    pub means: BTreeMap<String, Tensor<1>>,
    /// What the other parameters go by.
    pub adamw: AdamW,
}

impl Muon {
    /// A fresh optimiser.
    pub fn new(momentum: f64, adamw: AdamW) -> Self {
        Self {
            momentum,
            weight_decay: adamw.config.weight_decay,
            means: BTreeMap::new(),
            adamw,
        }
    }

    /// One step on every parameter that has a gradient.
    pub fn step(&mut self, model: Transformer, gradients: &mut Gradients, lr: f64) -> Transformer {
        let mut updates = BTreeMap::new();
        for (name, parts) in block_matrices(&model) {
            if let Some(gradient) = gradients.remove(&name) {
                let update = self.update(&name, gradient, &parts);
                updates.insert(name, update);
            }
        }
        let decay = 1.0 - lr * self.weight_decay;
        let model = update_parameters(model, |name, value, _| match updates.remove(name) {
            Some(update) => value.mul_scalar(decay) - update.mul_scalar(lr),
            None => value,
        });
        self.adamw.step(model, gradients, lr)
    }

    /// The orthogonalised and scaled update of one parameter, whose `parts` lie below each other.
    fn update(&mut self, name: &str, gradient: Tensor<1>, parts: &[[usize; 2]]) -> Tensor<1> {
        let mean = self
            .means
            .remove(name)
            .unwrap_or_else(|| gradient.zeros_like());
        let mean =
            mean.mul_scalar(self.momentum) + gradient.clone().mul_scalar(1.0 - self.momentum);
        self.means.insert(name.to_owned(), mean.clone());
        // Nesterov: the gradient counts once more.
        let ahead = gradient.mul_scalar(1.0 - self.momentum) + mean.mul_scalar(self.momentum);
        let mut start = 0;
        let updates = parts.iter().map(|&[rows, columns]| {
            let part = ahead
                .clone()
                .narrow(0, start, rows * columns)
                .reshape([rows, columns]);
            start += rows * columns;
            let scale = 0.2 * (rows.max(columns) as f64).sqrt();
            orthogonalize(part)
                .mul_scalar(scale)
                .reshape([rows * columns])
        });
        Tensor::cat(updates.collect(), 0)
    }
}

/// The nearest matrix with orthonormal rows or columns, roughly: singular values go to between 0.7 and 1.2. [R, C] -> [R, C]
pub fn orthogonalize(matrix: Tensor<2>) -> Tensor<2> {
    let [rows, columns] = matrix.dims();
    let tall = rows > columns;
    let norm = (matrix.clone() * matrix.clone())
        .sum()
        .sqrt()
        .clamp_min(EPS);
    let mut x = if tall { matrix.transpose() } else { matrix };
    x = x / norm.unsqueeze();
    let (a, b, c) = COEFFICIENTS;
    for _ in 0..ROUNDS {
        let gram = x.clone().matmul(x.clone().transpose());
        let poly = gram.clone().mul_scalar(b) + gram.clone().matmul(gram).mul_scalar(c);
        x = x.clone().mul_scalar(a) + poly.matmul(x);
    }
    if tall { x.transpose() } else { x }
}

/// The trained matrices of the blocks with the shapes of the matrices that they hold below each other.
fn block_matrices(model: &Transformer) -> Vec<(String, Vec<[usize; 2]>)> {
    let spec = model.spec();
    let (q, kv) = (spec.n_head * spec.head_dim, spec.n_kv_head * spec.head_dim);
    fledgling_core::spec::tensor_table(spec)
        .into_iter()
        .filter(|entry| entry.layer.is_some())
        .filter_map(|entry| {
            let [rows, columns] = entry.shape[..] else {
                return None;
            };
            let heights = if entry.burn.ends_with(".attn_qkv.weight") {
                vec![q, kv, kv]
            } else {
                vec![rows]
            };
            let parts = heights.into_iter().map(|rows| [rows, columns]).collect();
            Some((entry.burn, parts))
        })
        .collect()
}
