//! A small lasting change of a mean, found as soon as the evidence adds up: the two-sided cumulative sum of Page (1954) over means of
//! batches of requests, in the form of Montgomery ("Introduction to Statistical Quality Control", ch. 9).

use serde::{Deserialize, Serialize};

/// Requests whose mean is one point: their mean is nearly normal whatever one is.
pub const BATCH: usize = 25;
/// Points that a level is learnt from at least.
const MIN_POINTS: usize = 10;

/// What is normal.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Level {
    /// Mean of the points.
    pub mean: f64,
    /// Standard deviation of a point.
    pub sd: f64,
    /// Points it was learnt from.
    pub points: usize,
}

impl Level {
    /// Learns from the first requests; `None` where there are too few.
    pub fn of(values: &[f64]) -> Option<Self> {
        let (points, _) = values.as_chunks::<BATCH>();
        let n = points.len();
        if n < MIN_POINTS {
            return None;
        }
        let means: Vec<f64> = points.iter().map(|batch| mean(batch)).collect();
        let middle = mean(&means);
        let squares: f64 = means.iter().map(|x| (x - middle).powi(2)).sum();
        Some(Self {
            mean: middle,
            // Requests that are all the same have a deviation of 0; a millinat is as good.
            sd: (squares / (n as f64 - 1.0)).sqrt().max(1e-3),
            points: n,
        })
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// How the sums are tuned.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tuning {
    /// The shift that is to be found, in the values' unit. Half of it is what each point is allowed.
    pub shift: f64,
    /// Points between two false alarms on average, while nothing changes.
    pub run_length: f64,
}

/// A point of the chart.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Point {
    /// When its last request was, in milliseconds since 1970.
    pub time_ms: u64,
    /// Mean of its requests.
    pub mean: f64,
    /// Sum of what was above the level, in units of the limit: 1 is an alarm.
    pub up: f64,
    /// Sum of what was below.
    pub down: f64,
}

/// The chart.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Chart {
    /// What is normal.
    pub level: Level,
    /// Both sums' limit, in standard deviations of a point.
    pub limit: f64,
    /// The points.
    pub points: Vec<Point>,
    /// The first alarm.
    pub alarm: Option<Crossing>,
}

/// Where a sum crossed its limit.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Crossing {
    /// Milliseconds since 1970.
    pub time_ms: u64,
    /// When the change began: the sum was 0 last.
    pub since_ms: u64,
    /// Requests from there to the alarm.
    pub requests: usize,
    /// Above the level, or below.
    pub is_rise: bool,
    /// How far the mean since then lies from the level.
    pub shift: f64,
}

impl Chart {
    /// Draws the chart over requests in the order of their time.
    pub fn new(level: Level, tuning: Tuning, values: &[(u64, f64)]) -> Self {
        let allowance = (tuning.shift / 2.0 / level.sd).max(0.5);
        let limit = limit(allowance, tuning.run_length);
        let mut chart = Self {
            level,
            limit,
            points: Vec::new(),
            alarm: None,
        };
        // Sum, time and number of the point where it was 0 last.
        let start = values.first().map_or(0, |(time_ms, _)| *time_ms);
        let mut sums = [(0.0_f64, start, 0_usize); 2];
        for (i, batch) in values.as_chunks::<BATCH>().0.iter().enumerate() {
            let time_ms = batch[BATCH - 1].0;
            let mean = batch.iter().map(|(_, x)| x).sum::<f64>() / BATCH as f64;
            let z = (mean - level.mean) / level.sd;
            for (sum, z) in sums.iter_mut().zip([z, -z]) {
                sum.0 = (sum.0 + z - allowance).max(0.0);
                if sum.0 == 0.0 {
                    (sum.1, sum.2) = (time_ms, i + 1);
                }
            }
            let found = [(0, true), (1, false)]
                .into_iter()
                .find(|&(side, _)| sums[side].0 >= limit);
            if chart.alarm.is_none()
                && let Some((side, is_rise)) = found
            {
                let (sum, since_ms, first) = sums[side];
                let n = i + 1 - first;
                let shift = (sum / n as f64 + allowance) * level.sd;
                chart.alarm = Some(Crossing {
                    time_ms,
                    since_ms,
                    requests: n * BATCH,
                    is_rise,
                    shift: if is_rise { shift } else { -shift },
                });
            }
            chart.points.push(Point {
                time_ms,
                mean,
                up: sums[0].0 / limit,
                down: sums[1].0 / limit,
            });
        }
        chart
    }
}

/// The limit at which a two-sided sum with this allowance runs so long between false alarms, by Siegmund's approximation (1985):
/// one side's mean run is `(exp(2kb) - 1 - 2kb) / 2k²` with `b = h + 1.166`, two sides' is half of that.
pub fn limit(allowance: f64, run_length: f64) -> f64 {
    let run = |h: f64| {
        let x = 2.0 * allowance * (h + 1.166);
        (x.exp() - 1.0 - x) / (2.0 * allowance * allowance) / 2.0
    };
    let (mut low, mut high) = (0.0, 1000.0);
    for _ in 0..60 {
        let middle = f64::midpoint(low, high);
        if run(middle) < run_length {
            low = middle;
        } else {
            high = middle;
        }
    }
    high
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A sum of twelve uniform numbers is nearly normal.
    fn normal(state: &mut u64) -> f64 {
        let uniform = |state: &mut u64| {
            *state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (*state >> 11) as f64 / (1_u64 << 53) as f64
        };
        (0..12).map(|_| uniform(state)).sum::<f64>() - 6.0
    }

    fn values(n: usize, mean: f64, sd: f64, seed: u64) -> Vec<(u64, f64)> {
        let mut state = seed;
        (0..n)
            .map(|i| (i as u64, mean + sd * normal(&mut state)))
            .collect()
    }

    const TUNING: Tuning = Tuning {
        shift: 0.25,
        run_length: 1e6,
    };

    #[test]
    fn limits_are_the_textbooks() {
        // Montgomery, table 9.3 (k = 0.5): h = 4 runs 168, h = 5 runs 465.
        assert!(
            (limit(0.5, 168.0) - 4.0).abs() < 0.05,
            "{}",
            limit(0.5, 168.0)
        );
        assert!(
            (limit(0.5, 465.0) - 5.0).abs() < 0.05,
            "{}",
            limit(0.5, 465.0)
        );
    }

    #[test]
    fn run_lengths_are_what_was_asked_for() {
        let level = Level {
            mean: 0.0,
            sd: 1.0,
            points: 100,
        };
        let tuning = Tuning {
            shift: 1.0,
            run_length: 168.0,
        };
        let runs: Vec<f64> = (1..200)
            .map(|seed| {
                let values = values(BATCH * 2000, 0.0, (BATCH as f64).sqrt(), seed);
                let chart = Chart::new(level, tuning, &values);
                chart
                    .alarm
                    .map_or(2000.0, |alarm| (alarm.time_ms + 1) as f64 / BATCH as f64)
            })
            .collect();
        let found = mean(&runs);
        assert!((130.0..210.0).contains(&found), "{found}");
    }

    #[test]
    fn a_month_of_nothing_is_quiet_and_a_shift_is_found_soon() {
        for seed in 1..20 {
            let mut requests = values(30_000, 4.0, 0.8, seed);
            let first: Vec<f64> = requests[..7000].iter().map(|(_, x)| *x).collect();
            let level = Level::of(&first).unwrap();
            assert!(
                (level.mean - 4.0).abs() < 0.05 && (level.sd - 0.16).abs() < 0.03,
                "{level:?}"
            );
            assert_eq!(Chart::new(level, TUNING, &requests).alarm, None);
            for (_, value) in &mut requests[20_000..] {
                *value -= 0.5;
            }
            let alarm = Chart::new(level, TUNING, &requests).alarm.unwrap();
            assert!(
                !alarm.is_rise && (alarm.shift + 0.5).abs() < 0.2,
                "{alarm:?}"
            );
            assert!((19_500..20_100).contains(&alarm.since_ms), "{alarm:?}");
            assert!((20_000..20_400).contains(&alarm.time_ms), "{alarm:?}");
        }
    }

    #[test]
    fn too_few_requests_are_no_level() {
        assert_eq!(Level::of(&[1.0; BATCH * MIN_POINTS - 1]), None);
        let level = Level::of(&[1.0; BATCH * MIN_POINTS]).unwrap();
        assert!(level.sd > 0.0);
    }
}
