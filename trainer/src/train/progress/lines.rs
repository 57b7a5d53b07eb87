//! A bar on a terminal, plain lines in a pipe.

use super::Sink;
use crate::{
    output::note,
    report::events::{Begin, Event, Line, Step, Validation},
};
use anyhow::Result;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::{
    io::IsTerminal,
    time::{Duration, Instant},
};

/// Without a terminal, a line comes this often at most.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// What is said of a validation.
pub(super) fn validation_text(validation: &Validation) -> String {
    format!(
        "step {}: held-out loss {:.4}, perplexity {:.3}",
        validation.step, validation.valid_loss, validation.valid_perplexity
    )
}

/// What a person sees of a run without the screen.
#[derive(Debug)]
pub(super) struct Lines {
    bar: ProgressBar,
    is_terminal: bool,
    last_line: Option<Instant>,
    began: Instant,
    first_step: u64,
    n_steps: u64,
}

impl Lines {
    pub(super) fn new() -> Self {
        Self {
            bar: ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr_with_hz(4)),
            is_terminal: std::io::stderr().is_terminal(),
            last_line: None,
            began: Instant::now(),
            first_step: 0,
            n_steps: 0,
        }
    }

    fn begin(&mut self, begin: &Begin) {
        (self.began, self.first_step, self.n_steps) = (Instant::now(), begin.step, begin.steps);
        self.bar.set_length(begin.steps);
        self.bar.set_position(begin.step);
        if let Ok(style) = ProgressStyle::with_template("step {pos}/{len} {bar:30} {msg} ETA {eta}")
        {
            self.bar.set_style(style);
        }
    }

    fn step(&mut self, step: &Step) {
        let Step {
            step: at,
            loss,
            lr,
            tokens_per_s,
            ..
        } = *step;
        self.bar.set_position(at);
        self.bar
            .set_message(format!("loss {loss:.4} {tokens_per_s:.0} tokens/s"));
        let due = self
            .last_line
            .is_none_or(|last| last.elapsed() >= LINE_EVERY);
        if !self.is_terminal && (due || at == self.n_steps) {
            self.last_line = Some(Instant::now());
            let n_done = at.saturating_sub(self.first_step).max(1);
            let per_step = self.began.elapsed().as_secs_f64() / n_done as f64;
            let eta_s = per_step * self.n_steps.saturating_sub(at) as f64;
            note(format!(
                "step {at}/{} loss {loss:.4} lr {lr:.2e} {tokens_per_s:.0} tokens/s ETA {eta_s:.0} s",
                self.n_steps
            ));
        }
    }

    fn say(&self, text: &str) {
        self.bar.suspend(|| note(text));
    }
}

impl Sink for Lines {
    fn event(&mut self, line: &Line) -> Result<()> {
        match &line.event {
            Event::Begin(begin) => self.begin(begin),
            Event::Step(step) => self.step(step),
            Event::Validation(validation) => self.say(&validation_text(validation)),
            Event::Sample(sample) => self.say(&format!(
                "step {}: {:?} -> {:?}",
                sample.step, sample.prompt, sample.text
            )),
            Event::Note(note) => self.say(&note.text),
            Event::Checkpoint(_) => {}
            Event::End(_) => self.bar.finish_and_clear(),
        }
        Ok(())
    }
}
