//! What a training run leaves behind, readable without Burn: `runs/NAME/` with
//!
//! - `run.json`: the [`Record`]: name, mode, base, size of the LoRA, how the validation went;
//! - `config.toml`: the resolved config;
//! - `header.gguf`: the header of the model as a GGUF file (spec, tokenizer, chat template), without data;
//! - `model.safetensors` (all weights, Hugging Face's names and layout), or `adapter_model.safetensors` and
//!   `adapter_config.json` (LoRA, as PEFT has them);
//! - `metrics.jsonl`, and `checkpoints/step-N/` for `--resume`, each of which opens as a run of its own.

use crate::{
    adapter::{self, Adapter},
    convert, gguf_file,
    model::{self, Model},
    sums::{sha256_file, sha256_hex},
};
use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use fledgling_core::{
    gguf::{Header, Layout, Metadata, TensorDecl},
    quant::DType,
    spec::{HfLayout, ModelSpec, ROPE_FREQS, TensorEntry, tensor_table},
};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// Version of the files' meaning.
pub const FORMAT: u32 = 1;
/// Name of the [`Record`]'s file.
pub const RECORD_FILE: &str = "run.json";
/// Name of the resolved config's file.
pub const CONFIG_FILE: &str = "config.toml";
/// Name of the file of metrics.
pub const METRICS_FILE: &str = "metrics.jsonl";
/// Name of the header's file.
pub const HEADER_FILE: &str = "header.gguf";
/// Name of the file of all weights.
pub const MODEL_FILE: &str = "model.safetensors";
/// Name of the file of a LoRA.
pub const ADAPTER_FILE: &str = adapter::WEIGHTS_FILE;
/// What the file of a LoRA was called before it had PEFT's name.
const OLD_ADAPTER_FILE: &str = "adapter.safetensors";
/// `LoRAs` on `LoRAs` that are followed: a run that names itself as its base would go on for ever.
const MAX_BASES: usize = 16;

/// Name of the folder of checkpoints.
pub const CHECKPOINTS_DIR: &str = "checkpoints";
/// Name of the folder of the best weights, of a run in an object store.
pub const BEST_DIR: &str = "best";

/// What is known of a run beside its weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// [`FORMAT`].
    pub format: u32,
    /// The run's name.
    pub name: String,
    /// `scratch`, `full` or `lora`.
    pub mode: String,
    /// The model it started from, or whose tokenizer it took.
    pub base: Base,
    /// Size of the LoRA.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lora: Option<LoraSize>,
    /// Where it was trained, and what the self-test said of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// The type whose quantisation it was trained with, if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qat: Option<String>,
    /// The run whose weights it began with, if that was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub continued_from: Option<Continued>,
    /// Optimiser steps behind the weights.
    pub step: u64,
    /// Held-out perplexity before the first step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid_perplexity_before: Option<f64>,
    /// Held-out perplexity of the weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid_perplexity: Option<f64>,
}

/// The file a run started from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Base {
    /// What the config called it.
    pub name: String,
    /// Where it is: a GGUF file, or a folder.
    pub path: PathBuf,
    /// [`identity`] of the file or folder: a LoRA fits this one only.
    pub sha256: String,
}

/// The run whose weights another begins with, and what was changed on advice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Continued {
    /// Its folder.
    pub run: PathBuf,
    /// Optimiser steps behind the weights.
    pub step: u64,
    /// [`identity`] of the folder then.
    pub sha256: String,
    /// What was advised and taken up, as `--set` takes it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub advised: Vec<String>,
}

/// Size of a LoRA.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LoraSize {
    /// Rank.
    pub rank: usize,
    /// The addition is scaled by `alpha / rank`.
    pub alpha: f64,
    /// By `alpha / √rank` instead (Kalajdzievski, "A rank stabilization scaling factor for fine-tuning with LoRA").
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub rslora: bool,
}

impl LoraSize {
    /// What the product of the two matrices is multiplied by.
    pub fn scale(&self) -> f64 {
        let rank = self.rank as f64;
        self.alpha / if self.rslora { rank.sqrt() } else { rank }
    }
}

/// A finished or interrupted run, opened for export, evaluation or generation.
#[derive(Debug)]
pub struct Run {
    /// The record.
    pub record: Record,
    /// The architecture.
    pub spec: ModelSpec,
    /// Keys for the GGUF file: spec, tokenizer, chat template, where the model comes from.
    pub metadata: Metadata,
    weights: Weights,
}

#[derive(Debug)]
enum Weights {
    /// `model.safetensors`.
    All(Bytes),
    /// A LoRA, its base, and how much of the addition is merged.
    Lora {
        adapter: Adapter,
        base: Box<Model>,
        factor: f64,
    },
}

/// Whether a folder is a run's.
pub fn is_run_folder(folder: &Path) -> bool {
    folder.join(RECORD_FILE).is_file()
}

/// The checkpoints in a folder of them by step, the first first.
pub fn checkpoints(folder: &Path) -> Vec<(u64, PathBuf)> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut list: Vec<_> = entries
        .filter_map(|entry| {
            let name = entry.file_name();
            let step = name.to_str()?.strip_prefix("step-")?.parse().ok()?;
            Some((step, entry.path()))
        })
        .collect();
    list.sort_unstable();
    list
}

/// The folder behind `RUN@step-N`, `RUN@last` or `RUN@best`. Nothing, when `text` is not of that form.
///
/// # Errors
/// When the run has no such checkpoint, with those there are.
pub fn locate_checkpoint(text: &str) -> Result<Option<PathBuf>> {
    let Some((run, which)) = text.rsplit_once('@') else {
        return Ok(None);
    };
    let run = Path::new(run);
    if !run.is_dir() {
        return Ok(None);
    }
    let list = checkpoints(&run.join(CHECKPOINTS_DIR));
    let found = match which {
        "best" => Some(run.to_owned()),
        "last" => list.last().map(|(_, path)| path.clone()),
        name => list
            .iter()
            .map(|(_, path)| path)
            .find(|path| path.ends_with(name))
            .cloned(),
    };
    found.map(Some).with_context(|| {
        let steps: Vec<_> = list
            .iter()
            .map(|(step, _)| format!("step-{step}"))
            .collect();
        let there = match &steps[..] {
            [] => "has none".to_owned(),
            steps => format!("has {}, last and best", steps.join(", ")),
        };
        format!(
            "the run {} has no checkpoint `{which}`: it {there}",
            run.display()
        )
    })
}

/// Opens the folder of a run.
///
/// # Errors
/// When a file is missing or broken, or the base of a LoRA has changed.
pub fn load_run(folder: &Path) -> Result<Run> {
    let record = read_record(folder)?;
    let header_path = folder.join(HEADER_FILE);
    let header_bytes = std::fs::read(&header_path)
        .with_context(|| format!("cannot read {}", header_path.display()))?;
    let header = Header::parse(&header_bytes).with_context(|| header_path.display().to_string())?;
    let mut spec =
        ModelSpec::from_header(&header).with_context(|| header_path.display().to_string())?;
    let weights_path = folder.join(weights_file(folder, &record));
    let bytes = fledgling_lambda::mapped_file(&weights_path).with_context(|| {
        format!(
            "the run {} has no weights yet: let it train, or continue it with --resume",
            folder.display()
        )
    })?;
    let broken = || format!("{} is broken", weights_path.display());
    let weights = if let Some(size) = record.lora {
        let base = open_base(&record.base)?;
        spec = base.info.spec.clone();
        Weights::Lora {
            adapter: Adapter::parse(&bytes, &spec, |_, rank| {
                ensure!(
                    rank == size.rank,
                    "the rank is {rank} instead of {}",
                    size.rank
                );
                Ok(size)
            })
            .with_context(broken)?,
            base: Box::new(base),
            factor: 1.0,
        }
    } else {
        let tensors = SafeTensors::deserialize(&bytes).with_context(broken)?;
        if let Ok(view) = tensors.tensor(ROPE_FREQS) {
            spec.set_rope_freqs(&f32_values(&view)?)?;
        }
        Weights::All(bytes)
    };
    Ok(Run {
        record,
        spec,
        metadata: header.metadata,
        weights,
    })
}

fn weights_file(folder: &Path, record: &Record) -> &'static str {
    if record.lora.is_none() {
        MODEL_FILE
    } else if folder.join(OLD_ADAPTER_FILE).is_file() && !folder.join(ADAPTER_FILE).is_file() {
        OLD_ADAPTER_FILE
    } else {
        ADAPTER_FILE
    }
}

/// Reads `run.json`.
///
/// # Errors
/// When the folder is no run's, or of a later version.
pub fn read_record(folder: &Path) -> Result<Record> {
    let path = folder.join(RECORD_FILE);
    let text = std::fs::read_to_string(&path).with_context(|| {
        format!(
            "cannot read {}: is {} the folder of a run?",
            path.display(),
            folder.display()
        )
    })?;
    let record: Record =
        serde_json::from_str(&text).with_context(|| format!("{} is broken", path.display()))?;
    ensure!(
        record.format == FORMAT,
        "{}: format {} was written by another version of fledgling, this one reads {FORMAT}",
        path.display(),
        record.format
    );
    Ok(record)
}

fn open_base(base: &Base) -> Result<Model> {
    let advice = || {
        format!(
            "a LoRA needs its base `{}`, and {} cannot be read: put it back there",
            base.name,
            base.path.display()
        )
    };
    // A run that was trained on another machine names the base as this one may have it, too.
    let path = if base.path.exists() {
        base.path.clone()
    } else {
        model::locate(&base.name).with_context(advice)?
    };
    let found = identity(&path).with_context(advice)?;
    ensure!(
        found == base.sha256,
        "{} is not the model that this LoRA was trained on: put that one back",
        path.display()
    );
    model::open(&path.to_string_lossy()).with_context(advice)
}

/// What tells a model from every other: the SHA-256 of a file, of several parts that of their hashes; of a run's folder that of its weights, for a LoRA together
/// with its base; of a folder as the Hugging Face hub has it that of the names and hashes of config and weights.
///
/// # Errors
/// When something of it cannot be read.
pub fn identity(path: &Path) -> Result<String> {
    identity_within(path, MAX_BASES)
}

fn identity_within(path: &Path, n_bases: usize) -> Result<String> {
    let mut parts = Vec::new();
    if !path.is_dir() {
        let files = model::files_of(path)?;
        if files.len() == 1 {
            return sha256_file(path);
        }
        for file in files {
            parts.push(sha256_file(&file)?);
        }
    } else if is_run_folder(path) {
        let record = read_record(path)?;
        parts.push(sha256_file(&path.join(weights_file(path, &record)))?);
        if record.lora.is_some() {
            ensure!(
                n_bases > 0,
                "{}: more than {MAX_BASES} LoRAs lie on each other; merge some with `fledgling export`",
                path.display()
            );
            parts.push(identity_within(&record.base.path, n_bases - 1)?);
        }
    } else {
        let config = path.join("config.json");
        for file in std::iter::once(config).chain(convert::weight_files(path)?) {
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            parts.push(format!("{name} {}", sha256_file(&file)?));
        }
    }
    Ok(sha256_hex(parts.join("\n").as_bytes()))
}

/// Values of tensors by name: the table's `burn` names where a module is built of them.
pub type Parameters = BTreeMap<String, Vec<f32>>;

impl Run {
    /// Every tensor of the model's GGUF file in file order, f32 in GGUF's layout, with the LoRA merged.
    pub fn tensors(&self) -> impl Iterator<Item = Result<(TensorEntry, Vec<f32>)>> {
        tensor_table(&self.spec)
            .into_iter()
            .map(|entry| self.values(&entry).map(|values| (entry, values)))
    }

    /// The values of one tensor, f32 in GGUF's layout, with the LoRA merged.
    ///
    /// # Errors
    /// When the run's file lacks the tensor, or has it in another shape.
    pub fn values(&self, entry: &TensorEntry) -> Result<Vec<f32>> {
        match &self.weights {
            Weights::All(bytes) => {
                let tensors = SafeTensors::deserialize(bytes)?;
                let values = named_values(&tensors, &entry.hf, &entry.hf_shape())?;
                Ok(entry.to_gguf_layout(values))
            }
            Weights::Lora {
                adapter,
                base,
                factor,
            } => {
                let mut values = base.gguf.tensor_f32(&entry.gguf)?;
                adapter.merge(&entry.gguf, &mut values, *factor);
                Ok(values)
            }
        }
    }

    /// Merges `factor` times the LoRA instead of the whole.
    ///
    /// # Errors
    /// When the run trained all weights.
    pub fn scaled(mut self, factor: f64) -> Result<Self> {
        match &mut self.weights {
            Weights::Lora { factor: old, .. } => *old = factor,
            Weights::All(_) => anyhow::bail!(
                "--scale is for a LoRA, and the run `{}` trained all weights",
                self.record.name
            ),
        }
        Ok(self)
    }
}

/// PEFT's names of the A and B matrix of a LoRA on `entry`.
pub fn peft_names(entry: &TensorEntry) -> (String, String) {
    let layer = entry.hf.strip_suffix(".weight").unwrap_or(&entry.hf);
    (
        format!("base_model.model.{layer}.lora_A.weight"),
        format!("base_model.model.{layer}.lora_B.weight"),
    )
}

/// The B matrix of a LoRA on `entry` as a row of the name table: its rows are those of the matrix, so they are permuted
/// likewise; it is never transposed, because PEFT keeps it `[out, rank]` for GPT-2 also.
pub fn lora_b_entry(entry: &TensorEntry, rank: usize) -> TensorEntry {
    let hf_layout = match entry.hf_layout {
        HfLayout::RopePermuted { n_head } => HfLayout::RopePermuted { n_head },
        HfLayout::Same | HfLayout::Transposed => HfLayout::Same,
    };
    TensorEntry {
        shape: vec![entry.shape[0], rank],
        hf_layout,
        ..entry.clone()
    }
}

fn named_values(tensors: &SafeTensors<'_>, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
    let view = tensors
        .tensor(name)
        .with_context(|| format!("the run's weights lack the tensor `{name}`"))?;
    ensure!(
        view.shape() == shape,
        "the run's tensor `{name}` has the shape {:?} instead of {shape:?}",
        view.shape()
    );
    f32_values(&view).with_context(|| format!("the run's tensor `{name}`"))
}

fn f32_values(view: &TensorView<'_>) -> Result<Vec<f32>> {
    ensure!(
        view.dtype() == Dtype::F32,
        "its type is {:?}, and runs hold f32",
        view.dtype()
    );
    Ok(view
        .data()
        .as_chunks::<4>()
        .0
        .iter()
        .copied()
        .map(f32::from_le_bytes)
        .collect())
}

/// The bytes of a safetensors file of f32 tensors, by name, with text beside them.
///
/// # Errors
/// Never for shapes that fit their values.
pub fn safetensors_bytes(
    tensors: &BTreeMap<String, (Vec<usize>, Vec<f32>)>,
    notes: BTreeMap<String, String>,
) -> Result<Vec<u8>> {
    let bytes: BTreeMap<&str, (&[usize], Vec<u8>)> = tensors
        .iter()
        .map(|(name, (shape, values))| {
            (
                name.as_str(),
                (
                    shape.as_slice(),
                    values
                        .iter()
                        .flat_map(|value| value.to_le_bytes())
                        .collect(),
                ),
            )
        })
        .collect();
    let views = bytes
        .iter()
        .map(|(name, (shape, bytes))| {
            Ok((*name, TensorView::new(Dtype::F32, shape.to_vec(), bytes)?))
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(safetensors::serialize(
        views,
        Some(notes.into_iter().collect()),
    )?)
}

/// The tensors and the text of a file of [`safetensors_bytes`].
///
/// # Errors
/// When the bytes are no such file.
pub fn safetensors_contents(bytes: &[u8]) -> Result<(Parameters, BTreeMap<String, String>)> {
    let (_, header) = SafeTensors::read_metadata(bytes)?;
    let notes = header
        .metadata()
        .clone()
        .unwrap_or_default()
        .into_iter()
        .collect();
    let tensors = SafeTensors::deserialize(bytes)?;
    let values = tensors
        .iter()
        .map(|(name, view)| Ok((name.to_owned(), f32_values(&view)?)))
        .collect::<Result<_>>()?;
    Ok((values, notes))
}

/// Writes a run's model as a GGUF file of f32, replacing `target`.
///
/// # Errors
/// When the run lacks a tensor, or the disk is full.
pub fn to_gguf(run: &Run, target: &Path) -> Result<()> {
    let entries: BTreeMap<_, _> = tensor_table(&run.spec)
        .into_iter()
        .map(|entry| (entry.gguf.clone(), entry))
        .collect();
    let mut planned = f32_decls(&run.spec);
    let freqs = run.spec.rope_freqs_tensor();
    planned.extend(freqs.map(|freqs| TensorDecl {
        name: ROPE_FREQS.to_owned(),
        dtype: DType::F32,
        shape: vec![freqs.len()],
    }));
    gguf_file::write(target, true, run.metadata.clone(), &planned, |decl| {
        let values = match entries.get(&decl.name) {
            Some(entry) => run.values(entry)?,
            None => freqs.unwrap_or_default().to_vec(),
        };
        Ok(values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect())
    })
}

fn f32_decls(spec: &ModelSpec) -> Vec<TensorDecl> {
    let decl = |entry: TensorEntry| TensorDecl {
        name: entry.gguf,
        dtype: DType::F32,
        shape: entry.shape,
    };
    tensor_table(spec).into_iter().map(decl).collect()
}

/// The bytes of `header.gguf`.
///
/// # Errors
/// When the metadata cannot be a header.
pub fn header_bytes(spec: &ModelSpec, metadata: Metadata) -> Result<Vec<u8>> {
    let layout = Layout::new(metadata, f32_decls(spec))?;
    let data_offset = layout.header().data_offset_bytes as usize;
    let mut bytes = Vec::new();
    drop(layout.write_to(&mut bytes)?);
    bytes.truncate(data_offset);
    Ok(bytes)
}

/// The bytes of `model.safetensors` from values in GGUF's layout.
///
/// # Errors
/// When a tensor is missing.
pub fn model_bytes(
    spec: &ModelSpec,
    mut values: impl FnMut(&TensorEntry) -> Result<Vec<f32>>,
) -> Result<Vec<u8>> {
    let mut tensors = BTreeMap::new();
    for entry in tensor_table(spec) {
        tensors.insert(
            entry.hf.clone(),
            (entry.hf_shape(), entry.to_hf_layout(values(&entry)?)),
        );
    }
    if let Some(freqs) = spec.rope_freqs_tensor() {
        tensors.insert(ROPE_FREQS.to_owned(), (vec![freqs.len()], freqs.to_vec()));
    }
    safetensors_bytes(
        &tensors,
        BTreeMap::from([("format".to_owned(), "pt".to_owned())]),
    )
}
