//! One bucket of a band: documents that one band makes candidates of each other.
//!
//! All pairs of a bucket that are not joined yet are verified, so long as it fits a block; a larger bucket is cut into
//! blocks. Documents stand in an order that follows from their text and the band: other bands cut the same documents in
//! other ways, and the order of the input plays no part. From a block, one document of each of the largest groups goes on
//! to the next, so that a heavy group (a licence, a template) comes together in one pass.
//!
//! The work of a document in a band is so bounded by a block, whatever the bucket's size. The worst case is a template of
//! which nearly all pairs are just below the threshold: 100,000 rows of 24 words take about two minutes on two cores. In all that
//! was compared with all pairs (10,000 rows of a template, 5,600 medical questions with answers, 1,100 instructions) the kept counts were the
//! same.

use super::{
    Key,
    sets::{Set, Sets, are_similar},
};
use crate::words::mix;
use anyhow::Result;
use rayon::prelude::*;
use std::{
    collections::HashMap,
    sync::atomic::{AtomicU64, Ordering},
};

/// Documents in a block at most.
const BLOCK_DOCS: usize = 4096;
/// Documents times hashes in a block at most: bounds its comparisons to a few tenths of a second.
const BLOCK_WORK: usize = 1 << 28;
/// Hashes in a block at most: 32 MB.
const BLOCK_HASHES: usize = 1 << 22;
/// Documents that are read at once.
const SLAB: usize = 32;
/// First documents of groups that each document is compared with before it is with all.
const HEADS: usize = 32;
/// Documents that go on to the next block.
const CARRIED: usize = 64;
/// A bucket is small where asking [`Failed`] costs less than reading its documents.
const SMALL: usize = 64;

/// What the buckets of a band share.
#[derive(Debug)]
pub(super) struct Buckets<'a> {
    pub(super) band: u64,
    pub(super) keys: &'a [Key],
    /// The group of each document before the band.
    pub(super) roots: &'a [u32],
    pub(super) sets: &'a Sets<'a>,
    pub(super) failed: &'a Failed,
    pub(super) threshold: f64,
}

#[derive(Debug, Clone)]
struct Item {
    doc: u32,
    group: u32,
    set: Set,
}

impl Buckets<'_> {
    /// The pairs to be joined. `bucket` holds two documents or more, not all of one group.
    pub(super) fn pairs(&self, bucket: &[(u64, u32)]) -> Result<Vec<(u32, u32)>> {
        let mut docs: Vec<u32> = bucket.iter().map(|(_, doc)| *doc).collect();
        docs.sort_unstable_by_key(|doc| {
            let hash = self.keys[*doc as usize].hash;
            (mix(hash[0] ^ mix(self.band)), hash, *doc)
        });
        let is_small = docs.len() <= SMALL;
        if is_small && self.are_all_known(&docs) {
            return Ok(Vec::new());
        }
        let mut pairs = Vec::new();
        let mut rest = docs.as_slice();
        let mut block = Vec::new();
        while !rest.is_empty() {
            rest = self.fill(&mut block, rest)?;
            self.join(&mut block, is_small, &mut pairs);
            carry(&mut block);
        }
        Ok(pairs)
    }

    /// Whether each pair is of one group, or was verified in vain.
    fn are_all_known(&self, docs: &[u32]) -> bool {
        let root = |doc: u32| self.roots[doc as usize];
        docs.iter().enumerate().all(|(i, a)| {
            docs[..i]
                .iter()
                .all(|b| root(*a) == root(*b) || self.failed.holds(*a, *b))
        })
    }

    /// Reads documents into the block until it is full; returns those left.
    fn fill<'d>(&self, block: &mut Vec<Item>, mut docs: &'d [u32]) -> Result<&'d [u32]> {
        let mut n_hashes: usize = block.iter().map(|item| item.set.len()).sum();
        loop {
            let (slab, rest) = docs.split_at(SLAB.min(docs.len()));
            let item = |doc: &u32| {
                anyhow::Ok(Item {
                    doc: *doc,
                    group: self.roots[*doc as usize],
                    set: self.sets.get(*doc)?,
                })
            };
            let items: Vec<Item> = slab.par_iter().map(item).collect::<Result<_>>()?;
            n_hashes += items.iter().map(|item| item.set.len()).sum::<usize>();
            block.extend(items);
            docs = rest;
            let is_full = block.len() >= BLOCK_DOCS
                || n_hashes >= BLOCK_HASHES
                || n_hashes * block.len() >= BLOCK_WORK;
            if docs.is_empty() || is_full {
                return Ok(docs);
            }
        }
    }

    /// Compares all pairs of the block that are not of one group.
    fn join(&self, block: &mut [Item], is_small: bool, pairs: &mut Vec<(u32, u32)>) {
        // Each with the first of the groups: after this most documents of a heavy group are joined, and most pairs skipped.
        let mut heads: Vec<usize> = Vec::new();
        for i in 0..block.len() {
            for head in &heads {
                self.join_pair(block, (*head, i), is_small, pairs);
            }
            let is_new = heads
                .iter()
                .all(|head| block[*head].group != block[i].group);
            if is_new && heads.len() < HEADS {
                heads.push(i);
            }
        }
        for i in 1..block.len() {
            for j in 0..i {
                self.join_pair(block, (j, i), is_small, pairs);
            }
        }
    }

    fn join_pair(
        &self,
        block: &mut [Item],
        (i, j): (usize, usize),
        is_small: bool,
        pairs: &mut Vec<(u32, u32)>,
    ) {
        let (a, b) = (&block[i], &block[j]);
        if a.group == b.group {
            return;
        }
        if is_small && self.failed.holds(a.doc, b.doc) {
            return;
        }
        if are_similar(&a.set, &b.set, self.threshold) {
            pairs.push((a.doc, b.doc));
            let (stays, goes) = (a.group, b.group);
            for item in block.iter_mut().filter(|item| item.group == goes) {
                item.group = stays;
            }
        } else if is_small {
            self.failed.insert(a.doc, b.doc);
        }
    }
}

/// Leaves the first document of each of the largest groups.
fn carry(block: &mut Vec<Item>) {
    let mut sizes: HashMap<u32, (usize, usize)> = HashMap::new();
    for (i, item) in block.iter().enumerate() {
        sizes.entry(item.group).or_insert((0, i)).0 += 1;
    }
    let mut firsts: Vec<(usize, usize)> = sizes.into_values().collect();
    firsts.sort_unstable_by_key(|(size, first)| (std::cmp::Reverse(*size), *first));
    firsts.truncate(CARRIED);
    *block = firsts.iter().map(|(_, i)| block[*i].clone()).collect();
}

/// Pairs that were verified in vain, as far as they fit: a later one takes the place of an earlier one. Forgetting costs
/// time only.
#[derive(Debug)]
pub(super) struct Failed(Vec<AtomicU64>);

impl Failed {
    pub(super) fn new() -> Self {
        Self((0..1 << 20).map(|_| AtomicU64::new(0)).collect())
    }

    fn slot(&self, a: u32, b: u32) -> (&AtomicU64, u64) {
        // Never 0: the two differ.
        let pair = u64::from(a.max(b)) << 32 | u64::from(a.min(b));
        (&self.0[mix(pair) as usize % self.0.len()], pair)
    }

    fn holds(&self, a: u32, b: u32) -> bool {
        let (slot, pair) = self.slot(a, b);
        slot.load(Ordering::Relaxed) == pair
    }

    fn insert(&self, a: u32, b: u32) {
        let (slot, pair) = self.slot(a, b);
        slot.store(pair, Ordering::Relaxed);
    }
}
