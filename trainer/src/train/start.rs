//! What a run starts from: the base's weights, or random ones, and fresh LoRA matrices.

use super::{config::LoraConfig, model::lora_names};
use crate::run::{Parameters, lora_b_entry, peft_names};
use anyhow::{Context, Result, bail, ensure};
use fledgling_core::{
    gguf::Gguf,
    spec::{ModelSpec, Role, TensorEntry, tensor_table},
};
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};
use std::collections::BTreeMap;

/// Standard deviation of GPT-2's initial weights.
const INIT_STD: f64 = 0.02;

/// All weights of a file as f32, by their `burn` names.
///
/// # Errors
/// A tensor that is missing.
pub fn parameters_of(gguf: &Gguf, spec: &ModelSpec) -> Result<Parameters> {
    tensor_table(spec)
        .into_iter()
        .map(|entry| Ok((entry.burn, gguf.tensor_f32(&entry.gguf)?)))
        .collect()
}

/// Random weights as GPT-2 has them: N(0, 0.02), the matrices that write to the residual stream divided by
/// `sqrt(2 · layers)`, norms 1, biases 0.
pub fn random_parameters(spec: &ModelSpec, seed: u64) -> Parameters {
    let mut normal = Normal::new(seed, 0);
    let value_of = |entry: &TensorEntry, normal: &mut Normal| {
        let n = entry.shape.iter().product();
        let residual = matches!(entry.role, Role::AttnOutput | Role::FfnDown);
        let std = if residual {
            INIT_STD / (2.0 * spec.n_layer as f64).sqrt()
        } else {
            INIT_STD
        };
        match entry.role {
            Role::AttnNorm
            | Role::AttnQNorm
            | Role::AttnKNorm
            | Role::FfnNorm
            | Role::OutputNorm => vec![1.0; n],
            _ if entry.shape.len() == 1 => vec![0.0; n],
            _ => normal.values(n, std),
        }
    };
    tensor_table(spec)
        .into_iter()
        .map(|entry| (entry.burn.clone(), value_of(&entry, &mut normal)))
        .collect()
}

/// The matrices of the blocks that get a LoRA.
///
/// # Errors
/// A target that matches none, with those there are.
pub fn lora_entries(spec: &ModelSpec, lora: &LoraConfig) -> Result<Vec<TensorEntry>> {
    let matrices: Vec<_> = tensor_table(spec)
        .into_iter()
        .filter(|entry| entry.layer.is_some() && entry.shape.len() == 2)
        .collect();
    for target in &lora.targets {
        if !matrices
            .iter()
            .any(|entry| entry.gguf.contains(target.as_str()))
        {
            let there = matrices
                .iter()
                .filter(|entry| entry.layer == Some(0))
                .filter_map(|entry| entry.gguf.split('.').nth(2));
            bail!(
                "lora.targets: no matrix is called `{target}`; there are {}",
                there.collect::<Vec<_>>().join(", ")
            );
        }
    }
    let wanted = |entry: &TensorEntry| {
        lora.targets.is_empty()
            || lora
                .targets
                .iter()
                .any(|target| entry.gguf.contains(target.as_str()))
    };
    Ok(matrices.into_iter().filter(wanted).collect())
}

/// Fresh LoRA matrices: A uniform as PEFT draws it (Kaiming, `a = √5`: bound `1/√in`), B zero, so that the model starts
/// as its base.
pub fn lora_parameters(entries: &[TensorEntry], rank: usize, seed: u64) -> Parameters {
    let mut random = Normal::new(seed, 1);
    let mut values = Parameters::new();
    for entry in entries {
        let (a, b) = lora_names(layer_name(entry));
        let bound = 1.0 / (entry.shape[1] as f64).sqrt();
        values.insert(
            a,
            (0..rank * entry.shape[1])
                .map(|_| ((2.0 * random.uniform() - 1.0) * bound) as f32)
                .collect(),
        );
        values.insert(b, vec![0.0; entry.shape[0] * rank]);
    }
    values
}

/// The `burn` name of the layer that a matrix belongs to.
pub fn layer_name(entry: &TensorEntry) -> &str {
    entry.burn.strip_suffix(".weight").unwrap_or(&entry.burn)
}

/// Checks that the run's rows fit the model.
///
/// # Errors
/// Naming the key.
pub fn check_context(spec: &ModelSpec, max_tokens: usize) -> Result<()> {
    ensure!(
        max_tokens <= spec.n_ctx,
        "data.max_tokens = {max_tokens}: the model has {} positions only",
        spec.n_ctx
    );
    Ok(())
}

/// LoRA parameters in GGUF's layout by their `burn` names, from tensors with PEFT's names.
///
/// # Errors
/// A tensor that is missing.
pub fn adapter_parameters(
    tensors: &BTreeMap<String, Vec<f32>>,
    entries: &[TensorEntry],
    rank: usize,
) -> Result<Parameters> {
    let mut values = Parameters::new();
    for entry in entries {
        let (a_burn, b_burn) = lora_names(layer_name(entry));
        let (a_name, b_name) = peft_names(entry);
        let value = |name: &str| {
            tensors
                .get(name)
                .cloned()
                .with_context(|| format!("there is no tensor `{name}`"))
        };
        values.insert(a_burn, value(&a_name)?);
        values.insert(
            b_burn,
            lora_b_entry(entry, rank).to_gguf_layout(value(&b_name)?),
        );
    }
    Ok(values)
}

/// All parameters in GGUF's layout by their `burn` names, from tensors with Hugging Face's names.
///
/// # Errors
/// A tensor that is missing.
pub fn hf_parameters(tensors: &BTreeMap<String, Vec<f32>>, spec: &ModelSpec) -> Result<Parameters> {
    let value = |entry: TensorEntry| {
        let values = tensors
            .get(&entry.hf)
            .cloned()
            .with_context(|| format!("there is no tensor `{}`", entry.hf))?;
        Ok((entry.burn.clone(), entry.to_gguf_layout(values)))
    };
    tensor_table(spec).into_iter().map(value).collect()
}

/// Normal numbers from a seeded stream.
struct Normal(ChaCha8Rng);

impl Normal {
    fn new(seed: u64, stream: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed ^ 0x005E_ED0F_3E16);
        rng.set_stream(stream);
        Self(rng)
    }

    /// In (0, 1].
    fn uniform(&mut self) -> f64 {
        ((self.0.next_u64() >> 11) + 1) as f64 / (1_u64 << 53) as f64
    }

    /// By Box and Muller.
    fn values(&mut self, n: usize, std: f64) -> Vec<f32> {
        let mut pair = || {
            let radius = (-2.0 * self.uniform().ln()).sqrt() * std;
            let angle = 2.0 * std::f64::consts::PI * self.uniform();
            [(radius * angle.cos()) as f32, (radius * angle.sin()) as f32]
        };
        let mut values: Vec<f32> = (0..n.div_ceil(2)).flat_map(|_| pair()).collect();
        values.truncate(n);
        values
    }
}
