//! The sets of word runs (shingles) of documents, made again from the spool when they are needed and kept for a while.

use crate::{
    document::{Body, Document},
    spool::Spool,
    words::{each_gram, mix, shape, whole_gram, word_hashes},
};
use anyhow::Result;
use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
};

/// The hash of each run of `n` words of a document; of all its words where they are fewer; none where there are none.
/// Shapes do not mix: a conversation is never near a text.
pub(super) fn shingles(body: &Body, n: usize) -> Vec<u64> {
    let words = word_hashes(body);
    let salt = mix(shape(body));
    let mut shingles = Vec::with_capacity(words.len());
    each_gram(&words, n, |hash| shingles.push(hash ^ salt));
    if shingles.is_empty() && !words.is_empty() {
        shingles.push(whole_gram(&words) ^ salt);
    }
    shingles
}

/// A sorted set.
pub(super) type Set = Arc<[u64]>;

/// Hashes that are kept in memory at most, all shards together: 256 MB.
const MOST_HASHES: usize = 32 << 20;
const SHARDS: usize = 32;

/// Sets of documents by number. What came first goes first when room is needed.
#[derive(Debug)]
pub(super) struct Sets<'a> {
    spool: &'a Spool<Document>,
    n: usize,
    shards: Vec<Mutex<Shard>>,
}

#[derive(Debug, Default)]
struct Shard {
    sets: HashMap<u32, Set>,
    order: VecDeque<u32>,
    n_hashes: usize,
}

impl<'a> Sets<'a> {
    /// Of runs of `n` words.
    pub(super) fn new(spool: &'a Spool<Document>, n: usize) -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        Self { spool, n, shards }
    }

    /// The set of a document.
    pub(super) fn get(&self, doc: u32) -> Result<Set> {
        let shard = &self.shards[doc as usize % SHARDS];
        let lock = || shard.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(set) = lock().sets.get(&doc) {
            return Ok(set.clone());
        }
        let mut hashes = shingles(&self.spool.read(doc as usize)?.body, self.n);
        hashes.sort_unstable();
        hashes.dedup();
        let set = Set::from(hashes);
        lock().keep(doc, &set);
        Ok(set)
    }
}

impl Shard {
    fn keep(&mut self, doc: u32, set: &Set) {
        if set.len() > MOST_HASHES / SHARDS || self.sets.contains_key(&doc) {
            return;
        }
        self.n_hashes += set.len();
        self.order.push_back(doc);
        self.sets.insert(doc, set.clone());
        while self.n_hashes > MOST_HASHES / SHARDS {
            let Some(oldest) = self.order.pop_front() else {
                return;
            };
            self.n_hashes -= self.sets.remove(&oldest).map_or(0, |set| set.len());
        }
    }
}

/// Whether the Jaccard similarity of two sorted sets is `threshold` or more. Ends as soon as it cannot be any more.
pub(super) fn are_similar(a: &[u64], b: &[u64], threshold: f64) -> bool {
    let n = a.len() + b.len();
    // J = shared / (n - shared) >= threshold. The rounding of the bound is left to the exact comparison below.
    let needed = (threshold * n as f64 / (1.0 + threshold) - 1e-6)
        .ceil()
        .max(0.0) as usize;
    let (mut i, mut j, mut shared) = (0, 0, 0);
    while shared + (a.len() - i).min(b.len() - j) >= needed && i < a.len() && j < b.len() {
        let (x, y) = (a[i], b[j]);
        i += usize::from(x <= y);
        j += usize::from(y <= x);
        shared += usize::from(x == y);
    }
    n > 0 && shared as f64 >= threshold * (n - shared) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_short_document_is_one_shingle_and_an_empty_one_none() {
        let count = |text: &str| shingles(&Body::Text(text.into()), 3).len();
        assert_eq!(
            ["", "a", "a b", "a b c", "a b c d"].map(count),
            [0, 1, 1, 1, 2]
        );
    }

    proptest! {
        #[test]
        fn the_early_end_changes_nothing(
            a in prop::collection::btree_set(0_u64..60, 0..40),
            b in prop::collection::btree_set(0_u64..60, 0..40),
            percent in 1_u32..=100,
        ) {
            let shared = a.intersection(&b).count();
            let union = a.union(&b).count();
            let expect = union > 0 && shared as f64 >= f64::from(percent) / 100.0 * union as f64;
            let list = |set: &BTreeSet<u64>| set.iter().copied().collect::<Vec<_>>();
            prop_assert_eq!(are_similar(&list(&a), &list(&b), f64::from(percent) / 100.0), expect);
        }
    }
}
