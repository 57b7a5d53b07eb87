//! Files that are there whole or not at all: written beside their place, synced, renamed.

use crate::interrupt::Unfinished;
use anyhow::{Context, Result, bail};
use std::{
    fs,
    io::{self, BufWriter, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};
use tempfile::NamedTempFile;

/// How the name of a file under construction begins.
pub const STAGED_PREFIX: &str = ".fledgling-";
/// How it ends.
pub const STAGED_SUFFIX: &str = ".tmp";

/// A file under construction. Dropped without [`Self::commit`], it leaves nothing behind.
#[derive(Debug)]
pub struct Staged {
    file: BufWriter<NamedTempFile>,
    target: PathBuf,
    replace: bool,
    _unfinished: Unfinished,
}

impl Staged {
    /// Begins a file that will be `target`; its folder is made when missing.
    ///
    /// # Errors
    /// When `target` is there and `replace` is not set, or its folder cannot be written.
    pub fn create(target: &Path, replace: bool) -> Result<Self> {
        refuse_existing(target, replace)?;
        let folder = folder_of(target);
        fs::create_dir_all(folder).with_context(|| {
            format!(
                "cannot make the folder {}: choose another place or change its permissions",
                folder.display()
            )
        })?;
        let mut builder = tempfile::Builder::new();
        builder.prefix(STAGED_PREFIX).suffix(STAGED_SUFFIX);
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666)); // the umask takes its share
        let file = builder.tempfile_in(folder).with_context(|| {
            format!(
                "cannot write in the folder {}: choose another place or change its permissions",
                folder.display()
            )
        })?;
        let unfinished = Unfinished::new(file.path());
        Ok(Self {
            file: BufWriter::with_capacity(1 << 20, file),
            target: target.to_owned(),
            replace,
            _unfinished: unfinished,
        })
    }

    /// Where the bytes are for now (all of them after a `flush`).
    pub fn temporary_path(&self) -> &Path {
        self.file.get_ref().path()
    }

    /// Where they will be.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Writes over what stands at `offset`, and goes on behind the end.
    ///
    /// # Errors
    /// As writing.
    pub fn rewrite(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        let failed = |error| explain_write(error, &self.target);
        self.file.seek(SeekFrom::Start(offset)).map_err(failed)?;
        self.file.write_all(bytes).map_err(failed)?;
        self.file.seek(SeekFrom::End(0)).map_err(failed)?;
        Ok(())
    }

    /// Syncs the bytes to disk and gives the file its name.
    ///
    /// # Errors
    /// When writing fails, or another process made `target` in the meantime and `replace` is not set.
    pub fn commit(mut self) -> Result<()> {
        self.sync()?;
        self.rename()
    }

    fn sync(&mut self) -> Result<()> {
        let synced = self.file.flush();
        synced
            .and_then(|()| self.file.get_ref().as_file().sync_all())
            .map_err(|error| explain_write(error, &self.target))
    }

    fn rename(self) -> Result<()> {
        let Self {
            file,
            target,
            replace,
            _unfinished,
        } = self;
        let file = file
            .into_inner()
            .map_err(|error| explain_write(error.into_error(), &target))?;
        let persisted = if replace {
            file.persist(&target)
        } else {
            file.persist_noclobber(&target)
        };
        persisted.map_err(|error| explain_write(error.error, &target))?;
        sync_folder(folder_of(&target));
        Ok(())
    }
}

/// Gives several files of one whole their names: all of them, or none when one cannot have it. `old` are files of what is
/// replaced that go with it.
///
/// # Errors
/// As [`Staged::commit`].
pub fn commit_all(mut staged: Vec<Staged>, old: &[PathBuf]) -> Result<()> {
    for file in &mut staged {
        file.sync()?;
    }
    let targets: Vec<_> = staged.iter().map(|file| file.target.clone()).collect();
    // Until all have their names, an end takes away those that have. One alone has it at once.
    let several = targets.iter().filter(|_| targets.len() > 1);
    let unfinished: Vec<_> = several.map(|target| Unfinished::new(target)).collect();
    for path in old.iter().filter(|path| !targets.contains(path)) {
        fs::remove_file(path).map_err(|error| explain_write(error, path))?;
    }
    for (n_done, file) in staged.into_iter().enumerate() {
        if let Err(error) = file.rename() {
            for target in &targets[..n_done] {
                // What the first failure says matters; a second one changes nothing about it.
                let _ = fs::remove_file(target);
            }
            return Err(error);
        }
    }
    drop(unfinished);
    Ok(())
}

impl Write for Staged {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Writes a small file whole.
///
/// # Errors
/// As [`Staged`].
pub fn write_whole(target: &Path, bytes: &[u8]) -> Result<()> {
    let mut staged = Staged::create(target, true)?;
    staged
        .write_all(bytes)
        .map_err(|error| explain_write(error, target))?;
    staged.commit()
}

/// Refuses a target that is there already, or that is no regular file.
///
/// # Errors
/// Naming the path and `--force`.
pub fn refuse_existing(target: &Path, replace: bool) -> Result<()> {
    match fs::metadata(target) {
        Ok(found) if !found.is_file() => bail!(
            "{} is there and is not a regular file: choose another place",
            target.display()
        ),
        Ok(_) if !replace => bail!(
            "{} is there already: choose another place, or replace it with --force",
            target.display()
        ),
        _ => Ok(()),
    }
}

/// Fails early when the disk behind `target` has less than `len_bytes` left.
///
/// # Errors
/// With both numbers.
pub fn check_free_space(target: &Path, len_bytes: u64) -> Result<()> {
    let mut folder = folder_of(target);
    while !folder.exists() {
        folder = folder_of(folder);
    }
    // A file system that does not tell is tried by writing.
    let Ok(free_bytes) = fs4::available_space(folder) else {
        return Ok(());
    };
    if free_bytes < len_bytes {
        bail!(
            "not enough space on the disk of {}: {} needed, {} free; free some or choose another place",
            folder.display(),
            human_bytes(len_bytes),
            human_bytes(free_bytes)
        );
    }
    Ok(())
}

/// What a failed write means to a person.
pub fn explain_write(error: io::Error, target: &Path) -> anyhow::Error {
    let advice = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "the disk is full: free some space or choose another place; nothing half-written was left"
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "no permission to write there: choose another place"
        }
        io::ErrorKind::AlreadyExists => "it is there already: replace it with --force",
        _ => "the file could not be written",
    };
    anyhow::Error::new(error).context(format!("{}: {advice}", target.display()))
}

/// Bytes for people: `98.4 MB`.
pub fn human_bytes(len_bytes: u64) -> String {
    indicatif::DecimalBytes(len_bytes).to_string()
}

/// The folder of a path; `.` for a bare name.
pub fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Makes names durable that files or folders in `folder` were given.
pub fn sync_folder(folder: &Path) {
    // Not every platform can open a folder; the file's own bytes are synced already.
    if let Ok(folder) = fs::File::open(folder) {
        let _ = folder.sync_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_file_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("model.gguf");
        let mut staged = Staged::create(&target, false).unwrap();
        staged.write_all(b"half of it").unwrap();
        drop(staged);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn an_existing_file_is_replaced_only_by_force() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("model.gguf");
        write_whole(&target, b"old").unwrap();
        let error = Staged::create(&target, false).unwrap_err();
        assert!(error.to_string().contains("--force"), "{error}");
        write_whole(&target, b"new").unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"new");
    }

    #[test]
    fn several_files_get_their_names_together_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let stage = |name: &str| {
            let mut staged = Staged::create(&path(name), false).unwrap();
            staged.write_all(b"0123").unwrap();
            staged
        };
        let (mut first, second) = (stage("a"), stage("b"));
        first.rewrite(1, b"xy").unwrap();
        first.write_all(b"4").unwrap();
        fs::write(path("old"), b"").unwrap();
        commit_all(vec![first, second], &[path("old")]).unwrap();
        assert_eq!(fs::read(path("a")).unwrap(), b"0xy34");
        assert!(path("b").is_file() && !path("old").exists());

        let (first, second) = (stage("c"), stage("d"));
        fs::write(path("d"), b"of another process").unwrap();
        commit_all(vec![first, second], &[]).unwrap_err();
        assert!(!path("c").exists(), "half of it");
        assert_eq!(fs::read(path("d")).unwrap(), b"of another process");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_named() {
        let mut full = fs::OpenOptions::new()
            .write(true)
            .open("/dev/full")
            .unwrap();
        let error = full.write_all(b"x").unwrap_err();
        let text = format!("{:#}", explain_write(error, Path::new("model.gguf")));
        assert!(text.contains("the disk is full"), "{text}");
        let error = check_free_space(Path::new("model.gguf"), u64::MAX).unwrap_err();
        assert!(error.to_string().contains("not enough space"), "{error}");
    }
}
