//! The learning rate of a step: a function of the config and the number of steps alone.
//!
//! Every schedule rises linearly in the warm-up and ends at `min_lr_ratio` of the peak. WSD (warm-up, stable, decay; `MiniCPM`,
//! arXiv 2404.06395) stays at the peak until the last share of the steps, so that a run can be made longer from any checkpoint
//! before its decay.

use crate::train::config::{DecayShape, Schedule, TrainConfig};
use std::f64::consts::PI;

/// Learning rates of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct LearningRates {
    n_steps: u64,
    warmup: u64,
    peak: f64,
    min_ratio: f64,
    fall: Fall,
}

/// What comes after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fall {
    None,
    /// From the end of the warm-up.
    Whole(DecayShape),
    /// From the step `start`.
    Late {
        start: u64,
        shape: DecayShape,
    },
}

impl LearningRates {
    /// Those of a run of `n_steps` steps.
    pub fn new(train: &TrainConfig, n_steps: u64) -> Self {
        let fall = match train.schedule {
            Schedule::Constant => Fall::None,
            Schedule::Linear => Fall::Whole(DecayShape::Linear),
            Schedule::Cosine => Fall::Whole(DecayShape::Cosine),
            Schedule::Wsd => {
                let decay = (train.decay_share * n_steps as f64).round().max(1.0) as u64;
                Fall::Late {
                    start: n_steps.saturating_sub(decay),
                    shape: train.decay_shape,
                }
            }
        };
        Self {
            n_steps,
            warmup: train.warmup.steps(n_steps),
            peak: train.lr,
            min_ratio: train.min_lr_ratio,
            fall,
        }
    }

    /// The learning rate of step `step`, from 0.
    pub fn at(&self, step: u64) -> f64 {
        if step < self.warmup {
            return self.peak * (step + 1) as f64 / self.warmup as f64;
        }
        let (start, shape) = match self.fall {
            Fall::None => return self.peak,
            Fall::Whole(shape) => (self.warmup, shape),
            Fall::Late { start, shape } => (start.max(self.warmup), shape),
        };
        if step < start {
            return self.peak;
        }
        let len = self.n_steps.saturating_sub(start).max(1);
        // The decay of WSD is under way in its first step; the others begin at the peak.
        let gone = step - start + u64::from(matches!(self.fall, Fall::Late { .. }));
        let done = (gone as f64 / len as f64).min(1.0);
        self.peak * factor(shape, done, self.min_ratio)
    }
}

/// From 1 to `min` as `done` goes from 0 to 1.
fn factor(shape: DecayShape, done: f64, min: f64) -> f64 {
    let share = match shape {
        DecayShape::Sqrt => 1.0 - done.sqrt(),
        DecayShape::Linear => 1.0 - done,
        DecayShape::Cosine => 0.5 * (1.0 + (PI * done).cos()),
        DecayShape::Exponential => return min.powf(done),
    };
    min + (1.0 - min) * share
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::config::Warmup;

    fn rates(schedule: Schedule, change: impl Fn(&mut TrainConfig)) -> Vec<f64> {
        let mut train = TrainConfig {
            lr: 1.0,
            min_lr_ratio: 0.1,
            warmup: Warmup::Steps(2),
            schedule,
            ..TrainConfig::default()
        };
        change(&mut train);
        let rates = LearningRates::new(&train, 12);
        (0..12).map(|step| rates.at(step)).collect()
    }

    fn assert_close(got: &[f64], expected: &[f64]) {
        assert_eq!(got.len(), expected.len());
        for (got, expected) in got.iter().zip(expected) {
            assert!((got - expected).abs() < 1e-6, "{got} instead of {expected}");
        }
    }

    #[test]
    fn schedules_warm_up_and_fall_as_they_are_called() {
        let constant = rates(Schedule::Constant, |_| ());
        assert_close(&constant[..3], &[0.5, 1.0, 1.0]);
        assert!(constant[2..].iter().all(|rate| (rate - 1.0).abs() < 1e-12));
        let linear = rates(Schedule::Linear, |_| ());
        assert_close(&linear[2..5], &[1.0, 0.91, 0.82]);
        let cosine = rates(Schedule::Cosine, |_| ());
        // 0.1 + 0.9 (1 + cos(π k / 10)) / 2 at k = 0, 5, 9
        assert_close(
            &[cosine[2], cosine[7], cosine[11]],
            &[1.0, 0.55, 0.122_024_6],
        );
    }

    #[test]
    fn wsd_is_stable_until_its_decay_and_ends_at_the_lowest_rate() {
        let of = |shape| {
            rates(Schedule::Wsd, |train| {
                (train.decay_share, train.decay_shape) = (0.35, shape);
            })
        };
        for shape in [
            DecayShape::Sqrt,
            DecayShape::Linear,
            DecayShape::Cosine,
            DecayShape::Exponential,
        ] {
            let rates = of(shape);
            assert!(
                rates[1..8].iter().all(|rate| (rate - 1.0).abs() < 1e-12),
                "{shape:?}"
            );
            assert!((rates[11] - 0.1).abs() < 1e-12, "{shape:?}");
        }
        assert_close(&of(DecayShape::Linear)[8..], &[0.775, 0.55, 0.325, 0.1]);
        assert_close(
            &of(DecayShape::Sqrt)[8..10],
            &[0.55, 1.0 - 0.9 * 0.5_f64.sqrt()],
        );
        assert_close(
            &of(DecayShape::Exponential)[8..10],
            &[0.1_f64.powf(0.25), 0.1_f64.sqrt()],
        );
    }

    #[test]
    fn a_share_of_warm_up_grows_with_the_run() {
        let rates = rates(Schedule::Constant, |train| {
            train.warmup = Warmup::Share(0.25);
        });
        assert_close(&rates[..4], &[1.0 / 3.0, 2.0 / 3.0, 1.0, 1.0]);
    }
}
