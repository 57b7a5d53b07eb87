//! Whether a run goes well: early stopping, and losses that jump.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::collections::VecDeque;

/// Losses whose median a step's loss is compared with.
const WINDOW: usize = 32;
/// Losses that there must be before any is a spike.
const ENOUGH: usize = 8;

/// What was seen so far; part of the state of a run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Watch {
    /// Losses of the last steps.
    losses: VecDeque<Exact>,
    /// The held-out loss to beat.
    best: Option<Exact>,
    /// Evaluations since that one.
    without_better: u64,
}

impl Watch {
    /// The median that `loss` is more than `factor` times of, if it is; a factor of 0 finds none.
    pub fn spike(&self, loss: f64, factor: f64) -> Option<f64> {
        if factor == 0.0 || self.losses.len() < ENOUGH {
            return None;
        }
        let mut losses: Vec<f64> = self.losses.iter().map(|loss| loss.0).collect();
        losses.sort_by(f64::total_cmp);
        let median = losses[losses.len() / 2];
        (loss > factor * median).then_some(median)
    }

    /// A step was done.
    pub fn step(&mut self, loss: f64) {
        if self.losses.len() == WINDOW {
            self.losses.pop_front();
        }
        self.losses.push_back(Exact(loss));
    }

    /// The held-out rows were measured.
    pub fn evaluation(&mut self, loss: f64, min_delta: f64) {
        if self.best.is_none_or(|best| loss < best.0 - min_delta) {
            (self.best, self.without_better) = (Some(Exact(loss)), 0);
        } else {
            self.without_better += 1;
        }
    }

    /// Whether `patience` evaluations were no better; a patience of 0 has no end.
    pub fn is_over(&self, patience: u64) -> bool {
        patience > 0 && self.without_better >= patience
    }
}

/// A number that comes back from JSON with the same bits, which JSON's own numbers need not.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Exact(pub f64);

impl Serialize for Exact {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Exact {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map(Self).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spike_is_told_from_noise_once_there_are_losses() {
        let mut watch = Watch::default();
        for i in 0..ENOUGH {
            assert_eq!(watch.spike(100.0, 2.0), None, "after {i}");
            watch.step(1.0 + 0.1 * (i % 3) as f64);
        }
        assert_eq!(watch.spike(2.1, 2.0), None);
        assert_eq!(watch.spike(2.3, 2.0), Some(1.1));
        assert_eq!(watch.spike(1e9, 0.0), None, "off");
        for _ in 0..WINDOW {
            watch.step(4.0);
        }
        assert_eq!(watch.spike(2.3, 2.0), None, "old losses are forgotten");
    }

    #[test]
    fn patience_ends_after_evaluations_that_are_not_better_by_enough() {
        let mut watch = Watch::default();
        let mut over = |loss| {
            watch.evaluation(loss, 0.1);
            watch.is_over(2)
        };
        assert!(!over(3.0));
        assert!(!over(2.95), "better, but not by enough");
        assert!(!over(2.8));
        assert!(!over(2.9));
        assert!(over(2.75));
        assert!(!over(2.0), "somebody raised the patience and went on");
        assert!(
            !Watch {
                without_better: 9,
                ..Watch::default()
            }
            .is_over(0)
        );
    }

    #[test]
    fn a_watch_comes_back_with_its_bits() {
        let mut watch = Watch::default();
        for i in 1..200 {
            watch.step((f64::from(i) / 7.0).ln());
            watch.evaluation(1.0 / f64::from(i), 0.0);
        }
        let text = serde_json::to_string(&watch).unwrap();
        assert_eq!(serde_json::from_str::<Watch>(&text).unwrap(), watch);
    }
}
