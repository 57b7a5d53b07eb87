//! The main job, from nothing to a page that answers: pull, measure, fine-tune, export, measure again, serve.

use crate::{build, paths};
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::{
    path::{Path, PathBuf},
    process::{Child, Command},
    time::{Duration, Instant},
};
use xshell::{Shell, cmd};

const BASE: &str = "smollm2-135m-instruct";
const CONFIG: &str = "examples/quickstart/quickstart.toml";
const HELD_OUT: &str = "examples/quickstart/valid.jsonl";
const QUESTION: &str = "Which Fledgling command writes the GGUF file?";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Do not open a browser
    #[arg(long)]
    no_browser: bool,
    /// Check that the page and the API answer, then end instead of serving on
    #[arg(long)]
    exit: bool,
    /// Where to serve
    #[arg(long, default_value_t = 8080)]
    port: u16,
}

/// What is measured before and after.
struct Measured {
    perplexity: f64,
    answer: String,
}

pub(crate) fn run(sh: &Shell, args: &Args) -> Result<()> {
    build::web(sh)?;
    step("building the command (with Burn; some minutes the first time)");
    build::workspace(sh)?;
    let started = Instant::now();
    let fledgling = paths::fledgling();

    step("pulling SmolLM2-135M-Instruct");
    let base = PathBuf::from(cmd!(sh, "{fledgling} pull {BASE}").read()?);

    step("measuring it on the held-out questions");
    let before = measure(sh, &base)?;

    step("fine-tuning by LoRA on 150 questions about Fledgling");
    let run = paths::workspace().join("runs/quickstart");
    sh.remove_path(&run)?;
    cmd!(sh, "{fledgling} train {CONFIG}").run()?;

    step("exporting Q8_0");
    let file = run.join("fledgling-quickstart.q8_0.gguf");
    cmd!(
        sh,
        "{fledgling} export {run} --quant q8_0 -o {file} --force"
    )
    .run()?;
    let after = measure(sh, &file)?;
    report(&before, &after, &file, started.elapsed())?;
    serve(&file, args)
}

fn step(what: &str) {
    println!("\n==> {what}");
}

fn measure(sh: &Shell, model: &Path) -> Result<Measured> {
    let fledgling = paths::fledgling();
    let eval = cmd!(sh, "{fledgling} eval {model} --chat {HELD_OUT} --json")
        .quiet()
        .ignore_stderr()
        .read()?;
    let eval: Value = serde_json::from_str(&eval)?;
    let perplexity = eval["models"][0]["perplexity"]
        .as_f64()
        .context("eval gave no perplexity")?;
    let answer = cmd!(sh, "{fledgling} generate {model} --chat --prompt {QUESTION} --max-tokens 64 --temperature 0 --json").quiet().ignore_stderr().read()?;
    let answer: Value = serde_json::from_str(&answer)?;
    let answer = answer["text"]
        .as_str()
        .context("generate gave no text")?
        .trim()
        .to_owned();
    Ok(Measured { perplexity, answer })
}

fn report(before: &Measured, after: &Measured, file: &Path, took: Duration) -> Result<()> {
    println!("\n    {QUESTION}");
    println!(
        "    before:  {}",
        before.answer.replace('\n', "\n             ")
    );
    println!(
        "    after:   {}",
        after.answer.replace('\n', "\n             ")
    );
    println!(
        "    perplexity on the held-out questions: {:.2} before, {:.2} after",
        before.perplexity, after.perplexity
    );
    println!("    {} in {:.0} s", file.display(), took.as_secs_f64());
    ensure!(
        after.perplexity <= before.perplexity / 2.0,
        "the model did not learn: held-out perplexity should have fallen by half or more"
    );
    Ok(())
}

/// The server, ended when this goes out of scope.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // Already gone is as good as ended now.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn serve(file: &Path, args: &Args) -> Result<()> {
    let url = format!("http://127.0.0.1:{}", args.port);
    step(&format!("serving the page and the API at {url}"));
    let port = args.port.to_string();
    let child = Command::new(paths::fledgling())
        .arg("serve")
        .arg(file)
        .args(["--host", "127.0.0.1", "--port", &port])
        .args(["--page"])
        .arg(paths::workspace().join("web/dist"))
        .spawn()?;
    let mut server = Server(child);
    wait_until_ready(&mut server, args.port)?;
    if args.exit {
        return check_answers(args.port);
    }
    if !args.no_browser {
        open_browser(&url);
    }
    println!(
        "    the page computes on your GPU through WebGPU, the API on the CPU; Ctrl-C ends the server"
    );
    let status = server.0.wait()?;
    ensure!(status.success(), "the server ended with {status}");
    Ok(())
}

fn wait_until_ready(server: &mut Server, port: u16) -> Result<()> {
    for _ in 0..100 {
        if let Some(status) = server.0.try_wait()? {
            bail!("the server ended at once ({status}); is port {port} in use? Try --port");
        }
        if http(port, "GET", "/healthz", "").is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
        {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    bail!("the server did not become ready within 10 s")
}

fn check_answers(port: u16) -> Result<()> {
    let page = http(port, "GET", "/", "")?;
    ensure!(
        page.starts_with("HTTP/1.1 200") && page.contains("<title>"),
        "the page did not answer: {page:.200}"
    );
    let body = serde_json::json!({"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 64, "temperature": 0}).to_string();
    let answer = http(port, "POST", "/v1/chat/completions", &body)?;
    let json = answer
        .split_once("\r\n\r\n")
        .map(|(_, json)| json)
        .context("the API gave no body")?;
    let json: Value = serde_json::from_str(json)
        .with_context(|| format!("the API gave no JSON: {answer:.300}"))?;
    let text = json["choices"][0]["message"]["content"]
        .as_str()
        .context("the API gave no answer")?;
    println!("    the page is there; the API says: {text}");
    Ok(())
}

/// One HTTP/1.0-style exchange, enough for a server of our own on this machine.
fn http(port: u16, method: &str, path: &str, body: &str) -> Result<String> {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_mins(1)))?;
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// Opens the page where the platform knows how; a machine without a desktop just prints the address.
fn open_browser(url: &str) {
    let opener = if cfg!(target_os = "macos") {
        "open"
    } else {
        "xdg-open"
    };
    if Command::new(opener)
        .arg(url)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .is_err()
    {
        println!("    open {url} in your browser");
    }
}
