//! The models on this machine: one folder a model under `$FLEDGLING_HOME/models`, each with one GGUF file and an
//! [`Entry`] that says where it came from. A folder without an entry is an unfinished pull and counts as not there.

use crate::{files, output::note};
use anyhow::{Context, Result, bail};
use etcetera::BaseStrategy;
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File, TryLockError},
    path::{Path, PathBuf},
};

const ENTRY_FILE: &str = "fledgling.json";

/// What is known of a pulled model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The name it goes by: the folder's.
    pub name: String,
    /// The GGUF file within the folder.
    pub file: String,
    /// What was asked for: `hf:OWNER/REPO`, a URL, a path.
    pub source: String,
    /// Where the bytes came from in the end, with the revision.
    pub origin: String,
    /// SHA-256 of the GGUF file, in hexadecimal.
    pub sha256: String,
    /// Its size.
    pub len_bytes: u64,
}

/// The folder of models.
#[derive(Debug, Clone)]
pub struct Cache {
    models: PathBuf,
}

impl Cache {
    /// The cache of this user: `$FLEDGLING_HOME`, or `fledgling` in the platform's data folder.
    ///
    /// # Errors
    /// When there is neither the variable nor a home folder.
    pub fn open() -> Result<Self> {
        Ok(Self {
            models: home()?.join("models"),
        })
    }

    /// Where the models' folders lie.
    pub fn folder(&self) -> &Path {
        &self.models
    }

    /// The folder of one model, there or not.
    pub fn model_folder(&self, name: &str) -> PathBuf {
        self.models.join(name)
    }

    /// The GGUF file of an entry.
    pub fn path_of(&self, entry: &Entry) -> PathBuf {
        self.model_folder(&entry.name).join(&entry.file)
    }

    /// The model of this name, when it is whole.
    pub fn find(&self, name: &str) -> Option<Entry> {
        if !is_plain_name(name) {
            return None;
        }
        let text = fs::read_to_string(self.model_folder(name).join(ENTRY_FILE)).ok()?;
        let mut entry: Entry = serde_json::from_str(&text).ok()?;
        name.clone_into(&mut entry.name);
        (is_plain_name(&entry.file) && self.path_of(&entry).is_file()).then_some(entry)
    }

    /// All models, by name.
    pub fn models(&self) -> Vec<Entry> {
        let Ok(folders) = fs::read_dir(&self.models) else {
            return Vec::new();
        };
        let mut found: Vec<_> = folders
            .flatten()
            .filter_map(|folder| self.find(folder.file_name().to_str()?))
            .collect();
        found.sort_by(|a, b| a.name.cmp(&b.name));
        found
    }

    /// Writes the entry, which makes the model exist.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn record(&self, entry: &Entry) -> Result<()> {
        let mut text = serde_json::to_vec_pretty(entry)?;
        text.push(b'\n');
        files::write_whole(&self.model_folder(&entry.name).join(ENTRY_FILE), &text)
    }

    /// Makes a model not be there, before its folder is filled anew.
    ///
    /// # Errors
    /// When the entry cannot be removed.
    pub fn forget(&self, name: &str) -> Result<()> {
        match fs::remove_file(self.model_folder(name).join(ENTRY_FILE)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot replace the model `{name}`"))
            }
            _ => Ok(()),
        }
    }

    /// Waits until no other process pulls this model. The lock ends with the value.
    ///
    /// # Errors
    /// When the cache cannot be written.
    pub fn lock(&self, name: &str) -> Result<Lock> {
        fs::create_dir_all(&self.models)
            .with_context(|| format!("cannot make the model cache {}: set FLEDGLING_HOME to a folder that can be written", self.models.display()))?;
        let path = self.models.join(format!(".{name}.lock"));
        let file = File::create(&path)
            .with_context(|| format!("cannot write in the model cache {}: set FLEDGLING_HOME to a folder that can be written", self.models.display()))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                note(format!("another process pulls `{name}`; waiting for it"));
                file.lock()
                    .with_context(|| format!("cannot lock {}", path.display()))?;
            }
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("cannot lock {}", path.display()));
            }
        }
        Ok(Lock { _file: file })
    }
}

/// Holds a model's lock.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// The folder of everything that Fledgling keeps for this user.
///
/// # Errors
/// When there is neither `FLEDGLING_HOME` nor a home folder.
pub fn home() -> Result<PathBuf> {
    if let Some(home) = std::env::var_os("FLEDGLING_HOME").filter(|home| !home.is_empty()) {
        return Ok(PathBuf::from(home));
    }
    let strategy = etcetera::choose_base_strategy()
        .context("this user has no home folder: set FLEDGLING_HOME to a folder for the models")?;
    Ok(strategy.data_dir().join("fledgling"))
}

/// Checks a name that becomes a folder.
///
/// # Errors
/// When it has other characters than letters, digits, `.`, `_` and `-`.
pub fn check_name(name: &str) -> Result<()> {
    if !is_plain_name(name) {
        bail!(
            "`{name}` cannot be a model's name: use letters, digits, `.`, `_` and `-`, and begin with none of the three"
        );
    }
    Ok(())
}

fn is_plain_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    name.len() <= 200
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str) -> Entry {
        Entry {
            name: name.into(),
            file: "model.gguf".into(),
            source: "x".into(),
            origin: "y".into(),
            sha256: String::new(),
            len_bytes: 3,
        }
    }

    #[test]
    fn a_model_is_there_once_it_is_recorded() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache {
            models: dir.path().to_owned(),
        };
        files::write_whole(&cache.model_folder("a").join("model.gguf"), b"abc").unwrap();
        assert_eq!(cache.models(), []);
        cache.record(&entry("a")).unwrap();
        assert_eq!(cache.models(), [entry("a")]);
        cache.forget("a").unwrap();
        assert_eq!(cache.find("a"), None);
    }

    #[test]
    fn a_name_never_leaves_the_cache() {
        for name in ["", "..", "../a", "a/b", "a\\b", ".hidden", "-x", "a b"] {
            assert!(check_name(name).is_err(), "{name}");
        }
        check_name("HuggingFaceTB--SmolLM2-135M").unwrap();
    }
}
