//! `fledgling data prepare`: all stages, and what a rerun may skip.
//!
//! Stages leave their results in `OUT/.work/`, so that a run that was stopped goes on where it was. The folder belongs to
//! one fingerprint: config, files (name, length, time; also those to be kept out), tokenizer, version of this crate. When the dataset itself has that
//! fingerprint there is nothing to do.

mod choose;
mod gather;
mod write;

use crate::{
    clean::Cleaner,
    collect::{self, Input},
    config::Config,
    control::Control,
    dedupe,
    encode::Encoder,
    report::Report,
    shards::{MANIFEST_FILE, Manifest},
    split,
};
use anyhow::{Context, Result, ensure};
use serde::{Serialize, de::DeserializeOwned};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// Folder of unfinished work inside the dataset's.
const WORK: &str = ".work";
/// The first stage's result: with it, a later run need not read the sources again.
const GATHERED: &str = "gathered";
/// The report beside the shards.
pub const REPORT_FILE: &str = "report.html";

/// What [`prepare`] did.
#[derive(Debug)]
pub struct Outcome {
    /// What was done, also when that was in an earlier run.
    pub report: Report,
    /// The same config and files had been prepared already.
    pub up_to_date: bool,
}

impl Config {
    /// Checks what the types cannot.
    ///
    /// # Errors
    /// With the key and what is allowed.
    pub fn check(&self) -> Result<()> {
        ensure!(
            !self.sources.is_empty(),
            "no [[source]]: name where documents come from"
        );
        ensure!(self.context >= 2, "context = {}: at least 2", self.context);
        split::check(&self.split)?;
        dedupe::check(&self.dedupe)?;
        Cleaner::new(&self.clean)?;
        ensure!(
            self.pack.shard_tokens >= 1,
            "pack.shard_tokens = 0: at least 1"
        );
        Ok(())
    }
}

/// Prepares data as `config` says.
///
/// # Errors
/// What cannot be read (with file and line), an empty result, a full disk, [`crate::control::Cancelled`]. What was in the
/// folder before stays as it was.
pub fn prepare(config: &Config, encoder: &Encoder, control: &dyn Control) -> Result<Outcome> {
    config.check()?;
    let found = collect::find(&config.sources)?;
    let fingerprint = fingerprint(config, &found.inputs, encoder)?;
    if let Some(manifest) = finished(&config.out, fingerprint.as_deref()) {
        return Ok(Outcome {
            report: serde_json::from_value(manifest.report)
                .context("the dataset's manifest holds no report: prepare into another folder")?,
            up_to_date: true,
        });
    }
    let work = Work::open(&config.out, fingerprint.as_deref())?;
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(n_threads(config))
        .build()?;
    let has_template = encoder.has_chat_template();
    let gathered = work.stage(GATHERED, || {
        gather::run(config, &found.inputs, has_template, &work.folder, control)
    });
    let mut gathered = gathered.inspect_err(|_| work.abandon())?;
    for (ending, n) in found.skipped {
        *gathered.report.unread_files.entry(ending).or_default() += n;
    }
    let chosen = work.stage("chosen", || {
        pool.install(|| choose::run(config, &work.folder, control))
    })?;
    let outcome = pool.install(|| {
        write::run(&write::Job {
            config,
            encoder,
            work: &work.folder,
            gathered,
            chosen,
            fingerprint: fingerprint.unwrap_or_default(),
            control,
        })
    })?;
    work.remove()?;
    Ok(outcome)
}

fn n_threads(config: &Config) -> usize {
    match config.threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        n => n,
    }
}

/// What the result depends on; `None` when that cannot be told beforehand (standard input, addresses).
fn fingerprint(config: &Config, inputs: &[Input], encoder: &Encoder) -> Result<Option<String>> {
    // Neither threads nor the place change the result.
    let config = Config {
        threads: 0,
        out: PathBuf::new(),
        ..config.clone()
    };
    let mut hasher = Sha256::new();
    hasher.update(env!("CARGO_PKG_VERSION"));
    hasher.update(serde_json::to_vec(&(&config, encoder.id(true)))?);
    let outside = collect::find(&config.dedupe.outside())?.inputs;
    for input in inputs.iter().chain(&outside) {
        let (Some(len_bytes), Some(modified)) = (input.len_bytes, input.modified_unix_ns) else {
            return Ok(None);
        };
        hasher.update(serde_json::to_vec(&(&input.name, len_bytes, modified))?);
    }
    Ok(Some(format!("{:x}", hasher.finalize())))
}

/// The manifest of the dataset in `out`, when it is whole and has this fingerprint.
fn finished(out: &Path, fingerprint: Option<&str>) -> Option<Manifest> {
    let fingerprint = fingerprint?;
    let bytes = std::fs::read(out.join(MANIFEST_FILE)).ok()?;
    let manifest = Manifest::parse(&bytes).ok()?;
    (manifest.fingerprint == fingerprint && crate::shards::Shards::open(out).is_ok())
        .then_some(manifest)
}

/// Unfinished work.
struct Work {
    folder: PathBuf,
}

impl Work {
    /// Opens the folder of this fingerprint; what belongs to another is removed.
    fn open(out: &Path, fingerprint: Option<&str>) -> Result<Self> {
        let all = out.join(WORK);
        let name = fingerprint.map_or("unnamed", |fingerprint| &fingerprint[..16]);
        let folder = all.join(name);
        if let Ok(entries) = std::fs::read_dir(&all) {
            for entry in entries.flatten() {
                if fingerprint.is_none() || entry.path() != folder {
                    std::fs::remove_dir_all(entry.path())?;
                }
            }
        }
        std::fs::create_dir_all(&folder)
            .with_context(|| format!("cannot make the folder {}", folder.display()))?;
        Ok(Self { folder })
    }

    /// What `run` gives, or gave in an earlier run.
    fn stage<T: Serialize + DeserializeOwned>(
        &self,
        name: &str,
        run: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let path = self.folder.join(name);
        if let Ok(bytes) = std::fs::read(&path) {
            return postcard::from_bytes(&bytes)
                .with_context(|| format!("{} is broken: remove it", path.display()));
        }
        let result = run()?;
        write_whole(&path, &postcard::to_stdvec(&result)?)?;
        Ok(result)
    }

    /// Takes away what is of no use to a later run. What cannot be taken away is written over by it.
    fn abandon(&self) {
        let _ = std::fs::remove_dir_all(&self.folder);
        // Only where they are empty: the folders that were made for this.
        for folder in self.folder.ancestors().skip(1).take(2) {
            let _ = std::fs::remove_dir(folder);
        }
    }

    fn remove(&self) -> Result<()> {
        let all = self.folder.parent().unwrap_or(&self.folder);
        std::fs::remove_dir_all(all).with_context(|| format!("cannot remove {}", all.display()))
    }
}

/// Writes beside, then renames.
fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let beside = path.with_extension("tmp");
    std::fs::write(&beside, bytes)
        .and_then(|()| std::fs::rename(&beside, path))
        .with_context(|| format!("cannot write {}", path.display()))
}
