//! A run's `metrics.jsonl`, read whole: what the report, the list of runs and the screen of a resumed run are made of.

use super::events::{Begin, Checkpoint, End, Event, Line, Note, Sample, Step, Validation};
use anyhow::{Context, Result};
use std::{
    fs::File,
    io::{BufRead, BufReader},
    path::Path,
};

/// An event and when it happened, in unix seconds.
#[derive(Debug, Clone, PartialEq)]
pub struct At<T> {
    /// When; 0 where the file does not say.
    pub time: f64,
    /// What.
    pub event: T,
}

/// All that happened, each kind in its order.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct History {
    /// Starts: the first, and one for each time that the run was resumed.
    pub begins: Vec<At<Begin>>,
    /// Optimiser steps.
    pub steps: Vec<At<Step>>,
    /// Measurements of the held-out rows.
    pub validations: Vec<At<Validation>>,
    /// Texts.
    pub samples: Vec<At<Sample>>,
    /// Checkpoints.
    pub checkpoints: Vec<At<Checkpoint>>,
    /// What was told.
    pub notes: Vec<At<Note>>,
    /// Ends of training; the last may be followed by another start.
    pub ends: Vec<At<End>>,
    /// Lines that are torn or of a kind that this version does not know.
    pub n_unread: usize,
    /// Seconds from each start to the last event before the next.
    seconds: f64,
    begun_at: Option<f64>,
    last_at: f64,
    ended: bool,
}

impl History {
    /// Reads a file; a torn line is passed over, as a killed process leaves one.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn read(path: &Path) -> Result<Self> {
        let cannot = || format!("cannot read {}", path.display());
        let mut reader = BufReader::new(File::open(path).with_context(cannot)?);
        let (mut history, mut line) = (Self::default(), Vec::new());
        while reader.read_until(b'\n', &mut line).with_context(cannot)? > 0 {
            let text = String::from_utf8_lossy(&line);
            if !text.trim().is_empty() {
                match Line::parse(&text) {
                    Some(line) => history.push(line),
                    None => history.n_unread += 1,
                }
            }
            line.clear();
        }
        Ok(history)
    }

    /// Adds what happened next.
    pub fn push(&mut self, line: Line) {
        let Line { time, event } = line;
        if matches!(event, Event::Begin(_)) || self.begun_at.is_none() {
            self.seconds += self.segment_seconds();
            self.begun_at = Some(time);
        }
        self.last_at = time;
        self.ended = matches!(event, Event::End(_));
        match event {
            Event::Begin(event) => self.begins.push(At {
                time,
                event: *event,
            }),
            Event::Step(event) => self.steps.push(At { time, event }),
            Event::Validation(event) => self.validations.push(At { time, event }),
            Event::Sample(event) => self.samples.push(At { time, event }),
            Event::Checkpoint(event) => self.checkpoints.push(At { time, event }),
            Event::Note(event) => self.notes.push(At { time, event }),
            Event::End(event) => self.ends.push(At { time, event }),
        }
    }

    /// The end, where nothing came after it.
    pub fn end(&self) -> Option<&At<End>> {
        self.ends.last().filter(|_| self.ended)
    }

    /// What the run said of itself when it last started.
    pub fn begin(&self) -> Option<&Begin> {
        self.begins.last().map(|begin| &begin.event)
    }

    /// Steps done.
    pub fn step(&self) -> u64 {
        let last = |step: Option<u64>| step.unwrap_or(0);
        last(self.steps.last().map(|at| at.event.step))
            .max(last(self.checkpoints.last().map(|at| at.event.step)))
    }

    /// When it first started.
    pub fn started(&self) -> Option<f64> {
        let first = self.begins.first().map(|begin| begin.time);
        first
            .or_else(|| self.steps.first().map(|step| step.time))
            .filter(|time| *time > 0.0)
    }

    /// Seconds of training and validation, over all starts, up to the last event.
    pub fn seconds(&self) -> f64 {
        self.seconds + self.segment_seconds()
    }

    /// The time of the last event.
    pub fn last_at(&self) -> Option<f64> {
        Some(self.last_at).filter(|time| *time > 0.0)
    }

    fn segment_seconds(&self) -> f64 {
        self.begun_at
            .filter(|begun| *begun > 0.0)
            .map_or(0.0, |begun| (self.last_at - begun).max(0.0))
    }

    /// The most memory that a process of this run has held.
    pub fn peak_bytes(&self) -> Option<u64> {
        let of_steps = self.steps.iter().filter_map(|at| at.event.peak_bytes);
        let of_ends = self.ends.iter().filter_map(|at| at.event.peak_bytes);
        of_steps.chain(of_ends).max()
    }

    /// Positions computed for a second of training, over all steps.
    pub fn tokens_per_s(&self) -> Option<f64> {
        // Every step weighs as much: a mean of its seconds a token is what a person waits for.
        let rates: Vec<_> = self
            .steps
            .iter()
            .map(|at| at.event.tokens_per_s)
            .filter(|rate| rate.is_finite() && *rate > 0.0)
            .collect();
        let inverse: f64 = rates.iter().map(|rate| 1.0 / rate).sum();
        (inverse > 0.0).then(|| rates.len() as f64 / inverse)
    }

    /// Tokens that were trained on and count in the loss.
    pub fn tokens(&self) -> u64 {
        self.steps.iter().map(|at| at.event.tokens).sum()
    }

    /// A figure of each step by the step's number.
    pub fn curve(&self, figure: fn(&Step) -> f64) -> Vec<(f64, f64)> {
        let point = |at: &At<Step>| (at.event.step as f64, figure(&at.event));
        self.steps.iter().map(point).collect()
    }

    /// Held-out losses by the steps done before.
    pub fn held_out(&self) -> Vec<(f64, f64)> {
        let point = |at: &At<Validation>| (at.event.step as f64, at.event.valid_loss);
        self.validations.iter().map(point).collect()
    }

    /// Held-out perplexity before the first step.
    pub fn perplexity_before(&self) -> Option<f64> {
        let first = self.validations.first().filter(|at| at.event.step == 0);
        first.map(|at| at.event.valid_perplexity)
    }

    /// The lowest held-out perplexity after the first step, and its step.
    pub fn best_perplexity(&self) -> Option<(u64, f64)> {
        self.validations
            .iter()
            .filter(|at| at.event.step > 0 && at.event.valid_perplexity.is_finite())
            .map(|at| (at.event.step, at.event.valid_perplexity))
            .min_by(|a, b| a.1.total_cmp(&b.1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::events::EndState;
    use std::fs;

    fn at(time: f64, event: Event) -> Line {
        Line { time, event }
    }

    fn begin(step: u64) -> Event {
        Event::Begin(Box::new(Begin {
            step,
            steps: 9,
            ..Begin::default()
        }))
    }

    fn step(step: u64, tokens_per_s: f64) -> Event {
        Event::Step(Step {
            step,
            tokens_per_s,
            tokens: 10,
            peak_bytes: Some(step * 100),
            ..Step::default()
        })
    }

    #[test]
    fn time_between_two_starts_does_not_count() {
        let mut history = History::default();
        for line in [
            at(100.0, begin(0)),
            at(103.0, step(1, 100.0)),
            at(110.0, step(2, 50.0)),
            at(1000.0, begin(2)),
            at(1004.0, step(3, 100.0)),
        ] {
            history.push(line);
        }
        assert!((history.seconds() - 14.0).abs() < 1e-9);
        assert_eq!((history.step(), history.tokens()), (3, 30));
        assert_eq!(history.peak_bytes(), Some(300));
        assert!((history.tokens_per_s().unwrap() - 75.0).abs() < 1e-9);
        assert_eq!(history.started(), Some(100.0));
        assert_eq!(history.end(), None);
        let end = End {
            step: 3,
            state: EndState::Interrupted,
            reason: None,
            peak_bytes: None,
            outcome: serde_json::Value::Null,
        };
        history.push(at(1005.0, Event::End(end)));
        assert!(history.end().is_some());
        history.push(at(2000.0, begin(3)));
        assert_eq!(history.end(), None);
        assert!((history.seconds() - 15.0).abs() < 1e-9);
    }

    #[test]
    fn a_torn_file_is_read_as_far_as_it_goes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut bytes =
            b"{\"step\":0,\"valid_loss\":2.0,\"valid_perplexity\":7.389}\n{\"step\":1,\"loss\":3.5,\"lr\":0.1,\"grad_norm\":1.0,\"tokens_per_s\":10.0}\n{\"step\":1,\"valid_loss\":1.0,\"valid_perplexity\":2.75}\n".to_vec();
        bytes.extend(b"{\"step\":2,\"loss\":3.\xc3");
        fs::write(&path, bytes).unwrap();
        let history = History::read(&path).unwrap();
        assert_eq!((history.steps.len(), history.n_unread), (1, 1));
        assert_eq!(history.perplexity_before(), Some(7.389));
        assert_eq!(history.best_perplexity(), Some((1, 2.75)));
        assert_eq!((history.started(), history.peak_bytes()), (None, None));
        assert!(history.seconds().abs() < 1e-9);
        assert!(History::read(&folder.path().join("none")).is_err());
    }
}
