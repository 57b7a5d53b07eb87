//! What `MODEL` means on every command line: a GGUF file, a folder as the Hugging Face hub has it, a run's folder, a pulled name, or
//! the URL of one of the first three.

use crate::{
    adapter::Adapter,
    cache::Cache,
    convert,
    files::folder_of,
    gguf_file,
    interrupt::Unfinished,
    output::UsageError,
    pull::source::{NAMED, nearest},
    remote, run,
};
use anyhow::{Context, Result, bail};
use fledgling_core::{
    cpu::{CpuEngine, CpuOptions, Isa, KvDType},
    gguf::{Gguf, Header, TensorDecl, split::PartName},
    model::ModelInfo,
    quant::DType,
    spec::ModelSpec,
};
use fledgling_lambda::{first_parts, mapped_model};
use std::path::{Path, PathBuf};

/// An opened model. Its bytes are mapped, not read.
#[derive(Debug)]
pub struct Model {
    /// What the user called it.
    pub name: String,
    /// The GGUF file, of several the one that was named; for a folder, a temporary one that lives as long as this value.
    pub path: PathBuf,
    /// That file, or all parts of the model.
    pub files: Vec<PathBuf>,
    /// The file.
    pub gguf: Gguf,
    /// Spec, tokenizer, chat template.
    pub info: ModelInfo,
    _converted: Option<Converted>,
}

/// A GGUF file made for one command.
#[derive(Debug)]
struct Converted {
    _folder: tempfile::TempDir,
    _unfinished: Unfinished,
}

/// Finds and opens what `text` names.
///
/// # Errors
/// When there is nothing of this name (with the names there are), or it is no model that we run.
pub fn open(text: &str) -> Result<Model> {
    let path = locate(text)?;
    if path.is_dir() {
        return open_folder(text, &path);
    }
    let mapped = mapped_model(&path)?;
    Ok(Model {
        name: text.to_owned(),
        info: read_info(&mapped.gguf, &path)?,
        path,
        files: mapped.files,
        gguf: mapped.gguf,
        _converted: None,
    })
}

/// The file or folder that `text` names.
///
/// # Errors
/// With the pulled models and the nearest name.
pub fn locate(text: &str) -> Result<PathBuf> {
    if remote::is_url(text) {
        return remote::local_copy(text);
    }
    let path = PathBuf::from(text);
    if path.exists() {
        return Ok(path);
    }
    if let Some(path) = locate_parts(&path)? {
        return Ok(path);
    }
    if let Some(path) = run::locate_checkpoint(text)? {
        return Ok(path);
    }
    let cache = Cache::open()?;
    let name = text
        .strip_prefix("hf:")
        .map_or_else(|| text.to_owned(), |repo| repo.replace('/', "--"));
    if let Some(entry) = cache
        .find(&name)
        .or_else(|| cache.find(&name.to_lowercase()))
    {
        return Ok(cache.path_of(&entry));
    }
    Err(UsageError(not_found(text, &cache)).into())
}

/// A part of the model in several files that is called `path` or `path` without its `.gguf`.
fn locate_parts(path: &Path) -> Result<Option<PathBuf>> {
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
        return Ok(None);
    };
    let prefix = name.strip_suffix(".gguf").unwrap_or(name);
    match &first_parts(folder_of(path), prefix)[..] {
        [] => Ok(None),
        [one] => Ok(Some(one.clone())),
        several => {
            let names: Vec<_> = several
                .iter()
                .map(|path| path.display().to_string())
                .collect();
            Err(UsageError(format!(
                "{} was split more than once: say which one ({})",
                path.display(),
                names.join(", ")
            ))
            .into())
        }
    }
}

fn not_found(text: &str, cache: &Cache) -> String {
    let models = cache.models();
    let pulled: Vec<_> = models.iter().map(|entry| entry.name.as_str()).collect();
    let list = if pulled.is_empty() {
        "none yet".to_owned()
    } else {
        pulled.join(", ")
    };
    let advice = if NAMED.iter().any(|named| named.name == text) {
        format!("run `fledgling pull {text}` first")
    } else if text.starts_with("hf:") {
        format!(
            "run `fledgling pull {text}` first; afterwards it goes by the name that pull gave it"
        )
    } else if let Some(name) = nearest(text, pulled.iter().copied()) {
        format!("did you mean `{name}`?")
    } else if let Some(name) = nearest(text, NAMED.iter().map(|named| named.name)) {
        format!("did you mean `{name}`? Then run `fledgling pull {name}` first")
    } else {
        "give a GGUF file, a run's folder, or pull a model with `fledgling pull`".to_owned()
    };
    format!("there is no file, folder or pulled model `{text}`: {advice} (pulled models: {list})")
}

/// Maps a GGUF file, or all parts of one, and reads what its header means.
///
/// # Errors
/// When it is no GGUF file, a broken one, or a model that we do not run; with the path.
pub fn open_gguf(path: &Path) -> Result<(Gguf, ModelInfo)> {
    let gguf = map_gguf(path)?;
    let info = read_info(&gguf, path)?;
    Ok((gguf, info))
}

/// What the header of an opened file means.
///
/// # Errors
/// When it is no model that we run, with the path.
pub fn read_info(gguf: &Gguf, path: &Path) -> Result<ModelInfo> {
    let place = || path.display().to_string();
    let mut info = ModelInfo::from_header(gguf.header()).with_context(place)?;
    // With the divisors of RoPE's frequencies, which are no part of the header.
    info.spec = ModelSpec::from_gguf(gguf).with_context(place)?;
    Ok(info)
}

/// Maps a GGUF file, or all parts of one, whatever model it holds.
///
/// # Errors
/// When it cannot be read or is no GGUF file.
pub fn map_gguf(path: &Path) -> Result<Gguf> {
    Ok(mapped_model(path)?.gguf)
}

/// The files of the model that `path` is of: itself, or all parts.
///
/// # Errors
/// As [`map_gguf`] where the name is that of a part.
pub fn files_of(path: &Path) -> Result<Vec<PathBuf>> {
    let name = path.file_name().and_then(|name| name.to_str());
    match name.and_then(PartName::parse) {
        Some(_) => Ok(mapped_model(path)?.files),
        None => Ok(vec![path.to_owned()]),
    }
}

/// Reads the header of a GGUF file.
///
/// # Errors
/// As [`map_gguf`].
pub fn read_header(path: &Path) -> Result<Header> {
    Ok(map_gguf(path)?.header().clone())
}

fn open_folder(text: &str, folder: &Path) -> Result<Model> {
    let stem = folder
        .canonicalize()
        .ok()
        .and_then(|path| {
            path.file_name()
                .map(|name| name.to_string_lossy().into_owned())
        })
        .unwrap_or_else(|| "model".to_owned());
    open_converted(text, &stem, |path| folder_to_gguf(folder, path))
}

/// Opens a run's folder with `factor` times its LoRA merged.
///
/// # Errors
/// When `text` names no run that trained a LoRA.
pub fn open_scaled(text: &str, factor: f64) -> Result<Model> {
    let folder = locate(text)?;
    if !run::is_run_folder(&folder) {
        return Err(UsageError(format!(
            "--scale is for a LoRA, and {} is no run's folder: give the LoRA with --adapter FOLDER",
            folder.display()
        ))
        .into());
    }
    open_converted(text, "model", |path| {
        run::to_gguf(&run::load_run(&folder)?.scaled(factor)?, path)
    })
}

/// `model` with `factor` times a LoRA merged: the matrices that it is on become f32, the others stay as they are.
///
/// # Errors
/// When the disk is full.
pub fn open_merged(model: &Model, adapter: &Adapter, factor: f64) -> Result<Model> {
    let header = model.gguf.header();
    let decls: Vec<_> = header
        .tensors
        .iter()
        .map(|info| TensorDecl {
            name: info.name.clone(),
            dtype: match adapter.addition(&info.name) {
                Some(_) => DType::F32,
                None => info.dtype,
            },
            shape: info.shape.iter().rev().map(|n| *n as usize).collect(),
        })
        .collect();
    open_converted(&model.name, "model", |path| {
        gguf_file::write(path, true, header.metadata.clone(), &decls, |decl| {
            let Some(addition) = adapter.addition(&decl.name) else {
                return Ok(model.gguf.tensor(&decl.name)?.1.to_vec());
            };
            let mut values = model.gguf.tensor_f32(&decl.name)?;
            addition.add_to(&mut values, 0, factor);
            Ok(values
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect())
        })
    })
}

/// Opens a `tokenizer.json` as a model without knowledge: what a run from scratch starts from.
///
/// # Errors
/// As [`convert::tokenizer_to_gguf`].
pub fn open_tokenizer(path: &Path) -> Result<Model> {
    open_converted(&path.to_string_lossy(), "tokenizer", |target| {
        convert::tokenizer_to_gguf(path, target)
    })
}

/// Opens a GGUF file that `write` makes, and that is gone when the model is.
fn open_converted(
    text: &str,
    stem: &str,
    write: impl FnOnce(&Path) -> Result<()>,
) -> Result<Model> {
    let place = tempfile::Builder::new()
        .prefix("fledgling-")
        .tempdir()
        .context("cannot make a temporary folder: set TMPDIR to one that can be written")?;
    let unfinished = Unfinished::new(place.path());
    let path = place.path().join(format!("{stem}.gguf"));
    write(&path)?;
    let (gguf, info) = open_gguf(&path)?;
    Ok(Model {
        name: text.to_owned(),
        files: vec![path.clone()],
        path,
        gguf,
        info,
        _converted: Some(Converted {
            _folder: place,
            _unfinished: unfinished,
        }),
    })
}

/// Writes the model of a folder, unquantised, as a GGUF file: a run's (LoRA merged), or one as the hub has it.
///
/// # Errors
/// When the folder is neither.
pub fn folder_to_gguf(folder: &Path, target: &Path) -> Result<()> {
    if run::is_run_folder(folder) {
        return run::to_gguf(&run::load_run(folder)?, target);
    }
    if !convert::is_model_folder(folder) {
        bail!(
            "{} holds no model: a run's folder, or one with config.json, tokenizer.json and model.safetensors or pytorch_model.bin is needed",
            folder.display()
        );
    }
    convert::folder_to_gguf(folder, target, true)
}

/// How the CPU engine runs, from the flags that every command with an engine has.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct EngineArgs {
    /// Threads (default: all cores); they never change the result
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// Keep keys and values in f32 instead of f16, for comparison with PyTorch
    #[arg(long)]
    pub kv_f32: bool,
    /// Instruction set: avx512, avx2 or scalar (default: the best that this CPU has); it never changes the result
    #[arg(
        long,
        value_name = "ISA",
        env = "FLEDGLING_CPU",
        hide_env_values = true
    )]
    pub cpu_isa: Option<Isa>,
}

impl EngineArgs {
    /// The threads to use.
    pub fn n_threads(&self) -> usize {
        self.threads.map_or_else(all_cores, usize::from)
    }

    /// The engine's options.
    pub fn options(&self) -> CpuOptions {
        CpuOptions {
            n_threads: self.n_threads(),
            isa: self.cpu_isa,
            kv: if self.kv_f32 {
                KvDType::F32
            } else {
                KvDType::F16
            },
        }
    }

    /// Loads a model's engine.
    ///
    /// # Errors
    /// A tensor that is missing or of the wrong shape, with the model's name.
    pub fn load(&self, model: &Model) -> Result<CpuEngine> {
        CpuEngine::new(&model.gguf, &self.options())
            .with_context(|| model.path.display().to_string())
    }
}

/// The cores that this process may use.
pub fn all_cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// Positions for a session: what was asked for, or `wanted`, within what the model was made for.
///
/// # Errors
/// [`UsageError`] when more was asked for than the model has.
pub fn context_len(model: &Model, asked: Option<usize>, wanted: usize) -> Result<usize> {
    let n_ctx = model.info.spec.n_ctx;
    match asked {
        Some(asked) if asked > n_ctx => Err(UsageError(format!(
            "--ctx {asked}: the model was made for {n_ctx} positions"
        ))
        .into()),
        Some(asked) => Ok(asked),
        None => Ok(wanted.min(n_ctx)),
    }
}
