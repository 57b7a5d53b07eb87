//! Fixed-size records in partition files: what is too much for memory is sorted a partition at a time.

use anyhow::{Context, Result};
use std::{
    fs::File,
    io::{BufReader, BufWriter, Read, Write},
    marker::PhantomData,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

/// A record of a fixed number of bytes.
pub(crate) trait Record: Copy {
    /// That number.
    const LEN: usize;
    /// Appends the record.
    fn put(self, out: &mut Vec<u8>);
    /// Reads it back from the start of `bytes`.
    fn get(bytes: &[u8]) -> Self;
}

impl Record for u64 {
    const LEN: usize = 8;
    fn put(self, out: &mut Vec<u8>) {
        out.extend(self.to_le_bytes());
    }
    fn get(bytes: &[u8]) -> Self {
        Self::from_le_bytes(std::array::from_fn(|i| bytes[i]))
    }
}

impl Record for u32 {
    const LEN: usize = 4;
    fn put(self, out: &mut Vec<u8>) {
        out.extend(self.to_le_bytes());
    }
    fn get(bytes: &[u8]) -> Self {
        Self::from_le_bytes(std::array::from_fn(|i| bytes[i]))
    }
}

impl Record for u128 {
    const LEN: usize = 16;
    fn put(self, out: &mut Vec<u8>) {
        out.extend(self.to_le_bytes());
    }
    fn get(bytes: &[u8]) -> Self {
        Self::from_le_bytes(std::array::from_fn(|i| bytes[i]))
    }
}

impl<A: Record, B: Record> Record for (A, B) {
    const LEN: usize = A::LEN + B::LEN;
    fn put(self, out: &mut Vec<u8>) {
        self.0.put(out);
        self.1.put(out);
    }
    fn get(bytes: &[u8]) -> Self {
        (A::get(bytes), B::get(&bytes[A::LEN..]))
    }
}

/// The files, written from several threads, then read one by one. They are gone when this is.
#[derive(Debug)]
pub(crate) struct Partitions<R> {
    files: Vec<(Mutex<BufWriter<File>>, PathBuf)>,
    record: PhantomData<fn() -> R>,
}

impl<R: Record> Partitions<R> {
    /// Begins `n` files `folder/name.0`, `.1`, ...
    pub(crate) fn create(folder: &Path, name: &str, n: usize) -> Result<Self> {
        let file = |idx: usize| {
            let path = folder.join(format!("{name}.{idx}"));
            let file =
                File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
            Ok((Mutex::new(BufWriter::with_capacity(1 << 16, file)), path))
        };
        Ok(Self {
            files: (0..n).map(file).collect::<Result<_>>()?,
            record: PhantomData,
        })
    }

    /// Number of files.
    pub(crate) fn len(&self) -> usize {
        self.files.len()
    }

    /// The partition for a hash: by its highest bits.
    pub(crate) fn of(&self, hash: u64) -> usize {
        ((hash >> 32) as usize * self.len()) >> 32
    }

    /// Appends records to partition `idx`.
    pub(crate) fn write(&self, idx: usize, records: impl Iterator<Item = R>) -> Result<()> {
        let mut bytes = Vec::with_capacity(records.size_hint().0 * R::LEN);
        records.for_each(|record| record.put(&mut bytes));
        let (file, path) = &self.files[idx];
        let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
        file.write_all(&bytes)
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// All records of partition `idx`, in the order of writing.
    pub(crate) fn read(&self, idx: usize) -> Result<Vec<R>> {
        let (file, path) = &self.files[idx];
        let failed = || format!("cannot read {}", path.display());
        {
            let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
            file.flush()
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        let file = File::open(path).with_context(failed)?;
        let n = file.metadata().with_context(failed)?.len() as usize / R::LEN;
        // In pieces: the records and their bytes at once would take twice the memory.
        let mut reader = BufReader::with_capacity(1 << 16, file);
        let mut records = Vec::with_capacity(n);
        let mut bytes = vec![0; R::LEN * 4096];
        while records.len() < n {
            let piece = &mut bytes[..R::LEN * (n - records.len()).min(4096)];
            reader.read_exact(piece).with_context(failed)?;
            records.extend(piece.chunks_exact(R::LEN).map(R::get));
        }
        Ok(records)
    }
}

impl<R> Drop for Partitions<R> {
    fn drop(&mut self) {
        for (_, path) in &self.files {
            // What stays is swept with the scratch folder.
            std::fs::remove_file(path).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_back_and_files_go() {
        let folder = tempfile::tempdir().unwrap();
        let partitions = Partitions::<(u128, u32)>::create(folder.path(), "a", 4).unwrap();
        let records: Vec<_> = (0..10_000_u32)
            .map(|i| (u128::MAX - u128::from(i), i))
            .collect();
        partitions
            .write(1, records[..5000].iter().copied())
            .unwrap();
        partitions
            .write(1, records[5000..].iter().copied())
            .unwrap();
        assert_eq!(partitions.read(1).unwrap(), records);
        assert!(partitions.read(0).unwrap().is_empty());
        assert_eq!((partitions.of(0), partitions.of(u64::MAX)), (0, 3));
        drop(partitions);
        assert_eq!(folder.path().read_dir().unwrap().count(), 0);
    }
}
