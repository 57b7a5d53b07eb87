//! `fledgling train`: fine-tunes a model, or trains one from scratch, through Burn.
//!
//! A run goes from a [`config::Config`] over rows ([`data`]) and a [`model::Transformer`] ([`start`]) through the loop
//! ([`fit`]) to a folder that [`crate::run`] reads.

pub mod bench;
pub mod checkpoint;
pub mod config;
pub mod data;
pub mod fit;
pub mod kernels;
pub mod loss;
pub mod model;
pub mod ops;
pub mod optim;
pub mod progress;
pub mod recompute;
pub mod shape;
pub mod start;

use crate::{
    files::write_whole,
    interrupt, model as models,
    output::{note, print, print_json},
    run::{self, Base, HEADER_FILE, LoraSize, Parameters, RECORD_FILE, Record, header_bytes},
};
use anyhow::{Context, Result, bail, ensure};
use burn::tensor::Device;
use config::{Config, Mode};
use data::Rows;
use fit::{Fit, Outcome};
use fledgling_core::{gguf::Metadata, model::ModelInfo, spec::ModelSpec};
use fledgling_data::config::Split;
use model::{LoraSpec, Transformer};
use progress::{Reporter, Tui, View};
use serde_json::json;
use std::path::{Path, PathBuf};

/// Fine-tune a model on chats or text, or train one from scratch
#[derive(Debug, Clone, clap::Args)]
#[command(
    after_help = "Examples:\n  fledgling train examples/quickstart/train.toml\n  fledgling train mine.toml --set train.lr=2e-4 --set name=second\n  \
    fledgling train mine.toml --resume\n\nWrites runs/NAME/, which export, eval, generate, chat and serve take as a model. Paths in the config are relative to \
    the current folder.\nCtrl-C writes a checkpoint and ends with status 130; --resume goes on from there."
)]
pub struct TrainArgs {
    /// The run's description
    #[arg(value_name = "CONFIG.toml")]
    pub config: PathBuf,
    /// Override a key of the config
    #[arg(long, value_name = "KEY=VALUE", value_parser = crate::cli::key_value)]
    pub set: Vec<String>,
    /// Go on with an interrupted run
    #[arg(long)]
    pub resume: bool,
    /// Replace a run of the same name
    #[arg(long, conflicts_with = "resume")]
    pub force: bool,
    /// Read everything, say what would be done, and train nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Stop after this step with a checkpoint, as Ctrl-C would
    #[arg(long, value_name = "STEP")]
    pub until: Option<u64>,
    /// Show the run on the whole terminal
    #[arg(long, value_enum, value_name = "WHEN", default_value = "auto")]
    pub tui: Tui,
    /// Show nothing while it trains
    #[arg(long, short)]
    pub quiet: bool,
    /// Print the outcome as one line of JSON
    #[arg(long)]
    pub json: bool,
}

/// Runs the command.
///
/// # Errors
/// Wrong config, data or base; a loss that is no number; files that cannot be written.
pub fn run(args: &TrainArgs) -> Result<()> {
    let view = View::of(args.tui, args.quiet)?;
    let config = Config::load(&args.config, &args.set)?;
    set_threads(config.threads);
    let folder = config.run_dir();
    if !args.resume && !args.force && !args.dry_run && folder.join(RECORD_FILE).exists() {
        bail!(
            "the run {} is there already: go on with --resume, replace it with --force, or choose another name",
            folder.display()
        );
    }
    let base = open_base(&config)?;
    let mut prepared = prepare(config, &base)?;
    prepared.view = view;
    if args.dry_run {
        return print_json_or(args.json, &prepared.plan(), || prepared.describe());
    }
    let outcome = prepared.train(args.resume, args.until)?;
    print_json_or(args.json, &serde_json::to_value(&outcome)?, || {
        describe_outcome(&outcome)
    })?;
    if outcome.interrupted {
        std::process::exit(interrupt::INTERRUPTED);
    }
    Ok(())
}

fn print_json_or(
    json: bool,
    value: &serde_json::Value,
    text: impl FnOnce() -> String,
) -> Result<()> {
    if json {
        print_json(value)
    } else {
        print(&text())
    }
}

/// Makes the thread pool that Burn's CPU backend uses. A process has one: a second call changes nothing.
pub fn set_threads(n_threads: usize) {
    // Fails only when the pool is there already.
    let _ = rayon::ThreadPoolBuilder::new()
        .num_threads(n_threads)
        .build_global();
}

/// The model to start from; for a run from scratch a `tokenizer.json` is enough.
///
/// # Errors
/// When it is not there, or is no model and weights are wanted of it.
pub fn open_base(config: &Config) -> Result<models::Model> {
    let path = Path::new(&config.base);
    if path.extension().is_none_or(|ending| ending != "json") {
        return models::open(&config.base);
    }
    ensure!(
        config.mode == Mode::Scratch,
        "base = {:?} is a tokenizer without weights: that is enough for mode = \"scratch\" only",
        config.base
    );
    models::open_tokenizer(path)
}

/// A run that is ready to train.
#[derive(Debug)]
pub struct Prepared {
    fit: Fit,
    model: Transformer,
    header: Vec<u8>,
    /// How it is shown.
    pub view: View,
}

/// Reads rows and weights, and builds the model of a run.
///
/// # Errors
/// What does not fit, by key, file or tensor.
pub fn prepare(config: Config, base: &models::Model) -> Result<Prepared> {
    let spec = match &config.model {
        Some(model) => model.spec(base.info.tokenizer.vocab_size()),
        None => base.info.spec.clone(),
    };
    spec.validate()?;
    start::check_context(&spec, config.data.max_tokens)?;
    let max_tokens = config.data.max_tokens;
    let mut train = read_rows(&config.data.train, Split::Train, &base.info, max_tokens)?;
    if !config.data.weights.is_empty() {
        train.mix(&config.data.weights);
        ensure!(
            train.n_shown() > 0,
            "data.weights leaves no row of data.train"
        );
    }
    ensure!(
        !train.is_empty(),
        "data.train: the files hold no row to learn from"
    );
    let valid = read_rows(&config.data.valid, Split::Valid, &base.info, max_tokens)?;
    ensure!(
        valid.is_empty() == config.data.valid.is_empty(),
        "data.valid: the files hold no row to measure on"
    );

    let device = Device::flex().autodiff();
    let mut values = match config.mode {
        Mode::Scratch => start::random_parameters(&spec, config.seed),
        Mode::Full | Mode::Lora => start::parameters_of(&base.gguf, &spec)?,
    };
    let lora = lora_of(&config, &spec)?;
    if let Some((size, entries)) = &lora {
        values.extend(start::lora_parameters(entries, size.rank, config.seed));
    }
    let lora_spec = lora.as_ref().map(|(size, _)| LoraSpec {
        rank: size.rank,
        alpha: size.alpha,
    });
    let model = Transformer::new(&spec, values, lora_spec.as_ref(), &device)?;
    let record = record_of(&config, base, lora.as_ref().map(|(size, _)| *size))?;
    let header = header_bytes(&spec, run_metadata(&config, base, &spec))?;
    let fingerprint = fingerprint(&config, &record, &train)?;
    let pad = base.info.tokenizer.eos().unwrap_or(0);
    let folder = config.run_dir();
    Ok(Prepared {
        fit: Fit {
            config,
            folder,
            record,
            train,
            valid,
            lora,
            pad,
            fingerprint,
            device,
        },
        model,
        header,
        view: View::default(),
    })
}

fn lora_of(
    config: &Config,
    spec: &ModelSpec,
) -> Result<Option<(LoraSize, Vec<fledgling_core::spec::TensorEntry>)>> {
    if config.mode != Mode::Lora {
        return Ok(None);
    }
    let lora = config.lora.clone().unwrap_or_default();
    Ok(Some((
        LoraSize {
            rank: lora.rank,
            alpha: lora.alpha,
        },
        start::lora_entries(spec, &lora)?,
    )))
}

fn read_rows(paths: &[PathBuf], split: Split, info: &ModelInfo, max_tokens: usize) -> Result<Rows> {
    let rows = data::read_split(paths, split, info, max_tokens)?;
    if rows.n_truncated > 0 {
        note(format!(
            "{} rows were longer than data.max_tokens = {max_tokens} and lost their end",
            rows.n_truncated
        ));
    }
    if rows.n_dropped > 0 {
        note(format!(
            "{} rows were left out: nothing of their answers is within data.max_tokens = {max_tokens}",
            rows.n_dropped
        ));
    }
    Ok(rows)
}

fn record_of(config: &Config, base: &models::Model, lora: Option<LoraSize>) -> Result<Record> {
    let path = models::locate(&config.base)?;
    ensure!(
        lora.is_none() || path.is_file(),
        "{} is a folder, and a LoRA refers to its base as a GGUF file: export it first (`fledgling export {} --quant f16 -o BASE.gguf`)",
        path.display(),
        config.base
    );
    let path = path
        .canonicalize()
        .with_context(|| path.display().to_string())?;
    let sha256 = run::sha256_hex(&fledgling_lambda::mapped_file(&base.path)?);
    let mode = match config.mode {
        Mode::Scratch => "scratch",
        Mode::Full => "full",
        Mode::Lora => "lora",
    };
    Ok(Record {
        format: run::FORMAT,
        name: config.name.clone(),
        mode: mode.to_owned(),
        base: Base {
            name: config.base.clone(),
            path,
            sha256,
        },
        lora,
        step: 0,
        valid_perplexity_before: None,
        valid_perplexity: None,
    })
}

/// The base's keys with the spec of this run, and where the model comes from.
fn run_metadata(config: &Config, base: &models::Model, spec: &ModelSpec) -> Metadata {
    let mut metadata = Metadata::default();
    let own_prefix = format!("{}.", base.info.spec.family.name());
    for (key, value) in base
        .gguf
        .header()
        .metadata
        .iter()
        .filter(|(key, _)| !key.starts_with(&own_prefix))
    {
        metadata.set(key, value.clone());
    }
    metadata.extend(spec.to_metadata());
    metadata.set("general.name", config.name.clone());
    if config.mode == Mode::Scratch {
        for key in [
            "general.basename",
            "general.size_label",
            "general.finetune",
            "general.description",
            "general.license",
        ] {
            metadata.remove(key);
        }
    } else {
        metadata.set("fledgling.base_model", base.info.name.clone());
    }
    metadata
}

/// What decides the next step of a resumed run: the config without what may change, the base, and the rows.
fn fingerprint(config: &Config, record: &Record, train: &Rows) -> Result<String> {
    let mut config = config.clone();
    (
        config.train.eval_every,
        config.train.save_every,
        config.threads,
    ) = (0, 0, 0);
    config.runs_dir = PathBuf::new();
    let rows: Vec<_> = train
        .rows
        .iter()
        .map(|row| (&row.tokens, &row.counted))
        .collect();
    let hashes: Vec<_> = train.file_hashes().collect();
    let base = &record.base.sha256;
    // Runs without prepared data keep the fingerprint that they had.
    let all = if hashes.is_empty() {
        json!([config, base, rows])
    } else {
        json!([config, base, rows, hashes])
    };
    Ok(run::sha256_hex(&serde_json::to_vec(&all)?))
}

impl Prepared {
    /// Trains, and leaves the run's folder behind; stops after step `until` as if interrupted.
    ///
    /// # Errors
    /// As [`Fit::run`].
    pub fn train(self, resume: bool, until: Option<u64>) -> Result<Outcome> {
        let Self {
            mut fit,
            mut model,
            header,
            view,
        } = self;
        std::fs::create_dir_all(&fit.folder)
            .with_context(|| format!("cannot make the folder {}", fit.folder.display()))?;
        let _lock = crate::runs::lock(&fit.folder)?;
        let state = if resume {
            Some(fit::resume(&fit)?)
        } else {
            None
        };
        if let Some(state) = &state {
            fit.record = run::read_record(&fit.folder).unwrap_or(fit.record);
            model = with_values(model, &state.parameters)?;
        } else {
            remove_old(&fit.folder)?;
        }
        write_whole(
            &fit.folder.join(run::CONFIG_FILE),
            fit.config.to_toml()?.as_bytes(),
        )?;
        write_whole(&fit.folder.join(HEADER_FILE), &header)?;
        let resumed = state.as_ref().map(|state| state.progress.step);
        let folder = fit.folder.clone();
        let mut reporter = Reporter::open(&fit.folder, resumed, view)?;
        let result = fit.run(model, state.as_ref(), until, &mut reporter);
        let ended = reporter.end(&result);
        if let Err(error) = crate::report::page::write(&folder, None) {
            note(format!("the report could not be written: {error:#}"));
        }
        let outcome = result?;
        ended?;
        Ok(outcome)
    }

    /// What would be done, for machines.
    pub fn plan(&self) -> serde_json::Value {
        let spec = self.model.spec();
        let mut n_parameters = 0;
        model::visit_parameters(&self.model, |_, value, _| {
            n_parameters += value.shape().num_elements();
        });
        let n_trained = fit::count_trained(&self.model);
        let rows = &self.fit.train;
        let positions: usize = (0..rows.len()).map(|idx| rows.n_tokens_of(idx) - 1).sum();
        json!({
            "run": self.fit.folder,
            "architecture": spec.family.name(),
            "parameters": n_parameters,
            "trained_parameters": n_trained,
            "rows": rows.len(),
            "tokens": positions,
            "counted_tokens": self.fit.train.n_counted(),
            "valid_rows": self.fit.valid.len(),
            "valid_counted_tokens": self.fit.valid.n_counted(),
            "steps": fit::n_steps(&self.fit.config, self.fit.train.n_shown()),
            // Weights, and a gradient and two moments for each trained one; activations come on top.
            "weights_and_optimizer_bytes": 4 * (n_parameters + 3 * n_trained),
        })
    }

    fn describe(&self) -> String {
        let plan = self.plan();
        let lines = plan
            .as_object()
            .into_iter()
            .flatten()
            .map(|(key, value)| format!("{key}: {value}\n"));
        lines.collect()
    }
}

/// Gives trained parameters the values of a state.
fn with_values(model: Transformer, values: &Parameters) -> Result<Transformer> {
    let expected = model::trained_parameters(&model);
    for (name, value) in &expected {
        ensure!(
            values
                .get(name)
                .is_some_and(|found| found.len() == value.len()),
            "the state lacks the parameter `{name}`, or has it in another size"
        );
    }
    Ok(model::update_parameters(model, |name, old, _| {
        let values = values[name].clone();
        let n = values.len();
        burn::tensor::Tensor::from_data(burn::tensor::TensorData::new(values, [n]), &old.device())
    }))
}

/// Removes what an earlier run of this name left, so that nothing of it is mistaken for this one's.
fn remove_old(folder: &std::path::Path) -> Result<()> {
    for file in [
        RECORD_FILE,
        run::MODEL_FILE,
        run::ADAPTER_FILE,
        checkpoint::STATE_FILE,
    ] {
        match std::fs::remove_file(folder.join(file)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error)
                    .with_context(|| format!("cannot remove {}", folder.join(file).display()));
            }
            _ => {}
        }
    }
    Ok(())
}

fn describe_outcome(outcome: &Outcome) -> String {
    let mut text = format!(
        "{}: step {} of {}",
        outcome.run.display(),
        outcome.step,
        outcome.steps
    );
    if let (Some(before), Some(after)) = (outcome.valid_perplexity_before, outcome.valid_perplexity)
    {
        text += &format!(
            ", held-out perplexity {before:.3} -> {after:.3} (step {})",
            outcome.kept_step
        );
    }
    text += &format!(
        ", {:.0} s, {:.0} tokens/s\n",
        outcome.seconds, outcome.tokens_per_s
    );
    if outcome.interrupted {
        text += "interrupted: go on with --resume\n";
    }
    text
}
