//! `fledgling data`: documents to token shards, and what a dataset holds.

use crate::{
    files::human_bytes,
    interrupt::Graceful,
    model,
    output::{byte_bar, note, print, print_json, step_bar},
};
use anyhow::{Context, Result, bail};
use fledgling_data::{
    config::{Config, Source, Split},
    control::{Cancelled, Control, Unit},
    encode::Encoder,
    prepare::{REPORT_FILE, prepare},
    report::Report,
    shards::Shards,
    toml_config,
};
use indicatif::ProgressBar;
use serde_json::json;
use std::{
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::Instant,
};

/// Prepare training data: collect, clean, deduplicate, split, tokenise, pack
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: DataCommand,
}

#[derive(Debug, clap::Subcommand)]
enum DataCommand {
    Prepare(PrepareArgs),
    Inspect(InspectArgs),
}

/// Turn documents into token shards with a report
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  fledgling data prepare data.toml\n  fledgling data prepare docs/ notes.jsonl.gz --tokenizer smollm2-135m-instruct -o data/mine\n  \
    fledgling data prepare data.toml --set dedupe.near=true --set split.test=0.02\n\n\
    Sources are files, folders, globs, `-` and http(s) addresses: txt, md, html, jsonl, json, csv, tsv, parquet; also in gz, zst, zip and tar. Rows are plain \
    text, prompt and completion, or chat messages, by the usual names of their keys.\n\n\
    The config may hold every step: [clean], [dedupe], [split], [pack]; --set section.key=value overrides a key. Lower-casing (clean.lowercase) and taking out \
    symbols (clean.strip_symbols) are off, as a pre-trained byte-level tokenizer has tokens for both: a model fine-tuned without them would forget them.\n\n\
    Writes OUT/manifest.json, the shards and OUT/report.html. `fledgling train` takes OUT as data.train and data.valid. The same config and files are not \
    prepared twice; Ctrl-C stops, the same command goes on from there."
)]
struct PrepareArgs {
    /// One config (.toml), or sources
    #[arg(required = true, value_name = "CONFIG.toml | SOURCE")]
    sources: Vec<String>,
    /// Whose tokenizer and chat template: a model, or a tokenizer.json (with sources)
    #[arg(short, long, value_name = "MODEL")]
    tokenizer: Option<String>,
    /// The dataset's folder (with sources)
    #[arg(short, long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// Override a key of the config
    #[arg(long, value_name = "KEY=VALUE", value_parser = crate::cli::key_value)]
    set: Vec<String>,
    /// Tokens in a row at most
    #[arg(long, value_name = "N")]
    context: Option<usize>,
    /// Keep one of each group of near-duplicates
    #[arg(long)]
    near: bool,
    /// Drop training documents that share a run of words with this file; may be given several times
    #[arg(long, value_name = "FILE")]
    decontaminate: Vec<String>,
    /// Count documents that cannot be read, and go on
    #[arg(long)]
    skip_bad: bool,
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
}

/// Say what a dataset holds, and check its files
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  fledgling data inspect data/mine\n  fledgling data inspect data/mine --split valid --row 3"
)]
struct InspectArgs {
    /// The dataset's folder
    folder: PathBuf,
    /// Show a row as text, with marks around what counts in the loss
    #[arg(long, requires = "tokenizer")]
    row: Option<usize>,
    /// Of which split
    #[arg(long, default_value = "train", value_parser = ["train", "valid", "test"])]
    split: String,
    /// The tokenizer to read the row with
    #[arg(short, long, value_name = "MODEL")]
    tokenizer: Option<String>,
    /// Compare the SHA-256 of every file with the manifest
    #[arg(long)]
    verify: bool,
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// What cannot be read or written, with file and line.
pub fn run(args: &Args) -> Result<()> {
    match &args.command {
        DataCommand::Prepare(args) => run_prepare(args),
        DataCommand::Inspect(args) => run_inspect(args),
    }
}

fn run_prepare(args: &PrepareArgs) -> Result<()> {
    let config = config(args)?;
    config.check()?;
    let encoder = encoder(&config.tokenizer)?;
    let bar = Bars::begin();
    let started = Instant::now();
    let outcome = match prepare(&config, &encoder, &bar) {
        Err(error) if error.is::<Cancelled>() => {
            bar.clear();
            note(format!("{Cancelled}"));
            crate::interrupt::leave();
        }
        outcome => outcome?,
    };
    bar.clear();
    let report_path = config.out.join(REPORT_FILE);
    if outcome.up_to_date {
        note("nothing to do: these files were prepared with this config already");
    } else {
        warn_of_leaks(&outcome.report);
        let len_bytes = outcome
            .report
            .sources
            .iter()
            .map(|source| source.len_bytes)
            .sum();
        note(format!(
            "{} in {:.1} s; the report is {}",
            human_bytes(len_bytes),
            started.elapsed().as_secs_f64(),
            report_path.display()
        ));
    }
    if args.json {
        return print_json(&json!({
            "out": config.out, "report": report_path, "up_to_date": outcome.up_to_date,
            "seconds": started.elapsed().as_secs_f64(),
            "sources": outcome.report.sources, "splits": outcome.report.splits,
            "steps": outcome.report.steps.iter().map(|step| (step.name.clone(), step.dropped.into())).collect::<serde_json::Map<_, _>>(),
            "changed": outcome.report.changed, "languages": outcome.report.languages,
        }));
    }
    print(&outcome.report.to_text())
}

/// Where much of the training data shares passages with what is held out, documents are the wrong thing to divide.
fn warn_of_leaks(report: &Report) {
    let dropped = report
        .steps
        .iter()
        .find(|step| step.name == "dedupe.leak_ngram");
    let dropped = dropped.map_or(0, |step| step.dropped);
    if dropped * 10 > report.n_documents() {
        note(format!(
            "{dropped} of {} documents share a run of words with a held-out one and were dropped: hold out a whole source (split = \"valid\") or fewer documents (split.valid), or let repeated lines go (clean.boilerplate_docs)",
            report.n_documents()
        ));
    }
}

/// The config file, or one made of the command line.
fn config(args: &PrepareArgs) -> Result<Config> {
    let is_config = |path: &String| {
        Path::new(path)
            .extension()
            .is_some_and(|ending| ending == "toml")
    };
    let mut overrides = args.set.clone();
    if args.skip_bad {
        overrides.push("skip_bad=true".to_owned());
    }
    if args.near {
        overrides.push("dedupe.near=true".to_owned());
    }
    overrides.extend(args.context.map(|context| format!("context={context}")));
    if !args.decontaminate.is_empty() {
        let files = toml::Value::from(args.decontaminate.clone());
        overrides.push(format!("dedupe.decontaminate={files}"));
    }
    for (key, value) in [
        ("tokenizer", args.tokenizer.clone()),
        (
            "out",
            args.out.as_ref().map(|out| out.display().to_string()),
        ),
    ] {
        overrides.extend(value.map(|value| format!("{key}={}", toml::Value::String(value))));
    }
    match &args.sources[..] {
        [path] if is_config(path) => toml_config::load(Path::new(path), &overrides),
        sources => {
            if let Some(config) = sources.iter().find(|source| is_config(source)) {
                bail!("{config}: give one config alone, or sources alone");
            }
            if args.tokenizer.is_none() || args.out.is_none() {
                bail!("sources need --tokenizer MODEL and --out FOLDER (or give a config)");
            }
            let sources: Vec<_> = sources.iter().map(|path| Source::of(path)).collect();
            let text = toml::to_string(&json!({"source": sources}))?;
            toml_config::parse(&text, &overrides)
        }
    }
}

/// The tokenizer of a model or of a `tokenizer.json`.
///
/// # Errors
/// When there is no such model or file.
pub fn encoder(name: &str) -> Result<Encoder> {
    if Path::new(name)
        .extension()
        .is_some_and(|ending| ending == "json")
    {
        return Encoder::from_tokenizer_json(Path::new(name));
    }
    Ok(Encoder::from_model(&model::open(name)?.info))
}

fn run_inspect(args: &InspectArgs) -> Result<()> {
    let shards = Shards::open(&args.folder)?;
    if args.verify {
        let bar = Bars::begin();
        let verified = shards.verify(&bar);
        bar.clear();
        verified?;
        note("every file is as the manifest says");
    }
    if let (Some(idx), Some(name)) = (args.row, &args.tokenizer) {
        return show_row(&shards, args, idx, name);
    }
    let manifest = shards.manifest();
    if args.json {
        return print_json(manifest);
    }
    let mut text = format!(
        "{}: tokenizer {}, context {}\n",
        args.folder.display(),
        manifest.tokenizer.name,
        manifest.context
    );
    for (split, info) in &manifest.splits {
        text += &format!(
            "  {:5}  {} rows, {} tokens, {} counted, {} shards\n",
            split.name(),
            info.rows,
            info.tokens,
            info.counted,
            info.shards.len()
        );
    }
    print(&text)
}

fn show_row(shards: &Shards, args: &InspectArgs, idx: usize, name: &str) -> Result<()> {
    let encoder = encoder(name)?;
    shards.check_tokenizer(&encoder)?;
    let split = Split::named(&args.split)
        .and_then(|split| shards.split(split))
        .with_context(|| format!("the dataset has no split {}", args.split))?;
    if idx >= split.n_rows() {
        bail!(
            "--row {idx}: the split {} has {} rows",
            args.split,
            split.n_rows()
        );
    }
    let row = split.row(idx)?;
    let mut text = String::new();
    let mut start = 0;
    for len in &row.segments {
        let range = start..start + *len as usize;
        start = range.end;
        for marked in row.tokens[range.clone()]
            .iter()
            .zip(&row.counted[range])
            .collect::<Vec<_>>()
            .chunk_by(|a, b| a.1 == b.1)
        {
            let ids: Vec<u32> = marked.iter().map(|(id, _)| **id).collect();
            let piece = encoder.tokenizer().decode(&ids, false);
            text += &if *marked[0].1 {
                format!("⟦{piece}⟧")
            } else {
                piece
            };
        }
        text += "\n---\n";
    }
    print(&text)
}

/// A bar a stage, and Ctrl-C as a request.
pub(crate) struct Bars {
    bar: Mutex<ProgressBar>,
    graceful: Option<Graceful>,
}

impl Bars {
    /// For work that comes to a good end when it is asked to.
    pub(crate) fn begin() -> Self {
        Self {
            bar: Mutex::new(ProgressBar::hidden()),
            graceful: Some(Graceful::begin()),
        }
    }

    /// For work that Ctrl-C ends at once.
    pub(crate) fn without_end() -> Self {
        Self {
            bar: Mutex::new(ProgressBar::hidden()),
            graceful: None,
        }
    }

    fn bar(&self) -> std::sync::MutexGuard<'_, ProgressBar> {
        self.bar.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn clear(&self) {
        self.bar().finish_and_clear();
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        self.clear();
    }
}

impl Control for Bars {
    fn begin(&self, stage: &str, unit: Unit, total: Option<u64>) {
        let mut bar = self.bar();
        bar.finish_and_clear();
        *bar = match (unit, total) {
            (Unit::Documents, Some(total)) => step_bar(stage, total),
            (_, total) => byte_bar(stage, total),
        };
    }

    fn advance(&self, n: u64) {
        self.bar().inc(n);
    }

    fn note(&self, line: &str) {
        self.bar().suspend(|| note(line));
    }

    fn cancelled(&self) -> bool {
        self.graceful.as_ref().is_some_and(Graceful::asked)
    }
}
