//! What the screen shows: the run so far, in bounded memory.

use crate::report::{
    events::{Begin, Event, Line, Sample, Step, Validation},
    history::History,
    plot::Smooth,
    text::{duration, one_line},
};
use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// Points of a curve; of more, neighbours are merged.
const N_POINTS: usize = 2048;
/// Notes that are kept.
const N_NOTES: usize = 500;
/// Prompts whose last text is kept.
const N_TEXTS: usize = 16;
/// Steps whose pace the remaining time is told from.
const N_PACE: usize = 50;

/// A curve in bounded memory: each point is the mean of so many values.
#[derive(Debug, Clone)]
pub(super) struct Curve {
    points: Vec<(f64, f64)>,
    stride: usize,
    pending: Vec<(f64, f64)>,
}

impl Default for Curve {
    fn default() -> Self {
        Self {
            points: Vec::new(),
            stride: 1,
            pending: Vec::new(),
        }
    }
}

fn mean(points: &[(f64, f64)]) -> (f64, f64) {
    let n = points.len() as f64;
    let sum = points
        .iter()
        .fold((0.0, 0.0), |sum, point| (sum.0 + point.0, sum.1 + point.1));
    (sum.0 / n, sum.1 / n)
}

impl Curve {
    pub(super) fn push(&mut self, step: u64, value: f64) {
        if !value.is_finite() {
            return;
        }
        self.pending.push((step as f64, value));
        if self.pending.len() < self.stride {
            return;
        }
        self.points.push(mean(&self.pending));
        self.pending.clear();
        if self.points.len() >= N_POINTS {
            self.points = self.points.chunks(2).map(mean).collect();
            self.stride *= 2;
        }
    }

    pub(super) fn points(&self) -> &[(f64, f64)] {
        &self.points
    }

    pub(super) fn last(&self) -> Option<f64> {
        let last = self.pending.last().or(self.points.last());
        last.map(|point| point.1)
    }
}

/// The run as the screen shows it.
#[derive(Debug)]
pub(super) struct Model {
    pub(super) begin: Begin,
    pub(super) step: u64,
    pub(super) last: Option<Step>,
    pub(super) loss: Curve,
    pub(super) smoothed: Curve,
    pub(super) valid: Vec<(f64, f64)>,
    pub(super) lr: Curve,
    pub(super) grad_norm: Curve,
    pub(super) tokens_per_s: Curve,
    pub(super) best: Option<Validation>,
    pub(super) before: Option<f64>,
    pub(super) tokens: u64,
    pub(super) peak_bytes: Option<u64>,
    /// The last text of each prompt.
    pub(super) texts: Vec<Sample>,
    /// The one that is shown.
    pub(super) text_idx: usize,
    pub(super) notes: VecDeque<String>,
    /// Lines between the last note and the last one that is shown.
    pub(super) scroll: usize,
    /// Whether Ctrl-C was pressed.
    pub(super) stopping: bool,
    smooth: Smooth,
    started: Instant,
    pace: VecDeque<(Instant, u64)>,
}

impl Model {
    /// A run with what happened to it before.
    pub(super) fn new(history: &History, now: Instant) -> Self {
        let mut model = Self {
            begin: Begin::default(),
            step: 0,
            last: None,
            loss: Curve::default(),
            smoothed: Curve::default(),
            valid: Vec::new(),
            lr: Curve::default(),
            grad_norm: Curve::default(),
            tokens_per_s: Curve::default(),
            best: None,
            before: None,
            tokens: 0,
            peak_bytes: None,
            texts: Vec::new(),
            text_idx: 0,
            notes: VecDeque::new(),
            scroll: 0,
            stopping: false,
            smooth: Smooth::over(history.begin().map_or(0, |begin| begin.steps as usize)),
            started: now,
            pace: VecDeque::new(),
        };
        for at in &history.steps {
            model.push_step(&at.event);
        }
        for at in &history.validations {
            model.push_validation(&at.event);
        }
        for at in &history.samples {
            model.push_text(&at.event);
        }
        model
    }

    /// Takes in what happened.
    pub(super) fn event(&mut self, line: &Line, now: Instant) {
        match &line.event {
            Event::Begin(begin) => {
                if self.loss.points().is_empty() {
                    self.smooth = Smooth::over(begin.steps as usize);
                }
                (self.step, self.started) = (begin.step, now);
                self.begin = (**begin).clone();
            }
            Event::Step(step) => {
                self.push_step(step);
                // The first step of a process also builds what the others use.
                self.pace.push_back((now, step.step));
                if self.pace.len() > N_PACE {
                    self.pace.pop_front();
                }
            }
            Event::Validation(validation) => {
                self.push_validation(validation);
                self.note(&super::super::lines::validation_text(validation));
            }
            Event::Sample(sample) => self.push_text(sample),
            Event::Checkpoint(checkpoint) => {
                self.note(&format!("step {}: checkpoint", checkpoint.step));
            }
            Event::Note(note) => self.note(&note.text),
            Event::End(_) => {}
        }
    }

    fn push_step(&mut self, step: &Step) {
        self.step = step.step;
        self.loss.push(step.step, step.loss);
        let smoothed = self.smooth.next(step.loss);
        self.smoothed.push(step.step, smoothed);
        self.lr.push(step.step, step.lr);
        self.grad_norm.push(step.step, step.grad_norm);
        self.tokens_per_s.push(step.step, step.tokens_per_s);
        self.tokens += step.tokens;
        self.peak_bytes = self.peak_bytes.max(step.peak_bytes);
        self.last = Some(*step);
    }

    fn push_validation(&mut self, validation: &Validation) {
        let loss = validation.valid_loss;
        if validation.step == 0 {
            self.before = Some(validation.valid_perplexity);
        }
        if loss.is_finite() {
            self.valid.push((validation.step as f64, loss));
        }
        if validation.step > 0 && self.best.is_none_or(|best| loss < best.valid_loss) {
            self.best = Some(*validation);
        }
    }

    fn push_text(&mut self, sample: &Sample) {
        match self
            .texts
            .iter()
            .position(|text| text.prompt == sample.prompt)
        {
            Some(idx) => self.texts[idx] = sample.clone(),
            None if self.texts.len() < N_TEXTS => self.texts.push(sample.clone()),
            None => {}
        }
    }

    /// Adds a line to the notes.
    pub(super) fn note(&mut self, text: &str) {
        self.notes.push_back(one_line(text));
        if self.notes.len() > N_NOTES {
            self.notes.pop_front();
        }
        if self.scroll > 0 {
            self.scroll = (self.scroll + 1).min(self.notes.len() - 1);
        }
    }

    /// Moves the notes by so many lines, up when positive.
    pub(super) fn scroll_by(&mut self, lines: isize) {
        let most = self.notes.len().saturating_sub(1);
        self.scroll = self.scroll.saturating_add_signed(lines).min(most);
    }

    /// Shows the text of another prompt.
    pub(super) fn turn(&mut self, by: isize) {
        let n = self.texts.len().max(1) as isize;
        self.text_idx = (self.text_idx as isize + by).rem_euclid(n) as usize;
    }

    /// Seconds since training started or went on.
    pub(super) fn elapsed(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.started)
    }

    /// Seconds to the last step, at the pace of the last ones with the validations between them.
    pub(super) fn remaining_s(&self, now: Instant) -> Option<f64> {
        let left = self.begin.steps.checked_sub(self.step)? as f64;
        let ((from, first), (to, last)) = (self.pace.front()?, self.pace.back()?);
        let n = last.checked_sub(*first).filter(|n| *n > 0)?;
        let per_step = (*to - *from).as_secs_f64() / n as f64;
        let since = now.saturating_duration_since(*to).as_secs_f64();
        Some((left * per_step - since).max(0.0))
    }

    /// `12:41, ETA 32:10`
    pub(super) fn clock(&self, now: Instant) -> String {
        let elapsed = duration(self.elapsed(now).as_secs().max(1) as f64);
        match self.remaining_s(now) {
            Some(left) if left > 0.0 => format!("{elapsed}, ETA {}", duration(left.ceil())),
            _ => elapsed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_stays_small_and_true() {
        let mut curve = Curve::default();
        for i in 1..=100_000 {
            curve.push(i, i as f64 * 2.0);
        }
        curve.push(100_001, f64::NAN);
        assert!((N_POINTS / 2..N_POINTS).contains(&curve.points().len()));
        assert!(
            curve
                .points()
                .iter()
                .all(|(x, y)| (y - 2.0 * x).abs() < 1e-6)
        );
        assert_eq!(curve.last(), Some(200_000.0));
    }

    #[test]
    fn the_remaining_time_follows_the_last_steps_and_the_clock() {
        let t0 = Instant::now();
        let mut model = Model::new(&History::default(), t0);
        let at = |s: f64| t0 + Duration::from_secs_f64(s);
        let begin = Begin {
            steps: 110,
            ..Begin::default()
        };
        model.event(&Line::now(Event::Begin(Box::new(begin))), t0);
        assert_eq!(model.remaining_s(at(1.0)), None);
        for i in 1..=10 {
            let step = Step {
                step: i,
                ..Step::default()
            };
            model.event(&Line::now(Event::Step(step)), at(5.0 + 2.0 * i as f64));
        }
        let left = model.remaining_s(at(25.5)).unwrap();
        assert!((left - 199.5).abs() < 1e-6, "{left}");
        assert_eq!(model.clock(at(25.5)), "25 s, ETA 3:20");
    }

    #[test]
    fn notes_scroll_and_texts_turn_within_their_bounds() {
        let mut model = Model::new(&History::default(), Instant::now());
        model.scroll_by(5);
        model.turn(-1);
        assert_eq!((model.scroll, model.text_idx), (0, 0));
        for i in 0..1000 {
            model.note(&format!("note {i}\u{1b}[2J"));
        }
        assert_eq!(model.notes.len(), N_NOTES);
        assert_eq!(model.notes[N_NOTES - 1], "note 999 [2J");
        model.scroll_by(3);
        model.note("one more");
        assert_eq!(model.scroll, 4, "what is read stays where it is");
        model.scroll_by(-100);
        assert_eq!(model.scroll, 0);
        for prompt in ["a", "b", "a"] {
            model.push_text(&Sample {
                prompt: prompt.to_owned(),
                ..Sample::default()
            });
        }
        model.turn(-1);
        assert_eq!((model.texts.len(), model.text_idx), (2, 1));
    }
}
