//! `fledgling eval`: what models can do, side by side. What is measured and how is the crate `fledgling-eval`'s; here are the flags, the
//! opening of models, and what is printed.

#[cfg(feature = "train")]
use crate::train::{device::Choice, probe, scoring::BurnEngine, set_threads};
use crate::{
    advice,
    data::Bars,
    files::write_whole,
    generate::SamplingArgs,
    interrupt,
    model::{self, EngineArgs, Model},
    output::{UsageError, note, print, print_json},
    run,
};
use anyhow::{Context, Result, bail};
use fledgling_core::{cpu::CpuEngine, quant::DType};
use fledgling_data::{
    config::{Source, Split},
    control::Control,
};
#[cfg(feature = "train")]
use fledgling_eval::task::Kind;
use fledgling_eval::{
    advice::{Accuracy, Advice, Figures, Quantised, advise},
    engine::Engine,
    perplexity::{self, Pieces, Windows},
    quality::{self, CHAT_PROMPTS, PROMPTS, Setting},
    reference,
    report::{ModelReport, Report},
    score::{self, Stopped},
    task::{self, Items, TaskConfig, builtin_names},
};
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    time::Instant,
};

/// Measure what models can do: perplexity, tasks, distance to a reference, their own text
#[derive(Debug, clap::Args)]
#[expect(
    clippy::doc_markdown,
    reason = "a command's help shows its lines as they are"
)]
#[command(
    after_help = "Examples:\n  fledgling eval smollm2-135m-instruct --text wiki.txt\n  fledgling eval base.gguf runs/mine --chat valid.jsonl --json\n  \
    fledgling eval q8_0.gguf q4_0.gguf --text wiki.txt --max-windows 20 --reference f16.gguf --report report.html\n  \
    fledgling eval runs/mine --task hellaswag=hellaswag_val.jsonl --task mine.toml --set limit=500\n  \
    fledgling eval base.gguf runs/mine --write --chat-template --report report.html\n\n\
    A row of --chat holds messages, or a prompt and its completion, in any file that `fledgling data prepare` reads; the assistant's tokens are scored, with \
    the token that ends a turn. Every figure comes with its standard error."
)]
pub struct Args {
    /// GGUF files, pulled models' names, or runs' folders
    #[arg(required = true, value_name = "MODEL")]
    models: Vec<String>,
    /// A text file
    #[arg(long, required_unless_present_any = ["chat", "shards", "task", "write"], conflicts_with_all = ["chat", "shards"])]
    text: Option<PathBuf>,
    /// Chat rows
    #[arg(long, value_name = "ROWS.jsonl", conflicts_with = "shards")]
    chat: Option<PathBuf>,
    /// A folder of token shards, as `fledgling data prepare` makes them
    #[arg(long, value_name = "FOLDER")]
    shards: Option<PathBuf>,
    /// Which part of the shards [default: the first of valid, test and train that is there]
    #[arg(long, value_name = "SPLIT", requires = "shards", value_parser = parse_split)]
    split: Option<Split>,
    /// Tokens of a window
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = crate::generate::positive)]
    window: usize,
    /// Tokens between the beginnings of two windows; equal to --window they are disjoint
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = crate::generate::positive)]
    stride: usize,
    /// Only the first N windows (or rows)
    #[arg(long, value_name = "N", value_parser = crate::generate::positive)]
    max_windows: Option<usize>,
    /// A task: a TOML file, or a built-in one (hellaswag, arc_easy, arc_challenge, piqa, winogrande, openbookqa, boolq, lambada, requests) and the file of
    /// its rows; may be repeated
    #[arg(long, value_name = "TASK[=ROWS]")]
    task: Vec<String>,
    /// Change a key of the tasks, for example limit=200
    #[arg(long, value_name = "KEY=VALUE", requires = "task")]
    set: Vec<String>,
    /// Also write how each question was answered, a line of JSON each
    #[arg(long, value_name = "OUT.jsonl", requires = "task")]
    answers: Option<PathBuf>,
    /// Compare the models with this one, token by token, over the text, rows or shards
    #[arg(long, value_name = "MODEL")]
    reference: Option<String>,
    /// Let the models write to prompts, and measure what they write
    #[arg(long)]
    write: bool,
    /// A prompt for --write; may be repeated [default: eight of ours]
    #[arg(long, value_name = "TEXT", requires = "write")]
    prompt: Vec<String>,
    /// Prompts are a user's messages, rendered by the model's chat template
    #[arg(long, requires = "write")]
    chat_template: bool,
    /// Tokens that a model writes at most
    #[arg(long, value_name = "N", default_value_t = 120, value_parser = crate::generate::positive)]
    max_tokens: usize,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Write a page with tables, plots, texts side by side and a blind rating of them
    #[arg(long, value_name = "OUT.html")]
    report: Option<PathBuf>,
    #[command(flatten)]
    engine: EngineArgs,
    /// Where to compute: cpu (the engine that generate and serve have), or through Burn as training does: flex (CPU), gpu, gpu:N, auto
    #[cfg(feature = "train")]
    #[arg(long, value_name = "DEVICE", default_value = "cpu", value_parser = parse_device)]
    device: Device,
    /// Print {"models":[{"model":…,"perplexity":…,"tokens":…,"acc":…}]}
    #[arg(long)]
    json: bool,
}

fn parse_split(text: &str) -> Result<Split, String> {
    match text {
        "train" => Ok(Split::Train),
        "valid" => Ok(Split::Valid),
        "test" => Ok(Split::Test),
        _ => Err("must be train, valid or test".to_owned()),
    }
}

/// Where Burn computes; nothing for the CPU engine.
#[cfg(feature = "train")]
type Device = Option<Choice>;

#[cfg(feature = "train")]
fn parse_device(text: &str) -> Result<Device, String> {
    match text {
        "cpu" => Ok(None),
        "flex" => Ok(Some(Choice::Cpu)),
        _ => text
            .parse()
            .map(Some)
            .map_err(|_| "must be cpu, flex, gpu, gpu:N or auto".to_owned()),
    }
}

/// A model with its engine.
struct Opened {
    model: Model,
    engine: Loaded,
}

enum Loaded {
    Cpu(Box<CpuEngine>),
    #[cfg(feature = "train")]
    Burn(Box<BurnEngine>),
}

impl Opened {
    fn new(name: &str, args: &Args) -> Result<Self> {
        let model = model::open(name)?;
        #[cfg(feature = "train")]
        if let Some(choice) = args.device {
            let engine = BurnEngine::open(&model, choice)?;
            note(format!("{name}: on {}", engine.place()));
            let engine = Loaded::Burn(Box::new(engine));
            return Ok(Self { model, engine });
        }
        let engine = Loaded::Cpu(Box::new(args.engine.load(&model)?));
        Ok(Self { model, engine })
    }

    fn scored(&self) -> score::Model<'_> {
        score::Model {
            name: &self.model.name,
            info: &self.model.info,
            engine: match &self.engine {
                Loaded::Cpu(engine) => Engine::Cpu(engine),
                #[cfg(feature = "train")]
                Loaded::Burn(engine) => Engine::Whole(engine.as_ref()),
            },
        }
    }
}

/// Runs the command.
///
/// # Errors
/// When a model does not load, a text or rows cannot be read, or nothing is left to score.
pub fn run(args: &Args) -> Result<()> {
    check(args)?;
    let tasks = tasks(args)?;
    #[cfg(feature = "train")]
    if let Some(choice) = args.device {
        if args.write || tasks.iter().any(|(task, _)| task.kind == Kind::Generate) {
            return Err(UsageError(
                "only the CPU engine writes (--write, tasks of kind `generate`): leave --device out"
                    .to_owned(),
            )
            .into());
        }
        if choice != Choice::Cpu {
            probe::without_display();
        }
        set_threads(args.engine.n_threads());
    }
    let reference = args.reference.as_ref();
    let reference = reference.map(|name| Opened::new(name, args));
    let reference = reference.transpose()?;
    let control = Bars::begin();
    let measured = measure_all(args, reference.as_ref(), &tasks, &control);
    if measured.as_ref().is_err_and(anyhow::Error::is::<Stopped>) {
        control.clear();
        note("stopped");
        interrupt::leave();
    }
    let mut report = Report {
        setting: setting(args),
        ..Report::default()
    };
    for (main_type, row) in measured? {
        let advised = advise(&figures(main_type, &row));
        keep_advice(args, &row.model, &advised);
        for mut advice in advised {
            if args.models.len() > 1 {
                advice.text = format!("{}: {}", row.model, advice.text);
            }
            report.advice.push(advice);
        }
        report.models.push(row);
    }
    control.clear();
    if let Some(path) = &args.answers {
        write_answers(path, &report)?;
    }
    if let Some(path) = &args.report {
        write_whole(path, report.to_html()?.as_bytes())?;
        note(format!("the report is in {}", path.display()));
    }
    if args.json {
        return print_json(&report.to_json());
    }
    print(&report.to_text())
}

/// What clap cannot see.
fn check(args: &Args) -> Result<()> {
    if args.window < 2 {
        return Err(UsageError(
            "--window must be at least 2: the first token of a window is not scored".to_owned(),
        )
        .into());
    }
    if args.text.is_some() && args.stride > args.window {
        return Err(UsageError(format!(
            "--stride {} is larger than --window {}: tokens in between would be left out",
            args.stride, args.window
        ))
        .into());
    }
    if args.reference.is_some() && !has_text(args) {
        return Err(UsageError(
            "--reference compares over a text: give --text FILE, --chat ROWS.jsonl or --shards FOLDER"
                .to_owned(),
        )
        .into());
    }
    Ok(())
}

fn has_text(args: &Args) -> bool {
    args.text.is_some() || args.chat.is_some() || args.shards.is_some()
}

/// The tasks with their questions, which are the same for all models.
fn tasks(args: &Args) -> Result<Vec<(TaskConfig, Items)>> {
    let of_flag = |flag: &String| {
        // A name of ours, or of a file, may be followed by the rows.
        let is_task =
            |name: &str| builtin_names().any(|known| known == name) || Path::new(name).is_file();
        let (name, rows) = match flag.split_once('=') {
            Some((name, rows)) if is_task(name) => (name, vec![PathBuf::from(rows)]),
            _ => (flag.as_str(), Vec::new()),
        };
        let task = TaskConfig::open(name, &args.set)?;
        if rows.is_empty() && task.files.is_empty() {
            return Err(UsageError(format!(
                "--task {name}: give the file of its rows too, --task {name}=ROWS.jsonl"
            ))
            .into());
        }
        let items = Items::read(&task, &rows)?;
        Ok((task, items))
    };
    args.task.iter().map(of_flag).collect()
}

/// Names and values for the report.
fn setting(args: &Args) -> Vec<(String, String)> {
    let mut setting = Vec::new();
    let mut add = |name: &str, value: String| setting.push((name.to_owned(), value));
    if let Some(path) = &args.text {
        add("text", path.display().to_string());
        add(
            "windows",
            format!("{} tokens, every {}", args.window, args.stride),
        );
    }
    for (name, path) in [("chat rows", &args.chat), ("shards", &args.shards)] {
        if let Some(path) = path {
            add(name, path.display().to_string());
        }
    }
    for task in &args.task {
        add("task", task.clone());
    }
    if args.write {
        let how = if args.sampling.temperature > 0.0 {
            format!(
                "temperature {}, seed {}",
                args.sampling.temperature, args.sampling.seed
            )
        } else {
            "greedy".to_owned()
        };
        add(
            "text of the models",
            format!("{how}, {} tokens at most", args.max_tokens),
        );
    }
    #[cfg(feature = "train")]
    if let Some(choice) = args.device {
        let name = match choice {
            Choice::Cpu => "flex".to_owned(),
            choice => choice.to_string(),
        };
        add("device", format!("{name}, through Burn"));
    }
    add("processor", crate::bench::machine());
    setting
}

/// Each model with the type of most of its bytes. They stay open only where the reference is compared with all of them at once.
fn measure_all(
    args: &Args,
    reference: Option<&Opened>,
    tasks: &[(TaskConfig, Items)],
    control: &dyn Control,
) -> Result<Vec<(Option<DType>, ModelReport)>> {
    let (mut rows, mut compared) = (Vec::new(), Vec::new());
    for name in &args.models {
        let opened = Opened::new(name, args)?;
        if let Some(reference) = reference {
            reference::check_vocabulary(&reference.scored(), &opened.scored())?;
        }
        rows.push((
            main_type(&opened.model),
            measure(args, &opened, tasks, control)?,
        ));
        if reference.is_some() {
            compared.push(opened);
        }
    }
    if let Some(reference) = reference {
        let models: Vec<_> = compared.iter().map(Opened::scored).collect();
        // Of as many positions as all of them have.
        let shortest = compared.iter().chain([reference]);
        let shortest = shortest.min_by_key(|opened| opened.model.info.spec.n_ctx);
        let pieces = pieces(args, &shortest.unwrap_or(reference).model)?;
        let comparisons = reference::compare(&reference.scored(), &models, &pieces, control)?;
        for ((_, row), comparison) in rows.iter_mut().zip(comparisons) {
            row.comparison = Some(comparison);
        }
    }
    Ok(rows)
}

fn measure(
    args: &Args,
    opened: &Opened,
    tasks: &[(TaskConfig, Items)],
    control: &dyn Control,
) -> Result<ModelReport> {
    let model = opened.scored();
    let mut row = ModelReport {
        model: opened.model.name.clone(),
        ..ModelReport::default()
    };
    if has_text(args) {
        let pieces = pieces(args, &opened.model)?;
        if pieces.is_short {
            note(format!(
                "{}: the text is shorter than one window of {} tokens: it is scored as a whole",
                model.name, args.window
            ));
        }
        let started = Instant::now();
        let measured = perplexity::measure(&model, &pieces, control)?;
        row.tokens_per_s = Some(measured.tokens as f64 / started.elapsed().as_secs_f64());
        if measured.too_long > 0 {
            note(format!(
                "{}: {} rows are longer than the context of {} tokens and were left out",
                model.name, measured.too_long, model.info.spec.n_ctx
            ));
        }
        row.perplexity = Some(measured);
    }
    for (task, items) in tasks {
        let result = task::run(&model, task, items, control)?;
        if result.truncated > 0 {
            note(format!(
                "{}: {} of {} questions of {} are longer than the context and lost their beginning",
                model.name, result.truncated, result.items, result.task
            ));
        }
        row.tasks.push(result);
    }
    if args.write {
        row.quality = Some(quality::write_all(&model, &prompts(args), control)?);
    }
    Ok(row)
}

fn prompts(args: &Args) -> Setting {
    let ours = if args.chat_template {
        CHAT_PROMPTS
    } else {
        PROMPTS
    };
    let prompts = if args.prompt.is_empty() {
        ours.map(str::to_owned).to_vec()
    } else {
        args.prompt.clone()
    };
    Setting {
        prompts,
        chat: args.chat_template,
        params: args.sampling.params(Some(args.max_tokens), false),
    }
}

/// What perplexity is measured of.
fn pieces<'a>(args: &Args, model: &'a Model) -> Result<Pieces<'a>> {
    let most = args.max_windows.unwrap_or(usize::MAX);
    let info = &model.info;
    if let Some(path) = &args.text {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {} (it must be UTF-8)", path.display()))?;
        if args.window > info.spec.n_ctx {
            bail!(
                "--window {}: {} was made for {} positions; give a smaller --window (and --stride)",
                args.window,
                model.name,
                info.spec.n_ctx
            );
        }
        let cut = Windows {
            window: args.window,
            stride: args.stride,
        };
        return Pieces::of_text(info, &text, cut, most);
    }
    if let Some(folder) = &args.shards {
        return Pieces::of_shards(info, folder, args.split, most);
    }
    let Some(rows) = &args.chat else {
        bail!("give --text FILE, --chat ROWS.jsonl or --shards FOLDER");
    };
    Pieces::of_chat(info, &Source::of(&rows.to_string_lossy()), most)
}

/// What advice is given on.
fn figures(main_type: Option<DType>, row: &ModelReport) -> Figures {
    let quantised = row.comparison.as_ref().zip(main_type);
    let tasks = row.tasks.iter().filter_map(|task| {
        Some(Accuracy {
            task: task.task.clone(),
            acc: task.metric("acc")?,
            chance: task.chance?,
        })
    });
    Figures {
        training: advice::training(Path::new(&row.model)),
        quantised: quantised.map(|(compared, dtype)| Quantised {
            format: dtype.to_string().to_lowercase(),
            kl: compared.kl.mean.value,
            perplexity_ratio: compared.perplexity_ratio.value,
        }),
        general_perplexity: None,
        tasks: tasks.collect(),
        repetition: row.quality.as_ref().map(|quality| quality.repetition),
    }
}

/// The type of most of a model's bytes, if it is a quantised one.
fn main_type(model: &Model) -> Option<DType> {
    let mut bytes: HashMap<DType, u64> = HashMap::new();
    for tensor in &model.gguf.header().tensors {
        *bytes.entry(tensor.dtype).or_default() += tensor.len_bytes;
    }
    let (dtype, _) = bytes.into_iter().max_by_key(|(_, n)| *n)?;
    (!matches!(dtype, DType::F32 | DType::F16 | DType::BF16)).then_some(dtype)
}

/// Leaves the advice with the run that it is about, the model or the reference that the model was made of, for
/// `train --continue-from`.
fn keep_advice(args: &Args, name: &str, advised: &[Advice]) {
    let folders = [Some(name), args.reference.as_deref()];
    let folders = folders.into_iter().flatten().map(model::locate);
    let Some(folder) = folders.flatten().find(|folder| run::is_run_folder(folder)) else {
        return;
    };
    match advice::record(&folder, advised.to_vec()) {
        Ok(()) if advised.iter().any(|advice| !advice.continuing.is_empty()) => note(format!(
            "fledgling train --continue-from {} takes the advice up",
            folder.display()
        )),
        Ok(()) => {}
        Err(error) => note(format!("the advice is not kept: {error:#}")),
    }
}

/// How each question was answered.
fn write_answers(path: &Path, report: &Report) -> Result<()> {
    let mut lines = String::new();
    for model in &report.models {
        for task in &model.tasks {
            for answer in &task.answers {
                let mut line = serde_json::json!({"model": model.model, "task": task.task});
                if let (Some(line), serde_json::Value::Object(fields)) =
                    (line.as_object_mut(), serde_json::to_value(answer)?)
                {
                    line.extend(fields);
                }
                lines.push_str(&line.to_string());
                lines.push('\n');
            }
        }
    }
    write_whole(path, lines.as_bytes())
}
