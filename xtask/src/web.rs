//! The browser engine and the page.

use crate::{paths, setup};
use anyhow::{Context, Result};
use xshell::{Shell, cmd};

/// Builds the wasm package into `web/wasm` and the page into `web/dist`.
pub(crate) fn build(sh: &Shell) -> Result<()> {
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
    println!("web: building the page");
    let _web = sh.push_dir("web");
    cmd!(sh, "npm run --silent build")
        .run()
        .context("the page did not build")
}
