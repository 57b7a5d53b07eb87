//! Writing a dataset.

use super::{
    FileInfo, MANIFEST_FILE, Manifest, Record, ShardInfo, SplitInfo, id_bytes,
    manifest::{file_name, is_shard_file},
};
use crate::{
    config::{PackMode, Split},
    encode::TokenizerId,
    pack::Row,
};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{BufWriter, Write},
    path::{Path, PathBuf},
};

/// What all rows have in common.
#[derive(Debug, Clone)]
pub struct Layout {
    /// Who made the ids.
    pub tokenizer: TokenizerId,
    /// Most positions of a row.
    pub context: usize,
    /// How rows are made.
    pub mode: PackMode,
    /// Tokens in a shard; a row is never divided.
    pub shard_tokens: usize,
}

/// What the manifest says besides, in the caller's words.
#[derive(Debug, Clone, Default)]
pub struct About {
    /// What the dataset depends on, in one hash.
    pub fingerprint: String,
    /// The resolved config.
    pub config: Value,
    /// What was read.
    pub sources: Value,
    /// What was found and done.
    pub report: Value,
}

/// Writes a dataset beside the one that may be there, and puts it in its place when it is whole. Dropped before that, it
/// leaves nothing.
#[derive(Debug)]
pub struct DatasetWriter {
    out: PathBuf,
    new: PathBuf,
    layout: Layout,
    splits: BTreeMap<Split, SplitWriter>,
}

impl DatasetWriter {
    /// Begins a dataset in the folder `out`, which is made. One process at a time may write there.
    ///
    /// # Errors
    /// When nothing can be written there.
    pub fn create(out: &Path, layout: Layout) -> Result<Self> {
        let new = out.join(".new");
        if new.exists() {
            // What a killed process left.
            fs::remove_dir_all(&new).with_context(|| failed(&new))?;
        }
        fs::create_dir_all(&new).with_context(|| failed(&new))?;
        Ok(Self {
            out: out.to_owned(),
            new,
            layout,
            splits: BTreeMap::new(),
        })
    }

    /// Appends a row to a split.
    ///
    /// # Errors
    /// When the disk is full. What was in the folder before stays.
    ///
    /// # Panics
    /// When the row is none for this layout: longer than the context, or with ids beyond the vocabulary.
    pub fn push(&mut self, split: Split, row: &Row) -> Result<()> {
        check_row(row, &self.layout);
        let writer = self.splits.entry(split).or_insert_with(|| SplitWriter {
            split,
            info: SplitInfo::default(),
            shard: None,
        });
        writer.push(row, &self.new, &self.layout)
    }

    /// Puts the dataset in its place. Shards of an earlier one are removed.
    ///
    /// # Errors
    /// When the disk is full: then what was there before stays. When files cannot be moved: then there is no dataset, and
    /// the data has to be prepared again.
    pub fn finish(mut self, about: About) -> Result<Manifest> {
        let Layout {
            tokenizer,
            context,
            mode,
            ..
        } = self.layout.clone();
        let mut manifest = Manifest::new(tokenizer, context, mode);
        for (split, writer) in std::mem::take(&mut self.splits) {
            manifest.splits.insert(split, writer.finish()?);
        }
        manifest.fingerprint = about.fingerprint;
        manifest.config = about.config;
        manifest.sources = about.sources;
        manifest.report = about.report;
        let path = self.new.join(MANIFEST_FILE);
        let mut file = HashedFile::create(path)?;
        file.write(&serde_json::to_vec_pretty(&manifest)?)?;
        file.finish()?;
        self.swap(&manifest).with_context(|| {
            format!(
                "the dataset in {} could not be put in its place: prepare the data again",
                self.out.display()
            )
        })?;
        Ok(manifest)
    }

    /// The old manifest goes first and the new one comes last, so that there never is one that lies.
    fn swap(&self, manifest: &Manifest) -> Result<()> {
        let target = self.out.join(MANIFEST_FILE);
        if target.exists() {
            fs::remove_file(&target)?;
        }
        let names: BTreeSet<&str> = manifest.files().map(|file| file.name.as_str()).collect();
        for name in &names {
            fs::rename(self.new.join(name), self.out.join(name))
                .with_context(|| (*name).to_owned())?;
        }
        fs::rename(self.new.join(MANIFEST_FILE), target)?;
        for entry in fs::read_dir(&self.out)? {
            let entry = entry?;
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            if is_shard_file(name) && !names.contains(name) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }
}

impl Drop for DatasetWriter {
    fn drop(&mut self) {
        // Some systems do not remove files that are open.
        self.splits.clear();
        // Nothing can be done about a failure here; the next writer tries again.
        let _ = fs::remove_dir_all(&self.new);
    }
}

fn failed(path: &Path) -> String {
    format!(
        "cannot write {}; a dataset that was there before is as it was",
        path.display()
    )
}

fn check_row(row: &Row, layout: &Layout) {
    let n_tokens: usize = row.segments.iter().map(|len| *len as usize).sum();
    assert!(
        n_tokens == row.tokens.len()
            && n_tokens == row.counted.len()
            && !row.segments.is_empty()
            && row.segments.iter().all(|len| *len >= 2),
        "a row is whole"
    );
    assert!(
        row.n_positions() <= layout.context,
        "a row of {} positions, the context is {}",
        row.n_positions(),
        layout.context
    );
    let beyond = row
        .tokens
        .iter()
        .find(|id| **id as usize >= layout.tokenizer.vocab_size);
    assert_eq!(beyond, None, "an id beyond the vocabulary");
}

/// One split, shard after shard.
#[derive(Debug)]
struct SplitWriter {
    split: Split,
    info: SplitInfo,
    shard: Option<ShardWriter>,
}

impl SplitWriter {
    fn push(&mut self, row: &Row, folder: &Path, layout: &Layout) -> Result<()> {
        let is_full = |shard: &ShardWriter| {
            shard.info.tokens + row.tokens.len() as u64 > layout.shard_tokens as u64
        };
        if self.shard.as_ref().is_some_and(is_full) {
            self.close()?;
        }
        let shard = match &mut self.shard {
            Some(shard) => shard,
            none => none.insert(ShardWriter::create(
                folder,
                self.split,
                self.info.shards.len(),
            )?),
        };
        shard.push(row, id_bytes(layout.tokenizer.vocab_size))
    }

    fn close(&mut self) -> Result<()> {
        if let Some(shard) = self.shard.take() {
            self.info.add(shard.finish()?);
        }
        Ok(())
    }

    fn finish(mut self) -> Result<SplitInfo> {
        self.close()?;
        Ok(self.info)
    }
}

/// One shard.
#[derive(Debug)]
struct ShardWriter {
    tokens: HashedFile,
    rows: HashedFile,
    segments: HashedFile,
    mask: HashedFile,
    /// Bits that fill no byte yet.
    bits: u8,
    info: ShardInfo,
    buffer: Vec<u8>,
}

impl ShardWriter {
    fn create(folder: &Path, split: Split, idx: usize) -> Result<Self> {
        let file = |ending| HashedFile::create(folder.join(file_name(split, idx, ending)));
        Ok(Self {
            tokens: file("tokens")?,
            rows: file("rows")?,
            segments: file("segments")?,
            mask: file("mask")?,
            bits: 0,
            info: ShardInfo {
                rows: 0,
                segments: 0,
                tokens: 0,
                counted: 0,
                files: Vec::new(),
            },
            buffer: Vec::new(),
        })
    }

    fn push(&mut self, row: &Row, id_bytes: usize) -> Result<()> {
        let record = Record {
            first_token: self.info.tokens,
            first_segment: self.info.segments,
            n_tokens: row.tokens.len() as u32,
            n_segments: row.segments.len() as u32,
        };
        self.rows.write(&record.to_bytes())?;
        self.buffer.clear();
        let segments = row.segments.iter().flat_map(|len| len.to_le_bytes());
        self.buffer.extend(segments);
        self.segments.write(&self.buffer)?;
        self.buffer.clear();
        for id in &row.tokens {
            self.buffer.extend_from_slice(&id.to_le_bytes()[..id_bytes]);
        }
        self.tokens.write(&self.buffer)?;
        self.push_mask(row)?;
        self.info.rows += 1;
        self.info.segments += row.segments.len() as u64;
        self.info.tokens += row.tokens.len() as u64;
        Ok(())
    }

    fn push_mask(&mut self, row: &Row) -> Result<()> {
        self.buffer.clear();
        let mut counted = row.counted.clone();
        let mut start = 0;
        for len in &row.segments {
            counted[start] = false;
            start += *len as usize;
        }
        for (i, counted) in (self.info.tokens..).zip(counted) {
            self.bits |= u8::from(counted) << (i % 8);
            self.info.counted += u64::from(counted);
            if i % 8 == 7 {
                self.buffer.push(std::mem::take(&mut self.bits));
            }
        }
        self.mask.write(&self.buffer)
    }

    fn finish(mut self) -> Result<ShardInfo> {
        if !self.info.tokens.is_multiple_of(8) {
            self.mask.write(&[self.bits])?;
        }
        let mut info = self.info;
        info.files = vec![
            self.tokens.finish()?,
            self.rows.finish()?,
            self.segments.finish()?,
        ];
        if info.counted == info.tokens - info.segments {
            self.mask.discard()?;
        } else {
            info.files.push(self.mask.finish()?);
        }
        Ok(info)
    }
}

/// A file that knows its length and hash.
#[derive(Debug)]
struct HashedFile {
    path: PathBuf,
    file: BufWriter<File>,
    hasher: Sha256,
    len_bytes: u64,
}

impl HashedFile {
    fn create(path: PathBuf) -> Result<Self> {
        let file = File::create(&path).with_context(|| failed(&path))?;
        Ok(Self {
            path,
            file: BufWriter::with_capacity(1 << 18, file),
            hasher: Sha256::new(),
            len_bytes: 0,
        })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.hasher.update(bytes);
        self.len_bytes += bytes.len() as u64;
        self.file
            .write_all(bytes)
            .with_context(|| failed(&self.path))
    }

    /// On the disk before it counts as written: an error that comes late must not come after the old dataset is gone.
    fn finish(mut self) -> Result<FileInfo> {
        self.file.flush().with_context(|| failed(&self.path))?;
        self.file
            .get_ref()
            .sync_all()
            .with_context(|| failed(&self.path))?;
        let name = self.path.file_name().and_then(|name| name.to_str());
        ensure!(name.is_some(), "{} has no name", self.path.display());
        Ok(FileInfo {
            name: name.unwrap_or_default().to_owned(),
            len_bytes: self.len_bytes,
            sha256: format!("{:x}", self.hasher.finalize()),
        })
    }

    fn discard(self) -> Result<()> {
        let (file, path) = (self.file, self.path);
        // Its content is of no use, so what is in the buffer is not written.
        drop(file.into_parts());
        fs::remove_file(&path).with_context(|| failed(&path))
    }
}
