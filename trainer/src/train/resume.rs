//! Whether a run may go on from a checkpoint: it must be of the same base, the same rows and, in what decides the next steps,
//! the same config.

use super::{
    checkpoint::{STATE_FILE, State, load_state},
    checkpoints::{Checkpoints, Whole},
    config::Config,
    data::Rows,
    fit::Fit,
    optim::LearningRates,
    steps::n_steps,
};
use crate::{manifest::Origin, output::note, run::CONFIG_FILE};
use anyhow::{Context, Result, bail, ensure};
use fledgling_core::spec::ModelSpec;
use sha2::{Digest, Sha256};
use std::{collections::BTreeMap, path::Path};

/// Keys that may change: where things lie, how long a run goes on, what is shown. The rows themselves are compared by
/// their content, and the base by its sum.
const FREE: [&str; 18] = [
    "base",
    "data.train",
    "data.valid",
    "device",
    "name",
    "remote",
    "runs_dir",
    "samples",
    "threads",
    "train.accumulate",
    "train.batch",
    "train.eval_every",
    "train.keep_last",
    "train.min_delta",
    "train.patience",
    "train.recompute",
    "train.save_every",
    "train.spike",
];
/// Keys that decide learning rates: they may change in what is still to come.
const RATES: [&str; 6] = [
    "train.decay_shape",
    "train.decay_share",
    "train.epochs",
    "train.schedule",
    "train.steps",
    "train.warmup",
];

/// What the checkpoints of a run belong to.
pub fn origin(base_sha256: &str, train: &Rows, valid: &Rows) -> Origin {
    Origin {
        base: base_sha256.to_owned(),
        train: sum_of(train),
        valid: sum_of(valid),
    }
}

/// SHA-256 of rows: those of files themselves, those of prepared data by the sums of its files.
fn sum_of(rows: &Rows) -> String {
    let mut sum = Sha256::new();
    for row in &rows.rows {
        sum.update((row.tokens.len() as u64).to_le_bytes());
        for (token, &counted) in row.tokens.iter().zip(&row.counted) {
            sum.update((u64::from(*token) * 2 + u64::from(counted)).to_le_bytes());
        }
    }
    for hash in rows.file_hashes() {
        sum.update(hash);
    }
    format!("{:x}", sum.finalize())
}

/// Opens the last whole checkpoint of the run and checks that it belongs to this config, these rows and this base. Nothing,
/// when the run was stopped before its first one.
///
/// # Errors
/// When all its checkpoints are damaged, or something has changed since; by name.
pub fn resume(fit: &Fit, spec: &ModelSpec) -> Result<Option<State>> {
    let folder = &fit.folder;
    let Some(Whole { path, manifest }) = Checkpoints::of(folder).last_whole()? else {
        ensure!(
            !folder.join(STATE_FILE).is_file(),
            "cannot resume {}: it was written by an earlier version of fledgling ({STATE_FILE} without checkpoints). Its weights are whole: begin a run of another name with base = {:?}",
            folder.display(),
            folder.display().to_string()
        );
        note(format!(
            "{} was stopped before its first checkpoint: it begins anew",
            folder.display()
        ));
        return Ok(None);
    };
    let context = || format!("cannot resume {}", path.display());
    check_origin(&manifest.origin, &fit.origin).with_context(context)?;
    let old = Config::load(&path.join(CONFIG_FILE), &[]).with_context(context)?;
    check_config(&old, &fit.config, fit.train.n_shown(), manifest.step).with_context(context)?;
    let state = load_state(&path, spec).with_context(context)?;
    ensure!(
        state.progress.step == manifest.step,
        "{}: the state is of step {}, the manifest of step {}",
        path.display(),
        state.progress.step,
        manifest.step
    );
    Ok(Some(state))
}

fn check_origin(old: &Origin, new: &Origin) -> Result<()> {
    let parts = [
        ("the base model (base)", &old.base, &new.base),
        ("the rows of data.train", &old.train, &new.train),
        ("the rows of data.valid", &old.valid, &new.valid),
    ];
    let changed: Vec<_> = parts
        .into_iter()
        .filter(|(_, old, new)| old != new)
        .map(|(what, old, new)| {
            let short = |sum: &str| sum.chars().take(12).collect::<String>();
            format!("{what} (SHA-256 {}…, now {}…)", short(old), short(new))
        })
        .collect();
    ensure!(
        changed.is_empty(),
        "it belongs to another run: {} changed since it was written; put back what it was, or start a run of another name",
        changed.join(" and ")
    );
    Ok(())
}

/// Refuses a config that would have done other steps than those that were done.
fn check_config(old: &Config, new: &Config, n_rows: usize, step: u64) -> Result<()> {
    let (old_keys, new_keys) = (old.keys()?, new.keys()?);
    let rates = |config: &Config| LearningRates::new(&config.train, n_steps(config, n_rows));
    let (old_rates, new_rates) = (rates(old), rates(new));
    let same_rates =
        (0..step).all(|step| old_rates.at(step).to_bits() == new_rates.at(step).to_bits());
    let per_step = |config: &Config| config.train.batch * config.train.accumulate;
    let same_rows = per_step(old) == per_step(new);
    let is_free = |key: &str| {
        FREE.iter()
            .any(|free| key == *free || key.starts_with(&format!("{free}.")))
            && (same_rows || !["train.batch", "train.accumulate"].contains(&key))
            || same_rates && RATES.contains(&key)
    };
    let none = || "absent".to_owned();
    let changed: Vec<_> = old_keys
        .keys()
        .chain(new_keys.keys().filter(|key| !old_keys.contains_key(*key)))
        .filter(|key| old_keys.get(*key) != new_keys.get(*key) && !is_free(key))
        .map(|key| {
            let value =
                |keys: &BTreeMap<String, String>| keys.get(key).cloned().unwrap_or_else(none);
            format!("{key} was {} and is {}", value(&old_keys), value(&new_keys))
        })
        .collect();
    if !changed.is_empty() {
        bail!(
            "the config has changed since it was written: {}; put it back, or start a run of another name",
            changed.join(", ")
        );
    }
    if old.train.batch != new.train.batch {
        note(
            "train.batch is another than before: the run goes on with the same rows, but its sums are rounded otherwise",
        );
    }
    Ok(())
}

/// Refuses to go on with a run that never began.
///
/// # Errors
/// When the folder is no run's.
pub fn check_begun(folder: &Path) -> Result<()> {
    ensure!(
        folder.join(CONFIG_FILE).is_file(),
        "cannot resume: there is no run {}; start it without --resume",
        folder.display()
    );
    Ok(())
}

/// Whether a folder holds something of a run that a new one would replace.
pub fn is_begun(folder: &Path) -> bool {
    folder.join(crate::run::RECORD_FILE).exists() || !Checkpoints::of(folder).list().is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(overrides: &[&str]) -> Config {
        let text = "name='a'\nmode='lora'\nbase='b'\n[data]\ntrain=['t.jsonl']\n[train]\nsteps=100\nschedule='wsd'\n";
        let overrides: Vec<_> = overrides.iter().map(ToString::to_string).collect();
        Config::parse(text, &overrides).unwrap()
    }

    #[test]
    fn what_decides_the_steps_that_were_done_may_not_change() {
        let check = |overrides: &[&str], step| {
            check_config(&config(&[]), &config(overrides), 1000, step)
                .map_err(|error| error.to_string())
        };
        assert!(check(&["threads=3", "train.eval_every=7", "train.patience=0"], 50).is_ok());
        assert!(check(&["samples.prompts=['a']", "runs_dir=x"], 50).is_ok());
        assert!(check(&["train.batch=4", "train.accumulate=2"], 50).is_ok());
        let error = check(&["train.batch=4"], 50).unwrap_err();
        assert!(error.contains("train.batch was 8 and is 4"), "{error}");
        let error = check(&["train.lr=1e-4", "lora.rank=2"], 50).unwrap_err();
        assert!(
            error.contains("train.lr was 0.001 and is 0.0001"),
            "{error}"
        );
        assert!(error.contains("lora.rank was absent and is 2"), "{error}");
    }

    #[test]
    fn a_stable_run_may_be_made_longer_before_its_decay() {
        let check = |step| check_config(&config(&[]), &config(&["train.steps=200"]), 1000, step);
        assert!(check(90).is_ok());
        let error = check(91).unwrap_err().to_string();
        assert!(error.contains("train.steps was 100 and is 200"), "{error}");
    }
}
