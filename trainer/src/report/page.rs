//! The report of a run: one HTML file, no script, no request.

use super::{
    events::{EndState, Sample},
    history::{At, History},
    overview::Overview,
    plot::{Kind, Plot, Scale, Series, smooth},
    text::{date, duration, memory, perplexity, short, thousands},
};
use crate::{
    files::write_whole,
    run::{self, CONFIG_FILE, METRICS_FILE},
};
use anyhow::Result;
use fledgling_eval::page::{of, render};
use minijinja::context;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Name of the report in a run's folder.
pub const REPORT_FILE: &str = "report.html";
/// Texts of a prompt that are shown at once, spread over the run.
const N_TEXTS: usize = 6;
/// Prompts that are shown.
const N_PROMPTS: usize = 12;
/// Lines of what happened.
const N_LOG: usize = 200;

/// Writes the report of the run in `folder` to `target`, or into the folder, and says where it is.
///
/// # Errors
/// When the run has nothing that can be shown, or the file cannot be written.
pub fn write(folder: &Path, target: Option<&Path>) -> Result<PathBuf> {
    let target = target.map_or_else(|| folder.join(REPORT_FILE), Path::to_owned);
    write_whole(&target, html(folder)?.as_bytes())?;
    Ok(target)
}

/// The report of the run in `folder`.
///
/// # Errors
/// When the run has no metrics.
pub fn html(folder: &Path) -> Result<String> {
    let history = History::read(&folder.join(METRICS_FILE))?;
    let record = run::read_record(folder).ok();
    let overview = Overview::of(folder, record.as_ref(), &history, None);
    let config = std::fs::read_to_string(folder.join(CONFIG_FILE)).unwrap_or_default();
    page(&overview, &history, &config)
}

fn page(run: &Overview, history: &History, config: &str) -> Result<String> {
    let context = context! {
        run => of(run),
        state => run.state.text(),
        lead => lead(run),
        tiles => of(tiles(run, history)),
        plots => of(plots(history)),
        validations => of(validations(run, history)),
        prompts => of(prompts(&history.samples)),
        data => of(data(history)),
        facts => of(facts(run, history)),
        log => of(log(history)),
        config,
        version => env!("CARGO_PKG_VERSION"),
    };
    render(include_str!("page.html"), context)
}

fn lead(run: &Overview) -> String {
    let mut parts = Vec::new();
    match (run.mode.as_deref(), run.base.as_deref()) {
        (Some("scratch"), Some(base)) => parts.push(format!("from scratch, tokenizer of {base}")),
        (Some(mode), Some(base)) => parts.push(format!("{mode} of {base}")),
        (Some(mode), None) => parts.push(mode.to_owned()),
        _ => {}
    }
    parts.extend(run.device.as_ref().map(|device| format!("on {device}")));
    parts.extend(run.started.map(|at| format!("started {} UTC", date(at))));
    parts.join(" · ")
}

#[derive(Debug, Serialize)]
struct Tile {
    wide: bool,
    name: &'static str,
    value: String,
    more: String,
}

fn tiles(run: &Overview, history: &History) -> Vec<Tile> {
    let tile = |name, value: String, more: String| Tile {
        wide: value.contains('→'),
        name,
        value,
        more,
    };
    let mut tiles = Vec::new();
    match (run.perplexity_before, run.perplexity) {
        (Some(before), Some(after)) => tiles.push(tile(
            "held-out perplexity",
            format!("{} → {}", perplexity(before), perplexity(after)),
            format!(
                "{:+.1} %, kept at step {}",
                100.0 * (after / before - 1.0),
                run.kept_step.unwrap_or(run.step)
            ),
        )),
        (None, Some(after)) => tiles.push(tile(
            "held-out perplexity",
            perplexity(after),
            String::new(),
        )),
        (Some(before), None) => tiles.push(tile(
            "held-out perplexity before",
            perplexity(before),
            String::new(),
        )),
        (None, None) => {}
    }
    let of = run
        .steps
        .map_or_else(String::new, |steps| format!("of {}", thousands(steps)));
    let epochs = history
        .begin()
        .filter(|begin| begin.steps_per_epoch > 0.0)
        .map(|begin| {
            let n = run.step as f64 / begin.steps_per_epoch;
            format!("{n:.2} passes over the rows")
        });
    let more = [of, epochs.unwrap_or_default()];
    let more: Vec<_> = more.into_iter().filter(|text| !text.is_empty()).collect();
    tiles.push(tile("steps", thousands(run.step), more.join(", ")));
    if let Some(loss) = run.train_loss {
        let points = history.curve(|step| step.loss);
        let smoothed = smooth(&points).last().map_or(loss, |point| point.1);
        tiles.push(tile(
            "training loss",
            format!("{smoothed:.4}"),
            format!("smoothed; last step {loss:.4}"),
        ));
    }
    if let Some(seconds) = run.seconds {
        let starts = match history.begins.len() {
            0 | 1 => "validation included".to_owned(),
            n => format!("in {n} starts"),
        };
        tiles.push(tile("time", duration(seconds), starts));
    }
    if let Some(rate) = run.tokens_per_s {
        let counted = run.tokens.map_or_else(String::new, |n| {
            format!("{} counted in all", short(n as f64))
        });
        tiles.push(tile("tokens a second", short(rate), counted));
    }
    if let Some(bytes) = run.peak_bytes {
        tiles.push(tile(
            "peak memory",
            memory(bytes),
            "of the process".to_owned(),
        ));
    }
    if let Some((trained, all)) = run.trained_parameters.zip(run.parameters) {
        let more = if trained == all {
            "all of them trained".to_owned()
        } else {
            format!(
                "{} trained ({:.2} %)",
                short(trained as f64),
                100.0 * trained as f64 / all as f64
            )
        };
        tiles.push(tile("parameters", short(all as f64), more));
    }
    tiles
}

/// Training loss, faint and smoothed, and the held-out loss.
fn loss_plot(history: &History) -> Option<Plot> {
    let points = history.curve(|step| step.loss);
    let valid = history.held_out();
    let series = |name: &str, colour, kind, points| Series {
        name: name.to_owned(),
        colour,
        kind,
        points,
    };
    Plot::new(
        "Loss",
        "nats a token",
        Scale::Values,
        &[
            series("training", 0, Kind::Faint, points.clone()),
            series("training, smoothed", 0, Kind::Line, smooth(&points)),
            series("held-out", 1, Kind::Dots, valid),
        ],
    )
}

fn plots(history: &History) -> Vec<Plot> {
    let line =
        |title: &str, y_label: &str, scale, colour, value: fn(&super::events::Step) -> f64| {
            let points = history.curve(value);
            let series = Series {
                name: title.to_owned(),
                colour,
                kind: Kind::Line,
                points,
            };
            Plot::new(title, y_label, scale, &[series])
        };
    let plots = [
        loss_plot(history),
        line(
            "Learning rate",
            "at each step",
            Scale::FromZero,
            2,
            |step| step.lr,
        ),
        line("Gradient norm", "before clipping", Scale::Auto, 3, |step| {
            step.grad_norm
        }),
        line(
            "Throughput",
            "tokens a second",
            Scale::FromZero,
            6,
            |step| step.tokens_per_s,
        ),
        line("Peak memory", "MiB", Scale::FromZero, 7, |step| {
            step.peak_bytes
                .map_or(f64::NAN, |bytes| bytes as f64 / 1_048_576.0)
        }),
    ];
    plots.into_iter().flatten().collect()
}

#[derive(Debug, Serialize)]
struct ValidationRow {
    step: String,
    loss: String,
    perplexity: String,
    note: &'static str,
}

fn validations(run: &Overview, history: &History) -> Vec<ValidationRow> {
    let row = |at: &At<super::events::Validation>| ValidationRow {
        step: thousands(at.event.step),
        loss: format!("{:.4}", at.event.valid_loss),
        perplexity: perplexity(at.event.valid_perplexity),
        note: match at.event.step {
            0 => "before the first step",
            step if Some(step) == run.kept_step => "kept",
            _ => "",
        },
    };
    history.validations.iter().map(row).collect()
}

#[derive(Debug, Serialize)]
#[expect(clippy::struct_field_names, reason = "the text of the prompt")]
struct Prompt<'a> {
    prompt: &'a str,
    shown: Vec<&'a Sample>,
    more: Vec<&'a Sample>,
}

/// Texts by their prompt, in the order in which the prompts first came.
fn prompts(samples: &[At<Sample>]) -> Vec<Prompt<'_>> {
    let mut all: Vec<(&str, Vec<&Sample>)> = Vec::new();
    for At { event, .. } in samples {
        match all.iter().position(|(prompt, _)| *prompt == event.prompt) {
            Some(idx) => all[idx].1.push(event),
            None if all.len() < N_PROMPTS => all.push((&event.prompt, vec![event])),
            None => {}
        }
    }
    all.into_iter()
        .map(|(prompt, texts)| {
            let (mut shown, mut more) = (Vec::new(), Vec::new());
            let n = texts.len();
            let spread: Vec<_> = (0..N_TEXTS).map(|i| i * (n - 1) / (N_TEXTS - 1)).collect();
            for (i, text) in texts.into_iter().enumerate() {
                if n <= N_TEXTS || spread.contains(&i) {
                    shown.push(text);
                } else {
                    more.push(text);
                }
            }
            Prompt {
                prompt,
                shown,
                more,
            }
        })
        .collect()
}

#[derive(Debug, Serialize)]
struct DataRow {
    part: String,
    paths: Vec<String>,
    rows: String,
    tokens: String,
    counted: String,
}

fn data(history: &History) -> Vec<DataRow> {
    let Some(begin) = history.begin() else {
        return Vec::new();
    };
    let row = |part: &super::events::DataFile| DataRow {
        part: part.part.clone(),
        paths: part
            .paths
            .iter()
            .map(|path| path.display().to_string())
            .collect(),
        rows: thousands(part.rows),
        tokens: thousands(part.tokens),
        counted: thousands(part.counted),
    };
    begin.data.iter().map(row).collect()
}

fn facts(run: &Overview, history: &History) -> Vec<(&'static str, String)> {
    let Some(begin) = history.begin() else {
        return Vec::new();
    };
    let environment = &begin.environment;
    let facts = [
        ("base model", run.base.clone()),
        ("device", run.device.clone()),
        ("processor", Some(environment.cpu.clone())),
        ("threads", Some(environment.threads.to_string())),
        ("memory", environment.memory_bytes.map(memory)),
        ("system", Some(environment.system.clone())),
        ("fledgling", Some(environment.version.clone())),
        ("started", run.started.map(date)),
        ("last sign of life", history.last_at().map(date)),
    ];
    let known = |(name, value): (_, Option<String>)| {
        value
            .filter(|value| !value.is_empty() && value != "0")
            .map(|value| (name, value))
    };
    facts.into_iter().filter_map(known).collect()
}

#[derive(Debug, Serialize)]
struct LogRow {
    time: String,
    step: String,
    text: String,
}

/// Starts, notes, checkpoints and ends, by time.
fn log(history: &History) -> Vec<LogRow> {
    let mut all: Vec<(f64, u64, String)> = Vec::new();
    for At { time, event } in &history.begins {
        let what = if event.step == 0 {
            "training starts"
        } else {
            "training goes on"
        };
        all.push((*time, event.step, format!("{what} on {}", event.device)));
    }
    for At { time, event } in &history.notes {
        all.push((*time, event.step, event.text.clone()));
    }
    for At { time, event } in &history.checkpoints {
        all.push((*time, event.step, format!("checkpoint in {}", event.path)));
    }
    for At { time, event } in &history.ends {
        let what = match event.state {
            EndState::Finished => "finished",
            EndState::Interrupted => "interrupted",
            EndState::StoppedEarly => "stopped early",
            EndState::Failed => "failed",
        };
        let reason = event.reason.as_ref().map(|reason| format!(": {reason}"));
        all.push((
            *time,
            event.step,
            format!("{what}{}", reason.unwrap_or_default()),
        ));
    }
    all.sort_by(|a, b| a.0.total_cmp(&b.0));
    let n_skipped = all.len().saturating_sub(N_LOG);
    all.into_iter()
        .skip(n_skipped)
        .map(|(time, step, text)| LogRow {
            time: if time > 0.0 {
                date(time)
            } else {
                String::new()
            },
            step: thousands(step),
            text,
        })
        .collect()
}
