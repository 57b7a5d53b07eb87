//! Types for tensors under a limit of size or of damage, from what each type of each tensor costs.
//!
//! Damage is taken to add up (the KL divergence of small independent errors does, to first order). For each tensor only
//! the choices on the lower convex hull of (bytes, damage) can be best under some exchange rate between the two, so a
//! greedy walk along the hulls, the steepest step first, is optimal up to the last step; what is then left over is filled.

use fledgling_core::quant::DType;

/// A type that a tensor may get.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Choice {
    /// The type.
    pub dtype: DType,
    /// Bytes of the tensor in it.
    pub len_bytes: u64,
    /// What it costs, 0 or more, in the unit of the limit (mean KL divergence in nats).
    pub damage: f64,
}

/// Why there is no selection.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum TargetError {
    /// A tensor without a choice.
    #[error("tensor number {0} has no type to choose from")]
    NoChoice(usize),
    /// The smallest types are too large.
    #[error("no choice of types fits in {asked} bytes: the smallest takes {least}")]
    TooSmall {
        /// The limit.
        asked: u64,
        /// Bytes of the smallest selection.
        least: u64,
    },
    /// The best types do too much damage.
    #[error("no choice of types stays under a damage of {asked}: the best does {least:.6}")]
    TooStrict {
        /// The limit.
        asked: f64,
        /// Damage of the best selection.
        least: f64,
    },
}

/// For each tensor the index of its choice, so that the sum of damages is small and all bytes fit in `budget_bytes`.
///
/// # Errors
/// When not even the smallest choices fit, with what they need.
pub fn under_bytes(tensors: &[Vec<Choice>], budget_bytes: u64) -> Result<Vec<usize>, TargetError> {
    let mut walk = Walk::new(tensors)?;
    let least = walk.len_bytes();
    if least > budget_bytes {
        return Err(TargetError::TooSmall {
            asked: budget_bytes,
            least,
        });
    }
    let mut left = budget_bytes - least;
    for step in walk.steps() {
        // A step that does not fit ends its tensor's walk; smaller steps of others may still fit.
        if walk.at_start_of(&step) && step.len_bytes <= left {
            left -= step.len_bytes;
            walk.take(&step);
        }
    }
    // Choices beside the hull may still fit in what is left.
    for (chosen, choices) in walk.chosen.iter_mut().zip(tensors) {
        let now = choices[*chosen];
        let fitting = |choice: &Choice| choice.len_bytes <= now.len_bytes + left;
        let candidates = choices.iter().enumerate().filter(|(_, c)| fitting(c));
        if let Some((best, choice)) = candidates.min_by(|a, b| compare(a.1, b.1))
            && choice.damage < now.damage
        {
            left = now.len_bytes + left - choice.len_bytes;
            *chosen = best;
        }
    }
    Ok(walk.chosen)
}

/// For each tensor the index of its choice, so that the sum of bytes is small and all damage stays within `max_damage`.
///
/// # Errors
/// When not even the best choices stay within, with what they do.
pub fn under_damage(tensors: &[Vec<Choice>], max_damage: f64) -> Result<Vec<usize>, TargetError> {
    let mut walk = Walk::new(tensors)?;
    let best = tensors.iter().map(|choices| {
        let damages = choices.iter().map(|choice| choice.damage);
        damages.fold(f64::INFINITY, f64::min)
    });
    let least: f64 = best.sum();
    // Sums of the same numbers in another order differ in their last bits.
    if least > max_damage * (1.0 + 1e-12) {
        return Err(TargetError::TooStrict {
            asked: max_damage,
            least,
        });
    }
    for step in walk.steps() {
        if walk.damage() <= max_damage {
            break;
        }
        walk.take(&step);
    }
    // The last step may have brought more than was needed: give back where it costs nothing.
    let mut left = max_damage - walk.damage();
    for (chosen, choices) in walk.chosen.iter_mut().zip(tensors) {
        let now = choices[*chosen];
        let fitting = |choice: &Choice| choice.damage - now.damage <= left;
        let candidates = choices.iter().enumerate().filter(|(_, c)| fitting(c));
        if let Some((best, choice)) = candidates.min_by_key(|(_, choice)| choice.len_bytes)
            && choice.len_bytes < now.len_bytes
        {
            left -= choice.damage - now.damage;
            *chosen = best;
        }
    }
    Ok(walk.chosen)
}

/// By damage, then by size.
fn compare(a: &Choice, b: &Choice) -> std::cmp::Ordering {
    let sizes = a.len_bytes.cmp(&b.len_bytes);
    a.damage.total_cmp(&b.damage).then(sizes)
}

/// From one point of a tensor's hull to the next.
#[derive(Debug, Clone, Copy)]
struct Step {
    tensor: usize,
    from: usize,
    to: usize,
    /// More.
    len_bytes: u64,
    /// Less damage for each byte.
    gain: f64,
}

struct Walk<'a> {
    tensors: &'a [Vec<Choice>],
    chosen: Vec<usize>,
    hulls: Vec<Vec<usize>>,
}

impl<'a> Walk<'a> {
    /// At the smallest choices.
    fn new(tensors: &'a [Vec<Choice>]) -> Result<Self, TargetError> {
        if let Some(i) = tensors.iter().position(Vec::is_empty) {
            return Err(TargetError::NoChoice(i));
        }
        let hulls: Vec<_> = tensors.iter().map(|choices| hull(choices)).collect();
        Ok(Self {
            tensors,
            chosen: hulls.iter().map(|hull| hull[0]).collect(),
            hulls,
        })
    }

    /// All steps, the steepest first; those of one tensor in their order, because a hull is convex.
    fn steps(&self) -> Vec<Step> {
        let of_tensor = |(tensor, hull): (usize, &Vec<usize>)| {
            let choices = &self.tensors[tensor];
            let step = |pair: &[usize]| {
                let (a, b) = (choices[pair[0]], choices[pair[1]]);
                let len_bytes = b.len_bytes - a.len_bytes;
                Step {
                    tensor,
                    from: pair[0],
                    to: pair[1],
                    len_bytes,
                    gain: (a.damage - b.damage) / len_bytes as f64,
                }
            };
            hull.windows(2).map(step).collect::<Vec<_>>()
        };
        let mut steps: Vec<_> = self.hulls.iter().enumerate().flat_map(of_tensor).collect();
        steps.sort_by(|a, b| b.gain.total_cmp(&a.gain));
        steps
    }

    fn at_start_of(&self, step: &Step) -> bool {
        self.chosen[step.tensor] == step.from
    }

    fn take(&mut self, step: &Step) {
        self.chosen[step.tensor] = step.to;
    }

    fn current(&self) -> impl Iterator<Item = &Choice> {
        self.tensors
            .iter()
            .zip(&self.chosen)
            .map(|(choices, i)| &choices[*i])
    }

    fn len_bytes(&self) -> u64 {
        self.current().map(|choice| choice.len_bytes).sum()
    }

    fn damage(&self) -> f64 {
        self.current().map(|choice| choice.damage).sum()
    }
}

/// The choices on the lower convex hull, by falling damage: sizes rise, and damage per byte falls slower and slower.
fn hull(choices: &[Choice]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..choices.len()).collect();
    order.sort_by(|a, b| {
        let (a, b) = (&choices[*a], &choices[*b]);
        a.len_bytes
            .cmp(&b.len_bytes)
            .then(a.damage.total_cmp(&b.damage))
    });
    let slope = |a: usize, b: usize| {
        let (a, b) = (&choices[a], &choices[b]);
        (b.damage - a.damage) / (b.len_bytes - a.len_bytes) as f64
    };
    let mut hull: Vec<usize> = Vec::new();
    for i in order {
        if let Some(&last) = hull.last()
            && (choices[i].damage >= choices[last].damage
                || choices[i].len_bytes == choices[last].len_bytes)
        {
            continue;
        }
        while let &[.., a, b] = hull.as_slice()
            && slope(a, b) >= slope(b, i)
        {
            hull.pop();
        }
        hull.push(i);
    }
    hull
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn choices(pairs: &[(u64, f64)]) -> Vec<Choice> {
        let choice = |&(len_bytes, damage)| Choice {
            dtype: DType::Q8_0,
            len_bytes,
            damage,
        };
        pairs.iter().map(choice).collect()
    }

    fn totals(tensors: &[Vec<Choice>], chosen: &[usize]) -> (u64, f64) {
        let chosen = tensors.iter().zip(chosen).map(|(choices, i)| choices[*i]);
        chosen.fold((0, 0.0), |(bytes, damage), choice| {
            (bytes + choice.len_bytes, damage + choice.damage)
        })
    }

    #[test]
    fn bytes_go_where_they_help_the_most() {
        let tensors = [
            choices(&[(10, 5.0), (20, 1.0), (40, 0.0)]),
            choices(&[(10, 2.0), (20, 1.5), (40, 0.0)]),
        ];
        assert_eq!(under_bytes(&tensors, 20), Ok(vec![0, 0]));
        assert_eq!(under_bytes(&tensors, 30), Ok(vec![1, 0]));
        assert_eq!(under_bytes(&tensors, 60), Ok(vec![1, 2]));
        assert_eq!(under_bytes(&tensors, 1000), Ok(vec![2, 2]));
        let error = under_bytes(&tensors, 19).expect_err("too small");
        assert!(error.to_string().contains("the smallest takes 20"));
        assert_eq!(under_damage(&tensors, 3.0), Ok(vec![1, 0]));
        assert_eq!(under_damage(&tensors, 100.0), Ok(vec![0, 0]));
        assert_eq!(under_damage(&tensors, 0.0), Ok(vec![2, 2]));
        let strict = [choices(&[(10, 5.0), (20, 1.0)])];
        let error = under_damage(&strict, 0.5).expect_err("too strict");
        assert!(error.to_string().contains("the best does 1.000000"));
        assert_eq!(under_bytes(&[Vec::new()], 1), Err(TargetError::NoChoice(0)));
    }

    #[test]
    fn a_larger_type_that_is_worse_is_never_taken() {
        let tensors = [choices(&[(10, 1.0), (20, 2.0), (15, 1.0), (30, 0.5)])];
        assert_eq!(under_bytes(&tensors, 25), Ok(vec![0]));
        assert_eq!(under_damage(&tensors, 1.0), Ok(vec![0]));
        assert_eq!(under_damage(&tensors, 0.9), Ok(vec![3]));
    }

    proptest! {
        /// Against all selections of three tensors: within the limit, and as good as the best but for one step.
        #[test]
        fn selections_are_near_the_best(
            tensors in proptest::collection::vec(
                proptest::collection::vec((1_u64..50, 0.0_f64..10.0), 1..5), 3),
            budget in 3_u64..150,
            bound in 0.0_f64..30.0,
        ) {
            let tensors: Vec<_> = tensors.iter().map(|pairs| choices(pairs)).collect();
            let mut all = vec![vec![]];
            for choices in &tensors {
                all = all.iter().flat_map(|head| (0..choices.len()).map(move |i| {
                    [head.clone(), vec![i]].concat()
                })).collect::<Vec<_>>();
            }
            let all: Vec<_> = all.iter().map(|chosen| totals(&tensors, chosen)).collect();
            let largest_step = tensors.iter().flatten().map(|c| c.damage).fold(0.0, f64::max);
            let widest_step = tensors.iter().flatten().map(|c| c.len_bytes).max().unwrap_or(0);

            let best = all.iter().filter(|t| t.0 <= budget).map(|t| t.1).fold(f64::INFINITY, f64::min);
            match under_bytes(&tensors, budget) {
                Ok(chosen) => {
                    let (bytes, damage) = totals(&tensors, &chosen);
                    prop_assert!(bytes <= budget);
                    prop_assert!(damage <= best + largest_step, "{damage} against {best}");
                }
                Err(_) => prop_assert!(best.is_infinite()),
            }
            let best = all.iter().filter(|t| t.1 <= bound).map(|t| t.0).min();
            match under_damage(&tensors, bound) {
                Ok(chosen) => {
                    let (bytes, damage) = totals(&tensors, &chosen);
                    prop_assert!(damage <= bound + 1e-9);
                    prop_assert!(bytes <= best.expect("there is one") + widest_step);
                }
                Err(_) => prop_assert!(best.is_none()),
            }
        }
    }
}
