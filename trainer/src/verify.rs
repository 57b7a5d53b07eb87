//! `fledgling verify`: whether a model file is whole and sane: its SHA-256, its tensors' shapes, that every value is a number, and
//! that the model computes what the file says it does.

use crate::{
    files::{folder_of, human_bytes, write_whole},
    model::{self, EngineArgs, Model},
    output::{UsageError, note, print, print_json, step_bar},
    recorded::{Evaluation, Probe, Text},
    sums::sha256_file,
};
use anyhow::{Context, Result, bail, ensure};
use fledgling_core::gguf::split::PartName;
use fledgling_eval::{engine::Engine, score};
use serde_json::json;
use std::{
    io::ErrorKind,
    path::{Path, PathBuf},
};

/// Check that a model file is whole: its SHA-256, shapes, values, and that it computes what it says
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  fledgling verify model.gguf\n  fledgling verify model.gguf --sha256 9f86d081…\n  fledgling export runs/mine --quant q8_0 --manifest -o mine.gguf && fledgling verify mine.gguf\n  \
    fledgling export runs/mine --quant q4_k_m --evaluate held-out.txt -o mine.gguf && fledgling verify mine.gguf --text held-out.txt\n\n\
    The sum is compared with --sha256, or with the line for the file in FILE.sha256 beside it (`sha256sum` reads that too). Without either it is only printed. Of a model in \
    several files any part can be named; all are checked.\n\
    What export recorded is done again: greedy tokens after two prompts, and with --text the perplexity over that text. The numbers are the same to the bit on every \
    machine, with any number of threads."
)]
pub struct Args {
    /// A GGUF file, or a pulled model's name
    file: String,
    /// The sum that the file must have
    #[arg(long, value_name = "HEX")]
    sha256: Option<String>,
    /// Repeat the evaluation that the file has recorded, on the same text
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Threads (default: all cores); they never change the result
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Print {"path":…,"sha256":…,"sum":"equal"|"unknown","tensors":…,"parameters":…,"probe":…,"evaluation":…}
    #[arg(long)]
    json: bool,
}

/// A file's sum, and what it was compared with.
struct Sum {
    path: PathBuf,
    sha256: String,
    /// `--sha256`, or a file.
    place: Option<String>,
}

/// What was found, of a file in which nothing is wrong.
struct Found {
    path: PathBuf,
    sums: Vec<Sum>,
    model: Model,
    n_values: u64,
    /// Tokens of the probe that came out as recorded; none, where none is recorded.
    n_probed: Option<usize>,
    /// What is recorded, and whether it was repeated.
    evaluation: Option<(Evaluation, bool)>,
}

/// Runs the command.
///
/// # Errors
/// What is wrong with the file: its sum, its header, a shape, a value that is no number, by tensor; a token or a perplexity that is not
/// what is recorded.
pub fn run(args: &Args) -> Result<()> {
    let found = look(args)?;
    if args.json {
        print_json(&found.to_json())
    } else {
        print(&found.to_text()?)
    }
}

fn look(args: &Args) -> Result<Found> {
    let path = model::locate(&args.file)?;
    if path.is_dir() {
        bail!("{} is a folder; verify reads a GGUF file", path.display());
    }
    let text = args.text.as_deref().map(Text::read).transpose()?;
    let sums = sums(&path, args.sha256.as_deref())?;
    let model = model::open(&args.file)?;
    let n_values = check_values(&model)?;
    let metadata = &model.gguf.header().metadata;
    let (probe, evaluation) = (Probe::read(metadata)?, Evaluation::read(metadata)?);
    if args.text.is_some() && evaluation.is_none() {
        return Err(UsageError(format!(
            "{} has no evaluation recorded that --text could repeat: export with --evaluate FILE",
            path.display()
        ))
        .into());
    }
    let engine = EngineArgs {
        threads: args.threads,
        ..EngineArgs::default()
    }
    .load(&model)?;
    let place = || path.display().to_string();
    let n_probed = probe.map(|probe| probe.reproduce(&model.info, &engine));
    let n_probed = n_probed.transpose().with_context(place)?;
    if let (Some(evaluation), Some(text)) = (&evaluation, &text) {
        let scored = score::Model {
            name: &model.name,
            info: &model.info,
            engine: Engine::Cpu(&engine),
        };
        evaluation.reproduce(text, scored).with_context(place)?;
    }
    let is_repeated = text.is_some();
    Ok(Found {
        path,
        sums,
        n_values,
        n_probed,
        evaluation: evaluation.map(|evaluation| (evaluation, is_repeated)),
        model,
    })
}

impl Found {
    fn to_json(&self) -> serde_json::Value {
        let file = |sum: &Sum| json!({"path": sum.path, "sha256": sum.sha256});
        let is_known = self.sums.iter().all(|sum| sum.place.is_some());
        let evaluation = match &self.evaluation {
            None => "none",
            Some((_, true)) => "equal",
            Some((_, false)) => "not repeated",
        };
        json!({
            "path": self.path,
            // Of several files each has its own.
            "sha256": match &self.sums[..] { [one] => Some(&one.sha256), _ => None },
            "sum": if is_known { "equal" } else { "unknown" },
            "files": self.sums.iter().map(file).collect::<Vec<_>>(),
            "tensors": self.model.gguf.header().tensors.len(),
            "parameters": self.n_values,
            "probe": if self.n_probed.is_some() { "equal" } else { "none" },
            "evaluation": evaluation,
            "perplexity": self.evaluation.as_ref().map(|(evaluation, _)| evaluation.perplexity.0),
        })
    }

    fn to_text(&self) -> Result<String> {
        let header = self.model.gguf.header();
        let mut out = format!(
            "{}: {}\n",
            self.path.display(),
            human_bytes(len_bytes(&self.model)?)
        );
        for sum in &self.sums {
            let compared = match &sum.place {
                Some(place) => format!("as {place} says"),
                None => "nothing to compare it with: give --sha256, or export with --manifest"
                    .to_owned(),
            };
            let name = match self.sums.len() {
                1 => String::new(),
                _ => format!(" of {}", name_of(&sum.path)),
            };
            out += &format!("  SHA-256{name} {} ({compared})\n", sum.sha256);
        }
        let architecture = header.metadata.str("general.architecture");
        out += &format!(
            "  {} tensors with the shapes of the architecture `{}`\n  {} values, all of them numbers\n",
            header.tensors.len(),
            architecture.unwrap_or("unknown"),
            self.n_values
        );
        out += &match self.n_probed {
            Some(n) => format!("  {n} greedy tokens after the recorded prompts, as recorded\n"),
            None => "  no probe is recorded in the file\n".to_owned(),
        };
        if let Some((evaluation, is_repeated)) = &self.evaluation {
            let done = if *is_repeated {
                "as recorded"
            } else {
                "recorded; give --text to repeat it"
            };
            out += &format!("  {} ({done})\n", evaluation.describe());
        }
        Ok(out)
    }
}

fn len_bytes(model: &Model) -> Result<u64> {
    let len = |path: &PathBuf| Ok(std::fs::metadata(path)?.len());
    model.files.iter().map(len).sum()
}

fn name_of(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

/// The sums of all files, compared with what they should be where that is known.
fn sums(path: &Path, asked: Option<&str>) -> Result<Vec<Sum>> {
    let files = files_to_sum(path)?;
    if let (Some(_), [_, _, ..]) = (asked, &files[..]) {
        return Err(UsageError(format!(
            "--sha256 is for one file, and the model has {}: write their sums into {}, as sha256sum prints them",
            files.len(),
            manifest_of(path).display()
        ))
        .into());
    }
    let asked = asked.map(checked).transpose()?;
    let sum = |path: PathBuf| {
        let expected = match &asked {
            Some(sum) => Some((sum.clone(), "--sha256".to_owned())),
            None => recorded(&path)?,
        };
        let sha256 = sha256_file(&path)?;
        if let Some((expected, place)) = &expected {
            ensure!(
                sha256 == *expected,
                "{}: its SHA-256 is {sha256}, and {place} says {expected}: the file was damaged or exchanged; fetch or export it again",
                path.display()
            );
        }
        let place = expected.map(|(_, place)| place);
        Ok(Sum {
            path,
            sha256,
            place,
        })
    };
    files.into_iter().map(sum).collect()
}

/// All files of the model. Where they cannot be opened, a sum may still say which one was damaged.
fn files_to_sum(path: &Path) -> Result<Vec<PathBuf>> {
    match model::files_of(path) {
        Ok(files) => Ok(files),
        Err(error) => {
            let name = PartName::parse(&name_of(path));
            let files = name
                .iter()
                .flat_map(|name| (1..=name.count).map(|no| name.file_name(no)));
            let files: Vec<_> = files.map(|name| folder_of(path).join(name)).collect();
            if !files.is_empty() && files.iter().all(|file| file.is_file()) {
                note(format!("{error:#}"));
                return Ok(files);
            }
            Err(error)
        }
    }
}

/// Reads every tensor. How many values there are.
fn check_values(model: &Model) -> Result<u64> {
    let tensors = &model.gguf.header().tensors;
    let bar = step_bar(&model.name, tensors.len() as u64);
    let mut n = 0;
    for info in tensors {
        let values = model.gguf.tensor_f32(&info.name)?;
        if let Some(at) = values.iter().position(|value| !value.is_finite()) {
            bail!(
                "{}: `{}` holds {} at {at}: the weights are broken",
                model.name,
                info.name,
                values[at]
            );
        }
        n += values.len() as u64;
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(n)
}

/// Where the sums of a model stand: `FILE.sha256`, of all parts of `NAME-00001-of-00003.gguf` in `NAME.gguf.sha256`.
pub fn manifest_of(path: &Path) -> PathBuf {
    let name = name_of(path);
    let name = match PartName::parse(&name) {
        Some(part) => format!("{}.gguf", part.prefix),
        None => name,
    };
    path.with_file_name(format!("{name}.sha256"))
}

/// Writes the sums of files beside them, in the form of `sha256sum`.
///
/// # Errors
/// When a file cannot be read, or the other not written.
pub fn write_manifest(target: &Path, files: &[PathBuf]) -> Result<()> {
    let line = |file: &PathBuf| Ok(format!("{}  {}\n", sha256_file(file)?, name_of(file)));
    let lines: String = files.iter().map(line).collect::<Result<_>>()?;
    write_whole(target, lines.as_bytes())
}

/// The sum that stands beside a file, and where.
fn recorded(path: &Path) -> Result<Option<(String, String)>> {
    let manifest = manifest_of(path);
    let text = match std::fs::read_to_string(&manifest) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(anyhow::Error::new(error).context(manifest.display().to_string())),
    };
    let name = name_of(path);
    // `SUM  NAME`, or `SUM *NAME` of a binary read.
    let line = text.lines().find_map(|line| {
        let (sum, rest) = line.split_once(' ')?;
        (rest.trim_start_matches([' ', '*']) == name).then_some(sum)
    });
    let Some(sum) = line else {
        bail!(
            "{} has no line for {name}: it should read SUM, two spaces, {name}",
            manifest.display()
        );
    };
    let sum = checked(sum).with_context(|| manifest.display().to_string())?;
    Ok(Some((sum, manifest.display().to_string())))
}

/// A sum in lower case.
fn checked(sum: &str) -> Result<String> {
    let sum = sum.trim().to_lowercase();
    if sum.len() != 64 || !sum.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(UsageError(format!(
            "`{sum}` is no SHA-256: it has 64 hexadecimal digits"
        ))
        .into());
    }
    Ok(sum)
}
