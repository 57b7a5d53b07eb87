//! What the figures of a run suggest: those of its training, from `metrics.jsonl`, and what `fledgling eval` found last, which
//! stays in the run's folder so that `fledgling train --continue-from` takes it up.

use crate::{
    files::write_whole,
    report::history::History,
    run::{self, METRICS_FILE},
};
use anyhow::{Context, Result};
use fledgling_eval::advice::{Advice, Figures, Training, advise};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Name of the file of an evaluation's advice.
pub const ADVICE_FILE: &str = "advice.json";

/// What an evaluation advised.
#[derive(Debug, Serialize, Deserialize)]
struct Recorded {
    /// Optimiser steps behind the weights that were evaluated.
    step: u64,
    advice: Vec<Advice>,
}

/// How the training of a run went, if the folder is one's and says so.
pub fn training(folder: &Path) -> Option<Training> {
    let history = History::read(&folder.join(METRICS_FILE)).ok()?;
    let begin = history.begins.first().map(|at| &at.event)?;
    let steps = history.steps.iter().map(|at| &at.event);
    let last = history.steps.last().map_or(0, |at| at.event.step);
    let rows = begin.data.iter().filter(|part| part.part == "train");
    Some(Training {
        training: steps.clone().map(|step| (step.step, step.loss)).collect(),
        held_out: history
            .validations
            .iter()
            .map(|at| (at.event.step, at.event.valid_loss))
            .collect(),
        lr: steps.map(|step| step.lr).fold(0.0, f64::max),
        epochs: last as f64 / begin.steps_per_epoch.max(1.0),
        rows: rows.map(|part| part.rows).sum(),
        is_lora: begin.mode.contains("lora"),
    })
}

/// Leaves an evaluation's advice in the folder of the run that it is about, in place of an earlier one's.
///
/// # Errors
/// When the folder is no run's, or the file cannot be written.
pub fn record(folder: &Path, advice: Vec<Advice>) -> Result<()> {
    let step = run::read_record(folder)?.step;
    let text = serde_json::to_string(&Recorded { step, advice })? + "\n";
    write_whole(&folder.join(ADVICE_FILE), text.as_bytes())
}

/// What is advised on the best weights of a run: by its training, then by their last evaluation. Advice on weights that the run
/// has no longer does not count.
///
/// # Errors
/// When the folder is no run's, or its file of advice is broken.
pub fn of_run(folder: &Path) -> Result<Vec<Advice>> {
    let mut all = advise(&Figures {
        training: training(folder),
        ..Figures::default()
    });
    let path = folder.join(ADVICE_FILE);
    if !path.is_file() {
        return Ok(all);
    }
    let cannot = || format!("{} cannot be read: remove it", path.display());
    let text = std::fs::read_to_string(&path).with_context(cannot)?;
    let recorded: Recorded = serde_json::from_str(&text).with_context(cannot)?;
    if recorded.step == run::read_record(folder)?.step {
        for advice in recorded.advice {
            if !all.contains(&advice) {
                all.push(advice);
            }
        }
    }
    Ok(all)
}
