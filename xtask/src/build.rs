//! What there is to build: the browser engine with the page, and the workspace.

use crate::{paths, setup};
use anyhow::{Context, Result};
use xshell::{Shell, cmd};

/// Builds the wasm package into `web/wasm` and the page into `web/dist`.
pub(crate) fn web(sh: &Shell) -> Result<()> {
    setup::wasm(sh)?;
    setup::node(sh)?;
    println!("web: building the browser engine");
    let out = paths::workspace().join("web/wasm");
    cmd!(
        sh,
        "wasm-pack --quiet build runtime-wasm --target web --out-dir {out} --no-pack --profile wasm"
    )
    .run()
    .context("the browser engine did not build")?;
    cmd!(sh, "node web/e2e/size.mjs")
        .run()
        .context("the browser engine is larger than its budget")?;
    println!("web: building the page");
    let _web = sh.push_dir("web");
    cmd!(sh, "npm run --silent build")
        .run()
        .context("the page did not build")
}

/// Builds all programs and tests. One build serves `quickstart` and `test`: with fewer packages cargo would pick other
/// features of shared dependencies and compile Burn a second time.
pub(crate) fn workspace(sh: &Shell) -> Result<()> {
    println!("build: the workspace (with Burn and wgpu; ten minutes or more the first time)");
    cmd!(sh, "cargo build --release --workspace --all-targets")
        .run()
        .context("the workspace did not build")
}
