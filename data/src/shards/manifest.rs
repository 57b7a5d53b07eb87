//! `manifest.json`: read with distrust, for everything that is mapped later is measured by it.

use super::{RECORD_BYTES, id_bytes};
use crate::{
    config::{PackMode, Split},
    encode::TokenizerId,
};
use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

const FORMAT: &str = "fledgling-data";
const VERSION: u32 = 1;

/// What a dataset holds and where it came from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    format: String,
    version: u32,
    /// What the dataset depends on, in one hash; the caller's.
    pub fingerprint: String,
    /// Who made the ids.
    pub tokenizer: TokenizerId,
    /// Most positions of a row.
    pub context: usize,
    /// How rows were made.
    pub mode: PackMode,
    /// The parts that hold something.
    pub splits: BTreeMap<Split, SplitInfo>,
    /// The resolved config; the caller's.
    pub config: Value,
    /// What was read; the caller's.
    pub sources: Value,
    /// What was found and done; the caller's.
    pub report: Value,
}

/// A part.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SplitInfo {
    /// Rows.
    pub rows: u64,
    /// Segments.
    pub segments: u64,
    /// Tokens.
    pub tokens: u64,
    /// Tokens to be learnt.
    pub counted: u64,
    /// The shards in the order of their rows.
    pub shards: Vec<ShardInfo>,
}

/// A shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardInfo {
    /// Rows.
    pub rows: u64,
    /// Segments.
    pub segments: u64,
    /// Tokens.
    pub tokens: u64,
    /// Tokens to be learnt.
    pub counted: u64,
    /// `.tokens`, `.rows`, `.segments` and, where not all tokens are to be learnt, `.mask`.
    pub files: Vec<FileInfo>,
}

/// A file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileInfo {
    /// Its name within the folder.
    pub name: String,
    /// Its length.
    pub len_bytes: u64,
    /// Its SHA-256.
    pub sha256: String,
}

/// `train-00003.tokens`.
pub(super) fn file_name(split: Split, shard_idx: usize, ending: &str) -> String {
    format!("{}-{shard_idx:05}.{ending}", split.name())
}

/// Whether a file can be a shard's.
pub(super) fn is_shard_file(name: &str) -> bool {
    let Some((stem, ending)) = name.split_once('.') else {
        return false;
    };
    let Some((split, number)) = stem.split_once('-') else {
        return false;
    };
    ["tokens", "mask", "rows", "segments"].contains(&ending)
        && ["train", "valid", "test"].contains(&split)
        && number.len() >= 5
        && number.bytes().all(|byte| byte.is_ascii_digit())
}

impl Manifest {
    /// A manifest without splits, config, sources and report.
    pub(super) fn new(tokenizer: TokenizerId, context: usize, mode: PackMode) -> Self {
        Self {
            format: FORMAT.to_owned(),
            version: VERSION,
            fingerprint: String::new(),
            tokenizer,
            context,
            mode,
            splits: BTreeMap::new(),
            config: Value::Null,
            sources: Value::Null,
            report: Value::Null,
        }
    }

    /// Reads a manifest. What passes here agrees with itself.
    ///
    /// # Errors
    /// When it is none, of another version, or its numbers contradict each other.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        #[derive(Deserialize)]
        struct Head {
            format: String,
            version: u32,
        }
        let head: Head =
            serde_json::from_slice(bytes).context("this is no manifest of a dataset")?;
        ensure!(
            head.format == FORMAT,
            "this is the manifest of something else (`format` is {:?})",
            head.format
        );
        ensure!(
            head.version == VERSION,
            "the dataset has version {}, this program reads version {VERSION}: prepare the data again",
            head.version
        );
        let manifest: Self = serde_json::from_slice(bytes).context("the manifest is incomplete")?;
        manifest
            .check()
            .context("the manifest contradicts itself")?;
        Ok(manifest)
    }

    /// Names of all files but the manifest.
    pub fn files(&self) -> impl Iterator<Item = &FileInfo> {
        let shards = self.splits.values().flat_map(|split| &split.shards);
        shards.flat_map(|shard| &shard.files)
    }

    fn check(&self) -> Result<()> {
        let vocab_size = self.tokenizer.vocab_size;
        ensure!(
            (1..=u32::MAX as usize).contains(&vocab_size),
            "a vocabulary of {vocab_size}"
        );
        ensure!(
            (1..u32::MAX as usize).contains(&self.context),
            "a context of {}",
            self.context
        );
        for (&split, info) in &self.splits {
            let mut sums = [0_u64; 4];
            for (idx, shard) in info.shards.iter().enumerate() {
                shard
                    .check(split, idx, vocab_size)
                    .with_context(|| format!("shard {idx} of {}", split.name()))?;
                for (sum, n) in sums.iter_mut().zip(shard.counts()) {
                    *sum = sum.checked_add(n).context("too many tokens")?;
                }
            }
            ensure!(
                sums == [info.rows, info.segments, info.tokens, info.counted],
                "the shards of {} hold other than it says",
                split.name()
            );
        }
        Ok(())
    }
}

impl SplitInfo {
    /// Adds a shard at the end.
    pub(super) fn add(&mut self, shard: ShardInfo) {
        self.rows += shard.rows;
        self.segments += shard.segments;
        self.tokens += shard.tokens;
        self.counted += shard.counted;
        self.shards.push(shard);
    }
}

impl ShardInfo {
    fn counts(&self) -> [u64; 4] {
        [self.rows, self.segments, self.tokens, self.counted]
    }

    /// The file with this ending.
    pub(super) fn file(&self, ending: &str) -> Option<&FileInfo> {
        self.files
            .iter()
            .find(|file| file.name.rsplit('.').next() == Some(ending))
    }

    fn check(&self, split: Split, idx: usize, vocab_size: usize) -> Result<()> {
        let [rows, segments, tokens, counted] = self.counts();
        ensure!(
            rows >= 1 && segments >= rows && tokens / 2 >= segments && counted <= tokens - segments,
            "{rows} rows, {segments} segments, {tokens} tokens, {counted} of them to be learnt"
        );
        let bytes = |n: u64, each: usize| n.checked_mul(each as u64).context("too many tokens");
        let mut expected = vec![
            ("tokens", bytes(tokens, id_bytes(vocab_size))?),
            ("rows", bytes(rows, RECORD_BYTES)?),
            ("segments", bytes(segments, 4)?),
        ];
        if counted < tokens - segments {
            expected.push(("mask", tokens.div_ceil(8)));
        }
        ensure!(
            self.files.len() == expected.len(),
            "{} files, not {}",
            self.files.len(),
            expected.len()
        );
        for (file, (ending, len_bytes)) in self.files.iter().zip(expected) {
            let name = file_name(split, idx, ending);
            ensure!(
                file.name == name,
                "a file is called {:?}, not {name}",
                file.name
            );
            if file.len_bytes != len_bytes {
                bail!(
                    "{name} should have {len_bytes} bytes, not {}",
                    file.len_bytes
                );
            }
        }
        Ok(())
    }
}
