//! `fledgling export`: one model to one GGUF file in the element type that was asked for, or to a folder that transformers
//! loads.
//!
//! What is quantised follows llama.cpp: matrices are, vectors and positions stay f32, and the matrix that makes the
//! logits (the token embedding where it is tied) keeps more bits, because every token depends on it
//! ([`fledgling_core::quant::recipe`]).

mod limit;
mod rounding;

use crate::{
    adapter::Adapter,
    exported::{FileArgs, Target, parse_size},
    files::human_bytes,
    hf_folder,
    model::{self, Model},
    output::{UsageError, note, print, print_json},
    provenance::{self, Export},
    run,
    sums::sha256_hex,
};
use anyhow::{Result, ensure};
use fledgling_core::{
    gguf::{Header, Metadata, TensorDecl, TensorInfo},
    quant::{DType, recipe, recipe::Recipe},
    spec::ModelSpec,
};
use limit::{Limit, parse_divergence, parse_type};
pub(crate) use rounding::check_values;
use rounding::{Rounder, Rounding};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
};

/// The key of the type that a model was trained for.
pub const QAT_KEY: &str = "fledgling.qat";

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
    fledgling export runs/mine --target-size 90MB --calibrate mine.txt -o mine.gguf\n  \
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
    /// In the place of --quant: the types that lose the least in a file of this size, 90MB (with --calibrate)
    #[arg(long, value_name = "SIZE", value_parser = parse_size, conflicts_with_all = ["quant", "tensor"])]
    target_size: Option<u64>,
    /// In the place of --quant: the smallest file whose divergence from the model is at most this, 0.02 (with --calibrate)
    #[arg(long, value_name = "NATS", value_parser = parse_divergence, conflicts_with_all = ["quant", "tensor", "target_size"])]
    max_kl: Option<f64>,
    /// The types that these two may choose from (default: all; a browser's WebGPU runs q8_0,q4_1,q4_0,f16)
    #[arg(long, value_name = "TYPE,…", value_delimiter = ',', value_parser = parse_type)]
    types: Vec<DType>,
    /// A text such as the model is meant for: what its activations are on it decides which weights may lose the most
    #[arg(long, value_name = "FILE", conflicts_with = "imatrix")]
    calibrate: Option<PathBuf>,
    /// Tokens of that text to take, from its beginning
    #[arg(long, value_name = "N", default_value_t = 16384, requires = "calibrate", value_parser = crate::generate::positive)]
    calibrate_tokens: usize,
    /// How values become integers (default: feedback with --calibrate, nearest for the type that the model was trained for, else search)
    #[arg(long, value_enum)]
    rounding: Option<Rounding>,
    /// The weights of columns from an importance matrix that --write-imatrix or llama-imatrix made
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
    #[command(flatten)]
    files: FileArgs,
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
    let limit = args.target_size.map(Limit::Size);
    let limit = limit.or(args.max_kl.map(Limit::Divergence));
    if !args.types.is_empty() && limit.is_none() {
        return Err(UsageError("--types is for --target-size and --max-kl".to_owned()).into());
    }
    match (args.format, &args.quant, limit) {
        (Format::Safetensors, _, _) => write_folder(args),
        (Format::Gguf, Some(recipe), _) => write_gguf(args, recipe, None),
        (Format::Gguf, None, Some(limit)) => {
            write_gguf(args, &Recipe::uniform(DType::F16), Some(limit))
        }
        (Format::Gguf, None, None) => Err(UsageError(format!(
            "a GGUF file needs an element type: give --quant q8_0 (or one of {}), --target-size or --max-kl",
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
    let is_for_blocks = args.calibrate.is_some()
        || args.imatrix.is_some()
        || args.rounding.is_some()
        || args.target_size.is_some()
        || args.max_kl.is_some();
    if !args.tensor.is_empty() || is_for_blocks || args.manifest || args.files.is_any() {
        return Err(UsageError(
            "--tensor, --calibrate, --imatrix, --rounding, --target-size, --max-kl, --manifest, --max-shard-size and --evaluate are for --format gguf".to_owned(),
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

/// Writes what a recipe says, or what keeps within a limit.
fn write_gguf(args: &Args, recipe: &Recipe, limit: Option<Limit>) -> Result<()> {
    let target = Target::new(&args.output, &args.files, args.manifest, args.force)?;
    let mut recipe = args
        .tensor
        .iter()
        .try_fold(recipe.clone(), |recipe, text| {
            recipe.with_override_text(text)
        })
        .map_err(|error| UsageError(format!("--tensor: {error}")))?;
    let model = open(args)?;
    let (mut tensors, mut fallbacks) = plan(&model, &recipe)?;
    let is_trained_for = limit.is_none() && trained_for(&model) == Some(&recipe.name());
    let mut rounder = Rounder::new(args, &model, &tensors, is_trained_for)?;
    let mut chosen = HashMap::new();
    let mut divergence = None;
    if let Some(limit) = limit {
        let provisional = complete_metadata(args, &model, &recipe, &rounder)?;
        let len_bytes =
            |tensors: &[TensorDecl]| target.len_bytes(provisional.clone(), tensors, &model);
        let found = limit::choose(args, limit, &model, &mut rounder, &len_bytes)?;
        (recipe, chosen) = (found.recipe, found.bytes);
        divergence = Some(found.divergence);
        (tensors, fallbacks) = plan(&model, &recipe)?;
    }
    note_training(&model, &recipe);
    let metadata = complete_metadata(args, &model, &recipe, &rounder)?;
    let written = target.write(metadata, &tensors, &model, |tensor| {
        match chosen.remove(&tensor.name) {
            Some(bytes) => Ok(bytes.to_vec()),
            None => rounder.bytes_of(tensor),
        }
    })?;
    let len_bytes = written.len_bytes;
    let types = summarize(&tensors);
    if let Some(text) = describe_fallbacks(&fallbacks) {
        note(text);
    }
    let n_files = match written.files.len() {
        1 => String::new(),
        n => format!(" in {n} files"),
    };
    let measured = divergence.map(|nats| format!(", divergence {nats:.4} on the end of the text"));
    note(format!(
        "{}: {types}, {}{n_files}{}",
        written.path.display(),
        human_bytes(len_bytes),
        measured.unwrap_or_default()
    ));
    if let Some(evaluation) = &written.evaluation {
        note(evaluation.describe());
    }
    if args.json {
        let evaluation = written.evaluation.as_ref().map(|evaluation| {
            json!({"perplexity": evaluation.perplexity.0, "parent_perplexity": evaluation.parent_perplexity, "kl": evaluation.kl.0, "top1_agreement": evaluation.top1_agreement, "tokens": evaluation.n_tokens})
        });
        let mut answer = json!({"path": written.path, "quant": recipe.name().to_uppercase(), "types": types, "len_bytes": len_bytes, "files": written.files, "evaluation": evaluation});
        if let Some(nats) = divergence {
            answer["divergence"] = json!(nats);
        }
        return print_json(&answer);
    }
    print(&format!("{}\n", written.path.display()))
}

/// All that the file says of itself before it is measured.
fn complete_metadata(
    args: &Args,
    model: &Model,
    recipe: &Recipe,
    rounder: &Rounder<'_>,
) -> Result<Metadata> {
    let mut metadata = metadata(model, recipe);
    let run = run_folder(args)?;
    let export = provenance_of(args, recipe, rounder)?;
    provenance::complete(&mut metadata, model, run.as_deref(), &export)?;
    Ok(metadata)
}

/// The run whose weights or LoRA are exported.
fn run_folder(args: &Args) -> Result<Option<PathBuf>> {
    let folder = match &args.adapter {
        Some(folder) => folder.clone(),
        None => model::locate(&args.model)?,
    };
    Ok(Some(folder).filter(|folder| run::is_run_folder(folder)))
}

fn provenance_of(args: &Args, recipe: &Recipe, rounder: &Rounder<'_>) -> Result<Export> {
    let is_weighted = args.calibrate.is_some() || args.imatrix.is_some();
    let matrix = is_weighted.then(|| rounder.importance().to_gguf(&[], 0));
    let size = args.target_size.map(|bytes| format!("{bytes} bytes"));
    let divergence = args.max_kl.map(|nats| format!("divergence {nats}"));
    Ok(Export {
        recipe: recipe.name(),
        overrides: args.tensor.clone(),
        limit: size.or(divergence),
        rounding: rounder.name(),
        importance_sha256: matrix.transpose()?.map(|bytes| sha256_hex(&bytes)),
        unix_seconds: provenance::export_time(),
    })
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

/// The source's keys, with what changed and where the file comes from.
fn metadata(model: &Model, recipe: &Recipe) -> Metadata {
    let mut metadata = model.gguf.header().metadata.clone();
    metadata.set("general.file_type", recipe.file_type());
    metadata.set("general.quantization_version", 2_u32);
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
pub(crate) fn types_in(header: &Header) -> String {
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
