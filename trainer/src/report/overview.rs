//! A run in a few figures: a line of `fledgling runs`, the head of its report.
//!
//! Reading never fails: what is missing stays empty, and what is broken is said in [`Overview::reason`].

use super::{
    events::{Begin, EndState},
    history::History,
};
use crate::{
    run::{self, METRICS_FILE, RECORD_FILE, Record},
    runs,
};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// How it stands with a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// A process trains it now.
    Running,
    /// All steps are done.
    Finished,
    /// It ended before its last step, and can be resumed.
    Interrupted,
    /// The held-out loss no longer fell.
    StoppedEarly,
    /// It ended with an error.
    Failed,
    /// Its files cannot be read.
    Broken,
}

impl State {
    /// For people.
    pub fn text(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Finished => "finished",
            Self::Interrupted => "interrupted",
            Self::StoppedEarly => "stopped early",
            Self::Failed => "failed",
            Self::Broken => "broken",
        }
    }
}

/// A run in a few figures.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Overview {
    /// Its name.
    pub name: String,
    /// Its folder.
    pub folder: PathBuf,
    /// How it stands.
    pub state: State,
    /// Why, where that says more.
    pub reason: Option<String>,
    /// `scratch`, `full`, `lora`, …
    pub mode: Option<String>,
    /// The model it started from.
    pub base: Option<String>,
    /// Where it computes.
    pub device: Option<String>,
    /// Steps done.
    pub step: u64,
    /// Steps planned.
    pub steps: Option<u64>,
    /// Mean loss of the last step.
    pub train_loss: Option<f64>,
    /// Held-out perplexity before the first step.
    pub perplexity_before: Option<f64>,
    /// Held-out perplexity of the weights that were kept.
    pub perplexity: Option<f64>,
    /// Step of the weights that were kept.
    pub kept_step: Option<u64>,
    /// First start, in unix seconds.
    pub started: Option<f64>,
    /// Seconds of training and validation, over all starts.
    pub seconds: Option<f64>,
    /// Positions computed for a second of training.
    pub tokens_per_s: Option<f64>,
    /// Tokens trained on that count in the loss.
    pub tokens: Option<u64>,
    /// The most memory that the process has held.
    pub peak_bytes: Option<u64>,
    /// Parameters of the model.
    pub parameters: Option<u64>,
    /// Those that are trained.
    pub trained_parameters: Option<u64>,
}

impl Overview {
    /// Reads what a folder says.
    pub fn read(folder: &Path) -> Self {
        let history = History::read(&folder.join(METRICS_FILE));
        let (history, no_history) = match history {
            Ok(history) => (history, None),
            Err(error) => (History::default(), Some(format!("{error:#}"))),
        };
        let record = folder
            .join(RECORD_FILE)
            .exists()
            .then(|| run::read_record(folder));
        let (record, no_record) = match record {
            Some(Ok(record)) => (Some(record), None),
            Some(Err(error)) => (None, Some(format!("{error:#}"))),
            None => (None, None),
        };
        let broken = no_record.or(no_history.filter(|_| record.is_none()));
        Self::of(folder, record.as_ref(), &history, broken)
    }

    /// What record and metrics say; `broken` says why they cannot be believed.
    pub fn of(
        folder: &Path,
        record: Option<&Record>,
        history: &History,
        broken: Option<String>,
    ) -> Self {
        let begin = history.begin();
        let own_name = || folder.file_name().map(|name| name.to_string_lossy().into());
        let of_begin = |text: fn(&Begin) -> &String| {
            begin
                .map(|begin| text(begin).clone())
                .filter(|text| !text.is_empty())
        };
        let known = !history.steps.is_empty();
        let (state, reason) = state(folder, record, history, broken);
        let best = history.best_perplexity();
        Self {
            name: record
                .map(|record| record.name.clone())
                .or_else(|| of_begin(|begin| &begin.run))
                .or_else(own_name)
                .unwrap_or_default(),
            folder: folder.to_owned(),
            state,
            reason,
            mode: record
                .map(|record| record.mode.clone())
                .or_else(|| of_begin(|begin| &begin.mode)),
            base: record
                .map(|record| record.base.name.clone())
                .or_else(|| of_begin(|begin| &begin.base)),
            device: of_begin(|begin| &begin.device),
            step: history.step().max(record.map_or(0, |record| record.step)),
            steps: begin.map(|begin| begin.steps),
            train_loss: history.steps.last().map(|at| at.event.loss),
            perplexity_before: record
                .and_then(|record| record.valid_perplexity_before)
                .or_else(|| history.perplexity_before()),
            perplexity: record
                .and_then(|record| record.valid_perplexity)
                .or(best.map(|(_, perplexity)| perplexity)),
            kept_step: record
                .map(|record| record.step)
                .or(best.map(|(step, _)| step)),
            started: history.started(),
            seconds: Some(history.seconds()).filter(|seconds| *seconds > 0.0),
            tokens_per_s: history.tokens_per_s(),
            tokens: known.then(|| history.tokens()).filter(|tokens| *tokens > 0),
            peak_bytes: history.peak_bytes(),
            parameters: begin.map(|begin| begin.parameters).filter(|n| *n > 0),
            trained_parameters: begin
                .map(|begin| begin.trained_parameters)
                .filter(|n| *n > 0),
        }
    }
}

fn state(
    folder: &Path,
    record: Option<&Record>,
    history: &History,
    broken: Option<String>,
) -> (State, Option<String>) {
    // A process that has written its end still holds the lock while it writes the report.
    if history.end().is_none() && runs::is_locked(folder) {
        return (State::Running, None);
    }
    if broken.is_some() {
        return (State::Broken, broken);
    }
    let steps = history.begin().map(|begin| begin.steps);
    match history.end().map(|at| &at.event) {
        Some(end) => {
            let state = match end.state {
                EndState::Finished => State::Finished,
                EndState::Interrupted => State::Interrupted,
                EndState::StoppedEarly => State::StoppedEarly,
                EndState::Failed => State::Failed,
            };
            (state, end.reason.clone())
        }
        // Weights that were kept at the last step are there whole, whatever came after.
        None if steps.is_some_and(|steps| record.is_some_and(|record| record.step == steps)) => {
            (State::Finished, None)
        }
        None if history.begin().is_some() => (
            State::Interrupted,
            Some("its process ended without saying so".to_owned()),
        ),
        None if record.is_some() => (State::Interrupted, Some("no end is recorded".to_owned())),
        None => (
            State::Broken,
            Some(format!("{METRICS_FILE} has no start of a run")),
        ),
    }
}
