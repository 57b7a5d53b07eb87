//! What a run starts from: the base's weights, or random ones, and fresh LoRA matrices.

use super::{
    config::{LoraBase, LoraConfig},
    frozen::{self, Frozen},
    model::lora_names,
};
use crate::{
    adapter::{Adapter, Addition, layer_names},
    run::{self, Parameters, lora_b_entry, peft_names},
};
use anyhow::{Context, Result, bail, ensure};
use burn::tensor::Device;
use fledgling_core::{
    gguf::Gguf,
    quant::DType,
    spec::{ModelSpec, Role, TensorEntry, tensor_table},
};
use globset::{Glob, GlobMatcher};
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};
use std::{collections::BTreeMap, path::Path};

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
/// A target that matches none, with those there are, or that is no pattern.
pub fn lora_entries(spec: &ModelSpec, lora: &LoraConfig) -> Result<Vec<TensorEntry>> {
    let matrices: Vec<_> = tensor_table(spec)
        .into_iter()
        .filter(|entry| entry.layer.is_some() && entry.shape.len() == 2)
        .collect();
    let mut wanted = vec![lora.targets.is_empty(); matrices.len()];
    for target in &lora.targets {
        let pattern = Pattern::new(target)?;
        let mut n_matches = 0;
        for (entry, wanted) in matrices.iter().zip(&mut wanted) {
            if pattern.matches(entry) {
                (*wanted, n_matches) = (true, n_matches + 1);
            }
        }
        ensure!(n_matches > 0, no_match(target, &matrices));
    }
    Ok(matrices
        .into_iter()
        .zip(wanted)
        .filter_map(|(entry, wanted)| wanted.then_some(entry))
        .collect())
}

fn no_match(target: &str, matrices: &[TensorEntry]) -> String {
    let first: Vec<_> = matrices
        .iter()
        .filter(|entry| entry.layer == Some(0))
        .collect();
    let list = |name: fn(&TensorEntry) -> Option<&str>| {
        let names: Vec<_> = first.iter().filter_map(|entry| name(entry)).collect();
        names.join(", ")
    };
    let n_layer = matrices.len() / first.len().max(1);
    format!(
        "lora.targets: no matrix is called `{target}`; there are {} (in Hugging Face's names {}), in the blocks 0 to {}",
        list(|entry| entry.gguf.split('.').nth(2)),
        list(|entry| layer_name_of(&entry.hf)
            .split_once(".0.")
            .map(|(_, end)| end)),
        n_layer.saturating_sub(1)
    )
}

fn layer_name_of(weight: &str) -> &str {
    weight.strip_suffix(".weight").unwrap_or(weight)
}

/// What a target matches: part of a name, or a pattern of whole names.
enum Pattern<'a> {
    Part(&'a str),
    Glob(Box<GlobMatcher>),
}

impl<'a> Pattern<'a> {
    fn new(target: &'a str) -> Result<Self> {
        ensure!(
            !target.is_empty(),
            "lora.targets: an empty name; leave targets out to take all matrices"
        );
        if !target.contains(['*', '?', '[', '{']) {
            return Ok(Self::Part(target));
        }
        let glob =
            Glob::new(target).with_context(|| format!("lora.targets: `{target}` is no pattern"))?;
        Ok(Self::Glob(Box::new(glob.compile_matcher())))
    }

    fn matches(&self, entry: &TensorEntry) -> bool {
        match self {
            Self::Part(part) => entry.gguf.contains(part) || entry.hf.contains(part),
            Self::Glob(glob) => {
                let gguf = [entry.gguf.as_str(), layer_name_of(&entry.gguf)];
                let hf = layer_names(entry);
                gguf.iter().any(|name| glob.is_match(name))
                    || glob.is_match(&entry.hf)
                    || hf.iter().any(|name| glob.is_match(name))
            }
        }
    }
}

/// The matrices whose smaller side is less than the rank: more rank than the matrix has adds nothing.
pub fn too_small_for(entries: &[TensorEntry], rank: usize) -> Vec<&str> {
    let small = |entry: &&TensorEntry| entry.shape.iter().any(|&n| n < rank);
    entries
        .iter()
        .filter(small)
        .map(|entry| entry.gguf.as_str())
        .collect()
}

/// The base of a LoRA: vectors and positions as values, matrices in blocks where they are not f32 and the device computes
/// with blocks.
///
/// # Errors
/// A tensor that is missing, or whose rows are no whole blocks of the type that was asked for.
pub fn frozen_base(
    gguf: &Gguf,
    spec: &ModelSpec,
    held: LoraBase,
    device: &Device,
) -> Result<(Parameters, BTreeMap<String, Frozen>)> {
    let (mut values, mut frozen) = (Parameters::new(), BTreeMap::new());
    for entry in tensor_table(spec) {
        let (info, bytes) = gguf.tensor(&entry.gguf)?;
        let dtype = held.dtype().unwrap_or(info.dtype);
        let &[n_out, n_in] = entry.shape.as_slice() else {
            values.insert(entry.burn, gguf.tensor_f32(&entry.gguf)?);
            continue;
        };
        if !entry.quantizable || dtype == DType::F32 {
            values.insert(entry.burn, gguf.tensor_f32(&entry.gguf)?);
            continue;
        }
        let blocks = if dtype == info.dtype {
            Frozen::new(dtype, bytes, [n_out, n_in])
        } else {
            ensure!(
                dtype.row_bytes(n_in).is_some(),
                "lora.base: the rows of `{}` have {n_in} values, and {} has blocks of {}: leave lora.base out",
                entry.gguf,
                dtype.name(),
                dtype.block_len()
            );
            Frozen::quantize(dtype, &gguf.tensor_f32(&entry.gguf)?, [n_out, n_in])
        };
        if frozen::computes_with_blocks(device) {
            frozen.insert(entry.burn, blocks);
        } else {
            values.insert(entry.burn, blocks.values());
        }
    }
    Ok((values, frozen))
}

/// The LoRA that `lora.init` names, and its size and matrices put into the config.
///
/// # Errors
/// When it is no LoRA of this base, or the config asks for another size or other matrices.
pub fn initial_adapter(
    path: &Path,
    spec: &ModelSpec,
    base_sha256: &str,
    lora: &mut LoraConfig,
) -> Result<(Parameters, Vec<TensorEntry>)> {
    let place = || format!("lora.init = {:?}", path.display().to_string());
    if run::is_run_folder(path) {
        let base = run::read_record(path)?.base;
        ensure!(
            base.sha256 == base_sha256,
            "{}: this LoRA was trained on `{}` ({}), which is not the model that `base` names",
            place(),
            base.name,
            base.path.display()
        );
    }
    let adapter = Adapter::open(path, spec).with_context(place)?;
    let entries: Vec<_> = tensor_table(spec)
        .into_iter()
        .filter(|entry| adapter.addition(&entry.gguf).is_some())
        .collect();
    if let Some(outside) = entries.iter().find(|entry| entry.layer.is_none()) {
        bail!(
            "{}: it adds to `{}`, and training adds to the matrices of the blocks only; merge it first with `fledgling export BASE --adapter …`",
            place(),
            outside.gguf
        );
    }
    if !lora.targets.is_empty() {
        let asked = lora_entries(spec, lora)?;
        ensure!(
            asked == entries,
            "{}: it is on {} matrices, and lora.targets asks for {} or for others; leave targets out",
            place(),
            entries.len(),
            asked.len()
        );
    }
    let mut sizes = adapter.additions().map(|(_, addition)| addition.size);
    let size = sizes.next().unwrap_or_else(|| lora.size());
    ensure!(
        sizes.all(|other| other == size),
        "{}: its matrices differ in rank or alpha; merge it first with `fledgling export BASE --adapter …`",
        place()
    );
    let (rank, alpha) = (
        lora.rank.unwrap_or(size.rank),
        lora.alpha.unwrap_or(size.alpha),
    );
    ensure!(
        (rank, alpha.to_bits()) == (size.rank, size.alpha.to_bits())
            && (!lora.rslora || size.rslora),
        "{}: it has rank {} and alpha {}{}, the config asks for another size; leave rank, alpha and rslora out",
        place(),
        size.rank,
        size.alpha,
        if size.rslora { " (rslora)" } else { "" }
    );
    (lora.rank, lora.alpha, lora.rslora) = (Some(size.rank), Some(size.alpha), size.rslora);
    let mut values = Parameters::new();
    for entry in &entries {
        if let Some(Addition { a, b, .. }) = adapter.addition(&entry.gguf) {
            let (a_name, b_name) = lora_names(layer_name(entry));
            values.insert(a_name, a.clone());
            values.insert(b_name, b.clone());
        }
    }
    Ok((values, entries))
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
