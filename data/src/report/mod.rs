//! What was done to the documents: for the terminal, for machines, and as one HTML file that needs nothing else.
//!
//! The report is a function of the documents and the config: no times, no paths of the machine beyond the sources' own.

mod plots;

use crate::{
    config::{Counts, Split},
    document::{Body, Document},
};
use anyhow::{Context, Result};
use minijinja::{AutoEscape, Environment, context};
use serde::{Deserialize, Serialize};

/// Examples kept of each step.
pub const N_EXAMPLES: usize = 5;
/// Characters of an example's text.
const EXAMPLE_CHARS: usize = 240;

/// All of it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Where documents came from, in the order of the config.
    pub sources: Vec<SourceReport>,
    /// Files in folders and archives that were passed over, by their unknown endings.
    pub unread_files: Counts,
    /// Documents that each kind of mending changed.
    pub changed: Counts,
    /// Steps that drop documents, in their order.
    pub steps: Vec<StepReport>,
    /// Documents kept by language (ISO 639-3), `?` where one cannot tell; of much input a sample.
    pub languages: Counts,
    /// Groups of near-duplicates.
    pub near: NearReport,
    /// The parts.
    pub splits: Vec<SplitReport>,
    /// Kept documents by their number of tokens.
    pub lengths: Vec<Bin>,
    /// Tokens of the training split.
    pub tokens: TokenReport,
}

/// One source.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SourceReport {
    /// Its name or path.
    pub name: String,
    /// Files, archive members and addresses read.
    pub files: u64,
    /// Bytes as stored.
    pub len_bytes: u64,
    /// Documents found.
    pub documents: u64,
    /// Documents in the splits.
    pub kept: u64,
    /// Their tokens.
    pub tokens: u64,
}

/// A step and what it dropped.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct StepReport {
    /// The step's name, that of its config key where it has one.
    pub name: String,
    /// Documents.
    pub dropped: u64,
    /// The first few.
    pub examples: Vec<Example>,
}

/// A document that was dropped, and why.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Example {
    /// Where it stands.
    pub place: String,
    /// Why.
    pub why: String,
    /// How it begins.
    pub text: String,
}

/// Groups of near-duplicates.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct NearReport {
    /// Groups of two or more.
    pub groups: u64,
    /// Documents in them.
    pub documents: u64,
    /// Documents in the largest.
    pub largest: u64,
    /// Some groups, largest first: who stands for it, and others.
    pub examples: Vec<Vec<Example>>,
}

/// One part of the data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SplitReport {
    /// Which.
    pub split: Split,
    /// Documents.
    pub documents: u64,
    /// Rows.
    pub rows: u64,
    /// Tokens.
    pub tokens: u64,
    /// Tokens that count in the loss.
    pub counted: u64,
    /// Share of the rows' positions that hold a token.
    pub fill: f64,
    /// Conversations and completions longer than the context, which lost their end.
    pub truncated: u64,
}

/// Documents of `from` to before `to` tokens.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bin {
    /// Fewest tokens.
    pub from: u64,
    /// One more than most.
    pub to: u64,
    /// How many.
    pub documents: u64,
}

/// Tokens of the training split.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct TokenReport {
    /// Tokens of the vocabulary.
    pub vocab_size: u64,
    /// Tokens that occur.
    pub used: u64,
    /// Bytes of text a token.
    pub bytes_per_token: f64,
    /// The most frequent: text and count.
    pub top: Vec<(String, u64)>,
    /// Count of the token of rank 1, 2, 4, 8, …
    pub ranks: Vec<(u64, u64)>,
}

impl Example {
    /// How a document begins, and why it is shown.
    pub fn new(document: &Document, why: impl Into<String>) -> Self {
        Self {
            place: document.place.to_string(),
            why: why.into(),
            text: beginning(&document.body),
        }
    }
}

fn beginning(body: &Body) -> String {
    let parts = body.parts().join(" ⏎ ");
    let mut text: String = parts.chars().take(EXAMPLE_CHARS).collect();
    if text.len() < parts.len() {
        text.push('…');
    }
    text
}

impl StepReport {
    /// Counts one more.
    pub fn add(&mut self, example: impl FnOnce() -> Example) {
        self.dropped += 1;
        if self.examples.len() < N_EXAMPLES {
            self.examples.push(example());
        }
    }
}

impl Report {
    /// The step `name`, made when it is new: steps stand in the order in which they first are asked for.
    pub fn step(&mut self, name: &str) -> &mut StepReport {
        let idx = match self.steps.iter().position(|step| step.name == name) {
            Some(idx) => idx,
            None => {
                self.steps.push(StepReport {
                    name: name.to_owned(),
                    ..StepReport::default()
                });
                self.steps.len() - 1
            }
        };
        &mut self.steps[idx]
    }

    /// Documents found in all sources.
    pub fn n_documents(&self) -> u64 {
        self.sources.iter().map(|source| source.documents).sum()
    }

    /// Documents in the splits.
    pub fn n_kept(&self) -> u64 {
        self.splits.iter().map(|split| split.documents).sum()
    }

    /// A page of its own: no script, no request.
    ///
    /// # Errors
    /// Never for a report of ours.
    pub fn to_html(&self, title: &str) -> Result<String> {
        let mut environment = Environment::new();
        environment.set_auto_escape_callback(|_| AutoEscape::Html);
        environment.add_filter("thousands", thousands);
        environment.add_filter("percent", |part: f64, whole: f64| {
            format!("{:.1} %", 100.0 * part / whole.max(1.0))
        });
        environment.add_template("report", include_str!("report.html"))?;
        let page = environment.get_template("report")?.render(context! {
            title,
            report => minijinja::value::Serde(self),
            n_documents => self.n_documents(),
            n_kept => self.n_kept(),
            lengths_svg => plots::lengths(&self.lengths)?,
            ranks_svg => plots::ranks(&self.tokens.ranks)?,
        });
        page.context("the report could not be made")
    }

    /// The summary for a terminal.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        for source in &self.sources {
            text += &format!(
                "{}: {} files, {} documents, {} kept, {} tokens\n",
                source.name,
                source.files,
                thousands(source.documents),
                thousands(source.kept),
                thousands(source.tokens)
            );
        }
        for step in self.steps.iter().filter(|step| step.dropped > 0) {
            text += &format!(
                "  dropped by {:14} {:>12}\n",
                step.name,
                thousands(step.dropped)
            );
        }
        for split in &self.splits {
            text += &format!(
                "{:5}  {:>12} documents  {:>12} rows  {:>14} tokens ({} counted)  {:.1} % full\n",
                split.split.name(),
                thousands(split.documents),
                thousands(split.rows),
                thousands(split.tokens),
                thousands(split.counted),
                100.0 * split.fill
            );
        }
        text
    }
}

/// `12,345,678`
fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() * 4 / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::Place;

    #[test]
    fn the_page_escapes_texts_and_needs_nothing_from_elsewhere() {
        let document = Document {
            place: Place {
                source: 0,
                file: "a.jsonl".to_owned(),
                row: 7,
            },
            body: Body::Text("<script>alert(1)</script>".repeat(20)),
        };
        let mut report = Report {
            lengths: vec![Bin {
                from: 1,
                to: 2,
                documents: 3,
            }],
            ..Report::default()
        };
        for _ in 0..8 {
            report
                .step("gopher")
                .add(|| Example::new(&document, "3 words are under 50"));
        }
        report
            .near
            .examples
            .push(vec![Example::new(&document, "kept")]);
        report.tokens.ranks = vec![(1, 1000), (2, 400), (4, 3)];
        let page = report.to_html("mine").unwrap();
        assert!(
            page.contains("&lt;script&gt;") && !page.contains("<script"),
            "{page}"
        );
        assert!(
            !page.contains("src=") && !page.contains("href=\"http"),
            "{page}"
        );
        assert_eq!(page.matches("3 words are under 50").count(), N_EXAMPLES);
        assert_eq!(page.matches("<svg").count(), 2);
        assert!(page.contains("a.jsonl:7"));
    }

    #[test]
    fn an_empty_report_is_a_page_too() {
        let page = Report::default().to_html("mine").unwrap();
        assert!(page.contains("mine"));
    }

    #[test]
    fn numbers_are_grouped() {
        assert_eq!(thousands(1_234_567), "1,234,567");
        assert_eq!(thousands(123), "123");
    }
}
