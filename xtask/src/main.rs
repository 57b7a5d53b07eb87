//! What a developer runs: `cargo xtask <command>`. The README's two commands are `quickstart` and `test`.
//!
//! Every command calls [`setup`] for just what it needs; a second run installs nothing twice.

mod bench;
mod build;
mod check;
mod paths;
mod quickstart;
mod setup;
mod test;

use anyhow::Result;
use clap::{Parser, Subcommand};
use xshell::{Shell, cmd};

/// Developer tasks of Fledgling.
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what is missing: wasm target, wasm-bindgen, wasm-pack, npm packages, nextest, a browser, a software GPU
    Setup,
    /// Pull SmolLM2, fine-tune it, export it, and open a page that answers
    Quickstart(quickstart::Args),
    /// Build everything and run every test
    Test(test::Args),
    /// Test the engine as a program of 64-bit ARM (under qemu elsewhere)
    TestArm64,
    /// Test the pool and the portable kernels in Miri (needs a nightly toolchain)
    Miri,
    /// Formatting, lints with warnings denied, licences and sources of dependencies
    Check,
    /// Build the browser engine and the page into `web/dist`
    Web,
    /// Speed, memory and size beside another program
    #[command(subcommand)]
    Bench(bench::Command),
    /// Make the PyTorch fixtures again (needs python3 with torch, transformers, safetensors)
    Fixtures,
    /// Fuzz a parser with libFuzzer (needs a nightly toolchain)
    Fuzz {
        /// The target: `gguf`, `tokenizer`, `rows` or `task`
        target: String,
        /// How long
        #[arg(long, default_value_t = 60)]
        seconds: u32,
    },
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    let sh = Shell::new()?;
    sh.change_dir(paths::workspace());
    match cli.command {
        Command::Setup => setup::all(&sh),
        Command::Quickstart(args) => quickstart::run(&sh, &args),
        Command::Test(args) => test::run(&sh, &args),
        Command::TestArm64 => test::arm64(&sh),
        Command::Miri => test::miri(&sh),
        Command::Check => check::run(&sh),
        Command::Web => build::web(&sh),
        Command::Bench(command) => bench::run(&sh, &command),
        Command::Fixtures => Ok(cmd!(sh, "python3 tests/fixtures/make.py").run()?),
        Command::Fuzz { target, seconds } => fuzz(&sh, &target, seconds),
    }
}

/// Runs a fuzz target from its stored corpus. New findings go to `fuzz/artifacts`, new inputs to a scratch corpus.
fn fuzz(sh: &Shell, target: &str, seconds: u32) -> Result<()> {
    setup::cargo_fuzz(sh)?;
    let found = paths::target().join("fuzz-corpus").join(target);
    sh.create_dir(&found)?;
    let limit = format!("-max_total_time={seconds}");
    let corpus = format!("fuzz/corpus/{target}");
    cmd!(
        sh,
        "cargo +nightly fuzz run {target} {found} {corpus} -- {limit}"
    )
    .run()?;
    Ok(())
}
