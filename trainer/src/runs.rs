//! `fledgling runs`: what was trained here, how it went, and what made the difference.

use crate::{
    files::write_whole,
    output::{UsageError, print, print_json},
    report::{
        self,
        history::History,
        overview::Overview,
        text::{date, duration, memory, one_line, perplexity, short, thousands},
    },
    run::{CONFIG_FILE, METRICS_FILE, RECORD_FILE},
};
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fs::{File, TryLockError},
    io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Held by the process that trains a run.
const LOCK_FILE: &str = ".lock";
/// Whoever lists runs touches a lock this long at most.
const LOCK_PATIENCE: Duration = Duration::from_millis(500);

/// List, show, compare and report training runs
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    what: Option<What>,
    #[command(flatten)]
    at: Where,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    List(ListArgs),
    Show(ShowArgs),
    Compare(CompareArgs),
    Report(ReportArgs),
}

/// List the runs in a folder, the newest first
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  fledgling runs list --dir runs --json")]
struct ListArgs {
    #[command(flatten)]
    at: Where,
}

/// Show one run: its figures, its machine, its last validations and texts
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  fledgling runs show quickstart")]
struct ShowArgs {
    /// A run's name, or its folder
    run: String,
    #[command(flatten)]
    at: Where,
}

/// Show what differs between runs: keys of their configs, and results
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  fledgling runs compare first second --html compare.html\n\nOf the configs only the keys that differ are shown."
)]
struct CompareArgs {
    /// Names of runs, or their folders
    #[arg(required = true, num_args = 2.., value_name = "RUN")]
    runs: Vec<String>,
    /// Write a page with the loss curves over each other
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    #[command(flatten)]
    at: Where,
}

/// Write the report of a run as one HTML file
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  fledgling runs report quickstart -o quickstart.html\n\nTraining writes report.html into the run's folder at its end; this makes it anew at any time, also while it trains."
)]
struct ReportArgs {
    /// A run's name, or its folder
    run: String,
    /// The file; report.html in the run's folder when not given
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    at: Where,
}

// Without a doc comment: it would replace those of the commands that it is part of.
#[derive(Debug, clap::Args)]
struct Where {
    /// The folder of runs
    #[arg(long, value_name = "FOLDER", default_value = "runs")]
    dir: PathBuf,
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// When there is no such run, or a file cannot be written.
pub fn run(args: &Args) -> Result<()> {
    match &args.what {
        None => list(&args.at),
        Some(What::List(args)) => list(&args.at),
        Some(What::Show(args)) => show(args),
        Some(What::Compare(args)) => compare(args),
        Some(What::Report(args)) => write_report(args),
    }
}

/// Every run in a folder, the newest first. Folders that hold nothing of a run are passed over.
///
/// # Errors
/// When the folder cannot be read.
pub fn all(dir: &Path) -> Result<Vec<Overview>> {
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => bail!(
            "there is no folder {}: train something, or name the folder of runs with --dir",
            dir.display()
        ),
        entries => entries.with_context(|| format!("cannot read {}", dir.display()))?,
    };
    let folders = entries.flatten().map(|entry| entry.path());
    let mut runs: Vec<_> = folders
        .filter(|folder| holds_a_run(folder))
        .map(|folder| Overview::read(&folder))
        .collect();
    runs.sort_by(|a, b| {
        let started = |run: &Overview| run.started.unwrap_or(0.0);
        started(b)
            .total_cmp(&started(a))
            .then_with(|| a.folder.cmp(&b.folder))
    });
    Ok(runs)
}

fn holds_a_run(folder: &Path) -> bool {
    [RECORD_FILE, CONFIG_FILE, METRICS_FILE]
        .iter()
        .any(|file| folder.join(file).is_file())
}

/// The folder of a run that is given by name or by path.
fn find(dir: &Path, run: &str) -> Result<PathBuf> {
    let candidates = [dir.join(run), PathBuf::from(run)];
    if let Some(folder) = candidates.into_iter().find(|folder| holds_a_run(folder)) {
        return Ok(folder);
    }
    let names = std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| holds_a_run(&entry.path()))
        .filter_map(|entry| entry.file_name().into_string().ok());
    let near = names
        .map(|name| (strsim::jaro_winkler(&name, run), name))
        .filter(|(likeness, _)| *likeness > 0.7)
        .max_by(|a, b| a.0.total_cmp(&b.0));
    let hint = match near {
        Some((_, name)) => format!("did you mean `{name}`?"),
        None => "`fledgling runs` lists what is there".to_owned(),
    };
    Err(UsageError(format!(
        "there is no run `{run}` in {}: {hint}",
        dir.display()
    ))
    .into())
}

fn list(args: &Where) -> Result<()> {
    let runs = all(&args.dir)?;
    if args.json {
        return print_json(&json!({ "runs": runs }));
    }
    if runs.is_empty() {
        return print(&format!("no runs in {}\n", args.dir.display()));
    }
    let mut rows = vec![
        [
            "NAME",
            "MODE",
            "BASE",
            "STEP",
            "STATE",
            "PERPLEXITY",
            "STARTED (UTC)",
            "TIME",
        ]
        .map(str::to_owned)
        .to_vec(),
    ];
    rows.extend(runs.iter().map(row));
    let mut text = table(&rows);
    for run in &runs {
        if let Some(reason) = &run.reason {
            text += &format!(
                "{}: {}: {}\n",
                one_line(&run.name),
                run.state.text(),
                one_line(reason)
            );
        }
    }
    print(&text)
}

fn row(run: &Overview) -> Vec<String> {
    let dash = || "–".to_owned();
    vec![
        one_line(&run.name),
        run.mode.as_deref().map_or_else(dash, one_line),
        run.base
            .as_deref()
            .map_or_else(dash, |base| shorten(&one_line(base), 32)),
        steps(run),
        run.state.text().to_owned(),
        change(run).unwrap_or_else(dash),
        run.started.map_or_else(dash, date),
        run.seconds.map_or_else(dash, duration),
    ]
}

fn steps(run: &Overview) -> String {
    match run.steps {
        Some(steps) => format!("{}/{steps}", run.step),
        None => run.step.to_string(),
    }
}

/// `33.1 → 12.4`
fn change(run: &Overview) -> Option<String> {
    match (run.perplexity_before, run.perplexity) {
        (Some(before), Some(after)) => {
            Some(format!("{} → {}", perplexity(before), perplexity(after)))
        }
        (None, Some(after)) => Some(perplexity(after)),
        (Some(before), None) => Some(format!("{} →", perplexity(before))),
        (None, None) => None,
    }
}

/// The end of a long path says more than its beginning.
fn shorten(text: &str, n_chars: usize) -> String {
    let n = text.chars().count();
    if n <= n_chars {
        return text.to_owned();
    }
    let end: String = text.chars().skip(n + 1 - n_chars).collect();
    format!("…{end}")
}

/// Rows in columns as wide as needed.
fn table(rows: &[Vec<String>]) -> String {
    let n_columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..n_columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths);
        let line: Vec<_> = cells
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        text += line.join("  ").trim_end();
        text.push('\n');
    }
    text
}

/// The figures of a run with their names, in the order of a table.
fn figures(run: &Overview) -> Vec<(&'static str, Option<String>)> {
    let figures = [
        ("state", Some(run.state.text().to_owned())),
        ("why", run.reason.clone()),
        ("mode", run.mode.clone()),
        ("base", run.base.clone()),
        ("device", run.device.clone()),
        ("steps", Some(steps(run))),
        ("perplexity", change(run)),
        ("kept at step", run.kept_step.map(|step| step.to_string())),
        ("last loss", run.train_loss.map(|loss| format!("{loss:.4}"))),
        ("started (UTC)", run.started.map(date)),
        ("time", run.seconds.map(duration)),
        ("tokens/s", run.tokens_per_s.map(short)),
        ("counted tokens", run.tokens.map(thousands)),
        ("peak memory", run.peak_bytes.map(memory)),
        ("parameters", run.parameters.map(thousands)),
        ("trained", run.trained_parameters.map(thousands)),
    ];
    let figures = figures.into_iter();
    figures
        .map(|(name, value)| (name, value.as_deref().map(one_line)))
        .collect()
}

fn show(args: &ShowArgs) -> Result<()> {
    let folder = find(&args.at.dir, &args.run)?;
    let overview = Overview::read(&folder);
    let history = History::read(&folder.join(METRICS_FILE)).unwrap_or_default();
    if args.at.json {
        let validations: Vec<_> = history.validations.iter().map(|at| at.event).collect();
        let samples: Vec<_> = history.samples.iter().map(|at| &at.event).collect();
        return print_json(&json!({
            "run": overview,
            "begin": history.begin(),
            "config": config_of(&folder).unwrap_or_default(),
            "validations": validations,
            "samples": samples,
        }));
    }
    let mut text = format!("{} ({})\n", one_line(&overview.name), folder.display());
    for (name, value) in figures(&overview) {
        if let Some(value) = value {
            text += &format!("  {name:15} {value}\n");
        }
    }
    if let Some(begin) = history.begin() {
        let environment = &begin.environment;
        text += &format!(
            "  {:15} {}, {} threads, {}; fledgling {}\n",
            "machine",
            one_line(&environment.cpu),
            environment.threads,
            environment
                .memory_bytes
                .map_or_else(|| "memory unknown".to_owned(), memory),
            one_line(&environment.version)
        );
        for part in &begin.data {
            let paths: Vec<_> = part
                .paths
                .iter()
                .map(|path| path.display().to_string())
                .collect();
            text += &format!(
                "  {:15} {}: {} rows, {} tokens, {} counted\n",
                one_line(&format!("data, {}", part.part)),
                one_line(&paths.join(", ")),
                thousands(part.rows),
                thousands(part.tokens),
                thousands(part.counted)
            );
        }
    }
    for at in last(&history.validations, 8) {
        text += &format!(
            "  held-out loss {:.4}, perplexity {} at step {}\n",
            at.event.valid_loss,
            perplexity(at.event.valid_perplexity),
            at.event.step
        );
    }
    for at in last(&history.samples, 3) {
        text += &format!(
            "  text at step {}: {} ▸ {}\n",
            at.event.step,
            one_line(&at.event.prompt),
            one_line(&at.event.text)
        );
    }
    print(&text)
}

fn last<T>(all: &[T], n: usize) -> &[T] {
    &all[all.len().saturating_sub(n)..]
}

/// The keys of a run's config, with their sections.
pub(crate) fn config_of(folder: &Path) -> Result<BTreeMap<String, Value>> {
    let path = folder.join(CONFIG_FILE);
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("cannot read {}", path.display()))?;
    let table: toml::Table =
        toml::from_str(&text).with_context(|| format!("{} is broken", path.display()))?;
    let mut keys = BTreeMap::new();
    flatten("", &serde_json::to_value(table)?, &mut keys);
    Ok(keys)
}

fn flatten(section: &str, value: &Value, keys: &mut BTreeMap<String, Value>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                let key = match section {
                    "" => key.clone(),
                    section => format!("{section}.{key}"),
                };
                flatten(&key, value, keys);
            }
        }
        value => drop(keys.insert(section.to_owned(), value.clone())),
    }
}

/// Keys that differ, with the value of each run; a name is no difference.
pub(crate) fn differences(
    configs: &[BTreeMap<String, Value>],
) -> BTreeMap<String, Vec<Option<Value>>> {
    let keys = configs.iter().flat_map(BTreeMap::keys);
    let mut different = BTreeMap::new();
    for key in keys.filter(|key| *key != "name") {
        let values: Vec<_> = configs
            .iter()
            .map(|config| config.get(key).cloned())
            .collect();
        if values.windows(2).any(|pair| pair[0] != pair[1]) {
            different.insert(key.clone(), values);
        }
    }
    different
}

/// A value as the config has it; a key that a config lacks has its default.
pub(crate) fn value_text(value: Option<&Value>) -> String {
    match value {
        None => "not set".to_owned(),
        Some(Value::String(text)) => one_line(text),
        Some(value) => value.to_string(),
    }
}

fn compare(args: &CompareArgs) -> Result<()> {
    let folders: Vec<_> = args
        .runs
        .iter()
        .map(|run| find(&args.at.dir, run))
        .collect::<Result<_>>()?;
    let runs: Vec<_> = folders
        .iter()
        .map(|folder| Overview::read(folder))
        .collect();
    let configs: Vec<_> = folders
        .iter()
        .map(|folder| config_of(folder))
        .collect::<Result<_>>()?;
    let different = differences(&configs);
    if let Some(target) = &args.html {
        let page = report::compare::page(&runs, &different)?;
        write_whole(target, page.as_bytes())?;
    }
    if args.at.json {
        return print_json(&json!({ "runs": runs, "config": different }));
    }
    let mut rows = vec![vec![String::new()]];
    rows[0].extend(runs.iter().map(|run| one_line(&run.name)));
    for (key, values) in &different {
        let mut row = vec![key.clone()];
        row.extend(
            values
                .iter()
                .map(|value| shorten(&value_text(value.as_ref()), 40)),
        );
        rows.push(row);
    }
    if different.is_empty() {
        rows.push(vec!["(the configs are the same)".to_owned()]);
    }
    rows.push(Vec::new());
    rows.extend(side_by_side(&runs));
    let mut text = table(&rows);
    if let Some(target) = &args.html {
        text += &format!("wrote {}\n", target.display());
    }
    print(&text)
}

/// The figures of several runs: those that at least one has. The first cell is the figure's name.
pub(crate) fn side_by_side(runs: &[Overview]) -> Vec<Vec<String>> {
    let all: Vec<_> = runs.iter().map(figures).collect();
    let n_figures = all.first().map_or(0, Vec::len);
    (0..n_figures)
        .filter(|&idx| all.iter().any(|run| run[idx].1.is_some()))
        .map(|idx| {
            let mut row = vec![all[0][idx].0.to_owned()];
            row.extend(all.iter().map(|run| {
                let value = run[idx].1.clone();
                value.map_or_else(|| "–".to_owned(), |value| shorten(&value, 40))
            }));
            row
        })
        .collect()
}

fn write_report(args: &ReportArgs) -> Result<()> {
    let folder = find(&args.at.dir, &args.run)?;
    let target = report::page::write(&folder, args.output.as_deref())?;
    if args.at.json {
        return print_json(&json!({ "report": target }));
    }
    print(&format!("{}\n", target.display()))
}

/// Says that a process trains the run in a folder. Ends with the value, also when the process is killed.
#[derive(Debug)]
pub struct RunLock {
    _file: Option<File>,
}

/// Takes the lock of a run.
///
/// # Errors
/// When another process trains it, or the folder cannot be written.
pub fn lock(folder: &Path) -> Result<RunLock> {
    let path = folder.join(LOCK_FILE);
    let cannot = || format!("cannot write in the run's folder {}", folder.display());
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .with_context(cannot)?;
    let asked = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(RunLock { _file: Some(file) }),
            // A list of runs holds it for a moment.
            Err(TryLockError::WouldBlock) if asked.elapsed() < LOCK_PATIENCE => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(TryLockError::WouldBlock) => bail!(
                "another process trains the run {}: wait for its end, or give this one another name",
                folder.display()
            ),
            // Some network file systems have no locks.
            Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {
                return Ok(RunLock { _file: None });
            }
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("cannot lock {}", path.display()));
            }
        }
    }
}

/// Whether a process trains the run in a folder.
pub fn is_locked(folder: &Path) -> bool {
    File::open(folder.join(LOCK_FILE))
        .is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
}
