//! Which documents say the same.
//!
//! [`groups`] finds the documents that are equal but for case, spaces and punctuation ([`exact`]) and, if asked, those
//! joined by a Jaccard similarity of word runs ([`near`]), and chooses for each group the one that stays: the longest, of
//! equally long ones that with the smallest hash of its text, of equal texts that which stands first by file and row. So
//! the texts that stay depend neither on the order of documents nor on threads.
//!
//! # Memory
//! About 55 bytes a document (a key of 24, three numbers of 4, the kind; at its peak a band's records of 16), so 550 MB for
//! ten million, and 256 MB of word runs at most for verification. On disk, in `scratch`: 20 bytes a document for exact
//! duplicates, then 12 bytes a document and band (30 bands at a threshold of 0.8), which go when they are done with.

pub mod exact;
pub mod leaks;
pub mod near;
pub(crate) mod partitions;

mod bucket;
mod minhash;
mod sets;
mod union;

use crate::{
    config::DedupeConfig,
    control::Control,
    document::{Document, Place},
    spool::Spool,
};
use anyhow::{Result, ensure};
use std::{cmp::Ordering, collections::HashMap, path::Path};
use union::Union;

/// What each document is to the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Groups {
    /// For each document the number of the one that stands for it: its own when it is kept.
    pub representative: Vec<u32>,
    /// How each was found to say the same as its representative.
    pub kind: Vec<Same>,
}

impl Groups {
    /// Whether a document stays.
    pub fn is_kept(&self, doc: usize) -> bool {
        self.kind[doc] == Same::Unique
    }

    /// Number of documents of this kind.
    pub fn count(&self, kind: Same) -> usize {
        self.kind.iter().filter(|one| **one == kind).count()
    }
}

/// How a document is the same as another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Same {
    /// It is not, or it is the one that stays.
    Unique,
    /// Equal but for case, spaces and punctuation.
    Exact,
    /// Joined by similarity.
    Near,
}

/// What decides which document of a group stays, and in which order candidates are looked at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Key {
    hash: [u64; 2],
    len_bytes: u32,
}

impl Key {
    /// `Less` is the one that stays.
    fn order(&self, other: &Self) -> Ordering {
        (other.len_bytes.cmp(&self.len_bytes)).then(self.hash.cmp(&other.hash))
    }
}

/// Bytes of documents that a thread reads at once, and the most documents.
const CHUNK_BYTES: u64 = 1 << 20;
const CHUNK_DOCS: usize = 1024;

/// Finds the groups. Files in `scratch` are gone when it returns.
///
/// # Errors
/// When the settings make no sense, the disk fails or is full, or somebody stopped it.
pub fn groups(
    spool: &Spool<Document>,
    config: &DedupeConfig,
    scratch: &Path,
    control: &dyn Control,
) -> Result<Groups> {
    check(config)?;
    ensure!(
        u32::try_from(spool.len()).is_ok(),
        "{} documents are more than can be compared (4 thousand million)",
        spool.len()
    );
    let mut union = Union::new(spool.len());
    if !config.exact && !config.near {
        return Ok(Groups {
            representative: union.flat().to_vec(),
            kind: vec![Same::Unique; spool.len()],
        });
    }
    let keys = exact::join(spool, config.exact, scratch, control, &mut union)?;
    let exact = stand_ins(spool, &keys, union.flat(), control)?;
    if !config.near {
        return Ok(Groups {
            kind: kinds(&exact, &exact),
            representative: exact,
        });
    }
    near::join(spool, config, &keys, &exact, scratch, control, &mut union)?;
    let representative = stand_ins(spool, &keys, union.flat(), control)?;
    Ok(Groups {
        kind: kinds(&exact, &representative),
        representative,
    })
}

/// Checks the settings.
///
/// # Errors
/// With the setting's name and what it may be.
pub fn check(config: &DedupeConfig) -> Result<()> {
    ensure!(
        config.threshold > 0.0 && config.threshold <= 1.0,
        "dedupe.threshold is {}; a similarity is above 0 and at most 1",
        config.threshold
    );
    ensure!(
        config.ngram > 0,
        "dedupe.ngram is 0; a run has one word or more (5 is usual)"
    );
    Ok(())
}

fn kinds(exact: &[u32], representative: &[u32]) -> Vec<Same> {
    let kind = |(doc, (exact, last)): (usize, (&u32, &u32))| match doc as u32 {
        doc if doc == *last => Same::Unique,
        doc if doc == *exact => Same::Near,
        _ => Same::Exact,
    };
    let pairs = exact.iter().zip(representative);
    pairs.enumerate().map(kind).collect()
}

/// For each document the one that stands for its group; `roots` names a group by one of its documents.
fn stand_ins(
    spool: &Spool<Document>,
    keys: &[Key],
    roots: &[u32],
    control: &dyn Control,
) -> Result<Vec<u32>> {
    let mut best = roots.to_vec();
    for (doc, root) in roots.iter().enumerate() {
        let best = &mut best[*root as usize];
        if keys[doc].order(&keys[*best as usize]).is_lt() {
            *best = doc as u32;
        }
    }
    // Of equal texts the place decides, which only the documents themselves know.
    let mut places = HashMap::new();
    for (doc, root) in roots.iter().enumerate() {
        let best = &mut best[*root as usize];
        if *best == doc as u32 || keys[doc] != keys[*best as usize] {
            continue;
        }
        if doc % 1024 == 0 {
            control.check()?;
        }
        if places.len() >= 1 << 16 {
            places.clear();
        }
        if let std::collections::hash_map::Entry::Vacant(entry) = places.entry(*root) {
            entry.insert(spool.read(*best as usize)?.place);
        }
        let place = spool.read(doc)?.place;
        if by_file_and_row(&place, &places[root]).is_lt() {
            *best = doc as u32;
            places.insert(*root, place);
        }
    }
    Ok(roots.iter().map(|root| best[*root as usize]).collect())
}

fn by_file_and_row(a: &Place, b: &Place) -> Ordering {
    (&a.file, a.row, a.source).cmp(&(&b.file, b.row, b.source))
}

#[cfg(test)]
mod tests;
