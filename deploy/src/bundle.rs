//! A folder of files in the making.

use anyhow::{Context, Result, ensure};
use minijinja::{AutoEscape, Environment, Value, syntax::SyntaxConfig, value::Serde};
use serde::Serialize;
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};
use zip::{CompressionMethod, ZipWriter, write::SimpleFileOptions};

/// Where a file's bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Here.
    Text(String),
    /// In a file that is copied.
    File(PathBuf),
    /// In a zip of these: name within it, file, whether it may be run.
    Zip(Vec<(String, PathBuf, bool)>),
}

/// Files by their path within the folder, with `/`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bundle {
    /// The files.
    pub files: BTreeMap<String, Source>,
    /// Those that are run.
    pub executables: Vec<String>,
}

impl Bundle {
    /// Adds a text.
    pub fn text(&mut self, path: &str, text: String) {
        self.files.insert(path.to_owned(), Source::Text(text));
    }

    /// Adds a text made of a template.
    ///
    /// # Errors
    /// When the template is wrong, which is a mistake of ours.
    pub fn template<T: Serialize>(
        &mut self,
        path: &str,
        template: &str,
        context: &T,
    ) -> Result<()> {
        self.text(
            path,
            render(template, context).with_context(|| format!("the template of {path}"))?,
        );
        Ok(())
    }

    /// Adds a file that is copied.
    pub fn copy(&mut self, path: &str, from: &Path) {
        self.files
            .insert(path.to_owned(), Source::File(from.to_owned()));
    }

    /// Writes everything into `folder`, by way of a folder beside it, so that a failure leaves nothing half done. A folder that is there is
    /// replaced only with `force`, and only when it was written by this program.
    ///
    /// # Errors
    /// When the folder is there, a source cannot be read, or the disk is full.
    pub fn write(&self, folder: &Path, force: bool) -> Result<()> {
        const MARK: &str = ".fledgling-deploy";
        let place = folder.display();
        if folder.exists() {
            let is_ours = folder.join(MARK).is_file();
            let is_empty = folder
                .read_dir()
                .is_ok_and(|mut entries| entries.next().is_none());
            ensure!(
                is_empty || (force && is_ours),
                if is_ours {
                    format!(
                        "{place} is there already: --force writes it anew, -o FOLDER another one"
                    )
                } else {
                    format!(
                        "{place} is there already and not of this command: name another folder with -o"
                    )
                }
            );
        }
        let mut name = folder
            .file_name()
            .context("-o must name a folder")?
            .to_owned();
        name.push(".new");
        let new = folder.with_file_name(name);
        if new.exists() {
            fs::remove_dir_all(&new).with_context(|| format!("cannot clear {}", new.display()))?;
        }
        let written = self.write_files(&new).and_then(|()| {
            fs::write(new.join(MARK), env!("CARGO_PKG_VERSION"))?;
            if folder.exists() {
                fs::remove_dir_all(folder)?;
            }
            fs::rename(&new, folder).with_context(|| format!("cannot write {place}"))
        });
        if written.is_err() {
            // What matters is said by the error.
            let _ = fs::remove_dir_all(&new);
        }
        written
    }

    fn write_files(&self, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        for (path, source) in &self.files {
            let target = folder.join(path);
            let place = || format!("cannot write {}", target.display());
            if let Some(parent) = target.parent() {
                fs::create_dir_all(parent).with_context(place)?;
            }
            match source {
                Source::Text(text) => fs::write(&target, text).with_context(place)?,
                Source::File(from) => {
                    fs::copy(from, &target).with_context(|| {
                        format!("cannot copy {} to {}", from.display(), target.display())
                    })?;
                }
                Source::Zip(entries) => zip(&target, entries)?,
            }
            if self.executables.contains(path) {
                make_executable(&target).with_context(place)?;
            }
        }
        Ok(())
    }
}

#[cfg(unix)]
fn make_executable(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
}

#[cfg(not(unix))]
fn make_executable(_: &Path) -> io::Result<()> {
    Ok(())
}

/// Entries of one day, so that the same files make the same zip.
fn zip(target: &Path, entries: &[(String, PathBuf, bool)]) -> Result<()> {
    let file =
        File::create(target).with_context(|| format!("cannot write {}", target.display()))?;
    let mut zip = ZipWriter::new(io::BufWriter::new(file));
    for (name, from, is_executable) in entries {
        // Weights hardly shrink, and a function starts sooner when they need not be unpacked.
        let is_model = Path::new(name).extension().is_some_and(|end| end == "gguf");
        let method = if is_model {
            CompressionMethod::Stored
        } else {
            CompressionMethod::Deflated
        };
        let options = SimpleFileOptions::default()
            .compression_method(method)
            .unix_permissions(if *is_executable { 0o755 } else { 0o644 })
            .large_file(true);
        zip.start_file(name, options)?;
        let mut source =
            File::open(from).with_context(|| format!("cannot read {}", from.display()))?;
        io::copy(&mut source, &mut zip)
            .with_context(|| format!("cannot write {}", target.display()))?;
    }
    let mut out = zip.finish()?;
    io::Write::flush(&mut out)?;
    Ok(())
}

/// Renders a template of YAML, JSON or a Dockerfile. The filter `q` writes a value as JSON, which is also what YAML calls a flow scalar, so
/// that no name can end a line or begin a key.
fn render<T: Serialize>(template: &str, context: &T) -> Result<String> {
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_undefined_behavior(minijinja::UndefinedBehavior::Strict);
    let syntax = SyntaxConfig::builder()
        .trim_blocks(true)
        .lstrip_blocks(true)
        .keep_trailing_newline(true)
        .build()?;
    environment.set_syntax(syntax);
    environment.add_filter("q", |value: Value| {
        serde_json::to_string(&value).map_err(|error| {
            minijinja::Error::new(minijinja::ErrorKind::BadSerialization, error.to_string())
        })
    });
    Ok(environment.render_str(template, Value::from(Serde(context)))?)
}

/// A name as clouds take it: lower case letters, digits and hyphens, a letter first, 40 at most.
pub fn resource_name(name: &str) -> String {
    let mut out = String::new();
    for c in name.chars() {
        if c.is_ascii_alphanumeric() {
            out.push(c.to_ascii_lowercase());
        } else if !out.is_empty() && !out.ends_with('-') {
            out.push('-');
        }
    }
    if !out.starts_with(|c: char| c.is_ascii_lowercase()) {
        out.insert_str(0, "model-");
    }
    out.truncate(40);
    out.trim_end_matches('-').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_clouds_take() {
        for (name, want) in [
            ("SmolLM2 135M_Instruct", "smollm2-135m-instruct"),
            ("3b", "model-3b"),
            ("--", "model"),
            ("日本", "model"),
        ] {
            assert_eq!(resource_name(name), want);
        }
        assert!(resource_name(&"a-".repeat(50)).len() <= 40);
    }

    #[test]
    fn a_folder_of_somebody_else_is_not_touched() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("out");
        let mut bundle = Bundle::default();
        bundle.text("a/b.txt", "x".to_owned());
        bundle.write(&folder, false).unwrap();
        assert_eq!(fs::read_to_string(folder.join("a/b.txt")).unwrap(), "x");
        assert!(
            bundle
                .write(&folder, false)
                .unwrap_err()
                .to_string()
                .contains("--force")
        );
        bundle.write(&folder, true).unwrap();
        fs::remove_file(folder.join(".fledgling-deploy")).unwrap();
        assert!(
            bundle
                .write(&folder, true)
                .unwrap_err()
                .to_string()
                .contains("another folder")
        );
        // A source that is not there leaves nothing behind.
        let other = dir.path().join("other");
        bundle.copy("model.gguf", &dir.path().join("none"));
        assert!(format!("{:#}", bundle.write(&other, false).unwrap_err()).contains("none"));
        assert!(!other.exists() && !dir.path().join("other.new").exists());
    }
}
