//! The folder of a run's checkpoints.
//!
//! A checkpoint is a folder `step-N` that is there whole or not at all: it is filled beside its place, its manifest is
//! written last, everything is synced, then it gets its name. Names that begin with a dot are what a killed process left.

use crate::{
    files::sync_folder,
    interrupt::Unfinished,
    manifest::{Manifest, Origin},
    output::note,
    run::{CHECKPOINTS_DIR, checkpoints},
};
use anyhow::{Context, Result, bail};
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// How a damaged checkpoint's name begins once a run has gone on without it.
const DAMAGED: &str = "damaged-";

/// The checkpoints of a run.
#[derive(Debug)]
pub struct Checkpoints {
    folder: PathBuf,
}

/// One that is as it was written.
#[derive(Debug)]
pub struct Whole {
    /// Its folder.
    pub path: PathBuf,
    /// Its manifest.
    pub manifest: Manifest,
}

impl Checkpoints {
    /// Those of the run in `run`, which need not have any.
    pub fn of(run: &Path) -> Self {
        Self {
            folder: run.join(CHECKPOINTS_DIR),
        }
    }

    /// The place of a step's checkpoint.
    pub fn path(&self, step: u64) -> PathBuf {
        self.folder.join(format!("step-{step}"))
    }

    /// By step, the first first.
    pub fn list(&self) -> Vec<(u64, PathBuf)> {
        checkpoints(&self.folder)
    }

    /// Removes all.
    ///
    /// # Errors
    /// When they cannot be removed.
    pub fn clear(&self) -> Result<()> {
        remove(&self.folder)
    }

    /// Removes what a killed process left half written or half removed.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn tidy(&self) -> Result<()> {
        for entry in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with('.') {
                remove(&entry.path())?;
            }
        }
        Ok(())
    }

    /// Writes the checkpoint of `step`: `fill` puts its files into a folder. Then all but the last `keep_last` go.
    ///
    /// # Errors
    /// When the disk is full or may not be written; the checkpoints that were there are still there.
    pub fn write(
        &self,
        step: u64,
        origin: &Origin,
        keep_last: usize,
        fill: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let (target, ()) = self
            .place(step, |new| {
                fill(new).and_then(|()| Manifest::write(new, step, origin))
            })
            .with_context(|| {
                format!("cannot write the checkpoint {}", self.path(step).display())
            })?;
        self.prune(keep_last)?;
        Ok(target)
    }

    /// Takes a checkpoint from elsewhere: `fill` brings its files and manifest, and holds them to it.
    ///
    /// # Errors
    /// Those of `fill`; when the disk is full or may not be written.
    pub fn adopt(&self, step: u64, fill: impl FnOnce(&Path) -> Result<Manifest>) -> Result<Whole> {
        let (path, manifest) = self.place(step, fill)?;
        Ok(Whole { path, manifest })
    }

    /// Fills a folder beside the place of `step`, and gives it its name when it is whole.
    fn place<T>(&self, step: u64, fill: impl FnOnce(&Path) -> Result<T>) -> Result<(PathBuf, T)> {
        let target = self.path(step);
        let cannot = || format!("cannot write {}", target.display());
        let new = self.folder.join(format!(".step-{step}.new"));
        remove(&new)?;
        fs::create_dir_all(&new).with_context(cannot)?;
        let unfinished = Unfinished::new(&new);
        let filled = match fill(&new) {
            Ok(filled) => filled,
            Err(error) => {
                // The error is told; what is left of it here goes at the next start at the latest.
                let _ = remove(&new);
                return Err(error);
            }
        };
        sync_folder(&new);
        let old = self.folder.join(format!(".step-{step}.old"));
        if target.exists() {
            fs::rename(&target, &old).with_context(cannot)?;
        }
        fs::rename(&new, &target).with_context(cannot)?;
        drop(unfinished);
        sync_folder(&self.folder);
        remove(&old)?;
        Ok((target, filled))
    }

    fn prune(&self, keep_last: usize) -> Result<()> {
        let list = self.list();
        for (step, path) in &list[..list.len().saturating_sub(keep_last)] {
            // Renamed first, so that what is half removed is not mistaken for a damaged one.
            let going = self.folder.join(format!(".step-{step}.going"));
            remove(&going)?;
            fs::rename(path, &going)
                .with_context(|| format!("cannot remove {}", path.display()))?;
            remove(&going)?;
        }
        Ok(())
    }

    /// The last one that is whole. Later ones that are damaged are told and set aside. Nothing, when there is none at all.
    ///
    /// # Errors
    /// When there are some, and each is damaged: with what is wrong with each.
    pub fn last_whole(&self) -> Result<Option<Whole>> {
        let mut damaged = Vec::new();
        for (_, path) in self.list().into_iter().rev() {
            match Manifest::verify(&path) {
                Ok(manifest) => {
                    self.set_aside(&damaged, &path)?;
                    return Ok(Some(Whole { path, manifest }));
                }
                Err(error) => damaged.push((path, format!("{error:#}"))),
            }
        }
        if damaged.is_empty() {
            return Ok(None);
        }
        let all: Vec<_> = damaged
            .iter()
            .map(|(path, error)| format!("{}: {error}", path.display()))
            .collect();
        bail!(
            "cannot resume: no checkpoint is whole ({}); put one back from a copy, or start anew with --force",
            all.join("; ")
        )
    }

    fn set_aside(&self, damaged: &[(PathBuf, String)], instead: &Path) -> Result<()> {
        for (path, error) in damaged {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let aside = self.folder.join(format!("{DAMAGED}{name}"));
            remove(&aside)?;
            fs::rename(path, &aside)
                .with_context(|| format!("cannot rename {}", path.display()))?;
            note(format!(
                "the checkpoint {} is damaged: {error}; it is set aside as {}, and the run goes on from {}",
                path.display(),
                aside.display(),
                instead.display()
            ));
        }
        Ok(())
    }
}

/// Removes a folder that may not be there.
fn remove(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
            fs::remove_file(path).with_context(|| format!("cannot remove {}", path.display()))
        }
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(checkpoints: &Checkpoints, step: u64, keep_last: usize) -> PathBuf {
        let origin = Origin::default();
        let fill = |folder: &Path| Ok(fs::write(folder.join("a"), format!("of step {step}"))?);
        checkpoints.write(step, &origin, keep_last, fill).unwrap()
    }

    #[test]
    fn the_last_ones_are_kept_and_leftovers_go() {
        let run = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::of(run.path());
        assert!(checkpoints.last_whole().unwrap().is_none());
        for step in [5, 10, 100] {
            write(&checkpoints, step, 2);
        }
        let steps =
            |list: Vec<(u64, PathBuf)>| list.into_iter().map(|(step, _)| step).collect::<Vec<_>>();
        assert_eq!(steps(checkpoints.list()), [10, 100]);
        fs::create_dir(run.path().join("checkpoints/.step-200.new")).unwrap();
        assert_eq!(steps(checkpoints.list()), [10, 100]);
        checkpoints.tidy().unwrap();
        let left = fs::read_dir(run.path().join("checkpoints"))
            .unwrap()
            .count();
        assert_eq!(left, 2);
        let failed = checkpoints.write(300, &Origin::default(), 2, |_| bail!("the disk is full"));
        assert!(format!("{:#}", failed.unwrap_err()).contains("the disk is full"));
        assert_eq!(steps(checkpoints.list()), [10, 100]);
    }

    #[test]
    fn a_damaged_one_is_named_with_both_sums_and_the_one_before_it_is_taken() {
        let run = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::of(run.path());
        let (first, second) = (write(&checkpoints, 1, 2), write(&checkpoints, 2, 2));
        let check = |path: &Path, expect: &[&str]| {
            let error = format!("{:#}", Manifest::verify(path).unwrap_err());
            assert!(expect.iter().all(|text| error.contains(text)), "{error}");
        };
        fs::write(second.join("a"), "of step 3").unwrap();
        let sums = [b"of step 2", b"of step 3"].map(|text| crate::sums::sha256_hex(text));
        check(&second, &["a has the SHA-256", &sums[0], &sums[1]]);
        fs::write(second.join("a"), "of").unwrap();
        check(&second, &["a has 2 bytes instead of 9"]);
        fs::remove_file(second.join("a")).unwrap();
        check(&second, &["a is missing"]);
        let whole = checkpoints.last_whole().unwrap().unwrap();
        assert_eq!((whole.path, whole.manifest.step), (first.clone(), 1));
        assert!(run.path().join("checkpoints/damaged-step-2").is_dir());
        fs::write(first.join("manifest.json"), "{").unwrap();
        check(&first, &["manifest.json is broken"]);
        let error = format!("{:#}", checkpoints.last_whole().unwrap_err());
        assert!(
            error.contains("no checkpoint is whole") && error.contains("step-1"),
            "{error}"
        );
    }
}
