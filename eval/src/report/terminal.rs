//! Tables for a terminal.

use super::{ModelReport, Report, Table, written};
use crate::{advice::Advice, stats::Estimate};

impl Report {
    /// A table for each thing that was measured, models below each other, figures with their standard errors; then the advice.
    pub fn to_text(&self) -> String {
        let tables = [
            self.table(ModelReport::perplexity_figures),
            self.table(ModelReport::task_figures),
            self.table(ModelReport::comparison_figures),
            self.table(ModelReport::quality_figures),
        ];
        let mut blocks: Vec<String> = tables.into_iter().flatten().map(text_of).collect();
        for Advice {
            text,
            figure,
            changes,
            ..
        } in &self.advice
        {
            let mut lines = vec![text.clone(), format!("  ({figure})")];
            lines.extend(changes.iter().map(|change| format!("  --set {change}")));
            blocks.push(lines.join("\n") + "\n");
        }
        blocks.join("\n")
    }
}

fn text_of(table: Table) -> String {
    let mut rows = vec![vec!["model".to_owned()]];
    rows[0].extend(table.columns);
    for (model, cells) in table.rows {
        let cell = |estimate: Option<Estimate>| {
            let (value, stderr) = estimate.as_ref().map(written).unwrap_or_default();
            stderr.map_or(value.clone(), |stderr| format!("{value} ± {stderr}"))
        };
        let mut row = vec![model];
        row.extend(cells.into_iter().map(cell));
        rows.push(row);
    }
    aligned(&rows)
}

/// The first column to the left, the others to the right.
fn aligned(table: &[Vec<String>]) -> String {
    let width = |i: usize| {
        table
            .iter()
            .map(|row| row[i].chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..table[0].len()).map(width).collect();
    let mut text = String::new();
    for row in table {
        for (i, (cell, &width)) in row.iter().zip(&widths).enumerate() {
            text += &match i {
                0 => format!("{cell:width$}"),
                _ => format!("  {cell:>width$}"),
            };
        }
        text.push('\n');
    }
    text
}
