//! Lines that stand in many documents: menus, licences, "Subscribe to our newsletter".
//!
//! [`Counter`] writes a record of 8 bytes for each different line of a document to partition files; [`Counter::finish`]
//! sorts them partition by partition, so memory holds one partition (1/64 of the records) and the lines that are found.

use crate::{control::Control, dedupe::partitions::Partitions, document::Body};
use anyhow::Result;
use rayon::prelude::*;
use std::{collections::HashSet, path::Path};
use xxhash_rust::xxh3::xxh3_64;

/// Shorter lines (brackets, `else:`, "Yes.") are no boilerplate, however often they occur.
pub const MIN_CHARS: usize = 10;

const PARTITIONS: usize = 64;

/// Counts in how many documents each line stands. Shared between threads.
#[derive(Debug)]
pub struct Counter {
    partitions: Partitions<u64>,
}

/// The lines that stand in many.
#[derive(Debug, Clone, Default)]
pub struct Lines {
    hashes: HashSet<u64>,
}

/// The hash of a line that counts.
fn hash(line: &str) -> Option<u64> {
    let line = line.trim();
    let is_long = line.len() >= MIN_CHARS && line.chars().nth(MIN_CHARS - 1).is_some();
    is_long.then(|| xxh3_64(line.as_bytes()))
}

impl Counter {
    /// Begins, with files in `scratch` that go when it does.
    ///
    /// # Errors
    /// When the files cannot be made.
    pub fn new(scratch: &Path) -> Result<Self> {
        let partitions = Partitions::create(scratch, "lines", PARTITIONS)?;
        Ok(Self { partitions })
    }

    /// Counts the lines of a document, each once.
    ///
    /// # Errors
    /// When the disk is full.
    pub fn add(&self, body: &Body) -> Result<()> {
        let lines = body.parts().into_iter().flat_map(str::lines);
        let mut hashes: Vec<u64> = lines.filter_map(hash).collect();
        hashes.sort_unstable();
        hashes.dedup();
        // Sorted, those of a partition stand together.
        for some in hashes.chunk_by(|a, b| self.partitions.of(*a) == self.partitions.of(*b)) {
            self.partitions
                .write(self.partitions.of(some[0]), some.iter().copied())?;
        }
        Ok(())
    }

    /// The lines in `min_docs` documents or more.
    ///
    /// # Errors
    /// When the files cannot be read, or somebody stopped it.
    pub fn finish(self, min_docs: u32, control: &dyn Control) -> Result<Lines> {
        let mut lines = Lines::default();
        for idx in 0..self.partitions.len() {
            control.check()?;
            let mut hashes = self.partitions.read(idx)?;
            hashes.par_sort_unstable();
            let equal = hashes.chunk_by(|a, b| a == b);
            let many = equal.filter(|equal| equal.len() >= min_docs.max(1) as usize);
            lines.hashes.extend(many.map(|equal| equal[0]));
        }
        Ok(lines)
    }
}

impl Lines {
    /// Number of lines.
    pub fn len(&self) -> usize {
        self.hashes.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.hashes.is_empty()
    }

    /// The text without them, and how many it had.
    pub(super) fn taken_from(&self, text: &str) -> (String, u64) {
        let is_one = |line: &str| hash(line).is_some_and(|hash| self.hashes.contains(&hash));
        let n = text.lines().filter(|line| is_one(line)).count();
        if n == 0 {
            return (String::new(), 0);
        }
        let kept = text.split_inclusive('\n').filter(|line| !is_one(line));
        (kept.collect(), n as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::Quiet;

    #[test]
    fn lines_of_many_documents_are_found_and_taken_out() {
        let folder = tempfile::tempdir().unwrap();
        let counter = Counter::new(folder.path()).unwrap();
        let menu = "Home | About | Contact";
        for i in 0..4 {
            // Twice in a document is once; a short line never counts.
            let menu = if i < 3 {
                format!("  {menu}\n{menu}\n")
            } else {
                String::new()
            };
            let text = format!("{menu}Yes.\nOnly line {i} of this text\n");
            counter.add(&Body::Text(text)).unwrap();
        }
        let lines = counter.finish(3, &Quiet).unwrap();
        assert_eq!(lines.len(), 1);
        assert_eq!(
            folder.path().read_dir().unwrap().count(),
            0,
            "the files are gone"
        );
        let (text, n) = lines.taken_from("a\nHome | About | Contact\nb\n\tHome | About | Contact");
        assert_eq!((text.as_str(), n), ("a\nb\n", 2));
        assert_eq!(lines.taken_from("Home | About").1, 0);
    }

    #[test]
    fn ten_characters_are_counted_as_characters() {
        assert!(hash("äöüäöüäöü").is_none() && hash("äöüäöüäöüä").is_some());
        assert!(hash("  123456789  ").is_none() && hash("  1234567890 ").is_some());
    }
}
