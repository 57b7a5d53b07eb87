//! Documents joined by similarity: `MinHash` and locality-sensitive hashing propose pairs, the exact Jaccard similarity of
//! their sets of word runs decides.
//!
//! Lee et al., "Deduplicating Training Data Makes Language Models Better" (2022), section 4.2: `MinHash` over runs of 5
//! words, then verified pairs, then connected components. Here a pair is verified only while its documents are in two
//! groups. Each band's records (hash, document) go to a file of their own and are sorted by themselves; buckets of a band
//! see the groups as they were before the band, so that threads do not change the result.

use super::{
    CHUNK_BYTES, CHUNK_DOCS, Key,
    bucket::{Buckets, Failed},
    minhash::MinHash,
    partitions::Partitions,
    sets::{Sets, shingles},
    union::Union,
};
use crate::{
    config::DedupeConfig,
    control::{Control, Unit},
    document::Document,
    spool::Spool,
};
use anyhow::Result;
use rayon::prelude::*;
use std::path::Path;

/// Joins similar documents among those that stand for themselves in `exact`.
pub(super) fn join(
    spool: &Spool<Document>,
    config: &DedupeConfig,
    keys: &[Key],
    exact: &[u32],
    scratch: &Path,
    control: &dyn Control,
    union: &mut Union,
) -> Result<()> {
    let minhash = MinHash::new(config.threshold);
    let bands = Partitions::<(u64, u32)>::create(scratch, "band", minhash.bands)?;
    let n_docs = Some(spool.len() as u64);
    control.begin("near duplicates: signatures", Unit::Documents, n_docs);
    spool
        .chunks(CHUNK_BYTES, CHUNK_DOCS)?
        .into_par_iter()
        .try_for_each(|(start, end)| {
            control.check()?;
            scatter(spool, (start, end), config.ngram, exact, &minhash, &bands)?;
            control.advance((end - start) as u64);
            anyhow::Ok(())
        })?;
    let n_steps = Some((spool.len() * minhash.bands) as u64);
    control.begin("near duplicates: bands", Unit::Documents, n_steps);
    let sets = Sets::new(spool, config.ngram);
    let failed = Failed::new();
    for band in 0..minhash.bands {
        let mut records = bands.read(band)?;
        records.par_sort_unstable();
        let buckets = Buckets {
            band: band as u64,
            keys,
            roots: union.flat(),
            sets: &sets,
            failed: &failed,
            threshold: config.threshold,
        };
        let pairs = verify(&buckets, &records, control)?;
        for (a, b) in pairs {
            union.join(a, b);
        }
        control.advance(spool.len() as u64);
    }
    Ok(())
}

/// Writes the band records of a chunk of documents.
fn scatter(
    spool: &Spool<Document>,
    (start, end): (usize, usize),
    ngram: usize,
    exact: &[u32],
    minhash: &MinHash,
    bands: &Partitions<(u64, u32)>,
) -> Result<()> {
    let docs = spool.read_range(start, end)?;
    let mut records = Vec::with_capacity(docs.len() * minhash.bands);
    for (doc, idx) in docs.iter().zip(start as u32..) {
        if exact[idx as usize] != idx {
            continue;
        }
        let shingles = shingles(&doc.body, ngram);
        if !shingles.is_empty() {
            let signature = minhash.signature(&shingles);
            records.extend(minhash.band_hashes(&signature).map(|hash| (hash, idx)));
        }
    }
    for band in 0..minhash.bands {
        let of_band = records.iter().skip(band).step_by(minhash.bands);
        bands.write(band, of_band.copied())?;
    }
    Ok(())
}

/// The pairs to be joined in one band.
fn verify(
    buckets: &Buckets<'_>,
    records: &[(u64, u32)],
    control: &dyn Control,
) -> Result<Vec<(u32, u32)>> {
    let is_open = |bucket: &&[(u64, u32)]| {
        let root = |(_, doc): &(u64, u32)| buckets.roots[*doc as usize];
        bucket[1..]
            .iter()
            .any(|other| root(other) != root(&bucket[0]))
    };
    let open: Vec<_> = records
        .chunk_by(|a, b| a.0 == b.0)
        .filter(is_open)
        .collect();
    let pairs = open.par_iter().map(|bucket| {
        control.check()?;
        buckets.pairs(bucket)
    });
    let pairs: Vec<Vec<_>> = pairs.collect::<Result<_>>()?;
    Ok(pairs.concat())
}
