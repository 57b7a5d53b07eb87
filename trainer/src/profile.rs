//! What a run learnt from, in figures that requests can be compared with: how often each token stood in the data, and how long
//! prompts and answers were. Training writes it into the run's folder; export takes it into the file.

use anyhow::{Context, Result};
use fledgling_data::{
    config::Split,
    shards::{Shards, SplitShards},
};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Its file in a run's folder.
pub const PROFILE_FILE: &str = "data_profile.json";
/// Ids that are counted one by one; the rest together is their tail.
const N_IDS: usize = 4096;
/// Lengths are counted up to `2^(N_LENGTHS - 1)`.
const N_LENGTHS: usize = 24;
/// Tokens that are looked at: of more, every n-th row.
const MAX_TOKENS: u64 = 1 << 26;

/// The figures.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Profile {
    /// SHA-256 of the rows to learn from.
    pub train_sha256: Option<String>,
    /// SHA-256 of the rows held out.
    pub valid_sha256: Option<String>,
    /// Rows there are.
    pub rows: u64,
    /// Rows that were looked at.
    pub rows_seen: u64,
    /// Tokens in these.
    pub tokens: u64,
    /// Tokens to be learnt in these.
    pub counted: u64,
    /// The most frequent ids and how often each stands there, the most frequent first; of equals the lower id.
    pub ids: Vec<(u32, u64)>,
    /// How many tokens have other ids.
    pub other: u64,
    /// How many prompts have a length of 0, of 1, of 2 to 3, of 4 to 7, … tokens. A prompt is what stands before the first token to
    /// be learnt; plain text has none.
    pub prompt_lengths: Vec<u64>,
    /// The same of answers: the tokens to be learnt of a row that has a prompt.
    pub answer_lengths: Vec<u64>,
}

/// A profile in the making.
#[derive(Debug, Default)]
pub struct Gatherer {
    profile: Profile,
    counts: Vec<u64>,
}

impl Gatherer {
    /// Adds a row: its tokens, and which of them are to be learnt (the first never is).
    pub fn add(&mut self, tokens: &[u32], counted: &[bool]) {
        let profile = &mut self.profile;
        profile.rows_seen += 1;
        profile.tokens += tokens.len() as u64;
        for &id in tokens {
            let id = id as usize;
            if id >= self.counts.len() {
                self.counts.resize(id + 1, 0);
            }
            self.counts[id] += 1;
        }
        let learnt = |t: &usize| counted[*t];
        let n_counted = (1..counted.len()).filter(learnt).count();
        profile.counted += n_counted as u64;
        match (1..counted.len()).find(learnt) {
            // Nothing but its first token stands before plain text.
            Some(1) | None => {}
            Some(n_prompt) => {
                count_length(&mut profile.prompt_lengths, n_prompt);
                count_length(&mut profile.answer_lengths, n_counted);
            }
        }
    }

    /// The figures of what was added, out of `n_rows` rows there are.
    pub fn finish(self, n_rows: u64) -> Profile {
        let mut ids: Vec<(u32, u64)> = (0_u32..)
            .zip(self.counts)
            .filter(|(_, count)| *count > 0)
            .collect();
        ids.sort_by_key(|(id, count)| (std::cmp::Reverse(*count), *id));
        let other = ids.iter().skip(N_IDS).map(|(_, count)| count).sum();
        ids.truncate(N_IDS);
        Profile {
            rows: n_rows,
            ids,
            other,
            ..self.profile
        }
    }
}

fn count_length(lengths: &mut Vec<u64>, n: usize) {
    let bin = (usize::BITS - n.leading_zeros()) as usize;
    let bin = bin.min(N_LENGTHS);
    if bin >= lengths.len() {
        lengths.resize(bin + 1, 0);
    }
    lengths[bin] += 1;
}

/// Every how many rows one is looked at, so that a large corpus costs seconds.
pub fn stride(n_tokens: u64) -> usize {
    n_tokens.div_ceil(MAX_TOKENS).max(1) as usize
}

impl Profile {
    /// The figures of a run: as it wrote them, or from the prepared data it names, where these are still there.
    ///
    /// # Errors
    /// When what is there is broken.
    pub fn of_run(folder: &Path, data: &[PathBuf]) -> Result<Option<Self>> {
        // A checkpoint is of the run two folders above.
        let run = folder.ancestors().nth(2).filter(|_| is_checkpoint(folder));
        for place in [Some(folder), run].into_iter().flatten() {
            let path = place.join(PROFILE_FILE);
            if path.is_file() {
                let bytes = std::fs::read(&path).with_context(|| path.display().to_string())?;
                let profile = serde_json::from_slice(&bytes);
                return profile
                    .map(Some)
                    .with_context(|| format!("{} is broken", path.display()));
            }
        }
        if data.is_empty() || !data.iter().all(|folder| Shards::is_dataset(folder)) {
            return Ok(None);
        }
        Self::of_shards(data).map(Some)
    }

    /// The figures of prepared data.
    ///
    /// # Errors
    /// What is wrong with a file.
    pub fn of_shards(folders: &[PathBuf]) -> Result<Self> {
        let splits = folders.iter().map(|folder| {
            let split = Shards::open(folder)?.into_split(Split::Train);
            split.with_context(|| format!("{} holds no rows to train on", folder.display()))
        });
        let splits = splits.collect::<Result<Vec<_>>>()?;
        let stride = stride(splits.iter().map(SplitShards::n_tokens).sum());
        let mut gatherer = Gatherer::default();
        let mut n_rows = 0;
        for split in &splits {
            for idx in 0..split.n_rows() {
                for range in split.segments(idx) {
                    // As training takes them: what teaches nothing is no row.
                    if split.n_counted_in(idx, range.clone()) == 0 {
                        continue;
                    }
                    if n_rows % stride as u64 == 0 {
                        let row = split.segment(idx, range)?;
                        gatherer.add(&row.tokens, &row.counted);
                    }
                    n_rows += 1;
                }
            }
        }
        Ok(gatherer.finish(n_rows))
    }

    /// The bytes of its file.
    ///
    /// # Errors
    /// Never for figures of ours.
    pub fn to_json(&self) -> Result<Vec<u8>> {
        let mut text = serde_json::to_vec(self)?;
        text.push(b'\n');
        Ok(text)
    }
}

fn is_checkpoint(folder: &Path) -> bool {
    let parent = folder.parent().and_then(Path::file_name);
    parent.is_some_and(|name| name == crate::run::CHECKPOINTS_DIR)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_rows() {
        let mut gatherer = Gatherer::default();
        // A prompt of three tokens, an answer of two.
        gatherer.add(&[5, 6, 7, 5, 9], &[false, false, false, true, true]);
        // Plain text.
        gatherer.add(&[5, 5], &[false, true]);
        let profile = gatherer.finish(4);
        assert_eq!((profile.rows, profile.rows_seen), (4, 2));
        assert_eq!((profile.tokens, profile.counted, profile.other), (7, 3, 0));
        assert_eq!(profile.ids, [(5, 4), (6, 1), (7, 1), (9, 1)]);
        assert_eq!(profile.prompt_lengths, [0, 0, 1]);
        assert_eq!(profile.answer_lengths, [0, 0, 1]);
    }

    #[test]
    fn rare_ids_are_counted_together() {
        let mut gatherer = Gatherer::default();
        let ids: Vec<u32> = (0..N_IDS as u32 + 10).chain([3, 3]).collect();
        gatherer.add(&ids, &vec![true; ids.len()]);
        let profile = gatherer.finish(1);
        assert_eq!((profile.ids.len(), profile.ids[0]), (N_IDS, (3, 3)));
        assert_eq!(profile.other, 10);
        let sum: u64 = profile.ids.iter().map(|(_, count)| count).sum();
        assert_eq!(sum + profile.other, profile.tokens);
    }

    #[test]
    fn lengths_are_counted_by_powers_of_two() {
        let mut lengths = Vec::new();
        for n in [1, 2, 3, 4, 7, 8, usize::MAX] {
            count_length(&mut lengths, n);
        }
        assert_eq!(lengths[..5], [0, 1, 2, 2, 1]);
        assert_eq!((lengths.len(), lengths[N_LENGTHS]), (N_LENGTHS + 1, 1));
    }

    #[test]
    fn a_checkpoint_has_the_figures_of_its_run() {
        let dir = tempfile::tempdir().unwrap();
        let checkpoint = dir.path().join("checkpoints/step-3");
        std::fs::create_dir_all(&checkpoint).unwrap();
        assert_eq!(Profile::of_run(&checkpoint, &[]).unwrap(), None);
        let profile = Profile {
            tokens: 7,
            ..Profile::default()
        };
        std::fs::write(dir.path().join(PROFILE_FILE), profile.to_json().unwrap()).unwrap();
        assert_eq!(
            Profile::of_run(&checkpoint, &[]).unwrap(),
            Some(profile.clone())
        );
        assert_eq!(Profile::of_run(dir.path(), &[]).unwrap(), Some(profile));
        std::fs::write(dir.path().join(PROFILE_FILE), "{").unwrap();
        let error = Profile::of_run(&checkpoint, &[]).unwrap_err();
        assert!(error.to_string().contains("is broken"), "{error}");
    }
}
