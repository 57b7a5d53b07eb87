//! `fledgling export`: one model to one GGUF file in the element type that was asked for, or to a folder that transformers
//! loads.
//!
//! What is quantised follows llama.cpp: matrices are, vectors and positions stay f32, and the matrix that makes the
//! logits (the token embedding where it is tied) keeps more bits, because every token depends on it
//! ([`fledgling_core::quant::recipe`]).

use crate::{
    adapter::Adapter,
    files::{self, human_bytes, refuse_existing},
    gguf_file, hf_folder,
    model::{self, EngineArgs, Model},
    output::{UsageError, note, print, print_json, step_bar},
    run, verify,
};
use anyhow::{Context, Result, bail, ensure};
use fledgling_core::{
    gguf::{Gguf, Header, Metadata, TensorDecl, TensorInfo},
    quant::{DType, Importance, Method, quantize_row, recipe, recipe::Recipe},
    spec::ModelSpec,
};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// The key of the type that a model was trained for.
pub const QAT_KEY: &str = "fledgling.qat";
/// Tokens of a text that go through the model together while importance is gathered.
const WINDOW: usize = 512;

/// Write a model as one GGUF file, or as a folder for transformers
#[derive(Debug, clap::Args)]
#[expect(
    clippy::doc_markdown,
    reason = "a command's help shows its lines as they are"
)]
#[command(
    after_help = "Examples:\n  fledgling export runs/mine --quant q8_0 -o mine.gguf\n  fledgling export gpt2 --quant q4_0 -o gpt2-q4_0.gguf --force\n  \
    fledgling export gpt2 --adapter peft-folder --quant q8_0 -o merged.gguf\n  \
    fledgling export runs/mine --format safetensors -o mine-hf\n\n\
    fledgling export runs/mine --quant q4_k_m --calibrate mine.txt -o mine.gguf\n  \
    fledgling export gpt2 --quant q4_0 --tensor 'blk.*.ffn_down.weight=q8_0' -o gpt2.gguf\n\n\
    A run's LoRA is merged. The output matrix (or the tied embedding) keeps more bits than --quant says: q8_0 in q4_0 and q4_1, q6_k in the others. Vectors stay f32. \
    A browser's WebGPU runs q8_0, q4_1, q4_0 and f16; files of other types run on its CPU."
)]
pub struct Args {
    /// A GGUF file, a pulled model's name, or a run's folder
    model: String,
    /// The element type of the matrices (f32, f16, bf16, q8_0, q6_k, q5_k, q5_1, q5_0, q4_k, q4_1, q4_0) or a mixture as llama.cpp has it
    /// (q5_k_m, q5_k_s, q4_k_m, q4_k_s); of safetensors f32, f16 or bf16 (default there: what the model has)
    #[arg(long, value_name = "TYPE", value_parser = recipe_of)]
    quant: Option<Recipe>,
    /// Another type for the tensors whose GGUF names match: blk.*.ffn_down.weight=q6_k. May be repeated; the first that matches wins
    #[arg(long, value_name = "PATTERN=TYPE")]
    tensor: Vec<String>,
    /// A text such as the model is meant for: what its activations are on it decides which weights may lose the most
    #[arg(long, value_name = "FILE", conflicts_with = "imatrix")]
    calibrate: Option<PathBuf>,
    /// Tokens of that text to take, from its beginning
    #[arg(long, value_name = "N", default_value_t = 16384, requires = "calibrate", value_parser = crate::generate::positive)]
    calibrate_tokens: usize,
    /// The same from an importance matrix that --write-imatrix or llama-imatrix made
    #[arg(long, value_name = "FILE")]
    imatrix: Option<PathBuf>,
    /// Keep what --calibrate found, in llama.cpp's form
    #[arg(long, value_name = "FILE", requires = "calibrate")]
    write_imatrix: Option<PathBuf>,
    /// What to write
    #[arg(long, value_enum, default_value = "gguf")]
    format: Format,
    /// Where to write: a file, for safetensors a folder
    #[arg(short, long, value_name = "OUT")]
    output: PathBuf,
    /// Merge a LoRA of this model: the folder of a run, or one that PEFT wrote
    #[arg(long, value_name = "FOLDER")]
    adapter: Option<PathBuf>,
    /// Merge this much of the LoRA: 0 gives the base, 1 what was trained
    #[arg(long, value_name = "FACTOR", allow_negative_numbers = true)]
    scale: Option<f64>,
    /// Write OUT.sha256 beside it, for `fledgling verify` and sha256sum
    #[arg(long)]
    manifest: bool,
    /// Replace what is there
    #[arg(long)]
    force: bool,
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
}

/// What can be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// One file for Fledgling and llama.cpp
    Gguf,
    /// A folder for transformers: config.json, model.safetensors, tokenizer.json
    Safetensors,
}

fn recipe_of(name: &str) -> Result<Recipe, String> {
    Recipe::from_name(name).map_err(|error| error.to_string())
}

/// Element types that a model can be trained for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Quant {
    /// Exact
    F32,
    /// Half precision
    F16,
    /// The upper half of f32
    Bf16,
    /// 8.5 bits a weight, nearly exact
    #[serde(rename = "q8_0")]
    Q8_0,
    /// 4.5 bits a weight
    #[serde(rename = "q4_0")]
    Q4_0,
    /// 5 bits a weight
    #[serde(rename = "q4_1")]
    Q4_1,
}

impl Quant {
    /// The element type.
    pub fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::F16 => DType::F16,
            Self::Bf16 => DType::BF16,
            Self::Q8_0 => DType::Q8_0,
            Self::Q4_0 => DType::Q4_0,
            Self::Q4_1 => DType::Q4_1,
        }
    }

    /// What `--quant` calls it.
    pub fn name(self) -> String {
        self.dtype().name().to_lowercase()
    }
}

/// Runs the command.
///
/// # Errors
/// When the model does not load, the disk is too small, or the file is there and `--force` is not given.
pub fn run(args: &Args) -> Result<()> {
    match (args.format, &args.quant) {
        (Format::Safetensors, _) => write_folder(args),
        (Format::Gguf, Some(quant)) => write_gguf(args, quant),
        (Format::Gguf, None) => Err(UsageError(format!(
            "a GGUF file needs an element type: give --quant q8_0 (or one of {})",
            recipe::names().join(", ")
        ))
        .into()),
    }
}

fn write_folder(args: &Args) -> Result<()> {
    let asked = match args.quant.as_ref().map(Recipe::name) {
        None => None,
        Some(name) => Some(
            DType::from_name(&name)
                .filter(|dtype| !dtype.is_quantized())
                .ok_or_else(|| {
                    UsageError(format!(
                        "--quant {name}: safetensors hold f32, f16 or bf16; quantised blocks are for --format gguf"
                    ))
                })?,
        ),
    };
    let is_for_blocks = args.calibrate.is_some() || args.imatrix.is_some();
    if !args.tensor.is_empty() || is_for_blocks || args.manifest {
        return Err(UsageError(
            "--tensor, --calibrate, --imatrix and --manifest are for --format gguf".to_owned(),
        )
        .into());
    }
    let model = open(args)?;
    let dtype = asked.unwrap_or_else(|| hf_folder::natural_dtype(&model));
    let max_bytes = hf_folder::MAX_SHARD_BYTES;
    let written = hf_folder::write(&model, &args.output, dtype, max_bytes, args.force)?;
    note(format!(
        "{}: {} in {}",
        args.output.display(),
        human_bytes(written.len_bytes),
        dtype.name()
    ));
    if args.json {
        return print_json(
            &json!({"path": args.output, "quant": dtype.name(), "files": written.files, "len_bytes": written.len_bytes}),
        );
    }
    print(&format!("{}\n", args.output.display()))
}

fn write_gguf(args: &Args, recipe: &Recipe) -> Result<()> {
    refuse_existing(&args.output, args.force)?;
    if args.manifest {
        refuse_existing(&verify::manifest_of(&args.output), args.force)?;
    }
    let recipe = args
        .tensor
        .iter()
        .try_fold(recipe.clone(), |recipe, text| {
            recipe.with_override_text(text)
        })
        .map_err(|error| UsageError(format!("--tensor: {error}")))?;
    let model = open(args)?;
    let (plan, fallbacks) = plan(&model, &recipe)?;
    note_training(&model, &recipe);
    let importance = importance(args, &model)?;
    let how = How {
        // What a model was trained for is rounded as its training rounded it.
        method: if trained_for(&model) == Some(&recipe.name()) {
            Method::Nearest
        } else {
            Method::Search
        },
        importance: &importance,
    };
    gguf_file::write(
        &args.output,
        args.force,
        metadata(&model, &recipe),
        &plan,
        |tensor| requantize(&model, tensor, &how),
    )?;
    let len_bytes = std::fs::metadata(&args.output)?.len();
    if args.manifest {
        verify::write_manifest(&args.output)?;
    }
    let types = summarize(&plan);
    if let Some(text) = describe_fallbacks(&fallbacks) {
        note(text);
    }
    note(format!(
        "{}: {types}, {}",
        args.output.display(),
        human_bytes(len_bytes)
    ));
    if args.json {
        return print_json(
            &json!({"path": args.output, "quant": recipe.name().to_uppercase(), "types": types, "len_bytes": len_bytes}),
        );
    }
    print(&format!("{}\n", args.output.display()))
}

/// How values are quantised.
struct How<'a> {
    method: Method,
    importance: &'a Importance,
}

/// The importance of columns, from a text or a file; nothing where neither is given.
fn importance(args: &Args, model: &Model) -> Result<Importance> {
    if let Some(path) = &args.imatrix {
        let bytes = std::fs::read(path)
            .with_context(|| format!("cannot read the importance matrix {}", path.display()))?;
        let file = Gguf::parse(bytes.into()).with_context(|| path.display().to_string())?;
        let importance =
            Importance::from_gguf(&file).with_context(|| path.display().to_string())?;
        return check_importance(importance, model, path);
    }
    let Some(path) = &args.calibrate else {
        return Ok(Importance::default());
    };
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read {} (it must be UTF-8)", path.display()))?;
    let tokenizer = &model.info.tokenizer;
    let mut ids = tokenizer.encode(&text, tokenizer.adds_bos(), false);
    ids.truncate(args.calibrate_tokens);
    ensure!(
        !ids.is_empty(),
        "{} is empty: --calibrate needs a text such as the model is meant for",
        path.display()
    );
    let window = WINDOW.min(model.info.spec.n_ctx);
    if ids.len() < 4 * window {
        note(format!(
            "{}: {} tokens are few to judge importance by; some thousand are better",
            path.display(),
            ids.len()
        ));
    }
    let engine = EngineArgs::default().load(model)?;
    let bar = step_bar("calibration", ids.len().div_ceil(window) as u64);
    let mut importance = Importance::default();
    for ids in ids.chunks(window) {
        let mut session = engine.session(ids.len())?;
        engine.gather_importance(&mut session, ids, &mut importance)?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    let bytes = importance.to_gguf(&[&path.to_string_lossy()], window as u32)?;
    if let Some(out) = &args.write_imatrix {
        refuse_existing(out, args.force)?;
        files::write_whole(out, &bytes)?;
    }
    // As the file has it, in f32: both give the same bytes.
    Ok(Importance::from_gguf(&Gguf::parse(bytes.into())?)?)
}

/// Refuses the importance matrix of another model.
fn check_importance(importance: Importance, model: &Model, path: &Path) -> Result<Importance> {
    let mut n_found = 0;
    for info in &model.gguf.header().tensors {
        let Some(means) = importance.means(&info.name) else {
            continue;
        };
        n_found += 1;
        ensure!(
            means.len() as u64 == info.shape[0],
            "{}: `{}` has {} columns there and {} in the model: it was made for another model",
            path.display(),
            info.name,
            means.len(),
            info.shape[0]
        );
    }
    ensure!(
        n_found > 0,
        "{}: none of its tensors is in the model: it was made for another one",
        path.display()
    );
    Ok(importance)
}

/// The model, with the LoRA that was asked for merged.
fn open(args: &Args) -> Result<Model> {
    let allowed = -100.0..=100.0;
    if let Some(scale) = args.scale.filter(|scale| !allowed.contains(scale)) {
        return Err(UsageError(format!("--scale {scale}: -100 to 100")).into());
    }
    match (&args.adapter, args.scale) {
        (None, None) => model::open(&args.model),
        (None, Some(factor)) => model::open_scaled(&args.model, factor),
        (Some(path), scale) => {
            let model = model::open(&args.model)?;
            let adapter = open_adapter(path, &args.model, &model)?;
            model::open_merged(&model, &adapter, scale.unwrap_or(1.0))
        }
    }
}

/// A run's LoRA tells its base, so that it is not merged into another one; PEFT's tells shapes only.
fn open_adapter(path: &Path, name: &str, model: &Model) -> Result<Adapter> {
    if run::is_run_folder(path) {
        let base = run::read_record(path)?.base;
        ensure!(
            run::identity(&model::locate(name)?)? == base.sha256,
            "the LoRA of {} was trained on `{}` ({}), which is not the same model as {name}; without --adapter, the run itself can be exported",
            path.display(),
            base.name,
            base.path.display()
        );
    }
    Adapter::open(path, &model.info.spec)
}

/// The type that a model was trained for.
fn trained_for(model: &Model) -> Option<&str> {
    model.gguf.header().metadata.str(QAT_KEY)
}

/// Training for one type pays in an export of this type only.
fn note_training(model: &Model, recipe: &Recipe) {
    if let Some(name) = trained_for(model).filter(|name| *name != recipe.name()) {
        note(format!(
            "`{}` was trained for an export in {name} ([qat] of its config)",
            model.name
        ));
    }
}

/// A tensor that cannot have the type that was wanted for it: name, wanted, got.
type Fallback = (String, DType, DType);

/// Every tensor of the file with the type it gets, in the order of the source. Tensors outside the model's table (RoPE
/// factors) are small and stay exact.
fn plan(model: &Model, recipe: &Recipe) -> Result<(Vec<TensorDecl>, Vec<Fallback>)> {
    let planned = recipe.plan(&model.info.spec)?;
    let fallbacks = planned
        .iter()
        .filter(|planned| planned.dtype != planned.wanted)
        .map(|planned| (planned.entry.gguf.clone(), planned.wanted, planned.dtype))
        .collect();
    let types: BTreeMap<_, _> = planned
        .into_iter()
        .map(|planned| (planned.entry.gguf, planned.dtype))
        .collect();
    let plan_one = |info: &TensorInfo| TensorDecl {
        name: info.name.clone(),
        dtype: types.get(&info.name).copied().unwrap_or(DType::F32),
        shape: info.shape.iter().rev().map(|n| *n as usize).collect(),
    };
    let header = model.gguf.header();
    Ok((header.tensors.iter().map(plan_one).collect(), fallbacks))
}

/// The type that each tensor of a model's table gets, by its GGUF name: what is trained for must be what is written.
///
/// # Errors
/// When the model's shapes do not take the type.
pub fn types(spec: &ModelSpec, quant: Quant) -> Result<BTreeMap<String, DType>> {
    let planned = Recipe::uniform(quant.dtype()).plan(spec)?;
    Ok(planned
        .into_iter()
        .map(|planned| (planned.entry.gguf, planned.dtype))
        .collect())
}

/// `30 tensors have rows that are no multiple of 256: Q4_K became Q5_0 (blk.0.attn_q.weight, …)`
fn describe_fallbacks(fallbacks: &[Fallback]) -> Option<String> {
    let mut kinds: BTreeMap<(&str, &str), Vec<&str>> = BTreeMap::new();
    for (name, wanted, got) in fallbacks {
        kinds
            .entry((wanted.name(), got.name()))
            .or_default()
            .push(name);
    }
    let kinds: Vec<_> = kinds
        .iter()
        .map(|((wanted, got), names)| match &names[..] {
            [name] => format!("`{name}` is in {got} instead of {wanted}"),
            _ => format!(
                "{} tensors (`{}` first) are in {got} instead of {wanted}",
                names.len(),
                names[0]
            ),
        })
        .collect();
    (!kinds.is_empty()).then(|| {
        format!(
            "rows that are no whole blocks take the next type: {}",
            kinds.join(", ")
        )
    })
}

fn requantize(model: &Model, tensor: &TensorDecl, how: &How) -> Result<Vec<u8>> {
    /// Values that one task takes.
    const TASK: usize = 1 << 16;
    let (info, bytes) = model.gguf.tensor(&tensor.name)?;
    if info.dtype == tensor.dtype {
        return Ok(bytes.to_vec());
    }
    let values = model.gguf.tensor_f32(&tensor.name)?;
    check_values(&tensor.name, &values, tensor.dtype)?;
    let n_cols = tensor.shape.last().copied().unwrap_or(1);
    let importance = how.importance.means(&tensor.name);
    let rows = (TASK / n_cols).max(1);
    let parts: Vec<Vec<u8>> = values
        .par_chunks(rows * n_cols)
        .map(|values| {
            let mut out = Vec::new();
            for row in values.chunks_exact(n_cols) {
                quantize_row(
                    tensor.dtype,
                    row,
                    importance.as_deref(),
                    how.method,
                    &mut out,
                );
            }
            out
        })
        .collect();
    Ok(parts.concat())
}

/// Refuses values that the type cannot hold: they would become infinite without a word.
pub(crate) fn check_values(name: &str, values: &[f32], dtype: DType) -> Result<()> {
    const F16_MAX: f32 = 65504.0;
    let limit = match dtype {
        DType::F32 | DType::BF16 => f32::MAX,
        DType::Q8_0 => F16_MAX * 127.0,
        DType::Q4_0 => F16_MAX * 8.0,
        DType::Q5_0 => F16_MAX * 16.0,
        _ => F16_MAX,
    };
    match values
        .iter()
        .find(|value| !value.is_finite() || value.abs() > limit)
    {
        Some(value) => bail!(
            "tensor `{name}` holds {value}, which {} cannot hold: export in f32 or bf16, or train again if it is not a number",
            dtype.name()
        ),
        None => Ok(()),
    }
}

/// The source's keys, with what changed and where the file comes from.
fn metadata(model: &Model, recipe: &Recipe) -> Metadata {
    let mut metadata = model.gguf.header().metadata.clone();
    metadata.set("general.file_type", recipe.file_type());
    metadata.set("general.quantization_version", 2_u32);
    metadata.set("fledgling.version", env!("CARGO_PKG_VERSION").to_owned());
    if metadata.get("fledgling.base_model").is_none() {
        metadata.set("fledgling.base_model", model.info.name.clone());
    }
    metadata.set(
        "fledgling.exported_from_types",
        types_in(model.gguf.header()),
    );
    metadata
}

/// `210 Q4_1, 61 F32`: what is lost cannot come back, so the file says what it was made of.
fn types_in(header: &Header) -> String {
    count(header.tensors.iter().map(|info| info.dtype))
}

fn summarize(plan: &[TensorDecl]) -> String {
    count(plan.iter().map(|tensor| tensor.dtype))
}

fn count(types: impl Iterator<Item = DType>) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for dtype in types {
        *counts.entry(dtype.name()).or_default() += 1;
    }
    let parts: Vec<_> = counts
        .into_iter()
        .map(|(name, n)| format!("{n} {name}"))
        .collect();
    parts.join(", ")
}
