//! Every test: Rust by nextest, TypeScript by Vitest, and the flows in a real browser that both of them start.

use crate::{build, setup};
use anyhow::{Context, Result};
use xshell::{Shell, cmd};

/// Packages with the tests that Miri can do in minutes.
const MIRI: [(&str, &[&str]); 2] = [
    ("fledgling-pool", &[]),
    (
        "fledgling-core",
        &["cpu::scalar", "cpu::kernels", "quant::blocks"],
    ),
];

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only tests whose name holds this (Rust tests only)
    filter: Option<String>,
}

pub(crate) fn run(sh: &Shell, args: &Args) -> Result<()> {
    setup::all(sh)?;
    build::web(sh)?;
    build::workspace(sh)?;
    if args.filter.is_none() {
        let _web = sh.push_dir("web");
        cmd!(sh, "npm run --silent test")
            .run()
            .context("the tests of web/ failed")?;
        cmd!(sh, "npm run --silent flows")
            .run()
            .context("a person's way through the page failed")?;
    }
    // The software GPU, also where there is a real one: the same picture on every machine.
    let driver = setup::lavapipe().context("no lavapipe")?;
    let filter = args.filter.iter();
    cmd!(
        sh,
        "cargo nextest run --cargo-profile release --workspace --no-fail-fast {filter...}"
    )
    .env("VK_DRIVER_FILES", driver)
    .run()
    .context("tests failed")
}

/// The tests of the inference engine as programs of 64-bit ARM, with NEON; under qemu where this machine is another one.
pub(crate) fn arm64(sh: &Shell) -> Result<()> {
    setup::arm64(sh)?;
    let target = setup::ARM64;
    let name = target.to_uppercase().replace('-', "_");
    let command = cmd!(
        sh,
        "cargo test -p fledgling-core -p fledgling-pool --target {target} --lib"
    )
    .env(format!("CARGO_TARGET_{name}_LINKER"), "rust-lld");
    let command = if cfg!(target_arch = "aarch64") {
        command
    } else {
        command.env(
            format!("CARGO_TARGET_{name}_RUNNER"),
            "qemu-aarch64-static -cpu max",
        )
    };
    command.run().context("tests failed on ARM")
}

/// The tests of the pool, of GGUF and of the portable kernels in Miri, which finds undefined behaviour.
pub(crate) fn miri(sh: &Shell) -> Result<()> {
    setup::miri(sh)?;
    for (package, filter) in MIRI {
        cmd!(
            sh,
            "cargo +nightly miri test -p {package} --lib -- {filter...}"
        )
        .env("MIRIFLAGS", "-Zmiri-disable-isolation")
        .env("PROPTEST_CASES", "2")
        .run()
        .with_context(|| format!("Miri found something in {package}"))?;
    }
    Ok(())
}
