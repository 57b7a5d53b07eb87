//! Reading a dataset. Files are mapped, so resident memory is what the rows in use take, and several processes share it.

use super::{MANIFEST_FILE, Manifest, RECORD_BYTES, Record, ShardInfo, id_bytes};
use crate::{
    config::Split,
    control::{Control, Unit},
    encode::Encoder,
    pack::Row,
};
use anyhow::{Context, Result, ensure};
use memmap2::Mmap;
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    ops::Range,
    path::{Path, PathBuf},
};

/// Reports may be long, but no manifest needs more memory than this.
const MAX_MANIFEST_BYTES: u64 = 1 << 28;

const AGAIN: &str = "prepare the data again";

/// A dataset.
#[derive(Debug)]
pub struct Shards {
    folder: PathBuf,
    manifest: Manifest,
    splits: BTreeMap<Split, SplitShards>,
}

impl Shards {
    /// Opens the dataset of a folder, and checks that the files have their lengths and that each row lies within them.
    ///
    /// # Errors
    /// What is wrong, with the file.
    pub fn open(folder: &Path) -> Result<Self> {
        let path = folder.join(MANIFEST_FILE);
        let len_bytes = fs::metadata(&path)
            .with_context(|| {
                format!(
                    "{} holds no prepared data: it has no {MANIFEST_FILE}",
                    folder.display()
                )
            })?
            .len();
        ensure!(
            len_bytes <= MAX_MANIFEST_BYTES,
            "{} is too large for a manifest",
            path.display()
        );
        let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let manifest = Manifest::parse(&bytes).with_context(|| path.display().to_string())?;
        let open =
            |(&split, _): (&Split, _)| Ok((split, SplitShards::open(folder, &manifest, split)?));
        let splits = manifest
            .splits
            .iter()
            .filter(|(_, info)| info.rows > 0)
            .map(open)
            .collect::<Result<_>>()?;
        Ok(Self {
            folder: folder.to_owned(),
            manifest,
            splits,
        })
    }

    /// Whether a folder is a dataset, or says so.
    pub fn is_dataset(folder: &Path) -> bool {
        folder.join(MANIFEST_FILE).is_file()
    }

    /// What the dataset says of itself.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// A part, if it holds any row.
    pub fn split(&self, split: Split) -> Option<&SplitShards> {
        self.splits.get(&split)
    }

    /// The same, without the rest.
    pub fn into_split(mut self, split: Split) -> Option<SplitShards> {
        self.splits.remove(&split)
    }

    /// Whether the ids are those of this tokenizer, and chats were rendered by its template.
    ///
    /// # Errors
    /// When they are not, with both names.
    pub fn check_tokenizer(&self, encoder: &Encoder) -> Result<()> {
        let made_by = &self.manifest.tokenizer;
        let wanted = encoder.id(made_by.template_sha256.is_some());
        let (folder, made_name, name) = (self.folder.display(), &made_by.name, &wanted.name);
        ensure!(
            made_by.sha256 == wanted.sha256,
            "the data in {folder} was prepared for the tokenizer of {made_name} ({} ids), and {name} has another ({} ids): \
             {AGAIN} for {name}",
            made_by.vocab_size,
            wanted.vocab_size
        );
        ensure!(
            made_by.template_sha256 == wanted.template_sha256,
            "the chats in {folder} were rendered by the chat template of {made_name}, and {name} has another: {AGAIN} for {name}"
        );
        Ok(())
    }

    /// Reads everything and checks that nothing has changed since it was written.
    ///
    /// # Errors
    /// The first file that has, or somebody's wish to stop.
    pub fn verify(&self, control: &dyn Control) -> Result<()> {
        let total = self.manifest.files().map(|file| file.len_bytes).sum();
        control.begin("verify", Unit::Bytes, Some(total));
        for split in self.splits.values() {
            for shard in &split.shards {
                for (file, map) in shard.info.files.iter().zip(shard.maps()) {
                    let mut hasher = Sha256::new();
                    for piece in map.chunks(1 << 22) {
                        control.check()?;
                        hasher.update(piece);
                        control.advance(piece.len() as u64);
                    }
                    ensure!(
                        format!("{:x}", hasher.finalize()) == file.sha256,
                        "{} has changed since it was written: {AGAIN}",
                        self.folder.join(&file.name).display()
                    );
                }
            }
        }
        Ok(())
    }
}

/// A part: rows by number, in the order in which they were made.
#[derive(Debug)]
pub struct SplitShards {
    shards: Vec<Shard>,
    /// Number of the first row of each shard.
    first_rows: Vec<usize>,
    n_rows: usize,
    n_tokens: u64,
    n_counted: u64,
    vocab_size: usize,
}

impl SplitShards {
    fn open(folder: &Path, manifest: &Manifest, split: Split) -> Result<Self> {
        let info = &manifest.splits[&split];
        let mut out = Self {
            shards: Vec::with_capacity(info.shards.len()),
            first_rows: Vec::with_capacity(info.shards.len()),
            n_rows: 0,
            n_tokens: info.tokens,
            n_counted: info.counted,
            vocab_size: manifest.tokenizer.vocab_size,
        };
        for (idx, shard_info) in info.shards.iter().enumerate() {
            let shard = Shard::open(folder, shard_info)
                .with_context(|| format!("{} {idx}: {AGAIN}", split.name()))?;
            shard.check(manifest.context).with_context(|| {
                let name = &shard_info.files[1].name;
                format!("{} is damaged: {AGAIN}", folder.join(name).display())
            })?;
            out.first_rows.push(out.n_rows);
            out.n_rows += shard_info.rows as usize;
            out.shards.push(shard);
        }
        Ok(out)
    }

    /// Rows.
    pub fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// Tokens of all rows.
    pub fn n_tokens(&self) -> u64 {
        self.n_tokens
    }

    /// Tokens to be learnt in all rows.
    pub fn n_counted(&self) -> u64 {
        self.n_counted
    }

    /// Tokens of the row `idx`.
    ///
    /// # Panics
    /// When there is no such row.
    pub fn row_len(&self, idx: usize) -> usize {
        let (shard, row_idx) = self.find(idx);
        shard.record(row_idx).n_tokens as usize
    }

    /// Where the segments of the row `idx` lie among its tokens.
    ///
    /// # Panics
    /// When there is no such row.
    pub fn segments(&self, idx: usize) -> impl Iterator<Item = Range<usize>> + '_ {
        let (shard, row_idx) = self.find(idx);
        let mut end = 0;
        shard.segments(shard.record(row_idx)).map(move |len| {
            let start = end;
            end += len as usize;
            start..end
        })
    }

    /// The row `idx`.
    ///
    /// # Errors
    /// When an id is beyond the vocabulary, which [`Shards::open`] does not look at.
    ///
    /// # Panics
    /// When there is no such row.
    pub fn row(&self, idx: usize) -> Result<Row> {
        let (shard, row_idx) = self.find(idx);
        let record = shard.record(row_idx);
        let segments: Vec<u32> = shard.segments(record).collect();
        let mut row = Row {
            tokens: Vec::with_capacity(record.n_tokens as usize),
            counted: Vec::with_capacity(record.n_tokens as usize),
            segments,
        };
        for range in self.segments(idx) {
            self.read(shard, record, range, &mut row)?;
        }
        Ok(row)
    }

    /// One segment of the row `idx`, as a row of its own; `range` comes from [`SplitShards::segments`].
    ///
    /// # Errors
    /// As [`SplitShards::row`].
    ///
    /// # Panics
    /// When there is no such row, or the range is beyond it.
    pub fn segment(&self, idx: usize, range: Range<usize>) -> Result<Row> {
        let (shard, row_idx) = self.find(idx);
        let mut row = Row {
            segments: vec![range.len() as u32],
            ..Row::default()
        };
        self.read(shard, shard.record(row_idx), range, &mut row)?;
        Ok(row)
    }

    /// Tokens to be learnt in a segment of the row `idx`; looks at the mask only.
    ///
    /// # Panics
    /// When there is no such row, or the range is beyond it.
    pub fn n_counted_in(&self, idx: usize, range: Range<usize>) -> usize {
        let (shard, row_idx) = self.find(idx);
        let record = shard.record(row_idx);
        assert_within(&range, record);
        let Some(mask) = &shard.mask else {
            return range.len() - 1;
        };
        let first = record.first_token as usize;
        (first + range.start + 1..first + range.end)
            .filter(|i| is_set(mask, *i))
            .count()
    }

    /// Looks at all ids once, for readers that cannot end with an error in the middle.
    ///
    /// # Errors
    /// When an id is beyond the vocabulary.
    pub fn check_ids(&self) -> Result<()> {
        for shard in &self.shards {
            let width = id_bytes(self.vocab_size);
            let mut ids = Vec::new();
            for bytes in shard.tokens.chunks(width << 16) {
                ids.clear();
                self.read_ids(shard, bytes, &mut ids)?;
            }
        }
        Ok(())
    }

    fn find(&self, idx: usize) -> (&Shard, usize) {
        assert!(idx < self.n_rows, "row {idx} of {}", self.n_rows);
        let shard_idx = self.first_rows.partition_point(|first| *first <= idx) - 1;
        (&self.shards[shard_idx], idx - self.first_rows[shard_idx])
    }

    /// Appends the tokens of a segment and what counts of them.
    fn read(
        &self,
        shard: &Shard,
        record: Record,
        range: Range<usize>,
        row: &mut Row,
    ) -> Result<()> {
        assert_within(&range, record);
        let first = record.first_token as usize;
        let width = id_bytes(self.vocab_size);
        let bytes = &shard.tokens[(first + range.start) * width..(first + range.end) * width];
        let start = row.tokens.len();
        self.read_ids(shard, bytes, &mut row.tokens)?;
        match &shard.mask {
            None => row.counted.resize(row.tokens.len(), true),
            Some(mask) => {
                let bits = first + range.start..first + range.end;
                row.counted.extend(bits.map(|i| is_set(mask, i)));
            }
        }
        row.counted[start] = false;
        Ok(())
    }

    fn read_ids(&self, shard: &Shard, bytes: &[u8], ids: &mut Vec<u32>) -> Result<()> {
        let start = ids.len();
        if id_bytes(self.vocab_size) == 2 {
            let words = bytes.as_chunks::<2>().0.iter();
            ids.extend(words.map(|id| u32::from(u16::from_le_bytes(*id))));
        } else {
            let words = bytes.as_chunks::<4>().0.iter();
            ids.extend(words.map(|id| u32::from_le_bytes(*id)));
        }
        ensure!(
            ids[start..]
                .iter()
                .all(|id| (*id as usize) < self.vocab_size),
            "{} is damaged: an id is beyond the vocabulary of {}: {AGAIN}",
            shard.info.files[0].name,
            self.vocab_size
        );
        Ok(())
    }
}

fn assert_within(range: &Range<usize>, record: Record) {
    assert!(
        range.start < range.end && range.end <= record.n_tokens as usize,
        "a segment lies within its row"
    );
}

/// A bit of a mask.
fn is_set(mask: &[u8], i: usize) -> bool {
    mask[i / 8] >> (i % 8) & 1 == 1
}

#[derive(Debug)]
struct Shard {
    info: ShardInfo,
    tokens: Mmap,
    rows: Mmap,
    segments: Mmap,
    mask: Option<Mmap>,
}

impl Shard {
    fn open(folder: &Path, info: &ShardInfo) -> Result<Self> {
        let open = |ending: &str| {
            let file = info.file(ending)?;
            Some(map(&folder.join(&file.name), file.len_bytes))
        };
        let needed = |ending: &str| {
            open(ending).with_context(|| format!("the manifest names no .{ending} file"))?
        };
        Ok(Self {
            info: info.clone(),
            tokens: needed("tokens")?,
            rows: needed("rows")?,
            segments: needed("segments")?,
            mask: open("mask").transpose()?,
        })
    }

    /// In the order of [`ShardInfo::files`].
    fn maps(&self) -> impl Iterator<Item = &Mmap> {
        [&self.tokens, &self.rows, &self.segments]
            .into_iter()
            .chain(&self.mask)
    }

    /// That rows and segments follow each other, and end where the files end. Everything read later relies on it.
    fn check(&self, context: usize) -> Result<()> {
        let (mut token, mut segment) = (0_u64, 0_u64);
        for idx in 0..self.info.rows as usize {
            let record = self.record(idx);
            ensure!(
                record.first_token == token && record.first_segment == segment,
                "row {idx} does not begin where the one before ends"
            );
            token += u64::from(record.n_tokens);
            segment += u64::from(record.n_segments);
            ensure!(
                token <= self.info.tokens && segment <= self.info.segments,
                "row {idx} goes beyond the end"
            );
            let (mut sum, mut is_short) = (0, record.n_segments == 0);
            for len in self.segments(record) {
                sum += u64::from(len);
                is_short |= len < 2;
            }
            ensure!(
                sum == u64::from(record.n_tokens) && !is_short,
                "the segments of row {idx} do not make it up"
            );
            let n_positions = record.n_tokens - record.n_segments;
            ensure!(
                n_positions as usize <= context,
                "row {idx} has {n_positions} positions, the context is {context}"
            );
        }
        ensure!(
            token == self.info.tokens && segment == self.info.segments,
            "the rows do not make up the shard"
        );
        Ok(())
    }

    fn record(&self, idx: usize) -> Record {
        Record::from_bytes(&self.rows.as_chunks::<RECORD_BYTES>().0[idx])
    }

    /// Lengths of a row's segments.
    fn segments(&self, record: Record) -> impl Iterator<Item = u32> + '_ {
        let start = record.first_segment as usize;
        let lengths = &self.segments.as_chunks::<4>().0[start..start + record.n_segments as usize];
        lengths.iter().map(|len| u32::from_le_bytes(*len))
    }
}

/// Maps a file that must have this length.
fn map(path: &Path, len_bytes: u64) -> Result<Mmap> {
    let failed = || format!("cannot read {}", path.display());
    let file = File::open(path).with_context(failed)?;
    let there = file.metadata().with_context(failed)?.len();
    ensure!(
        there == len_bytes,
        "{} has {there} bytes, and {len_bytes} were written",
        path.display()
    );
    map_file(&file).with_context(failed)
}

#[allow(unsafe_code, reason = "a map is what keeps a dataset out of memory")]
fn map_file(file: &File) -> std::io::Result<Mmap> {
    // SAFETY: A map must not change under its reader. Datasets are never written in place: `DatasetWriter` moves whole
    // files here, and the map keeps the old one. Whoever else writes to or shortens these files breaks this, as with any
    // mapped file; the same holds for models.
    unsafe { Mmap::map(file) }
}
