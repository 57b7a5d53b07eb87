//! The last stage: kept documents to tokens, rows and shards, and the report.

use super::{
    Outcome, REPORT_FILE,
    choose::{Chosen, Fate},
    gather::{CLEAN, Gathered, LANGUAGES, NO_LANGUAGE},
    write_whole,
};
use crate::{
    config::{Config, Split},
    control::{Control, Unit},
    document::{Body, Document},
    encode::{Encoded, Encoder},
    pack::{self, Packer},
    report::{Bin, Example, Report, SplitReport, TokenReport},
    shards::{About, DatasetWriter, Layout},
    spool::Spool,
};
use anyhow::{Context, Error, Result, bail};
use rayon::prelude::*;
use std::{collections::BTreeMap, path::Path};

/// Bytes of documents that are encoded at once by a thread.
const CHUNK_BYTES: u64 = 1 << 19;
/// Chunks that are in memory at once, for each thread.
const CHUNKS_PER_THREAD: usize = 4;
/// Tokens shown in the report.
const TOP_TOKENS: usize = 60;

/// What the stage needs.
pub(super) struct Job<'a> {
    pub(super) config: &'a Config,
    pub(super) encoder: &'a Encoder,
    pub(super) work: &'a Path,
    pub(super) gathered: Gathered,
    pub(super) chosen: Chosen,
    pub(super) fingerprint: String,
    pub(super) control: &'a dyn Control,
}

/// A kept document in tokens.
struct Item {
    idx: usize,
    split: Split,
    source: u32,
    len_bytes: usize,
    is_chat: bool,
    encoded: Result<Encoded, (Error, Box<Example>)>,
}

/// Runs the stage.
pub(super) fn run(job: &Job<'_>) -> Result<Outcome> {
    let spool = Spool::<Document>::open(job.work, CLEAN)?;
    let layout = Layout {
        tokenizer: job.encoder.id(job.gathered.has_chats),
        context: job.config.context,
        mode: job.config.pack.mode,
        shard_tokens: job.config.pack.shard_tokens,
    };
    let mut output = Output::new(job, DatasetWriter::create(&job.config.out, layout)?);
    let n_documents = Some(spool.len() as u64);
    job.control
        .begin("tokenising and packing", Unit::Documents, n_documents);
    let chunks = spool.chunks(CHUNK_BYTES, 1 << 14)?;
    for window in chunks.chunks(CHUNKS_PER_THREAD * rayon::current_num_threads()) {
        job.control.check()?;
        let encoded: Vec<Vec<Item>> = window
            .par_iter()
            .map(|&(start, end)| encode(job, &spool, start, end))
            .collect::<Result<_>>()?;
        for item in encoded.into_iter().flatten() {
            output.push(item)?;
        }
        let (first, last) = (window[0].0, window[window.len() - 1].1);
        job.control.advance((last - first) as u64);
    }
    output.finish()
}

fn encode(job: &Job<'_>, spool: &Spool, start: usize, end: usize) -> Result<Vec<Item>> {
    let documents = spool.read_range(start, end)?;
    let kept = documents
        .into_iter()
        .zip(start..)
        .filter_map(|(document, idx)| match job.chosen.fates[idx] {
            Fate::Dropped => None,
            Fate::Kept(split) => Some((document, idx, split)),
        });
    let items = kept.map(|(document, idx, split)| Item {
        idx,
        split,
        source: document.place.source,
        len_bytes: document.body.len_bytes(),
        is_chat: matches!(document.body, Body::Chat(_)),
        encoded: job.encoder.encode(&document.body).map_err(|error| {
            let why = format!("{error:#}");
            let place = document.place.to_string();
            (error.context(place), Box::new(Example::new(&document, why)))
        }),
    });
    Ok(items.collect())
}

/// One split under way.
struct Part {
    packer: Packer,
    documents: u64,
}

struct Output<'a> {
    job: &'a Job<'a>,
    writer: DatasetWriter,
    parts: BTreeMap<Split, Part>,
    report: Report,
    /// Documents by the number of bits of their token count.
    lengths: [u64; 64],
    /// How often each token occurs in the training split.
    counts: Vec<u64>,
    train_bytes: u64,
    kept: Vec<bool>,
}

impl<'a> Output<'a> {
    fn new(job: &'a Job<'a>, writer: DatasetWriter) -> Self {
        let mut report = job.gathered.report.clone();
        report.steps.extend(job.chosen.steps.iter().cloned());
        report.near = job.chosen.near.clone();
        Self {
            job,
            writer,
            parts: BTreeMap::new(),
            report,
            lengths: [0; 64],
            counts: vec![0; job.encoder.vocab_size()],
            train_bytes: 0,
            kept: vec![false; job.chosen.fates.len()],
        }
    }

    fn push(&mut self, item: Item) -> Result<()> {
        let encoded = match item.encoded {
            Ok(encoded) => encoded,
            Err((_, example)) if self.job.config.skip_bad => {
                self.report.step("unusable").add(|| *example);
                return Ok(());
            }
            Err((error, _)) => {
                bail!("{error:#} (--skip-bad counts such documents and goes on)");
            }
        };
        let context = self.job.config.context;
        let mode = self.job.config.pack.mode;
        let part = self.parts.entry(item.split).or_insert_with(|| Part {
            packer: Packer::new(mode, context),
            documents: 0,
        });
        if part.packer.push(&encoded) == pack::Outcome::Dropped {
            let why = if item.is_chat {
                "no answer begins within the context"
            } else {
                "nothing to learn within the context"
            };
            self.report.step("context").add(|| Example {
                place: format!("document {}", item.idx),
                why: why.to_owned(),
                text: String::new(),
            });
            return Ok(());
        }
        part.documents += 1;
        while let Some(row) = part.packer.pop() {
            self.writer.push(item.split, &row)?;
        }
        self.count(item.idx, item.split, item.source, item.len_bytes, &encoded);
        Ok(())
    }

    fn count(
        &mut self,
        idx: usize,
        split: Split,
        source: u32,
        len_bytes: usize,
        encoded: &Encoded,
    ) {
        let n_tokens = encoded.tokens.len() as u64;
        self.kept[idx] = true;
        self.lengths[n_tokens.max(1).ilog2() as usize] += 1;
        let source = &mut self.report.sources[source as usize];
        source.kept += 1;
        source.tokens += n_tokens;
        if split == Split::Train {
            self.train_bytes += len_bytes as u64;
            for &id in &encoded.tokens {
                self.counts[id as usize] += 1;
            }
        }
    }

    fn finish(mut self) -> Result<Outcome> {
        for (&split, part) in &mut self.parts {
            part.packer.finish();
            while let Some(row) = part.packer.pop() {
                self.writer.push(split, &row)?;
            }
        }
        if !self.parts.contains_key(&Split::Train) {
            bail!(
                "no document is left to train on: {}",
                if self.parts.is_empty() {
                    "all were dropped"
                } else {
                    "all are held out; lower split.valid and split.test, or add documents"
                }
            );
        }
        self.report.splits = self
            .parts
            .iter()
            .map(|(&split, part)| split_report(split, part, self.job.config.context))
            .collect();
        self.report.lengths = bins(&self.lengths);
        self.report.tokens = self.token_report();
        self.count_languages()?;
        let job = self.job;
        self.writer.finish(About {
            fingerprint: job.fingerprint.clone(),
            config: serde_json::to_value(Config {
                threads: 0,
                ..job.config.clone()
            })?,
            sources: serde_json::to_value(&job.gathered.files)?,
            report: serde_json::to_value(&self.report)?,
        })?;
        let out = &job.config.out;
        let title = out
            .file_name()
            .map_or("dataset".into(), |name| name.to_string_lossy());
        write_whole(
            &out.join(REPORT_FILE),
            self.report.to_html(&title)?.as_bytes(),
        )?;
        Ok(Outcome {
            report: self.report,
            up_to_date: false,
        })
    }

    fn token_report(&self) -> TokenReport {
        let mut order: Vec<usize> = (0..self.counts.len())
            .filter(|&id| self.counts[id] > 0)
            .collect();
        order.sort_by_key(|&id| (std::cmp::Reverse(self.counts[id]), id));
        let tokenizer = self.job.encoder.tokenizer();
        let text = |id: usize| match tokenizer.decode(&[id as u32], false) {
            text if text.is_empty() => format!("#{id}"),
            text => text.escape_debug().to_string(),
        };
        let n_tokens: u64 = self.counts.iter().sum();
        let ranks = std::iter::successors(Some(1_usize), |rank| rank.checked_mul(2));
        TokenReport {
            vocab_size: self.counts.len() as u64,
            used: order.len() as u64,
            bytes_per_token: self.train_bytes as f64 / n_tokens.max(1) as f64,
            top: order
                .iter()
                .take(TOP_TOKENS)
                .map(|&id| (text(id), self.counts[id]))
                .collect(),
            ranks: ranks
                .take_while(|rank| *rank <= order.len())
                .map(|rank| (rank as u64, self.counts[order[rank - 1]]))
                .collect(),
        }
    }

    fn count_languages(&mut self) -> Result<()> {
        let path = self.job.work.join(LANGUAGES);
        let codes =
            std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let codes = codes.as_chunks::<3>().0.iter().zip(&self.kept);
        for (code, _) in codes.filter(|(code, kept)| **kept && **code != NO_LANGUAGE) {
            let name = String::from_utf8_lossy(code).trim_end().to_owned();
            *self.report.languages.entry(name).or_default() += 1;
        }
        Ok(())
    }
}

fn split_report(split: Split, part: &Part, context: usize) -> SplitReport {
    let stats = part.packer.stats();
    SplitReport {
        split,
        documents: part.documents,
        rows: stats.rows,
        tokens: stats.tokens,
        counted: stats.counted,
        fill: stats.fill(context),
        truncated: stats.truncated,
    }
}

/// Bins of doubling width from the first that holds something to the last.
fn bins(lengths: &[u64; 64]) -> Vec<Bin> {
    let first = lengths.iter().position(|&n| n > 0).unwrap_or(0);
    let last = lengths
        .iter()
        .rposition(|&n| n > 0)
        .map_or(0, |last| last + 1);
    (first..last)
        .map(|bits| Bin {
            from: 1 << bits,
            to: 2 << bits,
            documents: lengths[bits],
        })
        .collect()
}
