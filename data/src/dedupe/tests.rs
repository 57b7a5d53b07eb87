//! Groups as a whole: rules, order, recall against all pairs.

use super::*;
use crate::{control::Quiet, document::Body, spool::SpoolWriter, words::mix};
use Same::{Exact, Unique};
use fledgling_core::chat::Message;
use proptest::prelude::*;
use std::{collections::BTreeSet, time::Instant};

/// A spool of texts at `file`, `file:1`, `file:2`, ...
pub(super) fn spool_of(folder: &Path, texts: &[&str]) -> Spool<Document> {
    let bodies: Vec<Body> = texts
        .iter()
        .map(|text| Body::Text((*text).into()))
        .collect();
    spool_of_bodies(folder, &bodies)
}

fn spool_of_bodies(folder: &Path, bodies: &[Body]) -> Spool<Document> {
    let mut writer = SpoolWriter::create(folder, "docs").unwrap();
    for (row, body) in bodies.iter().enumerate() {
        let place = Place {
            source: 0,
            file: "file".into(),
            row: row as u64,
        };
        writer
            .push(&Document {
                place,
                body: body.clone(),
            })
            .unwrap();
    }
    writer.finish().unwrap();
    Spool::open(folder, "docs").unwrap()
}

fn config(near: bool, threshold: f64, ngram: usize) -> DedupeConfig {
    DedupeConfig {
        near,
        threshold,
        ngram,
        ..DedupeConfig::default()
    }
}

fn grouped(texts: &[&str], config: &DedupeConfig) -> Groups {
    let folder = tempfile::tempdir().unwrap();
    let spool = spool_of(folder.path(), texts);
    let groups = groups(&spool, config, folder.path(), &Quiet).unwrap();
    assert_eq!(
        folder.path().read_dir().unwrap().count(),
        2,
        "scratch files are gone"
    );
    groups
}

#[test]
fn equal_but_for_case_spaces_and_punctuation_is_exact_and_the_longest_stays() {
    let texts = [
        "a cat sat",
        "A cat, sat!",
        "a dog sat",
        "a  cat sat",
        "!!",
        " !!",
        "?",
    ];
    let groups = grouped(&texts, &config(false, 0.8, 5));
    assert_eq!(groups.representative, [1, 1, 2, 1, 5, 5, 6]);
    assert_eq!(
        groups.kind,
        [Exact, Unique, Unique, Exact, Exact, Unique, Unique]
    );
    assert!(groups.is_kept(1) && !groups.is_kept(0));
}

#[test]
fn of_equal_texts_the_first_place_stays() {
    let groups = grouped(
        &["x", "same text", "same text", "same text"],
        &config(false, 0.8, 5),
    );
    assert_eq!(groups.representative, [0, 1, 1, 1]);
}

#[test]
fn shapes_do_not_mix() {
    let text = "one two three four five six seven";
    let bodies = [
        Body::Text(text.into()),
        Body::Chat(vec![Message {
            role: "user".into(),
            content: text.into(),
        }]),
        Body::Completion {
            prompt: String::new(),
            completion: text.into(),
        },
    ];
    let folder = tempfile::tempdir().unwrap();
    let spool = spool_of_bodies(folder.path(), &bodies);
    let groups = groups(&spool, &config(true, 0.5, 2), folder.path(), &Quiet).unwrap();
    assert_eq!(groups.count(Same::Unique), 3);
}

#[test]
fn near_ones_join_through_others_and_say_how() {
    let texts = [
        "a b c d e f g h i j",
        "a b c d e f g h i k",
        "A b c d e f g h i k",
        "a b c d e f g h i k y z",
        "q r s t",
    ];
    // Pairs of words: the first two share 8 of 10, the second and the fourth 9 of 11, the first and the fourth 8 of 12.
    let groups = grouped(&texts, &config(true, 0.7, 2));
    assert_eq!(groups.representative[..2], [3, 3]);
    assert_eq!(groups.representative[3..], [3, 4]);
    assert_eq!(groups.count(Same::Near), 2);
    assert_eq!(groups.count(Same::Exact), 1);
    let strict = grouped(&texts, &config(true, 0.95, 2));
    assert_eq!(strict.count(Same::Near), 0);
}

#[test]
fn settings_without_sense_are_refused() {
    let error = |threshold, ngram| {
        check(&config(true, threshold, ngram))
            .unwrap_err()
            .to_string()
    };
    assert!(error(1.5, 5).starts_with("dedupe.threshold is 1.5"));
    assert!(error(f64::NAN, 5).starts_with("dedupe.threshold is NaN"));
    assert!(error(0.8, 0).starts_with("dedupe.ngram is 0"));
}

/// Somebody who stops it after so many questions.
struct Impatient(std::sync::atomic::AtomicI32);

impl Control for Impatient {
    fn begin(&self, _: &str, _: crate::control::Unit, _: Option<u64>) {}
    fn advance(&self, _: u64) {}
    fn note(&self, _: &str) {}
    fn cancelled(&self) -> bool {
        self.0.fetch_sub(1, std::sync::atomic::Ordering::Relaxed) <= 0
    }
}

#[test]
fn it_stops_when_it_is_told_to_and_leaves_no_files() {
    let texts = rows(100, 3);
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let folder = tempfile::tempdir().unwrap();
    let spool = spool_of(folder.path(), &texts);
    for patience in [0, 1, 30, 66] {
        let control = Impatient(patience.into());
        let error = groups(&spool, &config(true, 0.6, 3), folder.path(), &control).unwrap_err();
        assert!(error.is::<crate::control::Cancelled>(), "{error}");
        assert_eq!(folder.path().read_dir().unwrap().count(), 2);
    }
}

/// A stream of numbers from a seed.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(1);
        mix(mix(self.0) ^ 0x5eed) as usize % n
    }
}

/// Short rows as people paraphrase them: templates with slots, and copies with some words changed, dropped or added.
fn rows(n: usize, seed: u64) -> Vec<String> {
    let mut numbers = Numbers(seed << 32);
    let word = |numbers: &mut Numbers| {
        // Frequent words are more frequent.
        let most = 1 << (1 + numbers.below(11));
        format!("w{}", numbers.below(most))
    };
    let mut rows: Vec<Vec<String>> = Vec::new();
    let templates: Vec<Vec<String>> = (0..12)
        .map(|_| {
            (0..12 + numbers.below(20))
                .map(|_| word(&mut numbers))
                .collect()
        })
        .collect();
    while rows.len() < n {
        let mut row = match numbers.below(10) {
            0..3 => (0..8 + numbers.below(40))
                .map(|_| word(&mut numbers))
                .collect(),
            3..6 => templates[numbers.below(12)].clone(),
            _ if rows.is_empty() => continue,
            _ => rows[numbers.below(rows.len())].clone(),
        };
        for _ in 0..numbers.below(5) {
            let at = numbers.below(row.len());
            match numbers.below(3) {
                0 if row.len() > 6 => drop(row.remove(at)),
                1 => row.insert(at, word(&mut numbers)),
                _ => row[at] = word(&mut numbers),
            }
        }
        rows.push(row);
    }
    rows.into_iter().map(|row| row.join(" ")).collect()
}

/// Number of components by all pairs.
fn kept_by_all_pairs(texts: &[String], config: &DedupeConfig) -> usize {
    let set = |text: &String| {
        let mut set = sets::shingles(&Body::Text(text.clone()), config.ngram);
        set.sort_unstable();
        set.dedup();
        set
    };
    let sets: Vec<Vec<u64>> = texts.iter().map(set).collect();
    let mut union = Union::new(texts.len());
    for i in 0..sets.len() {
        for j in 0..i {
            if sets::are_similar(&sets[i], &sets[j], config.threshold) {
                union.join(i as u32, j as u32);
            }
        }
    }
    union.flat().iter().collect::<BTreeSet<_>>().len()
}

#[test]
fn kept_counts_are_those_of_all_pairs_within_three_percent() {
    for (threshold, ngram) in [(0.8, 5), (0.8, 2), (0.6, 5), (0.6, 3), (0.6, 1), (0.4, 3)] {
        let texts = rows(3000, 1);
        let config = config(true, threshold, ngram);
        let expect = kept_by_all_pairs(&texts, &config);
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let start = Instant::now();
        let kept = grouped(&texts, &config).count(Same::Unique);
        println!(
            "{threshold} {ngram}: kept {kept} of 3000, {expect} by all pairs, {:?}",
            start.elapsed()
        );
        assert!(kept >= expect, "a pair was joined that is not similar");
        assert!(
            (kept - expect) as f64 <= 0.03 * expect as f64,
            "{kept} for {expect}"
        );
    }
}

/// One template of which each row has about a quarter of the words changed: nearly all pairs are just below the threshold
/// and are proposed, and a bucket is larger than a block.
#[test]
fn a_heavy_set_larger_than_a_block_is_that_of_all_pairs() {
    let mut numbers = Numbers(77);
    let mut row = || -> String {
        let mut words: Vec<String> = (0..24).map(|i| format!("t{i}")).collect();
        for _ in 0..7 {
            words[numbers.below(24)] = format!("x{}", numbers.below(100_000));
        }
        words.join(" ")
    };
    let texts: Vec<String> = (0..4500).map(|_| row()).collect();
    let config = config(true, 0.6, 1);
    let expect = kept_by_all_pairs(&texts, &config);
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let kept = grouped(&texts, &config).count(Same::Unique);
    assert!(kept >= expect, "a pair was joined that is not similar");
    assert!(
        (kept - expect) as f64 <= 0.03 * expect as f64,
        "{kept} for {expect}"
    );
}

/// The texts that stay, sorted.
fn kept_texts(texts: &[String], config: &DedupeConfig) -> Vec<String> {
    let all: Vec<&str> = texts.iter().map(String::as_str).collect();
    let groups = grouped(&all, config);
    let mut kept: Vec<String> = (0..texts.len())
        .filter(|doc| groups.is_kept(*doc))
        .map(|doc| texts[doc].clone())
        .collect();
    kept.sort_unstable();
    kept
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn the_texts_that_stay_do_not_depend_on_order_or_threads(
        seed in 0_u64..1000,
        shift in 1_usize..299,
        exact: bool,
    ) {
        let mut texts = rows(300, seed);
        let config = DedupeConfig { exact, ..config(true, 0.7, 3) };
        let expect = kept_texts(&texts, &config);
        texts.sort_by_key(|text| mix(xxhash_rust::xxh3::xxh3_64(text.as_bytes()) ^ seed));
        texts.rotate_left(shift);
        let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        prop_assert_eq!(one.install(|| kept_texts(&texts, &config)), expect);
    }
}
