//! The same file on each target, through the door that its users take: the command, a page in a real browser, the
//! Lambda function behind its Runtime API. (The native WebGPU engine needs wgpu and stands in the test itself.)

use crate::runtime_api::{RuntimeApi, url_event};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    process::Command,
};

/// A greedy completion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Completion {
    /// The prompt's tokens.
    pub prompt_ids: Vec<u32>,
    /// The new tokens.
    pub token_ids: Vec<u32>,
    /// Their text.
    pub text: String,
}

/// The root of the workspace.
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// A program of this workspace, built beside this test.
///
/// # Errors
/// When it is not there.
pub fn program(name: &str) -> Result<PathBuf> {
    let test = std::env::current_exe()?;
    let folder = test
        .ancestors()
        .nth(2)
        .context("a test lies in target/<profile>/deps")?;
    let path = folder.join(format!("{name}{}", std::env::consts::EXE_SUFFIX));
    ensure!(
        path.is_file(),
        "{} is not built: run `cargo xtask test`",
        path.display()
    );
    Ok(path)
}

/// Runs a command to its end and gives its standard output; what it said on standard error becomes the error.
///
/// # Errors
/// When it cannot be started or fails.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("{command:?} does not start"))?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{command:?} failed ({}):\n{stderr}",
        output.status
    );
    Ok(String::from_utf8(output.stdout)?)
}

/// Runs the command `fledgling`.
///
/// # Errors
/// When it fails.
pub fn fledgling<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Result<String> {
    output(Command::new(program("fledgling")?).args(args))
}

/// The file of SmolLM2-135M-Instruct, pulled if it is not there yet.
///
/// # Errors
/// When it cannot be pulled.
pub fn smollm2() -> Result<PathBuf> {
    Ok(PathBuf::from(
        fledgling(["pull", "smollm2-135m-instruct"])?.trim(),
    ))
}

/// The terminal: `fledgling generate`.
///
/// # Errors
/// When it fails.
pub fn terminal(model: &Path, prompt: &str, n_tokens: usize) -> Result<Completion> {
    let n = n_tokens.to_string();
    let answer = output(
        Command::new(program("fledgling")?)
            .arg("generate")
            .arg(model)
            .args([
                "--prompt",
                prompt,
                "--max-tokens",
                &n,
                "--temperature",
                "0",
                "--json",
            ]),
    )?;
    let answer: Value = serde_json::from_str(&answer)?;
    completion(&answer, "prompt_token_ids", "token_ids")
}

/// A page in headless Chromium, on `device` (`webgpu` runs on SwiftShader).
///
/// # Errors
/// When it fails, or the page took another device.
pub fn browser(model: &Path, prompt: &str, n_tokens: usize, device: &str) -> Result<Completion> {
    let n = n_tokens.to_string();
    let answer = output(
        Command::new("node")
            .current_dir(workspace().join("web"))
            .args([
                "e2e/parity.mjs",
                "--timeout-s",
                "1200",
                "--prompt",
                prompt,
                "--max-tokens",
                &n,
                "--device",
                device,
                "--model",
            ])
            .arg(model),
    )?;
    let answer: Value = serde_json::from_str(&answer)?;
    ensure!(
        answer["device"]["kind"] == device,
        "the page ran on {}",
        answer["device"]
    );
    completion(&answer, "promptTokens", "tokenIds")
}

fn completion(answer: &Value, prompt_key: &str, tokens_key: &str) -> Result<Completion> {
    let ids = |key: &str| -> Result<Vec<u32>> { Ok(serde_json::from_value(answer[key].clone())?) };
    let text = answer["text"].as_str().context("no text")?.to_owned();
    Ok(Completion {
        prompt_ids: ids(prompt_key)?,
        token_ids: ids(tokens_key)?,
        text,
    })
}

/// The Lambda function: `POST /v1/completions` through a function URL's event.
///
/// # Errors
/// When it does not start or answers anything but 200.
pub fn lambda(model: &Path, prompt: &str, n_tokens: usize) -> Result<Completion> {
    let api = RuntimeApi::start()?;
    let model = model.to_str().context("the path is no UTF-8")?;
    let _function = api.spawn(
        &program("fledgling-lambda")?,
        1769,
        &[("FLEDGLING_MODEL", model)],
    )?;
    let body = json!({
        "prompt": prompt, "max_tokens": n_tokens, "temperature": 0, "return_token_ids": true
    });
    let json_type = [("content-type", "application/json")];
    let event = url_event(
        "POST",
        "/v1/completions",
        &json_type,
        Some(Ok(&body.to_string())),
    );
    let answer = api.invoke(&event).answer().map_err(anyhow::Error::msg)?;
    let status = answer.status();
    let answer = answer.json();
    ensure!(status == 200, "the function answered {status}: {answer}");
    ensure!(
        api.violations().is_empty(),
        "it broke the Runtime API's rules: {:?}",
        api.violations()
    );
    completion(&answer["choices"][0], "prompt_token_ids", "token_ids")
}
