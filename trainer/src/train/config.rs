//! One TOML file describes a run; `--set section.key=value` overrides a key. Unknown keys are refused with the nearest
//! known one, numbers are checked against their ranges, and the resolved file is saved with the run.

pub use super::shape::{FamilyName, ModelConfig};
use super::{device::Choice, mirror::Mirror};
use crate::{
    export::Quant,
    run::{Continued, LoraSize},
};
use anyhow::{Context, Result, bail, ensure};
use fledgling_core::quant::DType;
use fledgling_data::toml_config;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// A run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Name of the run: its folder under `runs_dir`.
    pub name: String,
    /// What is trained.
    pub mode: Mode,
    /// The model to start from: a GGUF file, a pulled model's name, a run's folder, a URL of an object store. For `scratch`, the model whose
    /// tokenizer is taken.
    pub base: String,
    /// Where runs are written.
    #[serde(default = "default_runs_dir")]
    pub runs_dir: PathBuf,
    /// Where runs are copied to while they grow, by URL (`s3://BUCKET/PREFIX`, `gs://`, `az://`, `file:///FOLDER`): `NAME/` below
    /// it. `--resume` takes the last checkpoint from there when there is no newer one here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote: Option<String>,
    /// Seed of the initial weights and of the order of the rows.
    #[serde(default = "default_seed")]
    pub seed: u64,
    /// Threads; 0 takes all cores.
    #[serde(default)]
    pub threads: usize,
    /// Where it computes: `auto`, `cpu`, `gpu` or `gpu:N`.
    #[serde(default)]
    pub device: Choice,
    /// Whether a GPU is used against its self-test: of the command line only, so that no file switches it off.
    #[serde(skip)]
    pub trust_device: bool,
    /// Rows.
    pub data: DataConfig,
    /// Optimiser, schedule, loop.
    #[serde(default)]
    pub train: TrainConfig,
    /// Prompts to go on with at each evaluation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub samples: Option<SamplesConfig>,
    /// Size of the LoRA (mode `lora`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lora: Option<LoraConfig>,
    /// Training for the quantisation of the export.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qat: Option<QatConfig>,
    /// Architecture (mode `scratch`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<ModelConfig>,
    /// The run that this one goes on from: written by `--continue-from`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub continued_from: Option<Continued>,
}

/// What is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// A new model with random weights.
    Scratch,
    /// All weights of the base.
    Full,
    /// Low-rank additions to the base's matrices.
    Lora,
}

/// Where the rows come from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// What to train on: files (of chats or text: jsonl, json, csv, parquet, txt…), or folders of prepared data, of which the part `train` is
    /// taken; also by URL, from an object store.
    pub train: Vec<PathBuf>,
    /// How often the rows of each entry of `train` are shown in a pass: a mixture. Of a broken number's rest, other rows are
    /// chosen in each pass. Once, when absent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub weights: Vec<f64>,
    /// What is held out for validation; of a folder the part `valid`.
    #[serde(default)]
    pub valid: Vec<PathBuf>,
    /// Tokens in a row at most; longer chats lose their end, text is cut into windows of this length. Prepared data has a
    /// length of its own, which must not be more.
    #[serde(default = "default_max_tokens")]
    pub max_tokens: usize,
}

/// Optimiser, schedule, loop.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainConfig {
    /// Passes over the rows; not used when `steps` is given.
    pub epochs: u64,
    /// Optimiser steps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<u64>,
    /// Rows that are computed at a time. Memory grows with it.
    pub batch: usize,
    /// So many batches make one step: its rows are `batch * accumulate`, and only this product decides what is learnt.
    pub accumulate: usize,
    /// What turns gradients into steps.
    pub optimizer: OptimizerName,
    /// Peak learning rate.
    pub lr: f64,
    /// How the learning rate falls after the warm-up.
    pub schedule: Schedule,
    /// Share of the peak where the schedule ends.
    pub min_lr_ratio: f64,
    /// In which the learning rate rises to its peak: steps (`100`), or a share of all (`0.03`).
    pub warmup: Warmup,
    /// Share of all steps that the decay at the end takes (schedule `wsd`).
    pub decay_share: f64,
    /// How the learning rate falls in the decay (schedule `wsd`).
    pub decay_shape: DecayShape,
    /// Share of `lr` by which matrices shrink in a step.
    pub weight_decay: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decay of Muon's mean of the gradients.
    pub momentum: f64,
    /// Largest common norm of the gradients; 0 does not clip.
    pub clip: f64,
    /// Compute the activations of a block again in the backward pass instead of keeping them: less memory, a third more time.
    pub recompute: bool,
    /// Steps between two evaluations; 0 evaluates before the first step and after the last only.
    pub eval_every: u64,
    /// Steps between two checkpoints; 0 writes one with each evaluation, and at the end.
    pub save_every: u64,
    /// Checkpoints that are kept: the last ones.
    pub keep_last: usize,
    /// Stop after so many evaluations without a better held-out loss; 0 never.
    pub patience: u64,
    /// A held-out loss is better when it is lower by more than this.
    pub min_delta: f64,
    /// Stop when a step's loss is more than this times the median of the last ones; 0 never.
    pub spike: f64,
    /// What matrices are multiplied in; weights, norms, softmax and loss are f32 always.
    pub dtype: Dtype,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            epochs: 1,
            steps: None,
            batch: 8,
            accumulate: 1,
            optimizer: OptimizerName::AdamW,
            lr: 1e-3,
            schedule: Schedule::Cosine,
            min_lr_ratio: 0.1,
            warmup: Warmup::Steps(5),
            decay_share: 0.1,
            decay_shape: DecayShape::Sqrt,
            weight_decay: 0.01,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            momentum: 0.95,
            clip: 1.0,
            recompute: false,
            eval_every: 0,
            save_every: 0,
            keep_last: 2,
            patience: 0,
            min_delta: 0.0,
            spike: 0.0,
            dtype: Dtype::F32,
        }
    }
}

/// What turns gradients into steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerName {
    /// AdamW for all parameters.
    AdamW,
    /// Muon for the matrices of the blocks, AdamW for the rest.
    Muon,
}

/// Number formats of matrix products.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// 32 bits.
    #[default]
    F32,
    /// 16 bits, 8 of them for the exponent: on CPUs (AVX512-BF16) and GPUs that have it.
    Bf16,
}

impl Dtype {
    /// The format that a config calls `name`.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::F32, Self::Bf16]
            .into_iter()
            .find(|dtype| dtype.to_string() == name)
    }
}

impl std::fmt::Display for Dtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        })
    }
}

/// How the learning rate falls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// Not at all.
    Constant,
    /// In a straight line.
    Linear,
    /// Along half a cosine.
    Cosine,
    /// Warm-up, stable, decay: not at all until `decay_share` of the steps is left.
    Wsd,
}

/// How the learning rate falls in the decay of [`Schedule::Wsd`], from 1 to `min_lr_ratio`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DecayShape {
    /// By `1 - sqrt(done)`: the best of those that Hägele et al. tried (arXiv 2405.18392).
    Sqrt,
    /// In a straight line.
    Linear,
    /// Along half a cosine.
    Cosine,
    /// By the same factor each step, as `MiniCPM` does; needs a `min_lr_ratio` above 0.
    Exponential,
}

/// Length of the warm-up.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Warmup {
    /// In steps.
    Steps(u64),
    /// As a share of all steps.
    Share(f64),
}

impl Warmup {
    /// Steps of it in a run of `n_steps`.
    pub fn steps(self, n_steps: u64) -> u64 {
        match self {
            Self::Steps(steps) => steps,
            Self::Share(share) => (share * n_steps as f64).round() as u64,
        }
    }
}

impl Serialize for Warmup {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Steps(steps) => serializer.serialize_u64(*steps),
            Self::Share(share) => serializer.serialize_f64(*share),
        }
    }
}

impl<'de> Deserialize<'de> for Warmup {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Number;
        impl de::Visitor<'_> for Number {
            type Value = Warmup;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("steps as a whole number (100), or a share of all below 1 (0.03)")
            }
            fn visit_u64<E: de::Error>(self, steps: u64) -> Result<Warmup, E> {
                Ok(Warmup::Steps(steps))
            }
            fn visit_i64<E: de::Error>(self, steps: i64) -> Result<Warmup, E> {
                u64::try_from(steps)
                    .map(Warmup::Steps)
                    .map_err(|_| E::invalid_value(de::Unexpected::Signed(steps), &self))
            }
            fn visit_f64<E: de::Error>(self, share: f64) -> Result<Warmup, E> {
                if (0.0..1.0).contains(&share) {
                    Ok(Warmup::Share(share))
                } else {
                    Err(E::invalid_value(de::Unexpected::Float(share), &self))
                }
            }
        }
        deserializer.deserialize_any(Number)
    }
}

/// Prompts to go on with at each evaluation, so that one reads what the model has learnt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SamplesConfig {
    /// The prompts.
    pub prompts: Vec<String>,
    /// Tokens of each answer at most.
    #[serde(default = "default_sample_tokens")]
    pub max_tokens: usize,
    /// 0 always takes the likeliest token.
    #[serde(default)]
    pub temperature: f32,
    /// Seed of the sampler: the same at every evaluation.
    #[serde(default = "default_seed")]
    pub seed: u64,
    /// Whether a prompt is a user's message, put through the chat template. Absent: when the model has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chat: Option<bool>,
}

/// Size and place of the LoRA.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoraConfig {
    /// Rank; 8 when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rank: Option<usize>,
    /// The addition is scaled by `alpha / rank`; 16 when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alpha: Option<f64>,
    /// Scales by `alpha / √rank` instead, which keeps large ranks useful.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub rslora: bool,
    /// Share of the inputs that a LoRA does not see in a step.
    pub dropout: f64,
    /// Matrices of the blocks that get one: GGUF or Hugging Face names, parts of them (`attn_q`, `q_proj`, `ffn_`) or
    /// patterns (`blk.[0-3].*`, `*.attn_*`); empty takes all.
    pub targets: Vec<String>,
    /// How the frozen matrices are held.
    pub base: LoraBase,
    /// A LoRA to go on from: a run's folder, or one of PEFT's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init: Option<PathBuf>,
}

impl LoraConfig {
    /// Rank and scale.
    pub fn size(&self) -> LoraSize {
        LoraSize {
            rank: self.rank.unwrap_or(8),
            alpha: self.alpha.unwrap_or(16.0),
            rslora: self.rslora,
        }
    }

    fn check(&self) -> Result<()> {
        let LoraSize { rank, alpha, .. } = self.size();
        ensure!((1..=1024).contains(&rank), "lora.rank = {rank}: 1 to 1024");
        ensure!(
            alpha.is_finite() && alpha > 0.0,
            "lora.alpha = {alpha}: a number above 0"
        );
        ensure!(
            (0.0..1.0).contains(&self.dropout),
            "lora.dropout = {}: 0 up to, not including, 1",
            self.dropout
        );
        Ok(())
    }
}

/// How the frozen matrices under a LoRA are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LoraBase {
    /// In the type of the base's file.
    #[default]
    File,
    /// Dequantised.
    F32,
    /// Quantised to 8.5 bits a weight.
    #[serde(rename = "q8_0")]
    Q8_0,
    /// Quantised to 5 bits a weight.
    #[serde(rename = "q4_1")]
    Q4_1,
    /// Quantised to 4.5 bits a weight.
    #[serde(rename = "q4_0")]
    Q4_0,
}

impl LoraBase {
    /// The type, where it is not the file's.
    pub fn dtype(self) -> Option<DType> {
        match self {
            Self::File => None,
            Self::F32 => Some(DType::F32),
            Self::Q8_0 => Some(DType::Q8_0),
            Self::Q4_1 => Some(DType::Q4_1),
            Self::Q4_0 => Some(DType::Q4_0),
        }
    }
}

/// Training for the quantisation of the export: the forward pass sees the weights as the exported file will hold them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QatConfig {
    /// The type that `fledgling export --quant` will be asked for.
    pub format: Quant,
    /// Steps with the weights as they are before it begins.
    #[serde(default)]
    pub start_step: u64,
}

/// The values in a table and its sections, as TOML, by `section.key`.
pub fn flat(table: &toml::Table) -> BTreeMap<String, String> {
    let mut keys = BTreeMap::new();
    for (key, value) in table {
        match value {
            toml::Value::Table(section) => {
                let inner = flat(section).into_iter();
                keys.extend(inner.map(|(path, value)| (format!("{key}.{path}"), value)));
            }
            value => drop(keys.insert(key.clone(), value.to_string())),
        }
    }
    keys
}

fn default_runs_dir() -> PathBuf {
    PathBuf::from("runs")
}
fn default_seed() -> u64 {
    1
}
fn default_max_tokens() -> usize {
    512
}
fn default_sample_tokens() -> usize {
    48
}

impl Config {
    /// Reads a file and the overrides of the command line.
    ///
    /// # Errors
    /// With the file, the key, and what is allowed.
    pub fn load(path: &Path, overrides: &[String]) -> Result<Self> {
        let config: Self = toml_config::load(path, overrides)?;
        config
            .check()
            .with_context(|| format!("in the config {}", path.display()))?;
        Ok(config)
    }

    /// Reads the text of a config.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn parse(text: &str, overrides: &[String]) -> Result<Self> {
        let config: Self = toml_config::parse(text, overrides)?;
        config.check()?;
        Ok(config)
    }

    /// The file that describes this run wholly.
    ///
    /// # Errors
    /// Never for a config that was read.
    pub fn to_toml(&self) -> Result<String> {
        Ok(toml::to_string(self)?)
    }

    /// The values of all keys, as TOML, by `section.key`.
    ///
    /// # Errors
    /// As [`Self::to_toml`].
    pub fn keys(&self) -> Result<BTreeMap<String, String>> {
        Ok(flat(&toml::from_str(&self.to_toml()?)?))
    }

    /// The run's folder.
    pub fn run_dir(&self) -> PathBuf {
        self.runs_dir.join(&self.name)
    }

    /// The run's place in an object store, if it has one.
    ///
    /// # Errors
    /// When the store cannot be reached or refuses.
    pub fn mirror(&self) -> Result<Option<Mirror>> {
        let remote = self.remote.as_ref();
        remote
            .map(|url| Mirror::open(url, &self.name, self.train.keep_last))
            .transpose()
    }

    fn check(&self) -> Result<()> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        ensure!(
            !self.name.is_empty() && !self.name.starts_with('.') && self.name.chars().all(plain),
            "name = {:?}: a run's name has letters, digits, `-`, `_` and `.` only, because it is a folder",
            self.name
        );
        if let Some(url) = &self.remote {
            ensure!(
                crate::remote::is_url(url),
                "remote = {url:?}: the URL of a folder in an object store, s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX or file:///FOLDER"
            );
        }
        ensure!(
            !self.data.train.is_empty(),
            "data.train is empty: name at least one file, or a folder of prepared data"
        );
        ensure!(
            self.data.weights.is_empty() || self.data.weights.len() == self.data.train.len(),
            "data.weights has {} numbers for the {} entries of data.train: give one for each, or none",
            self.data.weights.len(),
            self.data.train.len()
        );
        let allowed = 0.0..=1000.0;
        ensure!(
            self.data
                .weights
                .iter()
                .all(|weight| allowed.contains(weight)),
            "data.weights = {:?}: 0 to 1000 each",
            self.data.weights
        );
        ensure!(
            self.data.max_tokens >= 2,
            "data.max_tokens = {}: a row needs at least 2 tokens",
            self.data.max_tokens
        );
        self.train.check()?;
        self.check_loop()?;
        match (self.mode, &self.model) {
            (Mode::Scratch, None) => bail!(
                "mode = \"scratch\" needs a section [model] with a preset such as \"gpt2-124m\", or with family, layers, width, heads and ctx"
            ),
            (Mode::Full | Mode::Lora, Some(_)) => {
                bail!("[model] is for mode = \"scratch\": the base brings its own architecture")
            }
            _ => {}
        }
        if let Some(model) = &self.model {
            model.check()?;
        }
        if let Some(lora) = &self.lora {
            ensure!(self.mode == Mode::Lora, "[lora] is for mode = \"lora\"");
            lora.check()?;
        }
        if let Some(qat) = &self.qat {
            ensure!(
                qat.format != Quant::F32,
                "qat.format = \"f32\": an export in f32 loses nothing, so there is nothing to train for"
            );
            let lora = self.lora.clone().unwrap_or_default();
            ensure!(
                lora.dropout == 0.0,
                "lora.dropout = {}: with [qat] the LoRA is merged before it is quantised, and cannot be left out in part; set it to 0",
                lora.dropout
            );
            ensure!(
                matches!(lora.base, LoraBase::File | LoraBase::F32),
                "lora.base: [qat] quantises base and LoRA together as the export will; leave it out"
            );
        }
        Ok(())
    }
}

impl Config {
    /// What several keys of the loop say together.
    fn check_loop(&self) -> Result<()> {
        let train = &self.train;
        ensure!(
            train.patience == 0 || (train.eval_every > 0 && !self.data.valid.is_empty()),
            "train.patience = {}: stopping early needs data.valid and train.eval_every",
            train.patience
        );
        ensure!(
            train.optimizer == OptimizerName::AdamW || self.mode != Mode::Lora,
            "train.optimizer = \"muon\" is for whole matrices (mode = \"full\" or \"scratch\"): take \"adamw\" for a LoRA's factors"
        );
        let Some(samples) = &self.samples else {
            return Ok(());
        };
        ensure!(
            samples.prompts.len() <= 64,
            "samples.prompts has {} prompts: at most 64",
            samples.prompts.len()
        );
        ensure!(
            (1..=4096).contains(&samples.max_tokens),
            "samples.max_tokens = {}: 1 to 4096",
            samples.max_tokens
        );
        ensure!(
            samples.temperature.is_finite() && samples.temperature >= 0.0,
            "samples.temperature = {}: a number from 0",
            samples.temperature
        );
        Ok(())
    }
}

impl TrainConfig {
    fn check(&self) -> Result<()> {
        self.check_schedule()?;
        self.check_limits()?;
        ensure!(
            self.epochs >= 1,
            "train.epochs = {}: at least 1",
            self.epochs
        );
        ensure!(self.steps != Some(0), "train.steps = 0: at least 1");
        ensure!(
            (1..=65_536).contains(&self.batch),
            "train.batch = {}: 1 to 65536",
            self.batch
        );
        ensure!(
            (1..=65_536).contains(&self.accumulate),
            "train.accumulate = {}: 1 to 65536",
            self.accumulate
        );
        ensure!(
            (0.0..=1.0).contains(&self.weight_decay),
            "train.weight_decay = {}: 0 to 1",
            self.weight_decay
        );
        ensure!(
            (0.0..1.0).contains(&self.beta1),
            "train.beta1 = {}: 0 up to, not including, 1",
            self.beta1
        );
        ensure!(
            (0.0..1.0).contains(&self.beta2),
            "train.beta2 = {}: 0 up to, not including, 1",
            self.beta2
        );
        ensure!(
            self.eps > 0.0 && self.eps < 1.0,
            "train.eps = {}: above 0, below 1",
            self.eps
        );
        ensure!(
            self.clip.is_finite() && self.clip >= 0.0,
            "train.clip = {}: a positive number, or 0 for none",
            self.clip
        );
        ensure!(
            (0.0..1.0).contains(&self.momentum),
            "train.momentum = {}: 0 up to, not including, 1",
            self.momentum
        );
        Ok(())
    }

    fn check_schedule(&self) -> Result<()> {
        ensure!(
            self.lr.is_finite() && self.lr > 0.0 && self.lr <= 10.0,
            "train.lr = {}: above 0, at most 10",
            self.lr
        );
        ensure!(
            (0.0..=1.0).contains(&self.min_lr_ratio),
            "train.min_lr_ratio = {}: 0 to 1",
            self.min_lr_ratio
        );
        ensure!(
            self.decay_share > 0.0 && self.decay_share <= 1.0,
            "train.decay_share = {}: above 0, at most 1",
            self.decay_share
        );
        ensure!(
            self.decay_shape != DecayShape::Exponential || self.min_lr_ratio > 0.0,
            "train.min_lr_ratio = 0: an exponential decay never gets there; give a number above 0"
        );
        Ok(())
    }

    fn check_limits(&self) -> Result<()> {
        ensure!(
            (1..=10_000).contains(&self.keep_last),
            "train.keep_last = {}: 1 to 10000",
            self.keep_last
        );
        ensure!(
            self.min_delta.is_finite() && self.min_delta >= 0.0,
            "train.min_delta = {}: a number from 0",
            self.min_delta
        );
        ensure!(
            self.spike == 0.0 || (self.spike.is_finite() && self.spike > 1.0),
            "train.spike = {}: a factor above 1, or 0 for never",
            self.spike
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str = "name='a'\nmode='lora'\nbase='b'\n[data]\ntrain=['t.jsonl']\n";

    #[test]
    fn a_small_config_gets_its_defaults_and_comes_back_from_its_own_text() {
        let config = Config::parse(
            SMALL,
            &[
                "train.lr=2e-3".to_owned(),
                "data.valid=['v.txt']".to_owned(),
            ],
        )
        .unwrap();
        assert!((config.train.lr - 2e-3).abs() < 1e-12);
        assert_eq!(config.data.valid, [PathBuf::from("v.txt")]);
        assert_eq!(
            Config::parse(&config.to_toml().unwrap(), &[]).unwrap(),
            config
        );
    }

    #[test]
    fn a_warm_up_is_steps_or_a_share() {
        let warmup = |value: &str| {
            let text = format!("train.warmup={value}");
            let config = Config::parse(SMALL, &[text]).unwrap();
            assert_eq!(
                Config::parse(&config.to_toml().unwrap(), &[]).unwrap(),
                config
            );
            config.train.warmup.steps(200)
        };
        assert_eq!((warmup("7"), warmup("0.05"), warmup("0")), (7, 10, 0));
    }

    #[test]
    fn mistakes_are_named() {
        let check = |more: &str, overrides: &[&str], expect: &str| {
            let overrides: Vec<_> = overrides.iter().map(ToString::to_string).collect();
            let error = format!(
                "{:#}",
                Config::parse(&format!("{SMALL}{more}"), &overrides).unwrap_err()
            );
            assert!(error.contains(expect), "{error}");
        };
        check(
            "[train]\nlearning_rat=1\n",
            &[],
            "unknown key `train.learning_rat`",
        );
        check("[train]\nwarm_up=1\n", &[], "did you mean `warmup`?");
        check("[trian]\nlr=1\n", &[], "did you mean `train`?");
        check("", &["train.lr=-1"], "train.lr = -1");
        check("", &["train.batch=0"], "train.batch = 0");
        check("", &["mode=scratch"], "needs a section [model]");
        check("", &["mode=loar"], "loar");
        check(
            "",
            &["mode=scratch", "model.preset=gpt2-142m"],
            "model: there is no preset `gpt2-142m`: did you mean `gpt2-124m`?",
        );
        check("", &["name=../x"], "a run's name");
        check(
            "",
            &["data.weights=[1.0, 2.0]"],
            "2 numbers for the 1 entries",
        );
        check("", &["data.weights=[-1.0]"], "0 to 1000");
        check("", &["lora.rank=0"], "lora.rank = 0");
        check("", &["train.warmup=1.5"], "a share of all below 1");
        check("", &["train.warmup=-1"], "steps as a whole number");
        check("", &["train.schedule=step"], "`wsd`");
        check("", &["train.decay_share=0"], "train.decay_share = 0");
        check(
            "",
            &["train.decay_shape=exponential", "train.min_lr_ratio=0"],
            "never gets there",
        );
        check("", &["train.optimizer=muon"], "for whole matrices");
        check("", &["train.momentum=1"], "train.momentum = 1");
        check("", &["train.keep_last=0"], "train.keep_last = 0");
        check("", &["train.patience=2"], "needs data.valid");
        check(
            "",
            &["train.patience=2", "data.valid=['v']"],
            "train.eval_every",
        );
        check("", &["train.min_delta=-1"], "train.min_delta = -1");
        check("", &["train.spike=0.5"], "train.spike = 0.5");
        check("", &["samples.max_tokens=9"], "prompts");
        check(
            "[samples]\nprompts=['a']\n",
            &["samples.max_tokens=0"],
            "samples.max_tokens = 0",
        );
        check(
            "[samples]\nprompts=['a']\n",
            &["samples.temperature=-1"],
            "samples.temperature = -1",
        );
        check("", &["device=tpu"], "\"gpu:N\"");
        check("", &["train.dtype=f8"], "f8");
        check("", &["lora.dropout=1.0"], "lora.dropout = 1");
        check("", &["lora.base='q5_0'"], "`q4_0`");
        check("", &["lora.dropot=0.1"], "did you mean `dropout`?");
        check("", &["qat.format='q5_0'"], "`q4_0`");
        check("", &["qat.format='f32'"], "loses nothing");
        check("", &["qat.start_step=1"], "format");
        check(
            "",
            &["qat.format='q4_0'", "lora.dropout=0.1"],
            "lora.dropout = 0.1: with [qat]",
        );
        check("", &["qat.format='q4_0'", "lora.base='q8_0'"], "lora.base");
    }
}
