//! Several runs on one page, their curves over each other.

use super::{
    history::History,
    overview::Overview,
    plot::{Kind, Plot, Scale, Series, smooth},
};
use crate::{
    run::METRICS_FILE,
    runs::{side_by_side, value_text},
};
use anyhow::Result;
use fledgling_eval::page::{of, render};
use minijinja::context;
use serde_json::Value;
use std::collections::BTreeMap;

/// Colours of the page.
const N_COLOURS: usize = 8;

/// A page that compares runs; `different` are the keys of their configs that differ.
///
/// # Errors
/// Never for runs that were read.
pub fn page(runs: &[Overview], different: &BTreeMap<String, Vec<Option<Value>>>) -> Result<String> {
    let histories: Vec<_> = runs
        .iter()
        .map(|run| History::read(&run.folder.join(METRICS_FILE)).unwrap_or_default())
        .collect();
    let different: Vec<Vec<String>> = different
        .iter()
        .map(|(key, values)| {
            let values = values.iter().map(|value| value_text(value.as_ref()));
            std::iter::once(key.clone()).chain(values).collect()
        })
        .collect();
    let names: Vec<_> = runs.iter().map(|run| run.name.as_str()).collect();
    let context = context! {
        title => names.join(", "),
        runs => of(runs),
        results => side_by_side(runs),
        different,
        plots => of(plots(runs, &histories)),
        version => env!("CARGO_PKG_VERSION"),
    };
    render(include_str!("compare.html"), context)
}

fn plots(runs: &[Overview], histories: &[History]) -> Vec<Plot> {
    type Points = Vec<(f64, f64)>;
    let plot = |title: &str, y_label: &str, scale, kind, points: fn(&History) -> Points| {
        let series: Vec<_> = runs
            .iter()
            .zip(histories)
            .enumerate()
            .map(|(idx, (run, history))| Series {
                name: run.name.clone(),
                colour: idx % N_COLOURS,
                kind,
                points: points(history),
            })
            .collect();
        Plot::new(title, y_label, scale, &series)
    };
    let plots = [
        plot(
            "Training loss, smoothed",
            "nats a token",
            Scale::Values,
            Kind::Line,
            |history| smooth(&history.curve(|step| step.loss)),
        ),
        plot(
            "Held-out loss",
            "nats a token",
            Scale::Values,
            Kind::Dots,
            History::held_out,
        ),
        plot(
            "Learning rate",
            "at each step",
            Scale::FromZero,
            Kind::Line,
            |history| history.curve(|step| step.lr),
        ),
        plot(
            "Gradient norm, smoothed",
            "before clipping",
            Scale::Auto,
            Kind::Line,
            |history| smooth(&history.curve(|step| step.grad_norm)),
        ),
        plot(
            "Throughput, smoothed",
            "tokens a second",
            Scale::FromZero,
            Kind::Line,
            |history| smooth(&history.curve(|step| step.tokens_per_s)),
        ),
    ];
    plots.into_iter().flatten().collect()
}
