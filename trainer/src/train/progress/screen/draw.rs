//! Draws the [`Model`] into a frame of any size.

use super::model::{Curve, Model};
use crate::report::text::{memory, one_line, perplexity, short};
use ratatui::{
    Frame,
    layout::{Alignment, Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    symbols::Marker,
    text::{Line, Span, Text},
    widgets::{Axis, Block, Chart, Dataset, Gauge, GraphType, Padding, Paragraph, Wrap},
};
use std::time::Instant;

/// How the terminal is drawn on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Look {
    /// Whether colours may be used (`NO_COLOR`).
    pub(super) colour: bool,
    /// Whether the font has braille patterns; the Linux console's has not.
    pub(super) braille: bool,
}

impl Look {
    fn colour(self, colour: Color) -> Style {
        if self.colour {
            Style::new().fg(colour)
        } else {
            Style::new()
        }
    }

    fn soft(self) -> Style {
        self.colour(Color::DarkGray)
    }

    fn line(self) -> Marker {
        if self.braille {
            Marker::Braille
        } else {
            Marker::Dot
        }
    }
}

/// Draws all of it.
pub(super) fn draw(frame: &mut Frame<'_>, model: &Model, look: Look, now: Instant) {
    let area = frame.area();
    let [head, progress, body] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Min(0),
    ])
    .areas(area);
    draw_head(frame, head, model, look);
    draw_progress(frame, progress, model, look, now);
    let (wide, high) = (body.width >= 90, body.height >= 22);
    let n_low = match body.height {
        0..9 => 0,
        9..22 => 3,
        h => (h * 3 / 10).max(7),
    };
    let n_minis = if high { 6 } else { 0 };
    let [main, minis, low] = Layout::vertical([
        Constraint::Min(0),
        Constraint::Length(n_minis),
        Constraint::Length(n_low),
    ])
    .areas(body);
    let n_figures = match (wide, body.width) {
        (true, _) => 30,
        (false, 50..) => 26,
        _ => 0,
    };
    let [chart, figures] =
        Layout::horizontal([Constraint::Min(0), Constraint::Length(n_figures)]).areas(main);
    draw_loss(frame, chart, model, look);
    draw_figures(frame, figures, model, look);
    draw_minis(frame, minis, model, look);
    if model.texts.is_empty() || !high {
        draw_notes(frame, low, model, look);
    } else if wide {
        let [texts, notes] =
            Layout::horizontal([Constraint::Percentage(55), Constraint::Min(0)]).areas(low);
        draw_text(frame, texts, model, look);
        draw_notes(frame, notes, model, look);
    } else {
        let [texts, notes] =
            Layout::vertical([Constraint::Min(0), Constraint::Length(4)]).areas(low);
        draw_text(frame, texts, model, look);
        draw_notes(frame, notes, model, look);
    }
}

fn draw_head(frame: &mut Frame<'_>, area: Rect, model: &Model, look: Look) {
    let begin = &model.begin;
    let keys = if model.stopping {
        Span::styled(
            " stopping; q again leaves at once ",
            look.colour(Color::Yellow).add_modifier(Modifier::BOLD),
        )
    } else {
        Span::styled(" q stop ", look.soft())
    };
    let n_keys = (keys.width() as u16).min(area.width);
    let [left, right] =
        Layout::horizontal([Constraint::Min(0), Constraint::Length(n_keys)]).areas(area);
    let mut spans = vec![Span::styled(
        format!(" {}", one_line(&begin.run)),
        Style::new().add_modifier(Modifier::BOLD),
    )];
    let what = match begin.mode.as_str() {
        "" => String::new(),
        "scratch" => "  from scratch".to_owned(),
        mode => format!("  {mode} of {}", one_line(&begin.base)),
    };
    spans.push(Span::raw(what));
    if !begin.device.is_empty() {
        spans.push(Span::styled(
            format!("  {}", one_line(&begin.device)),
            look.soft(),
        ));
    }
    frame.render_widget(Line::from(spans), left);
    frame.render_widget(keys, right);
}

fn draw_progress(frame: &mut Frame<'_>, area: Rect, model: &Model, look: Look, now: Instant) {
    let (step, steps) = (model.step, model.begin.steps);
    let mut label = format!(" step {step}/{steps}");
    if model.begin.steps_per_epoch > 0.0 {
        let epoch = step as f64 / model.begin.steps_per_epoch;
        label += &format!("  epoch {epoch:.2}");
    }
    let clock = format!(" {} ", model.clock(now));
    let share = if steps > 0 {
        (step as f64 / steps as f64).clamp(0.0, 1.0)
    } else {
        0.0
    };
    let [left, gauge, right] = Layout::horizontal([
        Constraint::Length(label.chars().count() as u16 + 2),
        Constraint::Min(0),
        Constraint::Length(clock.chars().count() as u16),
    ])
    .areas(area);
    frame.render_widget(Span::raw(label), left);
    frame.render_widget(
        Gauge::default()
            .ratio(share)
            .use_unicode(true)
            .label(format!("{:.0} %", 100.0 * share))
            .gauge_style(look.colour(Color::Cyan)),
        gauge,
    );
    frame.render_widget(Span::raw(clock), right);
}

fn block(title: Line<'_>, look: Look) -> Block<'_> {
    Block::bordered().border_style(look.soft()).title(title)
}

/// The ends of the vertical axis: single outliers among the steps do not count, they would flatten all else.
fn bounds<'a>(
    faint: &[(f64, f64)],
    firm: impl IntoIterator<Item = &'a (f64, f64)>,
) -> Option<[f64; 2]> {
    let mut values: Vec<_> = faint.iter().map(|point| point.1).collect();
    values.sort_by(f64::total_cmp);
    let cut = values.len() / 50;
    let inner = values.get(cut..values.len() - cut).unwrap_or_default();
    let ends = inner.first().into_iter().chain(inner.last()).copied();
    let all = ends.chain(firm.into_iter().map(|point| point.1));
    let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
    for value in all {
        (low, high) = (low.min(value), high.max(value));
    }
    if low > high {
        return None;
    }
    let margin = (0.05 * (high - low)).max(1e-9 * high.abs().max(1.0));
    Some([low - margin, high + margin])
}

fn draw_loss(frame: &mut Frame<'_>, area: Rect, model: &Model, look: Look) {
    let mut title = vec![
        Span::styled(" loss ", Style::new().add_modifier(Modifier::BOLD)),
        Span::styled("— training ", look.colour(Color::Cyan)),
    ];
    if !model.valid.is_empty() {
        title.push(Span::styled("● held-out ", look.colour(Color::Yellow)));
    }
    let block = block(Line::from(title), look);
    let (loss, smoothed) = (model.loss.points(), model.smoothed.points());
    let firm = smoothed.iter().chain(&model.valid);
    let Some(y) = bounds(loss, firm) else {
        let text = Paragraph::new("\nnothing measured yet")
            .style(look.soft())
            .alignment(Alignment::Center);
        frame.render_widget(text.block(block), area);
        return;
    };
    let first = smoothed.first().or(model.valid.first());
    let first = first.map_or(0.0, |point| point.0.min(model.begin.step as f64));
    let x = [first, (model.step as f64).max(first + 1.0)];
    let mut datasets = Vec::new();
    // Without colours the steps' own losses could not be told from their mean.
    if look.colour && look.braille {
        datasets.push(
            Dataset::default()
                .marker(Marker::Braille)
                .style(look.soft())
                .data(loss),
        );
    }
    datasets.push(
        Dataset::default()
            .marker(look.line())
            .graph_type(GraphType::Line)
            .style(look.colour(Color::Cyan))
            .data(smoothed),
    );
    datasets.push(
        Dataset::default()
            .marker(Marker::Custom('●'))
            .style(look.colour(Color::Yellow))
            .data(&model.valid),
    );
    let label = |value: f64| Span::styled(short_loss(value), look.soft());
    let step = |value: f64| Span::styled(format!("{value:.0}"), look.soft());
    let chart = Chart::new(datasets)
        .block(block)
        .legend_position(None)
        .x_axis(
            Axis::default()
                .bounds(x)
                .style(look.soft())
                .labels([step(x[0]), step(x[1])]),
        )
        .y_axis(Axis::default().bounds(y).style(look.soft()).labels([
            label(y[0]),
            label(f64::midpoint(y[0], y[1])),
            label(y[1]),
        ]));
    frame.render_widget(chart, area);
}

fn short_loss(value: f64) -> String {
    if value.abs() < 1000.0 {
        format!("{value:.2}")
    } else {
        short(value)
    }
}

fn draw_figures(frame: &mut Frame<'_>, area: Rect, model: &Model, look: Look) {
    let number = |value: Option<f64>, text: fn(f64) -> String| value.map(text);
    let last = model.last;
    let valid = model.valid.last().map(|point| point.1);
    let figures = [
        (
            "loss",
            number(last.map(|step| step.loss), |x| format!("{x:.4}")),
        ),
        (
            "smoothed",
            number(model.smoothed.last(), |x| format!("{x:.4}")),
        ),
        ("held-out", number(valid, |x| format!("{x:.4}"))),
        ("perplexity", number(valid.map(f64::exp), perplexity)),
        ("  before", number(model.before, perplexity)),
        (
            "  best",
            model
                .best
                .map(|best| format!("{} at {}", perplexity(best.valid_perplexity), best.step)),
        ),
        (
            "lr",
            number(last.map(|step| step.lr), |x| format!("{x:.2e}")),
        ),
        (
            "grad norm",
            number(last.map(|step| step.grad_norm), |x| format!("{x:.3}")),
        ),
        (
            "tokens/s",
            number(last.map(|step| step.tokens_per_s), short),
        ),
        (
            "tokens",
            (model.tokens > 0).then(|| short(model.tokens as f64)),
        ),
        ("memory", model.peak_bytes.map(memory)),
    ];
    let room = area.height.saturating_sub(2) as usize;
    // In a low window what can be read elsewhere goes first.
    let spare = ["  before", "tokens", "smoothed", "  best", "perplexity"];
    let mut shown: Vec<_> = figures
        .into_iter()
        .filter_map(|(name, value)| value.map(|value| (name, value)))
        .collect();
    for name in spare {
        if shown.len() > room {
            shown.retain(|figure| figure.0 != name);
        }
    }
    let lines: Vec<_> = shown
        .into_iter()
        .map(|(name, value)| {
            Line::from(vec![
                Span::styled(format!("{name:11}"), look.soft()),
                Span::raw(value),
            ])
        })
        .collect();
    let title = Line::from(" now ");
    let block = block(title, look).padding(Padding::horizontal(1));
    frame.render_widget(Paragraph::new(lines).block(block), area);
}

fn draw_minis(frame: &mut Frame<'_>, area: Rect, model: &Model, look: Look) {
    /// Title, curve, colour, and how the last value is written.
    type Mini<'a> = (&'a str, &'a Curve, Color, fn(f64) -> String);
    let minis: [Mini<'_>; 3] = [
        ("lr", &model.lr, Color::Green, |x| format!("{x:.2e}")),
        ("grad norm", &model.grad_norm, Color::Magenta, |x| {
            format!("{x:.3}")
        }),
        ("tokens/s", &model.tokens_per_s, Color::Blue, short),
    ];
    let n = if area.width >= 60 { 3 } else { 2 };
    let areas = Layout::horizontal(vec![Constraint::Fill(1); n]).split(area);
    for (area, (name, curve, colour, text)) in areas.iter().zip(minis) {
        let last = curve.last().map_or_else(String::new, text);
        let title = Line::from(format!(" {name} {last} "));
        let points = curve.points();
        let data = Dataset::default()
            .marker(look.line())
            .graph_type(GraphType::Line)
            .style(look.colour(colour))
            .data(points);
        let x = points.first().zip(points.last());
        let [low, high] = bounds(points, []).unwrap_or([0.0, 1.0]);
        let low = if low > 0.0 && low < 0.5 * high {
            0.0
        } else {
            low
        };
        let x = x.map_or([0.0, 1.0], |(a, b)| [a.0, b.0.max(a.0 + 1.0)]);
        let chart = Chart::new(vec![data])
            .block(block(title, look))
            .legend_position(None)
            .x_axis(Axis::default().bounds(x))
            .y_axis(Axis::default().bounds([low, high]));
        frame.render_widget(chart, *area);
    }
}

fn draw_text(frame: &mut Frame<'_>, area: Rect, model: &Model, look: Look) {
    let Some(sample) = model.texts.get(model.text_idx) else {
        return;
    };
    let of = match model.texts.len() {
        1 => String::new(),
        n => format!("{}/{n} ←→ ", model.text_idx + 1),
    };
    let title = Line::from(format!(" text at step {} {of}", sample.step));
    let lines = |text: &str| -> Vec<String> { text.split('\n').map(one_line).collect() };
    let (prompt, answer) = (lines(&sample.prompt), lines(&sample.text));
    let mut text = Text::default();
    for (i, line) in prompt.iter().enumerate() {
        let mut spans = vec![Span::styled(line.clone(), look.soft())];
        // The text goes on in the prompt's last line.
        if i + 1 == prompt.len() {
            spans.extend(answer.first().map(|line| Span::raw(line.clone())));
        }
        text.push_line(Line::from(spans));
    }
    for line in answer.into_iter().skip(1) {
        text.push_line(line);
    }
    let paragraph = Paragraph::new(text)
        .wrap(Wrap { trim: false })
        .block(block(title, look));
    frame.render_widget(paragraph, area);
}

fn draw_notes(frame: &mut Frame<'_>, area: Rect, model: &Model, look: Look) {
    let title = if model.scroll > 0 {
        format!(" notes, {} below ↓ ", model.scroll)
    } else {
        " notes ".to_owned()
    };
    let room = area.height.saturating_sub(2) as usize;
    let end = model.notes.len() - model.scroll.min(model.notes.len());
    let shown = model.notes.range(end.saturating_sub(room)..end);
    let lines: Vec<_> = shown.map(|note| Line::from(note.as_str())).collect();
    let paragraph = Paragraph::new(lines).block(block(Line::from(title), look));
    frame.render_widget(paragraph, area);
}
