//! Writing a run's weights, and its state so that `--resume` goes on at the next step as if nothing had happened.
//!
//! The state holds the trained parameters, the optimiser's moments and the step. Everything else (order of the rows,
//! learning rate) follows from the step and the config.

use super::{
    config::Config,
    model::{Transformer, to_vec, trained_parameters, visit_parameters},
    optim::{AdamW, AdamWConfig, Moments},
    start::layer_name,
};
use crate::{
    files::write_whole,
    run::{
        ADAPTER_FILE, LoraSize, MODEL_FILE, Parameters, lora_b_entry, model_bytes, peft_names,
        safetensors_bytes, safetensors_contents,
    },
};
use anyhow::{Context, Result, bail, ensure};
use burn::tensor::{Device, Tensor, TensorData};
use fledgling_core::spec::TensorEntry;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, path::Path};

/// Name of the state's file.
pub const STATE_FILE: &str = "state.safetensors";

/// Numbers of the state.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Optimiser steps done.
    pub step: u64,
    /// Step of the weights that were kept.
    pub kept_step: Option<u64>,
    /// Their loss on the held-out rows.
    pub kept_loss: Option<f64>,
    /// Held-out loss before the first step.
    pub valid_before: Option<f64>,
    /// Fingerprint of rows and config, as far as they decide what the next step does.
    pub fingerprint: String,
}

/// A state that was read.
#[derive(Debug)]
pub struct State {
    /// The numbers.
    pub progress: Progress,
    /// Trained parameters.
    pub parameters: Parameters,
    moments: BTreeMap<String, (Vec<f32>, Vec<f32>)>,
}

impl State {
    /// The optimiser as it was.
    pub fn optimizer(&self, config: AdamWConfig, device: &Device) -> AdamW {
        let tensor = |values: &Vec<f32>| {
            Tensor::<1>::from_data(TensorData::new(values.clone(), [values.len()]), device)
        };
        let moments = self
            .moments
            .iter()
            .map(|(name, (m, v))| {
                (
                    name.clone(),
                    Moments {
                        m: tensor(m),
                        v: tensor(v),
                    },
                )
            })
            .collect();
        AdamW {
            config,
            step: self.progress.step,
            moments,
        }
    }
}

/// Writes `state.safetensors`.
///
/// # Errors
/// When the disk is full or may not be written.
pub fn save_state(
    folder: &Path,
    model: &Transformer,
    optimizer: &AdamW,
    progress: &Progress,
) -> Result<()> {
    let mut tensors = BTreeMap::new();
    let mut put = |kind: &str, name: &str, values: Vec<f32>| {
        tensors.insert(format!("{kind}.{name}"), (vec![values.len()], values))
    };
    for (name, values) in trained_parameters(model) {
        put("value", &name, values);
    }
    for (name, moments) in &optimizer.moments {
        put("m", name, to_vec(moments.m.clone()));
        put("v", name, to_vec(moments.v.clone()));
    }
    let notes = BTreeMap::from([("progress".to_owned(), serde_json::to_string(progress)?)]);
    write_whole(
        &folder.join(STATE_FILE),
        &safetensors_bytes(&tensors, notes)?,
    )
}

/// Reads `state.safetensors`.
///
/// # Errors
/// When there is none, or it is broken.
pub fn load_state(folder: &Path) -> Result<State> {
    let path = folder.join(STATE_FILE);
    let bytes = std::fs::read(&path).with_context(|| {
        format!(
            "cannot resume: {} cannot be read; start without --resume",
            path.display()
        )
    })?;
    let (tensors, notes) =
        safetensors_contents(&bytes).with_context(|| format!("{} is broken", path.display()))?;
    let progress = notes
        .get("progress")
        .with_context(|| format!("{} is no training state", path.display()))?;
    let mut state = State {
        progress: serde_json::from_str(progress)?,
        parameters: Parameters::new(),
        moments: BTreeMap::new(),
    };
    for (name, values) in tensors {
        match name.split_once('.') {
            Some(("value", name)) => drop(state.parameters.insert(name.to_owned(), values)),
            Some(("m", name)) => state.moments.entry(name.to_owned()).or_default().0 = values,
            Some(("v", name)) => state.moments.entry(name.to_owned()).or_default().1 = values,
            _ => bail!("{}: unknown tensor `{name}`", path.display()),
        }
    }
    ensure!(
        state.moments.values().all(|(m, v)| m.len() == v.len()),
        "{}: the optimiser's moments do not fit each other",
        path.display()
    );
    Ok(state)
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
            write_whole(&folder.join(ADAPTER_FILE), &bytes)
        }
        None => {
            let mut values = BTreeMap::new();
            visit_parameters(model, |name, value, _| {
                drop(values.insert(name.to_owned(), value));
            });
            let bytes = model_bytes(model.spec(), |entry| {
                values
                    .remove(&entry.burn)
                    .map(to_vec)
                    .with_context(|| format!("the model has no parameter `{}`", entry.burn))
            })?;
            write_whole(&folder.join(MODEL_FILE), &bytes)
        }
    }
}

fn adapter_bytes(
    values: &Parameters,
    size: LoraSize,
    entries: &[TensorEntry],
    config: &Config,
) -> Result<Vec<u8>> {
    let mut tensors = BTreeMap::new();
    for entry in entries {
        let (a_burn, b_burn) = super::model::lora_names(layer_name(entry));
        let (a_name, b_name) = peft_names(entry);
        let value = |name: &str| {
            values
                .get(name)
                .cloned()
                .with_context(|| format!("the model has no parameter `{name}`"))
        };
        tensors.insert(a_name, (vec![size.rank, entry.shape[1]], value(&a_burn)?));
        tensors.insert(
            b_name,
            (
                vec![entry.shape[0], size.rank],
                lora_b_entry(entry, size.rank).to_hf_layout(value(&b_burn)?),
            ),
        );
    }
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
