//! Findings for people: a page with plots over time, and a few lines for a terminal.

use crate::{
    baseline::Risen,
    watch::{Alarm, Day, Figure, Findings, Thresholds},
};
use anyhow::Result;
use fledgling_eval::{
    page::{of, render},
    plot::{Across, Kind, Plot, Scale, Series},
    text::{date, one_line, thousands},
};
use minijinja::context;
use serde::Serialize;

/// A figure and what it means, above all else of the page.
#[derive(Debug, Serialize)]
struct Tile {
    name: &'static str,
    value: String,
    more: String,
}

#[derive(Debug, Serialize)]
struct Row {
    date: String,
    is_baseline: bool,
    cells: Vec<String>,
}

impl Findings {
    /// A page of its own, without a request or a script.
    ///
    /// # Errors
    /// Never for findings of ours.
    pub fn to_html(&self, thresholds: &Thresholds) -> Result<String> {
        let alarms: Vec<_> = self
            .alarms
            .iter()
            .map(|alarm| (when(alarm.time_ms), &alarm.text, alarm.days))
            .collect();
        let context = context! {
            title => format!("{}: requests", self.models.keys().cloned().collect::<Vec<_>>().join(", ")),
            lead => self.span(),
            state => if self.alarms.is_empty() { "no alarm" } else { "alarm" },
            tiles => of(self.tiles()),
            alarms => of(alarms),
            notes => of(&self.notes),
            plots => of(self.plots(thresholds)),
            risen => of(self.risen.iter().map(shown).collect::<Vec<_>>()),
            columns => of(COLUMNS),
            days => of(self.days.iter().map(row).collect::<Vec<_>>()),
            outcomes => of(self.outcomes()),
            logs => of(self.log_facts()),
            broken => of(&self.logs.examples),
            version => env!("CARGO_PKG_VERSION"),
        };
        render(include_str!("report.html"), context)
    }

    /// For a terminal.
    pub fn to_text(&self) -> String {
        let mut text = format!("{}\n", self.span());
        for alarm in &self.alarms {
            text += &format!("ALARM {} {}\n", when(alarm.time_ms), alarm_text(alarm));
        }
        if self.alarms.is_empty() {
            text += "no alarm\n";
        }
        if !self.risen.is_empty() && !self.alarms.is_empty() {
            let names: Vec<String> = self
                .risen
                .iter()
                .take(8)
                .map(|token| format!("{:?}", one_line(&token.text)))
                .collect();
            text += &format!("tokens that became frequent: {}\n", names.join(" "));
        }
        text += &format!("\n{:<12}", "day");
        for name in COLUMNS {
            text += &format!(" {name:>12}");
        }
        text.push('\n');
        for row in self.days.iter().map(row) {
            text += &format!("{:<12}", row.date + if row.is_baseline { " *" } else { "" });
            for cell in &row.cells {
                text += &format!(" {cell:>12}");
            }
            text.push('\n');
        }
        if self.days.iter().any(|day| day.is_baseline) {
            text += "* learnt from\n";
        }
        for note in &self.notes {
            text += &format!("{note}\n");
        }
        let n_broken = self.logs.n_broken();
        if n_broken > 0 {
            text += &format!(
                "{} lines are broken and were left out, the first:\n",
                thousands(n_broken)
            );
            for example in &self.logs.examples {
                text += &format!("  {}\n", one_line(example));
            }
        }
        text
    }

    fn span(&self) -> String {
        let requests = self.days.iter().map(|day| day.requests).sum();
        match (self.days.first(), self.days.last()) {
            (Some(first), Some(last)) => format!(
                "{} requests, {} to {}",
                thousands(requests),
                day_of(first.start_ms),
                day_of(last.start_ms + (last.days - 1) * crate::traffic::DAY_MS)
            ),
            _ => "no requests".to_owned(),
        }
    }

    fn tiles(&self) -> Vec<Tile> {
        let last = self.days.last();
        let distance = |figure: Figure| {
            let found = last.and_then(|day| day.distances.get(&figure));
            found.map_or_else(
                || "–".to_owned(),
                |distance| format!("{:.2}", distance.value),
            )
        };
        let number = |value: Option<f64>, unit: &str| {
            value.map_or_else(|| "–".to_owned(), |value| format!("{value:.2}{unit}"))
        };
        let tokens: u64 = self
            .days
            .iter()
            .map(|day| day.tokens[0] + day.tokens[1])
            .sum();
        vec![
            Tile {
                name: "alarms",
                value: self.alarms.len().to_string(),
                more: "figures that left their limits".to_owned(),
            },
            Tile {
                name: "tokens",
                value: thousands(tokens),
                more: "of prompts and answers".to_owned(),
            },
            Tile {
                name: "from the training data",
                value: distance(Figure::TrainingPsi),
                more: "PSI of tokens, last day".to_owned(),
            },
            Tile {
                name: "from the baseline days",
                value: distance(Figure::PromptPsi),
                more: "PSI of prompts, last day".to_owned(),
            },
            Tile {
                name: "surprise of prompts",
                value: number(last.and_then(|day| day.surprise[0]), ""),
                more: "nats a token, last day".to_owned(),
            },
            Tile {
                name: "to the first token",
                value: number(
                    last.and_then(|day| day.first_token_ms[0])
                        .map(|ms| ms / 1000.0),
                    " s",
                ),
                more: "median, last day".to_owned(),
            },
        ]
    }

    #[expect(clippy::too_many_lines, reason = "a list of plots")]
    fn plots(&self, thresholds: &Thresholds) -> Vec<Plot> {
        let at = |day: &Day| day.start_ms as f64 / crate::traffic::DAY_MS as f64;
        let series = |name: &str, colour: usize, value: &dyn Fn(&Day) -> Option<f64>| Series {
            name: name.to_owned(),
            colour,
            kind: Kind::Dots,
            points: self
                .days
                .iter()
                .map(|day| (at(day), value(day).unwrap_or(f64::NAN)))
                .collect(),
        };
        let distance = |figure: Figure| move |day: &Day| Some(day.distances.get(&figure)?.value);
        let share = |figure: Figure| move |day: &Day| Some(100.0 * day.shares.get(&figure)?);
        let limit = |value: f64| Series {
            name: "alarm".to_owned(),
            colour: 4,
            kind: Kind::Line,
            points: self.days.iter().map(|day| (at(day), value)).collect(),
        };
        let psi = [
            series(
                "all tokens from the training data",
                0,
                &distance(Figure::TrainingPsi),
            ),
            series(
                "prompts from the baseline days",
                1,
                &distance(Figure::PromptPsi),
            ),
            limit(thresholds.psi),
        ];
        let jsd = [
            series(
                "all tokens from the training data",
                0,
                &distance(Figure::TrainingJsd),
            ),
            series(
                "prompts from the baseline days",
                1,
                &distance(Figure::PromptJsd),
            ),
            limit(thresholds.jsd),
        ];
        let shapes = [
            series("prompts' lengths", 0, &distance(Figure::PromptLengths)),
            series("answers' lengths", 1, &distance(Figure::AnswerLengths)),
            series("languages", 2, &distance(Figure::Languages)),
            limit(thresholds.psi),
        ];
        let surprise = [
            series("prompts", 0, &|day| day.surprise[0]),
            series("answers", 1, &|day| day.surprise[1]),
        ];
        let flags = [
            series("refusals", 0, &share(Figure::Refusals)),
            series("repetitive answers", 1, &share(Figure::Repetition)),
            series("failed requests", 4, &share(Figure::Errors)),
        ];
        let times = [
            series("median", 0, &|day| day.first_token_ms[0]),
            series("95 of 100 are below", 1, &|day| day.first_token_ms[1]),
        ];
        let requests = [series("requests", 0, &|day| {
            Some(day.requests as f64 / day.days as f64)
        })];
        let days = |title, label, scale, series: &[Series]| {
            Plot::over(Across::Days, title, label, scale, series)
        };
        [
            days(
                "Tokens: how far from the baselines",
                "PSI",
                Scale::FromZero,
                &psi,
            ),
            self.sums(),
            days(
                "Tokens: Jensen-Shannon divergence",
                "bits",
                Scale::FromZero,
                &jsd,
            ),
            days("Surprise", "nats a token", Scale::Values, &surprise),
            days(
                "Lengths and languages: how far from the baseline days",
                "PSI",
                Scale::FromZero,
                &shapes,
            ),
            days(
                "Answers and requests that go wrong",
                "per cent",
                Scale::FromZero,
                &flags,
            ),
            days("Time to the first token", "ms", Scale::Auto, &times),
            days("Requests", "a day", Scale::FromZero, &requests),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    /// Cumulative sums; 1 is an alarm.
    fn sums(&self) -> Option<Plot> {
        let mut series = Vec::new();
        for (figure, name, colour) in [
            (Figure::PromptSurprise, "prompts", 0),
            (Figure::AnswerSurprise, "answers", 1),
        ] {
            let Some(chart) = self.charts.get(&figure) else {
                continue;
            };
            let points = chart.points.iter();
            let at = |time_ms: u64| time_ms as f64 / crate::traffic::DAY_MS as f64;
            series.push(Series {
                name: name.to_owned(),
                colour,
                kind: Kind::Line,
                points: points
                    .map(|point| (at(point.time_ms), point.up.max(point.down)))
                    .collect(),
            });
        }
        let ends = series
            .first()
            .and_then(|line| Some((line.points.first()?.0, line.points.last()?.0)))?;
        series.push(Series {
            name: "alarm".to_owned(),
            colour: 4,
            kind: Kind::Line,
            points: vec![(ends.0, 1.0), (ends.1, 1.0)],
        });
        Plot::over(
            Across::Days,
            "Surprise: cumulative sums of what is beyond chance",
            "of the limit",
            Scale::FromZero,
            &series,
        )
    }

    fn outcomes(&self) -> Vec<(String, String)> {
        let mut sums = std::collections::BTreeMap::new();
        for (name, n) in self.days.iter().flat_map(|day| &day.outcomes) {
            *sums.entry(name.clone()).or_insert(0) += n;
        }
        sums.into_iter()
            .map(|(name, n)| (name, thousands(n)))
            .collect()
    }

    fn log_facts(&self) -> Vec<(&'static str, String)> {
        let logs = &self.logs;
        vec![
            ("files", thousands(logs.files)),
            ("lines", thousands(logs.lines)),
            ("requests", thousands(logs.records)),
            ("there twice", thousands(logs.repeated)),
            ("of other models", thousands(logs.other_models)),
            ("of something else", thousands(logs.other)),
            ("broken", thousands(logs.n_broken())),
        ]
    }
}

const COLUMNS: [&str; 7] = [
    "requests",
    "PSI training",
    "JSD training",
    "PSI prompts",
    "JSD prompts",
    "surprise",
    "first token",
];

fn row(day: &Day) -> Row {
    let distance = |figure: Figure| {
        day.distances
            .get(&figure)
            .map(|distance| format!("{:.3}", distance.value))
    };
    let cells = [
        Some(thousands(day.requests)),
        distance(Figure::TrainingPsi),
        distance(Figure::TrainingJsd),
        distance(Figure::PromptPsi),
        distance(Figure::PromptJsd),
        day.surprise[0].map(|nats| format!("{nats:.3}")),
        day.first_token_ms[0].map(|ms| format!("{ms:.0} ms")),
    ];
    Row {
        date: day_of(day.start_ms),
        is_baseline: day.is_baseline,
        cells: cells
            .into_iter()
            .map(|cell| cell.unwrap_or_else(|| "–".to_owned()))
            .collect(),
    }
}

fn shown(token: &Risen) -> (String, String) {
    (
        format!("{:?}", token.text),
        format!("{:.2} %", 100.0 * token.excess),
    )
}

fn alarm_text(alarm: &Alarm) -> String {
    let days = if alarm.days > 1 {
        format!(" ({} days)", alarm.days)
    } else {
        String::new()
    };
    format!("{}{days}", alarm.text)
}

fn when(time_ms: u64) -> String {
    date(time_ms as f64 / 1000.0)
}

fn day_of(time_ms: u64) -> String {
    when(time_ms)[..10].to_owned()
}
