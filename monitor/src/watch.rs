//! Days against their baselines: which figures there are, and which of them are an alarm.

use crate::{
    baseline::{Calibration, Risen, Trained, risen},
    cusum::{Chart, Tuning},
    divergence::{Counts, Distance, Shares, compare, compare_classes},
    read::Tally,
    traffic::{DAY_MS, Traffic, Window, quantile},
};
use fledgling_core::tokenizer::Tokenizer;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// When a figure is an alarm.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Thresholds {
    /// Population stability index of tokens, lengths and languages.
    pub psi: f64,
    /// Jensen-Shannon divergence of tokens, in bits.
    pub jsd: f64,
    /// A lasting change of the mean surprise that matters, in nats.
    pub surprise: f64,
    /// Points (of 25 requests) between two false alarms of the surprise, on average.
    pub run_length: f64,
    /// A share of answers (refusals, repetition) or requests (errors) that grew by this much.
    pub share: f64,
    /// Requests that a figure is taken of at least; fewer are put together with the day after.
    pub requests: u64,
    /// Days that are learnt from, where no baseline is given.
    pub calibrate_days: usize,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self {
            psi: 0.25,
            jsd: 0.1,
            surprise: 0.25,
            run_length: 1e6,
            share: 0.1,
            requests: 100,
            calibrate_days: 7,
        }
    }
}

/// What requests are compared with.
#[derive(Debug, Default)]
pub struct Baselines<'a> {
    /// The model's training data.
    pub trained: Option<&'a Trained>,
    /// Days that were fine, of a file; the first days of the logs where there is none.
    pub calibration: Option<Calibration>,
    /// Names the tokens that became frequent.
    pub tokenizer: Option<&'a Tokenizer>,
}

/// A figure of a day.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Figure {
    /// PSI of all tokens against the training data.
    TrainingPsi,
    /// JSD of all tokens against the training data.
    TrainingJsd,
    /// PSI of the prompts' lengths against the training data.
    TrainingPromptLengths,
    /// PSI of the prompts' tokens against days that were fine.
    PromptPsi,
    /// JSD of the same.
    PromptJsd,
    /// PSI of the prompts' lengths against these.
    PromptLengths,
    /// PSI of the answers' lengths against these.
    AnswerLengths,
    /// PSI of languages against these.
    Languages,
    /// Surprise of prompts.
    PromptSurprise,
    /// Surprise of answers.
    AnswerSurprise,
    /// Share of answers that refuse.
    Refusals,
    /// Share of answers that repeat themselves.
    Repetition,
    /// Share of requests that fail.
    Errors,
}

impl Figure {
    /// For people.
    pub fn text(self) -> &'static str {
        match self {
            Self::TrainingPsi => "tokens against the training data, PSI",
            Self::TrainingJsd => "tokens against the training data, JSD (bits)",
            Self::TrainingPromptLengths => "lengths of prompts against the training data, PSI",
            Self::PromptPsi => "tokens of prompts against the baseline days, PSI",
            Self::PromptJsd => "tokens of prompts against the baseline days, JSD (bits)",
            Self::PromptLengths => "lengths of prompts against the baseline days, PSI",
            Self::AnswerLengths => "lengths of answers against the baseline days, PSI",
            Self::Languages => "languages against the baseline days, PSI",
            Self::PromptSurprise => "surprise of prompts (nats a token)",
            Self::AnswerSurprise => "surprise of answers (nats a token)",
            Self::Refusals => "share of answers that refuse",
            Self::Repetition => "share of answers that repeat themselves",
            Self::Errors => "share of requests that fail",
        }
    }
}

/// A day, or several that are one because each has few requests.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Day {
    /// The beginning of its first day in UTC, in milliseconds since 1970.
    pub start_ms: u64,
    /// Days in it.
    pub days: u64,
    /// Whether it was learnt from.
    pub is_baseline: bool,
    /// Requests.
    pub requests: u64,
    /// Tokens of prompts and answers.
    pub tokens: [u64; 2],
    /// Mean surprise of prompts and answers.
    pub surprise: [Option<f64>; 2],
    /// Distances from the baselines.
    pub distances: BTreeMap<Figure, Distance>,
    /// Shares of requests or answers.
    pub shares: BTreeMap<Figure, f64>,
    /// Milliseconds to the first token: the median, and what 95 of 100 are below.
    pub first_token_ms: [Option<f64>; 2],
    /// Median of tokens a second.
    pub tokens_per_s: Option<f64>,
    /// Cold starts.
    pub cold_starts: u64,
    /// How requests ended.
    pub outcomes: BTreeMap<String, u64>,
}

/// Something that is no longer as it was.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Alarm {
    /// Which figure.
    pub figure: Figure,
    /// When it was seen first, in milliseconds since 1970.
    pub time_ms: u64,
    /// Days on which it was seen.
    pub days: u64,
    /// The figure at its largest.
    pub value: f64,
    /// What it must stay below.
    pub threshold: f64,
    /// In words.
    pub text: String,
}

/// All that is to be said.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Findings {
    /// Alarms, the first seen first.
    pub alarms: Vec<Alarm>,
    /// What one should know of these figures.
    pub notes: Vec<String>,
    /// Requests by model.
    pub models: BTreeMap<String, u64>,
    /// Days.
    pub days: Vec<Day>,
    /// Charts of surprise: prompts, answers.
    pub charts: BTreeMap<Figure, Chart>,
    /// Tokens that became more frequent on the days of the first alarm, or the last day.
    pub risen: Vec<Risen>,
    /// What was read.
    pub logs: Tally,
}

/// Compares; also returns what was learnt from the first days, to be kept for later.
pub fn watch(
    traffic: &Traffic,
    baselines: Baselines<'_>,
    thresholds: &Thresholds,
    logs: Tally,
) -> (Findings, Option<Calibration>) {
    let windows = windows(traffic, thresholds.requests);
    let mut notes = notes(traffic, &baselines, &windows, thresholds);
    let n_learnt = if baselines.calibration.is_some() {
        0
    } else {
        n_learnt(&windows, thresholds)
    };
    let given = baselines.calibration.is_some();
    let calibration = baselines
        .calibration
        .or_else(|| learn(traffic, &windows[..n_learnt]));
    if !given {
        notes.push(match &calibration {
            Some(learnt) => format!(
                "The baseline days are the first {} with {} requests; keep them with --write-baseline for logs that begin later.",
                learnt_days(&windows[..n_learnt]),
                learnt.window.requests
            ),
            None => format!(
                "Too few days or requests to learn from ({} a day at least, two days): only the training data are compared with.",
                thresholds.requests
            ),
        });
    }
    let learnt = calibration.as_ref().map(Learnt::new);
    let mut days: Vec<Day> = windows
        .iter()
        .map(|(start_ms, window)| day(*start_ms, window, baselines.trained, learnt.as_ref()))
        .collect();
    days.iter_mut().take(n_learnt).for_each(|day| {
        day.is_baseline = true;
        // What was learnt from is not judged by itself.
        day.distances.retain(|figure, _| figure.is_of_training());
    });
    let charts = charts(traffic, calibration.as_ref(), thresholds);
    let mut alarms = alarms(&days, &windows, learnt.as_ref(), thresholds);
    alarms.extend(
        charts
            .iter()
            .filter_map(|(figure, chart)| surprise_alarm(*figure, chart)),
    );
    alarms.sort_by_key(|alarm| (alarm.time_ms, alarm.figure));
    let risen = baselines.tokenizer.map_or_else(Vec::new, |tokenizer| {
        let against = baselines.trained.map(|trained| &trained.shares);
        let against = against.or(learnt.as_ref().map(|learnt| &learnt.prompt));
        let at = alarms.first().map_or(u64::MAX, |alarm| alarm.time_ms);
        let shown = windows
            .iter()
            .find(|(_, window)| window.last_ms >= at)
            .or(windows.last());
        match (against, shown) {
            (Some(against), Some((_, window))) => {
                risen(tokenizer, against, &window.all.shares(), 24)
            }
            _ => Vec::new(),
        }
    });
    let findings = Findings {
        alarms,
        notes,
        models: traffic.models.clone(),
        days,
        charts,
        risen,
        logs,
    };
    (findings, calibration)
}

impl Figure {
    fn is_of_training(self) -> bool {
        matches!(
            self,
            Self::TrainingPsi | Self::TrainingJsd | Self::TrainingPromptLengths
        )
    }
}

/// Days; those with few requests together with the next ones, and a rest with the last.
fn windows(traffic: &Traffic, least: u64) -> Vec<(u64, Window)> {
    let mut windows: Vec<(u64, Window)> = Vec::new();
    for (day, window) in &traffic.days {
        match windows.last_mut() {
            Some((_, last)) if last.requests < least => last.merge(window),
            _ => windows.push((day * DAY_MS, window.clone())),
        }
    }
    if windows.len() > 1
        && windows
            .last()
            .is_some_and(|(_, last)| last.requests < least)
        && let Some((_, rest)) = windows.pop()
        && let Some((_, last)) = windows.last_mut()
    {
        last.merge(&rest);
    }
    windows
}

/// So many of the first windows are learnt from: the days that were asked for, at most half of all.
fn n_learnt(windows: &[(u64, Window)], thresholds: &Thresholds) -> usize {
    let Some((start_ms, _)) = windows.first() else {
        return 0;
    };
    let end_ms = start_ms + thresholds.calibrate_days as u64 * DAY_MS;
    let n = windows
        .iter()
        .take_while(|(start_ms, _)| *start_ms < end_ms)
        .count();
    n.min(windows.len() / 2)
}

fn learnt_days(windows: &[(u64, Window)]) -> String {
    let days: u64 = windows
        .iter()
        .map(|(start_ms, window)| n_days(*start_ms, window))
        .sum();
    format!("{days} day{}", if days == 1 { "" } else { "s" })
}

fn n_days(start_ms: u64, window: &Window) -> u64 {
    (window.last_ms.max(start_ms) - start_ms) / DAY_MS + 1
}

fn learn(traffic: &Traffic, windows: &[(u64, Window)]) -> Option<Calibration> {
    let (_, last) = windows.last()?;
    let mut all = Window::default();
    for (_, window) in windows {
        all.merge(window);
    }
    let until = |values: &[(u64, f64)]| -> Vec<f64> {
        let early = values
            .iter()
            .take_while(|(time_ms, _)| *time_ms <= last.last_ms);
        early.map(|(_, value)| *value).collect()
    };
    Some(Calibration::new(
        traffic
            .models
            .keys()
            .cloned()
            .collect::<Vec<_>>()
            .join(", "),
        all,
        &until(&traffic.prompt_surprise),
        &until(&traffic.answer_surprise),
    ))
}

fn notes(
    traffic: &Traffic,
    baselines: &Baselines<'_>,
    windows: &[(u64, Window)],
    thresholds: &Thresholds,
) -> Vec<String> {
    let mut notes = Vec::new();
    if traffic.models.len() > 1 {
        let names: Vec<&str> = traffic.models.keys().map(String::as_str).collect();
        notes.push(format!(
            "The logs are of several models ({}); one alone with --only ID.",
            names.join(", ")
        ));
    }
    if baselines.trained.is_none() {
        notes.push("No training data to compare with: name the model's file with --model (`fledgling export` of a run records them in it).".to_owned());
    }
    let n_sketched: u64 = windows.iter().map(|(_, window)| window.all.tokens()).sum();
    if n_sketched == 0 {
        notes.push("No request has a sketch of its tokens.".to_owned());
    }
    if windows.len() == 1 && windows[0].1.requests < thresholds.requests {
        notes.push(format!(
            "Only {} requests: figures of so few say little.",
            windows[0].1.requests
        ));
    }
    let first = windows
        .first()
        .and_then(|(_, window)| window.prompt_surprise.mean());
    if let (Some(first), Some(loss)) = (
        first,
        baselines.trained.and_then(|trained| trained.valid_loss),
    ) {
        notes.push(format!(
            "Held-out rows surprised the model by {loss:.2} nats a token when it was trained; prompts of the first day by {first:.2}. \
             Prompts are short, and their beginning is what is hardest to foresee."
        ));
    }
    notes
}

/// A calibration as it is compared with.
struct Learnt<'a> {
    window: &'a Window,
    prompt: Shares,
    languages: Vec<String>,
}

impl<'a> Learnt<'a> {
    fn new(calibration: &'a Calibration) -> Self {
        let window = &calibration.window;
        Self {
            window,
            prompt: window.prompt.shares(),
            languages: window.languages.keys().cloned().collect(),
        }
    }

    /// Languages of the baseline, the most frequent first, then all others as one.
    fn by_language(&self, window: &Window) -> [Vec<u64>; 2] {
        let mut names: Vec<&String> = self.languages.iter().collect();
        names.sort_by_key(|name| std::cmp::Reverse(self.window.languages.get(*name)));
        let known: BTreeSet<&String> = names.iter().copied().collect();
        [self.window, window].map(|window| {
            let of = |name: &&String| window.languages.get(*name).copied().unwrap_or(0);
            let others = window
                .languages
                .iter()
                .filter(|(name, _)| !known.contains(name));
            let mut counts: Vec<u64> = names.iter().map(of).collect();
            counts.push(others.map(|(_, n)| n).sum());
            counts
        })
    }
}

fn day(
    start_ms: u64,
    window: &Window,
    trained: Option<&Trained>,
    learnt: Option<&Learnt<'_>>,
) -> Day {
    let mut distances = BTreeMap::new();
    let mut tokens = |against: &Shares, counts: &Counts, psi: Figure, jsd: Figure| {
        if let Some((by_psi, by_jsd)) = compare(against, counts) {
            distances.insert(psi, by_psi);
            distances.insert(jsd, by_jsd);
        }
    };
    if let Some(trained) = trained {
        tokens(
            &trained.shares,
            &window.all,
            Figure::TrainingPsi,
            Figure::TrainingJsd,
        );
    }
    if let Some(learnt) = learnt {
        tokens(
            &learnt.prompt,
            &window.prompt,
            Figure::PromptPsi,
            Figure::PromptJsd,
        );
    }
    let mut classes = |figure: Figure, baseline: &[u64], now: &[u64]| {
        if let Some(distance) = compare_classes(baseline, now) {
            distances.insert(figure, distance);
        }
    };
    if let Some(lengths) = trained.and_then(|trained| trained.prompt_lengths.as_ref()) {
        classes(
            Figure::TrainingPromptLengths,
            lengths,
            &window.prompt_lengths,
        );
    }
    if let Some(learnt) = learnt {
        classes(
            Figure::PromptLengths,
            &learnt.window.prompt_lengths,
            &window.prompt_lengths,
        );
        classes(
            Figure::AnswerLengths,
            &learnt.window.answer_lengths,
            &window.answer_lengths,
        );
        let [baseline, now] = learnt.by_language(window);
        classes(Figure::Languages, &baseline, &now);
    }
    let shares = SHARES.iter().filter_map(|(figure, counts)| {
        let (n, of) = counts(window);
        (of > 0).then(|| (*figure, n as f64 / of as f64))
    });
    Day {
        start_ms,
        days: n_days(start_ms, window),
        is_baseline: false,
        requests: window.requests,
        tokens: [window.prompt_tokens, window.completion_tokens],
        surprise: [window.prompt_surprise.mean(), window.answer_surprise.mean()],
        distances,
        shares: shares.collect(),
        first_token_ms: [0.5, 0.95].map(|share| quantile(&window.first_token_ms, share)),
        tokens_per_s: quantile(&window.tokens_per_s, 0.5),
        cold_starts: window.cold_starts,
        outcomes: window.outcomes.clone(),
    }
}

/// How many, of how many.
type Counted = fn(&Window) -> (u64, u64);

const SHARES: [(Figure, Counted); 3] = [
    (Figure::Refusals, |window| (window.refusals, window.answers)),
    (Figure::Repetition, |window| {
        (window.repetitive, window.answers)
    }),
    (Figure::Errors, |window| (window.errors, window.requests)),
];

fn charts(
    traffic: &Traffic,
    calibration: Option<&Calibration>,
    thresholds: &Thresholds,
) -> BTreeMap<Figure, Chart> {
    let tuning = Tuning {
        shift: thresholds.surprise,
        run_length: thresholds.run_length,
    };
    let of = |figure, values: &[(u64, f64)], level: Option<crate::cusum::Level>| {
        let chart = Chart::new(level?, tuning, values);
        (!chart.points.is_empty()).then_some((figure, chart))
    };
    let (prompts, answers) =
        calibration.map_or((None, None), |c| (c.prompt_surprise, c.answer_surprise));
    let charts = [
        of(Figure::PromptSurprise, &traffic.prompt_surprise, prompts),
        of(Figure::AnswerSurprise, &traffic.answer_surprise, answers),
    ];
    charts.into_iter().flatten().collect()
}

fn surprise_alarm(figure: Figure, chart: &Chart) -> Option<Alarm> {
    let alarm = chart.alarm?;
    let (direction, hint) = if alarm.is_rise {
        ("rose", "the model knows less of what it is asked")
    } else {
        ("fell", "requests are more alike, or easier")
    };
    Some(Alarm {
        figure,
        time_ms: alarm.time_ms,
        days: 1,
        value: alarm.shift,
        threshold: chart.level.sd * chart.limit,
        text: format!(
            "{} {direction} by {:.2} from {:.2}, seen after {} requests: {hint}",
            figure.text(),
            alarm.shift.abs(),
            chart.level.mean,
            alarm.requests
        ),
    })
}

fn alarms(
    days: &[Day],
    windows: &[(u64, Window)],
    learnt: Option<&Learnt<'_>>,
    thresholds: &Thresholds,
) -> Vec<Alarm> {
    let mut alarms: BTreeMap<Figure, Alarm> = BTreeMap::new();
    let mut add = |figure: Figure, window: &Window, value: f64, threshold: f64, text: String| {
        let alarm = alarms.entry(figure).or_insert_with(|| Alarm {
            figure,
            // Within the day nothing says when; it is known at its last request.
            time_ms: window.last_ms,
            days: 0,
            value,
            threshold,
            text: text.clone(),
        });
        alarm.days += 1;
        if value > alarm.value {
            (alarm.value, alarm.text) = (value, text);
        }
    };
    for (day, (_, window)) in days.iter().zip(windows) {
        for (figure, distance) in &day.distances {
            let is_jsd = matches!(figure, Figure::TrainingJsd | Figure::PromptJsd);
            let threshold = if is_jsd {
                thresholds.jsd
            } else {
                thresholds.psi
            };
            if distance.exceeds(threshold) {
                let text = format!(
                    "{}: {:.2} over {} requests, {threshold} is too much",
                    figure.text(),
                    distance.value,
                    window.requests
                );
                add(*figure, window, distance.value, threshold, text);
            }
        }
        let Some(learnt) = learnt.filter(|_| !day.is_baseline) else {
            continue;
        };
        for (figure, counts) in SHARES {
            let (now, before) = (counts(window), counts(learnt.window));
            if let Some((p, q)) = grew(now, before, thresholds.share) {
                let text = format!(
                    "{}: {:.1} % after {:.1} %",
                    figure.text(),
                    100.0 * p,
                    100.0 * q
                );
                add(figure, window, p, q + thresholds.share, text);
            }
        }
    }
    alarms.into_values().collect()
}

/// Both shares, when the first is larger than the second by `least` and by four standard errors (two proportions, pooled).
fn grew((n, of): (u64, u64), (m, out_of): (u64, u64), least: f64) -> Option<(f64, f64)> {
    if of == 0 || out_of == 0 {
        return None;
    }
    let (n, of, m, out_of) = (n as f64, of as f64, m as f64, out_of as f64);
    let (p, q) = (n / of, m / out_of);
    let pooled = (n + m) / (of + out_of);
    let error = (pooled * (1.0 - pooled) * (1.0 / of + 1.0 / out_of)).sqrt();
    (p - q >= least && p - q > 4.0 * error).then_some((p, q))
}
