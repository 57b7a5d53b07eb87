//! Formatting, lints with warnings denied, and where dependencies come from.

use crate::setup;
use anyhow::Result;
use xshell::{Shell, cmd};

pub(crate) fn run(sh: &Shell) -> Result<()> {
    setup::wasm(sh)?;
    setup::node(sh)?;
    setup::cargo_deny(sh)?;
    cmd!(sh, "cargo fmt --all --check").run()?;
    cmd!(
        sh,
        "cargo clippy --workspace --all-targets --release -- -D warnings"
    )
    .run()?;
    cmd!(
        sh,
        "cargo clippy -p fledgling --no-default-features --release -- -D warnings"
    )
    .run()?;
    cmd!(sh, "cargo clippy -p fledgling-core -p fledgling-wasm --target wasm32-unknown-unknown -- -D warnings").run()?;
    cmd!(sh, "cargo deny --all-features check bans licenses sources").run()?;
    let _web = sh.push_dir("web");
    cmd!(sh, "npm run --silent check").run()?;
    Ok(())
}
