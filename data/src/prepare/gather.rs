//! The first stage: every document read, mended and judged, in parallel, and written to the spool in its order.
//!
//! One thread reads, workers mend and judge batches, the caller's thread puts the batches back in order: the spool and
//! the counts are the same for any number of threads.

use crate::{
    clean::{self, Changes, Cleaner, Judgement, boilerplate},
    collect::{self, Defect, Input},
    config::{Config, Counts, Source},
    control::{Control, Unit},
    document::{Body, Document},
    report::{Example, Report, SourceReport},
    spool::{Spool, SpoolWriter},
};
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufWriter, Write},
    path::Path,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
};

/// Documents travel between threads in batches of about so many bytes.
const BATCH_BYTES: usize = 1 << 18;
/// And at most so many documents.
const BATCH_DOCUMENTS: usize = 1 << 10;
/// More input than this, and the language of every sixteenth document alone is told, for the report: that costs more than
/// all the rest of reading and cleaning.
const ALL_LANGUAGES_BYTES: u64 = 1 << 25;
/// Name of the spool of mended documents that wait for the boilerplate's count.
const MENDED: &str = "mended";
/// Name of the spool of clean documents.
pub(super) const CLEAN: &str = "clean";
/// Language of each clean document: three bytes.
pub(super) const LANGUAGES: &str = "languages";
/// Where it was not looked for.
pub(super) const NO_LANGUAGE: [u8; 3] = *b"   ";

/// What the stage leaves besides the spool.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Gathered {
    pub(super) report: Report,
    pub(super) files: Vec<FileRecord>,
    /// Some of the documents are conversations: their ids depend on the chat template.
    pub(super) has_chats: bool,
}

/// A file that was read, for the manifest.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct FileRecord {
    pub(super) source: u32,
    pub(super) name: String,
    pub(super) len_bytes: u64,
    pub(super) sha256: String,
    pub(super) documents: u64,
    /// Members of an archive that were passed over, by their unknown endings.
    pub(super) skipped: Counts,
}

/// Documents on their way, `seq` in the order of reading.
struct Batch<T> {
    seq: u64,
    items: Vec<T>,
    /// The file that ends with this batch.
    ends: Option<FileRecord>,
}

/// What a worker made of a document.
enum Outcome {
    Keep(Document, Changes, [u8; 3]),
    Drop(&'static str, Example, Changes, u32),
    Bad(Defect),
}

struct Worker<'a> {
    cleaner: &'a Cleaner,
    sources: &'a [Source],
    has_template: bool,
    /// Judged here, or after the boilerplate's count.
    judges: bool,
    languages_of: usize,
}

/// Runs the stage; the result is in `folder`.
pub(super) fn run(
    config: &Config,
    inputs: &[Input],
    has_template: bool,
    folder: &Path,
    control: &dyn Control,
) -> Result<Gathered> {
    let cleaner = Cleaner::new(&config.clean)?;
    let counts_lines = config.clean.boilerplate_docs > 0;
    let total = inputs.iter().map(|input| input.len_bytes).sum();
    let worker = Worker {
        cleaner: &cleaner,
        sources: &config.sources,
        has_template,
        judges: !counts_lines,
        languages_of: languages_of(config, total),
    };
    let mut sink = Sink::new(config, folder, if counts_lines { MENDED } else { CLEAN })?;
    control.begin("reading and cleaning", Unit::Bytes, total);
    read_all(config, inputs, &worker, &mut sink, control)?;
    let mut gathered = sink.finish()?;
    if counts_lines {
        strip_boilerplate(config, &worker, folder, &mut gathered, control)?;
    }
    Ok(gathered)
}

/// Of how many documents the language of one is told, where the config does not ask for it.
fn languages_of(config: &Config, total: Option<u64>) -> usize {
    match total {
        _ if !config.clean.languages.is_empty() => usize::MAX,
        Some(len_bytes) if len_bytes <= ALL_LANGUAGES_BYTES => 1,
        _ => 16,
    }
}

fn read_all(
    config: &Config,
    inputs: &[Input],
    worker: &Worker<'_>,
    sink: &mut Sink<'_>,
    control: &dyn Control,
) -> Result<()> {
    let n_threads = super::n_threads(config);
    let (to_workers, batches) = sync_channel::<Batch<Result<Document, Defect>>>(2 * n_threads);
    let (to_sink, outcomes) = sync_channel::<Batch<Outcome>>(2 * n_threads);
    let batches = Mutex::new(batches);
    let gone = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let result = read(config, inputs, &to_workers, &gone, control);
            // The workers end when nothing more can come.
            drop(to_workers);
            if result.is_err() {
                gone.store(true, Ordering::Relaxed);
            }
            result
        });
        for _ in 0..n_threads {
            let to_sink = to_sink.clone();
            let batches = &batches;
            scope.spawn(move || work(worker, batches, &to_sink));
        }
        drop(to_sink);
        let sunk = put_in_order(outcomes, sink);
        gone.store(true, Ordering::Relaxed);
        // A reader that waits for room sees that its work is not wanted any more.
        while recv(&batches).is_some() {}
        // The reader's error is the earlier one in the documents' order only when the sink had none.
        let read = reader
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        sunk.and(read)
    })
}

/// Reads all inputs, one after the other.
fn read(
    config: &Config,
    inputs: &[Input],
    to_workers: &SyncSender<Batch<Result<Document, Defect>>>,
    gone: &AtomicBool,
    control: &dyn Control,
) -> Result<()> {
    let mut seq = 0;
    // Fails when the other side has given up, which has its own error.
    let mut send = |items: Vec<_>, ends| {
        let sent = to_workers.send(Batch { seq, items, ends }).is_ok();
        seq += 1;
        sent && !gone.load(Ordering::Relaxed)
    };
    for input in inputs {
        control.check()?;
        let source = &config.sources[input.source as usize];
        let opened = collect::documents(input, source, |n_bytes| control.advance(n_bytes));
        let mut documents = match opened {
            Ok(documents) => documents,
            Err(defect) => {
                if !send(vec![Err(defect)], None) {
                    return Ok(());
                }
                continue;
            }
        };
        let (mut items, mut len_bytes, mut n_documents) = (Vec::new(), 0, 0);
        for item in &mut documents {
            len_bytes += item
                .as_ref()
                .map_or(0, |document| document.body.len_bytes());
            n_documents += u64::from(item.is_ok());
            items.push(item);
            if len_bytes >= BATCH_BYTES || items.len() >= BATCH_DOCUMENTS {
                control.check()?;
                if !send(std::mem::take(&mut items), None) {
                    return Ok(());
                }
                len_bytes = 0;
            }
        }
        let record = match documents.finish() {
            Ok(ended) => Some(FileRecord {
                source: input.source,
                name: input.name.clone(),
                len_bytes: ended.len_bytes,
                sha256: ended.sha256,
                documents: n_documents,
                skipped: ended.skipped,
            }),
            Err(defect) => {
                items.push(Err(defect));
                None
            }
        };
        if !send(items, record) {
            return Ok(());
        }
    }
    Ok(())
}

/// The next batch; none when the reader is done.
fn recv<T>(batches: &Mutex<Receiver<T>>) -> Option<T> {
    let batches = batches.lock().unwrap_or_else(PoisonError::into_inner);
    batches.recv().ok()
}

fn work(
    worker: &Worker<'_>,
    batches: &Mutex<Receiver<Batch<Result<Document, Defect>>>>,
    to_sink: &SyncSender<Batch<Outcome>>,
) {
    loop {
        let Some(batch) = recv(batches) else { return };
        let items = batch.items.into_iter().enumerate();
        let items = items.map(|(idx, item)| worker.clean(item, idx));
        let done = Batch {
            seq: batch.seq,
            items: items.collect(),
            ends: batch.ends,
        };
        if to_sink.send(done).is_err() {
            return;
        }
    }
}

impl Worker<'_> {
    /// `idx` in its batch.
    fn clean(&self, item: Result<Document, Defect>, idx: usize) -> Outcome {
        let mut document = match item {
            Ok(document) => document,
            Err(defect) => return Outcome::Bad(defect),
        };
        let source = &self.sources[document.place.source as usize];
        if matches!(document.body, Body::Completion { .. })
            && source.fields.chat.unwrap_or(self.has_template)
        {
            document.body = document.body.into_chat();
        }
        let changes = self.cleaner.mend(&mut document.body);
        if self.judges {
            judge(
                self.cleaner,
                document,
                changes,
                idx.is_multiple_of(self.languages_of),
            )
        } else {
            Outcome::Keep(document, changes, NO_LANGUAGE)
        }
    }
}

fn judge(cleaner: &Cleaner, document: Document, changes: Changes, tells: bool) -> Outcome {
    let source = document.place.source;
    match cleaner.judge(&document.body) {
        Judgement::Keep { language } => {
            let (language, otherwise) = match language {
                None if tells => (clean::language(&document.body), *b"?  "),
                language => (language, NO_LANGUAGE),
            };
            let code = language.and_then(|code| code.as_bytes().try_into().ok());
            Outcome::Keep(document, changes, code.unwrap_or(otherwise))
        }
        Judgement::Drop { step, why, .. } => {
            Outcome::Drop(step, Example::new(&document, why), changes, source)
        }
    }
}

/// Takes batches in the order of reading.
fn put_in_order(outcomes: Receiver<Batch<Outcome>>, sink: &mut Sink<'_>) -> Result<()> {
    let mut waiting = BTreeMap::new();
    let mut next = 0;
    for batch in outcomes {
        waiting.insert(batch.seq, batch);
        while let Some(batch) = waiting.remove(&next) {
            next += 1;
            for outcome in batch.items {
                sink.take(outcome)?;
            }
            if let Some(record) = batch.ends {
                sink.end_file(record);
            }
        }
    }
    Ok(())
}

/// Where outcomes go.
struct Sink<'a> {
    config: &'a Config,
    spool: SpoolWriter,
    languages: BufWriter<File>,
    gathered: Gathered,
}

impl<'a> Sink<'a> {
    fn new(config: &'a Config, folder: &Path, name: &str) -> Result<Self> {
        let path = folder.join(LANGUAGES);
        let languages =
            File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        let report = Report {
            sources: config.sources.iter().map(empty).collect(),
            ..Report::default()
        };
        Ok(Self {
            config,
            spool: SpoolWriter::create(folder, name)?,
            languages: BufWriter::new(languages),
            gathered: Gathered {
                report,
                ..Gathered::default()
            },
        })
    }

    fn take(&mut self, outcome: Outcome) -> Result<()> {
        let report = &mut self.gathered.report;
        match outcome {
            Outcome::Keep(document, changes, language) => {
                report.sources[document.place.source as usize].documents += 1;
                count(report, changes);
                self.gathered.has_chats |= matches!(document.body, Body::Chat(_));
                self.spool.push(&document)?;
                self.languages.write_all(&language)?;
            }
            Outcome::Drop(step, example, changes, source) => {
                report.sources[source as usize].documents += 1;
                count(report, changes);
                report.step(step).add(|| example);
            }
            Outcome::Bad(defect) if self.config.skip_bad => {
                report.step("skip_bad").add(|| Example {
                    place: defect.place.to_string(),
                    why: defect.reason,
                    text: String::new(),
                });
            }
            Outcome::Bad(defect) => {
                bail!("{defect} (--skip-bad counts what cannot be read, and goes on)");
            }
        }
        Ok(())
    }

    fn end_file(&mut self, record: FileRecord) {
        let source = &mut self.gathered.report.sources[record.source as usize];
        source.files += 1;
        source.len_bytes += record.len_bytes;
        for (ending, n) in &record.skipped {
            *self
                .gathered
                .report
                .unread_files
                .entry(ending.clone())
                .or_default() += n;
        }
        self.gathered.files.push(record);
    }

    fn finish(mut self) -> Result<Gathered> {
        self.spool.finish()?;
        self.languages.flush()?;
        Ok(self.gathered)
    }
}

fn empty(source: &Source) -> SourceReport {
    SourceReport {
        name: source.name.clone().unwrap_or_else(|| source.path.clone()),
        ..SourceReport::default()
    }
}

fn count(report: &mut Report, changes: Changes) {
    for name in changes.names() {
        *report.changed.entry(name.to_owned()).or_default() += 1;
    }
}

/// Counts the lines of all mended documents, takes out those that stand in many, and judges what is left.
fn strip_boilerplate(
    config: &Config,
    worker: &Worker<'_>,
    folder: &Path,
    gathered: &mut Gathered,
    control: &dyn Control,
) -> Result<()> {
    let mended = Spool::<Document>::open(folder, MENDED)?;
    let chunks = mended.chunks(BATCH_BYTES as u64, BATCH_DOCUMENTS)?;
    let n_documents = Some(mended.len() as u64);
    let counter = boilerplate::Counter::new(folder)?;
    control.begin("counting lines", Unit::Documents, n_documents);
    for &(start, end) in &chunks {
        control.check()?;
        // What repeats in conversations (a system prompt, a label as answer) is there to be learnt.
        let documents = mended.read_range(start, end)?.into_iter();
        for document in documents.filter(|document| matches!(document.body, Body::Text(_))) {
            counter.add(&document.body)?;
        }
        control.advance((end - start) as u64);
    }
    let lines = counter.finish(config.clean.boilerplate_docs, control)?;
    let mut sink = Sink::new(config, folder, CLEAN)?;
    // What the first pass counted stays; the documents are counted there already.
    sink.gathered = std::mem::take(gathered);
    for source in &mut sink.gathered.report.sources {
        source.documents = 0;
    }
    let (mut idx, languages_of) = (0_usize, worker.languages_of);
    control.begin("taking out repeated lines", Unit::Documents, n_documents);
    for &(start, end) in &chunks {
        control.check()?;
        for mut document in mended.read_range(start, end)? {
            let is_text = matches!(document.body, Body::Text(_));
            if is_text && worker.cleaner.fix_lines(&mut document.body, &lines) > 0 {
                let changed = &mut sink.gathered.report.changed;
                *changed.entry("boilerplate_docs".to_owned()).or_default() += 1;
            }
            let tells = idx.is_multiple_of(languages_of);
            idx += 1;
            sink.take(judge(worker.cleaner, document, Changes::default(), tells))?;
        }
        control.advance((end - start) as u64);
    }
    *gathered = sink.finish()?;
    for name in ["docs", "index"] {
        std::fs::remove_file(folder.join(format!("{MENDED}.{name}")))?;
    }
    Ok(())
}
