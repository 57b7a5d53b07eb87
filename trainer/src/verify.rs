//! `fledgling verify`: whether a model file is whole and sane: its SHA-256, its tensors' shapes, and that every value is
//! a number.

use crate::{
    files::{human_bytes, write_whole},
    model::{self, Model},
    output::{UsageError, print, print_json, step_bar},
};
use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::{
    fs::File,
    io::{ErrorKind, copy},
    path::{Path, PathBuf},
};

/// Check that a model file is whole: its SHA-256, shapes, and that every value is a number
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  fledgling verify model.gguf\n  fledgling verify model.gguf --sha256 9f86d081…\n  fledgling export runs/mine --quant q8_0 --manifest -o mine.gguf && fledgling verify mine.gguf\n\n\
    The sum is compared with --sha256, or with the line for the file in FILE.sha256 beside it (`sha256sum` reads that too). Without either it is only printed."
)]
pub struct Args {
    /// A GGUF file, or a pulled model's name
    file: String,
    /// The sum that the file must have
    #[arg(long, value_name = "HEX")]
    sha256: Option<String>,
    /// Print {"path":…,"sha256":…,"sum":"equal"|"unknown","tensors":…,"parameters":…}
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// What is wrong with the file: its sum, its header, a shape, or a value that is no number, by tensor.
pub fn run(args: &Args) -> Result<()> {
    let path = model::locate(&args.file)?;
    if path.is_dir() {
        bail!("{} is a folder; verify reads a GGUF file", path.display());
    }
    let expected = match &args.sha256 {
        Some(sum) => Some((checked(sum)?, "--sha256".to_owned())),
        None => recorded(&path)?,
    };
    let sum = sha256_of(&path)?;
    if let Some((expected, place)) = &expected {
        ensure!(
            sum == *expected,
            "{}: its SHA-256 is {sum}, and {place} says {expected}: the file was damaged or exchanged; fetch or export it again",
            path.display()
        );
    }
    let model = model::open(&args.file)?;
    let n_values = check_values(&model)?;
    let n_tensors = model.gguf.header().tensors.len();
    if args.json {
        let known = if expected.is_some() {
            "equal"
        } else {
            "unknown"
        };
        return print_json(
            &json!({"path": path, "sha256": sum, "sum": known, "tensors": n_tensors, "parameters": n_values}),
        );
    }
    let compared = match expected {
        Some((_, place)) => format!("as {place} says"),
        None => "nothing to compare it with: give --sha256, or export with --manifest".to_owned(),
    };
    print(&format!(
        "{}: {}\n  SHA-256 {sum} ({compared})\n  {n_tensors} tensors with the shapes of the architecture `{}`\n  {n_values} values, all of them numbers\n",
        path.display(),
        human_bytes(std::fs::metadata(&path)?.len()),
        model
            .gguf
            .header()
            .metadata
            .str("general.architecture")
            .unwrap_or("unknown"),
    ))
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

/// The SHA-256 of a file, in lower-case hexadecimal.
///
/// # Errors
/// When it cannot be read.
pub fn sha256_of(path: &Path) -> Result<String> {
    let mut hasher = Sha256::new();
    let mut file = File::open(path).with_context(|| path.display().to_string())?;
    copy(&mut file, &mut hasher).with_context(|| path.display().to_string())?;
    Ok(format!("{:x}", hasher.finalize()))
}

/// Where the sum of a file stands: `FILE.sha256`.
pub fn manifest_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".sha256");
    name.into()
}

/// Writes the sum of a file beside it, in the form of `sha256sum`.
///
/// # Errors
/// When the file cannot be read, or the other not written.
pub fn write_manifest(path: &Path) -> Result<PathBuf> {
    let target = manifest_of(path);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let line = format!("{}  {name}\n", sha256_of(path)?);
    write_whole(&target, line.as_bytes())?;
    Ok(target)
}

/// The sum that stands beside a file, and where.
fn recorded(path: &Path) -> Result<Option<(String, String)>> {
    let manifest = manifest_of(path);
    let text = match std::fs::read_to_string(&manifest) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(anyhow::Error::new(error).context(manifest.display().to_string())),
    };
    let name = path.file_name().unwrap_or_default().to_string_lossy();
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
