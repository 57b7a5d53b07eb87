//! Rows to train on, and their batches.
//!
//! Rows of files that [`fledgling_data::collect`] reads go through the model's own template where they are chats, and only
//! what the assistant says counts ([`fledgling_data::encode`]). Text is cut into windows in which everything counts. A folder of prepared data
//! is mapped: of its segments only places and lengths are in memory, and each is a row that is read when a batch needs it.

use super::model::Batch;
use anyhow::{Context, Result, ensure};
use fledgling_core::model::ModelInfo;
use fledgling_data::{
    collect,
    config::{Source, Split},
    document::Document,
    encode::{Encoded, Encoder},
    shards::{Shards, SplitShards},
};
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};
use std::{
    borrow::Cow,
    ops::Range,
    path::{Path, PathBuf},
};

/// Batches are sorted by length within this many batches, so that rows of a batch need little padding.
const SORT_WINDOW_BATCHES: usize = 32;

/// One row: token t+1 is to be predicted from tokens 0..=t where `counted[t + 1]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The tokens.
    pub tokens: Vec<u32>,
    /// Whether each token counts in the loss; the first cannot.
    pub counted: Vec<bool>,
    /// `file:line`, for messages.
    pub place: String,
}

impl Row {
    /// Positions in the loss.
    pub fn n_counted(&self) -> usize {
        self.counted
            .iter()
            .skip(1)
            .filter(|&&counted| counted)
            .count()
    }
}

/// What was read: first the rows of files, then those of folders, by number.
#[derive(Debug, Default)]
pub struct Rows {
    /// The rows of files, in file order.
    pub rows: Vec<Row>,
    /// Chats that lost their end to `max_tokens`.
    pub n_truncated: usize,
    /// Chats left out because nothing of an answer was left within `max_tokens`.
    pub n_dropped: usize,
    folders: Vec<Folder>,
    segments: Vec<Segment>,
    /// The rows of each entry in the order of the config.
    parts: Vec<Part>,
    /// How often the rows of each part are shown in a pass; once, when empty.
    weights: Vec<f64>,
}

/// The rows of one entry: among those of files, or among those of folders.
#[derive(Debug, Clone)]
enum Part {
    Files(Range<usize>),
    Folders(Range<usize>),
}

/// A folder of prepared data.
#[derive(Debug)]
struct Folder {
    path: PathBuf,
    shards: SplitShards,
    /// SHA-256 of each file.
    hashes: Vec<String>,
}

/// Where a row of a folder lies.
#[derive(Debug, Clone, Copy)]
struct Segment {
    folder_idx: u32,
    row_idx: u32,
    /// First token within the row.
    start: u32,
    n_tokens: u32,
    n_counted: u32,
}

impl Rows {
    /// Rows there are.
    pub fn len(&self) -> usize {
        self.rows.len() + self.segments.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Positions in the loss.
    pub fn n_counted(&self) -> usize {
        (0..self.len()).map(|idx| self.n_counted_of(idx)).sum()
    }

    /// Positions in the loss of the row `idx`.
    ///
    /// # Panics
    /// When there is no such row.
    pub fn n_counted_of(&self, idx: usize) -> usize {
        match self.segment(idx) {
            Some(segment) => segment.n_counted as usize,
            None => self.rows[idx].n_counted(),
        }
    }

    /// Tokens of the row `idx`.
    ///
    /// # Panics
    /// When there is no such row.
    pub fn n_tokens_of(&self, idx: usize) -> usize {
        match self.segment(idx) {
            Some(segment) => segment.n_tokens as usize,
            None => self.rows[idx].tokens.len(),
        }
    }

    /// Where the row `idx` is from, for messages.
    ///
    /// # Panics
    /// When there is no such row.
    pub fn place_of(&self, idx: usize) -> Cow<'_, str> {
        match self.segment(idx) {
            Some(segment) => segment.place(&self.folders).into(),
            None => self.rows[idx].place.as_str().into(),
        }
    }

    /// The row `idx`.
    ///
    /// # Panics
    /// When there is no such row, or a prepared file was changed after it was opened.
    pub fn row(&self, idx: usize) -> Cow<'_, Row> {
        match self.segment(idx) {
            Some(segment) => Cow::Owned(segment.read(&self.folders)),
            None => Cow::Borrowed(&self.rows[idx]),
        }
    }

    /// SHA-256 of the prepared files that rows are read from: what stands for these rows in a fingerprint.
    pub fn file_hashes(&self) -> impl Iterator<Item = &str> {
        let hashes = self.folders.iter().flat_map(|folder| &folder.hashes);
        hashes.map(String::as_str)
    }

    /// Shows the rows of each entry so many times in a pass.
    ///
    /// # Panics
    /// When there are not as many weights as entries.
    pub fn mix(&mut self, weights: &[f64]) {
        assert_eq!(weights.len(), self.parts.len(), "a weight an entry");
        self.weights = weights.to_vec();
    }

    /// Rows shown in a pass.
    pub fn n_shown(&self) -> usize {
        if self.weights.is_empty() {
            return self.len();
        }
        self.shares().map(|(_, n)| n).sum()
    }

    /// The rows of each part, and how many are shown in a pass.
    fn shares(&self) -> impl Iterator<Item = (Range<usize>, usize)> {
        let n_files = self.rows.len();
        let parts = self.parts.iter().zip(&self.weights);
        parts.map(move |(part, weight)| {
            let range = match part {
                Part::Files(range) => range.clone(),
                Part::Folders(range) => n_files + range.start..n_files + range.end,
            };
            let n = (range.len() as f64 * weight).round() as usize;
            (range, n)
        })
    }

    /// The rows of a pass, not yet shuffled.
    fn shown(&self, rng: &mut impl Rng) -> Vec<usize> {
        if self.weights.is_empty() {
            return (0..self.len()).collect();
        }
        let mut order = Vec::with_capacity(self.n_shown());
        for (part, n) in self.shares().filter(|(part, _)| !part.is_empty()) {
            for _ in 0..n / part.len() {
                order.extend(part.clone());
            }
            let mut rest: Vec<usize> = part.clone().collect();
            shuffle(&mut rest, rng);
            order.extend(&rest[..n % part.len()]);
        }
        order
    }

    fn segment(&self, idx: usize) -> Option<&Segment> {
        let idx = idx.checked_sub(self.rows.len())?;
        Some(&self.segments[idx])
    }
}

impl Segment {
    fn place(&self, folders: &[Folder]) -> String {
        let folder = &folders[self.folder_idx as usize].path;
        format!(
            "{}, row {}, token {}",
            folder.display(),
            self.row_idx,
            self.start
        )
    }

    fn read(&self, folders: &[Folder]) -> Row {
        let shards = &folders[self.folder_idx as usize].shards;
        let start = self.start as usize;
        let place = self.place(folders);
        let read = shards.segment(self.row_idx as usize, start..start + self.n_tokens as usize);
        // All ids were looked at when the folder was opened.
        let row = read.unwrap_or_else(|error| panic!("{place}: {error:#}"));
        Row {
            tokens: row.tokens,
            counted: row.counted,
            place,
        }
    }
}

/// Reads files and folders for the model `info`; rows have at most `max_tokens` inputs. Of a folder of prepared data the
/// part for training is taken.
///
/// # Errors
/// With the file and line.
pub fn read(paths: &[PathBuf], info: &ModelInfo, max_tokens: usize) -> Result<Rows> {
    read_split(paths, Split::Train, info, max_tokens)
}

/// As [`read`], with the part of prepared data that is taken.
///
/// # Errors
/// With the file and line.
pub fn read_split(
    paths: &[PathBuf],
    split: Split,
    info: &ModelInfo,
    max_tokens: usize,
) -> Result<Rows> {
    let mut out = Rows::default();
    let encoder = Encoder::from_model(info);
    for path in paths {
        if path.is_dir() {
            let start = out.segments.len();
            read_folder(path, split, &encoder, max_tokens, &mut out)?;
            out.parts.push(Part::Folders(start..out.segments.len()));
            continue;
        }
        let start = out.rows.len();
        if path.extension().is_some_and(|ending| ending == "txt") {
            read_text(path, info, max_tokens, &mut out)?;
        } else {
            read_documents(path, &encoder, max_tokens, &mut out)?;
        }
        out.parts.push(Part::Files(start..out.rows.len()));
    }
    Ok(out)
}

/// Maps a folder of prepared data. Each segment is a row: its tokens see nothing of the other segments.
fn read_folder(
    path: &Path,
    split: Split,
    encoder: &Encoder,
    max_tokens: usize,
    out: &mut Rows,
) -> Result<()> {
    let shards = Shards::open(path)?;
    shards.check_tokenizer(encoder)?;
    let manifest = shards.manifest();
    let context = manifest.context;
    ensure!(
        context <= max_tokens,
        "the rows in {} were prepared for {context} tokens, and data.max_tokens is {max_tokens}: set it to {context}, or prepare the data again with context = {max_tokens}",
        path.display()
    );
    let files = manifest.splits.get(&split).map(|info| &info.shards);
    let files = files.into_iter().flatten().flat_map(|shard| &shard.files);
    let hashes = files.map(|file| file.sha256.clone()).collect();
    let name = match split {
        Split::Train => "to train on",
        Split::Valid => "to validate on",
        Split::Test => "to test on",
    };
    let shards = shards
        .into_split(split)
        .with_context(|| format!("{} holds no rows {name}", path.display()))?;
    shards
        .check_ids()
        .with_context(|| path.display().to_string())?;
    let folder_idx = out.folders.len() as u32;
    ensure!(
        u32::try_from(shards.n_rows()).is_ok(),
        "{} holds more rows than 2^32",
        path.display()
    );
    for row_idx in 0..shards.n_rows() {
        let segments = shards.segments(row_idx).map(|range| Segment {
            folder_idx,
            row_idx: row_idx as u32,
            start: range.start as u32,
            n_tokens: range.len() as u32,
            n_counted: shards.n_counted_in(row_idx, range) as u32,
        });
        // A window of a long prompt teaches nothing.
        out.segments
            .extend(segments.filter(|segment| segment.n_counted > 0));
    }
    out.folders.push(Folder {
        path: path.to_owned(),
        shards,
        hashes,
    });
    Ok(())
}

/// Reads what [`fledgling_data::collect`] reads. Prompts and completions become chats where there is a chat template.
fn read_documents(path: &Path, encoder: &Encoder, max_tokens: usize, out: &mut Rows) -> Result<()> {
    let source = Source::of(&path.to_string_lossy());
    for document in collect::all(std::slice::from_ref(&source))? {
        let Document { place, body } = document?;
        let place = place.to_string();
        let body = if encoder.has_chat_template() {
            body.into_chat()
        } else {
            body
        };
        let encoded = encoder.encode(&body);
        let Encoded { tokens, counted } = encoded.with_context(|| place.clone())?;
        let Some(mut counted) = counted else {
            windows(&tokens, &place, max_tokens, out);
            continue;
        };
        let mut tokens = tokens;
        if tokens.len() > max_tokens + 1 {
            tokens.truncate(max_tokens + 1);
            counted.truncate(max_tokens + 1);
            out.n_truncated += 1;
        }
        let row = Row {
            tokens,
            counted,
            place,
        };
        if row.n_counted() == 0 {
            out.n_dropped += 1;
        } else {
            out.rows.push(row);
        }
    }
    Ok(())
}

/// A text file is one stream of text, which does not end.
fn read_text(path: &Path, info: &ModelInfo, max_tokens: usize, out: &mut Rows) -> Result<()> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read the data file {}", path.display()))?;
    let tokens = info
        .tokenizer
        .encode(&text, info.tokenizer.adds_bos(), false);
    windows(&tokens, &path.display().to_string(), max_tokens, out);
    Ok(())
}

/// Windows share one token: the last of one is the first input of the next, so that each is predicted once.
fn windows(tokens: &[u32], place: &str, max_tokens: usize, out: &mut Rows) {
    let mut start = 0;
    while start + 1 < tokens.len() {
        let window = &tokens[start..(start + max_tokens + 1).min(tokens.len())];
        out.rows.push(Row {
            tokens: window.to_vec(),
            counted: vec![true; window.len()],
            place: format!("{place}, token {start}"),
        });
        start += max_tokens;
    }
}

/// The batches of one pass over the rows, as row indices: shuffled by `seed` and `epoch`, rows of like length together.
pub fn epoch_batches(rows: &Rows, batch: usize, seed: u64, epoch: u64) -> Vec<Vec<usize>> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(epoch + 1);
    let mut order = rows.shown(&mut rng);
    shuffle(&mut order, &mut rng);
    for window in order.chunks_mut(batch * SORT_WINDOW_BATCHES) {
        window.sort_by_key(|&idx| rows.n_tokens_of(idx));
    }
    let mut batches: Vec<Vec<usize>> = order.chunks(batch).map(<[usize]>::to_vec).collect();
    shuffle(&mut batches, &mut rng);
    batches
}

/// All rows in batches by length, for validation.
pub fn sorted_batches(rows: &Rows, batch: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..rows.len()).collect();
    order.sort_by_key(|&idx| rows.n_tokens_of(idx));
    order.chunks(batch).map(<[usize]>::to_vec).collect()
}

/// Fisher and Yates.
fn shuffle<T>(items: &mut [T], rng: &mut impl Rng) {
    for i in (1..items.len()).rev() {
        // The bias of the remainder is below 2^-40 for any number of rows that fits in memory.
        items.swap(i, (rng.next_u64() % (i as u64 + 1)) as usize);
    }
}

/// Puts rows under each other, padded on the right with `pad`.
pub fn collate(rows: &Rows, indices: &[usize], pad: u32) -> Batch {
    let n_tokens = indices
        .iter()
        .map(|&idx| rows.n_tokens_of(idx) - 1)
        .max()
        .unwrap_or(0);
    let mut batch = Batch {
        tokens: Vec::new(),
        n_rows: indices.len(),
        n_tokens,
        counted: Vec::new(),
        targets: Vec::new(),
    };
    for &idx in indices {
        let row = rows.row(idx);
        let start = batch.tokens.len();
        let inputs = &row.tokens[..row.tokens.len() - 1];
        for (t, _) in row
            .counted
            .iter()
            .skip(1)
            .enumerate()
            .filter(|&(_, &counted)| counted)
        {
            batch.counted.push((start + t) as u32);
            batch.targets.push(row.tokens[t + 1]);
        }
        batch.tokens.extend_from_slice(inputs);
        batch.tokens.resize(start + n_tokens, pad);
    }
    batch
}

#[cfg(test)]
mod tests {
    use super::*;
    use fledgling_core::{gguf::Header, quant::DType, spec::Family, testing::tiny_model};
    use fledgling_data::{
        config::PackMode,
        pack as packed,
        shards::{About, DatasetWriter, Layout},
    };

    fn rows(lengths: &[usize]) -> Rows {
        let row = |(idx, &len): (usize, &usize)| Row {
            tokens: (0..len as u32).map(|t| t + 10 * idx as u32).collect(),
            counted: (0..len).map(|t| t >= 2).collect(),
            place: idx.to_string(),
        };
        Rows {
            rows: lengths.iter().enumerate().map(row).collect(),
            ..Rows::default()
        }
    }

    #[test]
    fn a_batch_holds_inputs_padding_and_what_follows_the_counted_positions() {
        let batch = collate(&rows(&[4, 3]), &[1, 0], 99);
        assert_eq!(batch.tokens, [10, 11, 99, 0, 1, 2]);
        assert_eq!((batch.n_rows, batch.n_tokens), (2, 3));
        assert_eq!(batch.counted, [1, 4, 5]);
        assert_eq!(batch.targets, [12, 2, 3]);
    }

    #[test]
    fn a_mixture_shows_rows_as_often_as_their_weights_say() {
        let mut rows = rows(&[5; 30]);
        rows.parts = vec![Part::Files(0..10), Part::Files(10..30), Part::Files(30..30)];
        rows.mix(&[2.5, 0.25, 3.0]);
        assert_eq!(rows.n_shown(), 25 + 5);
        let counts = |epoch| {
            let mut counts = [0; 30];
            for idx in epoch_batches(&rows, 4, 1, epoch).concat() {
                counts[idx] += 1;
            }
            counts
        };
        let first = counts(0);
        assert_eq!(first[..10].iter().sum::<usize>(), 25);
        assert!(first[..10].iter().all(|&n| n == 2 || n == 3));
        assert_eq!(first[10..].iter().sum::<usize>(), 5);
        assert_eq!(first, counts(0));
        assert_ne!(first, counts(1), "another choice in the next pass");
    }

    #[test]
    fn an_epoch_has_every_row_once_in_an_order_of_its_own() {
        let rows = rows(&[5; 23]);
        let order = |seed, epoch| epoch_batches(&rows, 4, seed, epoch).concat();
        let mut sorted = order(1, 0);
        sorted.sort_unstable();
        assert_eq!(sorted, (0..23).collect::<Vec<_>>());
        assert_eq!(order(1, 0), order(1, 0));
        assert_ne!(order(1, 0), order(1, 1));
        assert_ne!(order(1, 0), order(2, 0));
    }

    fn model(change: impl Fn(&mut Header)) -> ModelInfo {
        let mut header = Header::parse(&tiny_model(Family::Llama, DType::F32, 1)).unwrap();
        change(&mut header);
        ModelInfo::from_header(&header).unwrap()
    }

    fn prepare(folder: &Path, info: &ModelInfo, rows: &[(Split, packed::Row)]) {
        let layout = Layout {
            tokenizer: Encoder::from_model(info).id(true),
            context: 16,
            mode: PackMode::Segments,
            shard_tokens: 20,
        };
        let mut writer = DatasetWriter::create(folder, layout).unwrap();
        for (split, row) in rows {
            writer.push(*split, row).unwrap();
        }
        writer.finish(About::default()).unwrap();
    }

    fn packed(segments: &[u32], first: u32) -> packed::Row {
        let n = segments.iter().sum::<u32>();
        packed::Row {
            tokens: (first..first + n).collect(),
            // Every third counts, so a segment of two may teach nothing.
            counted: (0..n).map(|i| i % 3 == 0).collect(),
            segments: segments.to_vec(),
        }
    }

    #[test]
    fn each_segment_of_prepared_data_is_a_row() {
        let folder = tempfile::tempdir().unwrap();
        let info = model(|_| ());
        let train = [packed(&[4, 3], 10), packed(&[2, 12], 40)];
        let valid = packed(&[5], 100);
        let rows = [
            (Split::Train, train[0].clone()),
            (Split::Valid, valid),
            (Split::Train, train[1].clone()),
        ];
        prepare(folder.path(), &info, &rows);
        let chats = folder.path().join("chats.jsonl");
        std::fs::write(&chats, "{\"prompt\":\"a\",\"completion\":\"b\"}").unwrap();
        let paths = [folder.path().to_owned(), chats];
        let rows = read(&paths, &info, 64).unwrap();
        assert_eq!((rows.len(), rows.rows.len()), (4, 1));
        assert!(rows.place_of(0).ends_with("chats.jsonl:1"));
        let tokens: Vec<_> = (1..4).map(|idx| rows.row(idx).tokens.clone()).collect();
        assert_eq!(
            tokens,
            [
                (10..14).collect::<Vec<_>>(),
                (14..17).collect(),
                (42..54).collect()
            ]
        );
        for idx in 0..4 {
            assert_eq!(rows.row(idx).n_counted(), rows.n_counted_of(idx));
            assert_eq!(rows.row(idx).tokens.len(), rows.n_tokens_of(idx));
        }
        assert_eq!(
            rows.n_counted(),
            (0..4).map(|idx| rows.n_counted_of(idx)).sum::<usize>()
        );
        assert!(rows.place_of(3).ends_with("row 1, token 2"));
        assert_eq!(rows.file_hashes().count(), 8);
        assert_eq!(collate(&rows, &[2, 1], 0).tokens, [14, 15, 0, 10, 11, 12]);
        let valid = read_split(&paths[..1], Split::Valid, &info, 16).unwrap();
        assert_eq!(valid.row(0).tokens, (100..105).collect::<Vec<_>>());
    }

    #[test]
    fn prepared_data_that_does_not_fit_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let paths = [folder.path().to_owned()];
        let info = model(|_| ());
        let check = |split: Split, info: &ModelInfo, max_tokens: usize, expect: &str| {
            let error = format!(
                "{:#}",
                read_split(&paths, split, info, max_tokens).unwrap_err()
            );
            assert!(error.contains(expect), "{error}");
        };
        check(Split::Train, &info, 16, "no prepared data");
        prepare(folder.path(), &info, &[(Split::Train, packed(&[4], 0))]);
        check(Split::Valid, &info, 16, "no rows to validate on");
        check(Split::Train, &info, 15, "data.max_tokens is 15");
        let other = model(|header| header.metadata.set("tokenizer.ggml.eos_token_id", 296_u32));
        check(Split::Train, &other, 16, "another");
    }
}
