//! A run's copy in an object store (config key `remote`), so that a machine that vanishes costs minutes.
//!
//! `REMOTE/NAME/` holds `checkpoints/step-N/` and `best/step-K/` (the weights that were kept), each whole or not at all
//! ([`folder`]), and `config.toml`, `metrics.jsonl` and `report.html`. A checkpoint comes after the weights and metrics that it goes
//! on from.
//!
//! Uploads run in a thread of their own, one at a time. What is to be uploaded is linked into `.upload/` of the run first, so that
//! training neither waits for it nor changes it; a newer checkpoint takes the place of one that still waits.

use super::{checkpoints::Checkpoints, fit::Fit};
use crate::{
    adapter,
    files::{folder_of, sync_folder},
    interrupt::{Graceful, Unfinished},
    manifest::{Manifest, Origin},
    output::note,
    profile::PROFILE_FILE,
    remote::{
        Remote,
        folder::{self, Damaged},
    },
    run::{
        ADAPTER_FILE, BEST_DIR, CHECKPOINTS_DIR, CONFIG_FILE, HEADER_FILE, METRICS_FILE,
        MODEL_FILE, RECORD_FILE, read_record,
    },
};
use anyhow::{Context, Result, anyhow, bail};
use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::Duration,
};

/// Where files wait for their upload, in the run's folder.
const UPLOAD_DIR: &str = ".upload";
/// The report's name, as [`crate::report::page`] writes it.
const REPORT_FILE: &str = "report.html";
/// What the best weights consist of; the record is last, since it makes the folder a run's.
const BEST_FILES: [&str; 7] = [
    MODEL_FILE,
    ADAPTER_FILE,
    adapter::CONFIG_FILE,
    HEADER_FILE,
    CONFIG_FILE,
    PROFILE_FILE,
    RECORD_FILE,
];
/// Seconds before each further attempt at an upload, beside the store's own short ones.
const WAITS_S: [u64; 3] = [1, 4, 16];

/// The place of a run in an object store.
#[derive(Debug, Clone)]
pub struct Mirror {
    run: Remote,
    keep_last: usize,
}

impl Mirror {
    /// The place of the run `name` below `url`. It is listed, so that what is wrong with it shows before a run begins.
    ///
    /// # Errors
    /// When the store cannot be reached or refuses.
    pub fn open(url: &str, name: &str, keep_last: usize) -> Result<Self> {
        let run = Remote::open(url).and_then(|remote| {
            let run = remote.below(name);
            run.list().map(|_| run)
        });
        Ok(Self {
            run: run.context("remote")?,
            keep_last,
        })
    }

    /// Where it is, for messages.
    pub fn url(&self) -> &str {
        self.run.url()
    }

    /// Refuses a place that holds something of a run that a new one would replace.
    ///
    /// # Errors
    /// When it does, or the store cannot be read.
    pub fn refuse_begun(&self) -> Result<()> {
        let folders = self.run.list()?.folders;
        if [CHECKPOINTS_DIR, BEST_DIR]
            .iter()
            .any(|name| folders.iter().any(|folder| folder == name))
        {
            bail!(
                "the run {} is there already: go on with --resume, replace it with --force, or choose another name",
                self.url()
            );
        }
        Ok(())
    }

    /// Removes an earlier run of this name.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn clear(&self) -> Result<()> {
        let first = crate::manifest::MANIFEST_FILE;
        self.run.below(CHECKPOINTS_DIR).remove_all(first)?;
        self.run.below(BEST_DIR).remove_all(first)?;
        self.run.below(METRICS_FILE).remove()?;
        self.run.below(REPORT_FILE).remove()
    }

    /// Brings the last whole checkpoint into the run's folder, with what goes with it, when it is newer than those there.
    /// Returns whether the checkpoint there is newer than that in the store.
    ///
    /// # Errors
    /// When the store cannot be read, the disk is full, or all checkpoints, here and there, are damaged.
    pub fn fetch_newer(&self, folder: &Path) -> Result<bool> {
        let checkpoints = Checkpoints::of(folder);
        let here = checkpoints.last_whole();
        let step_here = here.as_ref().ok().and_then(Option::as_ref);
        let step_here = step_here.map(|whole| whole.manifest.step);
        let mut damaged = Vec::new();
        let steps = folder::steps(&self.run.below(CHECKPOINTS_DIR))?;
        for (step, place) in steps.into_iter().rev() {
            if step_here.is_some_and(|here| here >= step) {
                break;
            }
            if folder::manifest_of(&place).is_ok_and(|manifest| manifest.is_none()) {
                note(format!(
                    "the checkpoint {} was not uploaded whole: it is passed over",
                    place.url()
                ));
                continue;
            }
            note(format!("fetching the checkpoint {}", place.url()));
            // What goes with it comes first: the checkpoint gets its name when nothing is missing any more.
            let fetched = checkpoints.adopt(step, |target| {
                let manifest = folder::download(&place, target)?;
                self.fetch_beside(folder)?;
                Ok(manifest)
            });
            match fetched {
                Ok(_) => {
                    note(format!("the run goes on from {}", place.url()));
                    return Ok(false);
                }
                Err(error) if error.is::<Damaged>() => {
                    note(format!("{error:#}; the checkpoint before it is taken"));
                    damaged.push(format!("{error:#}"));
                }
                Err(error) => return Err(error),
            }
        }
        match here? {
            Some(whole) => {
                note(format!(
                    "the run goes on from {}, which is no older than what {} has",
                    whole.path.display(),
                    self.url()
                ));
                Ok(true)
            }
            None if damaged.is_empty() => {
                note(format!("there is no checkpoint in {} yet", self.url()));
                Ok(false)
            }
            None => bail!(
                "cannot resume: no checkpoint is whole ({}); put one back from a copy, or start anew with --force",
                damaged.join("; ")
            ),
        }
    }

    /// The metrics, and the weights that were kept.
    fn fetch_beside(&self, folder: &Path) -> Result<()> {
        let metrics = self.run.below(METRICS_FILE);
        if metrics.head()?.is_some() {
            metrics.download(&folder.join(METRICS_FILE))?;
        }
        let Some((_, place)) = folder::last(&self.run.below(BEST_DIR))? else {
            return Ok(());
        };
        let staged = folder.join(UPLOAD_DIR).join(BEST_DIR);
        let _unfinished = Unfinished::new(&staged);
        // As text: it is not the checkpoint that is damaged.
        folder::download(&place, &staged).map_err(|error| {
            anyhow!("the best weights: {error:#}; remove them there, or put them back from a copy")
        })?;
        for name in BEST_FILES {
            let from = staged.join(name);
            if from.is_file() {
                fs::rename(&from, folder.join(name))
                    .with_context(|| format!("cannot write {}", folder.join(name).display()))?;
            }
        }
        sync_folder(folder);
        remove(&folder.join(UPLOAD_DIR))
    }

    /// Writes the config, which shows that the store can be written, and begins to upload what is offered.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn begin(&self, fit: &Fit) -> Result<Uploader> {
        let config = fit.config.to_toml()?;
        self.run.below(CONFIG_FILE).write(config.into())?;
        let queue = Arc::new(Queue::default());
        let (mirror, shared) = (self.clone(), Arc::clone(&queue));
        let thread = thread::Builder::new()
            .name("upload".to_owned())
            .spawn(move || work(&mirror, &shared))
            .context("no thread for uploads")?;
        Ok(Uploader {
            mirror: self.clone(),
            folder: fit.folder.clone(),
            origin: fit.origin.clone(),
            queue,
            thread,
        })
    }

    fn upload(&self, job: &Job) -> Result<()> {
        let Job { folder, step, .. } = job;
        let best = folder.join(BEST_DIR);
        if best.is_dir() {
            let kept = read_record(&best)?.step;
            folder::upload_step(&best, &self.run.below(BEST_DIR), kept, 1)?;
        }
        for name in [METRICS_FILE, REPORT_FILE] {
            if folder.join(name).is_file() {
                self.run.below(name).upload(&folder.join(name))?;
            }
        }
        let checkpoint = folder.join(CHECKPOINTS_DIR);
        if checkpoint.is_dir() {
            let place = self.run.below(CHECKPOINTS_DIR);
            folder::upload_step(&checkpoint, &place, *step, self.keep_last)?;
        }
        Ok(())
    }
}

/// What is to be uploaded: a folder of links, which goes when it was.
struct Job {
    folder: PathBuf,
    step: u64,
    what: String,
    _unfinished: Unfinished,
}

impl Drop for Job {
    fn drop(&mut self) {
        // What stays goes at the next start.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    waiting: Option<Job>,
    closing: bool,
    /// Why the last upload failed, if it did.
    failed: Option<String>,
}

impl Queue {
    fn state(&self) -> MutexGuard<'_, State> {
        // Every change is one assignment.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Uploads what is offered, until it is closed.
fn work(mirror: &Mirror, queue: &Queue) {
    loop {
        let mut state = queue.state();
        let job = loop {
            if let Some(job) = state.waiting.take() {
                break job;
            }
            if state.closing {
                return;
            }
            state = queue
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        };
        drop(state);
        let result = with_patience(mirror, &job, queue);
        if let Err(error) = &result {
            note(format!(
                "warning: {} was not uploaded to {}: {error:#}; training goes on",
                job.what,
                mirror.url()
            ));
        }
        queue.state().failed = result.err().map(|error| format!("{error:#}"));
    }
}

/// Tries again after a while; not when a newer job waits, which has all that this one has.
fn with_patience(mirror: &Mirror, job: &Job, queue: &Queue) -> Result<()> {
    for seconds in WAITS_S {
        let Err(error) = mirror.upload(job) else {
            return Ok(());
        };
        let newer = |state: &mut State| state.waiting.is_none();
        let (state, _) = queue
            .changed
            .wait_timeout_while(queue.state(), Duration::from_secs(seconds), newer)
            .unwrap_or_else(PoisonError::into_inner);
        if state.waiting.is_some() {
            return Err(error);
        }
    }
    mirror.upload(job)
}

/// Uploads checkpoints while the run goes on.
pub struct Uploader {
    mirror: Mirror,
    folder: PathBuf,
    origin: Origin,
    queue: Arc<Queue>,
    thread: JoinHandle<()>,
}

impl std::fmt::Debug for Uploader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Uploader").field(&self.mirror).finish()
    }
}

impl Uploader {
    /// Hands over the checkpoint of `step` and what goes with it as they are now.
    ///
    /// # Errors
    /// When the disk is full.
    pub fn offer(&self, step: u64) -> Result<()> {
        let checkpoint = Checkpoints::of(&self.folder).path(step);
        let job = self.job(step, Some(&checkpoint))?;
        self.queue.state().waiting = Some(job);
        self.queue.changed.notify_all();
        Ok(())
    }

    /// Waits for what is on its way, then uploads the best weights, the metrics and the report of the end. While it waits,
    /// `patient` takes the first Ctrl-C for a question.
    ///
    /// # Errors
    /// When the last upload failed.
    pub fn finish(self, step: u64, patient: bool) -> Result<()> {
        let _graceful = patient
            .then(|| Graceful::with(|| note("still uploading; Ctrl-C again leaves without it")));
        let url = self.mirror.url().to_owned();
        self.queue.state().closing = true;
        self.queue.changed.notify_all();
        if !self.thread.is_finished() {
            note(format!("waiting for the upload to {url}"));
        }
        let job = self.job(step, None)?;
        let ended = self.thread.join();
        let failed = self.queue.state().failed.take();
        let uploaded = match (ended, failed) {
            (Err(_), _) => Err(anyhow!("the thread of uploads panicked")),
            (Ok(()), Some(error)) => Err(anyhow!(error)),
            (Ok(()), None) => with_patience(&self.mirror, &job, &self.queue),
        };
        drop(job);
        tidy(&self.folder)?;
        uploaded.with_context(|| {
            format!(
                "the last upload to {url} failed: what was trained is in {}, and the same command with --resume uploads it",
                self.folder.display()
            )
        })?;
        note(format!("uploaded to {url}"));
        Ok(())
    }

    fn job(&self, step: u64, checkpoint: Option<&Path>) -> Result<Job> {
        let name = match checkpoint {
            Some(_) => format!("step-{step}"),
            None => "end".to_owned(),
        };
        let folder = self.folder.join(UPLOAD_DIR).join(&name);
        remove(&folder)?;
        let job = Job {
            _unfinished: Unfinished::new(&folder),
            what: match checkpoint {
                Some(_) => format!("the checkpoint of step {step}"),
                None => "the end of the run".to_owned(),
            },
            step,
            folder,
        };
        let folder = &job.folder;
        if self.folder.join(RECORD_FILE).is_file() {
            let best = folder.join(BEST_DIR);
            for name in BEST_FILES {
                link(&self.folder.join(name), &best.join(name))?;
            }
            let kept = read_record(&best)?.step;
            Manifest::write(&best, kept, &self.origin)?;
        }
        if let Some(checkpoint) = checkpoint {
            let target = folder.join(CHECKPOINTS_DIR);
            let cannot = || format!("cannot read {}", checkpoint.display());
            for entry in fs::read_dir(checkpoint).with_context(cannot)? {
                let entry = entry.with_context(cannot)?;
                link(&entry.path(), &target.join(entry.file_name()))?;
            }
        }
        // Lines are added to this one, so it is copied.
        copy(&self.folder.join(METRICS_FILE), &folder.join(METRICS_FILE))?;
        link(&self.folder.join(REPORT_FILE), &folder.join(REPORT_FILE))?;
        Ok(job)
    }
}

/// A second name for a file that is only ever replaced, never changed; a copy where the disk has no links.
fn link(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(folder_of(to))
        .with_context(|| format!("cannot make the folder {}", folder_of(to).display()))?;
    match fs::hard_link(from, to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => copy(from, to),
        _ => Ok(()),
    }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    match fs::copy(from, to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot copy {} for its upload", from.display()))
        }
        _ => Ok(()),
    }
}

/// Removes what a killed process had still to upload.
///
/// # Errors
/// When it cannot be removed.
pub fn tidy(folder: &Path) -> Result<()> {
    remove(&folder.join(UPLOAD_DIR))
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}
