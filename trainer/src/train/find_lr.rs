//! `fledgling train CONFIG --find-lr`: the learning rate where the loss falls fastest.
//!
//! The learning rate rises by the same factor each step until the loss diverges (Smith 2017, "Cyclical learning rates for training
//! neural networks", section 3.3); the suggestion is where the smoothed loss falls most steeply over the logarithm of the rate,
//! as fastai takes it. Nothing is written.

use super::{fit::Fit, model::Transformer, optim::Optimizer, steps::Steps};
use crate::{interrupt::Graceful, output::step_bar};
use anyhow::{Result, bail};
use serde::Serialize;

/// Where the sweep begins and ends.
const RANGE: (f64, f64) = (1e-7, 10.0);
/// Decay of the mean of the losses.
const SMOOTHING: f64 = 0.9;
/// The sweep ends when the smoothed loss is this many times the lowest.
const DIVERGED: f64 = 4.0;
/// Lines of the table at most.
const MAX_LINES: usize = 24;

/// One step of the sweep.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Point {
    /// Learning rate.
    pub lr: f64,
    /// Loss before the step that took it.
    pub loss: f64,
    /// Mean of the losses so far, later ones counting more.
    pub smoothed: f64,
}

/// What a sweep found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Sweep {
    /// Its steps.
    pub points: Vec<Point>,
    /// Where the loss falls fastest; absent, when it never fell.
    pub suggestion: Option<f64>,
    /// Where it was lowest: a rate that is too high already.
    pub lowest: Option<f64>,
    /// Where it diverged, or what ended the sweep else.
    pub end: &'static str,
}

/// Sweeps with `n_steps` steps on the rows of the run.
///
/// # Errors
/// A loss that is no number at the smallest rate.
pub fn sweep(fit: &Fit, mut model: Transformer, n_steps: usize) -> Result<Sweep> {
    let graceful = Graceful::begin();
    let mut steps = Steps::new(&fit.config, &fit.train);
    let mut optimizer = Optimizer::new(&fit.config.train);
    let bar = step_bar("learning rates", n_steps as u64);
    let (mut points, mut mean, mut best) = (Vec::new(), 0.0, f64::INFINITY);
    let mut end = "the highest rate";
    for i in 0..n_steps {
        let lr = rate(i, n_steps);
        let batches = steps.batches(&fit.train, i as u64);
        let Some((mut found, norm)) =
            fit.gradients(&model, i as u64, &batches, || graceful.asked())
        else {
            end = "interrupted";
            break;
        };
        if !found.loss.is_finite() || !norm.is_finite() {
            end = "the loss is no number";
            break;
        }
        mean = SMOOTHING * mean + (1.0 - SMOOTHING) * found.loss;
        let smoothed = mean / (1.0 - SMOOTHING.powi(i as i32 + 1));
        points.push(Point {
            lr,
            loss: found.loss,
            smoothed,
        });
        best = smoothed.min(best);
        if smoothed > DIVERGED * best {
            end = "the loss diverged";
            break;
        }
        model = optimizer.step(model, &mut found.gradients, lr);
        bar.inc(1);
    }
    bar.finish_and_clear();
    if points.is_empty() && end != "interrupted" {
        bail!("the loss is no number before the first step: the weights or the rows are broken");
    }
    Ok(Sweep {
        suggestion: steepest(&points),
        lowest: lowest(&points).map(|idx| points[idx].lr),
        points,
        end,
    })
}

/// The `i`th of `n` rates, evenly on a logarithmic scale.
fn rate(i: usize, n: usize) -> f64 {
    let (first, last) = RANGE;
    first * (last / first).powf(i as f64 / (n - 1).max(1) as f64)
}

fn lowest(points: &[Point]) -> Option<usize> {
    (0..points.len()).min_by(|&a, &b| points[a].smoothed.total_cmp(&points[b].smoothed))
}

/// The rate before the lowest loss where the smoothed loss falls most over the logarithm of the rate.
fn steepest(points: &[Point]) -> Option<f64> {
    let end = lowest(points)?;
    // A central difference; the rates are even on that scale.
    let slope = |idx: usize| points[idx + 1].smoothed - points[idx - 1].smoothed;
    (1..end)
        .filter(|&idx| slope(idx) < 0.0)
        .min_by(|&a, &b| slope(a).total_cmp(&slope(b)))
        .map(|idx| points[idx].lr)
}

/// For people.
pub fn describe(sweep: &Sweep) -> String {
    let mut text = "learning rate      loss  smoothed\n".to_owned();
    let every = sweep.points.len().div_ceil(MAX_LINES).max(1);
    for point in sweep.points.iter().step_by(every) {
        text += &format!(
            "{:13.2e} {:9.4} {:9.4}\n",
            point.lr, point.loss, point.smoothed
        );
    }
    text += &format!("ended: {}\n", sweep.end);
    match (sweep.suggestion, sweep.lowest) {
        (Some(lr), Some(lowest)) => {
            text += &format!(
                "train.lr = {lr:.1e} (where the loss falls fastest; it is lowest at {lowest:.1e}, which is too high)\n"
            );
        }
        _ => {
            text += "no suggestion: the loss never fell; look at the rows, or give the sweep more steps\n";
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_suggestion_is_where_the_loss_falls_fastest() {
        // Flat, then a fall that is steepest in its middle at 1e-3, then a rise.
        let loss = |lr: f64| {
            let x = lr.log10();
            4.0 - 2.0 / (1.0 + (-4.0 * (x + 3.0)).exp()) + 3.0 * (x + 1.0).max(0.0)
        };
        let points: Vec<_> = (0..100)
            .map(|i| Point {
                lr: rate(i, 100),
                loss: loss(rate(i, 100)),
                smoothed: loss(rate(i, 100)),
            })
            .collect();
        assert!((points[99].lr - 10.0).abs() < 1e-9);
        let suggestion = steepest(&points).unwrap();
        assert!((suggestion.log10() + 3.0).abs() < 0.1, "{suggestion}");
        let rising: Vec<_> = (0..40)
            .map(|i| Point {
                lr: rate(i, 40),
                loss: i as f64,
                smoothed: i as f64,
            })
            .collect();
        assert_eq!(steepest(&rising), None);
        assert_eq!(steepest(&[]), None);
    }
}
