//! Documents that are equal but for case, spaces and punctuation: those of one [`identity`], 128 bits of XXH3.
//!
//! Among ten million documents the chance that any two others share one is about 10^-25. Records of 20 bytes go to 64
//! partition files by the hash, which are sorted one by one.

use super::{CHUNK_BYTES, CHUNK_DOCS, Key, partitions::Partitions, union::Union};
use crate::{
    control::{Control, Unit},
    document::Document,
    spool::Spool,
    words::{identity, text_hash},
};
use anyhow::Result;
use rayon::prelude::*;
use std::path::Path;

const PARTITIONS: usize = 64;

/// Joins equal documents, if that is asked, and returns the key of each document.
pub(super) fn join(
    spool: &Spool<Document>,
    asked: bool,
    scratch: &Path,
    control: &dyn Control,
    union: &mut Union,
) -> Result<Vec<Key>> {
    control.begin(
        "exact duplicates",
        Unit::Documents,
        Some(spool.len() as u64),
    );
    let n_files = if asked { PARTITIONS } else { 0 };
    let partitions = Partitions::<(u128, u32)>::create(scratch, "exact", n_files)?;
    let mut keys = vec![Key::default(); spool.len()];
    spool
        .pieces(&mut keys, CHUNK_BYTES, CHUNK_DOCS)?
        .into_par_iter()
        .try_for_each(|((start, end), keys)| {
            control.check()?;
            let docs = spool.read_range(start, end)?;
            for (key, doc) in keys.iter_mut().zip(&docs) {
                *key = key_of(doc);
            }
            if asked {
                scatter(&partitions, start, &docs)?;
            }
            control.advance(docs.len() as u64);
            anyhow::Ok(())
        })?;
    for idx in 0..partitions.len() {
        control.check()?;
        let mut records = partitions.read(idx)?;
        records.par_sort_unstable();
        for pair in records.windows(2).filter(|pair| pair[0].0 == pair[1].0) {
            union.join(pair[0].1, pair[1].1);
        }
    }
    Ok(keys)
}

fn key_of(doc: &Document) -> Key {
    let hash = text_hash(&doc.body);
    Key {
        hash: [(hash >> 64) as u64, hash as u64],
        len_bytes: u32::try_from(doc.body.len_bytes()).unwrap_or(u32::MAX),
    }
}

fn scatter(partitions: &Partitions<(u128, u32)>, start: usize, docs: &[Document]) -> Result<()> {
    let mut by_partition = vec![Vec::new(); partitions.len()];
    for (i, doc) in docs.iter().enumerate() {
        let hash = identity(&doc.body);
        by_partition[partitions.of((hash >> 64) as u64)].push((hash, (start + i) as u32));
    }
    for (idx, records) in by_partition.into_iter().enumerate() {
        if !records.is_empty() {
            partitions.write(idx, records.into_iter())?;
        }
    }
    Ok(())
}
