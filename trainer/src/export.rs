//! `fledgling export`: one model to one GGUF file in the element type that was asked for, or to a folder that transformers
//! loads.
//!
//! What is quantised follows llama.cpp: matrices are, vectors and positions stay f32, and the matrix that makes the
//! logits (the token embedding where it is tied) keeps 8 bits in the 4-bit types, because every token depends on it.

use crate::{
    adapter::Adapter,
    files::{human_bytes, refuse_existing},
    gguf_file, hf_folder,
    model::{self, Model},
    output::{UsageError, note, print, print_json},
    run,
};
use anyhow::{Result, bail, ensure};
use fledgling_core::{
    gguf::{Header, Metadata, TensorDecl, TensorInfo},
    quant::{self, DType},
    spec::{ModelSpec, Role, TensorEntry, tensor_table},
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// The key of the type that a model was trained for.
pub const QAT_KEY: &str = "fledgling.qat";

/// Write a model as one GGUF file, or as a folder for transformers
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  fledgling export runs/mine --quant q8_0 -o mine.gguf\n  fledgling export gpt2 --quant q4_0 -o gpt2-q4_0.gguf --force\n  \
    fledgling export gpt2 --adapter peft-folder --quant q8_0 -o merged.gguf\n  \
    fledgling export runs/mine --format safetensors -o mine-hf\n\n\
    A run's LoRA is merged. In q4_0 and q4_1 the output matrix (or the tied embedding) is kept in q8_0; vectors stay f32."
)]
pub struct Args {
    /// A GGUF file, a pulled model's name, or a run's folder
    model: String,
    /// The element type of the matrices; of safetensors f32, f16 or bf16 (default there: what the model has)
    #[arg(long, value_enum)]
    quant: Option<Quant>,
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

/// Element types that can be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Quant {
    /// Exact
    F32,
    /// Half precision
    F16,
    /// The upper half of f32
    Bf16,
    /// 8.5 bits a weight, nearly exact
    #[value(name = "q8_0")]
    #[serde(rename = "q8_0")]
    Q8_0,
    /// 4.5 bits a weight
    #[value(name = "q4_0")]
    #[serde(rename = "q4_0")]
    Q4_0,
    /// 5 bits a weight
    #[value(name = "q4_1")]
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

    /// `general.file_type`: llama.cpp's `llama_ftype`.
    fn file_type(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q4_1 => 3,
            Self::Q8_0 => 7,
            Self::Bf16 => 32,
        }
    }
}

/// Runs the command.
///
/// # Errors
/// When the model does not load, the disk is too small, or the file is there and `--force` is not given.
pub fn run(args: &Args) -> Result<()> {
    match (args.format, args.quant) {
        (Format::Safetensors, _) => write_folder(args),
        (Format::Gguf, Some(quant)) => write_gguf(args, quant),
        (Format::Gguf, None) => Err(UsageError(
            "a GGUF file needs an element type: give --quant q8_0 (or f32, f16, bf16, q4_0, q4_1)"
                .to_owned(),
        )
        .into()),
    }
}

fn write_folder(args: &Args) -> Result<()> {
    let asked = args.quant.map(Quant::dtype);
    if let Some(dtype) = asked.filter(|dtype| dtype.is_quantized()) {
        let name = dtype.name().to_lowercase();
        return Err(UsageError(format!(
            "--quant {name}: safetensors hold f32, f16 or bf16; quantised blocks are for --format gguf"
        ))
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

fn write_gguf(args: &Args, quant: Quant) -> Result<()> {
    refuse_existing(&args.output, args.force)?;
    let model = open(args)?;
    let plan = plan(&model, quant.dtype());
    note_training(&model, quant);
    gguf_file::write(
        &args.output,
        args.force,
        metadata(&model, quant),
        &plan,
        |tensor| requantize(&model, tensor),
    )?;
    let len_bytes = std::fs::metadata(&args.output)?.len();
    let types = summarize(&plan);
    for name in fallbacks(&plan, quant.dtype()) {
        note(format!(
            "`{name}` has rows that are no multiple of 32: kept in f16"
        ));
    }
    note(format!(
        "{}: {types}, {}",
        args.output.display(),
        human_bytes(len_bytes)
    ));
    if args.json {
        return print_json(
            &json!({"path": args.output, "quant": quant.dtype().name(), "types": types, "len_bytes": len_bytes}),
        );
    }
    print(&format!("{}\n", args.output.display()))
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

/// Training for one type pays in an export of this type only.
fn note_training(model: &Model, quant: Quant) {
    let trained_for = model.gguf.header().metadata.str(QAT_KEY);
    if let Some(name) = trained_for.filter(|name| *name != quant.name()) {
        note(format!(
            "`{}` was trained for an export in {name} ([qat] of its config)",
            model.name
        ));
    }
}

/// Every tensor of the file with the type it gets.
fn plan(model: &Model, dtype: DType) -> Vec<TensorDecl> {
    let table: BTreeMap<_, _> = tensor_table(&model.info.spec)
        .into_iter()
        .map(|entry| (entry.gguf.clone(), entry))
        .collect();
    let header = model.gguf.header();
    let plan_one = |info: &TensorInfo| TensorDecl {
        name: info.name.clone(),
        dtype: type_of(table.get(&info.name), dtype, model.info.spec.tied_embedding),
        shape: info.shape.iter().rev().map(|n| *n as usize).collect(),
    };
    header.tensors.iter().map(plan_one).collect()
}

/// The type that each tensor of a model's table gets, by its GGUF name: what is trained for must be what is written.
pub fn types(spec: &ModelSpec, quant: Quant) -> BTreeMap<String, DType> {
    let type_of = |entry: TensorEntry| {
        let dtype = type_of(Some(&entry), quant.dtype(), spec.tied_embedding);
        (entry.gguf, dtype)
    };
    tensor_table(spec).into_iter().map(type_of).collect()
}

/// The type that a tensor gets. Tensors outside the table (RoPE factors) are small and stay exact.
fn type_of(entry: Option<&TensorEntry>, asked: DType, tied_embedding: bool) -> DType {
    let Some(entry) = entry.filter(|entry| entry.quantizable) else {
        return DType::F32;
    };
    let makes_logits =
        entry.role == Role::Output || (entry.role == Role::TokenEmbd && tied_embedding);
    let wanted = match asked {
        DType::Q4_0 | DType::Q4_1 if makes_logits => DType::Q8_0,
        other => other,
    };
    let n_cols = entry.shape.last().copied().unwrap_or(0);
    if wanted.row_bytes(n_cols).is_none() {
        DType::F16
    } else {
        wanted
    }
}

fn fallbacks(plan: &[TensorDecl], asked: DType) -> impl Iterator<Item = &str> {
    plan.iter()
        .filter(move |tensor| asked.block_len() > 1 && tensor.dtype == DType::F16)
        .map(|tensor| tensor.name.as_str())
}

fn requantize(model: &Model, tensor: &TensorDecl) -> Result<Vec<u8>> {
    let (info, bytes) = model.gguf.tensor(&tensor.name)?;
    if info.dtype == tensor.dtype {
        return Ok(bytes.to_vec());
    }
    let values = model.gguf.tensor_f32(&tensor.name)?;
    check_values(&tensor.name, &values, tensor.dtype)?;
    let mut out = Vec::new();
    quant::quantize(tensor.dtype, &values, &mut out);
    Ok(out)
}

/// Refuses values that the type cannot hold: they would become infinite without a word.
pub(crate) fn check_values(name: &str, values: &[f32], dtype: DType) -> Result<()> {
    const F16_MAX: f32 = 65504.0;
    let limit = match dtype {
        DType::F32 | DType::BF16 => f32::MAX,
        DType::Q8_0 => F16_MAX * 127.0,
        DType::Q4_0 => F16_MAX * 8.0,
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
fn metadata(model: &Model, quant: Quant) -> Metadata {
    let mut metadata = model.gguf.header().metadata.clone();
    metadata.set("general.file_type", quant.file_type());
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
