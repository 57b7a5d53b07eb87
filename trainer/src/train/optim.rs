//! AdamW as PyTorch defines it, clipping by the global norm, and the schedule of the learning rate.

use super::{
    config::Schedule,
    loss::Gradients,
    model::{Transformer, to_vec, update_parameters},
};
use burn::tensor::Tensor;
use std::collections::BTreeMap;

/// Constants of AdamW (Loshchilov and Hutter, "Decoupled weight decay regularization"). The decay works on matrices
/// only: on norms and biases it does harm.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWConfig {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Share of `lr` by which a matrix shrinks in a step.
    pub weight_decay: f64,
}

/// First and second moment of one parameter, flattened.
#[derive(Debug, Clone)]
pub struct Moments {
    /// Mean of the gradients.
    pub m: Tensor<1>,
    /// Mean of their squares.
    pub v: Tensor<1>,
}

/// The optimiser's state.
#[derive(Debug)]
pub struct AdamW {
    /// Constants.
    pub config: AdamWConfig,
    /// Steps done.
    pub step: u64,
    /// Moments by parameter name.
    pub moments: BTreeMap<String, Moments>,
}

impl AdamW {
    /// A fresh optimiser.
    pub fn new(config: AdamWConfig) -> Self {
        Self {
            config,
            step: 0,
            moments: BTreeMap::new(),
        }
    }

    /// One step on every parameter that has a gradient.
    pub fn step(&mut self, model: Transformer, gradients: &mut Gradients, lr: f64) -> Transformer {
        self.step += 1;
        let AdamWConfig {
            beta1,
            beta2,
            eps,
            weight_decay,
        } = self.config;
        let (correction1, correction2) = (
            1.0 - beta1.powf(self.step as f64),
            1.0 - beta2.powf(self.step as f64),
        );
        update_parameters(model, |name, value, is_matrix| {
            let Some(gradient) = gradients.remove(name) else {
                return value;
            };
            let moments = self.moments.remove(name).unwrap_or_else(|| Moments {
                m: gradient.zeros_like(),
                v: gradient.zeros_like(),
            });
            let m = moments.m.mul_scalar(beta1) + gradient.clone().mul_scalar(1.0 - beta1);
            let v =
                moments.v.mul_scalar(beta2) + (gradient.clone() * gradient).mul_scalar(1.0 - beta2);
            let denominator = v
                .clone()
                .sqrt()
                .div_scalar(correction2.sqrt())
                .add_scalar(eps);
            let update = m.clone().div(denominator).mul_scalar(lr / correction1);
            self.moments.insert(name.to_owned(), Moments { m, v });
            let decay = if is_matrix {
                1.0 - lr * weight_decay
            } else {
                1.0
            };
            value.mul_scalar(decay) - update
        })
    }
}

/// Adds `new` to `sum`.
pub fn accumulate(sum: &mut Gradients, new: Gradients) {
    for (name, gradient) in new {
        let total = match sum.remove(&name) {
            Some(old) => old + gradient,
            None => gradient,
        };
        sum.insert(name, total);
    }
}

/// Scales all gradients down so that their common Euclidean norm is at most `max_norm`; returns the norm before.
pub fn clip(gradients: &mut Gradients, max_norm: Option<f64>) -> f64 {
    let squares = gradients
        .values()
        .map(|gradient| (gradient.clone() * gradient.clone()).sum())
        .collect::<Vec<_>>();
    let norm = squares
        .into_iter()
        .map(|square| f64::from(to_vec(square)[0]))
        .sum::<f64>()
        .sqrt();
    // torch.nn.utils.clip_grad_norm_ adds the same 1e-6.
    let scale = max_norm.map_or(1.0, |max| max / (norm + 1e-6));
    if scale < 1.0 {
        for gradient in gradients.values_mut() {
            *gradient = gradient.clone().mul_scalar(scale);
        }
    }
    norm
}

/// The learning rate of step `step` (from 0) of `n_steps`: linear warm-up, then down to `min_ratio` of the peak.
pub fn learning_rate(
    schedule: Schedule,
    step: u64,
    n_steps: u64,
    warmup: u64,
    peak: f64,
    min_ratio: f64,
) -> f64 {
    if step < warmup {
        return peak * (step + 1) as f64 / warmup as f64;
    }
    let rest = n_steps.saturating_sub(warmup).max(1);
    let done = ((step - warmup) as f64 / rest as f64).min(1.0);
    let share = match schedule {
        Schedule::Constant => 1.0,
        Schedule::Linear => 1.0 - done,
        Schedule::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * done).cos()),
    };
    peak * (min_ratio + (1.0 - min_ratio) * share)
}
