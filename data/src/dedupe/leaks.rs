//! Training documents that share a run of words with what is held out.
//!
//! Brown et al., "Language Models are Few-Shot Learners" (2020), appendix C, takes runs of 13 words. The hashes of the runs
//! of all held-out documents are sorted in memory (8 bytes each, [`MOST_GRAMS`] at once; more are done in several passes
//! over ranges of hashes), with a bit table before them that turns most other runs away. A document of fewer words than a
//! run is one run by itself, which only a document of the same words has.

use super::{CHUNK_BYTES, CHUNK_DOCS, by_file_and_row};
use crate::{
    control::{Control, Unit},
    document::{Document, Place},
    spool::{Spool, SpoolWriter},
    words::{each_gram, whole_gram, word_hashes},
};
use anyhow::Result;
use rayon::prelude::*;
use std::{
    collections::HashMap,
    path::Path,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

/// A training document with a run of words from a held-out one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leak {
    /// The training document.
    pub doc: u32,
    /// Where the first held-out document, by file and row, with that run stands.
    pub with: String,
}

/// Runs whose hashes are in memory at once: 800 MB, and 256 MB of bits.
pub const MOST_GRAMS: usize = 100_000_000;

/// Name in `scratch` of the documents from outside.
const OUTSIDE: &str = "outside";

/// Which documents of a spool are looked at.
type Filter<'a> = &'a (dyn Fn(usize) -> bool + Sync);

/// How leaks are found.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Words in a run; 0 finds nothing.
    pub n: usize,
    /// Held-out runs in memory at once; changes the time, never the result.
    pub n_grams: usize,
}

/// Finds the training documents (`kept`, not held out) that share a run with a held-out one (`kept`, held out) or with one
/// from `outside`, in order.
///
/// # Errors
/// When a document from outside cannot be read, the disk fails or is full, or somebody stopped it.
pub fn leaks(
    spool: &Spool<Document>,
    is_held_out: Filter<'_>,
    kept: Filter<'_>,
    outside: impl Iterator<Item = Result<Document>>,
    limits: Limits,
    scratch: &Path,
    control: &dyn Control,
) -> Result<Vec<Leak>> {
    if limits.n == 0 {
        return Ok(Vec::new());
    }
    let outside = set_down(outside, scratch, control)?;
    let held_out = |doc: usize| kept(doc) && is_held_out(doc);
    let training = |doc: usize| kept(doc) && !is_held_out(doc);
    let search = Search {
        held_out: [(spool, &held_out), (&outside, &|_| true)],
        limits,
        control,
    };
    let n_grams = search.count()?;
    let n_passes = n_grams.div_ceil(limits.n_grams.max(1) as u64);
    let total = (spool.len() as u64).checked_mul(n_passes);
    control.begin("leaks", Unit::Documents, total);
    let mut found: Vec<Option<u64>> = vec![None; if n_passes == 0 { 0 } else { spool.len() }];
    for pass in 0..n_passes {
        let grams = search.gather(pass, n_passes, n_grams)?;
        search.find(spool, &training, &grams, &mut found)?;
    }
    let leaks = search.name(&found);
    drop(outside);
    for end in ["docs", "index"] {
        std::fs::remove_file(scratch.join(format!("{OUTSIDE}.{end}"))).ok();
    }
    leaks
}

/// Spools what can be read only once.
fn set_down(
    outside: impl Iterator<Item = Result<Document>>,
    scratch: &Path,
    control: &dyn Control,
) -> Result<Spool<Document>> {
    let mut writer = SpoolWriter::create(scratch, OUTSIDE)?;
    for document in outside {
        control.check()?;
        writer.push(&document?)?;
    }
    writer.finish()?;
    Spool::open(scratch, OUTSIDE)
}

struct Search<'a> {
    held_out: [(&'a Spool<Document>, Filter<'a>); 2],
    limits: Limits,
    control: &'a dyn Control,
}

impl Search<'_> {
    /// Calls `visit` with each run's hash: those of `n` words, or the one of a shorter document.
    fn each_gram(&self, document: &Document, visit: impl FnMut(u64)) {
        let words = word_hashes(&document.body);
        if !words.is_empty() && words.len() < self.limits.n {
            let mut visit = visit;
            visit(whole_gram(&words));
        } else {
            each_gram(&words, self.limits.n, visit);
        }
    }

    /// Calls `visit` with pieces of the held-out documents, from several threads.
    fn each_held_out(&self, visit: impl Fn(&[Document]) + Sync) -> Result<()> {
        for (spool, filter) in self.held_out {
            let chunks = spool.chunks(CHUNK_BYTES, CHUNK_DOCS)?;
            chunks.into_par_iter().try_for_each(|(start, end)| {
                self.control.check()?;
                visit(&read_some(spool, (start, end), filter)?.1);
                anyhow::Ok(())
            })?;
        }
        Ok(())
    }

    fn count(&self) -> Result<u64> {
        let n_grams = AtomicU64::new(0);
        self.each_held_out(|docs| {
            let mut n = 0;
            for doc in docs {
                self.each_gram(doc, |_| n += 1);
            }
            n_grams.fetch_add(n, Ordering::Relaxed);
        })?;
        Ok(n_grams.into_inner())
    }

    /// The held-out runs of a pass: those with a hash in its range.
    fn gather(&self, pass: u64, n_passes: u64, n_grams: u64) -> Result<Grams> {
        let pass_of = |hash: u64| ((u128::from(hash) * u128::from(n_passes)) >> 64) as u64;
        // Made at its size: growing would take twice the memory for a moment.
        let n_each = n_grams.div_ceil(n_passes) as usize;
        let all = Mutex::new(Vec::with_capacity(n_each + n_each / 64));
        self.each_held_out(|docs| {
            let mut some = Vec::new();
            for doc in docs {
                self.each_gram(doc, |hash| {
                    if pass_of(hash) == pass {
                        some.push(hash);
                    }
                });
            }
            all.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .append(&mut some);
        })?;
        let all = all.into_inner();
        Ok(Grams::new(all.unwrap_or_else(PoisonError::into_inner)))
    }

    /// Notes for each training document the smallest hash that it shares. Passes come in the order of hashes.
    fn find(
        &self,
        spool: &Spool<Document>,
        training: Filter<'_>,
        grams: &Grams,
        found: &mut [Option<u64>],
    ) -> Result<()> {
        spool
            .pieces(found, CHUNK_BYTES, CHUNK_DOCS)?
            .into_par_iter()
            .try_for_each(|((start, end), found)| {
                self.control.check()?;
                let is_open = |doc: usize| training(doc) && found[doc - start].is_none();
                let (numbers, docs) = read_some(spool, (start, end), &is_open)?;
                for (number, doc) in numbers.into_iter().zip(&docs) {
                    let found = &mut found[number - start];
                    self.each_gram(doc, |hash| {
                        if found.is_none_or(|least| hash < least) && grams.holds(hash) {
                            *found = Some(hash);
                        }
                    });
                }
                self.control.advance((end - start) as u64);
                anyhow::Ok(())
            })
    }

    /// Looks up which held-out document each shared run is from.
    fn name(&self, found: &[Option<u64>]) -> Result<Vec<Leak>> {
        let mut shared: Vec<u64> = found.iter().flatten().copied().collect();
        if shared.is_empty() {
            return Ok(Vec::new());
        }
        shared.sort_unstable();
        shared.dedup();
        let firsts = Mutex::new(HashMap::<u64, Place>::new());
        self.each_held_out(|docs| {
            for doc in docs {
                self.each_gram(doc, |hash| {
                    if shared.binary_search(&hash).is_err() {
                        return;
                    }
                    let mut firsts = firsts.lock().unwrap_or_else(PoisonError::into_inner);
                    let first = firsts.entry(hash).or_insert_with(|| doc.place.clone());
                    if by_file_and_row(&doc.place, first).is_lt() {
                        *first = doc.place.clone();
                    }
                });
            }
        })?;
        let firsts = firsts.into_inner().unwrap_or_else(PoisonError::into_inner);
        let leak = |(doc, hash): (usize, &Option<u64>)| {
            let with = firsts.get(&(*hash)?)?.to_string();
            let doc = doc as u32;
            Some(Leak { doc, with })
        };
        Ok(found.iter().enumerate().filter_map(leak).collect())
    }
}

/// The documents of a range that pass the filter, with their numbers. Nothing is read where none does.
fn read_some(
    spool: &Spool<Document>,
    (start, end): (usize, usize),
    filter: Filter<'_>,
) -> Result<(Vec<usize>, Vec<Document>)> {
    let numbers: Vec<usize> = (start..end).filter(|doc| filter(*doc)).collect();
    // A few documents of many, as held-out ones are, by themselves.
    if numbers.len() * 8 < end - start {
        let docs = numbers.iter().map(|doc| spool.read(*doc));
        let docs = docs.collect::<Result<_>>()?;
        return Ok((numbers, docs));
    }
    let mut docs = spool.read_range(start, end)?;
    let mut wanted = numbers.iter().copied().peekable();
    let mut doc = start;
    docs.retain(|_| {
        doc += 1;
        wanted.next_if_eq(&(doc - 1)).is_some()
    });
    Ok((numbers, docs))
}

/// A sorted set of hashes, with a table of bits by their lowest bits before it.
#[derive(Debug)]
struct Grams {
    hashes: Vec<u64>,
    bits: Vec<u64>,
}

impl Grams {
    fn new(mut hashes: Vec<u64>) -> Self {
        hashes.par_sort_unstable();
        hashes.dedup();
        // 16 to 32 bits a hash, at most 2^31 bits.
        let n_words = (hashes.len() / 4).next_power_of_two().clamp(1, 1 << 25);
        let mut bits = vec![0; n_words];
        for hash in &hashes {
            bits[(hash >> 6) as usize & (n_words - 1)] |= 1_u64 << (hash & 63);
        }
        Self { hashes, bits }
    }

    fn holds(&self, hash: u64) -> bool {
        let word = self.bits[(hash >> 6) as usize & (self.bits.len() - 1)];
        word >> (hash & 63) & 1 == 1 && self.hashes.binary_search(&hash).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{control::Quiet, dedupe::tests::spool_of};

    /// Documents 0.. of the spool with those from `held_out` on held out, against `outside`: (leaking document, with).
    fn found(texts: &[&str], held_out: usize, outside: &[&str], n: usize) -> Vec<(u32, String)> {
        let folder = tempfile::tempdir().unwrap();
        let spool = spool_of(folder.path(), texts);
        let by = |n_grams| {
            let outside = outside.iter().enumerate().map(|(i, text)| {
                Ok(Document {
                    place: Place {
                        source: 9,
                        file: "test set".into(),
                        row: i as u64 + 1,
                    },
                    body: crate::document::Body::Text((*text).into()),
                })
            });
            let limits = Limits { n, n_grams };
            let is_held_out = |doc| doc >= held_out;
            let kept = |doc| texts[doc] != "dropped";
            let leaks = leaks(
                &spool,
                &is_held_out,
                &kept,
                outside,
                limits,
                folder.path(),
                &Quiet,
            );
            let leaks = leaks.unwrap();
            leaks
                .into_iter()
                .map(|leak| (leak.doc, leak.with))
                .collect::<Vec<_>>()
        };
        let once = by(MOST_GRAMS);
        assert_eq!(once, by(2), "in several passes");
        once
    }

    #[test]
    fn a_shared_run_leaks_whatever_its_case_and_punctuation() {
        let texts = [
            "before it: One two, THREE four! And after",
            "one two three is no run of four",
            "four three two one",
            "yes: one two three four",
        ];
        assert_eq!(found(&texts, 3, &[], 4), [(0, "file:3".to_owned())]);
        assert_eq!(found(&texts, 3, &[], 0), [], "off");
    }

    #[test]
    fn short_documents_leak_as_a_whole_only() {
        let texts = [
            "Two words.",
            "two words more and more",
            "TWO WORDS",
            "two",
            "",
            "",
        ];
        assert_eq!(found(&texts, 2, &[], 5), [(0, "file:2".to_owned())]);
    }

    #[test]
    fn documents_from_outside_count_and_the_first_place_is_named() {
        let texts = ["a b c d e", "x y z w", "a b c", "a b c d"];
        let outside = ["q b c d", "b c d q", "x y z"];
        let leaks = found(&texts, 2, &outside, 3);
        assert_eq!(leaks.len(), 2);
        // The first text shares three runs; the place is the first of one of them, always the same one.
        assert!(
            ["file:2", "file:3"].contains(&leaks[0].1.as_str()),
            "{leaks:?}"
        );
        assert_eq!(leaks[1], (1, "test set:3".to_owned()));
        assert_eq!(
            found(&["b c d"], 1, &outside, 3),
            [(0, "test set:1".to_owned())]
        );
    }

    #[test]
    fn an_error_from_outside_ends_it() {
        let folder = tempfile::tempdir().unwrap();
        let spool = spool_of(folder.path(), &["a"]);
        let outside = std::iter::once(Err(anyhow::anyhow!("bad line")));
        let limits = Limits { n: 3, n_grams: 9 };
        let all = |_| true;
        let error = leaks(&spool, &all, &all, outside, limits, folder.path(), &Quiet);
        assert_eq!(error.unwrap_err().to_string(), "bad line");
    }
}
