//! What a checkpoint consists of, with the sums of its files, and what it belongs to.

use crate::{files::write_whole, sums::sha256_hex};
use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, path::Path};

/// Name of the manifest's file, which is written last.
pub const MANIFEST_FILE: &str = "manifest.json";
/// Version of a checkpoint's meaning.
const FORMAT: u32 = 1;

/// `manifest.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of the meaning.
    pub format: u32,
    /// The program that wrote it.
    pub fledgling: String,
    /// Optimiser steps done.
    pub step: u64,
    /// What it belongs to.
    pub origin: Origin,
    /// The other files of the folder.
    pub files: BTreeMap<String, FileSum>,
}

/// SHA-256 of what a run is made of beside its config.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The base.
    pub base: String,
    /// The rows to learn from.
    pub train: String,
    /// The rows held out.
    pub valid: String,
}

/// What a file must be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileSum {
    /// Its length.
    pub len_bytes: u64,
    /// Its SHA-256.
    pub sha256: String,
}

impl FileSum {
    fn of(path: &Path) -> Result<Self> {
        let bytes = fledgling_lambda::mapped_file(path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Self {
            len_bytes: bytes.len() as u64,
            sha256: sha256_hex(&bytes),
        })
    }
}

impl Manifest {
    /// Writes the manifest of the files that `folder` has.
    ///
    /// # Errors
    /// When a file cannot be read, or this one not be written.
    pub fn write(folder: &Path, step: u64, origin: &Origin) -> Result<()> {
        let mut files = BTreeMap::new();
        let cannot = || format!("cannot read {}", folder.display());
        for entry in std::fs::read_dir(folder).with_context(cannot)? {
            let entry = entry.with_context(cannot)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            files.insert(name, FileSum::of(&entry.path())?);
        }
        let manifest = Self {
            format: FORMAT,
            fledgling: env!("CARGO_PKG_VERSION").to_owned(),
            step,
            origin: origin.clone(),
            files,
        };
        let text = serde_json::to_string_pretty(&manifest)? + "\n";
        write_whole(&folder.join(MANIFEST_FILE), text.as_bytes())
    }

    /// Reads the bytes of a manifest.
    ///
    /// # Errors
    /// When it is broken, of another version, or names files outside its folder.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let manifest: Self =
            serde_json::from_slice(bytes).with_context(|| format!("{MANIFEST_FILE} is broken"))?;
        ensure!(
            manifest.format == FORMAT,
            "format {} was written by another version of fledgling, this one reads {FORMAT}",
            manifest.format
        );
        for name in manifest.files.keys() {
            let plain = Path::new(name).components().count() == 1 && !name.starts_with('.');
            ensure!(plain, "{MANIFEST_FILE} names a file {name:?} outside");
        }
        Ok(manifest)
    }

    /// Reads the manifest of `folder` and holds every file to it.
    ///
    /// # Errors
    /// The file that is missing, or is not what it was when it was written, with both sums.
    pub fn verify(folder: &Path) -> Result<Self> {
        let bytes = std::fs::read(folder.join(MANIFEST_FILE))
            .with_context(|| format!("{MANIFEST_FILE} cannot be read"))?;
        let manifest = Self::parse(&bytes)?;
        for (name, expected) in &manifest.files {
            let found =
                FileSum::of(&folder.join(name)).with_context(|| format!("{name} is missing"))?;
            ensure!(
                found.len_bytes == expected.len_bytes,
                "{name} has {} bytes instead of {}",
                found.len_bytes,
                expected.len_bytes
            );
            ensure!(
                found.sha256 == expected.sha256,
                "{name} has the SHA-256 {} instead of {}",
                found.sha256,
                expected.sha256
            );
        }
        Ok(manifest)
    }
}
