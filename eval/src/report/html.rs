//! The page: tables, histograms, flips, confusion matrices, texts side by side, and a blind rating of them.

use super::{ModelReport, Report, Table, written};
use crate::{
    page::{of, render, script_data},
    reference::Comparison,
    stats::Estimate,
    task::Confusion,
};
use anyhow::Result;
use minijinja::context;
use serde::Serialize;

/// Classes beyond which a matrix is no longer shown as a table.
const MOST_CLASSES: usize = 16;
/// Confusions that are listed.
const N_CONFUSIONS: usize = 12;

/// A figure and its standard error.
type Cell = (String, Option<String>);

#[derive(Debug, Serialize)]
struct TableShown {
    title: &'static str,
    note: String,
    columns: Vec<String>,
    rows: Vec<(String, Vec<Cell>)>,
}

impl Report {
    /// A page of its own, without a request. Its only script is the blind rating.
    ///
    /// # Errors
    /// Never for a report of ours.
    pub fn to_html(&self) -> Result<String> {
        let names: Vec<&str> = self
            .models
            .iter()
            .map(|model| model.model.as_str())
            .collect();
        let rating = Rating::new(self);
        let context = context! {
            title => format!("{}: evaluation", names.join(", ")),
            models => of(&names),
            tables => of(self.tables()),
            comparisons => of(self.models.iter().filter_map(|model| model.comparison.as_ref()).map(Compared::new).collect::<Vec<_>>()),
            confusions => of(self.confusions()),
            prompts => of(&rating.prompts),
            rating => script_data(&rating)?,
            advice => of(&self.advice),
            setting => of(&self.setting),
            version => env!("CARGO_PKG_VERSION"),
        };
        render(include_str!("page.html"), context)
    }

    fn tables(&self) -> Vec<TableShown> {
        let over = self.models.iter().find_map(|model| {
            let measured = model.perplexity.as_ref()?;
            let over = format!("{:?}", measured.stderr_over).to_lowercase();
            Some(format!(
                "{} tokens in {} pieces; standard errors over {over}.",
                measured.tokens, measured.windows
            ))
        });
        let chances = self.models.first().map(|model| {
            let of_task = |task: &crate::task::TaskResult| {
                let chance = task.chance.map_or_else(String::new, |chance| {
                    format!(", guessing gives {chance:.3}")
                });
                let cut = match task.truncated {
                    0 => String::new(),
                    n => format!(", {n} lost their beginning"),
                };
                format!("{}: {} questions{chance}{cut}.", task.task, task.items)
            };
            model
                .tasks
                .iter()
                .map(of_task)
                .collect::<Vec<_>>()
                .join(" ")
        });
        let compared = self
            .models
            .iter()
            .find_map(|model| model.comparison.as_ref());
        let compared = compared.map(|compared| {
            format!(
                "Kullback-Leibler divergence from {} in nats, at {} positions.",
                compared.reference, compared.tokens
            )
        });
        let tables = [
            ("Perplexity", over, self.table(ModelReport::perplexity_figures)),
            ("Tasks", chances, self.table(ModelReport::task_figures)),
            ("Against the reference", compared, self.table(ModelReport::comparison_figures)),
            (
                "The models' own text",
                Some("Means over the prompts. Repetition is the share of 4-grams that stood there before.".to_owned()),
                self.table(ModelReport::quality_figures),
            ),
        ];
        let shown = |(title, note, table): (_, Option<String>, Option<Table>)| {
            let Table { columns, rows } = table?;
            let cell =
                |estimate: &Option<Estimate>| estimate.as_ref().map(written).unwrap_or_default();
            let rows = rows
                .into_iter()
                .map(|(model, cells)| (model, cells.iter().map(cell).collect()));
            Some(TableShown {
                title,
                note: note.unwrap_or_default(),
                columns,
                rows: rows.collect(),
            })
        };
        tables.into_iter().filter_map(shown).collect()
    }

    fn confusions(&self) -> Vec<Matrix> {
        let mut matrices = Vec::new();
        for model in &self.models {
            for task in &model.tasks {
                if let Some(confusion) = &task.confusion {
                    matrices.push(Matrix::new(
                        &format!("{}: {}", model.model, task.task),
                        confusion,
                    ));
                }
            }
        }
        matrices
    }
}

/// A comparison as the page shows it.
#[derive(Debug, Serialize)]
struct Compared<'a> {
    model: &'a str,
    reference: &'a str,
    bars: Vec<BarShown>,
    n_flips: u64,
    share: String,
    flips: Vec<FlipShown<'a>>,
}

#[derive(Debug, Serialize)]
struct BarShown {
    label: String,
    title: String,
    height: String,
}

#[derive(Debug, Serialize)]
struct FlipShown<'a> {
    context: &'a str,
    target: &'a str,
    reference: String,
    reference_p: String,
    model: String,
    model_p: String,
    kl: String,
}

/// A token's text with what cannot be seen made visible.
fn visible(token: &str) -> String {
    token.replace('\n', "⏎").replace(' ', "␣")
}

impl<'a> Compared<'a> {
    fn new(compared: &'a Comparison) -> Self {
        let histogram = &compared.kl.histogram;
        let most = histogram
            .iter()
            .map(|bar| bar.count)
            .max()
            .unwrap_or(0)
            .max(1);
        let bars = histogram.iter().enumerate().map(|(i, bar)| {
            let end = histogram
                .get(i + 1)
                .map_or_else(|| "∞".to_owned(), |next| format!("{:.1e}", next.from));
            // Whole powers of ten are named.
            let power = bar.from.log10();
            let is_whole = bar.from > 0.0 && (power - power.round()).abs() < 1e-9;
            BarShown {
                label: if is_whole {
                    format!("1e{power:.0}")
                } else {
                    String::new()
                },
                title: format!("{:.1e} to {end}: {} positions", bar.from, bar.count),
                height: format!("{:.1}", 100.0 * bar.count as f64 / most as f64),
            }
        });
        let percent = |p: f64| match 100.0 * p {
            p if p < 0.1 => "< 0.1 %".to_owned(),
            p => format!("{p:.1} %"),
        };
        let flips = compared.flips.iter().map(|flip| FlipShown {
            context: &flip.context,
            target: &flip.target,
            reference: visible(&flip.reference.text),
            reference_p: format!(
                "{} → {}",
                percent(flip.reference.p_reference),
                percent(flip.reference.p_model)
            ),
            model: visible(&flip.model.text),
            model_p: format!(
                "{} → {}",
                percent(flip.model.p_reference),
                percent(flip.model.p_model)
            ),
            kl: format!("{:.3}", flip.kl),
        });
        Self {
            model: &compared.model,
            reference: &compared.reference,
            bars: bars.collect(),
            n_flips: compared.n_flips,
            share: percent(compared.n_flips as f64 / compared.tokens.max(1) as f64),
            flips: flips.collect(),
        }
    }
}

/// A confusion matrix as the page shows it.
#[derive(Debug, Serialize)]
struct Matrix {
    title: String,
    labels: Vec<String>,
    /// Of each class: counts, and how dark they are. Empty for too many classes.
    rows: Vec<(String, Vec<(u64, String)>)>,
    classes: Vec<[String; 5]>,
    confused: Vec<(String, String, u64)>,
}

impl Matrix {
    fn new(title: &str, confusion: &Confusion) -> Self {
        let labels = &confusion.labels;
        let row = |(label, counts): (&String, &Vec<u64>)| {
            let all: u64 = counts.iter().sum();
            let shade = |&n: &u64| (n, format!("{:.2}", n as f64 / all.max(1) as f64));
            (label.clone(), counts.iter().map(shade).collect())
        };
        let rows = labels.iter().zip(&confusion.counts).map(row);
        let mut confused = Vec::new();
        for (right, counts) in confusion.counts.iter().enumerate() {
            for (said, &n) in counts.iter().enumerate() {
                if right != said && n > 0 {
                    confused.push((labels[right].clone(), labels[said].clone(), n));
                }
            }
        }
        confused.sort_by_key(|(_, _, n)| std::cmp::Reverse(*n));
        confused.truncate(N_CONFUSIONS);
        let classes = confusion.classes.iter().map(|class| {
            let share = |x: f64| format!("{x:.3}");
            [
                class.label.clone(),
                share(class.precision),
                share(class.recall),
                share(class.f1),
                class.support.to_string(),
            ]
        });
        Self {
            title: title.to_owned(),
            labels: labels.clone(),
            rows: if labels.len() <= MOST_CLASSES {
                rows.collect()
            } else {
                Vec::new()
            },
            classes: classes.collect(),
            confused,
        }
    }
}

/// Texts to be rated, for the page's script.
#[derive(Debug, Serialize)]
struct Rating {
    /// Tells the ratings of one report from those of another.
    id: String,
    models: Vec<String>,
    prompts: Vec<Prompt>,
}

#[derive(Debug, Serialize)]
struct Prompt {
    prompt: String,
    /// The model's name, what it wrote, and how long and repetitive that is.
    texts: Vec<(String, String, String)>,
}

impl Rating {
    fn new(report: &Report) -> Self {
        let written: Vec<_> = report
            .models
            .iter()
            .filter_map(|model| model.quality.as_ref())
            .collect();
        let n_prompts = written.first().map_or(0, |quality| quality.texts.len());
        let prompts = (0..n_prompts).map(|i| {
            let of_model = |quality: &&crate::quality::Quality| {
                let text = quality.texts.get(i)?;
                let repeated = match text.longest_repeat {
                    0..3 => String::new(),
                    n => format!(", {n} words repeated"),
                };
                Some((
                    quality.model.clone(),
                    text.text.clone(),
                    format!("{} words{repeated}", text.words),
                ))
            };
            Prompt {
                prompt: written[0].texts[i].prompt.clone(),
                texts: written.iter().filter_map(of_model).collect(),
            }
        });
        let prompts: Vec<Prompt> = prompts.collect();
        // FNV-1a: enough to tell two reports apart.
        let mut id = 0xcbf2_9ce4_8422_2325_u64;
        for (_, text, _) in prompts.iter().flat_map(|prompt| &prompt.texts) {
            for byte in text.bytes() {
                id = (id ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
            }
        }
        Self {
            id: format!("{id:016x}"),
            models: written
                .iter()
                .map(|quality| quality.model.clone())
                .collect(),
            prompts,
        }
    }
}
