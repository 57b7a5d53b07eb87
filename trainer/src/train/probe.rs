//! What is tried in a child process, because a GPU's driver may crash or hang whoever loads it: the command calls
//! itself as `fledgling doctor --probe WHAT`, with a time limit, and reads one line of JSON.
//!
//! As a library (in a test, say) there is no command to call: then it happens in this process.

use super::{
    bench,
    config::Dtype,
    device::{self, Gpu},
    selftest,
};
use crate::output::print_json;
use anyhow::{Context, Result, bail, ensure};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    fmt,
    io::Read,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    str::FromStr,
    sync::OnceLock,
    thread,
    time::{Duration, Instant},
};

/// Drivers that have not answered by then hang.
pub const LIST_TIMEOUT: Duration = Duration::from_secs(30);
/// The first steps on a device compile and measure kernels: a minute or two on a software GPU with two cores.
pub const TEST_TIMEOUT: Duration = Duration::from_mins(15);
/// Lines of a crashed child's last words that are shown.
const LAST_WORDS: usize = 3;

/// Switches off a layer of Mesa's that asks the display server which GPU is the desktop's.
const NO_DEVICE_SELECT: &str = "NODEVICE_SELECT";

static COMMAND: OnceLock<PathBuf> = OnceLock::new();

/// Says that this process is the command `fledgling`, so that it can call itself.
pub fn this_is_the_command() {
    if let Ok(path) = std::env::current_exe() {
        // A second call says the same.
        let _ = COMMAND.set(path);
    }
}

/// Starts the command over where Mesa's drivers would print that there is no display server: on a machine without a
/// desktop, each time somebody asks for GPUs. Their switch is an environment variable, and no process can set its own
/// safely.
pub fn without_display() {
    #[cfg(target_os = "linux")]
    {
        use std::os::unix::process::CommandExt;
        let unset = |name| std::env::var_os(name).is_none();
        if let Some(command) = COMMAND.get()
            && unset(NO_DEVICE_SELECT)
            && unset("XDG_RUNTIME_DIR")
        {
            // Returns only when it fails; then there is some noise.
            let _ = Command::new(command)
                .args(std::env::args_os().skip(1))
                .env(NO_DEVICE_SELECT, "1")
                .exec();
        }
    }
}

/// What a child does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probe {
    /// List the GPUs: `Vec<Gpu>`.
    List,
    /// Self-test of a GPU: [`selftest::Outcome`].
    Test(usize, Dtype),
    /// Training speed of a GPU, or of the CPU: [`bench::Speed`].
    Speed(Option<usize>),
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::List => f.write_str("list"),
            Self::Test(idx, dtype) => write!(f, "test:{idx}:{dtype}"),
            Self::Speed(None) => f.write_str("speed:cpu"),
            Self::Speed(Some(idx)) => write!(f, "speed:{idx}"),
        }
    }
}

impl FromStr for Probe {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<_> = text.split(':').collect();
        let idx = |text: &str| text.parse::<usize>().ok();
        match parts.as_slice() {
            ["list"] => Some(Self::List),
            ["speed", "cpu"] => Some(Self::Speed(None)),
            ["speed", number] => idx(number).map(|idx| Self::Speed(Some(idx))),
            ["test", number, dtype] => idx(number)
                .zip(Dtype::from_name(dtype))
                .map(|(idx, dtype)| Self::Test(idx, dtype)),
            _ => None,
        }
        .ok_or_else(|| format!("{text} is no probe"))
    }
}

/// The child's side: does it, and prints the answer.
///
/// # Errors
/// When the GPU is not there.
pub fn answer(probe: Probe) -> Result<()> {
    match probe {
        Probe::List => print_json(&device::enumerate()),
        Probe::Test(idx, dtype) => print_json(&selftest::test(&gpu(idx)?, dtype)),
        Probe::Speed(idx) => {
            let device = match idx {
                Some(idx) => gpu(idx)?.device()?,
                None => burn::tensor::Device::flex(),
            };
            print_json(&bench::speed(&device)?)
        }
    }
}

fn gpu(idx: usize) -> Result<Gpu> {
    device::enumerate()
        .into_iter()
        .nth(idx)
        .with_context(|| format!("there is no GPU {idx} any more"))
}

/// What a child answers to `probe`.
///
/// # Errors
/// When it crashes, takes longer than `timeout`, or fails; with its last words.
pub fn run<T: Serialize + DeserializeOwned>(probe: &Probe, timeout: Duration) -> Result<T> {
    match COMMAND.get() {
        Some(command) => {
            let mut child = Command::new(command);
            child.args(["doctor", "--probe", &probe.to_string()]);
            child.env(NO_DEVICE_SELECT, "1");
            Ok(serde_json::from_slice(&output_of(child, timeout)?)?)
        }
        None => in_process(*probe),
    }
}

fn in_process<T: DeserializeOwned>(probe: Probe) -> Result<T> {
    let value = match probe {
        Probe::List => serde_json::to_value(device::enumerate())?,
        Probe::Test(idx, dtype) => serde_json::to_value(selftest::test(&gpu(idx)?, dtype))?,
        Probe::Speed(_) => bail!("speed is measured by the command only"),
    };
    Ok(serde_json::from_value(value)?)
}

/// Standard output of a process that ends well in time.
fn output_of(mut command: Command, timeout: Duration) -> Result<Vec<u8>> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start this command again")?;
    let output = child.stdout.take().map(read_all);
    let words = child.stderr.take().map(read_all);
    let status = wait(&mut child, timeout)?;
    let collected = |thread: Option<thread::JoinHandle<Vec<u8>>>| {
        thread
            .and_then(|thread| thread.join().ok())
            .unwrap_or_default()
    };
    let Some(status) = status else {
        bail!("it did not answer within {} s", timeout.as_secs());
    };
    let (output, words) = (collected(output), collected(words));
    ensure!(
        status.success(),
        "the process that tried it ended with {status}{}",
        last_words(&words)
    );
    Ok(output)
}

fn read_all(mut pipe: impl Read + Send + 'static) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // What was read until the pipe broke is what there is.
        let _ = pipe.read_to_end(&mut bytes);
        bytes
    })
}

/// The child's status, or nothing once it has been killed for taking too long.
fn wait(child: &mut Child, timeout: Duration) -> Result<Option<ExitStatus>> {
    let (started, mut pause) = (Instant::now(), Duration::from_millis(2));
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if started.elapsed() > timeout {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(200));
    }
}

fn last_words(words: &[u8]) -> String {
    let text = String::from_utf8_lossy(words);
    let lines: Vec<_> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    let from = lines.len().saturating_sub(LAST_WORDS);
    if lines.is_empty() {
        String::new()
    } else {
        format!(": {}", lines[from..].join(" / "))
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    fn shell(script: &str, timeout_ms: u64) -> Result<String> {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        let output = output_of(command, Duration::from_millis(timeout_ms))?;
        Ok(String::from_utf8(output)?)
    }

    #[test]
    fn a_crash_and_a_hang_are_errors_and_their_noise_is_kept_away() {
        assert_eq!(shell("echo noise >&2; echo 3", 10_000).unwrap(), "3\n");
        let crash = shell("echo first >&2; echo bad driver >&2; kill -SEGV $$", 10_000);
        let crash = format!("{:#}", crash.unwrap_err());
        assert!(
            crash.contains("signal") && crash.contains("bad driver"),
            "{crash}"
        );
        let hang = format!("{:#}", shell("exec sleep 60", 50).unwrap_err());
        assert!(hang.contains("did not answer"), "{hang}");
    }

    #[test]
    fn probes_are_read_as_they_are_written() {
        for probe in [
            Probe::List,
            Probe::Test(2, Dtype::Bf16),
            Probe::Speed(None),
            Probe::Speed(Some(1)),
        ] {
            assert_eq!(probe.to_string().parse(), Ok(probe));
        }
        assert!("test:x:f32".parse::<Probe>().is_err());
    }
}
