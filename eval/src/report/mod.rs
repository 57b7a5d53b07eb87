//! All that was measured, as JSON for machines, as tables for a terminal, and as a page for people.

mod html;
mod json;
mod terminal;

use crate::{
    advice::Advice, perplexity::Perplexity, quality::Quality, reference::Comparison,
    stats::Estimate, task::TaskResult,
};

/// What was measured.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Report {
    /// Models, in the order in which they were given.
    pub models: Vec<ModelReport>,
    /// What follows from it.
    pub advice: Vec<Advice>,
    /// How it was measured: names and values, for the page.
    pub setting: Vec<(String, String)>,
}

/// What was measured of one model.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ModelReport {
    /// The model.
    pub model: String,
    /// Of the text, the shards or the chat rows.
    pub perplexity: Option<Perplexity>,
    /// Scored tokens a second of it.
    pub tokens_per_s: Option<f64>,
    /// In the order in which they were given.
    pub tasks: Vec<TaskResult>,
    /// Beside the reference.
    pub comparison: Option<Comparison>,
    /// Of its own text.
    pub quality: Option<Quality>,
}

/// Figures with their names, in the order in which they are shown.
type Figures = Vec<(String, Estimate)>;

/// Figures of several models: columns, and the models that have any.
struct Table {
    columns: Vec<String>,
    rows: Vec<(String, Vec<Option<Estimate>>)>,
}

impl Report {
    /// A table of some figures; `None` where no model has any.
    fn table(&self, figures: impl Fn(&ModelReport) -> Figures) -> Option<Table> {
        let all = self
            .models
            .iter()
            .map(|model| (&model.model, figures(model)));
        let all: Vec<_> = all.filter(|(_, figures)| !figures.is_empty()).collect();
        let mut columns: Vec<String> = Vec::new();
        for (name, _) in all.iter().flat_map(|(_, figures)| figures) {
            if !columns.contains(name) {
                columns.push(name.clone());
            }
        }
        let rows = all.iter().map(|(model, figures)| {
            let find = |column: &String| figures.iter().find(|(name, _)| name == column);
            let cells = columns
                .iter()
                .map(|column| find(column).map(|(_, estimate)| *estimate));
            ((*model).clone(), cells.collect())
        });
        let rows: Vec<_> = rows.collect();
        (!rows.is_empty()).then_some(Table { columns, rows })
    }
}

impl ModelReport {
    /// Of a perplexity.
    fn perplexity_figures(&self) -> Figures {
        let Some(measured) = &self.perplexity else {
            return Vec::new();
        };
        let figures = [
            ("perplexity", Some(measured.perplexity)),
            ("word perplexity", measured.word_perplexity),
            ("byte perplexity", measured.byte_perplexity),
            ("bits per byte", measured.bits_per_byte),
            ("token accuracy", Some(measured.token_accuracy)),
        ];
        named(&figures)
    }

    /// Beside the reference.
    fn comparison_figures(&self) -> Figures {
        let Some(compared) = &self.comparison else {
            return Vec::new();
        };
        let sure = |value| {
            Some(Estimate {
                value,
                stderr: None,
            })
        };
        let kl = &compared.kl;
        named(&[
            ("mean KL", Some(kl.mean)),
            ("median KL", sure(kl.median)),
            ("90 %", sure(kl.p90)),
            ("99 %", sure(kl.p99)),
            ("max KL", sure(kl.max)),
            ("top-1 agreement", Some(compared.top1_agreement)),
            ("perplexity ratio", Some(compared.perplexity_ratio)),
        ])
    }

    /// Of its own text.
    fn quality_figures(&self) -> Figures {
        let Some(quality) = &self.quality else {
            return Vec::new();
        };
        named(&[
            ("distinct-1", Some(quality.distinct_1)),
            ("distinct-2", Some(quality.distinct_2)),
            ("distinct-3", Some(quality.distinct_3)),
            ("repetition", Some(quality.repetition)),
            ("longest repeat", Some(quality.longest_repeat)),
            ("words", Some(quality.words)),
            ("self-perplexity", quality.self_perplexity),
        ])
    }

    /// Of the tasks, named by them.
    fn task_figures(&self) -> Figures {
        let of_task = |task: &TaskResult| {
            let name = task.task.clone();
            let metrics = task.metrics.clone().into_iter();
            metrics.map(move |(metric, estimate)| (format!("{name} {metric}"), estimate))
        };
        self.tasks.iter().flat_map(of_task).collect()
    }
}

fn named(figures: &[(&str, Option<Estimate>)]) -> Figures {
    let there = figures.iter();
    there
        .filter_map(|(name, estimate)| Some(((*name).to_owned(), (*estimate)?)))
        .collect()
}

/// A figure and its standard error as text.
fn written(estimate: &Estimate) -> (String, Option<String>) {
    let n = digits(estimate);
    let stderr = estimate.stderr.map(|stderr| format!("{stderr:.n$}"));
    (format!("{:.n$}", estimate.value), stderr)
}

/// As many digits as tell something: two of the standard error, or four in all.
fn digits(estimate: &Estimate) -> usize {
    let of = |value: f64, n: i32| {
        let magnitude = value.abs().max(1e-9).log10().floor() as i32;
        (n - 1 - magnitude).clamp(0, 6) as usize
    };
    match estimate.stderr {
        Some(stderr) if stderr > 0.0 => of(stderr, 2),
        _ => of(estimate.value, 4),
    }
}

#[cfg(test)]
mod tests;
