//! A LoRA as PEFT keeps it: a folder with `adapter_model.safetensors` and `adapter_config.json`, ours or anybody's.
//!
//! A run's folder of mode `lora` is such a folder. What PEFT can do beyond additions to matrices (`DoRA`, trained biases,
//! whole modules, additions to the embedding) is refused by name, because merging without it would give another model.

use crate::{
    convert::values_of,
    run::{LoraSize, lora_b_entry, peft_names},
};
use anyhow::{Context, Result, bail, ensure};
use fledgling_core::spec::{Family, ModelSpec, TensorEntry, tensor_table};
use safetensors::SafeTensors;
use serde::Deserialize;
use serde_json::{Value as Json, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

/// PEFT's name of the file with the matrices.
pub const WEIGHTS_FILE: &str = "adapter_model.safetensors";
/// PEFT's name of the file with the sizes.
pub const CONFIG_FILE: &str = "adapter_config.json";

const A_ENDING: &str = ".lora_A.weight";
const B_ENDING: &str = ".lora_B.weight";

/// An addition to one matrix: `W += scale · B A`.
#[derive(Debug, Clone, PartialEq)]
pub struct Addition {
    /// A. [rank, in]
    pub a: Vec<f32>,
    /// B, its rows in GGUF's order. [out, rank]
    pub b: Vec<f32>,
    /// Rank and scale.
    pub size: LoraSize,
}

impl Addition {
    /// Adds `factor` times the product to the rows of W that begin with row `first`. [rows, in]
    pub fn add_to(&self, rows: &mut [f32], first: usize, factor: f64) {
        let rank = self.size.rank;
        let (n_in, scale) = (self.a.len() / rank, (self.size.scale() * factor) as f32);
        let b_rows = self.b.chunks_exact(rank).skip(first);
        for (row, b_row) in rows.chunks_exact_mut(n_in).zip(b_rows) {
            for (&b, a_row) in b_row.iter().zip(self.a.chunks_exact(n_in)) {
                let factor = scale * b;
                for (w, &a) in row.iter_mut().zip(a_row) {
                    *w += factor * a;
                }
            }
        }
    }
}

/// The additions of a LoRA by the matrices' names in a GGUF file.
#[derive(Debug, Clone, PartialEq)]
pub struct Adapter {
    additions: BTreeMap<String, Addition>,
}

/// The keys of `adapter_config.json` that decide what the matrices mean.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct PeftConfig {
    peft_type: Option<String>,
    r: usize,
    lora_alpha: Option<f64>,
    use_rslora: bool,
    use_dora: bool,
    bias: Option<String>,
    rank_pattern: BTreeMap<String, usize>,
    alpha_pattern: BTreeMap<String, f64>,
}

impl PeftConfig {
    fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read(path).with_context(|| {
            format!(
                "cannot read {}: a LoRA's folder has {CONFIG_FILE} and {WEIGHTS_FILE}",
                path.display()
            )
        })?;
        let config: Self = serde_json::from_slice(&text)
            .with_context(|| format!("{} is no config of a LoRA", path.display()))?;
        let what = config.peft_type.as_deref().unwrap_or("LORA");
        ensure!(
            what == "LORA",
            "{}: peft_type is {what}, and only LORA is read",
            path.display()
        );
        ensure!(
            !config.use_dora,
            "{}: this is a DoRA (use_dora), which is not read; merge it with PEFT's merge_and_unload()",
            path.display()
        );
        Ok(config)
    }

    /// Rank and scale of a layer by its name in the model.
    fn size(&self, layer: &str, rank: usize) -> Result<LoraSize> {
        let expected = of_pattern(&self.rank_pattern, layer)?.unwrap_or(self.r);
        ensure!(
            expected == rank,
            "its rank is {rank}, {CONFIG_FILE} makes it {expected}"
        );
        let alpha = of_pattern(&self.alpha_pattern, layer)?
            .or(self.lora_alpha)
            .with_context(|| format!("{CONFIG_FILE} has no lora_alpha"))?;
        ensure!(alpha.is_finite(), "lora_alpha is {alpha}");
        Ok(LoraSize {
            rank,
            alpha,
            rslora: self.use_rslora,
        })
    }
}

/// PEFT's patterns are names, or the ends of names, of layers.
fn of_pattern<T: Copy>(patterns: &BTreeMap<String, T>, layer: &str) -> Result<Option<T>> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    for (pattern, value) in patterns {
        let name = pattern.trim_start_matches('^');
        ensure!(
            name.chars().all(plain),
            "the pattern `{pattern}` of {CONFIG_FILE} is a regular expression: only names are read"
        );
        if layer == name || layer.ends_with(&format!(".{name}")) {
            return Ok(Some(*value));
        }
    }
    Ok(None)
}

impl Adapter {
    /// Opens a folder of PEFT's, or the safetensors file in it.
    ///
    /// # Errors
    /// When a file is missing or broken, or the LoRA belongs to another model; by tensor.
    pub fn open(path: &Path, spec: &ModelSpec) -> Result<Self> {
        ensure!(
            path.exists(),
            "{}: there is no such folder; a LoRA's has {CONFIG_FILE} and {WEIGHTS_FILE}",
            path.display()
        );
        let folder = folder_of(path);
        let weights = if path.is_dir() {
            folder.join(WEIGHTS_FILE)
        } else {
            path.to_owned()
        };
        if path.is_dir() && !weights.is_file() && folder.join("adapter_model.bin").is_file() {
            bail!(
                "{} has adapter_model.bin only: save it with PEFT's save_pretrained(…), which writes {WEIGHTS_FILE}",
                folder.display()
            );
        }
        let config = PeftConfig::read(&folder.join(CONFIG_FILE))?;
        ensure!(
            config.bias.as_deref().unwrap_or("none") == "none",
            "{}: it trained biases (bias = {:?}), which are not read; merge it with PEFT's merge_and_unload()",
            folder.display(),
            config.bias.as_deref().unwrap_or_default()
        );
        let bytes = fledgling_lambda::mapped_file(&weights).with_context(|| {
            format!(
                "cannot read {}: a LoRA's folder has {CONFIG_FILE} and {WEIGHTS_FILE}",
                weights.display()
            )
        })?;
        Self::parse(&bytes, spec, |layer, rank| config.size(layer, rank))
            .with_context(|| weights.display().to_string())
    }

    /// Reads the matrices of a safetensors file with PEFT's names; `size` tells rank and scale of a layer.
    ///
    /// # Errors
    /// A tensor that the model has no place for, or of another shape.
    pub fn parse(
        bytes: &[u8],
        spec: &ModelSpec,
        size: impl Fn(&str, usize) -> Result<LoraSize>,
    ) -> Result<Self> {
        let tensors = SafeTensors::deserialize(bytes)
            .context("it is no safetensors file, or a broken one")?;
        let entries = layers(spec);
        let mut additions = BTreeMap::new();
        let mut views: Vec<_> = tensors.iter().collect();
        views.sort_by(|a, b| a.0.cmp(b.0));
        for (name, view) in views {
            let Some(stem) = name.strip_suffix(A_ENDING) else {
                ensure!(
                    name.ends_with(B_ENDING),
                    "the tensor `{name}` is no addition to a matrix, and would be lost: merge it with PEFT's merge_and_unload()"
                );
                continue;
            };
            let layer = stem.strip_prefix("base_model.model.").unwrap_or(stem);
            let (entry, [n_out, n_in]) = entries.get(layer).with_context(|| {
                format!("it adds to `{layer}`, which this model does not have: it was trained on another base")
            })?;
            let b_name = format!("{stem}{B_ENDING}");
            let b_view = tensors
                .tensor(&b_name)
                .with_context(|| format!("the tensor `{b_name}` is missing"))?;
            let rank = view.shape().first().copied().unwrap_or(0);
            ensure!(
                rank > 0 && view.shape() == [rank, *n_in] && b_view.shape() == [*n_out, rank],
                "`{layer}`: the matrices are {:?} and {:?}, this model's [{n_out}, {n_in}] needs [rank, {n_in}] and [{n_out}, rank]: it was trained on another base",
                view.shape(),
                b_view.shape()
            );
            let addition = Addition {
                a: values_of(&view).with_context(|| format!("tensor `{name}`"))?,
                b: lora_b_entry(entry, rank).to_gguf_layout(
                    values_of(&b_view).with_context(|| format!("tensor `{b_name}`"))?,
                ),
                size: size(layer, rank).with_context(|| format!("`{layer}`"))?,
            };
            additions.insert(entry.gguf.clone(), addition);
        }
        for name in tensors.names() {
            if let Some(stem) = name.strip_suffix(B_ENDING) {
                ensure!(
                    tensors.tensor(&format!("{stem}{A_ENDING}")).is_ok(),
                    "the tensor `{stem}{A_ENDING}` is missing"
                );
            }
        }
        ensure!(!additions.is_empty(), "it holds no LoRA");
        Ok(Self { additions })
    }

    /// The addition to a matrix by its name in a GGUF file.
    pub fn addition(&self, gguf: &str) -> Option<&Addition> {
        self.additions.get(gguf)
    }

    /// All additions by the names of the matrices in a GGUF file.
    pub fn additions(&self) -> impl Iterator<Item = (&str, &Addition)> {
        self.additions
            .iter()
            .map(|(name, addition)| (name.as_str(), addition))
    }

    /// Merges `factor` times the addition to a matrix, where there is one. [out, in]
    pub fn merge(&self, gguf: &str, values: &mut [f32], factor: f64) {
        if let Some(addition) = self.addition(gguf) {
            addition.add_to(values, 0, factor);
        }
    }
}

fn folder_of(path: &Path) -> PathBuf {
    if path.is_dir() {
        path.to_owned()
    } else {
        path.parent().map_or_else(PathBuf::new, Path::to_owned)
    }
}

/// The matrices of a model by the names that PEFT may have for their layers: with or without the model's prefix.
fn layers(spec: &ModelSpec) -> BTreeMap<String, (TensorEntry, [usize; 2])> {
    let mut layers = BTreeMap::new();
    for entry in tensor_table(spec) {
        let &[n_out, n_in] = entry.shape.as_slice() else {
            continue;
        };
        if !entry.quantizable || entry.gguf == "token_embd.weight" {
            continue;
        }
        for name in layer_names(&entry) {
            layers.insert(name, (entry.clone(), [n_out, n_in]));
        }
    }
    layers
}

/// The name of a matrix' layer as Hugging Face has it, with the model's prefix and without.
pub fn layer_names(entry: &TensorEntry) -> Vec<String> {
    let layer = entry.hf.strip_suffix(".weight").unwrap_or(&entry.hf);
    let bare = ["model.", "transformer."]
        .iter()
        .find_map(|prefix| layer.strip_prefix(prefix));
    let names = [Some(layer), bare];
    names.into_iter().flatten().map(str::to_owned).collect()
}

/// `adapter_config.json` of a LoRA on `entries`.
pub fn peft_config(
    spec: &ModelSpec,
    entries: &[TensorEntry],
    size: LoraSize,
    dropout: f64,
    base: &str,
) -> Json {
    json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": size.rank,
        "lora_alpha": size.alpha,
        "lora_dropout": dropout,
        "use_rslora": size.rslora,
        "use_dora": false,
        "bias": "none",
        // GPT-2's Conv1D keeps its matrices [in, out].
        "fan_in_fan_out": spec.family == Family::Gpt2,
        "target_modules": target_modules(spec, entries),
        "modules_to_save": null,
        "init_lora_weights": true,
        "inference_mode": true,
    })
}

/// The ends of the layers' names where a matrix has a LoRA in every block, whole names elsewhere: PEFT takes both.
fn target_modules(spec: &ModelSpec, entries: &[TensorEntry]) -> BTreeSet<String> {
    let in_every_block = |entry: &TensorEntry| {
        let of_role = entries.iter().filter(|other| other.role == entry.role);
        of_role.count() == spec.n_layer
    };
    let name = |entry: &TensorEntry| {
        let layer = entry.hf.strip_suffix(".weight").unwrap_or(&entry.hf);
        let number = format!(".{}.", entry.layer?);
        match layer.split_once(&number) {
            Some((_, end)) if in_every_block(entry) => Some(end.to_owned()),
            _ => Some(layer.to_owned()),
        }
    };
    entries.iter().filter_map(name).collect()
}

/// Shape and values.
pub type Shaped = (Vec<usize>, Vec<f32>);

/// PEFT's tensors of a LoRA: `values(entry)` gives A and B in GGUF's order.
///
/// # Errors
/// What `values` says.
pub fn peft_tensors(
    entries: &[TensorEntry],
    rank: usize,
    mut values: impl FnMut(&TensorEntry) -> Result<(Vec<f32>, Vec<f32>)>,
) -> Result<BTreeMap<String, Shaped>> {
    let mut tensors = BTreeMap::new();
    for entry in entries {
        let (a_name, b_name) = peft_names(entry);
        let (a, b) = values(entry)?;
        tensors.insert(a_name, (vec![rank, entry.shape[1]], a));
        let b = lora_b_entry(entry, rank).to_hf_layout(b);
        tensors.insert(b_name, (vec![entry.shape[0], rank], b));
    }
    Ok(tensors)
}
