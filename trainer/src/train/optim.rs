//! AdamW as PyTorch defines it, Muon beside it, clipping by the global norm, and the schedule of the learning rate.

mod muon;
mod schedule;

pub use muon::{Muon, orthogonalize};
pub use schedule::LearningRates;

use super::{
    config::{OptimizerName, TrainConfig},
    device::is_cpu,
    kernels::{self, AdamWStep},
    loss::Gradients,
    model::{Transformer, to_vec, update_parameters},
};
use anyhow::{Context, Result, bail, ensure};
use burn::tensor::{Device, Tensor, TensorData};
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
            let decay = if is_matrix {
                1.0 - lr * weight_decay
            } else {
                1.0
            };
            if is_cpu(&value.device()) {
                let step = AdamWStep {
                    beta1: beta1 as f32,
                    rest1: (1.0 - beta1) as f32,
                    beta2: beta2 as f32,
                    rest2: (1.0 - beta2) as f32,
                    root2: correction2.sqrt() as f32,
                    eps: eps as f32,
                    rate: (lr / correction1) as f32,
                    decay: decay as f32,
                };
                let device = value.device();
                let (mut x, mut m, mut v) = (to_vec(value), to_vec(moments.m), to_vec(moments.v));
                kernels::adamw(&step, &mut x, &mut m, &mut v, &to_vec(gradient));
                let [x, m, v] = [x, m, v].map(|values| from_vec(values, &device));
                self.moments.insert(name.to_owned(), Moments { m, v });
                return x;
            }
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
    if gradients
        .values()
        .all(|gradient| is_cpu(&gradient.device()))
    {
        return clip_here(gradients, max_norm);
    }
    let squares = gradients
        .values()
        .map(|gradient| (gradient.clone() * gradient.clone()).sum())
        .collect::<Vec<_>>();
    // One copy for all of them: from a GPU each would wait for everything before it.
    let squares = if squares.is_empty() {
        Vec::new()
    } else {
        to_vec(Tensor::cat(squares, 0))
    };
    let norm = squares.into_iter().map(f64::from).sum::<f64>().sqrt();
    if let Some(scale) = clipping(norm, max_norm) {
        for gradient in gradients.values_mut() {
            *gradient = gradient.clone().mul_scalar(scale);
        }
    }
    norm
}

/// What gradients of this norm are multiplied by, when it is too much.
fn clipping(norm: f64, max_norm: Option<f64>) -> Option<f64> {
    // torch.nn.utils.clip_grad_norm_ adds the same 1e-6.
    let scale = max_norm? / (norm + 1e-6);
    (scale < 1.0).then_some(scale)
}

/// [`clip`] on the CPU: one pass for the norm, and one more where it is too much.
fn clip_here(gradients: &mut Gradients, max_norm: Option<f64>) -> f64 {
    let Some(device) = gradients.values().next().map(Tensor::device) else {
        return 0.0;
    };
    let mut all: Vec<_> = std::mem::take(gradients)
        .into_iter()
        .map(|(name, gradient)| (name, to_vec(gradient)))
        .collect();
    let squares = all
        .iter()
        .map(|(_, values)| kernels::sum_of_squares(values));
    let norm = squares.sum::<f64>().sqrt();
    if let Some(scale) = clipping(norm, max_norm) {
        for (_, values) in &mut all {
            kernels::scale(values, scale as f32);
        }
    }
    gradients.extend(
        all.into_iter()
            .map(|(name, values)| (name, from_vec(values, &device))),
    );
    norm
}

fn from_vec(values: Vec<f32>, device: &Device) -> Tensor<1> {
    let n = values.len();
    Tensor::from_data(TensorData::new(values, [n]), device)
}

/// What turns gradients into steps.
#[derive(Debug)]
pub enum Optimizer {
    /// AdamW for all parameters.
    AdamW(AdamW),
    /// Muon for the matrices of the blocks, AdamW for the rest.
    Muon(Muon),
}

/// Kinds of values that an optimiser keeps for a parameter, as the names of a checkpoint's tensors begin.
const MOMENTS: [&str; 3] = ["m", "v", "mean"];

impl Optimizer {
    /// A fresh one.
    pub fn new(train: &TrainConfig) -> Self {
        let adamw = AdamW::new(AdamWConfig {
            beta1: train.beta1,
            beta2: train.beta2,
            eps: train.eps,
            weight_decay: train.weight_decay,
        });
        match train.optimizer {
            OptimizerName::AdamW => Self::AdamW(adamw),
            OptimizerName::Muon => Self::Muon(Muon::new(train.momentum, adamw)),
        }
    }

    /// One step on every parameter that has a gradient.
    pub fn step(&mut self, model: Transformer, gradients: &mut Gradients, lr: f64) -> Transformer {
        match self {
            Self::AdamW(adamw) => adamw.step(model, gradients, lr),
            Self::Muon(muon) => muon.step(model, gradients, lr),
        }
    }

    /// Values that [`Self::restore`] takes: `kind.parameter`, in the order of the names.
    pub fn state(&self) -> BTreeMap<String, Tensor<1>> {
        let mut state = BTreeMap::new();
        let adamw = match self {
            Self::AdamW(adamw) => adamw,
            Self::Muon(muon) => {
                for (name, mean) in &muon.means {
                    state.insert(format!("mean.{name}"), mean.clone());
                }
                &muon.adamw
            }
        };
        for (name, moments) in &adamw.moments {
            state.insert(format!("m.{name}"), moments.m.clone());
            state.insert(format!("v.{name}"), moments.v.clone());
        }
        state
    }

    /// Goes on after `step` steps with the values of [`Self::state`].
    ///
    /// # Errors
    /// Values of another optimiser, by name.
    pub fn restore(&mut self, step: u64, mut state: BTreeMap<String, Tensor<1>>) -> Result<()> {
        let adamw = match self {
            Self::AdamW(adamw) => adamw,
            Self::Muon(muon) => {
                muon.means = take_kind(&mut state, "mean");
                &mut muon.adamw
            }
        };
        adamw.step = step;
        let mut second = take_kind(&mut state, "v");
        for (name, m) in take_kind(&mut state, "m") {
            let v = second
                .remove(&name)
                .with_context(|| format!("the state lacks the tensor `v.{name}`"))?;
            ensure!(
                m.dims() == v.dims(),
                "the state's tensors `m.{name}` and `v.{name}` differ in size"
            );
            adamw.moments.insert(name, Moments { m, v });
        }
        match state.keys().chain(second.keys()).next() {
            Some(name) => {
                bail!("the state has a tensor `{name}` that this optimiser does not know")
            }
            None => Ok(()),
        }
    }

    /// Whether a tensor of a checkpoint belongs to an optimiser.
    pub fn keeps(tensor: &str) -> bool {
        tensor
            .split_once('.')
            .is_some_and(|(kind, _)| MOMENTS.contains(&kind))
    }
}

/// Takes the values of one kind out, by the parameter's name.
fn take_kind(state: &mut BTreeMap<String, Tensor<1>>, kind: &str) -> BTreeMap<String, Tensor<1>> {
    let prefix = format!("{kind}.");
    state
        .extract_if(.., |name, _| name.starts_with(&prefix))
        .map(|(name, value)| (name[prefix.len()..].to_owned(), value))
        .collect()
}
