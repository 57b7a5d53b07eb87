//! What a person sees while it trains, and `metrics.jsonl`.

use crate::output::note;
use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;
use std::{
    fs::{File, OpenOptions},
    io::{IsTerminal, Write},
    path::Path,
    time::{Duration, Instant},
};

/// Without a terminal, a line comes this often at most.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// A bar on a terminal, plain lines in a pipe, and the file of metrics.
#[derive(Debug)]
pub struct Reporter {
    metrics: File,
    bar: ProgressBar,
    is_terminal: bool,
    last_line: Option<Instant>,
    began: Instant,
    first_step: u64,
    n_steps: u64,
}

impl Reporter {
    /// Opens `metrics.jsonl`; lines after `step` are of steps that a resumed run does again, and go.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn new(path: &Path, step: u64) -> Result<Self> {
        let cannot = || format!("cannot write {}", path.display());
        if step > 0 {
            let text = std::fs::read_to_string(path).unwrap_or_default();
            let keep = |line: &&str| {
                serde_json::from_str::<serde_json::Value>(line)
                    .is_ok_and(|line| line["step"].as_u64().is_some_and(|at| at <= step))
            };
            let kept: String = text
                .lines()
                .filter(keep)
                .flat_map(|line| [line, "\n"])
                .collect();
            crate::files::write_whole(path, kept.as_bytes())?;
        }
        let metrics = OpenOptions::new()
            .create(true)
            .append(step > 0)
            .write(true)
            .truncate(step == 0)
            .open(path)
            .with_context(cannot)?;
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr_with_hz(4));
        Ok(Self {
            metrics,
            bar,
            is_terminal: std::io::stderr().is_terminal(),
            last_line: None,
            began: Instant::now(),
            first_step: step,
            n_steps: 0,
        })
    }

    /// Training starts or goes on.
    pub fn begin(&mut self, step: u64, n_steps: u64) {
        (self.began, self.first_step, self.n_steps) = (Instant::now(), step, n_steps);
        self.bar.set_length(n_steps);
        self.bar.set_position(step);
        if let Ok(style) = ProgressStyle::with_template("step {pos}/{len} {bar:30} {msg} ETA {eta}")
        {
            self.bar.set_style(style);
        }
    }

    /// One step is done.
    ///
    /// # Errors
    /// When `metrics.jsonl` cannot be written.
    pub fn step(
        &mut self,
        step: u64,
        loss: f64,
        lr: f64,
        grad_norm: f64,
        tokens_per_s: f64,
    ) -> Result<()> {
        self.write(&json!({"step": step, "loss": loss, "lr": lr, "grad_norm": grad_norm, "tokens_per_s": tokens_per_s}))?;
        self.bar.set_position(step);
        self.bar
            .set_message(format!("loss {loss:.4} {tokens_per_s:.0} tokens/s"));
        let due = self
            .last_line
            .is_none_or(|last| last.elapsed() >= LINE_EVERY);
        if !self.is_terminal && (due || step == self.n_steps) {
            self.last_line = Some(Instant::now());
            let per_step =
                self.began.elapsed().as_secs_f64() / (step - self.first_step).max(1) as f64;
            let eta_s = per_step * (self.n_steps - step) as f64;
            note(format!(
                "step {step}/{} loss {loss:.4} lr {lr:.2e} {tokens_per_s:.0} tokens/s ETA {eta_s:.0} s",
                self.n_steps
            ));
        }
        Ok(())
    }

    /// The held-out rows were measured.
    ///
    /// # Errors
    /// When `metrics.jsonl` cannot be written.
    pub fn validation(&mut self, step: u64, loss: f64) -> Result<()> {
        self.write(&json!({"step": step, "valid_loss": loss, "valid_perplexity": loss.exp()}))?;
        self.bar.suspend(|| {
            note(format!(
                "step {step}: held-out loss {loss:.4}, perplexity {:.3}",
                loss.exp()
            ));
        });
        Ok(())
    }

    /// Training is over.
    pub fn end(&mut self) {
        self.bar.finish_and_clear();
    }

    fn write(&mut self, line: &serde_json::Value) -> Result<()> {
        writeln!(self.metrics, "{line}").context("cannot write metrics.jsonl")
    }
}
