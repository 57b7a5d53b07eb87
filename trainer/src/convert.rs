//! A folder as the Hugging Face hub has it (`config.json`, safetensors, `tokenizer.json`) to one GGUF file.
//!
//! Matrices keep the precision they are stored in (f32, f16, bf16); vectors become f32. Names, shapes and layouts come
//! from core's one table.

use crate::gguf_file;
use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use fledgling_core::{
    gguf::Metadata,
    quant::{self, DType},
    spec::{Family, ModelSpec, Position, TensorEntry},
    tokenizer::Tokenizer,
};
use fledgling_data::encode::read_tokenizer;
use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::Value as Json;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// Prefixes that files of the same model may or may not have before a name.
const PREFIXES: &[&str] = &["", "model.", "transformer."];

/// Whether a folder looks like a model of safetensors.
pub fn is_model_folder(folder: &Path) -> bool {
    folder.join("config.json").is_file() && !weight_files(folder).unwrap_or_default().is_empty()
}

/// Converts `folder` to `target`.
///
/// # Errors
/// When a file is missing or broken, the architecture is not one that we run, or a tensor has another shape than
/// `config.json` says; by name.
pub fn folder_to_gguf(folder: &Path, target: &Path, replace: bool) -> Result<()> {
    let config = read_json(&folder.join("config.json"))?;
    let spec = ModelSpec::from_hf_config(&config)
        .with_context(|| format!("{}: config.json", folder.display()))?;
    let mut metadata = spec.to_metadata();
    metadata.set("general.name", model_name(folder, &config));
    let (tokenizer, template) = read_tokenizer(&folder.join("tokenizer.json"))?;
    set_tokenizer(&tokenizer, template, spec.vocab_size, &mut metadata);
    let weights = Weights::open(folder)?;
    gguf_file::write_model(
        target,
        replace,
        &spec,
        metadata,
        |entry| weights.dtype_of(entry),
        |entry, dtype| weights.bytes_of(entry, dtype),
    )
}

fn model_name(folder: &Path, config: &Json) -> String {
    let from_config = config["_name_or_path"]
        .as_str()
        .filter(|name| !name.is_empty() && !name.starts_with(['/', '.']));
    let from_folder = || {
        folder.file_name().map_or_else(
            || "model".to_owned(),
            |name| name.to_string_lossy().into_owned(),
        )
    };
    from_config.map_or_else(from_folder, |name| {
        name.rsplit('/').next().unwrap_or(name).to_owned()
    })
}

fn read_json(path: &Path) -> Result<Json> {
    let text = fs::read(path).with_context(|| {
        format!(
            "cannot read {}: the folder of a model has config.json, tokenizer.json and safetensors",
            path.display()
        )
    })?;
    serde_json::from_slice(&text).with_context(|| format!("{} is no JSON", path.display()))
}

/// Writes a model that knows nothing, one block of zeros, around a `tokenizer.json`: the base of a run from scratch, which
/// takes no more of its base than the tokenizer.
///
/// # Errors
/// When the tokenizer is missing or of a kind that we do not run.
pub fn tokenizer_to_gguf(path: &Path, target: &Path) -> Result<()> {
    let (tokenizer, template) = read_tokenizer(path)?;
    let family = Family::Gpt2;
    let spec = ModelSpec {
        family,
        n_layer: 1,
        n_head: 1,
        n_kv_head: 1,
        head_dim: 2,
        n_embd: 2,
        n_ff: 2,
        n_ctx: 1,
        vocab_size: tokenizer.vocab_size(),
        norm: family.norm(),
        norm_eps: 1e-5,
        position: Position::Learned,
        mlp: family.mlp(),
        bias: family.bias(),
        qk_norm: false,
        tied_embedding: true,
    };
    let mut metadata = spec.to_metadata();
    metadata.set("general.name", path.display().to_string());
    set_tokenizer(&tokenizer, template, spec.vocab_size, &mut metadata);
    let zeros = |entry: &TensorEntry| vec![0; entry.shape.iter().product::<usize>() * 4];
    gguf_file::write_model(
        target,
        true,
        &spec,
        metadata,
        |_| Ok(DType::F32),
        |entry, _| Ok(zeros(entry)),
    )
}

/// The tokenizer's keys and the chat template.
fn set_tokenizer(
    tokenizer: &Tokenizer,
    template: Option<String>,
    n_rows: usize,
    metadata: &mut Metadata,
) {
    metadata.extend(tokenizer.to_metadata_with_rows(n_rows));
    if let Some(template) = template {
        metadata.set("tokenizer.chat_template", template);
    }
}

/// The file names that an index (`model.safetensors.index.json`) refers to.
///
/// # Errors
/// When it is no index, or refers to something outside its folder.
pub fn shards(index: &[u8]) -> Result<Vec<String>> {
    let index: Json =
        serde_json::from_slice(index).context("the index of the safetensors is no JSON")?;
    let map = index["weight_map"]
        .as_object()
        .context("the index of the safetensors has no `weight_map`")?;
    let names: BTreeSet<_> = map.values().filter_map(Json::as_str).collect();
    for name in &names {
        ensure!(
            name.ends_with(".safetensors") && !name.contains(['/', '\\']) && !name.starts_with('.'),
            "the index of the safetensors refers to `{name}`, which is no file beside it"
        );
    }
    Ok(names.into_iter().map(str::to_owned).collect())
}

/// The safetensors of a folder: one file, or those of the index.
fn weight_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let single = folder.join("model.safetensors");
    if single.is_file() {
        return Ok(vec![single]);
    }
    let index = folder.join("model.safetensors.index.json");
    if index.is_file() {
        return Ok(shards(&fs::read(&index)?)?
            .into_iter()
            .map(|name| folder.join(name))
            .collect());
    }
    Ok(Vec::new())
}

/// The mapped safetensors of a model.
struct Weights {
    files: Vec<(PathBuf, Bytes)>,
    /// Which file holds a tensor, by the name in the file.
    places: BTreeMap<String, usize>,
}

impl Weights {
    fn open(folder: &Path) -> Result<Self> {
        let paths = weight_files(folder)?;
        if paths.is_empty() {
            bail!(
                "{} has no model.safetensors: other formats (pytorch_model.bin) are not read; convert them with transformers' `save_pretrained(…)`",
                folder.display()
            );
        }
        let (mut files, mut places) = (Vec::new(), BTreeMap::new());
        for path in paths {
            let bytes = fledgling_lambda::mapped_file(&path)?;
            let tensors = SafeTensors::deserialize(&bytes).with_context(|| {
                format!("{} is no safetensors file, or a broken one", path.display())
            })?;
            places.extend(
                tensors
                    .names()
                    .into_iter()
                    .map(|name| (name.to_owned(), files.len())),
            );
            files.push((path, bytes));
        }
        Ok(Self { files, places })
    }

    /// Runs `read` on a tensor of the table, under whichever prefix the file has it.
    fn with<T>(
        &self,
        entry: &TensorEntry,
        read: impl FnOnce(&TensorView<'_>) -> Result<T>,
    ) -> Result<T> {
        let bare = PREFIXES
            .iter()
            .find_map(|prefix| entry.hf.strip_prefix(prefix).filter(|_| !prefix.is_empty()))
            .unwrap_or(&entry.hf);
        let names = PREFIXES.iter().map(|prefix| format!("{prefix}{bare}"));
        let (name, file) = names
            .into_iter()
            .find_map(|name| self.places.get(&name).map(|file| (name, *file)))
            .with_context(|| format!("the safetensors have no tensor `{}`", entry.hf))?;
        let (path, bytes) = &self.files[file];
        let place = || format!("{}: tensor `{name}`", path.display());
        let tensors = SafeTensors::deserialize(bytes).with_context(place)?;
        let view = tensors.tensor(&name).with_context(place)?;
        let stored = entry.hf_shape();
        ensure!(
            view.shape() == stored,
            "{}: its shape is {:?}, config.json makes it {stored:?}",
            place(),
            view.shape()
        );
        read(&view).with_context(place)
    }

    /// Matrices stay as they are stored, vectors become f32.
    fn dtype_of(&self, entry: &TensorEntry) -> Result<DType> {
        self.with(entry, |view| {
            let stored = match view.dtype() {
                Dtype::F32 => DType::F32,
                Dtype::F16 => DType::F16,
                Dtype::BF16 => DType::BF16,
                other => bail!("elements of type {other:?} are not read, only f32, f16 and bf16"),
            };
            Ok(if entry.quantizable {
                stored
            } else {
                DType::F32
            })
        })
    }

    fn bytes_of(&self, entry: &TensorEntry, dtype: DType) -> Result<Vec<u8>> {
        self.with(entry, |view| {
            let values = entry.to_gguf_layout(values_of(view)?);
            let mut bytes = Vec::with_capacity(view.data().len());
            quant::quantize(dtype, &values, &mut bytes);
            Ok(bytes)
        })
    }
}

fn values_of(view: &TensorView<'_>) -> Result<Vec<f32>> {
    let data = view.data();
    let pairs = || data.as_chunks::<2>().0.iter().copied();
    let values: Vec<f32> = match view.dtype() {
        Dtype::F32 => data
            .as_chunks::<4>()
            .0
            .iter()
            .copied()
            .map(f32::from_le_bytes)
            .collect(),
        Dtype::F16 => pairs()
            .map(|bits| f16::from_le_bytes(bits).to_f32())
            .collect(),
        Dtype::BF16 => pairs()
            .map(|bits| bf16::from_le_bytes(bits).to_f32())
            .collect(),
        other => bail!("elements of type {other:?} are not read, only f32, f16 and bf16"),
    };
    if let Some(position) = values.iter().position(|value| !value.is_finite()) {
        bail!(
            "element {position} is {}: the weights are broken",
            values[position]
        );
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_names_files_beside_it() {
        let index = br#"{"weight_map":{"a":"model-00001-of-00002.safetensors","b":"model-00002-of-00002.safetensors","c":"model-00001-of-00002.safetensors"}}"#;
        assert_eq!(
            shards(index).unwrap(),
            [
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors"
            ]
        );
        for hostile in [
            &br#"{"weight_map":{"a":"../x.safetensors"}}"#[..],
            br#"{"weight_map":{"a":"/etc/passwd"}}"#,
            b"{}",
            b"<html>",
        ] {
            assert!(shards(hostile).is_err());
        }
    }
}
