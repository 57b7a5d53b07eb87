//! Every test: Rust by nextest, TypeScript by Vitest, and the flows in a real browser that both of them start.

use crate::{build, setup};
use anyhow::{Context, Result};
use xshell::{Shell, cmd};

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
