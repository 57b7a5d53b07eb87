//! `fledgling train CONFIG --dry-run`: what a run would take.

use super::{
    config::OptimizerName,
    continuing::{self, Continuation},
    fit::{Fit, count_trained},
    model::{Transformer, visit_parameters},
    optim::Optimizer,
    steps::{Steps, n_positions},
};
use crate::{files::human_bytes, report::environment::peak_bytes};
use anyhow::{Context, Result};
use fledgling_core::spec::{Mlp, ModelSpec, tensor_table};
use serde::Serialize;
use std::{path::PathBuf, time::Instant};

/// Steps of a trial: the first is not timed.
const TRIAL_STEPS: u64 = 3;
/// An evaluated position takes this share of a trained one's time: a forward pass alone.
const EVALUATION_SHARE: f64 = 1.0 / 3.0;
/// What the process takes before there is a model.
const PROGRAM_BYTES: u64 = 48 << 20;
/// Rows of logits in memory at a time, and values a row of which there are that many.
const LOGIT_VALUES: u64 = 256 * 3;

/// What a run would do.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    /// The run's folder.
    pub run: PathBuf,
    /// Where it would compute, and what the self-test says of it.
    pub device: Option<String>,
    /// The model's family.
    pub architecture: &'static str,
    /// Parameters.
    pub parameters: usize,
    /// Those that are trained.
    pub trained_parameters: usize,
    /// Rows to learn from.
    pub rows: usize,
    /// Their positions.
    pub tokens: usize,
    /// Positions in the loss.
    pub counted_tokens: usize,
    /// Rows held out.
    pub valid_rows: usize,
    /// Their positions in the loss.
    pub valid_counted_tokens: usize,
    /// Optimiser steps.
    pub steps: u64,
    /// Steps of a pass.
    pub steps_per_epoch: u64,
    /// Positions that a step computes on average, padding included.
    pub tokens_per_step: f64,
    /// Expected memory.
    pub memory: Memory,
    /// What a few real steps took.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trial: Option<Trial>,
    /// How it goes on from another run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub continuation: Option<Continuation>,
}

/// Expected memory in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// Parameters.
    pub weights: u64,
    /// A value for each trained one; two, when batches are accumulated.
    pub gradients: u64,
    /// The optimiser's.
    pub optimizer: u64,
    /// What the backward pass of the largest batch needs, and the logits of a chunk.
    pub activations: u64,
    /// All, with the program itself.
    pub total: u64,
}

/// What a few real steps took.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Trial {
    /// Time of a step.
    pub step_ms: f64,
    /// Positions computed in a second.
    pub tokens_per_s: f64,
    /// The most memory of the process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peak_bytes: Option<u64>,
    /// Expected time of the whole run, evaluations included.
    pub seconds: f64,
}

/// Plans a run, with a trial of a few steps when `with_trial`.
///
/// # Errors
/// A trial whose loss is no number.
pub fn plan(fit: &Fit, model: Transformer, with_trial: bool) -> Result<Plan> {
    let mut parameters = 0;
    visit_parameters(&model, |_, value, _| {
        parameters += value.shape().num_elements();
    });
    let (n_frozen, _) = model.frozen_size();
    parameters += n_frozen;
    let (rows, spec) = (&fit.train, model.spec());
    let mut steps = Steps::new(&fit.config, rows);
    let positions = steps.positions_per_epoch(rows);
    let mut plan = Plan {
        run: fit.folder.clone(),
        device: fit.record.device.clone(),
        architecture: spec.family.name(),
        parameters,
        trained_parameters: count_trained(&model),
        rows: rows.len(),
        tokens: (0..rows.len()).map(|idx| rows.n_tokens_of(idx) - 1).sum(),
        counted_tokens: rows.n_counted(),
        valid_rows: fit.valid.len(),
        valid_counted_tokens: fit.valid.n_counted(),
        steps: steps.len(),
        steps_per_epoch: steps.per_epoch(),
        tokens_per_step: positions as f64 / steps.per_epoch() as f64,
        memory: memory(fit, &model, parameters, &mut steps),
        trial: None,
        continuation: None,
    };
    if with_trial {
        plan.trial = Some(trial(fit, model, &mut steps, &plan)?);
    }
    Ok(plan)
}

fn memory(fit: &Fit, model: &Transformer, parameters: usize, steps: &mut Steps) -> Memory {
    let (train, spec, rows) = (&fit.config.train, model.spec(), &fit.train);
    let n_trained = count_trained(model) as u64;
    let largest = (0..steps.per_epoch())
        .flat_map(|step| steps.batches(rows, step))
        .map(|batch| n_positions(rows, &batch) as u64)
        .max();
    let in_blocks: usize = tensor_table(spec)
        .iter()
        .filter(|entry| entry.layer.is_some() && entry.shape.len() == 2)
        .map(|entry| entry.shape.iter().product::<usize>())
        .sum();
    let optimizer = match train.optimizer {
        OptimizerName::AdamW => 2 * n_trained,
        OptimizerName::Muon => 2 * n_trained - in_blocks as u64,
    };
    let (n_frozen, frozen_bytes) = model.frozen_size();
    let mut memory = Memory {
        weights: (4 * (parameters - n_frozen) + frozen_bytes) as u64,
        gradients: 4 * n_trained * if train.accumulate > 1 { 2 } else { 1 },
        optimizer: 4 * optimizer,
        activations: 4 * activations(spec, largest.unwrap_or(0), train.recompute),
        total: PROGRAM_BYTES,
    };
    memory.total += memory.weights + memory.gradients + memory.optimizer + memory.activations;
    memory
}

/// Values that the backward pass of `n` positions needs: the inputs of each operation of a block, counted from
/// [`super::model`], the gradients on the way, and a chunk of logits.
fn activations(spec: &ModelSpec, n: u64, recompute: bool) -> u64 {
    let (c, ff) = (spec.n_embd as u64, spec.n_ff as u64);
    let q = (spec.n_head * spec.head_dim) as u64;
    let kv = (spec.n_kv_head * spec.head_dim) as u64;
    // Residual stream and norm, twice; q, k, v and what attention gives; the MLP.
    let inner = if spec.mlp == Mlp::SwiGlu {
        3 * ff
    } else {
        2 * ff
    };
    let block = 4 * c + 2 * q + 2 * kv + inner;
    let on_the_way = 2 * c + 2 * ff;
    let layers = spec.n_layer as u64;
    let kept = if recompute {
        layers * c + block
    } else {
        layers * block
    };
    n * (kept + on_the_way) + LOGIT_VALUES * spec.vocab_size as u64
}

fn trial(fit: &Fit, mut model: Transformer, steps: &mut Steps, plan: &Plan) -> Result<Trial> {
    let mut optimizer = Optimizer::new(&fit.config.train);
    let (mut seconds, mut positions, mut n_timed) = (0.0, 0, 0);
    for step in 0..TRIAL_STEPS {
        let batches = steps.batches(&fit.train, step);
        let started = Instant::now();
        let (mut found, norm) = fit
            .gradients(&model, step, &batches, || false)
            .context("nothing stops a trial")?;
        anyhow::ensure!(
            found.loss.is_finite() && norm.is_finite(),
            "the loss is {} at step {}: the weights or the rows are broken, or train.lr is far too high",
            found.loss,
            step + 1
        );
        model = optimizer.step(model, &mut found.gradients, fit.config.train.lr);
        if step > 0 {
            seconds += started.elapsed().as_secs_f64();
            positions += found.n_positions;
            n_timed += 1;
        }
    }
    let tokens_per_s = positions as f64 / seconds;
    let n_evaluations = match fit.config.train.eval_every {
        0 => 2,
        every => 2 + plan.steps.saturating_sub(1) / every,
    };
    let valid: usize = (0..fit.valid.len())
        .map(|idx| fit.valid.n_tokens_of(idx) - 1)
        .sum();
    let evaluated = n_evaluations as f64 * valid as f64 * EVALUATION_SHARE;
    Ok(Trial {
        step_ms: 1e3 * seconds / f64::from(n_timed),
        tokens_per_s,
        peak_bytes: peak_bytes(),
        seconds: (plan.steps as f64 * plan.tokens_per_step + evaluated) / tokens_per_s,
    })
}

/// For people.
pub fn describe(plan: &Plan) -> String {
    let memory = &plan.memory;
    let mut text = plan
        .continuation
        .as_ref()
        .map_or_else(String::new, continuing::describe);
    text += &format!(
        "{}: {} with {} parameters, {} trained\n\
         data: {} rows, {} tokens ({} in the loss); {} rows held out\n\
         steps: {}, {} a pass, {:.0} tokens a step\n\
         memory: about {} (weights {}, gradients {}, optimiser {}, activations {})\n",
        plan.run.display(),
        plan.architecture,
        plan.parameters,
        plan.trained_parameters,
        plan.rows,
        plan.tokens,
        plan.counted_tokens,
        plan.valid_rows,
        plan.steps,
        plan.steps_per_epoch,
        plan.tokens_per_step,
        human_bytes(memory.total),
        human_bytes(memory.weights),
        human_bytes(memory.gradients),
        human_bytes(memory.optimizer),
        human_bytes(memory.activations),
    );
    if let Some(trial) = &plan.trial {
        let peak = trial
            .peak_bytes
            .map(|bytes| format!(", {} at most", human_bytes(bytes)))
            .unwrap_or_default();
        text += &format!(
            "measured: {:.0} ms a step, {:.0} tokens/s{peak}\ntime: about {}\n",
            trial.step_ms,
            trial.tokens_per_s,
            duration(trial.seconds)
        );
    }
    text
}

/// `2 h 5 min`, `45 s`.
fn duration(seconds: f64) -> String {
    let seconds = seconds.round() as u64;
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s} s"),
        (0, min, s) => format!("{min} min {s} s"),
        (h, min, _) => format!("{h} h {min} min"),
    }
}
