//! Installs what is missing, says what it does, does nothing twice, and names what a person must install where it may
//! not. Each function is one need; `quickstart` and `test` call those that they stand on.

use crate::paths;
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use xshell::{Shell, cmd};

/// wasm-pack's version. It only drives cargo, wasm-bindgen and wasm-opt.
const WASM_PACK: &str = "0.15.1";

/// wllama's version: the peer of the browser's CPU engine.
const WLLAMA: &str = "3.8.1";

/// moto's version. Its server is the S3 that the tests of object stores talk to.
const MOTO: &str = "5.2.1";

/// Where the engine's tests for ARM are built.
pub(crate) const ARM64: &str = "aarch64-unknown-linux-musl";

/// Everything that `test` and `quickstart` need.
pub(crate) fn all(sh: &Shell) -> Result<()> {
    wasm(sh)?;
    node(sh)?;
    nextest(sh)?;
    chromium(sh)?;
    vulkan(sh)?;
    s3(sh)?;
    println!("setup: all there");
    Ok(())
}

/// The wasm target and the tools around it, put on PATH for the commands that this process starts.
pub(crate) fn wasm(sh: &Shell) -> Result<()> {
    wasm_target(sh)?;
    let bindgen = wasm_bindgen_version(sh)?;
    cargo_tool(sh, "wasm-bindgen-cli", "wasm-bindgen", &bindgen)?;
    cargo_tool(sh, "wasm-pack", "wasm-pack", WASM_PACK)?;
    Ok(())
}

fn wasm_target(sh: &Shell) -> Result<()> {
    rust_target(sh, "wasm32-unknown-unknown")
}

/// The standard library of another target.
fn rust_target(sh: &Shell, target: &str) -> Result<()> {
    let sysroot = cmd!(sh, "rustc --print sysroot").quiet().read()?;
    let lib = format!("lib/rustlib/{target}/lib");
    if Path::new(&sysroot).join(lib).is_dir() {
        return Ok(());
    }
    if !on_path("rustup") {
        bail!(
            "the Rust target {target} is missing, and so is rustup, which would install it: install both (https://rustup.rs)"
        );
    }
    println!("setup: adding the Rust target {target}");
    cmd!(sh, "rustup target add {target}")
        .run()
        .with_context(|| format!("rustup could not add {target}"))
}

/// What runs programs of 64-bit ARM on this machine, and their standard library (musl: it needs no cross compiler).
pub(crate) fn arm64(sh: &Shell) -> Result<()> {
    rust_target(sh, ARM64)?;
    if cfg!(target_arch = "aarch64") || on_path("qemu-aarch64-static") {
        return Ok(());
    }
    debian_package(sh, "qemu-user-static", "qemu-aarch64-static")
}

/// Miri, of the nightly toolchain.
pub(crate) fn miri(sh: &Shell) -> Result<()> {
    if cmd!(sh, "cargo +nightly miri --version")
        .quiet()
        .ignore_stdout()
        .ignore_stderr()
        .run()
        .is_ok()
    {
        return Ok(());
    }
    println!("setup: installing Miri");
    cmd!(sh, "rustup component add --toolchain nightly miri rust-src")
        .run()
        .context("Miri needs a nightly toolchain: `rustup toolchain install nightly`")
}

/// The version of wasm-bindgen in Cargo.lock: the command line tool must be the same one.
fn wasm_bindgen_version(sh: &Shell) -> Result<String> {
    let lock = sh.read_file("Cargo.lock")?;
    let mut lines = lock
        .lines()
        .skip_while(|line| *line != "name = \"wasm-bindgen\"")
        .skip(1);
    let version = lines
        .next()
        .and_then(|line| line.strip_prefix("version = \"")?.strip_suffix('"'));
    version
        .map(str::to_owned)
        .context("Cargo.lock names no wasm-bindgen")
}

/// Installs a cargo tool of an exact version into the project's cache, unless PATH has that version already.
fn cargo_tool(sh: &Shell, package: &str, binary: &str, version: &str) -> Result<()> {
    let says = |program: &Path| {
        cmd!(sh, "{program} --version")
            .quiet()
            .ignore_stderr()
            .read()
            .unwrap_or_default()
    };
    if says(Path::new(binary))
        .split_whitespace()
        .any(|word| word == version)
    {
        return Ok(());
    }
    let root = paths::tools().join(format!("{package}-{version}"));
    let bin = root.join("bin");
    if says(&bin.join(binary)).is_empty() {
        println!("setup: installing {package} {version} (cargo install, some minutes once)");
        let scratch = paths::target().join("tools");
        cmd!(sh, "cargo install --quiet --root {root} --target-dir {scratch} --version {version} {package}")
            .run()
            .with_context(|| format!("cargo could not install {package} {version}"))?;
    }
    put_on_path(sh, &bin)
}

/// `cargo fuzz`, which needs a nightly toolchain to run.
pub(crate) fn cargo_fuzz(sh: &Shell) -> Result<()> {
    cmd!(sh, "cargo +nightly --version")
        .quiet()
        .run()
        .context("fuzzing needs a nightly toolchain: `rustup toolchain install nightly`")?;
    cargo_tool(sh, "cargo-fuzz", "cargo-fuzz", "0.13.1")
}

/// `cargo deny`.
pub(crate) fn cargo_deny(sh: &Shell) -> Result<()> {
    cargo_tool(sh, "cargo-deny", "cargo-deny", "0.20.2")
}

/// The test runner.
pub(crate) fn nextest(sh: &Shell) -> Result<()> {
    if cmd!(sh, "cargo nextest --version")
        .quiet()
        .ignore_stdout()
        .ignore_stderr()
        .run()
        .is_ok()
    {
        return Ok(());
    }
    println!("setup: installing cargo-nextest (cargo install, some minutes once)");
    let scratch = paths::target().join("tools");
    cmd!(
        sh,
        "cargo install --quiet --locked --target-dir {scratch} cargo-nextest"
    )
    .run()
    .context("cargo could not install cargo-nextest")
}

/// The npm packages of `web/`, exactly as its lock file says. wasm-opt comes with them.
pub(crate) fn node(sh: &Shell) -> Result<()> {
    if !on_path("npm") {
        bail!("npm is missing: install Node.js 20 or newer (https://nodejs.org)");
    }
    let _web = sh.push_dir("web");
    let lock = sh.current_dir().join("package-lock.json");
    let installed = sh.current_dir().join("node_modules/.package-lock.json");
    if modified(&installed) < modified(&lock) || modified(&installed).is_none() {
        println!("setup: installing the npm packages of web/");
        cmd!(sh, "npm ci --no-audit --no-fund")
            .run()
            .context("npm could not install the packages of web/")?;
    }
    put_on_path(sh, &sh.current_dir().join("node_modules/.bin"))
}

/// wllama from npm in the project's cache: the folder that holds its `node_modules`.
pub(crate) fn wllama(sh: &Shell) -> Result<PathBuf> {
    let root = paths::tools().join(format!("wllama-{WLLAMA}"));
    if !root.join("node_modules/@wllama/wllama").is_dir() {
        println!("setup: installing wllama {WLLAMA} (npm)");
        let package = format!("@wllama/wllama@{WLLAMA}");
        sh.create_dir(&root)?;
        cmd!(
            sh,
            "npm install --prefix {root} --no-audit --no-fund --ignore-scripts {package}"
        )
        .ignore_stdout()
        .run()
        .with_context(|| format!("npm could not install {package}"))?;
    }
    Ok(root)
}

/// A Chromium for the tests, by name or by `FLEDGLING_CHROMIUM`.
pub(crate) fn chromium(sh: &Shell) -> Result<()> {
    if std::env::var_os("FLEDGLING_CHROMIUM").is_none()
        && !["chromium", "chromium-browser", "google-chrome"]
            .iter()
            .any(|name| on_path(name))
    {
        debian_package(
            sh,
            "chromium",
            "a Chromium (or set FLEDGLING_CHROMIUM to one)",
        )?;
    }
    Ok(())
}

/// A Vulkan driver for the tests of the WebGPU engine: the software one, so that every machine gives the same picture.
pub(crate) fn vulkan(sh: &Shell) -> Result<()> {
    if lavapipe().is_none() {
        debian_package(
            sh,
            "mesa-vulkan-drivers libvulkan1",
            "Mesa's software Vulkan driver lavapipe and the Vulkan loader",
        )?;
    }
    Ok(())
}

/// A local S3 for the tests of object stores: moto's server, in a Python environment of its own where PATH has none.
pub(crate) fn s3(sh: &Shell) -> Result<()> {
    let server = "moto_server";
    if works(sh, Path::new(server)) {
        return Ok(());
    }
    let root = paths::tools().join(format!("moto-{MOTO}"));
    let bin = root.join(if cfg!(windows) { "Scripts" } else { "bin" });
    if !works(sh, &bin.join(server)) {
        println!("setup: installing moto {MOTO} (pip, a minute once)");
        let python = if cfg!(windows) { "python" } else { "python3" };
        let (pip, moto) = (bin.join("pip"), format!("moto[server]=={MOTO}"));
        cmd!(sh, "{python} -m venv {root}").run().context(
            "the tests need Python 3 with venv: please install it (Debian: `sudo apt-get install python3-venv`)",
        )?;
        cmd!(sh, "{pip} install --quiet {moto}")
            .run()
            .with_context(|| format!("pip could not install {moto}"))?;
    }
    put_on_path(sh, &bin)
}

fn works(sh: &Shell, program: &Path) -> bool {
    cmd!(sh, "{program} --help")
        .quiet()
        .ignore_stdout()
        .ignore_stderr()
        .run()
        .is_ok()
}

/// The driver file of lavapipe.
pub(crate) fn lavapipe() -> Option<PathBuf> {
    let files = std::fs::read_dir("/usr/share/vulkan/icd.d").ok()?;
    files.flatten().map(|file| file.path()).find(|path| {
        path.file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with("lvp_icd"))
    })
}

fn debian_package(sh: &Shell, packages: &str, what: &str) -> Result<()> {
    let root = cmd!(sh, "id -u").quiet().read().is_ok_and(|uid| uid == "0");
    if !root || !on_path("apt-get") {
        bail!(
            "the tests need {what}: please install it (Debian: `sudo apt-get install {packages}`)"
        );
    }
    println!("setup: installing {packages} (apt-get)");
    let names = packages.split(' ');
    // A machine whose package lists are empty needs an update first; a failing update does not matter if the lists serve.
    cmd!(sh, "apt-get update")
        .quiet()
        .ignore_stdout()
        .ignore_status()
        .run()?;
    cmd!(
        sh,
        "apt-get install --yes --no-install-recommends {names...}"
    )
    .ignore_stdout()
    .run()
    .with_context(|| format!("apt-get could not install {packages}"))
}

fn on_path(program: &str) -> bool {
    std::env::var_os("PATH").is_some_and(|path| {
        std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
    })
}

fn put_on_path(sh: &Shell, folder: &Path) -> Result<()> {
    let old = sh.var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(
        std::iter::once(folder.to_path_buf()).chain(std::env::split_paths(&old)),
    )?;
    sh.set_var("PATH", path);
    Ok(())
}

fn modified(path: &Path) -> Option<std::time::SystemTime> {
    path.metadata().and_then(|data| data.modified()).ok()
}
