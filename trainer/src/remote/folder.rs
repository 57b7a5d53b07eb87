//! Folders in a store that are there whole or not at all: the files first, the [`Manifest`] of their sums last. Without a
//! manifest a folder is what a killed upload left, and counts as not there.

use super::Remote;
use crate::{
    manifest::{MANIFEST_FILE, Manifest},
    output::note,
};
use anyhow::{Context, Result, bail};
use std::{fs, path::Path};

/// How the names of numbered folders begin.
const STEP: &str = "step-";

/// The manifest of a folder. Nothing, when it is not whole.
///
/// # Errors
/// When the store cannot be read, or the manifest is broken.
pub fn manifest_of(remote: &Remote) -> Result<Option<Manifest>> {
    let place = remote.below(MANIFEST_FILE);
    let Some(bytes) = place.read()? else {
        return Ok(None);
    };
    Manifest::parse(&bytes)
        .map(Some)
        .with_context(|| place.url().to_owned())
}

/// Uploads a folder with a manifest, unless the same is there already.
///
/// # Errors
/// When a file cannot be read or the store cannot be written; the folder then counts as not there.
pub fn upload(folder: &Path, remote: &Remote) -> Result<()> {
    let path = folder.join(MANIFEST_FILE);
    let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let manifest = Manifest::parse(&bytes).with_context(|| path.display().to_string())?;
    match manifest_of(remote) {
        Ok(Some(there)) if there.files == manifest.files && there.origin == manifest.origin => {
            return Ok(());
        }
        Ok(None) => {}
        _ => remote.below(MANIFEST_FILE).remove()?,
    }
    for name in manifest.files.keys() {
        remote.below(name).upload(&folder.join(name))?;
    }
    remote.below(MANIFEST_FILE).write(bytes.into())
}

/// Downloads a folder and holds it to its manifest. What is left in `target` after an error is to be removed.
///
/// # Errors
/// [`Damaged`] when a file is missing or not what it was; otherwise what failed.
pub fn download(remote: &Remote, target: &Path) -> Result<Manifest> {
    let place = remote.below(MANIFEST_FILE);
    let damaged = |error: anyhow::Error| {
        anyhow::Error::new(Damaged {
            url: remote.url().to_owned(),
            error: format!("{error:#}"),
        })
    };
    let Some(bytes) = place.read()? else {
        bail!("{}: there is none, so the folder is not whole", place.url());
    };
    let manifest = Manifest::parse(&bytes).map_err(damaged)?;
    let there = remote.list()?.objects;
    for (name, expected) in &manifest.files {
        let found = there.get(name).map(|object| object.len_bytes);
        if found != Some(expected.len_bytes) {
            let what = found.map_or("is missing".to_owned(), |n| {
                format!("has {n} bytes instead of {}", expected.len_bytes)
            });
            return Err(damaged(anyhow::anyhow!("{name} {what}")));
        }
        remote.below(name).download(&target.join(name))?;
    }
    crate::files::write_whole(&target.join(MANIFEST_FILE), &bytes)?;
    Manifest::verify(target).map_err(damaged)
}

/// A folder that is not as it was written.
#[derive(Debug, thiserror::Error)]
#[error("{url} is damaged: {error}")]
pub struct Damaged {
    url: String,
    error: String,
}

/// The folders `step-N` below, whole ones and others, the first first.
///
/// # Errors
/// When the store cannot be read.
pub fn steps(remote: &Remote) -> Result<Vec<(u64, Remote)>> {
    let mut steps: Vec<_> = remote
        .list()?
        .folders
        .iter()
        .filter_map(|name| {
            let step = name.strip_prefix(STEP)?.parse().ok()?;
            Some((step, remote.below(name)))
        })
        .collect();
    steps.sort_unstable_by_key(|(step, _)| *step);
    Ok(steps)
}

/// The last folder `step-N` that has a manifest.
///
/// # Errors
/// When the store cannot be read.
pub fn last(remote: &Remote) -> Result<Option<(u64, Remote)>> {
    for (step, place) in steps(remote)?.into_iter().rev() {
        if place.list()?.objects.contains_key(MANIFEST_FILE) {
            return Ok(Some((step, place)));
        }
    }
    Ok(None)
}

/// Uploads `folder` as `step-N`, then removes all but the last `keep_last` whole ones up to it. Later ones are of steps that
/// are done again.
///
/// # Errors
/// As [`upload`]; nothing was removed then.
pub fn upload_step(folder: &Path, remote: &Remote, step: u64, keep_last: usize) -> Result<()> {
    let place = remote.below(&format!("{STEP}{step}"));
    upload(folder, &place)?;
    let mut n_kept = 1;
    for (other, place) in steps(remote)?.into_iter().rev() {
        if other == step {
            continue;
        }
        let whole = place.list()?.objects.contains_key(MANIFEST_FILE);
        if other < step && whole && n_kept < keep_last {
            n_kept += 1;
            continue;
        }
        if let Err(error) = place.remove_all(MANIFEST_FILE) {
            note(format!("an old checkpoint could not be removed: {error:#}"));
        }
    }
    Ok(())
}
