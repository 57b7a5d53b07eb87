//! What a URL names, as a file or folder of this machine.
//!
//! It is downloaded once into `remote/` of Fledgling's folder, under the URL and what tells the version (length, `ETag`, time). A
//! copy is there whole or not at all; older versions go when a newer one is whole.

use super::{Listing, Object, Remote, folder};
use crate::{
    cache,
    interrupt::Unfinished,
    manifest::MANIFEST_FILE,
    output::note,
    run::{BEST_DIR, CHECKPOINTS_DIR, RECORD_FILE},
    sums::sha256_hex,
};
use anyhow::{Context, Result, bail};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// What a folder must have one of to be prepared data, a model, or a run's.
const MARKS: [&str; 3] = [MANIFEST_FILE, "config.json", RECORD_FILE];

/// The file or folder that `url` names: an object; a folder of prepared data or of a model; of a run its best weights, or with
/// `@last` or `@step-N` a checkpoint.
///
/// # Errors
/// When there is no such thing, or the store cannot be read.
pub fn local_copy(url: &str) -> Result<PathBuf> {
    let is_one = |which: &str| ["best", "last"].contains(&which) || which.starts_with("step-");
    let (url, which) = match url.rsplit_once('@') {
        Some((run, which)) if is_one(which) => (run, Some(which)),
        _ => (url, None),
    };
    let remote = Remote::open(url)?;
    if let Some(which) = which {
        return copy_of_folder(&of_run(&remote, which)?);
    }
    if let Some(path) = remote.local_path()
        && !path.join(BEST_DIR).is_dir()
        && path.exists()
    {
        return Ok(path);
    }
    if let Some(object) = remote.head()? {
        return copy_of_object(&remote, &object);
    }
    let Listing { folders, objects } = remote.list()?;
    if MARKS.iter().any(|name| objects.contains_key(*name)) {
        return copy_of_folder(&remote);
    }
    if [BEST_DIR, CHECKPOINTS_DIR]
        .iter()
        .any(|name| folders.iter().any(|folder| folder == name))
    {
        return copy_of_folder(&of_run(&remote, "best")?);
    }
    bail!(
        "{url}: there is no such object, and no folder of prepared data, of a model or of a run: check the bucket and the name"
    )
}

/// The folder of a run's weights: `best`, `last` or `step-N`.
fn of_run(run: &Remote, which: &str) -> Result<Remote> {
    let checkpoints = run.below(CHECKPOINTS_DIR);
    let found = match which {
        "best" => folder::last(&run.below(BEST_DIR))?,
        "last" => folder::last(&checkpoints)?,
        name => folder::steps(&checkpoints)?
            .into_iter()
            .find(|(step, _)| name == format!("step-{step}")),
    };
    let (_, place) = found.with_context(|| {
        format!(
            "{}: there is no whole `{which}` of a run: it has `best`, `last` and `step-N` once they were uploaded",
            run.url()
        )
    })?;
    Ok(place)
}

fn copy_of_object(remote: &Remote, object: &Object) -> Result<PathBuf> {
    let name = remote.url().rsplit('/').next().unwrap_or_default();
    let folder = place_of(remote, &version(name, object))?;
    let target = folder.join(name);
    if !target.is_file() {
        note(format!("fetching {}", remote.url()));
        remote.download(&target)?;
        remove_others(&folder);
    }
    Ok(target)
}

fn copy_of_folder(remote: &Remote) -> Result<PathBuf> {
    if let Some(path) = remote.local_path() {
        return Ok(path);
    }
    let objects = remote.list()?.objects;
    let versions: Vec<_> = objects
        .iter()
        .map(|(name, object)| version(name, object))
        .collect();
    let target = place_of(remote, &versions.join("\n"))?;
    if target.is_dir() {
        return Ok(target);
    }
    note(format!("fetching {}", remote.url()));
    let new = target.with_extension(format!("{}.new", std::process::id()));
    let unfinished = Unfinished::new(&new);
    // What was trained has a manifest of its own, and is held to it; prepared data is by whoever opens it.
    let fetched = if objects.contains_key(RECORD_FILE) && objects.contains_key(MANIFEST_FILE) {
        folder::download(remote, &new).map(drop)
    } else {
        objects.keys().try_for_each(|name| {
            let plain = Path::new(name).components().count() == 1 && !name.starts_with('.');
            if plain {
                remote.below(name).download(&new.join(name))
            } else {
                Ok(())
            }
        })
    };
    let placed = fetched.and_then(|()| {
        // Another process may have been faster with the same.
        if target.is_dir() {
            return Ok(());
        }
        fs::rename(&new, &target).with_context(|| format!("cannot write {}", target.display()))
    });
    if new.exists() {
        let _ = fs::remove_dir_all(&new);
    }
    drop(unfinished);
    placed?;
    remove_others(&target);
    Ok(target)
}

fn version(name: &str, object: &Object) -> String {
    let etag = object.etag.as_deref().unwrap_or_default();
    format!("{name} {} {etag} {}", object.len_bytes, object.modified)
}

/// Where a version of what the URL names is kept.
fn place_of(remote: &Remote, version: &str) -> Result<PathBuf> {
    let short = |text: &str| sha256_hex(text.as_bytes())[..16].to_owned();
    let folder = cache::home()?.join("remote");
    Ok(folder.join(short(remote.url())).join(short(version)))
}

/// Removes other versions. One that a process still reads may stay, for the next time.
fn remove_others(version: &Path) {
    let siblings = version.parent().map(fs::read_dir);
    for entry in siblings.into_iter().flatten().flatten().flatten() {
        let path = entry.path();
        if path != version && path.extension().is_none() {
            let _ = fs::remove_dir_all(path);
        }
    }
}
