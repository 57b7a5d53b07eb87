//! `fledgling monitor`: whether what people ask is still what the model was trained for, from a server's logs.

use crate::{
    files::write_whole,
    model,
    output::{UsageError, note, print, print_json},
};
use anyhow::{Result, ensure};
use fledgling_core::model::ModelInfo;
use fledgling_lambda::mapped_model;
use fledgling_monitor::{
    baseline::{Calibration, Trained},
    read::read_logs,
    watch::{Baselines, Thresholds, watch},
};
use std::path::PathBuf;

/// Compare a server's requests with what the model was trained on, and with its own first days
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  fledgling monitor requests.jsonl --model model.gguf --report drift.html\n  \
    aws logs filter-log-events --log-group-name /aws/lambda/mine --output json | fledgling monitor - --model model.gguf\n  \
    fledgling monitor week1/ --write-baseline week1.json && fledgling monitor today.log.gz --baseline week1.json\n\n\
    Logs are files, folders (an export of CloudWatch Logs), or - for standard input; compressed or not, in any of AWS's envelopes. A server writes them with FLEDGLING_LOG=metrics; \
    they hold no text. What each figure means is in docs/monitor.md.\n\
    Exit status: 0 no alarm, 1 failed, 2 wrong use, 3 alarm."
)]
pub struct Args {
    /// Files, folders, or - for standard input
    #[arg(required = true)]
    logs: Vec<PathBuf>,
    /// The model's file: the training data's histogram that is in it is compared with
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    /// Only the requests to this model id
    #[arg(long, value_name = "ID")]
    only: Option<String>,
    /// Days that were fine, as --write-baseline kept them (default: the first days of the logs)
    #[arg(long, value_name = "FILE")]
    baseline: Option<PathBuf>,
    /// Keep what was learnt from the first days
    #[arg(long, value_name = "FILE", conflicts_with = "baseline")]
    write_baseline: Option<PathBuf>,
    /// Days to learn from, of the logs; at most half of them
    #[arg(long, value_name = "DAYS", default_value_t = Thresholds::default().calibrate_days)]
    calibrate: usize,
    /// Population stability index that is an alarm
    #[arg(long, value_name = "X", default_value_t = Thresholds::default().psi)]
    psi: f64,
    /// Jensen-Shannon divergence that is an alarm, in bits
    #[arg(long, value_name = "BITS", default_value_t = Thresholds::default().jsd)]
    jsd: f64,
    /// A lasting change of the mean surprise that matters, in nats a token
    #[arg(long, value_name = "NATS", default_value_t = Thresholds::default().surprise)]
    surprise: f64,
    /// Growth of the share of refusals, repetitive answers or errors that is an alarm
    #[arg(long, value_name = "X", default_value_t = Thresholds::default().share)]
    share: f64,
    /// Requests that a day's figures are taken of at least
    #[arg(long, value_name = "N", default_value_t = Thresholds::default().requests)]
    requests: u64,
    /// Write a page with plots over time
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Print {"alarms":[…],"days":[…],…}
    #[arg(long)]
    json: bool,
}

/// The figures have left their limits: exit status 3.
#[derive(Debug, thiserror::Error)]
#[error("alarms: {0}")]
pub struct Alarmed(pub usize);

/// Runs the command.
///
/// # Errors
/// When nothing can be read or compared, and [`Alarmed`] when something is no longer as it was.
pub fn run(args: &Args) -> Result<()> {
    let thresholds = thresholds(args)?;
    let opened = args.model.as_deref().map(open).transpose()?;
    let trained = opened.as_ref().and_then(|(trained, _)| trained.as_ref());
    let calibration = args
        .baseline
        .as_deref()
        .map(Calibration::open)
        .transpose()?;
    let (traffic, tally) = read_logs(&args.logs, args.only.clone())?;
    let baselines = Baselines {
        trained,
        calibration,
        tokenizer: opened.as_ref().map(|(_, info)| info.tokenizer.as_ref()),
    };
    let (findings, learnt) = watch(&traffic, baselines, &thresholds, tally);
    if let Some(path) = &args.write_baseline {
        let Some(learnt) = learnt else {
            anyhow::bail!(
                "--write-baseline: there are too few days to learn from; nothing was written"
            );
        };
        write_whole(path, learnt.to_json()?.as_bytes())?;
        note(format!("the baseline is in {}", path.display()));
    }
    if let Some(path) = &args.report {
        write_whole(path, findings.to_html(&thresholds)?.as_bytes())?;
        note(format!("the report is in {}", path.display()));
    }
    if args.json {
        print_json(&findings)?;
    } else {
        print(&findings.to_text())?;
    }
    match findings.alarms.len() {
        0 => Ok(()),
        n => Err(Alarmed(n).into()),
    }
}

/// The header is enough.
fn open(text: &str) -> Result<(Option<Trained>, ModelInfo)> {
    let path = model::locate(text)?;
    ensure!(
        path.is_file(),
        "--model {text}: this is a folder; export it (`fledgling export {text} -o model.gguf`) and name the file that is served"
    );
    let gguf = mapped_model(&path)?.gguf;
    let info = model::read_info(&gguf, &path)?;
    let trained = Trained::of(&gguf.header().metadata)?;
    if trained.is_none() {
        note(format!(
            "{} does not say what it was trained on: only days are compared with each other",
            path.display()
        ));
    }
    Ok((trained, info))
}

fn thresholds(args: &Args) -> Result<Thresholds> {
    for (name, value) in [
        ("--psi", args.psi),
        ("--jsd", args.jsd),
        ("--surprise", args.surprise),
        ("--share", args.share),
    ] {
        if !(value > 0.0 && value.is_finite()) {
            return Err(UsageError(format!("{name} {value}: it must be above 0")).into());
        }
    }
    Ok(Thresholds {
        psi: args.psi,
        jsd: args.jsd,
        surprise: args.surprise,
        share: args.share,
        requests: args.requests.max(1),
        calibrate_days: args.calibrate,
        ..Thresholds::default()
    })
}
