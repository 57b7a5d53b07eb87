//! What requests are compared with: the data that the model was trained on, as its file records it (docs/gguf-keys.md), and requests
//! of days that were fine.

use crate::{
    cusum::Level,
    divergence::{Share, Shares},
    sketch::{N_ROWS, WIDTH, cell},
    traffic::Window,
};
use anyhow::{Context, Result, bail, ensure};
use fledgling_core::{gguf::Metadata, tokenizer::Tokenizer};
use serde::{Deserialize, Serialize};
use std::{collections::HashSet, path::Path};

/// What a model file says of its training.
#[derive(Debug)]
pub struct Trained {
    /// Shares of tokens in the rows, by cell.
    pub shares: Shares,
    /// Prompts of 0 tokens, 1, 2 to 3, …; `None` for plain text.
    pub prompt_lengths: Option<Vec<u64>>,
    /// Answers of so many.
    pub answer_lengths: Option<Vec<u64>>,
    /// Mean surprise of held-out rows, in nats a token.
    pub valid_loss: Option<f64>,
    /// How many tokens the figures are of.
    pub tokens: u64,
}

impl Trained {
    /// Reads a file's keys; `None` where it has no histogram, as a file that was not trained with this program.
    ///
    /// # Errors
    /// When the keys contradict each other.
    pub fn of(metadata: &Metadata) -> Result<Option<Self>> {
        const IDS: &str = "fledgling.data.histogram.ids";
        const COUNTS: &str = "fledgling.data.histogram.counts";
        let (ids, counts) = match (metadata.ints(IDS), metadata.ints(COUNTS)) {
            (None, None) => return Ok(None),
            (Some(ids), Some(counts)) => (ids, counts),
            _ => bail!("of {IDS} and {COUNTS} one is missing"),
        };
        ensure!(
            ids.len() == counts.len(),
            "{IDS} and {COUNTS} are not of the same length"
        );
        let vocab_size = metadata
            .strings("tokenizer.ggml.tokens")
            .map_or(0, |tokens| tokens.len() as u64);
        let known: Vec<(u32, u64)> = ids
            .into_iter()
            .zip(counts)
            .map(|(id, count)| Some((u32::try_from(id).ok()?, u64::try_from(count).ok()?)))
            .collect::<Option<_>>()
            .with_context(|| format!("{IDS} or {COUNTS} has a negative number"))?;
        let other = metadata.u64("fledgling.data.histogram.other").unwrap_or(0);
        let tokens = known
            .iter()
            .fold(other, |sum, (_, count)| sum.saturating_add(*count));
        ensure!(tokens > 0, "{COUNTS} is empty");
        let lengths = |key: &str| -> Option<Vec<u64>> {
            let counts = metadata.ints(key)?;
            counts.into_iter().map(|n| u64::try_from(n).ok()).collect()
        };
        Ok(Some(Self {
            shares: shares(&known, other, vocab_size.min(1 << 24) as u32),
            prompt_lengths: lengths("fledgling.data.prompt_lengths"),
            answer_lengths: lengths("fledgling.data.answer_lengths"),
            valid_loss: metadata
                .f64("fledgling.train.valid_loss")
                .filter(|loss| loss.is_finite()),
            tokens,
        }))
    }
}

/// Shares of cells: those of the known ids, and the rest evenly over all ids that are not known.
fn shares(known: &[(u32, u64)], other: u64, vocab_size: u32) -> Shares {
    let listed: HashSet<u32> = known.iter().map(|(id, _)| *id).collect();
    let unlisted = || (0..vocab_size).filter(|id| !listed.contains(id));
    let n_unlisted = unlisted().count().max(1) as f64;
    let row = |row: usize| {
        let mut counts = vec![0.0; WIDTH];
        for &(id, count) in known {
            counts[cell(row, id)] += count as f64;
        }
        for id in unlisted() {
            counts[cell(row, id)] += other as f64 / n_unlisted;
        }
        let total: f64 = counts.iter().sum();
        // Training data are what they are, not a sample.
        let share = |count: f64| Share {
            share: count / total,
            variance: 0.0,
        };
        counts.into_iter().map(share).collect()
    };
    let rows: [usize; N_ROWS] = std::array::from_fn(|i| i);
    Shares {
        rows: rows.map(row),
    }
}

/// Days that were fine: a week of the service, kept in a file for the weeks after it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// Version of the form.
    fledgling_baseline: u32,
    /// The model whose requests they were.
    pub model: String,
    /// Their sums.
    pub window: Window,
    /// Level of the prompts' surprise; `None` where there were too few.
    pub prompt_surprise: Option<Level>,
    /// Level of the answers' surprise.
    pub answer_surprise: Option<Level>,
}

impl Calibration {
    /// Of the days' sums and the surprises of their requests.
    pub fn new(model: String, window: Window, prompts: &[f64], answers: &[f64]) -> Self {
        Self {
            fledgling_baseline: 1,
            model,
            window,
            prompt_surprise: Level::of(prompts),
            answer_surprise: Level::of(answers),
        }
    }

    /// Reads a file of [`Calibration::to_json`].
    ///
    /// # Errors
    /// When it is none.
    pub fn open(path: &Path) -> Result<Self> {
        let bytes =
            std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let parsed = serde_json::from_slice::<Self>(&bytes);
        let found = parsed.with_context(|| {
            format!(
                "{} is no baseline that --write-baseline wrote",
                path.display()
            )
        })?;
        let levels = [found.prompt_surprise, found.answer_surprise];
        let is_sound = found.fledgling_baseline == 1
            && found.window.prompt.is_sound()
            && found.window.all.is_sound()
            && levels
                .iter()
                .flatten()
                .all(|level| level.mean.is_finite() && level.sd > 0.0);
        ensure!(
            is_sound,
            "{} is a broken baseline, or one of another version",
            path.display()
        );
        Ok(found)
    }

    /// The file's text.
    ///
    /// # Errors
    /// Never for one of ours.
    pub fn to_json(&self) -> Result<String> {
        Ok(serde_json::to_string(self)? + "\n")
    }
}

/// Tokens that became more frequent, by all rows of the sketch: a token's excess is at most what each of its cells shows.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Risen {
    /// The token's id.
    pub id: u32,
    /// Its text.
    pub text: String,
    /// Its share of all tokens less the baseline's, at most.
    pub excess: f64,
}

/// The `n` tokens whose excess is largest.
pub fn risen(tokenizer: &Tokenizer, baseline: &Shares, now: &Shares, n: usize) -> Vec<Risen> {
    let rows: Vec<_> = baseline
        .rows
        .iter()
        .zip(&now.rows)
        .enumerate()
        .filter(|(_, (q, p))| !q.is_empty() && !p.is_empty())
        .collect();
    // With fewer rows, hundreds of ids share what is said of one.
    if rows.len() < N_ROWS {
        return Vec::new();
    }
    let excess = |id: u32| {
        rows.iter()
            .map(|(row, (q, p))| {
                let cell = cell(*row, id);
                // What chance may have brought does not count.
                let chance = 3.0 * (p[cell].variance + q[cell].variance).sqrt();
                p[cell].share - q[cell].share - chance
            })
            .fold(f64::INFINITY, f64::min)
    };
    let mut all: Vec<(u32, f64)> = (0..tokenizer.vocab_size() as u32)
        .map(|id| (id, excess(id)))
        .filter(|(_, excess)| *excess > 1e-4)
        .collect();
    all.sort_by(|a, b| b.1.total_cmp(&a.1));
    all.truncate(n);
    all.into_iter()
        .map(|(id, excess)| Risen {
            id,
            text: tokenizer.decode(&[id], false),
            excess,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        divergence::{Counts, compare},
        sketch::Sketch,
    };

    fn metadata(ids: Vec<u32>, counts: Vec<u64>) -> Metadata {
        let mut metadata = Metadata::new();
        metadata.set("fledgling.data.histogram.ids", ids);
        metadata.set("fledgling.data.histogram.counts", counts);
        metadata.set("fledgling.data.histogram.other", 10_u64);
        metadata.set("fledgling.data.prompt_lengths", vec![0_u64, 2, 8]);
        metadata.set("fledgling.train.valid_loss", 2.5_f64);
        metadata
    }

    #[test]
    fn the_keys_of_a_file_are_a_baseline() {
        let trained = Trained::of(&metadata(vec![7, 3], vec![60, 30]))
            .unwrap()
            .unwrap();
        assert_eq!(trained.tokens, 100);
        assert_eq!(trained.prompt_lengths, Some(vec![0, 2, 8]));
        assert_eq!(trained.valid_loss, Some(2.5));
        for (row, shares) in trained.shares.rows.iter().enumerate() {
            assert!(shares[cell(row, 7)].share >= 0.6);
        }
        // Requests of the same distribution are no distance away.
        let mut counts = Counts::default();
        for i in 0..400 {
            let ids: Vec<u32> = (0..9).map(|j| if j % 3 == 2 { 3 } else { 7 }).collect();
            let sketch = Sketch::of(i, &ids, &[]);
            counts.add(sketch.row, sketch.prompt_cells());
        }
        let (psi, _) = compare(&trained.shares, &counts).unwrap();
        assert!(psi.value < 0.02, "{psi:?}");
    }

    #[test]
    fn broken_keys_are_named_and_none_are_none() {
        assert!(Trained::of(&Metadata::new()).unwrap().is_none());
        let error = |ids: Vec<u32>, counts: Vec<u64>| {
            Trained::of(&metadata(ids, counts)).unwrap_err().to_string()
        };
        assert!(error(vec![1], vec![]).contains("same length"));
        let mut half = Metadata::new();
        half.set("fledgling.data.histogram.ids", vec![1_u32]);
        assert!(
            Trained::of(&half)
                .unwrap_err()
                .to_string()
                .contains("missing")
        );
    }

    #[test]
    fn a_calibration_comes_back_from_its_file() {
        let values: Vec<f64> = (0..500).map(|i| 3.0 + f64::from(i % 7) / 10.0).collect();
        let kept = Calibration::new("m".to_owned(), Window::default(), &values, &[]);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("baseline.json");
        std::fs::write(&path, kept.to_json().unwrap()).unwrap();
        assert_eq!(Calibration::open(&path).unwrap(), kept);
        assert!(kept.prompt_surprise.is_some() && kept.answer_surprise.is_none());
        std::fs::write(&path, "{}").unwrap();
        let error = Calibration::open(&path).unwrap_err().to_string();
        assert!(error.contains("--write-baseline"), "{error}");
    }
}
