//! The training loop.

use super::{
    checkpoint::{Progress, State, load_state, save_state, save_weights},
    config::{Config, Mode},
    data::{Rows, collate, epoch_batches, sorted_batches},
    loss::{Gradients, loss_and_gradients, loss_sum},
    model::Transformer,
    optim::{AdamW, AdamWConfig, accumulate, clip, learning_rate},
    progress::Reporter,
};
use crate::{
    interrupt::Graceful,
    report::events::{Begin, Step},
    run::{LoraSize, RECORD_FILE, Record},
};
use anyhow::{Result, bail, ensure};
use burn::{module::Module, tensor::Device};
use fledgling_core::spec::TensorEntry;
use serde::Serialize;
use std::{path::PathBuf, time::Instant};

/// Everything a run needs.
#[derive(Debug)]
pub struct Fit {
    /// The config.
    pub config: Config,
    /// The run's folder.
    pub folder: PathBuf,
    /// What `run.json` says; grows with the run.
    pub record: Record,
    /// Rows to learn from.
    pub train: Rows,
    /// Rows held out.
    pub valid: Rows,
    /// The matrices with a LoRA, and its size.
    pub lora: Option<(LoraSize, Vec<TensorEntry>)>,
    /// Token that fills the ends of short rows; nothing depends on it.
    pub pad: u32,
    /// Fingerprint of rows and config.
    pub fingerprint: String,
    /// Where it computes.
    pub device: Device,
}

/// How a run ended.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    /// The run's folder.
    pub run: PathBuf,
    /// Steps done.
    pub step: u64,
    /// Steps planned.
    pub steps: u64,
    /// Whether it ended before the last step.
    pub interrupted: bool,
    /// Mean loss of the last step.
    pub train_loss: Option<f64>,
    /// Held-out loss before the first step.
    pub valid_loss_before: Option<f64>,
    /// Held-out loss of the weights that were kept.
    pub valid_loss: Option<f64>,
    /// Held-out perplexity before the first step.
    pub valid_perplexity_before: Option<f64>,
    /// Held-out perplexity of the weights that were kept.
    pub valid_perplexity: Option<f64>,
    /// Step of the weights that were kept.
    pub kept_step: u64,
    /// Trained parameters.
    pub trained_parameters: usize,
    /// Counted tokens that were trained on.
    pub tokens: u64,
    /// Positions computed for a second of training, padding and prompts included.
    pub tokens_per_s: f64,
    /// Seconds of training and validation.
    pub seconds: f64,
}

/// Constants of the optimiser from the config.
pub fn adamw_config(config: &Config) -> AdamWConfig {
    let train = &config.train;
    AdamWConfig {
        beta1: train.beta1,
        beta2: train.beta2,
        eps: train.eps,
        weight_decay: train.weight_decay,
    }
}

/// Optimiser steps of a run over `n_rows` rows.
pub fn n_steps(config: &Config, n_rows: usize) -> u64 {
    let batches = n_rows.div_ceil(config.train.batch) as u64 * config.train.epochs;
    config
        .train
        .steps
        .unwrap_or_else(|| batches.div_ceil(config.train.accumulate as u64))
}

/// Mean loss over the counted positions of `rows`.
pub fn validate(model: &Transformer, rows: &Rows, batch: usize, pad: u32) -> f64 {
    let model = model.valid();
    let sum: f64 = sorted_batches(rows, batch)
        .iter()
        .map(|indices| loss_sum(&model, &collate(rows, indices, pad)))
        .sum();
    sum / rows.n_counted() as f64
}

/// Gradients of the mean loss over all counted positions of the given batches, and that loss; also the positions computed.
pub fn gradients_of(
    model: &Transformer,
    rows: &Rows,
    batches: &[Vec<usize>],
    pad: u32,
) -> (f64, Gradients, usize) {
    let n_counted: usize = batches
        .iter()
        .flatten()
        .map(|&idx| rows.n_counted_of(idx))
        .sum();
    let (mut sum, mut gradients, mut n_positions) = (0.0, Gradients::new(), 0);
    for indices in batches {
        let batch = collate(rows, indices, pad);
        n_positions += batch.tokens.len();
        let (loss, new) = loss_and_gradients(model, &batch, 1.0 / n_counted as f64);
        sum += loss;
        accumulate(&mut gradients, new);
    }
    (sum / n_counted as f64, gradients, n_positions)
}

/// The batches of step `step`: a function of config and step alone, so that a resumed run takes the same.
pub fn step_batches(config: &Config, rows: &Rows, step: u64) -> Vec<Vec<usize>> {
    let per_epoch = rows.n_shown().div_ceil(config.train.batch) as u64;
    let accumulate = config.train.accumulate as u64;
    let mut epoch = None;
    (step * accumulate..(step + 1) * accumulate)
        .map(|position| {
            let wanted = position / per_epoch;
            if epoch.as_ref().is_none_or(|(number, _)| *number != wanted) {
                epoch = Some((
                    wanted,
                    epoch_batches(rows, config.train.batch, config.seed, wanted),
                ));
            }
            epoch.as_ref().map_or_else(Vec::new, |(_, batches)| {
                batches[(position % per_epoch) as usize].clone()
            })
        })
        .collect()
}

impl Fit {
    /// Trains `model` to the end, or until Ctrl-C or the step `until`; with `state` goes on where that was written.
    ///
    /// # Errors
    /// A loss that is no number, or files that cannot be written.
    pub fn run(
        mut self,
        mut model: Transformer,
        state: Option<&State>,
        until: Option<u64>,
        reporter: &mut Reporter,
    ) -> Result<Outcome> {
        let graceful = Graceful::begin();
        let started = Instant::now();
        let n_steps = n_steps(&self.config, self.train.n_shown());
        let (mut progress, mut optimizer) = match state {
            Some(state) => (
                state.progress.clone(),
                state.optimizer(adamw_config(&self.config), &self.device.clone().inner()),
            ),
            None => (
                Progress {
                    fingerprint: self.fingerprint.clone(),
                    ..Progress::default()
                },
                AdamW::new(adamw_config(&self.config)),
            ),
        };
        reporter.begin(Begin::of(&self, &model, progress.step))?;
        if progress.step == 0 && !self.valid.is_empty() {
            let loss = self.validate(&model);
            progress.valid_before = Some(loss);
            reporter.validation(0, loss)?;
        }
        let (mut train_loss, mut counted, mut positions, mut training_s) =
            (None, 0_u64, 0_u64, 0.0);
        let last = until.unwrap_or(n_steps).min(n_steps);
        while progress.step < last && !graceful.asked() {
            let step_started = Instant::now();
            let batches = step_batches(&self.config, &self.train, progress.step);
            let lr = self.learning_rate(progress.step, n_steps);
            let (loss, mut gradients, n_positions) =
                gradients_of(&model, &self.train, &batches, self.pad);
            let norm = clip(
                &mut gradients,
                (self.config.train.clip > 0.0).then_some(self.config.train.clip),
            );
            if !loss.is_finite() || !norm.is_finite() {
                self.give_up(loss, norm, progress.step, &batches)?;
            }
            model = optimizer.step(model, &mut gradients, lr);
            progress.step += 1;
            let step_s = step_started.elapsed().as_secs_f64();
            training_s += step_s;
            positions += n_positions as u64;
            let n_counted = batches
                .iter()
                .flatten()
                .map(|&idx| self.train.n_counted_of(idx) as u64)
                .sum::<u64>();
            counted += n_counted;
            train_loss = Some(loss);
            reporter.step(Step {
                step: progress.step,
                loss,
                lr,
                grad_norm: norm,
                tokens_per_s: n_positions as f64 / step_s,
                tokens: n_counted,
                ..Step::default()
            })?;
            let step = progress.step;
            let every = |n: u64| n > 0 && step.is_multiple_of(n);
            if every(self.config.train.eval_every) || step == n_steps {
                self.consider(&model, &mut progress, reporter)?;
            }
            if every(self.config.train.save_every) || step == n_steps {
                save_state(&self.folder, &model, &optimizer, &progress)?;
                reporter.checkpoint(step, self.folder.display())?;
            }
        }
        let interrupted = progress.step < n_steps;
        if interrupted {
            save_state(&self.folder, &model, &optimizer, &progress)?;
            reporter.checkpoint(progress.step, self.folder.display())?;
            if progress.kept_step.is_none() {
                self.keep(&model, progress.step, None, progress.valid_before)?;
            }
        }
        Ok(Outcome {
            run: self.folder.clone(),
            step: progress.step,
            steps: n_steps,
            interrupted,
            train_loss,
            valid_loss_before: progress.valid_before,
            valid_loss: progress.kept_loss,
            valid_perplexity_before: progress.valid_before.map(f64::exp),
            valid_perplexity: progress.kept_loss.map(f64::exp),
            kept_step: progress.kept_step.unwrap_or(progress.step),
            trained_parameters: count_trained(&model),
            tokens: counted,
            tokens_per_s: if training_s > 0.0 {
                positions as f64 / training_s
            } else {
                0.0
            },
            seconds: started.elapsed().as_secs_f64(),
        })
    }

    fn validate(&self, model: &Transformer) -> f64 {
        validate(model, &self.valid, self.config.train.batch, self.pad)
    }

    fn learning_rate(&self, step: u64, n_steps: u64) -> f64 {
        let train = &self.config.train;
        learning_rate(
            train.schedule,
            step,
            n_steps,
            train.warmup,
            train.lr,
            train.min_lr_ratio,
        )
    }

    /// Keeps these weights when they are the best on the held-out rows, or when there are none to tell.
    fn consider(
        &mut self,
        model: &Transformer,
        progress: &mut Progress,
        reporter: &mut Reporter,
    ) -> Result<()> {
        if self.valid.is_empty() {
            progress.kept_step = Some(progress.step);
            return self.keep(model, progress.step, None, None);
        }
        let loss = self.validate(model);
        reporter.validation(progress.step, loss)?;
        ensure!(
            loss.is_finite(),
            "the loss on the held-out rows is {loss} after step {}: lower train.lr",
            progress.step
        );
        if progress.kept_loss.is_none_or(|best| loss < best) {
            (progress.kept_step, progress.kept_loss) = (Some(progress.step), Some(loss));
            self.keep(model, progress.step, Some(loss), progress.valid_before)?;
        }
        Ok(())
    }

    fn keep(
        &mut self,
        model: &Transformer,
        step: u64,
        loss: Option<f64>,
        before: Option<f64>,
    ) -> Result<()> {
        save_weights(
            &self.folder,
            model,
            self.lora
                .as_ref()
                .map(|(size, entries)| (*size, entries.as_slice())),
            &self.config,
        )?;
        self.record.step = step;
        self.record.valid_perplexity = loss.map(f64::exp);
        self.record.valid_perplexity_before = before.map(f64::exp);
        let text = serde_json::to_string_pretty(&self.record)? + "\n";
        crate::files::write_whole(&self.folder.join(RECORD_FILE), text.as_bytes())
    }

    fn give_up(&self, loss: f64, norm: f64, step: u64, batches: &[Vec<usize>]) -> Result<()> {
        let places: Vec<_> = batches
            .iter()
            .flatten()
            .map(|&idx| self.train.place_of(idx))
            .collect();
        bail!(
            "the loss is {loss} and the norm of the gradients {norm} at step {}: lower train.lr or raise train.warmup, or look at the rows of this step: {}",
            step + 1,
            places.join(", ")
        )
    }
}

/// Trained parameters.
pub fn count_trained(model: &Transformer) -> usize {
    let mut n = 0;
    super::model::visit_parameters(model, |_, value, trained| {
        if trained {
            n += value.shape().num_elements();
        }
    });
    n
}

/// Opens the state of an interrupted run and checks that it belongs to this config and these rows.
///
/// # Errors
/// When there is none, or config or rows have changed since.
pub fn resume(fit: &Fit) -> Result<State> {
    let state = load_state(&fit.folder)?;
    ensure!(
        state.progress.fingerprint == fit.fingerprint,
        "cannot resume {}: the config or the rows have changed since it was written; start it anew under another name",
        fit.folder.display()
    );
    Ok(state)
}

/// Whether a mode trains LoRA matrices.
pub fn is_lora(config: &Config) -> bool {
    config.mode == Mode::Lora
}
