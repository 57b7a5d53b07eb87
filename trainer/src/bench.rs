//! `fledgling bench`: how fast this machine is, in one line of JSON.

use crate::{
    model::{self, EngineArgs, Model},
    output::{UsageError, print, print_json, step_bar},
};
use anyhow::{Context, Result};
use fledgling_core::cpu::{CpuEngine, Session};
use serde::Serialize;
use std::time::Instant;

/// Measure speed
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    Cpu(CpuArgs),
    #[cfg(feature = "train")]
    Train(crate::train::bench::BenchArgs),
}

/// Measure the CPU engine: prefill, decode from an empty context, decode behind the prompt
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  fledgling bench cpu smollm2-135m-instruct --threads 2 --prefill 512 --decode 128 --json\n\n\
    Every figure is the median of the runs after one that warms up."
)]
struct CpuArgs {
    /// A GGUF file, a pulled model's name, or a run's folder
    model: String,
    /// Tokens of the prompt
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = crate::generate::positive)]
    prefill: usize,
    /// Tokens that are decoded
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = crate::generate::positive)]
    decode: usize,
    /// Runs that count
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = crate::generate::positive)]
    runs: usize,
    #[command(flatten)]
    engine: EngineArgs,
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    model: String,
    machine: String,
    isa: String,
    threads: usize,
    load_ms: f64,
    prefill_tokens_per_s: f64,
    decode_tokens_per_s: f64,
    decode_at_depth_tokens_per_s: f64,
    /// `null` where the system does not tell.
    peak_rss_mib: Option<f64>,
}

/// Runs the command.
///
/// # Errors
/// When the model does not load, or its context does not hold the tokens.
pub fn run(args: &Args) -> Result<()> {
    match &args.what {
        What::Cpu(args) => run_cpu(args),
        #[cfg(feature = "train")]
        What::Train(args) => crate::train::bench::run(args),
    }
}

fn run_cpu(args: &CpuArgs) -> Result<()> {
    let report = bench_cpu(args)?;
    if args.json {
        return print_json(&report);
    }
    let rss = report
        .peak_rss_mib
        .map_or_else(|| "unknown".to_owned(), |mib| format!("{mib:.0} MiB"));
    print(&format!(
        "{} on {}, {}, {} threads\n  prefill {:9.1} tokens/s ({} tokens)\n  decode  {:9.1} tokens/s ({} tokens)\n  decode  {:9.1} tokens/s behind the prompt\n  load    {:9.1} ms\n  peak memory {rss}\n",
        report.model,
        report.machine,
        report.isa,
        report.threads,
        report.prefill_tokens_per_s,
        args.prefill,
        report.decode_tokens_per_s,
        args.decode,
        report.decode_at_depth_tokens_per_s,
        report.load_ms,
    ))
}

fn bench_cpu(args: &CpuArgs) -> Result<Report> {
    let started = Instant::now();
    let model = model::open(&args.model)?;
    let engine = args.engine.load(&model)?;
    let load_ms = 1e3 * started.elapsed().as_secs_f64();
    let n_ctx = args.prefill + args.decode;
    if n_ctx > model.info.spec.n_ctx {
        return Err(UsageError(format!(
            "--prefill and --decode make {n_ctx} tokens; the model was made for {}",
            model.info.spec.n_ctx
        ))
        .into());
    }
    let mut session = engine.session(n_ctx)?;
    let ids = token_ids(&model, args.prefill.max(args.decode));
    let bar = step_bar("runs", args.runs as u64 + 1);
    let (mut prefill, mut decode, mut at_depth) = (Vec::new(), Vec::new(), Vec::new());
    for run in 0..=args.runs {
        session.rewind(0);
        let decoded_s = time_decode(&engine, &mut session, &ids[..args.decode])?;
        session.rewind(0);
        let started = Instant::now();
        engine.forward(&mut session, &ids[..args.prefill])?;
        let prefilled_s = started.elapsed().as_secs_f64();
        let depth_s = time_decode(&engine, &mut session, &ids[..args.decode])?;
        bar.inc(1);
        if run > 0 {
            prefill.push(args.prefill as f64 / prefilled_s);
            decode.push(args.decode as f64 / decoded_s);
            at_depth.push(args.decode as f64 / depth_s);
        }
    }
    bar.finish_and_clear();
    Ok(Report {
        model: model.name,
        machine: machine(),
        isa: engine.isa().to_string(),
        threads: args.engine.n_threads(),
        load_ms,
        prefill_tokens_per_s: median(prefill),
        decode_tokens_per_s: median(decode),
        decode_at_depth_tokens_per_s: median(at_depth),
        peak_rss_mib: peak_rss_mib(),
    })
}

/// Tokens a second of prefill and of decoding behind a prompt, on one thread: a short measurement, for what a small machine will do.
///
/// # Errors
/// When the model does not load.
pub fn one_thread(model: &str) -> Result<(f64, f64)> {
    let report = bench_cpu(&CpuArgs {
        model: model.to_owned(),
        prefill: 128,
        decode: 32,
        runs: 1,
        engine: EngineArgs {
            threads: Some(1),
            kv_f32: false,
            cpu_isa: None,
        },
        json: false,
    })?;
    Ok((
        report.prefill_tokens_per_s,
        report.decode_at_depth_tokens_per_s,
    ))
}

/// Ids spread over the vocabulary, the same in every run. [n]
fn token_ids(model: &Model, n: usize) -> Vec<u32> {
    (0..n)
        .map(|i| (7 * i % model.info.spec.vocab_size) as u32)
        .collect()
}

fn time_decode(engine: &CpuEngine, session: &mut Session, ids: &[u32]) -> Result<f64> {
    let started = Instant::now();
    for id in ids {
        engine.forward(session, &[*id]).context("decoding failed")?;
    }
    Ok(started.elapsed().as_secs_f64())
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// The processor's name and its cores.
pub fn machine() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .and_then(|rest| rest.split(':').nth(1))
        .map_or(std::env::consts::ARCH, str::trim);
    format!("{name}, {} cores", model::all_cores())
}

/// The most memory this process has held, where the system tells (Linux).
pub fn peak_rss_mib() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib / 1024.0)
}
