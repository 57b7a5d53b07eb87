//! The training loop.
//!
//! Each turn stands between two steps: evaluate where it is due, write a checkpoint where it is due, leave or take the next
//! step. A run that was stopped at any moment enters the loop where its last checkpoint was written, and does the same.

use super::{
    checkpoint::{Progress, State, save_state, save_weights},
    checkpoints::Checkpoints,
    config::Config,
    data::{Rows, collate, sorted_batches},
    loss::loss_sum,
    mirror::Uploader,
    model::Transformer,
    optim::{LearningRates, Optimizer, clip},
    progress::Reporter,
    qat::Qat,
    samples::Samples,
    steps::{StepGradients, Steps, gradients_of},
    watch::Exact,
};
use crate::{
    files::write_whole,
    interrupt::Graceful,
    manifest::Origin,
    report::events::{Begin, Step},
    run::{CONFIG_FILE, HEADER_FILE, LoraSize, RECORD_FILE, Record},
};
use anyhow::{Context, Result, bail, ensure};
use burn::{module::Module, tensor::Device};
use fledgling_core::spec::TensorEntry;
use serde::Serialize;
use std::{
    path::{Path, PathBuf},
    time::Instant,
};

/// Rows that a message names at most.
const MAX_PLACES: usize = 8;

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
    /// The quantisation that is trained for.
    pub qat: Option<Qat>,
    /// Token that fills the ends of short rows; nothing depends on it.
    pub pad: u32,
    /// Prompts to answer at each evaluation.
    pub samples: Option<Samples>,
    /// What its checkpoints belong to.
    pub origin: Origin,
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
    /// Whether it ended before the last step, and is to be gone on with.
    pub interrupted: bool,
    /// Whether it ended because the held-out loss became no better.
    pub stopped_early: bool,
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

/// Mean loss over the counted positions of `rows`. Nothing, when `stop` says so in between.
pub fn validate(
    model: &Transformer,
    rows: &Rows,
    batch: usize,
    pad: u32,
    stop: impl Fn() -> bool,
) -> Option<f64> {
    let model = model.valid();
    let mut sum = 0.0;
    for indices in sorted_batches(rows, batch) {
        if stop() {
            return None;
        }
        sum += loss_sum(&model, &collate(rows, &indices, pad));
    }
    Some(sum / rows.n_counted() as f64)
}

/// What a run has at any step.
struct Now {
    model: Transformer,
    optimizer: Optimizer,
    progress: Progress,
    /// Step of the last checkpoint.
    saved: Option<u64>,
}

/// Sums over the steps of this process.
#[derive(Default)]
struct Tally {
    loss: Option<f64>,
    n_counted: u64,
    n_positions: u64,
    seconds: f64,
}

impl Fit {
    /// Trains `model` to the end, or until Ctrl-C or the step `until`; with `state` goes on where that was written. Checkpoints
    /// are offered to `uploader`.
    ///
    /// # Errors
    /// A loss that is no number or jumps, or files that cannot be written.
    pub fn run(
        mut self,
        model: Transformer,
        state: Option<State>,
        until: Option<u64>,
        reporter: &mut Reporter,
        uploader: Option<&Uploader>,
    ) -> Result<Outcome> {
        let graceful = Graceful::begin();
        let started = Instant::now();
        let mut steps = Steps::new(&self.config, &self.train);
        let n_steps = steps.len();
        let rates = LearningRates::new(&self.config.train, n_steps);
        let mut now = self.begin(model, state)?;
        reporter.begin(Begin::of(&self, &now.model, now.progress.step))?;
        let mut tally = Tally::default();
        let stopped_early = loop {
            let step = now.progress.step;
            if !self.evaluate_if_due(&mut now, n_steps, &graceful, reporter)? {
                break false;
            }
            let early = step < n_steps && now.progress.watch.is_over(self.config.train.patience);
            let over = early || step >= n_steps;
            if (over || self.saves_at(step)) && now.saved != Some(step) {
                self.save(&mut now, reporter, uploader)?;
            }
            if over || graceful.asked() || until.is_some_and(|until| step >= until) {
                break early;
            }
            let step_started = Instant::now();
            let batches = steps.batches(&self.train, step);
            let Some((mut found, norm)) =
                self.gradients(&now.model, step, &batches, || graceful.asked())
            else {
                break false;
            };
            self.check(&found, norm, &now, &batches)?;
            let lr = rates.at(step);
            now.model = now.optimizer.step(now.model, &mut found.gradients, lr);
            now.progress.step += 1;
            now.progress.watch.step(found.loss);
            let step_s = step_started.elapsed().as_secs_f64();
            tally.add(&found, step_s);
            reporter.step(Step {
                step: now.progress.step,
                loss: found.loss,
                lr,
                grad_norm: norm,
                tokens_per_s: found.n_positions as f64 / step_s,
                tokens: found.n_counted as u64,
                ..Step::default()
            })?;
        };
        if now.saved != Some(now.progress.step) {
            self.save(&mut now, reporter, uploader)?;
        }
        if now.progress.kept_step.is_none() {
            let before = now.progress.valid_before.map(|loss| loss.0);
            self.keep(&now.model, now.progress.step, None, before)?;
        }
        if stopped_early {
            reporter.note(format!(
                "stopped early: {} evaluations were no better than the best (train.patience)",
                self.config.train.patience
            ))?;
        }
        Ok(self.outcome(
            &now,
            &tally,
            n_steps,
            stopped_early,
            started.elapsed().as_secs_f64(),
        ))
    }

    /// The gradients of a step, clipped, and their norm before. Nothing, when `stop` says so in between.
    pub(super) fn gradients(
        &self,
        model: &Transformer,
        step: u64,
        batches: &[Vec<usize>],
        stop: impl Fn() -> bool,
    ) -> Option<(StepGradients, f64)> {
        let train = &self.config.train;
        let view = self.view(model, step);
        let mut found = gradients_of(
            view.as_ref().unwrap_or(model),
            &self.train,
            batches,
            self.pad,
            train.recompute,
            (self.config.seed, step),
            stop,
        )?;
        let norm = clip(
            &mut found.gradients,
            (train.clip > 0.0).then_some(train.clip),
        );
        Some((found, norm))
    }

    /// What is trained instead of the model itself, in steps that train for a quantisation.
    fn view(&self, model: &Transformer, step: u64) -> Option<Transformer> {
        let begins = self.config.qat.as_ref().map_or(0, |qat| qat.start_step);
        let qat = self.qat.as_ref().filter(|_| step >= begins)?;
        Some(qat.view(model))
    }

    fn begin(&self, model: Transformer, state: Option<State>) -> Result<Now> {
        let mut optimizer = Optimizer::new(&self.config.train);
        let Some(mut state) = state else {
            return Ok(Now {
                model,
                optimizer,
                progress: Progress::default(),
                saved: None,
            });
        };
        state.restore(&mut optimizer, &self.device.clone().inner())?;
        Ok(Now {
            model,
            optimizer,
            saved: Some(state.progress.step),
            progress: state.progress,
        })
    }

    fn outcome(
        &self,
        now: &Now,
        tally: &Tally,
        n_steps: u64,
        stopped_early: bool,
        seconds: f64,
    ) -> Outcome {
        let progress = &now.progress;
        let before = progress.valid_before.map(|loss| loss.0);
        let kept = progress.kept_loss.map(|loss| loss.0);
        Outcome {
            run: self.folder.clone(),
            step: progress.step,
            steps: n_steps,
            interrupted: progress.step < n_steps && !stopped_early,
            stopped_early,
            train_loss: tally.loss,
            valid_loss_before: before,
            valid_loss: kept,
            valid_perplexity_before: before.map(f64::exp),
            valid_perplexity: kept.map(f64::exp),
            kept_step: progress.kept_step.unwrap_or(progress.step),
            trained_parameters: count_trained(&now.model),
            tokens: tally.n_counted,
            tokens_per_s: if tally.seconds > 0.0 {
                tally.n_positions as f64 / tally.seconds
            } else {
                0.0
            },
            seconds,
        }
    }

    fn saves_at(&self, step: u64) -> bool {
        let train = &self.config.train;
        let every = match train.save_every {
            0 => train.eval_every,
            every => every,
        };
        step > 0 && every > 0 && step.is_multiple_of(every)
    }

    /// Measures the held-out rows and answers the prompts where it is time; keeps these weights when they are the best, or
    /// when there is nothing to tell by. False, when Ctrl-C came in between: then it is done by the run that goes on.
    fn evaluate_if_due(
        &mut self,
        now: &mut Now,
        n_steps: u64,
        graceful: &Graceful,
        reporter: &mut Reporter,
    ) -> Result<bool> {
        let step = now.progress.step;
        let every = self.config.train.eval_every;
        let due = step == 0 || step == n_steps || (every > 0 && step.is_multiple_of(every));
        if !due || now.progress.evaluated == Some(step) {
            return Ok(true);
        }
        if !self.valid.is_empty() {
            let stop = || graceful.asked();
            let batch = self.config.train.batch;
            // Of the weights as an export will hold them.
            let view = self.qat.as_ref().map(|qat| qat.view(&now.model));
            let model = view.as_ref().unwrap_or(&now.model);
            let Some(loss) = validate(model, &self.valid, batch, self.pad, stop) else {
                return Ok(false);
            };
            reporter.validation(step, loss)?;
            ensure!(
                loss.is_finite(),
                "the loss on the held-out rows is {loss} after step {step}: lower train.lr{}",
                self.last_checkpoint(now)
            );
            self.consider(now, loss)?;
        } else if step > 0 {
            now.progress.kept_step = Some(step);
            self.keep(&now.model, step, None, None)?;
        }
        now.progress.evaluated = Some(step);
        if let Some(samples) = &self.samples {
            for (prompt, text) in samples.answer(&now.model, || graceful.asked())? {
                reporter.sample(step, prompt, &text)?;
            }
        }
        Ok(true)
    }

    /// Keeps these weights when `loss`, that on the held-out rows, is the lowest.
    fn consider(&mut self, now: &mut Now, loss: f64) -> Result<()> {
        let progress = &mut now.progress;
        if progress.step == 0 {
            progress.valid_before = Some(Exact(loss));
            return Ok(());
        }
        progress.watch.evaluation(loss, self.config.train.min_delta);
        if progress.kept_loss.is_none_or(|best| loss < best.0) {
            (progress.kept_step, progress.kept_loss) = (Some(progress.step), Some(Exact(loss)));
            let before = progress.valid_before.map(|loss| loss.0);
            self.keep(&now.model, now.progress.step, Some(loss), before)?;
        }
        Ok(())
    }

    /// Writes the weights and the record of the run.
    fn keep(
        &mut self,
        model: &Transformer,
        step: u64,
        loss: Option<f64>,
        before: Option<f64>,
    ) -> Result<()> {
        self.save_weights(&self.folder, model)?;
        self.record.step = step;
        self.record.valid_perplexity = loss.map(f64::exp);
        self.record.valid_perplexity_before = before.map(f64::exp);
        write_record(&self.folder, &self.record)
    }

    fn save_weights(&self, folder: &Path, model: &Transformer) -> Result<()> {
        let lora = self.lora.as_ref();
        let lora = lora.map(|(size, entries)| (*size, entries.as_slice()));
        save_weights(folder, model, lora, &self.config)
    }

    /// Writes a checkpoint, which opens as a run of its own.
    fn save(
        &self,
        now: &mut Now,
        reporter: &mut Reporter,
        uploader: Option<&Uploader>,
    ) -> Result<()> {
        let step = now.progress.step;
        let record = Record {
            step,
            valid_perplexity: None,
            ..self.record.clone()
        };
        let fill = |folder: &Path| {
            for file in [HEADER_FILE, CONFIG_FILE] {
                let from = self.folder.join(file);
                let bytes = std::fs::read(&from)
                    .with_context(|| format!("cannot read {}", from.display()))?;
                write_whole(&folder.join(file), &bytes)?;
            }
            write_record(folder, &record)?;
            self.save_weights(folder, &now.model)?;
            let lora = self.lora.is_some();
            save_state(folder, &now.model, lora, &now.optimizer, &now.progress)
        };
        let checkpoints = Checkpoints::of(&self.folder);
        let keep_last = self.config.train.keep_last;
        let path = checkpoints.write(step, &self.origin, keep_last, fill)?;
        now.saved = Some(step);
        reporter.checkpoint(step, &path.display())?;
        uploader.map_or(Ok(()), |uploader| uploader.offer(step))
    }

    /// Ends the run where the loss is no number, or jumps, before the weights are touched.
    fn check(
        &self,
        found: &StepGradients,
        norm: f64,
        now: &Now,
        batches: &[Vec<usize>],
    ) -> Result<()> {
        let (step, last) = (now.progress.step + 1, self.last_checkpoint(now));
        let places = || self.places(found, batches);
        ensure!(
            found.loss.is_finite() && norm.is_finite(),
            "the loss is {} and the norm of the gradients {norm} at step {step}: lower train.lr or raise train.warmup, or look at {}{last}",
            found.loss,
            places()
        );
        if let Some(median) = now
            .progress
            .watch
            .spike(found.loss, self.config.train.spike)
        {
            bail!(
                "the loss jumps to {:.4} at step {step}, more than train.spike = {} times the median {median:.4} of the last steps: look at {}, lower train.lr, or go on with a higher train.spike{last}",
                found.loss,
                self.config.train.spike,
                places()
            );
        }
        Ok(())
    }

    /// The rows of the batch with the highest loss, which is the first that is no number where there is one.
    fn places(&self, found: &StepGradients, batches: &[Vec<usize>]) -> String {
        let rank = |loss: f64| {
            if loss.is_finite() {
                loss
            } else {
                f64::INFINITY
            }
        };
        let mut worst = 0;
        for (idx, &loss) in found.losses.iter().enumerate() {
            if rank(loss) > rank(found.losses[worst]) {
                worst = idx;
            }
        }
        let rows = &batches[worst];
        let mut places: Vec<_> = rows
            .iter()
            .take(MAX_PLACES)
            .map(|&idx| self.train.place_of(idx).into_owned())
            .collect();
        if rows.len() > MAX_PLACES {
            places.push(format!("and {} more", rows.len() - MAX_PLACES));
        }
        format!(
            "the rows of its batch {} of {} (mean loss {}): {}",
            worst + 1,
            batches.len(),
            found.losses[worst],
            places.join(", ")
        )
    }

    /// What is left when the run ends here, for messages.
    fn last_checkpoint(&self, now: &Now) -> String {
        match now.saved {
            Some(step) => format!(
                ". The last checkpoint is {}; --resume goes on from it",
                Checkpoints::of(&self.folder).path(step).display()
            ),
            None => ". There is no checkpoint yet".to_owned(),
        }
    }
}

impl Tally {
    fn add(&mut self, found: &StepGradients, seconds: f64) {
        self.loss = Some(found.loss);
        self.n_counted += found.n_counted as u64;
        self.n_positions += found.n_positions as u64;
        self.seconds += seconds;
    }
}

fn write_record(folder: &Path, record: &Record) -> Result<()> {
    let text = serde_json::to_string_pretty(record)? + "\n";
    write_whole(&folder.join(RECORD_FILE), text.as_bytes())
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
