//! Requests as sums a day. Nothing of a single request is kept but its time and its two surprises, for the charts.

use crate::{
    divergence::Counts,
    record::{REPETITIVE, Record},
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, btree_map::Entry};

/// Milliseconds of a day.
pub const DAY_MS: u64 = 86_400_000;
/// Days that are told apart at most, eleven years: foreign lines choose the dates, and each costs memory.
const MAX_DAYS: usize = 4000;
/// Outcomes, languages and models that are told apart at most.
const MAX_NAMES: usize = 200;
/// Lengths are counted up to `2^(N_LENGTHS - 1)`, as training does it.
const N_LENGTHS: usize = 24;

/// The requests of a day, or of several.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Window {
    /// Its first request, in milliseconds since 1970.
    pub first_ms: u64,
    /// Its last.
    pub last_ms: u64,
    /// Requests.
    pub requests: u64,
    /// Those that were answered by the model to the end or in part.
    pub answers: u64,
    /// Those that ended with an error.
    pub errors: u64,
    /// First requests of a process.
    pub cold_starts: u64,
    /// How many ended so.
    pub outcomes: BTreeMap<String, u64>,
    /// How many prompts are in a language; `?` where that is uncertain.
    pub languages: BTreeMap<String, u64>,
    /// Tokens of prompts.
    pub prompt_tokens: u64,
    /// Tokens of answers.
    pub completion_tokens: u64,
    /// Prompts of 0 tokens, 1, 2 to 3, 4 to 7, …
    pub prompt_lengths: Vec<u64>,
    /// Answers of so many.
    pub answer_lengths: Vec<u64>,
    /// Answers that begin like a refusal.
    pub refusals: u64,
    /// Answers that repeat themselves.
    pub repetitive: u64,
    /// Tokens of prompts by cell.
    pub prompt: Counts,
    /// Tokens of prompts and answers by cell.
    pub all: Counts,
    /// Surprise of prompts.
    pub prompt_surprise: Sum,
    /// Surprise of answers.
    pub answer_surprise: Sum,
    /// Milliseconds to the first token.
    #[serde(skip)]
    pub first_token_ms: Vec<f32>,
    /// Tokens a second.
    #[serde(skip)]
    pub tokens_per_s: Vec<f32>,
}

/// A number and a sum.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Sum {
    /// How many.
    pub n: u64,
    /// Their sum.
    pub sum: f64,
}

impl Sum {
    /// Their mean, where there are any.
    pub fn mean(self) -> Option<f64> {
        (self.n > 0).then(|| self.sum / self.n as f64)
    }

    fn add(&mut self, value: Option<f64>) {
        if let Some(value) = value {
            self.n += 1;
            self.sum += value;
        }
    }
}

impl Window {
    fn add(&mut self, record: &Record) {
        if self.requests == 0 {
            (self.first_ms, self.last_ms) = (record.time_ms, record.time_ms);
        }
        self.first_ms = self.first_ms.min(record.time_ms);
        self.last_ms = self.last_ms.max(record.time_ms);
        self.requests += 1;
        self.errors += u64::from(record.errors > 0);
        self.cold_starts += u64::from(record.cold_starts > 0);
        count(&mut self.outcomes, &record.outcome);
        self.first_token_ms
            .extend(record.first_token_ms.map(|ms| ms as f32));
        self.tokens_per_s
            .extend(record.tokens_per_s.map(|speed| speed as f32));
        if let Some(sketch) = &record.sketch {
            let prompt: Vec<_> = sketch.prompt_cells().collect();
            let all: Vec<_> = prompt
                .iter()
                .copied()
                .chain(sketch.answer_cells())
                .collect();
            self.prompt.add(sketch.row, prompt.into_iter());
            self.all.add(sketch.row, joined(all).into_iter());
        }
        if record.prompt_tokens == 0 {
            return;
        }
        self.prompt_tokens += record.prompt_tokens;
        self.completion_tokens += record.completion_tokens;
        count(
            &mut self.languages,
            record.language.as_deref().unwrap_or("?"),
        );
        count_length(&mut self.prompt_lengths, record.prompt_tokens);
        self.prompt_surprise.add(record.prompt_surprise);
        self.answer_surprise.add(record.answer_surprise);
        if record.completion_tokens > 0 {
            self.answers += 1;
            count_length(&mut self.answer_lengths, record.completion_tokens);
            self.refusals += u64::from(record.refusals > 0);
            self.repetitive += u64::from(record.repetition.is_some_and(|share| share > REPETITIVE));
        }
    }

    /// Adds all requests of another.
    pub fn merge(&mut self, other: &Self) {
        if other.requests == 0 {
            return;
        }
        let is_first = self.requests == 0;
        self.first_ms = if is_first {
            other.first_ms
        } else {
            self.first_ms.min(other.first_ms)
        };
        self.last_ms = self.last_ms.max(other.last_ms);
        let sums = [
            (&mut self.requests, other.requests),
            (&mut self.answers, other.answers),
            (&mut self.errors, other.errors),
            (&mut self.cold_starts, other.cold_starts),
            (&mut self.prompt_tokens, other.prompt_tokens),
            (&mut self.completion_tokens, other.completion_tokens),
            (&mut self.refusals, other.refusals),
            (&mut self.repetitive, other.repetitive),
            (&mut self.prompt_surprise.n, other.prompt_surprise.n),
            (&mut self.answer_surprise.n, other.answer_surprise.n),
        ];
        for (sum, more) in sums {
            *sum += more;
        }
        self.prompt_surprise.sum += other.prompt_surprise.sum;
        self.answer_surprise.sum += other.answer_surprise.sum;
        for (counts, more) in [
            (&mut self.outcomes, &other.outcomes),
            (&mut self.languages, &other.languages),
        ] {
            for (name, n) in more {
                *counts.entry(name.clone()).or_default() += n;
            }
        }
        for (lengths, more) in [
            (&mut self.prompt_lengths, &other.prompt_lengths),
            (&mut self.answer_lengths, &other.answer_lengths),
        ] {
            lengths.resize(lengths.len().max(more.len()), 0);
            lengths
                .iter_mut()
                .zip(more)
                .for_each(|(sum, more)| *sum += more);
        }
        self.prompt.merge(&other.prompt);
        self.all.merge(&other.all);
        self.first_token_ms.extend(&other.first_token_ms);
        self.tokens_per_s.extend(&other.tokens_per_s);
    }
}

/// Counts of the same cell added up.
fn joined(mut cells: Vec<(usize, u32)>) -> Vec<(usize, u32)> {
    cells.sort_unstable();
    cells.dedup_by(|next, kept| {
        let same = next.0 == kept.0;
        if same {
            kept.1 = kept.1.saturating_add(next.1);
        }
        same
    });
    cells
}

/// One more of a name; what comes after the first few hundred names is one name.
fn count(counts: &mut BTreeMap<String, u64>, name: &str) {
    const LONGEST: usize = 64;
    let name: String = name.chars().take(LONGEST).collect();
    let is_room = counts.len() < MAX_NAMES || counts.contains_key(&name);
    *counts
        .entry(if is_room { name } else { "other".to_owned() })
        .or_default() += 1;
}

fn count_length(lengths: &mut Vec<u64>, n: u64) {
    let bin = ((u64::BITS - n.leading_zeros()) as usize).min(N_LENGTHS);
    if bin >= lengths.len() {
        lengths.resize(bin + 1, 0);
    }
    lengths[bin] += 1;
}

/// All requests.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Traffic {
    /// By number of the day since 1970, in UTC.
    pub days: BTreeMap<u64, Window>,
    /// Time and surprise of prompts, in the order in which they were read until [`Traffic::sort`].
    pub prompt_surprise: Vec<(u64, f64)>,
    /// The same of answers.
    pub answer_surprise: Vec<(u64, f64)>,
    /// Requests by model.
    pub models: BTreeMap<String, u64>,
}

/// The logs speak of more days than there can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("more than {MAX_DAYS} different days")]
pub struct TooManyDays;

impl Traffic {
    /// Adds a request.
    ///
    /// # Errors
    /// When it is of one day too many.
    pub fn add(&mut self, record: &Record) -> Result<(), TooManyDays> {
        let n_days = self.days.len();
        let window = match self.days.entry(record.time_ms / DAY_MS) {
            Entry::Vacant(_) if n_days >= MAX_DAYS => return Err(TooManyDays),
            entry => entry.or_default(),
        };
        window.add(record);
        count(&mut self.models, &record.model);
        let time_ms = record.time_ms;
        self.prompt_surprise
            .extend(record.prompt_surprise.map(|value| (time_ms, value)));
        self.answer_surprise
            .extend(record.answer_surprise.map(|value| (time_ms, value)));
        Ok(())
    }

    /// Puts what is told apart in the order of time: logs of several processes are read one after the other.
    pub fn sort(&mut self) {
        self.prompt_surprise.sort_by_key(|(time_ms, _)| *time_ms);
        self.answer_surprise.sort_by_key(|(time_ms, _)| *time_ms);
    }

    /// Requests in all.
    pub fn requests(&self) -> u64 {
        self.days.values().map(|window| window.requests).sum()
    }
}

/// The value that a share of all values is below.
pub fn quantile(values: &[f32], share: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f32::total_cmp);
    let at = ((sorted.len() as f64 * share) as usize).min(sorted.len().checked_sub(1)?);
    Some(f64::from(sorted[at]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sketch::Sketch;

    fn record(day: u64, tokens: u64) -> Record {
        Record {
            time_ms: day * DAY_MS + 5,
            model: "m".to_owned(),
            outcome: "stop".to_owned(),
            prompt_tokens: tokens,
            completion_tokens: 3,
            prompt_surprise: Some(tokens as f64),
            sketch: Some(Sketch::of(0, &[1, 2], &[1])),
            ..Record::default()
        }
    }

    #[test]
    fn requests_become_sums_of_days() {
        let mut traffic = Traffic::default();
        for (day, tokens) in [(20_001, 4), (20_000, 7), (20_001, 1)] {
            traffic.add(&record(day, tokens)).unwrap();
        }
        traffic.sort();
        assert_eq!(traffic.requests(), 3);
        let day = &traffic.days[&20_001];
        assert_eq!((day.requests, day.prompt_tokens), (2, 5));
        assert_eq!(day.prompt_lengths, [0, 1, 0, 1]);
        assert_eq!(day.prompt_surprise.mean(), Some(2.5));
        assert_eq!((day.prompt.tokens(), day.all.tokens()), (4, 6));
        let values: Vec<f64> = traffic
            .prompt_surprise
            .iter()
            .map(|(_, value)| *value)
            .collect();
        assert_eq!(values, [7.0, 4.0, 1.0]);
        let mut both = Window::default();
        traffic.days.values().for_each(|day| both.merge(day));
        assert_eq!((both.requests, both.answers, both.all.tokens()), (3, 3, 9));
        assert_eq!(both.first_ms, 20_000 * DAY_MS + 5);
    }

    #[test]
    fn dates_out_of_a_hat_cost_no_memory() {
        let mut traffic = Traffic::default();
        let taken = (0..10_000)
            .take_while(|day| traffic.add(&record(20_000 + day, 1)).is_ok())
            .count();
        assert_eq!(taken, MAX_DAYS);
        assert!(traffic.add(&record(20_000, 1)).is_ok());
    }

    #[test]
    fn quantiles() {
        let values: Vec<f32> = (1..=100).map(|i| i as f32).collect();
        assert_eq!(quantile(&values, 0.5), Some(51.0));
        assert_eq!(quantile(&values, 1.0), Some(100.0));
        assert_eq!(quantile(&[], 0.5), None);
    }
}
