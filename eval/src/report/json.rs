//! The result for machines: `{"models":[{"model":…,"perplexity":…,"tokens":…,"acc":…,"acc_norm":…}]}`, with more fields.

use super::{ModelReport, Report};
use crate::{
    perplexity::Perplexity, quality::Quality, reference::Comparison, stats::Estimate,
    task::TaskResult,
};
use serde_json::{Map, Value, json};

impl Report {
    /// The result. Each figure `x` with a standard error has it beside it as `x_stderr`; the figures of a single task stand at the
    /// model itself, and those of all tasks under `tasks`.
    pub fn to_json(&self) -> Value {
        let models: Vec<Value> = self.models.iter().map(ModelReport::to_json).collect();
        let mut all = Map::new();
        all.insert("models".to_owned(), models.into());
        if !self.advice.is_empty() {
            all.insert("advice".to_owned(), json!(self.advice));
        }
        all.into()
    }
}

impl ModelReport {
    fn to_json(&self) -> Value {
        let mut fields = Map::new();
        fields.insert("model".to_owned(), json!(self.model));
        if let Some(measured) = &self.perplexity {
            perplexity(&mut fields, measured);
        }
        if let Some(rate) = self.tokens_per_s {
            fields.insert("tokens_per_s".to_owned(), json!(rate));
        }
        if let [task] = self.tasks.as_slice() {
            for (name, estimate) in &task.metrics {
                // What was measured of a text keeps its name.
                if !fields.contains_key(*name) {
                    figure(&mut fields, name, *estimate);
                }
            }
        }
        if !self.tasks.is_empty() {
            let tasks = self
                .tasks
                .iter()
                .map(|task| (task.task.clone(), of_task(task)));
            fields.insert("tasks".to_owned(), Value::Object(tasks.collect()));
        }
        if let Some(comparison) = &self.comparison {
            fields.insert("reference".to_owned(), of_comparison(comparison));
        }
        if let Some(quality) = &self.quality {
            fields.insert("quality".to_owned(), of_quality(quality));
        }
        fields.into()
    }
}

fn figure(fields: &mut Map<String, Value>, name: &str, estimate: Estimate) {
    fields.insert(name.to_owned(), json!(estimate.value));
    if let Some(stderr) = estimate.stderr {
        fields.insert(format!("{name}_stderr"), json!(stderr));
    }
}

fn perplexity(fields: &mut Map<String, Value>, measured: &Perplexity) {
    figure(fields, "perplexity", measured.perplexity);
    figure(fields, "nll", measured.nll);
    let optional = [
        ("word_perplexity", measured.word_perplexity),
        ("byte_perplexity", measured.byte_perplexity),
        ("bits_per_byte", measured.bits_per_byte),
        ("token_accuracy", Some(measured.token_accuracy)),
    ];
    for (name, estimate) in optional {
        if let Some(estimate) = estimate {
            figure(fields, name, estimate);
        }
    }
    let counts = json!({
        "tokens": measured.tokens,
        "windows": measured.windows,
        "words": measured.words,
        "bytes": measured.bytes,
        "too_long": measured.too_long,
        "stderr_over": measured.stderr_over,
    });
    if let Value::Object(counts) = counts {
        fields.extend(counts);
    }
}

fn of_task(task: &TaskResult) -> Value {
    let mut fields = Map::new();
    fields.insert("kind".to_owned(), json!(task.kind));
    fields.insert("items".to_owned(), json!(task.items));
    fields.insert("truncated".to_owned(), json!(task.truncated));
    if let Some(chance) = task.chance {
        fields.insert("chance".to_owned(), json!(chance));
    }
    for (name, estimate) in &task.metrics {
        figure(&mut fields, name, *estimate);
    }
    if let Some(confusion) = &task.confusion {
        fields.insert("labels".to_owned(), json!(confusion.labels));
        fields.insert("confusion".to_owned(), json!(confusion.counts));
        fields.insert("classes".to_owned(), json!(confusion.classes));
    }
    fields.into()
}

fn of_comparison(compared: &Comparison) -> Value {
    let mut fields = Map::new();
    fields.insert("model".to_owned(), json!(compared.reference));
    fields.insert("tokens".to_owned(), json!(compared.tokens));
    figure(&mut fields, "kl", compared.kl.mean);
    for (name, value) in [
        ("kl_median", compared.kl.median),
        ("kl_p90", compared.kl.p90),
        ("kl_p99", compared.kl.p99),
        ("kl_max", compared.kl.max),
    ] {
        fields.insert(name.to_owned(), json!(value));
    }
    figure(&mut fields, "top1_agreement", compared.top1_agreement);
    figure(&mut fields, "perplexity_ratio", compared.perplexity_ratio);
    figure(&mut fields, "perplexity", compared.perplexity);
    figure(
        &mut fields,
        "reference_perplexity",
        compared.reference_perplexity,
    );
    fields.insert("stderr_over".to_owned(), json!(compared.stderr_over));
    fields.insert("n_flips".to_owned(), json!(compared.n_flips));
    fields.insert("flips".to_owned(), json!(compared.flips));
    fields.insert("histogram".to_owned(), json!(compared.kl.histogram));
    fields.into()
}

fn of_quality(quality: &Quality) -> Value {
    let mut fields = Map::new();
    for (name, estimate) in [
        ("distinct_1", quality.distinct_1),
        ("distinct_2", quality.distinct_2),
        ("distinct_3", quality.distinct_3),
        ("repetition", quality.repetition),
        ("longest_repeat", quality.longest_repeat),
        ("tokens", quality.tokens),
        ("words", quality.words),
    ] {
        figure(&mut fields, name, estimate);
    }
    if let Some(estimate) = quality.self_perplexity {
        figure(&mut fields, "self_perplexity", estimate);
    }
    fields.insert("texts".to_owned(), json!(quality.texts));
    fields.into()
}
