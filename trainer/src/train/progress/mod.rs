//! What a person sees while it trains, and `metrics.jsonl`.
//!
//! The loop tells a [`Reporter`] what happens; it hands every event to its sinks: the file of metrics ([`metrics`]) first, then what
//! shows it ([`lines`]). A sink that cannot show something drops it: only a file that cannot be written ends the run.

mod describe;
mod lines;
mod metrics;
mod screen;
#[cfg(feature = "tensorboard")]
mod tensorboard;

use super::fit::Outcome;
use crate::{
    output::{UsageError, note},
    report::{
        environment::peak_bytes,
        events::{Begin, Checkpoint, End, EndState, Event, Line, Note, Sample, Step, Validation},
        history::History,
    },
    run::METRICS_FILE,
};
use anyhow::Result;
use std::{
    fmt::Debug,
    path::Path,
    time::{Duration, Instant},
};

/// The memory is asked for this often at most.
const MEMORY_EVERY: Duration = Duration::from_millis(500);

/// How a run is shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum View {
    /// A bar on a terminal, lines in a pipe.
    #[default]
    Plain,
    /// The whole terminal; a bar where that fails.
    Screen,
    /// Not at all.
    Quiet,
}

/// When the whole terminal shows a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Tui {
    /// When standard error is a terminal that can.
    #[default]
    Auto,
    /// Always; an error where it cannot.
    On,
    /// Never: a bar on a terminal, lines in a pipe.
    Off,
}

impl View {
    /// What `--tui` and `--quiet` ask for here.
    ///
    /// # Errors
    /// [`UsageError`] when a screen is wanted and there is no terminal for one.
    pub fn of(tui: Tui, quiet: bool) -> Result<Self> {
        match (tui, quiet) {
            (_, true) => Ok(Self::Quiet),
            (Tui::Off, _) => Ok(Self::Plain),
            (_, false) if screen::is_possible() => Ok(Self::Screen),
            (Tui::Auto, _) => Ok(Self::Plain),
            (Tui::On, _) => Err(UsageError(
                "--tui on: standard error is no terminal of this process that could show it (also look at TERM)".to_owned(),
            )
            .into()),
        }
    }
}

/// Takes part in what happens.
pub trait Sink: Debug + Send {
    /// Something happened.
    ///
    /// # Errors
    /// When it must be written and cannot be.
    fn event(&mut self, line: &Line) -> Result<()>;
}

/// The screen with what the metrics know already; lines where there can be none.
fn open_screen(metrics: &Path) -> Box<dyn Sink> {
    let history = History::read(metrics).unwrap_or_default();
    match screen::Screen::open(&history) {
        Ok(screen) => Box::new(screen),
        Err(error) => {
            note(format!("{error:#}: going on without the screen"));
            Box::new(lines::Lines::new())
        }
    }
}

/// Hands what happens to the file of metrics and to whoever shows it.
#[derive(Debug)]
pub struct Reporter {
    sinks: Vec<Box<dyn Sink>>,
    step: u64,
    memory: Option<(Instant, u64)>,
}

impl Reporter {
    /// Opens the metrics of the run in `folder`, which starts or goes on after the step `resumed`, and a view of it.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn open(folder: &Path, resumed: Option<u64>, view: View) -> Result<Self> {
        let path = folder.join(METRICS_FILE);
        let mut sinks: Vec<Box<dyn Sink>> = vec![Box::new(metrics::Metrics::open(&path, resumed)?)];
        #[cfg(feature = "tensorboard")]
        sinks.push(Box::new(tensorboard::TensorBoard::open(
            folder,
            resumed,
            crate::report::events::unix_seconds(),
        )?));
        match view {
            View::Plain => sinks.push(Box::new(lines::Lines::new())),
            View::Screen => sinks.push(open_screen(&path)),
            View::Quiet => {}
        }
        Ok(Self {
            sinks,
            step: resumed.unwrap_or(0),
            memory: None,
        })
    }

    /// Training starts or goes on. Comes before all else.
    ///
    /// # Errors
    /// When a file cannot be written; so for all that follow.
    pub fn begin(&mut self, begin: Begin) -> Result<()> {
        self.send(Event::Begin(Box::new(begin)))
    }

    /// An optimiser step is done.
    ///
    /// # Errors
    /// As [`Self::begin`].
    pub fn step(&mut self, mut step: Step) -> Result<()> {
        step.peak_bytes = step.peak_bytes.or_else(|| self.memory());
        self.send(Event::Step(step))
    }

    /// The held-out rows were measured.
    ///
    /// # Errors
    /// As [`Self::begin`].
    pub fn validation(&mut self, step: u64, loss: f64) -> Result<()> {
        self.send(Event::Validation(Validation {
            step,
            valid_loss: loss,
            valid_perplexity: loss.exp(),
        }))
    }

    /// The model went on with a prompt.
    ///
    /// # Errors
    /// As [`Self::begin`].
    pub fn sample(&mut self, step: u64, prompt: &str, text: &str) -> Result<()> {
        self.send(Event::Sample(Sample {
            step,
            prompt: prompt.to_owned(),
            text: text.to_owned(),
        }))
    }

    /// A checkpoint was written to a path or a URL.
    ///
    /// # Errors
    /// As [`Self::begin`].
    pub fn checkpoint(&mut self, step: u64, path: &impl ToString) -> Result<()> {
        self.send(Event::Checkpoint(Checkpoint {
            step,
            path: path.to_string(),
        }))
    }

    /// Something to tell a person.
    ///
    /// # Errors
    /// As [`Self::begin`].
    pub fn note(&mut self, text: impl Into<String>) -> Result<()> {
        self.send(Event::Note(Note {
            step: self.step,
            text: text.into(),
        }))
    }

    /// Training is over: closes the view.
    ///
    /// # Errors
    /// As [`Self::begin`].
    pub fn end(&mut self, result: &Result<Outcome>) -> Result<()> {
        let (state, reason, outcome) = match result {
            Ok(outcome) => (
                if outcome.interrupted {
                    EndState::Interrupted
                } else {
                    EndState::Finished
                },
                None,
                serde_json::to_value(outcome)?,
            ),
            Err(error) => (
                EndState::Failed,
                Some(format!("{error:#}")),
                serde_json::Value::Null,
            ),
        };
        let ended = self.send(Event::End(End {
            step: self.step,
            state,
            reason,
            peak_bytes: peak_bytes(),
            outcome,
        }));
        self.sinks.clear();
        ended
    }

    fn send(&mut self, event: Event) -> Result<()> {
        self.step = event.step();
        let line = Line::now(event);
        // All are told, also when the first fails.
        let results: Vec<_> = self
            .sinks
            .iter_mut()
            .map(|sink| sink.event(&line))
            .collect();
        results.into_iter().collect()
    }

    fn memory(&mut self) -> Option<u64> {
        if self
            .memory
            .is_none_or(|(at, _)| at.elapsed() >= MEMORY_EVERY)
        {
            self.memory = peak_bytes().map(|bytes| (Instant::now(), bytes));
        }
        self.memory.map(|(_, bytes)| bytes)
    }
}
