//! `fledgling train --continue-from RUN`: a new run that begins with the best weights of another one, with its config, and with
//! what its figures suggest.
//!
//! A key's value is, the later the stronger: that of the old run, what the advice says, what a config file says otherwise than
//! the old run, what `--set` says. Where the weights come from follows from the old run and cannot be set.

use super::config::{Config, LoraConfig, Mode, flat};
use crate::{
    advice, model as models,
    output::UsageError,
    report::overview::{Overview, State},
    run::{self, CHECKPOINTS_DIR, CONFIG_FILE, Continued, RECORD_FILE, Record},
};
use anyhow::{Context, Result, bail};
use fledgling_eval::advice::Advice;
use serde::Serialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

/// How the new run takes the weights of the old one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Taken {
    /// All of them.
    Weights,
    /// Its LoRA goes on, over the same base.
    Adapter,
    /// Its LoRA is merged into the base: the new run trains other matrices.
    Merged,
}

/// A new run that begins where another ended.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Continuation {
    /// The run's folder.
    pub from: PathBuf,
    /// Step of its weights.
    pub step: u64,
    /// How they are taken.
    pub taken: Taken,
    /// Keys that have another value than in the old run.
    pub changes: Vec<Change>,
    /// Advice that is not taken up.
    pub left: Vec<Left>,
    /// The new run.
    #[serde(skip)]
    pub config: Config,
}

/// A key with another value than in the old run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    /// The key.
    pub key: String,
    /// Its value in the old run.
    pub before: Option<String>,
    /// Its value in the new one.
    pub now: Option<String>,
    /// What changed it.
    pub why: String,
}

/// Advice that is not taken up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Left {
    /// The advice.
    #[serde(flatten)]
    pub advice: Advice,
    /// Why not.
    pub why: String,
}

/// Keys that say where weights come from.
const OF_WEIGHTS: [&str; 4] = ["base", "lora.init", "model", "continued_from"];

/// Plans a run that goes on from the best weights of `run`: with the keys of a config file that differ from its config, with
/// `--set`, and with what is advised when `with_advice`.
///
/// # Errors
/// When it is no run or is not over, or what is asked for does not fit its weights; by key.
pub fn plan(
    run: &str,
    file: Option<&Path>,
    sets: &[String],
    with_advice: bool,
) -> Result<Continuation> {
    let folder = folder_of(run)?;
    let record = run::read_record(&folder)?;
    let old = Config::load(&folder.join(CONFIG_FILE), &[])?;
    let wanted = Wanted::new(&old, file, sets)?;
    wanted.check(run, &old)?;
    let start = started_from(&old, &record, &wanted).to_toml()?;
    let mut config = Config::parse(&start, &wanted.items).with_context(|| wanted.place.clone())?;
    let mut taken_up = TakenUp::default();
    if with_advice {
        for advice in advice::of_run(&folder)? {
            if let Some(new) = taken_up.consider(&advice, &start, &wanted, &config) {
                config = new;
            }
        }
    }
    if !wanted.has("name") {
        config.name = next_name(&config.runs_dir, &old.name);
    }
    let taken = take_weights(&mut config, &old, &record, &folder);
    config.continued_from = Some(Continued {
        run: folder.clone(),
        step: record.step,
        sha256: run::identity(&folder)?,
        advised: taken_up.items.clone(),
    });
    refuse_replacing(&config, &folder)?;
    Ok(Continuation {
        changes: changes(&old, &config, &wanted, &taken_up)?,
        left: taken_up.left,
        from: folder,
        step: record.step,
        taken,
        config,
    })
}

/// The folder of a run that is over.
fn folder_of(run: &str) -> Result<PathBuf> {
    let located = models::locate(run)?;
    let folder = located
        .canonicalize()
        .with_context(|| located.display().to_string())?;
    if !folder.join(CONFIG_FILE).is_file() {
        bail!(UsageError(format!(
            "--continue-from {run}: {} is no run's folder; to train another model, name it as `base` in a config",
            folder.display()
        )));
    }
    let resume = format!(
        "go on with it: fledgling train {} --resume",
        folder.join(CONFIG_FILE).display()
    );
    if !folder.join(RECORD_FILE).is_file() {
        bail!("--continue-from {run}: the run was stopped before it kept weights; {resume}");
    }
    // A checkpoint that was asked for by name is taken as it is.
    if folder
        .parent()
        .is_some_and(|parent| parent.ends_with(CHECKPOINTS_DIR))
    {
        return Ok(folder);
    }
    let overview = Overview::read(&folder);
    let steps = overview.steps.unwrap_or(0);
    match overview.state {
        State::Finished | State::StoppedEarly | State::Failed => Ok(folder),
        State::Running => {
            bail!("--continue-from {run}: the run is being trained; wait for its end")
        }
        State::Interrupted => bail!(
            "--continue-from {run}: the run is not over, it stopped at step {} of {steps}; {resume}, or name a checkpoint: {run}@last",
            overview.step
        ),
        State::Broken => bail!(
            "--continue-from {run}: {}",
            overview
                .reason
                .unwrap_or_else(|| "its files cannot be read".to_owned())
        ),
    }
}

/// The old run's config as a new one begins with it.
fn started_from(old: &Config, record: &Record, wanted: &Wanted) -> Config {
    let mut config = old.clone();
    // The same seed would show the same rows first, which a run of less than a pass never leaves.
    config.seed = config.seed.wrapping_add(1);
    if config.mode == Mode::Scratch {
        (config.mode, config.model) = (Mode::Full, None);
    }
    if wanted.has("mode") {
        // Of the two modes that are left it is the other one.
        config.lora = None;
    }
    if let Some(qat) = &mut config.qat {
        qat.start_step = qat.start_step.saturating_sub(record.step);
    }
    config.continued_from = None;
    config
}

/// What the user asks for.
struct Wanted {
    /// Keys and values, as `--set` takes them.
    items: Vec<String>,
    /// What asks for a key.
    why: BTreeMap<String, String>,
    /// Where to look for a mistake.
    place: String,
}

impl Wanted {
    fn new(old: &Config, file: Option<&Path>, sets: &[String]) -> Result<Self> {
        let mut wanted = Self {
            items: Vec::new(),
            why: BTreeMap::new(),
            place: "with --set".to_owned(),
        };
        if let Some(file) = file {
            wanted.place = format!("in the config {}", file.display());
            let text = std::fs::read_to_string(file)
                .with_context(|| format!("cannot read the config {}", file.display()))?;
            let table = toml::from_str(&text).with_context(|| wanted.place.clone())?;
            let before = old.keys()?;
            for (key, value) in flat(&table) {
                if before.get(&key) != Some(&value) {
                    wanted.items.push(format!("{key}={value}"));
                    wanted.why.insert(key, file.display().to_string());
                }
            }
        }
        for item in sets {
            wanted
                .why
                .insert(key_of(item).to_owned(), "--set".to_owned());
            wanted.items.push(item.clone());
        }
        Ok(wanted)
    }

    fn has(&self, key: &str) -> bool {
        self.why.contains_key(key)
    }

    /// Refuses what does not fit the weights of a run.
    fn check(&self, run: &str, old: &Config) -> Result<()> {
        let of_weights = |key: &&String| {
            OF_WEIGHTS
                .iter()
                .any(|own| *key == own || key.starts_with(&format!("{own}.")))
        };
        if let Some(key) = self.why.keys().find(of_weights) {
            let instead = match key.as_str() {
                "base" => format!(
                    "the run's weights and tokenizer are those of its base `{}`. To train another model, leave --continue-from out",
                    old.base
                ),
                "lora.init" => "the LoRA to go on from is the run's".to_owned(),
                key if key.starts_with("model") => "the run's weights have its shape. To train another shape, leave --continue-from out".to_owned(),
                _ => "--continue-from writes it".to_owned(),
            };
            bail!(UsageError(format!(
                "`{key}` ({}) does not go with --continue-from {run}: {instead}",
                self.why[key]
            )));
        }
        let is_scratch = |item: &String| key_of(item) == "mode" && item.contains("scratch");
        if self.items.iter().any(is_scratch) {
            bail!(UsageError(format!(
                "mode = \"scratch\" begins with random weights, and --continue-from {run} with the run's: take \"full\" or \"lora\""
            )));
        }
        Ok(())
    }
}

/// The key of `key=value`.
fn key_of(item: &str) -> &str {
    item.split_once('=').map_or(item, |(key, _)| key.trim())
}

/// What is done with advice.
#[derive(Default)]
struct TakenUp {
    /// Keys and values, as `--set` takes them.
    items: Vec<String>,
    /// The advice on a key.
    why: BTreeMap<String, String>,
    left: Vec<Left>,
}

impl TakenUp {
    /// The config with one more advice, if that can be taken up.
    fn consider(
        &mut self,
        advice: &Advice,
        start: &str,
        wanted: &Wanted,
        now: &Config,
    ) -> Option<Config> {
        let leave = |why: &str| Left {
            advice: advice.clone(),
            why: why.to_owned(),
        };
        if advice.continuing.is_empty() {
            let why = if advice.changes.is_empty() {
                "it is for you to judge"
            } else {
                "it is for a run that begins anew from the base"
            };
            self.left.push(leave(why));
            return None;
        }
        let is_free = |item: &&String| {
            let key = key_of(item);
            !wanted.has(key) && !self.why.contains_key(key)
        };
        let new: Vec<_> = advice.continuing.iter().filter(is_free).cloned().collect();
        let all = [&self.items[..], &new[..], &wanted.items[..]].concat();
        match Config::parse(start, &all) {
            Ok(config) if config == *now => {
                self.left.push(leave("nothing of it is left to change"));
                None
            }
            Ok(config) => {
                let why = format!("{} ({})", advice.text, advice.figure);
                for item in &new {
                    self.why.insert(key_of(item).to_owned(), why.clone());
                }
                self.items.extend(new);
                Some(config)
            }
            Err(error) => {
                self.left
                    .push(leave(&format!("it does not go with the rest: {error:#}")));
                None
            }
        }
    }
}

/// A name that no run has yet: `mine-2` after `mine`, `mine-3` after `mine-2`.
fn next_name(runs_dir: &Path, old: &str) -> String {
    let numbered = old.rsplit_once('-').and_then(|(stem, number)| {
        let number: u32 = number.parse().ok()?;
        (!stem.is_empty()).then_some((stem, number))
    });
    let (stem, number) = numbered.unwrap_or((old, 1));
    (number.saturating_add(1)..u32::MAX)
        .map(|number| format!("{stem}-{number}"))
        .find(|name| !runs_dir.join(name).exists())
        .unwrap_or_else(|| old.to_owned())
}

/// Names base and LoRA so that the new run begins with the weights of the old one.
fn take_weights(config: &mut Config, old: &Config, record: &Record, folder: &Path) -> Taken {
    let of = |config: &Config| config.lora.clone().unwrap_or_default();
    let shape = |lora: &LoraConfig| (lora.size(), lora.targets.clone());
    let goes_on =
        record.lora.is_some() && config.mode == Mode::Lora && shape(&of(config)) == shape(&of(old));
    if goes_on {
        // As the old run named it, where that still leads there.
        let located = models::locate(&old.base).and_then(|path| Ok(path.canonicalize()?));
        let leads_there = located.is_ok_and(|path| path == record.base.path);
        if !leads_there && record.base.path.exists() {
            config.base = record.base.path.display().to_string();
        }
        config.lora.get_or_insert_default().init = Some(folder.to_owned());
        return Taken::Adapter;
    }
    config.base = folder.display().to_string();
    if let Some(lora) = &mut config.lora {
        lora.init = None;
    }
    if record.lora.is_some() {
        Taken::Merged
    } else {
        Taken::Weights
    }
}

fn refuse_replacing(config: &Config, folder: &Path) -> Result<()> {
    let new = config.run_dir();
    if new.canonicalize().is_ok_and(|new| folder.starts_with(&new)) {
        bail!(UsageError(format!(
            "name = {:?}: the new run would replace the one that it goes on from; choose another name",
            config.name
        )));
    }
    Ok(())
}

fn changes(old: &Config, new: &Config, wanted: &Wanted, taken_up: &TakenUp) -> Result<Vec<Change>> {
    let (before, now) = (old.keys()?, new.keys()?);
    let keys: BTreeSet<_> = before.keys().chain(now.keys()).collect();
    let why = |key: &str| {
        let asked = wanted.why.get(key).or(taken_up.why.get(key));
        asked.cloned().unwrap_or_else(|| {
            match key {
                "name" => "a run of its own",
                "seed" => "another order of the rows",
                _ => "the new run begins with the weights of the old one",
            }
            .to_owned()
        })
    };
    let change = |key: &String| Change {
        key: key.clone(),
        before: before.get(key).cloned(),
        now: now.get(key).cloned(),
        why: why(key),
    };
    Ok(keys
        .into_iter()
        .filter(|key| before.get(*key) != now.get(*key))
        .filter(|key| !key.starts_with("continued_from."))
        .map(change)
        .collect())
}

/// For people.
pub fn describe(continuation: &Continuation) -> String {
    let how = match continuation.taken {
        Taken::Weights => "with all its weights",
        Taken::Adapter => "with its LoRA, over the same base",
        Taken::Merged => "with its LoRA merged",
    };
    let mut text = format!(
        "{}: goes on from step {} of {}, {how}\n",
        continuation.config.run_dir().display(),
        continuation.step,
        continuation.from.display()
    );
    let absent = || "absent".to_owned();
    for change in &continuation.changes {
        text += &format!(
            "  {}: {} -> {}: {}\n",
            change.key,
            change.before.clone().unwrap_or_else(absent),
            change.now.clone().unwrap_or_else(absent),
            change.why
        );
    }
    for Left { advice, why } in &continuation.left {
        text += &format!(
            "  not taken up: {} ({}): {why}\n",
            advice.text, advice.figure
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_counted_on() {
        let folder = tempfile::tempdir().unwrap();
        let name = |old| next_name(folder.path(), old);
        assert_eq!(
            (name("mine"), name("mine-2"), name("a-b"), name("-3")),
            (
                "mine-2".to_owned(),
                "mine-3".to_owned(),
                "a-b-2".to_owned(),
                "-3-2".to_owned()
            )
        );
        std::fs::create_dir(folder.path().join("mine-2")).unwrap();
        assert_eq!(name("mine"), "mine-3");
    }
}
