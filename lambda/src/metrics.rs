//! What the server has done since it started, and its text for Prometheus (exposition format 0.0.4).

use fledgling_core::generate::FinishReason;
use std::{
    fmt::Write,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// A number that only grows.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, n: usize) {
        self.0.fetch_add(n as u64, Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Upper bounds of a histogram's buckets, in seconds.
const BOUNDS_S: [f64; 14] = [
    0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 60.0,
];

/// Times, by buckets.
#[derive(Debug, Default)]
pub(crate) struct Histogram {
    /// One for each bound, and one for what is above.
    buckets: [AtomicU64; BOUNDS_S.len() + 1],
    sum_us: AtomicU64,
}

impl Histogram {
    pub(crate) fn record(&self, time: Duration) {
        let seconds = time.as_secs_f64();
        let bucket = BOUNDS_S.partition_point(|bound| *bound < seconds);
        self.buckets[bucket].fetch_add(1, Relaxed);
        self.sum_us.fetch_add(time.as_micros() as u64, Relaxed);
    }

    fn write(&self, out: &mut String, name: &str, help: &str) {
        let _ = write!(out, "# HELP {name} {help}\n# TYPE {name} histogram\n");
        let mut count = 0;
        for (i, bucket) in self.buckets.iter().enumerate() {
            count += bucket.load(Relaxed);
            let bound = BOUNDS_S.get(i).map_or("+Inf".to_owned(), f64::to_string);
            let _ = writeln!(out, "{name}_bucket{{le=\"{bound}\"}} {count}");
        }
        let sum_s = self.sum_us.load(Relaxed) as f64 / 1e6;
        let _ = write!(out, "{name}_sum {sum_s}\n{name}_count {count}\n");
    }
}

/// How a job ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Finished(FinishReason),
    Cancelled,
    Failed,
}

impl Outcome {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Finished(FinishReason::Stop) => "stop",
            Self::Finished(FinishReason::Length) => "length",
            Self::Cancelled => "cancelled",
            Self::Failed => "failed",
        }
    }
}

/// What is counted.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) prompt_tokens: Counter,
    pub(crate) cached_tokens: Counter,
    pub(crate) generated_tokens: Counter,
    pub(crate) drafted_tokens: Counter,
    pub(crate) accepted_tokens: Counter,
    pub(crate) forward_passes: Counter,
    pub(crate) rejected: Counter,
    completed: Counter,
    cancelled: Counter,
    failed: Counter,
    pub(crate) first_token: Histogram,
    pub(crate) between_tokens: Histogram,
    job: Histogram,
    /// Mean time of a job in milliseconds, the last ones counting most.
    job_ms: AtomicU64,
    /// Bytes of keys and values, of what runs and what is kept.
    pub(crate) kv_bytes: AtomicU64,
}

impl Counters {
    pub(crate) fn ended(&self, outcome: Outcome, ran_for: Option<Duration>) {
        match outcome {
            Outcome::Finished(_) => self.completed.add(1),
            Outcome::Cancelled => self.cancelled.add(1),
            Outcome::Failed => self.failed.add(1),
        }
        if let Some(time) = ran_for {
            self.job.record(time);
            let (old, new) = (self.job_ms.load(Relaxed), time.as_millis() as u64);
            // One thread writes.
            self.job_ms.store((7 * old + new) / 8, Relaxed);
        }
    }

    /// Seconds until `n_before` jobs have run, `n_at_once` at a time.
    pub(crate) fn wait_s(&self, n_before: usize, n_at_once: usize) -> u32 {
        let rounds = n_before.div_ceil(n_at_once.max(1)) as u64;
        let seconds = (rounds * self.job_ms.load(Relaxed)).div_ceil(1000);
        seconds.clamp(1, 60) as u32
    }
}

/// A reading of the server's counters, for metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Generations under way.
    pub running: usize,
    /// Generations that wait for their turn.
    pub waiting: usize,
    /// Tokens generated since the start.
    pub generated_tokens: u64,
    /// Generations that came to their end.
    pub completed: u64,
    /// Generations that ended because their client went away.
    pub cancelled: u64,
    /// Generations that failed by our fault.
    pub failed: u64,
    /// Requests refused because the queue was full.
    pub rejected: u64,
}

impl Stats {
    pub(crate) fn of(counters: &Counters, running: usize, waiting: usize) -> Self {
        Self {
            running,
            waiting,
            generated_tokens: counters.generated_tokens.get(),
            completed: counters.completed.get(),
            cancelled: counters.cancelled.get(),
            failed: counters.failed.get(),
            rejected: counters.rejected.get(),
        }
    }
}

/// All figures as Prometheus reads them.
pub(crate) fn prometheus(stats: Stats, counters: &Counters) -> String {
    let mut out = String::new();
    let kv_bytes = counters.kv_bytes.load(Relaxed);
    for (name, help, value) in [
        ("running", "Generations under way.", stats.running as u64),
        (
            "waiting",
            "Generations that wait for their turn.",
            stats.waiting as u64,
        ),
        (
            "kv_bytes",
            "Keys and values in memory, of generations and of prompts that are kept.",
            kv_bytes,
        ),
    ] {
        let name = format!("fledgling_{name}");
        let _ = write!(
            out,
            "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}\n"
        );
    }
    for (name, help, counter) in [
        (
            "prompt_tokens",
            "Tokens of prompts.",
            &counters.prompt_tokens,
        ),
        (
            "cached_prompt_tokens",
            "Those of them that were known and not computed.",
            &counters.cached_tokens,
        ),
        (
            "generated_tokens",
            "Tokens generated.",
            &counters.generated_tokens,
        ),
        (
            "drafted_tokens",
            "Tokens that prompt look-up drafted.",
            &counters.drafted_tokens,
        ),
        (
            "accepted_tokens",
            "Those of them that were right.",
            &counters.accepted_tokens,
        ),
        (
            "forward_passes",
            "Forward passes, each over all generations under way.",
            &counters.forward_passes,
        ),
        (
            "completed",
            "Generations that came to their end.",
            &counters.completed,
        ),
        (
            "cancelled",
            "Generations whose client went away.",
            &counters.cancelled,
        ),
        ("failed", "Generations that failed.", &counters.failed),
        (
            "rejected",
            "Requests refused because the queue was full.",
            &counters.rejected,
        ),
    ] {
        let name = format!("fledgling_{name}_total");
        let value = counter.get();
        let _ = write!(
            out,
            "# HELP {name} {help}\n# TYPE {name} counter\n{name} {value}\n"
        );
    }
    for (name, help, histogram) in [
        (
            "fledgling_time_to_first_token_seconds",
            "From a request's arrival to its first token.",
            &counters.first_token,
        ),
        (
            "fledgling_time_between_tokens_seconds",
            "Between two tokens of a generation.",
            &counters.between_tokens,
        ),
        (
            "fledgling_generation_seconds",
            "From a generation's turn to its end.",
            &counters.job,
        ),
    ] {
        histogram.write(&mut out, name, help);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_counts_what_is_at_most_its_bound() {
        let histogram = Histogram::default();
        for ms in [1, 5, 6, 100_000] {
            histogram.record(Duration::from_millis(ms));
        }
        let mut text = String::new();
        histogram.write(&mut text, "x", "Help.");
        assert!(text.starts_with("# HELP x Help.\n# TYPE x histogram\nx_bucket{le=\"0.005\"} 2\nx_bucket{le=\"0.01\"} 3\n"));
        assert!(text.contains("x_bucket{le=\"60\"} 3\nx_bucket{le=\"+Inf\"} 4\n"));
        assert!(text.ends_with("x_sum 100.012\nx_count 4\n"), "{text}");
    }

    #[test]
    fn who_is_refused_hears_how_long_the_others_take() {
        let counters = Counters::default();
        assert_eq!(counters.wait_s(8, 4), 1, "nothing is known yet");
        for _ in 0..100 {
            let stop = Outcome::Finished(FinishReason::Stop);
            counters.ended(stop, Some(Duration::from_secs(3)));
        }
        assert_eq!(counters.wait_s(8, 4), 6);
        assert_eq!(counters.wait_s(9, 4), 9);
        assert_eq!(counters.wait_s(1000, 4), 60);
    }
}
