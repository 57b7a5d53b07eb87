//! From a source's path to the files, addresses or standard input that it means.

use super::{bytes::Stream, names};
use crate::config::{Counts, Format, Source};
use anyhow::{Context, Result, bail, ensure};
use globset::GlobBuilder;
use std::{
    collections::{HashMap, hash_map::Entry},
    fs::File,
    path::{Path, PathBuf},
    time::{Duration, UNIX_EPOCH},
};
use walkdir::WalkDir;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// For the response to begin, and for each read: a large file as a whole may take as long as it takes.
const SILENCE_TIMEOUT: Duration = Duration::from_mins(1);

/// One file, archive, address or standard input, found before anything is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Input {
    /// Index of the source in the config.
    pub source: u32,
    /// The path, as the source has it and with `/` between its parts; the URL; or `-`.
    pub name: String,
    /// As stored, where that is known before it is read.
    pub len_bytes: Option<u64>,
    /// When it was changed last, where that is known.
    pub modified_unix_ns: Option<u64>,
    location: Location,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Location {
    File(PathBuf),
    Url,
    Stdin,
}

/// What the sources mean.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// By source, and of a source by name.
    pub inputs: Vec<Input>,
    /// How many files in folders were passed over, by their unknown endings.
    pub skipped: Counts,
}

/// What reading an input begins with.
pub(super) struct Opened {
    pub(super) stream: Stream,
    /// What the server says.
    pub(super) format: Option<Format>,
    /// Where it can be opened again and read from any place.
    pub(super) path: Option<PathBuf>,
}

/// All inputs of all sources in an order that depends on names only, with no file twice: the first source that has it wins.
///
/// # Errors
/// When a file is in sources of different splits, a path is not there, a glob is wrong or matches nothing, or a folder has no file of a known ending.
pub fn find(sources: &[Source]) -> Result<Found> {
    let mut found = Found::default();
    let mut seen: HashMap<PathBuf, &Source> = HashMap::new();
    for (source, idx) in sources.iter().zip(0..) {
        let mut inputs = inputs_of(source, idx, &mut found.skipped)?;
        inputs.sort_by(|a, b| a.name.cmp(&b.name));
        for input in inputs {
            let id = match &input.location {
                Location::File(path) => {
                    std::fs::canonicalize(path).unwrap_or_else(|_| path.clone())
                }
                _ => PathBuf::from(&input.name),
            };
            match seen.entry(id) {
                Entry::Vacant(place) => {
                    place.insert(source);
                    found.inputs.push(input);
                }
                Entry::Occupied(first) => check_splits(&input.name, first.get(), source)?,
            }
        }
    }
    Ok(found)
}

/// What is in two splits would be learnt and measured.
fn check_splits(name: &str, first: &Source, second: &Source) -> Result<()> {
    ensure!(
        first.split == second.split,
        "{name} belongs to two splits: the sources {:?} and {:?} overlap",
        first.path,
        second.path
    );
    Ok(())
}

fn inputs_of(source: &Source, idx: u32, skipped: &mut Counts) -> Result<Vec<Input>> {
    let path = source.path.as_str();
    let single = |location| Input {
        source: idx,
        name: path.to_owned(),
        len_bytes: None,
        modified_unix_ns: None,
        location,
    };
    ensure!(!path.is_empty(), "source {}: the path is empty", idx + 1);
    if path == "-" {
        return Ok(vec![single(Location::Stdin)]);
    }
    if names::is_url(path) {
        return Ok(vec![single(Location::Url)]);
    }
    let paths = match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => folder(Path::new(path), skipped)?,
        Ok(_) => vec![PathBuf::from(path)],
        Err(_) if path.contains(['*', '?', '[', '{']) => glob(path)?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            bail!("{path}: there is no such file or folder")
        }
        Err(error) => return Err(error).with_context(|| format!("cannot read {path}")),
    };
    paths.into_iter().map(|path| file(idx, path)).collect()
}

fn file(source: u32, path: PathBuf) -> Result<Input> {
    let metadata = std::fs::metadata(&path);
    let metadata = metadata.with_context(|| format!("cannot read {}", path.display()))?;
    let modified = metadata.modified().ok();
    let since = modified.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    Ok(Input {
        source,
        name: slashed(&path),
        len_bytes: metadata.is_file().then_some(metadata.len()),
        modified_unix_ns: since.map(|since| since.as_nanos() as u64),
        location: Location::File(path),
    })
}

fn slashed(path: &Path) -> String {
    let name = path.to_string_lossy();
    if cfg!(windows) {
        name.replace('\\', "/")
    } else {
        name.into_owned()
    }
}

fn folder(root: &Path, skipped: &mut Counts) -> Result<Vec<PathBuf>> {
    let mut skipped_here = Counts::new();
    let mut paths = files_below(root, false)?;
    paths.retain(|path| {
        let below = path.strip_prefix(root).unwrap_or(path);
        names::is_taken(&below.to_string_lossy(), &mut skipped_here)
    });
    if paths.is_empty() {
        let others: Vec<String> = skipped_here
            .iter()
            .map(|(kind, n)| format!("{n} {kind}"))
            .collect();
        let others = if others.is_empty() {
            "it is empty".to_owned()
        } else {
            others.join(", ")
        };
        bail!(
            "{}: the folder has no file of a known ending ({others})",
            root.display()
        );
    }
    for (kind, n) in skipped_here {
        *skipped.entry(kind).or_default() += n;
    }
    Ok(paths)
}

/// Hidden files and folders are left out, unless they are asked for.
fn files_below(root: &Path, hidden: bool) -> Result<Vec<PathBuf>> {
    let shown = |name: &std::ffi::OsStr| hidden || !name.as_encoded_bytes().starts_with(b".");
    let walk = WalkDir::new(root)
        .follow_links(true)
        .into_iter()
        .filter_entry(|entry| entry.depth() == 0 || shown(entry.file_name()));
    let mut paths = Vec::new();
    for entry in walk {
        let entry = entry.with_context(|| format!("cannot read the folder {}", root.display()))?;
        if entry.file_type().is_file() {
            paths.push(entry.into_path());
        }
    }
    Ok(paths)
}

fn glob(pattern: &str) -> Result<Vec<PathBuf>> {
    let is_plain = |part: &&str| !part.contains(['*', '?', '[', '{', '\\']);
    let n_plain: usize = pattern
        .split_inclusive('/')
        .take_while(is_plain)
        .map(str::len)
        .sum();
    let (base, rest) = pattern.split_at(n_plain);
    let matcher = GlobBuilder::new(rest)
        .literal_separator(true)
        .build()
        .with_context(|| format!("{pattern}: the glob is wrong"))?
        .compile_matcher();
    let hidden = rest.split('/').any(|part| part.starts_with('.'));
    let root = Path::new(if base.is_empty() { "." } else { base });
    let mut paths = Vec::new();
    if root.is_dir() {
        for path in files_below(root, hidden)? {
            let below = path.strip_prefix(root).unwrap_or(&path);
            if matcher.is_match(below) {
                paths.push(Path::new(base).join(below));
            }
        }
    }
    ensure!(!paths.is_empty(), "{pattern}: the glob matches nothing");
    Ok(paths)
}

impl Input {
    /// Begins to read; the error says why not, without the name.
    pub(super) fn open(&self) -> Result<Opened, String> {
        match &self.location {
            Location::Stdin => Ok(Opened {
                stream: Box::new(std::io::stdin()),
                format: None,
                path: None,
            }),
            Location::Url => get(&self.name),
            Location::File(path) => {
                let file = File::open(path).map_err(|error| format!("cannot be read: {error}"))?;
                Ok(Opened {
                    stream: Box::new(file),
                    format: None,
                    path: self.len_bytes.map(|_| path.clone()),
                })
            }
        }
    }
}

fn get(url: &str) -> Result<Opened, String> {
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_connect(Some(CONNECT_TIMEOUT))
        .timeout_recv_response(Some(SILENCE_TIMEOUT))
        .timeout_per_read(Some(SILENCE_TIMEOUT))
        .user_agent(concat!("fledgling/", env!("CARGO_PKG_VERSION")))
        .build()
        .into();
    let response = agent.get(url).call();
    let response = response.map_err(|error| format!("cannot be fetched: {error}"))?;
    let status = response.status();
    if !status.is_success() {
        return Err(format!("the server answered {status}"));
    }
    let body = response.into_body();
    Ok(Opened {
        format: body.mime_type().and_then(names::format_of_mime),
        stream: Box::new(body.into_reader()),
        path: None,
    })
}
