//! Plots for a page: SVG paths that stretch with it, and labels beside them as text of the page, so that both stay sharp and legible
//! at any width.
//!
//! Coordinates within a plot are thousandths of its width, and of its height from the top.

use crate::text::{date, short};
use serde::Serialize;

/// Points along the width of a curve at most; longer series are thinned, keeping their highs and lows.
const N_BUCKETS: usize = 500;
/// A logarithmic axis where the values span more than this.
const LOG_SPAN: f64 = 50.0;

/// How a series is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A pale line that keeps every high and low.
    Faint,
    /// A line.
    Line,
    /// A line with a dot at each point.
    Dots,
}

/// A curve.
#[derive(Debug, Clone)]
pub struct Series {
    /// What it shows.
    pub name: String,
    /// Its colour: a number of the page's palette.
    pub colour: usize,
    /// How it is drawn.
    pub kind: Kind,
    /// Steps and values; a value that is not finite breaks the line.
    pub points: Vec<(f64, f64)>,
}

/// The scale of the vertical axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// Linear, over the values.
    Values,
    /// Linear, from 0.
    FromZero,
    /// Logarithmic where the values span more than a factor of [`LOG_SPAN`].
    Auto,
}

/// What a plot's points lie on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Across {
    /// Steps of a run.
    Steps,
    /// Days since 1970, UTC.
    Days,
}

impl Across {
    fn name(self) -> &'static str {
        match self {
            Self::Steps => "step",
            Self::Days => "day (UTC)",
        }
    }

    fn place(self, x: f64) -> String {
        match self {
            Self::Steps => format!("step {x}"),
            Self::Days => day(x),
        }
    }

    fn ticks(self, x: Axis) -> Vec<Tick> {
        let values = linear_ticks(x, 6);
        match self {
            Self::Steps => ticks(x, values, &label_for(x)),
            // Half a day has no name.
            Self::Days => {
                let whole = values.into_iter().filter(|value| value.fract() == 0.0);
                ticks(x, whole.collect(), &day)
            }
        }
    }
}

fn day(days: f64) -> String {
    date(days * 86_400.0)[..10].to_owned()
}

/// A plot as the page's template draws it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plot {
    title: String,
    x_label: String,
    y_label: String,
    log: bool,
    x_ticks: Vec<Tick>,
    y_ticks: Vec<Tick>,
    curves: Vec<Curve>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct Tick {
    /// Per cent of the axis, from the left or the bottom.
    at: String,
    label: String,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct Curve {
    name: String,
    colour: usize,
    kind: Kind,
    path: String,
    dots: Vec<Dot>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct Dot {
    x: String,
    y: String,
    title: String,
}

/// An axis: its ends, and whether it is logarithmic.
#[derive(Debug, Clone, Copy)]
struct Axis {
    from: f64,
    to: f64,
    log: bool,
}

impl Axis {
    /// Where a value lies, 0 to 1.
    fn at(self, value: f64) -> f64 {
        if self.log {
            (value.max(f64::MIN_POSITIVE) / self.from).ln() / (self.to / self.from).ln()
        } else {
            (value - self.from) / (self.to - self.from)
        }
    }
}

impl Plot {
    /// Draws the series over their steps; `None` where there is nothing to see.
    pub fn new(title: &str, y_label: &str, scale: Scale, series: &[Series]) -> Option<Self> {
        Self::over(Across::Steps, title, y_label, scale, series)
    }

    /// Draws the series over whatever their points lie on.
    pub fn over(
        across: Across,
        title: &str,
        y_label: &str,
        scale: Scale,
        series: &[Series],
    ) -> Option<Self> {
        let finite = || {
            let points = series.iter().flat_map(|series| &series.points);
            points.filter(|(x, y)| x.is_finite() && y.is_finite())
        };
        let n_most = series.iter().map(|series| series.points.len()).max()?;
        if n_most < 2 || finite().next().is_none() {
            return None;
        }
        let x = Axis {
            from: finite().map(|p| p.0).fold(f64::INFINITY, f64::min),
            to: finite().map(|p| p.0).fold(f64::NEG_INFINITY, f64::max),
            log: false,
        };
        let x = padded(x);
        let y = y_axis(scale, series)?;
        let label_y = label_for(y);
        Some(Self {
            title: title.to_owned(),
            x_label: across.name().to_owned(),
            y_label: y_label.to_owned(),
            log: y.log,
            x_ticks: across.ticks(x),
            y_ticks: ticks(y, y_tick_values(y), &label_y),
            curves: series
                .iter()
                .filter(|series| !series.points.is_empty())
                .map(|series| curve(series, across, x, y))
                .collect(),
        })
    }
}

fn padded(axis: Axis) -> Axis {
    if axis.to > axis.from {
        return axis;
    }
    let by = axis.from.abs().max(1.0) * 0.5;
    Axis {
        from: axis.from - by,
        to: axis.to + by,
        ..axis
    }
}

/// The range of the values, where single outliers of a faint series do not count: they would flatten all else.
fn y_axis(scale: Scale, series: &[Series]) -> Option<Axis> {
    let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
    for series in series {
        let mut values: Vec<_> = series
            .points
            .iter()
            .map(|p| p.1)
            .filter(|value| value.is_finite())
            .collect();
        values.sort_by(f64::total_cmp);
        let n = values.len();
        if n == 0 {
            continue;
        }
        let outliers = match series.kind {
            Kind::Faint if n >= 100 => n / 100,
            _ => 0,
        };
        low = low.min(values[outliers]);
        high = high.max(values[n - 1 - outliers]);
    }
    if !low.is_finite() {
        return None;
    }
    let log = scale == Scale::Auto && low > 0.0 && high / low > LOG_SPAN;
    if log {
        let margin = (high / low).powf(0.03);
        return Some(Axis {
            from: low / margin,
            to: high * margin,
            log,
        });
    }
    let margin = 0.04 * (high - low);
    let (from, to) = match scale {
        Scale::FromZero if low >= 0.0 => (0.0, high * 1.06),
        // A margin does not make positive values look as if they could be negative.
        _ if low >= 0.0 => ((low - margin).max(0.0), high + margin),
        _ => (low - margin, high + margin),
    };
    Some(padded(Axis { from, to, log }))
}

/// Round numbers (1, 2 or 5 times a power of ten) within an axis, about `n` of them.
fn linear_ticks(axis: Axis, n: usize) -> Vec<f64> {
    let raw = (axis.to - axis.from) / n as f64;
    let power = 10_f64.powf(raw.log10().floor());
    let step = match raw / power {
        r if r <= 1.0 => power,
        r if r <= 2.0 => 2.0 * power,
        r if r <= 5.0 => 5.0 * power,
        _ => 10.0 * power,
    };
    let first = (axis.from / step).ceil() as i64;
    let last = (axis.to / step).floor() as i64;
    (first..=last).map(|i| i as f64 * step).collect()
}

fn y_tick_values(axis: Axis) -> Vec<f64> {
    if !axis.log {
        return linear_ticks(axis, 5);
    }
    let decades = axis.from.log10().floor() as i32..=axis.to.log10().ceil() as i32;
    let wide = (axis.to / axis.from).log10() > 3.0;
    let factors: &[f64] = if wide { &[1.0] } else { &[1.0, 3.0] };
    decades
        .flat_map(|decade| factors.iter().map(move |f| f * 10_f64.powi(decade)))
        .filter(|value| (axis.from..=axis.to).contains(value))
        .collect()
}

/// How values of this axis are written: with as many digits as its ticks need.
fn label_for(axis: Axis) -> impl Fn(f64) -> String {
    let step = (axis.to - axis.from) / 5.0;
    let most = axis.to.abs().max(axis.from.abs());
    move |value| match value {
        0.0 => "0".to_owned(),
        _ if axis.log || most >= 10_000.0 => short(value),
        _ if most < 0.01 => format!("{value:.1e}").replace(".0e", "e"),
        _ => {
            let n_digits = (-(step / 2.0).log10().floor()).clamp(0.0, 6.0) as usize;
            let text = format!("{value:.n_digits$}");
            if text.contains('.') {
                text.trim_end_matches('0').trim_end_matches('.').to_owned()
            } else {
                text
            }
        }
    }
}

fn ticks(axis: Axis, values: Vec<f64>, label: &impl Fn(f64) -> String) -> Vec<Tick> {
    values
        .into_iter()
        .map(|value| Tick {
            at: format!("{:.2}", 100.0 * axis.at(value)),
            label: label(value),
        })
        .collect()
}

fn curve(series: &Series, across: Across, x: Axis, y: Axis) -> Curve {
    let points: Vec<_> = match series.kind {
        Kind::Faint | Kind::Line => thin(&series.points, x),
        Kind::Dots => series.points.clone(),
    };
    let place = |(at, value): (f64, f64)| {
        // Far out is as good as outside, and short.
        let clamped = y.at(value).clamp(-1.0, 2.0);
        (
            format!("{:.1}", 1000.0 * x.at(at)),
            format!("{:.1}", 1000.0 * (1.0 - clamped)),
        )
    };
    let mut path = String::new();
    let mut broken = true;
    for &point in &points {
        if !point.1.is_finite() {
            broken = true;
            continue;
        }
        let (x, y) = place(point);
        path += &format!("{}{x} {y}", if broken { 'M' } else { 'L' });
        broken = false;
    }
    let dots = match series.kind {
        Kind::Dots => points
            .iter()
            .filter(|point| point.1.is_finite())
            .map(|&point| {
                let (x, y) = place(point);
                let title = format!("{}: {:.4}", across.place(point.0), point.1);
                Dot { x, y, title }
            })
            .collect(),
        _ => Vec::new(),
    };
    Curve {
        name: series.name.clone(),
        colour: series.colour,
        kind: series.kind,
        path,
        dots,
    }
}

/// The first, lowest, highest and last point of each part of the axis, in their order.
fn thin(points: &[(f64, f64)], x: Axis) -> Vec<(f64, f64)> {
    if points.len() <= 4 * N_BUCKETS {
        return points.to_vec();
    }
    let bucket = |point: &(f64, f64)| (x.at(point.0) * N_BUCKETS as f64) as i64;
    let mut thinned = Vec::new();
    for part in points.chunk_by(|a, b| bucket(a) == bucket(b)) {
        let by_value = |a: &&usize, b: &&usize| part[**a].1.total_cmp(&part[**b].1);
        let idxs: Vec<_> = (0..part.len()).collect();
        let low = idxs.iter().min_by(by_value).copied().unwrap_or(0);
        let high = idxs.iter().max_by(by_value).copied().unwrap_or(0);
        let mut kept = [0, low, high, part.len() - 1];
        kept.sort_unstable();
        let mut previous = None;
        for idx in kept {
            if previous != Some(idx) {
                thinned.push(part[idx]);
            }
            previous = Some(idx);
        }
    }
    thinned
}

/// A running mean whose memory is a fiftieth of the series: `m = a m + (1 - a) x`, divided by `1 - a^n` (the weight that it has seen).
pub fn smooth(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let mut mean = Smooth::over(points.len());
    points.iter().map(|&(x, y)| (x, mean.next(y))).collect()
}

/// The running mean of [`smooth`], one value at a time.
#[derive(Debug, Clone, Copy)]
pub struct Smooth {
    keep: f64,
    sum: f64,
    weight: f64,
}

impl Smooth {
    /// For a series of about so many values.
    pub fn over(n: usize) -> Self {
        let span = (n as f64 / 50.0).clamp(3.0, 200.0);
        Self {
            keep: 1.0 - 2.0 / (span + 1.0),
            sum: 0.0,
            weight: 0.0,
        }
    }

    /// The mean with the next value; one that is not finite does not count.
    pub fn next(&mut self, value: f64) -> f64 {
        if value.is_finite() {
            self.sum = self.keep * self.sum + (1.0 - self.keep) * value;
            self.weight = self.keep * self.weight + (1.0 - self.keep);
        }
        self.sum / self.weight
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(kind: Kind, points: &[(f64, f64)]) -> Series {
        Series {
            name: "a".to_owned(),
            colour: 0,
            kind,
            points: points.to_vec(),
        }
    }

    fn labels(ticks: &[Tick]) -> Vec<&str> {
        ticks.iter().map(|tick| tick.label.as_str()).collect()
    }

    #[test]
    fn ticks_are_round_and_lie_where_they_say() {
        let plot = |scale, points: &[(f64, f64)]| {
            Plot::new("t", "y", scale, &[series(Kind::Line, points)]).unwrap()
        };
        let loss = plot(Scale::Values, &[(1.0, 2.0), (101.0, 4.0)]);
        assert_eq!(labels(&loss.y_ticks), ["2", "2.5", "3", "3.5", "4"]);
        assert_eq!(labels(&loss.x_ticks), ["20", "40", "60", "80", "100"]);
        assert_eq!(loss.x_ticks[0].at, "19.00");
        assert_eq!(loss.curves[0].path, "M0.0 963.0L1000.0 37.0");
        let lr = plot(Scale::FromZero, &[(1.0, 0.0), (2.0, 3e-4)]);
        assert_eq!(labels(&lr.y_ticks), ["0", "1e-4", "2e-4", "3e-4"]);
        let norm = plot(Scale::Auto, &[(1.0, 0.5), (2.0, 200.0)]);
        assert!(norm.log);
        assert_eq!(labels(&norm.y_ticks), ["1", "3", "10", "30", "100"]);
        let flat = plot(Scale::Values, &[(1.0, 5.0), (2.0, 5.0)]);
        assert!(flat.y_ticks.len() > 2);
        let fast = plot(Scale::FromZero, &[(1.0, 1e4), (20_000.0, 5e4)]);
        assert_eq!(labels(&fast.y_ticks), ["0", "20k", "40k"]);
    }

    #[test]
    fn days_have_dates() {
        let line = series(Kind::Dots, &[(20_454.0, 1.0), (20_460.0, 2.0)]);
        let plot = Plot::over(Across::Days, "t", "y", Scale::Values, &[line]).unwrap();
        assert_eq!(labels(&plot.x_ticks)[..2], ["2026-01-01", "2026-01-02"]);
        assert_eq!(plot.curves[0].dots[1].title, "2026-01-07: 2.0000");
    }

    #[test]
    fn nothing_to_see_and_values_that_are_none() {
        let new = |points: &[(f64, f64)]| {
            Plot::new("t", "y", Scale::Values, &[series(Kind::Line, points)])
        };
        assert_eq!(new(&[]), None);
        assert_eq!(new(&[(1.0, 2.0)]), None);
        assert_eq!(new(&[(1.0, f64::NAN), (2.0, f64::INFINITY)]), None);
        let broken = new(&[(0.0, 1.0), (1.0, f64::NAN), (2.0, 2.0), (3.0, 1.0)]).unwrap();
        assert_eq!(broken.curves[0].path.matches('M').count(), 2);
    }

    #[test]
    fn a_long_series_is_thinned_and_keeps_its_spike() {
        let mut points: Vec<_> = (0..100_000).map(|i| (f64::from(i), 1.0)).collect();
        points[77_777].1 = 9.0;
        let line = series(Kind::Line, &points);
        let plot = Plot::new("t", "y", Scale::Values, &[line]).unwrap();
        let n_points = plot.curves[0].path.matches(['M', 'L']).count();
        assert!(n_points <= 4 * N_BUCKETS + 4, "{n_points}");
        assert!(plot.curves[0].path.contains(" 37."), "the spike is there");
        let faint = series(Kind::Faint, &points);
        let axis = y_axis(Scale::Values, &[faint]).unwrap();
        assert!(
            axis.to < 2.0,
            "a single spike does not set the axis of a faint curve"
        );
    }

    #[test]
    fn smoothing_begins_at_the_first_value_and_keeps_a_constant() {
        let points: Vec<_> = (0..500).map(|i| (f64::from(i), 3.0)).collect();
        assert!(smooth(&points).iter().all(|p| (p.1 - 3.0).abs() < 1e-12));
        let mut mean = Smooth::over(500); // a span of 10: keeps 9/11
        mean.next(1.0);
        mean.next(f64::NAN);
        // (9/11 * 2/11 * 1 + 2/11 * 2) / (1 - (9/11)^2)
        assert!((mean.next(2.0) - (18.0 / 121.0 + 4.0 / 11.0) / (40.0 / 121.0)).abs() < 1e-12);
    }
}
