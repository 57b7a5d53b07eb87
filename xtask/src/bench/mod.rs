//! Benches beside the programs that people would take instead, each in the same run.

mod cpu;

use crate::{build, paths, setup};
use anyhow::{Context, Result};
use std::path::PathBuf;
use xshell::{Shell, cmd};

#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// The CPU engine beside llama.cpp: prefill, decode, start, memory
    Cpu(cpu::Args),
    /// The CPU engine in Chromium beside wllama (llama.cpp in WebAssembly), one thread
    Web(Web),
}

#[derive(clap::Args)]
pub(crate) struct Web {
    /// GGUF files; both programs read the same one
    #[arg(required = true)]
    models: Vec<PathBuf>,
    /// Tokens that are written
    #[arg(long, default_value_t = 64)]
    tokens: u32,
    /// Rounds, in turns; the medians are printed
    #[arg(long, default_value_t = 3)]
    rounds: u32,
}

pub(crate) fn run(sh: &Shell, command: &Command) -> Result<()> {
    match command {
        Command::Cpu(args) => cpu::run(sh, args),
        Command::Web(args) => web(sh, args),
    }
}

fn web(sh: &Shell, args: &Web) -> Result<()> {
    let models = args.models.iter().map(|model| {
        let model = std::path::absolute(model)?;
        anyhow::ensure!(model.is_file(), "there is no file {}", model.display());
        Ok(model)
    });
    let models = models.collect::<Result<Vec<_>>>()?;
    build::web(sh)?;
    setup::chromium(sh)?;
    let peer = setup::wllama(sh)?;
    let (tokens, rounds) = (args.tokens.to_string(), args.rounds.to_string());
    let script = paths::workspace().join("web/e2e/bench.mjs");
    cmd!(
        sh,
        "node {script} --peer {peer} --tokens {tokens} --rounds {rounds} {models...}"
    )
    .run()
    .context("the bench failed")
}
