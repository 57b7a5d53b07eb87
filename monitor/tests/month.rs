//! A month of requests to a model that was trained on texts about Rust: thirty days of questions about Rust raise no alarm, and
//! questions about banking raise one within a day's traffic. The texts are ours; a unigram model stands in for the network, words for
//! tokens, and a few words in a hundred are noise, so that there is a tail. `tests/peers/drift_month.py` does the same with a real model.
#![cfg(feature = "watch")]
#![allow(clippy::unwrap_used, reason = "a test")]

use fledgling_core::gguf::Metadata;
use fledgling_monitor::{
    baseline::{Calibration, Trained},
    read::Reader,
    record::{Record, VERSION, language},
    sketch::Sketch,
    traffic::DAY_MS,
    watch::{Baselines, Figure, Findings, Thresholds, watch},
};
use std::collections::HashMap;

const RUST: &str = include_str!("data/rust.txt");
const BANKING: &str = include_str!("data/banking.txt");
const FIRST_DAY: u64 = 20_500;
const PER_DAY: u64 = 300;

struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

/// One to three lines, every thirtieth word another one.
fn text(lines: &str, chance: &mut Chance) -> String {
    let lines: Vec<&str> = lines.lines().collect();
    let mut text = Vec::new();
    for _ in 0..=chance.below(3) {
        for word in lines[chance.below(lines.len())].split_whitespace() {
            text.push(match chance.below(30) {
                0 => format!("w{}", chance.below(2000)),
                _ => word.to_lowercase(),
            });
        }
    }
    text.join(" ")
}

fn ids(text: &str) -> Vec<u32> {
    text.split_whitespace()
        .map(|word| {
            word.bytes().fold(2_166_136_261_u32, |hash, byte| {
                (hash ^ u32::from(byte)).wrapping_mul(16_777_619)
            }) % 20_000
        })
        .collect()
}

struct Model {
    counts: HashMap<u32, u64>,
    total: u64,
}

impl Model {
    fn trained(chance: &mut Chance) -> Self {
        let mut counts = HashMap::new();
        let mut total = 0;
        for _ in 0..3000 {
            for id in ids(&text(RUST, chance)) {
                *counts.entry(id).or_default() += 1;
                total += 1;
            }
        }
        Self { counts, total }
    }

    fn surprise(&self, ids: &[u32]) -> f64 {
        let of = |id: &u32| {
            let count = self.counts.get(id).copied().unwrap_or(0) as f64;
            -((count + 0.1) / (self.total as f64 + 2000.0)).ln()
        };
        ids.iter().map(of).sum::<f64>() / ids.len() as f64
    }

    fn baseline(&self) -> Trained {
        let mut known: Vec<(u32, u64)> = self
            .counts
            .iter()
            .map(|(id, count)| (*id, *count))
            .collect();
        known.sort_by_key(|(id, count)| (std::cmp::Reverse(*count), *id));
        let other: u64 = known.drain(500..).map(|(_, count)| count).sum();
        let mut metadata = Metadata::new();
        let vocabulary: Vec<String> = (0..20_000).map(|id| format!("t{id}")).collect();
        metadata.set(
            "tokenizer.ggml.tokens",
            vocabulary
                .iter()
                .map(String::as_str)
                .collect::<fledgling_core::gguf::StringArray>(),
        );
        metadata.set(
            "fledgling.data.histogram.ids",
            known.iter().map(|(id, _)| *id).collect::<Vec<u32>>(),
        );
        metadata.set(
            "fledgling.data.histogram.counts",
            known.iter().map(|(_, count)| *count).collect::<Vec<u64>>(),
        );
        metadata.set("fledgling.data.histogram.other", other);
        Trained::of(&metadata).unwrap().unwrap()
    }

    fn day(&self, day: u64, lines: &str, chance: &mut Chance, log: &mut String) {
        for i in 0..PER_DAY {
            let prompt = text(lines, chance);
            let ids = ids(&prompt);
            let record = Record {
                version: VERSION,
                time_ms: (FIRST_DAY + day) * DAY_MS + i * (DAY_MS / PER_DAY),
                model: "rust".to_owned(),
                request_id: Some(format!("r{day}-{i}")),
                outcome: "stop".to_owned(),
                requests: 1,
                prompt_tokens: ids.len() as u64,
                prompt_surprise: Some(self.surprise(&ids)),
                prompt_scored: ids.len() as u64,
                language: language(&prompt).map(str::to_owned),
                sketch: Some(Sketch::of(chance.next(), &ids, &[])),
                ..Record::default()
            };
            *log += &(record.to_line() + "\n");
        }
    }
}

fn found(
    log: &str,
    trained: Option<&Trained>,
    calibration: Option<Calibration>,
) -> (Findings, Option<Calibration>) {
    let mut reader = Reader::default();
    reader.read("log", log.as_bytes());
    assert_eq!(reader.tally.n_broken(), 0);
    reader.traffic.sort();
    let baselines = Baselines {
        trained,
        calibration,
        tokenizer: None,
    };
    watch(
        &reader.traffic,
        baselines,
        &Thresholds::default(),
        reader.tally,
    )
}

#[test]
fn thirty_days_of_the_domain_are_quiet_and_another_domain_is_seen_within_a_day() {
    for seed in [1, 2, 3] {
        let mut chance = Chance(seed);
        let model = Model::trained(&mut chance);
        let trained = model.baseline();
        let mut log = String::new();
        (0..30).for_each(|day| model.day(day, RUST, &mut chance, &mut log));
        let (findings, _) = found(&log, Some(&trained), None);
        assert_eq!(findings.alarms, [], "seed {seed}");
        assert_eq!(findings.days.len(), 30);
        assert_eq!(
            findings.days.iter().filter(|day| day.is_baseline).count(),
            7
        );
        assert!(findings.charts.contains_key(&Figure::PromptSurprise));
        let page = findings.to_html(&Thresholds::default()).unwrap();
        assert!(page.contains("no alarm") && page.matches("<figure>").count() >= 5);

        model.day(30, BANKING, &mut chance, &mut log);
        let (findings, _) = found(&log, Some(&trained), None);
        let figures: Vec<Figure> = findings.alarms.iter().map(|alarm| alarm.figure).collect();
        for figure in [
            Figure::TrainingPsi,
            Figure::TrainingJsd,
            Figure::PromptPsi,
            Figure::PromptJsd,
            Figure::PromptSurprise,
        ] {
            assert!(
                figures.contains(&figure),
                "{figure:?} is not in {figures:?}"
            );
        }
        let shift_ms = (FIRST_DAY + 30) * DAY_MS;
        for alarm in &findings.alarms {
            assert!(
                (shift_ms..shift_ms + DAY_MS).contains(&alarm.time_ms),
                "{alarm:?}"
            );
        }
        // Surprise does not wait for the end of the day: an hour or two of requests are enough.
        let surprise = findings
            .alarms
            .iter()
            .find(|alarm| alarm.figure == Figure::PromptSurprise)
            .unwrap();
        assert!(surprise.time_ms < shift_ms + DAY_MS / 3, "{surprise:?}");
        let page = findings.to_html(&Thresholds::default()).unwrap();
        assert!(page.contains("Alarms") && findings.to_text().contains("ALARM 2026-"));
    }
}

#[test]
fn a_model_that_never_saw_its_domain_is_told_by_its_file_and_a_kept_week_serves_later_days() {
    let mut chance = Chance(9);
    let model = Model::trained(&mut chance);
    let trained = model.baseline();
    let mut banking = String::new();
    model.day(0, BANKING, &mut chance, &mut banking);
    // One day alone: nothing to learn from, but the file knows.
    let (findings, learnt) = found(&banking, Some(&trained), None);
    assert!(learnt.is_none());
    assert!(
        findings
            .alarms
            .iter()
            .any(|alarm| alarm.figure == Figure::TrainingPsi),
        "{:?}",
        findings.alarms
    );
    let (findings, _) = found(&banking, None, None);
    assert_eq!(findings.alarms, []);
    assert!(
        findings
            .notes
            .iter()
            .any(|note| note.contains("Too few days")),
        "{:?}",
        findings.notes
    );

    let mut week = String::new();
    (0..14).for_each(|day| model.day(day, RUST, &mut chance, &mut week));
    let (_, learnt) = found(&week, None, None);
    let kept: Calibration = serde_json::from_str(&learnt.unwrap().to_json().unwrap()).unwrap();
    let mut later = String::new();
    model.day(20, RUST, &mut chance, &mut later);
    let (findings, _) = found(&later, None, Some(kept.clone()));
    assert_eq!(findings.alarms, []);
    assert!(findings.days[0].distances.contains_key(&Figure::PromptPsi));
    let (findings, _) = found(&banking, None, Some(kept));
    assert!(
        findings
            .alarms
            .iter()
            .any(|alarm| alarm.figure == Figure::PromptPsi),
        "{:?}",
        findings.alarms
    );
}
