//! `fledgling train`: fine-tunes a model, or trains one from scratch, through Burn.
//!
//! A run goes from a [`config::Config`] over rows ([`data`]) and a [`model::Transformer`] ([`start`]) through the loop
//! ([`fit`]) to a folder that [`crate::run`] reads.

pub mod bench;
pub mod checkpoint;
pub mod checkpoints;
pub mod composed;
pub mod config;
pub mod continuing;
pub mod data;
pub mod device;
pub mod dropout;
pub mod find_lr;
pub mod fit;
pub mod frozen;
pub mod kernels;
pub mod lora;
pub mod loss;
pub mod mirror;
pub mod model;
pub mod ops;
pub mod optim;
pub mod plan;
pub mod probe;
pub mod progress;
pub mod qat;
pub mod recompute;
pub mod resume;
pub mod samples;
pub mod scoring;
pub mod selftest;
pub mod shape;
pub mod start;
pub mod steps;
pub mod stream;
pub mod watch;

use crate::{
    adapter, advice,
    export::QAT_KEY,
    files::{STAGED_PREFIX, STAGED_SUFFIX, write_whole},
    interrupt, model as models,
    output::{note, print, print_json},
    profile::{self, Gatherer, PROFILE_FILE, Profile},
    remote,
    run::{self, Base, HEADER_FILE, LoraSize, Parameters, RECORD_FILE, Record, header_bytes},
};
use anyhow::{Context, Result, bail, ensure};
use burn::tensor::{Device, Tensor, TensorData};
use checkpoint::State;
use checkpoints::Checkpoints;
use config::{Config, Mode};
use continuing::Continuation;
use data::Rows;
use find_lr::Sweep;
use fit::{Fit, Outcome};
use fledgling_core::{
    gguf::Metadata,
    model::ModelInfo,
    spec::{ModelSpec, TensorEntry},
};
use fledgling_data::config::Split;
use mirror::Mirror;
use model::{LoraSpec, Transformer};
use plan::Plan;
use progress::{Reporter, Tui, View};
use qat::Qat;
use samples::Samples;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Fine-tune a model on chats or text, or train one from scratch
#[derive(Debug, Clone, clap::Args)]
#[command(
    after_help = "Examples:\n  fledgling train examples/quickstart/train.toml\n  fledgling train mine.toml --set train.lr=2e-4 --set name=second\n  \
    fledgling train mine.toml --resume\n  fledgling train mine.toml --dry-run\n  fledgling train mine.toml --find-lr\n  \
    fledgling train --continue-from runs/mine --dry-run\n\nWrites runs/NAME/, which export, eval, generate, chat and serve take as a model. Paths in the config are relative to \
    the current folder.\nCtrl-C writes a checkpoint and ends with status 130; --resume goes on from there."
)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "the switches of a command line"
)]
pub struct TrainArgs {
    /// The run's description
    #[arg(value_name = "CONFIG.toml", required_unless_present = "continue_from")]
    pub config: Option<PathBuf>,
    /// Override a key of the config
    #[arg(long, value_name = "KEY=VALUE", value_parser = crate::cli::key_value)]
    pub set: Vec<String>,
    /// Go on with an interrupted run
    #[arg(long)]
    pub resume: bool,
    /// Begin a new run with the best weights of this one (RUN, RUN@last, RUN@step-N), its config and what its figures suggest
    #[arg(long, value_name = "RUN", conflicts_with = "resume")]
    pub continue_from: Option<String>,
    /// Leave the config as it is (with --continue-from)
    #[arg(long, requires = "continue_from")]
    pub no_advice: bool,
    /// Replace a run of the same name
    #[arg(long, conflicts_with = "resume")]
    pub force: bool,
    /// Read everything, say what would be done and what it would take, and leave nothing behind
    #[arg(long)]
    pub dry_run: bool,
    /// Without the few steps that measure time and memory (with --dry-run)
    #[arg(long, requires = "dry_run")]
    pub no_trial: bool,
    /// Look for a learning rate in so many steps, and leave nothing behind
    #[arg(long, value_name = "STEPS", num_args = 0..=1, default_missing_value = "100", conflicts_with_all = ["resume", "dry_run", "until"], value_parser = clap::value_parser!(u16).range(10..=10_000))]
    pub find_lr: Option<u16>,
    /// Stop after this step with a checkpoint, as Ctrl-C would
    #[arg(long, value_name = "STEP")]
    pub until: Option<u64>,
    /// Show the run on the whole terminal
    #[arg(long, value_enum, value_name = "WHEN", default_value = "auto")]
    pub tui: Tui,
    /// Show nothing while it trains
    #[arg(long, short)]
    pub quiet: bool,
    /// Train on a GPU that failed its self-test: its results may be wrong
    #[arg(long)]
    pub trust_device: bool,
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
    let (mut config, continuation) = config_of(args)?;
    config.trust_device = args.trust_device;
    if config.device != device::Choice::Cpu {
        probe::without_display();
    }
    set_threads(config.threads);
    let folder = config.run_dir();
    let only_looks = args.dry_run || args.find_lr.is_some();
    let mirror = config.mirror()?;
    if !args.resume && !args.force && !only_looks && resume::is_begun(&folder) {
        bail!(
            "the run {} is there already: go on with --resume, replace it with --force, or choose another name",
            folder.display()
        );
    }
    if let Some(mirror) = mirror.filter(|_| !args.resume && !args.force && !only_looks) {
        mirror.refuse_begun()?;
    }
    let base = open_base(&config)?;
    let mut prepared = prepare(config, &base)?;
    prepared.view = view;
    if args.dry_run {
        let mut plan = prepared.plan(!args.no_trial)?;
        plan.continuation = continuation;
        return print_json_or(args.json, &plan, || plan::describe(&plan));
    }
    if let Some(n_steps) = args.find_lr {
        let sweep = prepared.find_lr(n_steps.into())?;
        return print_json_or(args.json, &sweep, || find_lr::describe(&sweep));
    }
    if let Some(continuation) = &continuation {
        note(continuing::describe(continuation).trim_end());
    }
    let outcome = prepared.train(args.resume, args.until)?;
    print_json_or(args.json, &outcome, || describe_outcome(&outcome))?;
    if outcome.interrupted {
        interrupt::leave();
    }
    Ok(())
}

/// The config of a run, and how it goes on from another, if it does.
fn config_of(args: &TrainArgs) -> Result<(Config, Option<Continuation>)> {
    let file = args.config.as_deref();
    if let Some(run) = &args.continue_from {
        let continuation = continuing::plan(run, file, &args.set, !args.no_advice)?;
        return Ok((continuation.config.clone(), Some(continuation)));
    }
    let file = file.context("give the run's description, CONFIG.toml")?;
    Ok((Config::load(file, &args.set)?, None))
}

fn print_json_or(json: bool, value: &impl Serialize, text: impl FnOnce() -> String) -> Result<()> {
    if json {
        print_json(value)
    } else {
        print(&text())
    }
}

/// Sets how many threads training's kernels use, and makes the pool of Burn's own CPU operations. Of the latter a
/// process has one: a second call changes nothing there.
pub fn set_threads(n_threads: usize) {
    fledgling_kernels::threads::set_threads(n_threads);
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

    let chosen = device::choose(config.device, config.train.dtype, config.trust_device)?;
    note(format!("device: {}: {}", chosen.name, chosen.why));
    chosen.check_sizes(&spec, config.train.batch, max_tokens)?;
    let device = chosen.device.clone().autodiff();
    let mut config = config;
    let record = record_of(&config, base)?;
    let (model, lora) = build(&mut config, &spec, base, &record.base.sha256, &device)?;
    let record = Record {
        lora: lora.as_ref().map(|(size, _)| *size),
        device: Some(format!("{}: {}", chosen.name, chosen.why)),
        ..record
    };
    let header = header_bytes(&spec, run_metadata(&config, base, &spec))?;
    let origin = resume::origin(&record.base.sha256, &train, &valid);
    let samples = config
        .samples
        .as_ref()
        .map(|samples| Samples::new(samples, &base.info, spec.n_ctx))
        .transpose()?;
    let pad = base.info.tokenizer.eos().unwrap_or(0);
    let qat = config
        .qat
        .as_ref()
        .map(|qat| Qat::new(&spec, qat.format))
        .transpose()?;
    let folder = config.run_dir();
    Ok(Prepared {
        fit: Fit {
            config,
            folder,
            record,
            train,
            valid,
            lora,
            qat,
            pad,
            samples,
            origin,
            device,
        },
        model,
        header,
        view: View::default(),
    })
}

/// The size of a run's LoRA and the matrices that it is on.
type LoraPlan = (LoraSize, Vec<TensorEntry>);

/// The model that a run begins with; what `lora.init` says of the LoRA goes into the config.
fn build(
    config: &mut Config,
    spec: &ModelSpec,
    base: &models::Model,
    base_sha256: &str,
    device: &Device,
) -> Result<(Transformer, Option<LoraPlan>)> {
    let values = match config.mode {
        Mode::Scratch => start::random_parameters(spec, config.seed),
        Mode::Full => start::parameters_of(&base.gguf, spec)?,
        Mode::Lora => return build_lora(config, spec, base, base_sha256, device),
    };
    Ok((Transformer::new(spec, values, None, device)?, None))
}

fn build_lora(
    config: &mut Config,
    spec: &ModelSpec,
    base: &models::Model,
    base_sha256: &str,
    device: &Device,
) -> Result<(Transformer, Option<LoraPlan>)> {
    let seed = config.seed;
    let mut lora = config.lora.take().unwrap_or_default();
    let (additions, entries) = match lora.init.clone() {
        Some(path) => start::initial_adapter(&path, spec, base_sha256, &mut lora)?,
        None => {
            let entries = start::lora_entries(spec, &lora)?;
            let additions = start::lora_parameters(&entries, lora.size().rank, seed);
            (additions, entries)
        }
    };
    let size = lora.size();
    let small = start::too_small_for(&entries, size.rank);
    if let Some(first) = small.first() {
        note(format!(
            "lora.rank = {}: more than the smaller side of {} of {} matrices (`{first}`), which gains nothing there",
            size.rank,
            small.len(),
            entries.len()
        ));
    }
    let (mut values, frozen) = start::frozen_base(&base.gguf, spec, lora.base, device)?;
    values.extend(additions);
    let common = LoraSpec {
        size,
        dropout: lora.dropout,
    };
    config.lora = Some(lora);
    let model = Transformer::with_frozen(spec, values, frozen, Some(&common), device)?;
    Ok((model, Some((size, entries))))
}

fn read_rows(paths: &[PathBuf], split: Split, info: &ModelInfo, max_tokens: usize) -> Result<Rows> {
    let local = |path: &PathBuf| match path.to_str() {
        Some(text) if remote::is_url(text) => remote::local_copy(text),
        _ => Ok(path.clone()),
    };
    let paths: Vec<_> = paths.iter().map(local).collect::<Result<_>>()?;
    let rows = data::read_split(&paths, split, info, max_tokens)?;
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

fn record_of(config: &Config, base: &models::Model) -> Result<Record> {
    let path = models::locate(&config.base)?;
    let path = path
        .canonicalize()
        .with_context(|| path.display().to_string())?;
    // A folder was converted for this run; what it is made of tells it.
    let sha256 = if path.is_dir() {
        run::identity(&path)?
    } else {
        run::identity(&base.path)?
    };
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
        lora: None,
        device: None,
        qat: config.qat.as_ref().map(|qat| qat.format.name()),
        continued_from: config.continued_from.clone(),
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
    if let Some(qat) = &config.qat {
        metadata.set(QAT_KEY, qat.format.name());
    }
    metadata
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
        let mirror = fit.config.mirror()?;
        if resume && mirror.is_none() {
            resume::check_begun(&fit.folder)?;
        }
        std::fs::create_dir_all(&fit.folder)
            .with_context(|| format!("cannot make the folder {}", fit.folder.display()))?;
        let _lock = crate::runs::lock(&fit.folder)?;
        remove_unfinished(&fit.folder)?;
        let mut is_ahead = false;
        if let Some(mirror) = mirror.as_ref().filter(|_| resume) {
            is_ahead = mirror.fetch_newer(&fit.folder)?;
        }
        let mut state = if resume {
            resume::resume(&fit, model.spec())?
        } else {
            None
        };
        if let Some(state) = &mut state {
            take_kept(&mut fit, state);
            model = with_values(model, std::mem::take(&mut state.parameters))?;
        } else {
            remove_old(&fit.folder)?;
            mirror.as_ref().map_or(Ok(()), Mirror::clear)?;
        }
        write_whole(
            &fit.folder.join(run::CONFIG_FILE),
            fit.config.to_toml()?.as_bytes(),
        )?;
        write_whole(&fit.folder.join(HEADER_FILE), &header)?;
        let profile = profile_of(&fit).to_json()?;
        write_whole(&fit.folder.join(PROFILE_FILE), &profile)?;
        let uploader = mirror.map(|mirror| mirror.begin(&fit)).transpose()?;
        let resumed = state.as_ref().map(|state| state.progress.step);
        let folder = fit.folder.clone();
        let mut reporter = Reporter::open(&fit.folder, resumed, view)?;
        if let (Some(uploader), Some(step), true) = (&uploader, resumed, is_ahead) {
            uploader.offer(step)?;
        }
        let device = fit.device.clone();
        let result = device::guard(&device, || {
            fit.run(model, state, until, &mut reporter, uploader.as_ref())
        });
        let ended = reporter.end(&result);
        if let Err(error) = crate::report::page::write(&folder, None) {
            note(format!("the report could not be written: {error:#}"));
        }
        let uploaded = uploader.map_or(Ok(()), |uploader| {
            let outcome = result.as_ref().ok();
            uploader.finish(
                outcome.map_or(0, |outcome| outcome.step),
                outcome.is_some_and(|outcome| !outcome.interrupted),
            )
        });
        // What ended the training is told first.
        if let (Err(_), Err(error)) = (&result, &uploaded) {
            note(format!("{error:#}"));
        }
        let outcome = result?;
        ended?;
        uploaded?;
        Ok(outcome)
    }

    /// What would be done; with `with_trial`, what a few real steps took.
    ///
    /// # Errors
    /// As [`plan::plan`].
    pub fn plan(self, with_trial: bool) -> Result<Plan> {
        plan::plan(&self.fit, self.model, with_trial)
    }

    /// Sweeps over learning rates.
    ///
    /// # Errors
    /// As [`find_lr::sweep`].
    pub fn find_lr(self, n_steps: usize) -> Result<Sweep> {
        find_lr::sweep(&self.fit, self.model, n_steps)
    }
}

/// What the run learns from, in figures: export takes them into the file.
fn profile_of(fit: &Fit) -> Profile {
    let rows = &fit.train;
    let n_tokens = (0..rows.len())
        .map(|idx| rows.n_tokens_of(idx) as u64)
        .sum();
    let mut gatherer = Gatherer::default();
    for idx in (0..rows.len()).step_by(profile::stride(n_tokens)) {
        let row = rows.row(idx);
        gatherer.add(&row.tokens, &row.counted);
    }
    Profile {
        train_sha256: Some(fit.origin.train.clone()),
        valid_sha256: (!fit.valid.is_empty()).then(|| fit.origin.valid.clone()),
        ..gatherer.finish(rows.len() as u64)
    }
}

/// Takes the record of the weights that were kept. When they are gone, the next evaluation's are kept, whatever its loss.
fn take_kept(fit: &mut Fit, state: &mut State) {
    let there = [run::MODEL_FILE, run::ADAPTER_FILE]
        .iter()
        .any(|name| fit.folder.join(name).is_file());
    match run::read_record(&fit.folder) {
        Ok(record) if there => {
            // The same base may lie elsewhere by now.
            let base = fit.record.base.clone();
            fit.record = Record { base, ..record };
        }
        _ if state.progress.kept_step.is_some() => {
            note(format!(
                "the best weights are not in {} any more: the next evaluation's are kept",
                fit.folder.display()
            ));
            (state.progress.kept_step, state.progress.kept_loss) = (None, None);
        }
        _ => {}
    }
}

/// Gives trained parameters the values of a state.
fn with_values(model: Transformer, mut values: Parameters) -> Result<Transformer> {
    let mut wrong = None;
    model::visit_parameters(&model, |name, value, trained| {
        let fits = values
            .get(name)
            .is_some_and(|found| found.len() == value.shape().num_elements());
        if trained && !fits {
            wrong.get_or_insert_with(|| name.to_owned());
        }
    });
    if let Some(name) = wrong {
        bail!("the checkpoint lacks the parameter `{name}`, or has it in another size");
    }
    Ok(model::update_parameters(model, |name, old, _| {
        let values = values.remove(name).unwrap_or_default();
        let n = values.len();
        Tensor::from_data(TensorData::new(values, [n]), &old.device())
    }))
}

/// Removes what an earlier run of this name left, so that nothing of it is mistaken for this one's.
fn remove_old(folder: &Path) -> Result<()> {
    for file in [
        RECORD_FILE,
        advice::ADVICE_FILE,
        run::MODEL_FILE,
        run::ADAPTER_FILE,
        adapter::CONFIG_FILE,
        checkpoint::STATE_FILE, // of versions without checkpoints
    ] {
        match std::fs::remove_file(folder.join(file)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error)
                    .with_context(|| format!("cannot remove {}", folder.join(file).display()));
            }
            _ => {}
        }
    }
    Checkpoints::of(folder).clear()
}

/// Removes what a killed process left half written.
fn remove_unfinished(folder: &Path) -> Result<()> {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(STAGED_PREFIX) && name.ends_with(STAGED_SUFFIX) {
            std::fs::remove_file(entry.path())
                .with_context(|| format!("cannot remove {}", entry.path().display()))?;
        }
    }
    mirror::tidy(folder)?;
    Checkpoints::of(folder).tidy()
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
    if outcome.stopped_early {
        text += "stopped early: the held-out loss became no better\n";
    }
    let run = outcome.run.display();
    if outcome.interrupted {
        text += &format!("interrupted: go on with fledgling train {run}/config.toml --resume\n");
        return text;
    }
    let advice = advice::of_run(&outcome.run).unwrap_or_default();
    for advice in &advice {
        text += &format!("advice: {} ({})\n", advice.text, advice.figure);
    }
    if advice.iter().any(|advice| !advice.continuing.is_empty()) {
        text += &format!("take it up with fledgling train --continue-from {run}\n");
    }
    text
}
