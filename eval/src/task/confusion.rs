//! What was taken for what.

use crate::stats::{Estimate, bootstrap};
use serde::Serialize;

/// Draws of the bootstrap for macro-F1.
const N_DRAWS: usize = 1000;

/// Counts of each class against each.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Confusion {
    /// The classes.
    pub labels: Vec<String>,
    /// `counts[right][predicted]`.
    pub counts: Vec<Vec<u64>>,
    /// Of each class.
    pub classes: Vec<Class>,
    /// Mean F1 of the classes that occur; its standard error by a bootstrap of 1,000 draws.
    pub macro_f1: Estimate,
}

/// Figures of one class; 0 where there is nothing to divide by, as scikit-learn has it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Class {
    /// Its name.
    pub label: String,
    /// Of those that were taken for it, the share that is it.
    pub precision: f64,
    /// Of those that are it, the share that was taken for it.
    pub recall: f64,
    /// Their harmonic mean.
    pub f1: f64,
    /// How many are it.
    pub support: u64,
}

impl Confusion {
    /// Of pairs (right, predicted).
    pub fn new(labels: Vec<String>, pairs: &[(usize, usize)]) -> Self {
        let counts = count(labels.len(), pairs.iter().copied());
        let classes = labels.iter().enumerate();
        let classes = classes.map(|(i, label)| class(&counts, i, label.clone()));
        let classes = classes.collect();
        let n_labels = labels.len();
        let drawn = |drawn: &[usize]| macro_f1(&count(n_labels, drawn.iter().map(|&i| pairs[i])));
        let macro_f1 = Estimate {
            value: macro_f1(&counts),
            stderr: bootstrap(pairs.len(), N_DRAWS, drawn),
        };
        Self {
            labels,
            counts,
            classes,
            macro_f1,
        }
    }
}

fn count(n: usize, pairs: impl Iterator<Item = (usize, usize)>) -> Vec<Vec<u64>> {
    let mut counts = vec![vec![0; n]; n];
    for (right, predicted) in pairs {
        counts[right][predicted] += 1;
    }
    counts
}

fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        0.0
    } else {
        part as f64 / whole as f64
    }
}

fn class(counts: &[Vec<u64>], i: usize, label: String) -> Class {
    let hits = counts[i][i];
    let support = counts[i].iter().sum();
    let predicted = counts.iter().map(|row| row[i]).sum();
    Class {
        label,
        precision: share(hits, predicted),
        recall: share(hits, support),
        f1: share(2 * hits, support + predicted),
        support,
    }
}

/// Over the classes that occur or were predicted, as scikit-learn has it.
fn macro_f1(counts: &[Vec<u64>]) -> f64 {
    let (mut sum, mut n) = (0.0, 0.0);
    let mut predicted = vec![0; counts.len()];
    for row in counts {
        for (sum, count) in predicted.iter_mut().zip(row) {
            *sum += count;
        }
    }
    for (i, row) in counts.iter().enumerate() {
        let both = row.iter().sum::<u64>() + predicted[i];
        if both > 0 {
            sum += share(2 * row[i], both);
            n += 1.0;
        }
    }
    sum / n
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_a_small_table() {
        let labels = ["a", "b", "c", "d"].map(str::to_owned).to_vec();
        let pairs = [(0, 0), (0, 0), (0, 1), (1, 1), (1, 2), (2, 2)];
        let confusion = Confusion::new(labels, &pairs);
        let class = &confusion.classes[0];
        assert_eq!((class.support, confusion.counts[0][1]), (3, 1));
        assert!((class.precision - 1.0).abs() < 1e-12 && (class.recall - 2.0 / 3.0).abs() < 1e-12);
        // scikit-learn: f1_score(y, p, average="macro") of the classes that are there: (0.8 + 0.5 + 2/3) / 3.
        let want = (0.8 + 0.5 + 2.0 / 3.0) / 3.0;
        assert!((confusion.macro_f1.value - want).abs() < 1e-12);
        assert!(confusion.macro_f1.stderr.unwrap() > 0.05);
        assert_eq!(confusion.classes[3].support, 0);
    }
}
