//! Documents on disk, in order, readable by number: what lies between two stages.
//!
//! `NAME.docs` holds the records one after the other, `NAME.index` where each begins (u64, little-endian) and where the
//! last ends. Read by position rather than mapped, so that resident memory does not grow with the corpus.

use crate::document::Document;
use anyhow::{Context, Result, ensure};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    fs::File,
    io::{BufWriter, Read, Seek, SeekFrom, Write},
    marker::PhantomData,
    path::{Path, PathBuf},
    sync::Mutex,
};

/// Writes records.
#[derive(Debug)]
pub struct SpoolWriter<T = Document> {
    docs: BufWriter<File>,
    index: BufWriter<File>,
    paths: (PathBuf, PathBuf),
    end: u64,
    n: u64,
    buffer: Vec<u8>,
    record: PhantomData<T>,
}

fn paths(folder: &Path, name: &str) -> (PathBuf, PathBuf) {
    (
        folder.join(format!("{name}.docs")),
        folder.join(format!("{name}.index")),
    )
}

impl<T: Serialize> SpoolWriter<T> {
    /// Begins `folder/name`.
    ///
    /// # Errors
    /// When the files cannot be made.
    pub fn create(folder: &Path, name: &str) -> Result<Self> {
        let paths = paths(folder, name);
        let create = |path: &Path| {
            File::create(path).with_context(|| format!("cannot write {}", path.display()))
        };
        Ok(Self {
            docs: BufWriter::with_capacity(1 << 20, create(&paths.0)?),
            index: BufWriter::new(create(&paths.1)?),
            paths,
            end: 0,
            n: 0,
            buffer: Vec::new(),
            record: PhantomData,
        })
    }

    /// Appends a record.
    ///
    /// # Errors
    /// When the disk is full.
    pub fn push(&mut self, record: &T) -> Result<()> {
        self.buffer = postcard::to_extend(record, std::mem::take(&mut self.buffer))?;
        let failed = |path: &Path| format!("cannot write {}", path.display());
        self.docs
            .write_all(&self.buffer)
            .with_context(|| failed(&self.paths.0))?;
        self.index
            .write_all(&self.end.to_le_bytes())
            .with_context(|| failed(&self.paths.1))?;
        self.end += self.buffer.len() as u64;
        self.n += 1;
        self.buffer.clear();
        Ok(())
    }

    /// Ends the spool.
    ///
    /// # Errors
    /// When the disk is full.
    pub fn finish(mut self) -> Result<()> {
        self.index.write_all(&self.end.to_le_bytes())?;
        for (mut file, path) in [(self.docs, &self.paths.0), (self.index, &self.paths.1)] {
            file.flush()
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }
}

/// Records, by number. Shared between threads.
#[derive(Debug)]
pub struct Spool<T = Document> {
    docs: Mutex<File>,
    index: Mutex<File>,
    path: PathBuf,
    len: usize,
    record: PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned> Spool<T> {
    /// Opens what [`SpoolWriter`] wrote.
    ///
    /// # Errors
    /// When it is not there or cut off.
    pub fn open(folder: &Path, name: &str) -> Result<Self> {
        let (docs_path, index_path) = paths(folder, name);
        let open = |path: &Path| {
            File::open(path).with_context(|| format!("cannot read {}", path.display()))
        };
        let (docs, index) = (open(&docs_path)?, open(&index_path)?);
        let len_bytes = index.metadata()?.len();
        ensure!(
            len_bytes >= 8 && len_bytes % 8 == 0,
            "{} is cut off",
            index_path.display()
        );
        Ok(Self {
            docs: Mutex::new(docs),
            index: Mutex::new(index),
            path: docs_path,
            len: (len_bytes / 8 - 1) as usize,
            record: PhantomData,
        })
    }

    /// Number of records.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The record `idx`.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn read(&self, idx: usize) -> Result<T> {
        Ok(self.read_range(idx, idx + 1)?.swap_remove(0))
    }

    /// The records from `start` to before `end`, in one read.
    ///
    /// # Errors
    /// When the file cannot be read.
    ///
    /// # Panics
    /// When `end` is beyond the last record.
    pub fn read_range(&self, start: usize, end: usize) -> Result<Vec<T>> {
        assert!(
            start <= end && end <= self.len,
            "{start}..{end} of {}",
            self.len
        );
        let mut bounds = vec![0; (end - start + 1) * 8];
        read_at(&self.index, start as u64 * 8, &mut bounds)
            .with_context(|| format!("cannot read the index of {}", self.path.display()))?;
        let (bounds, _) = bounds.as_chunks::<8>();
        let bounds: Vec<u64> = bounds
            .iter()
            .map(|bytes| u64::from_le_bytes(*bytes))
            .collect();
        let mut bytes = vec![0; (bounds[end - start] - bounds[0]) as usize];
        let failed = || format!("cannot read {}", self.path.display());
        read_at(&self.docs, bounds[0], &mut bytes).with_context(failed)?;
        let record = |pair: &[u64]| {
            let range = (pair[0] - bounds[0]) as usize..(pair[1] - bounds[0]) as usize;
            postcard::from_bytes(&bytes[range]).with_context(failed)
        };
        bounds.windows(2).map(record).collect()
    }

    /// Ranges of records that hold about `len_bytes` together, for [`Spool::read_range`].
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn chunks(&self, len_bytes: u64, n_most: usize) -> Result<Vec<(usize, usize)>> {
        // The index is read in pieces: it is larger than memory should be for very many short documents.
        const PIECE: usize = 1 << 16;
        let mut chunks = Vec::new();
        let mut index = Vec::new();
        let (mut start, mut start_byte) = (0, 0);
        for first in (0..self.len).step_by(PIECE) {
            let n = PIECE.min(self.len - first);
            index.resize(n * 8, 0);
            read_at(&self.index, (first as u64 + 1) * 8, &mut index)?;
            for (i, end) in index.as_chunks::<8>().0.iter().enumerate() {
                let (end, idx) = (u64::from_le_bytes(*end), first + i + 1);
                if end - start_byte >= len_bytes || idx - start >= n_most || idx == self.len {
                    chunks.push((start, idx));
                    (start, start_byte) = (idx, end);
                }
            }
        }
        Ok(chunks)
    }
}

/// A range of records with what is kept of each.
pub type Piece<'a, S> = ((usize, usize), &'a mut [S]);

impl<T: DeserializeOwned> Spool<T> {
    /// [`Spool::chunks`], each with its part of `values`, of which there is one a record.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn pieces<'a, S>(
        &self,
        values: &'a mut [S],
        len_bytes: u64,
        n_most: usize,
    ) -> Result<Vec<Piece<'a, S>>> {
        let mut rest = values;
        let mut pieces = Vec::new();
        for chunk in self.chunks(len_bytes, n_most)? {
            let (piece, others) = rest.split_at_mut(chunk.1 - chunk.0);
            pieces.push((chunk, piece));
            rest = others;
        }
        Ok(pieces)
    }
}

fn read_at(file: &Mutex<File>, offset: u64, bytes: &mut [u8]) -> Result<()> {
    let mut file = file
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    file.seek(SeekFrom::Start(offset))?;
    file.read_exact(bytes)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_back_by_number_and_in_chunks() {
        let folder = tempfile::tempdir().unwrap();
        let texts: Vec<String> = (0..1000).map(|i| "x".repeat(i % 37)).collect();
        let mut writer = SpoolWriter::create(folder.path(), "a").unwrap();
        for text in &texts {
            writer.push(text).unwrap();
        }
        writer.finish().unwrap();
        let spool = Spool::<String>::open(folder.path(), "a").unwrap();
        assert_eq!(spool.len(), 1000);
        assert_eq!(spool.read(36).unwrap(), texts[36]);
        let chunks = spool.chunks(500, 64).unwrap();
        let all: Vec<String> = chunks
            .iter()
            .flat_map(|&(start, end)| spool.read_range(start, end).unwrap())
            .collect();
        assert_eq!(all, texts);
        assert!(chunks.iter().all(|(start, end)| end - start <= 64));
    }

    #[test]
    fn an_empty_spool_is_no_error() {
        let folder = tempfile::tempdir().unwrap();
        SpoolWriter::<String>::create(folder.path(), "a")
            .unwrap()
            .finish()
            .unwrap();
        let spool = Spool::<String>::open(folder.path(), "a").unwrap();
        assert!(spool.is_empty() && spool.chunks(1, 1).unwrap().is_empty());
    }
}
