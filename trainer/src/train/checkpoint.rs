//! What is in a checkpoint: the weights as export reads them, and the state so that `--resume` goes on at the next step as if
//! nothing had happened: the optimiser's moments, the numbers of [`Progress`], and a LoRA's values by their own names. Everything
//! else (order of the rows, learning rate) follows from the step and the config.

use super::{
    config::Config,
    model::{Transformer, to_vec, trained_parameters, visit_parameters},
    optim::Optimizer,
    start::{hf_parameters, layer_name},
    stream::write_safetensors,
    watch::{Exact, Watch},
};
use crate::{
    adapter::{CONFIG_FILE, peft_config, peft_tensors},
    files::write_whole,
    run::{
        ADAPTER_FILE, LoraSize, MODEL_FILE, Parameters, safetensors_bytes, safetensors_contents,
    },
};
use anyhow::{Context, Result, bail};
use burn::tensor::{Device, Tensor, TensorData};
use fledgling_core::spec::{ModelSpec, ROPE_FREQS, TensorEntry, tensor_table};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, path::Path};

/// Name of the state's file.
pub const STATE_FILE: &str = "state.safetensors";
/// How the names of a LoRA's values begin in it.
const VALUE: &str = "value.";

/// Numbers of the state.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Optimiser steps done.
    pub step: u64,
    /// Step of the last evaluation.
    pub evaluated: Option<u64>,
    /// Step of the weights that were kept.
    pub kept_step: Option<u64>,
    /// Their loss on the held-out rows.
    pub kept_loss: Option<Exact>,
    /// Held-out loss before the first step.
    pub valid_before: Option<Exact>,
    /// Losses seen.
    pub watch: Watch,
}

/// A state that was read.
#[derive(Debug)]
pub struct State {
    /// The numbers.
    pub progress: Progress,
    /// Trained parameters.
    pub parameters: Parameters,
    /// What [`Optimizer::restore`] takes.
    moments: Parameters,
}

impl State {
    /// Gives an optimiser its state back.
    ///
    /// # Errors
    /// When it is another optimiser's.
    pub fn restore(&mut self, optimizer: &mut Optimizer, device: &Device) -> Result<()> {
        let moments = std::mem::take(&mut self.moments);
        let tensors = moments.into_iter().map(|(name, values)| {
            let n = values.len();
            let tensor = Tensor::<1>::from_data(TensorData::new(values, [n]), device);
            (name, tensor)
        });
        optimizer.restore(self.progress.step, tensors.collect())
    }
}

/// Writes `state.safetensors`.
///
/// # Errors
/// When the disk is full or may not be written.
pub fn save_state(
    folder: &Path,
    model: &Transformer,
    lora: bool,
    optimizer: &Optimizer,
    progress: &Progress,
) -> Result<()> {
    let mut tensors = optimizer.state();
    if lora {
        visit_parameters(model, |name, value, trained| {
            if trained {
                tensors.insert(format!("{VALUE}{name}"), value);
            }
        });
    }
    let shapes: Vec<_> = tensors
        .iter()
        .map(|(name, tensor)| (name.clone(), tensor.dims().to_vec()))
        .collect();
    let notes = BTreeMap::from([("progress".to_owned(), serde_json::to_string(progress)?)]);
    write_safetensors(&folder.join(STATE_FILE), &shapes, &notes, |name| {
        let tensor = tensors.remove(name);
        tensor
            .map(to_vec)
            .with_context(|| format!("`{name}` is gone"))
    })
}

/// Reads the state of a checkpoint.
///
/// # Errors
/// When there is none, or it is broken.
pub fn load_state(folder: &Path, spec: &ModelSpec) -> Result<State> {
    let path = folder.join(STATE_FILE);
    let (tensors, notes) = read(&path)?;
    let progress = notes
        .get("progress")
        .with_context(|| format!("{} is no training state", path.display()))?;
    let mut state = State {
        progress: serde_json::from_str(progress)
            .with_context(|| format!("{}: its numbers are broken", path.display()))?,
        parameters: Parameters::new(),
        moments: Parameters::new(),
    };
    for (name, values) in tensors {
        if let Some(name) = name.strip_prefix(VALUE) {
            state.parameters.insert(name.to_owned(), values);
        } else if Optimizer::keeps(&name) {
            state.moments.insert(name, values);
        } else {
            bail!("{}: unknown tensor `{name}`", path.display());
        }
    }
    let model = folder.join(MODEL_FILE);
    if model.is_file() {
        state.parameters =
            hf_parameters(&read(&model)?.0, spec).with_context(|| model.display().to_string())?;
    }
    Ok(state)
}

fn read(path: &Path) -> Result<(Parameters, BTreeMap<String, String>)> {
    let bytes = fledgling_lambda::mapped_file(path)
        .with_context(|| format!("cannot read {}", path.display()))?;
    safetensors_contents(&bytes).with_context(|| format!("{} is broken", path.display()))
}

/// Writes the weights that export reads: the LoRA alone, or the whole model.
///
/// # Errors
/// When the disk is full or may not be written.
pub fn save_weights(
    folder: &Path,
    model: &Transformer,
    lora: Option<(LoraSize, &[TensorEntry])>,
    config: &Config,
) -> Result<()> {
    match lora {
        Some((size, entries)) => {
            let bytes = adapter_bytes(&trained_parameters(model), size, entries, config)?;
            write_whole(&folder.join(ADAPTER_FILE), &bytes)?;
            let dropout = config.lora.as_ref().map_or(0.0, |lora| lora.dropout);
            let peft = peft_config(model.spec(), entries, size, dropout, &config.base);
            let text = serde_json::to_string_pretty(&peft)? + "\n";
            write_whole(&folder.join(CONFIG_FILE), text.as_bytes())
        }
        None => {
            let mut values = BTreeMap::new();
            visit_parameters(model, |name, value, _| {
                drop(values.insert(name.to_owned(), value));
            });
            save_all(&folder.join(MODEL_FILE), model.spec(), |name| {
                values
                    .remove(name)
                    .map(to_vec)
                    .with_context(|| format!("the model has no parameter `{name}`"))
            })
        }
    }
}

/// Writes `model.safetensors` with Hugging Face's names from values by their `burn` names.
fn save_all(
    target: &Path,
    spec: &ModelSpec,
    mut values: impl FnMut(&str) -> Result<Vec<f32>>,
) -> Result<()> {
    let entries: BTreeMap<_, _> = tensor_table(spec)
        .into_iter()
        .map(|entry| (entry.hf.clone(), entry))
        .collect();
    let mut shapes: Vec<_> = entries
        .iter()
        .map(|(name, entry)| (name.clone(), entry.hf_shape()))
        .collect();
    let freqs = spec.rope_freqs_tensor().unwrap_or_default();
    if !freqs.is_empty() {
        shapes.push((ROPE_FREQS.to_owned(), vec![freqs.len()]));
    }
    let notes = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    write_safetensors(target, &shapes, &notes, |name| match entries.get(name) {
        Some(entry) => Ok(entry.to_hf_layout(values(&entry.burn)?)),
        None => Ok(freqs.to_vec()),
    })
}

fn adapter_bytes(
    values: &Parameters,
    size: LoraSize,
    entries: &[TensorEntry],
    config: &Config,
) -> Result<Vec<u8>> {
    let tensors = peft_tensors(entries, size.rank, |entry| {
        let (a, b) = super::model::lora_names(layer_name(entry));
        let value = |name: &str| {
            values
                .get(name)
                .cloned()
                .with_context(|| format!("the model has no parameter `{name}`"))
        };
        Ok((value(&a)?, value(&b)?))
    })?;
    let notes = [
        ("format", "pt".to_owned()),
        ("base", config.base.clone()),
        ("rank", size.rank.to_string()),
        ("alpha", size.alpha.to_string()),
    ];
    safetensors_bytes(
        &tensors,
        notes
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value))
            .collect(),
    )
}
