//! What a step is made of: its rows, their batches, and the gradients over all of them.
//!
//! The rows of a step are `batch * accumulate` rows of a shuffled pass; only how they are computed depends on how this
//! product is split. The loss of a step is the mean over all its counted positions, so one batch of 32 rows, four of 8 and
//! thirty-two of 1 give the same step up to the rounding of sums.

use super::{
    config::Config,
    data::{Rows, collate, epoch_batches},
    dropout::Moment,
    loss::{Gradients, loss_and_gradients},
    model::Transformer,
    optim::accumulate,
    recompute,
};

/// The steps of a run: a function of config and rows alone, so that a resumed run takes the same.
#[derive(Debug)]
#[expect(clippy::struct_field_names, reason = "numbers of steps, and of what")]
pub struct Steps {
    batch: usize,
    rows_per_step: usize,
    seed: u64,
    steps_per_epoch: u64,
    n_steps: u64,
    /// The last pass that was asked for, by step.
    epoch: Option<(u64, Vec<Vec<usize>>)>,
}

impl Steps {
    /// Those over `rows`.
    pub fn new(config: &Config, rows: &Rows) -> Self {
        let rows_per_step = config.train.batch * config.train.accumulate;
        Self {
            batch: config.train.batch,
            rows_per_step,
            seed: config.seed,
            steps_per_epoch: rows.n_shown().div_ceil(rows_per_step) as u64,
            n_steps: n_steps(config, rows.n_shown()),
            epoch: None,
        }
    }

    /// How many there are.
    pub fn len(&self) -> u64 {
        self.n_steps
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.n_steps == 0
    }

    /// The batches of step `step`, from 0, as indices of rows: rows of like length together. The last step of a pass may have
    /// fewer rows.
    pub fn batches(&mut self, rows: &Rows, step: u64) -> Vec<Vec<usize>> {
        let wanted = step / self.steps_per_epoch;
        if self
            .epoch
            .as_ref()
            .is_none_or(|(epoch, _)| *epoch != wanted)
        {
            let steps = epoch_batches(rows, self.rows_per_step, self.seed, wanted);
            self.epoch = Some((wanted, steps));
        }
        let of_step = self.epoch.as_ref().map_or(&[][..], |(_, steps)| {
            &steps[(step % self.steps_per_epoch) as usize]
        });
        split(rows, of_step, self.batch)
    }

    /// Positions that a pass computes, padding included.
    pub fn positions_per_epoch(&mut self, rows: &Rows) -> u64 {
        (0..self.steps_per_epoch)
            .flat_map(|step| self.batches(rows, step))
            .map(|batch| n_positions(rows, &batch) as u64)
            .sum()
    }

    /// Steps of a pass.
    pub fn per_epoch(&self) -> u64 {
        self.steps_per_epoch
    }
}

/// Optimiser steps of a run over `n_rows` rows.
pub fn n_steps(config: &Config, n_rows: usize) -> u64 {
    let per_epoch = n_rows.div_ceil(config.train.batch * config.train.accumulate) as u64;
    config
        .train
        .steps
        .unwrap_or(per_epoch * config.train.epochs)
}

/// The rows of a step in batches of `batch`, by length.
fn split(rows: &Rows, of_step: &[usize], batch: usize) -> Vec<Vec<usize>> {
    let mut order = of_step.to_vec();
    order.sort_by_key(|&idx| rows.n_tokens_of(idx));
    order.chunks(batch).map(<[usize]>::to_vec).collect()
}

/// Positions of a batch, padding included.
pub fn n_positions(rows: &Rows, batch: &[usize]) -> usize {
    let longest = batch.iter().map(|&idx| rows.n_tokens_of(idx) - 1).max();
    batch.len() * longest.unwrap_or(0)
}

/// What a step's batches give.
#[derive(Debug)]
pub struct StepGradients {
    /// Mean loss over the counted positions.
    pub loss: f64,
    /// Of the mean loss, by parameter.
    pub gradients: Gradients,
    /// Mean loss of each batch.
    pub losses: Vec<f64>,
    /// Positions computed, padding included.
    pub n_positions: usize,
    /// Counted positions.
    pub n_counted: usize,
}

/// Gradients of the mean loss over all counted positions of the given batches; `seed` and `step` tell what dropout leaves
/// out. Nothing, when `stop` says so in between.
pub fn gradients_of(
    model: &Transformer,
    rows: &Rows,
    batches: &[Vec<usize>],
    pad: u32,
    recompute: bool,
    (seed, step): (u64, u64),
    stop: impl Fn() -> bool,
) -> Option<StepGradients> {
    let counted =
        |batch: &[usize]| -> usize { batch.iter().map(|&idx| rows.n_counted_of(idx)).sum() };
    let n_counted: usize = batches.iter().map(|batch| counted(batch)).sum();
    let scale = 1.0 / n_counted as f64;
    let (mut sum, mut gradients, mut losses) = (0.0, Gradients::new(), Vec::new());
    let mut first_row = 0;
    for indices in batches {
        if stop() {
            return None;
        }
        let batch = collate(rows, indices, pad);
        let model = model.dropping(&Moment {
            seed,
            step,
            first_row,
            n_tokens: batch.n_tokens,
        });
        first_row += batch.n_rows as u64;
        let (loss, new) = if recompute {
            recompute::loss_and_gradients(&model, &batch, scale)
        } else {
            loss_and_gradients(&model, &batch, scale)
        };
        sum += loss;
        losses.push(loss / counted(indices) as f64);
        accumulate(&mut gradients, new);
    }
    Some(StepGradients {
        loss: sum / n_counted as f64,
        gradients,
        losses,
        n_positions: batches.iter().map(|batch| n_positions(rows, batch)).sum(),
        n_counted,
    })
}
