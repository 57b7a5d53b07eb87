//! The report's plots, as SVG.

use super::Bin;
use anyhow::{Result, anyhow};
use plotters::prelude::*;

const SIZE: (u32, u32) = (640, 240);
const INK: RGBColor = RGBColor(0x5b, 0x6b, 0x7b);
const FILL: RGBColor = RGBColor(0x2f, 0x7d, 0x6d);

/// Documents by their number of tokens; empty where there is nothing to show.
pub(super) fn lengths(bins: &[Bin]) -> Result<String> {
    let most = bins.iter().map(|bin| bin.documents).max().unwrap_or(0);
    draw(most > 0, |root| {
        let x_axis = (0..bins.len()).into_segmented();
        let mut chart = ChartBuilder::on(root)
            .margin(8)
            .x_label_area_size(34)
            .y_label_area_size(64)
            .build_cartesian_2d(x_axis, 0..most + most.div_ceil(20))?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .bold_line_style(INK.mix(0.2))
            .light_line_style(TRANSPARENT)
            .axis_style(INK)
            .label_style(("sans-serif", 12, &INK))
            .x_labels(bins.len().min(16))
            .x_label_formatter(&|value| match value {
                SegmentValue::CenterOf(i) => {
                    bins.get(*i).map_or(String::new(), |bin| short(bin.from))
                }
                _ => String::new(),
            })
            .y_label_formatter(&|n| short(*n))
            .x_desc("tokens in the document, at least")
            .y_desc("documents")
            .draw()?;
        chart.draw_series(
            Histogram::vertical(&chart)
                .style(FILL.filled())
                .margin(2)
                .data(bins.iter().enumerate().map(|(i, bin)| (i, bin.documents))),
        )?;
        Ok(())
    })
}

/// How often the token of each rank occurs, on two logarithmic axes (Zipf's law is a straight line).
pub(super) fn ranks(ranks: &[(u64, u64)]) -> Result<String> {
    let last = ranks.last().map_or(1, |&(rank, _)| rank);
    let most = ranks.first().map_or(1, |&(_, count)| count);
    draw(ranks.len() > 1, |root| {
        let mut chart = ChartBuilder::on(root)
            .margin(8)
            .x_label_area_size(34)
            .y_label_area_size(64)
            .build_cartesian_2d(
                (1.0..last as f64).log_scale(),
                (1.0..(most as f64 * 2.0)).log_scale(),
            )?;
        chart
            .configure_mesh()
            .bold_line_style(INK.mix(0.2))
            .light_line_style(TRANSPARENT)
            .axis_style(INK)
            .label_style(("sans-serif", 12, &INK))
            .x_label_formatter(&|x| short(*x as u64))
            .y_label_formatter(&|y| short(*y as u64))
            .x_desc("rank of the token")
            .y_desc("occurrences")
            .draw()?;
        let points = ranks
            .iter()
            .map(|&(rank, count)| (rank as f64, count.max(1) as f64));
        chart.draw_series(LineSeries::new(points, FILL.stroke_width(2)))?;
        Ok(())
    })
}

type Root<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;
type Drawn = std::result::Result<(), Box<dyn std::error::Error>>;

fn draw(any: bool, plot: impl FnOnce(&Root<'_>) -> Drawn) -> Result<String> {
    let mut svg = String::new();
    if !any {
        return Ok(svg);
    }
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        plot(&root).map_err(|error| anyhow!("a plot could not be drawn: {error}"))?;
        root.present()?;
    }
    Ok(svg)
}

/// `1.2k`, `34M`
fn short(n: u64) -> String {
    match n {
        0..1_000 => n.to_string(),
        1_000..1_000_000 => format!("{}k", trim(n as f64 / 1e3)),
        1_000_000..1_000_000_000 => format!("{}M", trim(n as f64 / 1e6)),
        _ => format!("{}G", trim(n as f64 / 1e9)),
    }
}

fn trim(x: f64) -> String {
    let text = format!("{x:.1}");
    text.strip_suffix(".0").map_or(text.clone(), str::to_owned)
}
