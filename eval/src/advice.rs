//! What figures suggest, in plain sentences, each with the figure that it rests on and the key of a training config that would take it up.
//!
//! Rules of thumb, not laws: each says what it saw, so that a reader can disagree.

use crate::stats::Estimate;
use serde::{Deserialize, Serialize};

/// Points of a curve that are too few to say anything about its course.
const FEWEST_POINTS: usize = 4;

/// What is known; what is not known suggests nothing.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Figures {
    /// How training went.
    pub training: Option<Training>,
    /// What quantising cost.
    pub quantised: Option<Quantised>,
    /// Perplexity on general text before and after fine-tuning.
    pub general_perplexity: Option<(f64, f64)>,
    /// Accuracies.
    pub tasks: Vec<Accuracy>,
    /// Share of repeated 4-grams in the model's own text.
    pub repetition: Option<Estimate>,
}

/// How training went.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Training {
    /// Steps and training losses, in nats a token.
    pub training: Vec<(u64, f64)>,
    /// Steps and held-out losses.
    pub held_out: Vec<(u64, f64)>,
    /// The peak learning rate.
    pub lr: f64,
    /// Passes over the rows.
    pub epochs: f64,
    /// Rows.
    pub rows: u64,
    /// Whether a LoRA was trained.
    pub is_lora: bool,
}

/// What quantising cost.
#[derive(Debug, Clone, PartialEq)]
pub struct Quantised {
    /// The type, as `export --quant` has it.
    pub format: String,
    /// Mean divergence from the reference, in nats.
    pub kl: f64,
    /// The perplexity by the reference's.
    pub perplexity_ratio: f64,
}

/// How a task went.
#[derive(Debug, Clone, PartialEq)]
pub struct Accuracy {
    /// The task.
    pub task: String,
    /// Share of right answers.
    pub acc: Estimate,
    /// What guessing gives.
    pub chance: f64,
}

/// A suggestion.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Advice {
    /// What to do and why.
    pub text: String,
    /// What it rests on.
    pub figure: String,
    /// Keys of a training config with the values to try, as `--set` takes them, for a run that begins anew.
    pub changes: Vec<String>,
    /// The same for a run that goes on from the best weights of this one. None, where going on would not help.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub continuing: Vec<String>,
}

impl Advice {
    fn new(text: impl Into<String>, figure: String, changes: &[String]) -> Self {
        Self {
            text: text.into(),
            figure,
            changes: changes.to_vec(),
            continuing: Vec::new(),
        }
    }

    /// With what a run that goes on would change.
    fn continuing(mut self, changes: &[String]) -> Self {
        self.continuing = changes.to_vec();
        self
    }
}

/// What the figures suggest, the most telling first; nothing where they are fine.
pub fn advise(figures: &Figures) -> Vec<Advice> {
    let mut advice = Vec::new();
    if let Some(training) = &figures.training {
        advice.extend(of_training(training));
    }
    advice.extend(figures.general_perplexity.and_then(of_forgetting));
    advice.extend(figures.quantised.as_ref().and_then(of_quantising));
    advice.extend(figures.tasks.iter().filter_map(of_accuracy));
    advice.extend(figures.repetition.and_then(of_repetition));
    advice
}

/// A learning rate as people write it.
fn rate(lr: f64) -> String {
    format!("train.lr={lr:.1e}")
}

/// The mean of the last tenth of a curve, a point at least.
fn end_of(curve: &[(u64, f64)]) -> f64 {
    let n = curve.len().div_ceil(10);
    let last = &curve[curve.len() - n..];
    last.iter().map(|(_, loss)| loss).sum::<f64>() / n as f64
}

fn of_training(training: &Training) -> Vec<Advice> {
    let mut advice = Vec::new();
    let (curve, held_out) = (&training.training, &training.held_out);
    if curve.len() >= FEWEST_POINTS
        && let (Some(&(_, first)), end) = (curve.first(), end_of(curve))
        && end > first * 1.02
    {
        advice.push(
            Advice::new(
                "The training loss rose: the learning rate is too high. Take a third of it.",
                format!("training loss {first:.3} at the first step, {end:.3} at the end"),
                &[rate(training.lr / 3.0)],
            )
            .continuing(&[rate(training.lr / 3.0)]),
        );
        return advice;
    }
    let overfit = overfitting(training);
    let is_overfit = overfit.is_some();
    advice.extend(overfit);
    if held_out.len() >= FEWEST_POINTS && !is_overfit {
        advice.extend(still_falling(training).or_else(|| hardly_moved(training)));
    }
    advice
}

fn overfitting(training: &Training) -> Option<Advice> {
    let &(last_step, last) = training.held_out.last()?;
    let best = training.held_out.iter().min_by(|a, b| a.1.total_cmp(&b.1));
    let &(best_step, best) = best?;
    let more_rows = if training.epochs > 3.0 {
        " More rows would help most."
    } else {
        ""
    };
    let figure =
        format!("held-out loss {best:.3} at step {best_step}, {last:.3} at step {last_step}");
    let is_worse = best_step < last_step && last > best * 1.02;
    if is_worse && best_step == 0 {
        return Some(Advice::new(
            "Training made the model worse at other rows from its first step on: the learning rate is too high, or the rows are unlike those held out. Take a third of the rate.",
            figure,
            &[rate(training.lr / 3.0)],
        ));
    }
    let regular = if training.is_lora {
        "lora.dropout=0.1"
    } else {
        "train.weight_decay=0.1"
    };
    if is_worse {
        let mut stop = vec!["train.patience=3".to_owned(), regular.to_owned()];
        if training.held_out.len() < FEWEST_POINTS {
            stop.push(format!("train.eval_every={}", (last_step / 10).max(1)));
        }
        let steps = format!("train.steps={best_step}");
        // The best weights are those of the step where it should have stopped: what is left is to learn more slowly.
        return Some(
            Advice::new(
                format!(
                    "The model overfits: after step {best_step} it learned its rows by heart and became worse at others. Stop there.{more_rows}"
                ),
                figure,
                &[&[steps], &stop[..]].concat(),
            )
            .continuing(&[&[rate(training.lr / 3.0)], &stop[..]].concat()),
        );
    }
    if training.training.len() < FEWEST_POINTS {
        return None;
    }
    let train = end_of(&training.training);
    (last > train * 1.25 && last - train > 0.3).then(|| {
        let mut changes = vec![regular.to_owned()];
        if training.is_lora {
            changes.push("train.weight_decay=0.1".to_owned());
        }
        Advice::new(
            format!("The model knows its {} rows much better than others, which is the beginning of overfitting: train on more rows, or less often on each.{more_rows}", training.rows),
            format!("training loss {train:.3} and held-out loss {last:.3} at the end, after {:.1} passes", training.epochs),
            &changes,
        )
        .continuing(&changes)
    })
}

/// The loss of a curve a quarter of its steps before the end.
fn before_last_quarter(held_out: &[(u64, f64)]) -> Option<f64> {
    let last = held_out.last()?.0;
    let until = last - last / 4;
    let found = held_out.iter().rev().find(|(step, _)| *step <= until);
    found.map(|(_, loss)| *loss)
}

fn still_falling(training: &Training) -> Option<Advice> {
    let &(step, last) = training.held_out.last()?;
    let before = before_last_quarter(&training.held_out)?;
    (last < before * 0.985).then(|| {
        Advice::new(
            "The held-out loss was still falling: train for longer, twice the steps to begin with.",
            format!("held-out loss {before:.3} before the last quarter of the steps, {last:.3} at the end"),
            &[format!("train.steps={}", 2 * step)],
        )
        .continuing(&[format!("train.steps={step}")])
    })
}

fn hardly_moved(training: &Training) -> Option<Advice> {
    let (&(_, first), &(step, last)) = (training.held_out.first()?, training.held_out.last()?);
    ((first - last).abs() < first * 0.01).then(|| {
        let mut changes = vec![rate(training.lr * 3.0)];
        if training.is_lora {
            changes.push("lora.rank=16".to_owned());
        }
        Advice::new(
            "Training hardly changed the model: the learning rate is too low, or the rows say nothing that it does not know. Try three times the rate.",
            format!("held-out loss {first:.3} before, {last:.3} after {step} steps"),
            &changes,
        )
        .continuing(&[rate(training.lr * 3.0)])
    })
}

fn of_forgetting((before, after): (f64, f64)) -> Option<Advice> {
    (after > before * 1.2).then(|| {
        Advice::new(
            "The model forgot general language while it learned: train a LoRA, lower the learning rate, or mix general text into the rows.",
            format!("perplexity on general text {before:.2} before, {after:.2} after"),
            &["mode=lora".to_owned(), "train.lr=1.0e-4".to_owned()],
        )
    })
}

fn of_quantising(quantised: &Quantised) -> Option<Advice> {
    let Quantised {
        format,
        kl,
        perplexity_ratio,
    } = quantised;
    (*perplexity_ratio > 1.03 || *kl > 0.05).then(|| {
        Advice::new(
            format!("{format} lost more than it should: export with more bits (q8_0), or train with the quantised view of the weights ([qat])."),
            format!("perplexity {:+.1} %, mean divergence {kl:.4} nats against the reference", 100.0 * (perplexity_ratio - 1.0)),
            &[format!("qat.format={format}")],
        )
        .continuing(&[format!("qat.format={format}")])
    })
}

fn of_accuracy(accuracy: &Accuracy) -> Option<Advice> {
    let Accuracy { task, acc, chance } = accuracy;
    let stderr = acc.stderr?;
    let figure = format!(
        "accuracy {:.3} ± {stderr:.3}, guessing gives {chance:.3}",
        acc.value
    );
    if acc.value - chance > 2.0 * stderr {
        return None;
    }
    if stderr > 0.03 {
        return Some(Advice::new(
            format!(
                "{task} has too few questions to tell this model from guessing: ask more of them."
            ),
            figure,
            &[],
        ));
    }
    Some(Advice::new(
        format!(
            "On {task} the model does not do better than guessing: a larger base, or rows that look like the questions, would be needed."
        ),
        figure,
        &[],
    ))
}

fn of_repetition(repetition: Estimate) -> Option<Advice> {
    (repetition.value > 0.3).then(|| {
        let sure = repetition.stderr.map_or_else(String::new, |stderr| format!(" ± {:.0}", 100.0 * stderr));
        Advice::new(
            "The model repeats itself: fewer passes over the rows, or more various ones; when it writes, a temperature of 0.7 or a repetition penalty of 1.1.",
            format!("{:.0}{sure} % of the 4-grams in its own text stood there before", 100.0 * repetition.value),
            &["train.epochs=1".to_owned()],
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn training(training: &[f64], held_out: &[f64]) -> Figures {
        let points = |losses: &[f64]| {
            losses
                .iter()
                .enumerate()
                .map(|(i, loss)| (i as u64 * 10, *loss))
                .collect()
        };
        Figures {
            training: Some(Training {
                training: points(training),
                held_out: points(held_out),
                lr: 3e-4,
                epochs: 4.0,
                rows: 500,
                is_lora: true,
            }),
            ..Figures::default()
        }
    }

    #[track_caller]
    fn check(figures: &Figures, text: &str, figure: &str, change: &str) {
        let advice = advise(figures);
        assert_eq!(advice.len(), 1, "{advice:?}");
        assert!(advice[0].text.contains(text), "{advice:?}");
        assert!(advice[0].figure.contains(figure), "{advice:?}");
        let changes = advice[0].changes.join(" ");
        assert!(changes.contains(change), "{advice:?}");
    }

    #[test]
    fn curves_say_what_was_wrong() {
        check(
            &training(
                &[3.0, 2.5, 2.0, 1.5, 1.0, 0.5],
                &[3.0, 2.4, 2.2, 2.3, 2.6, 2.9],
            ),
            "overfits: after step 20",
            "held-out loss 2.200 at step 20, 2.900 at step 50",
            "train.steps=20",
        );
        check(
            &training(
                &[3.0, 2.5, 2.0, 1.5, 1.2, 1.0],
                &[3.0, 2.6, 2.5, 2.42, 2.41, 2.4],
            ),
            "500 rows much better",
            "training loss 1.000 and held-out loss 2.400",
            "lora.dropout=0.1",
        );
        check(
            &training(
                &[3.0, 2.9, 2.8, 2.7, 2.6, 2.5],
                &[3.0, 2.9, 2.8, 2.7, 2.6, 2.5],
            ),
            "still falling",
            "2.700 before the last quarter of the steps, 2.500 at the end",
            "train.steps=100",
        );
        check(
            &training(&[3.0, 3.0, 3.0, 2.99], &[3.0, 3.0, 2.99, 2.99]),
            "hardly changed",
            "3.000 before, 2.990 after 30 steps",
            "train.lr=9.0e-4",
        );
        check(
            &training(&[3.0, 4.0, 5.0, 6.0], &[]),
            "rose",
            "3.000 at the first step, 6.000",
            "train.lr=1.0e-4",
        );
        let fine = training(&[3.0, 2.0, 1.9, 1.9, 1.9], &[3.0, 2.1, 2.0, 2.0, 2.0]);
        assert_eq!(advise(&fine), []);
        assert_eq!(advise(&training(&[], &[])), []);
        assert_eq!(advise(&Figures::default()), []);
    }

    #[test]
    fn a_run_that_goes_on_is_advised_otherwise_than_one_that_begins_anew() {
        let continuing = |figures: &Figures| {
            let advice = advise(figures);
            assert_eq!(advice.len(), 1, "{advice:?}");
            advice[0].continuing.join(" ")
        };
        let overfit = training(
            &[3.0, 2.5, 2.0, 1.5, 1.0, 0.5],
            &[3.0, 2.4, 2.2, 2.3, 2.6, 2.9],
        );
        assert_eq!(
            continuing(&overfit),
            "train.lr=1.0e-4 train.patience=3 lora.dropout=0.1"
        );
        let mut full = overfit.clone();
        full.training.as_mut().unwrap().is_lora = false;
        assert_eq!(
            continuing(&full),
            "train.lr=1.0e-4 train.patience=3 train.weight_decay=0.1"
        );
        let falling = training(
            &[3.0, 2.9, 2.8, 2.7, 2.6, 2.5],
            &[3.0, 2.9, 2.8, 2.7, 2.6, 2.5],
        );
        assert_eq!(continuing(&falling), "train.steps=50");
        let still = training(&[3.0, 3.0, 3.0, 2.99], &[3.0, 3.0, 2.99, 2.99]);
        assert_eq!(continuing(&still), "train.lr=9.0e-4");
        assert_eq!(
            continuing(&training(&[3.0, 4.0, 5.0, 6.0], &[])),
            "train.lr=1.0e-4"
        );
        // What the best weights do not have: they are not better than the base.
        let worse = training(&[3.0, 2.9, 2.8, 2.7], &[3.0, 3.2, 3.3, 3.4]);
        check(
            &worse,
            "worse at other rows from its first step on",
            "held-out loss 3.000 at step 0, 3.400 at step 30",
            "train.lr=1.0e-4",
        );
        assert_eq!(continuing(&worse), "");
    }

    #[test]
    fn stopping_early_needs_evaluations() {
        let mut few = training(&[3.0, 2.0, 1.0, 0.5], &[]);
        few.training.as_mut().unwrap().held_out = vec![(0, 3.0), (20, 2.0), (60, 2.5)];
        check(
            &few,
            "overfits: after step 20",
            "2.500 at step 60",
            "train.steps=20 train.patience=3 lora.dropout=0.1 train.eval_every=6",
        );
    }

    #[test]
    fn results_say_what_is_wrong() {
        let with = |edit: &dyn Fn(&mut Figures)| {
            let mut figures = Figures::default();
            edit(&mut figures);
            figures
        };
        let quantised = |kl, perplexity_ratio| {
            with(&|figures| {
                let format = "q4_0".to_owned();
                figures.quantised = Some(Quantised {
                    format,
                    kl,
                    perplexity_ratio,
                });
            })
        };
        check(
            &quantised(0.07, 1.06),
            "q4_0 lost",
            "perplexity +6.0 %",
            "qat.format=q4_0",
        );
        assert_eq!(advise(&quantised(0.001, 1.001)), []);
        let accuracy = |value, stderr| {
            with(&|figures| {
                figures.tasks.push(Accuracy {
                    task: "arc".to_owned(),
                    acc: Estimate {
                        value,
                        stderr: Some(stderr),
                    },
                    chance: 0.25,
                });
            })
        };
        check(
            &accuracy(0.26, 0.01),
            "better than guessing",
            "0.260 ± 0.010",
            "",
        );
        check(
            &accuracy(0.3, 0.05),
            "too few questions",
            "guessing gives 0.250",
            "",
        );
        assert_eq!(advise(&accuracy(0.4, 0.05)), []);
        let repetition = |value| {
            with(&|figures| {
                figures.repetition = Some(Estimate {
                    value,
                    stderr: Some(0.04),
                });
            })
        };
        check(&repetition(0.5), "repeats itself", "50 ± 4 %", "epochs");
        assert_eq!(advise(&repetition(0.1)), []);
        check(
            &with(&|figures| figures.general_perplexity = Some((20.0, 30.0))),
            "forgot",
            "20.00 before, 30.00 after",
            "mode=lora",
        );
    }
}
