//! The CPU engine beside llama.cpp, in turns on the same files.

use crate::{build, paths};
use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use std::{
    fmt::Write as _,
    io::Read,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};
use xshell::{Shell, cmd};

const BASE: &str = "smollm2-135m-instruct";
const TYPES: [&str; 3] = ["q8_0", "q4_0", "q4_1"];
/// Another version may be slower or faster than the one of the record.
const PEER: &str = "llama-cpp-python==0.3.36";
const PEER_SCRIPT: &str = "tests/peers/llama_cpp_speed.py";
/// Of 1024 positions, as the goals have it: prompt and answer.
const CONTEXT: (usize, usize) = (896, 128);
/// Five tokens.
const PROMPT: &str = "The capital of France is";
const STARTS: usize = 9;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// GGUF files [default: `SmolLM2` with 135 million weights in `Q8_0`, `Q4_0` and `Q4_1`]
    models: Vec<PathBuf>,
    /// How many threads
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2])]
    threads: Vec<usize>,
    /// How often both are measured, in turns
    #[arg(long, default_value_t = 2)]
    rounds: usize,
    #[arg(long, default_value_t = 512)]
    prefill: usize,
    #[arg(long, default_value_t = 128)]
    decode: usize,
    /// Without llama.cpp
    #[arg(long)]
    no_peer: bool,
    /// Install llama.cpp (llama-cpp-python, compiled here) into the project's cache if python3 has none
    #[arg(long)]
    install_peer: bool,
    /// The command, if it is not to be built
    #[arg(long)]
    fledgling: Option<PathBuf>,
    /// Keep the table in benches/record/NAME.md and the figures in NAME.json
    #[arg(long, value_name = "NAME")]
    record: Option<String>,
}

/// What one program did on one file.
#[derive(Clone, Deserialize, Serialize)]
struct Speed {
    prefill_tokens_per_s: f64,
    decode_tokens_per_s: f64,
    decode_at_depth_tokens_per_s: f64,
    peak_rss_mib: f64,
}

#[derive(Deserialize)]
struct Peer {
    #[serde(flatten)]
    speed: Speed,
    first_token_ms: f64,
    version: String,
}

/// One file on so many threads.
#[derive(Serialize)]
struct Row {
    model: String,
    threads: usize,
    rounds: Vec<(Speed, Option<Speed>)>,
    first_token_ms: f64,
    peer_first_token_ms: Option<f64>,
    /// Beyond the file's size, with 1024 positions.
    memory_mib: f64,
}

#[derive(Serialize)]
struct Record {
    machine: String,
    isa: String,
    fledgling: String,
    peer: Option<String>,
    rows: Vec<Row>,
}

/// Prints the table.
pub(crate) fn run(sh: &Shell, args: &Args) -> Result<()> {
    let fledgling = match &args.fledgling {
        Some(path) => path.clone(),
        None => {
            build::workspace(sh)?;
            paths::fledgling()
        }
    };
    let python = (!args.no_peer).then(|| python(sh, args.install_peer));
    let python = python.transpose()?;
    let models = if args.models.is_empty() {
        models(sh, &fledgling)?
    } else {
        args.models.clone()
    };
    let commit = cmd!(sh, "git rev-parse --short HEAD").quiet().read();
    let mut record = Record {
        machine: String::new(),
        isa: String::new(),
        fledgling: commit.unwrap_or_else(|_| env!("CARGO_PKG_VERSION").to_owned()),
        peer: None,
        rows: Vec::new(),
    };
    for model in &models {
        for &threads in &args.threads {
            let row = measure(
                sh,
                args,
                &fledgling,
                python.as_deref(),
                (model, threads),
                &mut record,
            )?;
            eprint!("{}", line(&row));
            record.rows.push(row);
        }
    }
    let table = table(&record);
    print!("{table}");
    if let Some(name) = &args.record {
        let folder = paths::workspace().join("benches/record");
        sh.create_dir(&folder)?;
        // Where the files lie is nobody else's matter.
        let words = std::env::args().skip(1).map(|word| {
            let name = Path::new(&word).file_name();
            name.map_or_else(String::new, |name| name.to_string_lossy().into_owned())
        });
        let command = words.collect::<Vec<_>>().join(" ");
        let text =
            format!("# The CPU engine beside llama.cpp\n\n`cargo xtask {command}`\n\n{table}");
        sh.write_file(folder.join(format!("{name}.md")), text)?;
        sh.write_file(
            folder.join(format!("{name}.json")),
            serde_json::to_string_pretty(&record)? + "\n",
        )?;
    }
    Ok(())
}

/// A Python with llama.cpp.
fn python(sh: &Shell, install: bool) -> Result<PathBuf> {
    let venv = paths::tools().join("llama-cpp");
    let has_peer = |python: &Path| {
        cmd!(sh, "{python} -c 'import llama_cpp'")
            .quiet()
            .ignore_stderr()
            .run()
            .is_ok()
    };
    let candidates = [venv.join("bin/python"), PathBuf::from("python3")];
    if let Some(python) = candidates.into_iter().find(|python| has_peer(python)) {
        return Ok(python);
    }
    ensure!(
        install,
        "python3 has no llama_cpp: --install-peer compiles {PEER} into {}, --no-peer measures without",
        venv.display()
    );
    cmd!(sh, "python3 -m venv {venv}").run()?;
    let python = venv.join("bin/python");
    cmd!(sh, "{python} -m pip install --quiet {PEER} numpy")
        .env("CMAKE_ARGS", "-DGGML_NATIVE=ON")
        .run()
        .context("llama.cpp did not install (it needs a C++ compiler and CMake)")?;
    Ok(python)
}

/// The files that the goals are about.
fn models(sh: &Shell, fledgling: &Path) -> Result<Vec<PathBuf>> {
    let folder = paths::target().join("bench");
    sh.create_dir(&folder)?;
    let file = |quant: &&str| folder.join(format!("{BASE}-{quant}.gguf"));
    let missing: Vec<_> = TYPES
        .iter()
        .filter(|quant| !file(quant).is_file())
        .collect();
    if !missing.is_empty() {
        cmd!(sh, "{fledgling} pull {BASE}")
            .quiet()
            .ignore_stdout()
            .run()?;
    }
    for quant in missing {
        let path = file(quant);
        cmd!(sh, "{fledgling} export {BASE} --quant {quant} -o {path}")
            .quiet()
            .ignore_stdout()
            .run()?;
    }
    Ok(TYPES.iter().map(file).collect())
}

fn measure(
    sh: &Shell,
    args: &Args,
    fledgling: &Path,
    python: Option<&Path>,
    (model, threads): (&Path, usize),
    record: &mut Record,
) -> Result<Row> {
    let (n, prefill, decode) = (
        threads.to_string(),
        args.prefill.to_string(),
        args.decode.to_string(),
    );
    let bench = |prefill: &str, decode: &str, runs: &str| -> Result<serde_json::Value> {
        let out = cmd!(
            sh,
            "{fledgling} bench cpu {model} --threads {n} --prefill {prefill} --decode {decode} --runs {runs} --json"
        );
        Ok(serde_json::from_str(&out.quiet().ignore_stderr().read()?)?)
    };
    let mut rounds = Vec::new();
    let mut peer_first_token_ms = None;
    for _ in 0..args.rounds {
        let ours = bench(&prefill, &decode, "3")?;
        (record.machine, record.isa) = (text(&ours["machine"]), text(&ours["isa"]));
        let theirs = match python {
            Some(python) => {
                let out = cmd!(
                    sh,
                    "{python} {PEER_SCRIPT} {model} --threads {n} --prefill {prefill} --decode {decode}"
                );
                let peer: Peer = serde_json::from_str(&out.quiet().ignore_stderr().read()?)?;
                peer_first_token_ms = Some(peer.first_token_ms);
                record.peer = Some(peer.version);
                Some(peer.speed)
            }
            None => None,
        };
        rounds.push((serde_json::from_value(ours)?, theirs));
    }
    let (prefill, decode) = CONTEXT;
    let full = bench(&prefill.to_string(), &decode.to_string(), "1")?;
    let full: Speed = serde_json::from_value(full)?;
    let file_mib = std::fs::metadata(model)?.len() as f64 / (1024.0 * 1024.0);
    let name = model.file_stem().unwrap_or_default();
    Ok(Row {
        model: name.to_string_lossy().into_owned(),
        threads,
        rounds,
        first_token_ms: first_token_ms(fledgling, model, &n)?,
        peer_first_token_ms,
        memory_mib: full.peak_rss_mib - file_mib,
    })
}

fn text(value: &serde_json::Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// From the start of the process to the first byte of text, the median.
fn first_token_ms(fledgling: &Path, model: &Path, threads: &str) -> Result<f64> {
    let mut times = Vec::new();
    for _ in 0..STARTS {
        let started = Instant::now();
        let mut child = Command::new(fledgling)
            .arg("generate")
            .arg(model)
            .args([
                "--prompt",
                PROMPT,
                "--max-tokens",
                "1",
                "--threads",
                threads,
            ])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let mut stdout = child.stdout.take().context("no standard output")?;
        let n_read = stdout.read(&mut [0; 1])?;
        times.push(started.elapsed());
        std::io::copy(&mut stdout, &mut std::io::sink())?;
        ensure!(
            child.wait()?.success() && n_read == 1,
            "`fledgling generate` wrote nothing"
        );
    }
    times.sort();
    Ok(1e3 * times[STARTS / 2].as_secs_f64())
}

/// The goals' table.
fn table(record: &Record) -> String {
    let mut out = format!(
        "{}, {}; Fledgling {}, llama.cpp {}. Tokens/s of Fledgling / llama.cpp = ratio, one pair a round. Depth: decode behind the prompt by decode of an empty context, of both. First token: of five, in ms, from the \
         start of the process (llama.cpp's from opening the file in a running process). Memory: peak beyond the file, 1024 positions, MiB.\n\n\
         | | threads | prefill | decode | depth | first token | memory |\n|---|--:|---|---|---|---|--:|\n",
        record.machine,
        record.isa,
        record.fledgling,
        record.peer.as_deref().unwrap_or("not measured"),
    );
    for row in &record.rows {
        out += &line(row);
    }
    out
}

fn line(row: &Row) -> String {
    let pairs = |of: fn(&Speed) -> f64| {
        let pair = |(ours, theirs): &(Speed, Option<Speed>)| match theirs {
            Some(theirs) => format!(
                "{:.0} / {:.0} = {:.2}",
                of(ours),
                of(theirs),
                of(ours) / of(theirs)
            ),
            None => format!("{:.0}", of(ours)),
        };
        row.rounds.iter().map(pair).collect::<Vec<_>>().join("; ")
    };
    let kept = |(ours, theirs): &(Speed, Option<Speed>)| {
        let kept = |speed: &Speed| speed.decode_at_depth_tokens_per_s / speed.decode_tokens_per_s;
        let mut text = format!("{:.2}", kept(ours));
        if let Some(theirs) = theirs {
            let _ = write!(text, " / {:.2}", kept(theirs));
        }
        text
    };
    let depth: Vec<_> = row.rounds.iter().map(kept).collect();
    let theirs = row
        .peer_first_token_ms
        .map_or_else(String::new, |ms| format!(" / {ms:.0}"));
    format!(
        "| {} | {} | {} | {} | {} | {:.0}{theirs} | {:.1} |\n",
        row.model,
        row.threads,
        pairs(|speed| speed.prefill_tokens_per_s),
        pairs(|speed| speed.decode_tokens_per_s),
        depth.join("; "),
        row.first_token_ms,
        row.memory_mib,
    )
}
