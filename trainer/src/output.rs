//! Results go to standard output, everything else to standard error; a reader that closes its end is no failure.

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use std::{
    io::{self, Write},
    sync::{Mutex, MutexGuard, PoisonError},
};

/// The reader of standard output went away (`fledgling … | head`): the command ends quietly.
#[derive(Debug, thiserror::Error)]
#[error("standard output was closed")]
pub struct StdoutClosed;

/// Wrong use that clap cannot see: exit status 2, as clap's own.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(pub String);

/// Writes a piece of a result and flushes it, so that streamed text appears at once.
///
/// # Errors
/// [`StdoutClosed`] when nobody reads any more; otherwise what the system says (a full disk behind a redirection).
pub fn print(text: &str) -> Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(StdoutClosed.into()),
        Err(error) => Err(error).context("the result could not be written to standard output"),
    }
}

/// Writes a result for machines: one line of JSON.
///
/// # Errors
/// As [`print`].
pub fn print_json(result: &impl Serialize) -> Result<()> {
    let mut line = serde_json::to_string(result)?;
    line.push('\n');
    print(&line)
}

/// Takes what is told a person; false when it cannot.
pub type NoteTaker = Box<dyn Fn(&str) -> bool + Send>;

/// Where notes go while standard error is drawn on.
static NOTES: Mutex<Option<NoteTaker>> = Mutex::new(None);

fn note_taker() -> MutexGuard<'static, Option<NoteTaker>> {
    NOTES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sends notes elsewhere, and hides bars, for as long as a screen is drawn on standard error; `None` sends them there again.
pub fn divert_notes(taker: Option<NoteTaker>) {
    *note_taker() = taker;
}

/// Tells a person something, on standard error.
pub fn note(text: impl AsRef<str>) {
    if note_taker()
        .as_ref()
        .is_some_and(|take| take(text.as_ref()))
    {
        return;
    }
    // Nobody is left to tell when standard error itself is closed.
    let _ = writeln!(io::stderr().lock(), "{}", text.as_ref());
}

/// A bar for `total` bytes (a spinner when the total is unknown), on standard error and only on a terminal.
pub fn byte_bar(what: &str, total: Option<u64>) -> ProgressBar {
    let template = match total {
        Some(_) => "{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} ETA {eta}",
        None => "{msg} {spinner} {bytes} {bytes_per_sec}",
    };
    bar(what, total, template)
}

/// A bar for `total` steps of one kind (`windows`, `tensors`).
pub fn step_bar(what: &str, total: u64) -> ProgressBar {
    bar(what, Some(total), "{msg} {bar:30} {pos}/{len} ETA {eta}")
}

/// Something runs and says nothing about how far it is.
pub fn spinner(what: &str) -> ProgressBar {
    let bar = bar(what, None, "{msg} {spinner} {elapsed}");
    bar.enable_steady_tick(std::time::Duration::from_millis(100));
    bar
}

fn bar(what: &str, total: Option<u64>, template: &str) -> ProgressBar {
    let target = if note_taker().is_some() {
        ProgressDrawTarget::hidden()
    } else {
        ProgressDrawTarget::stderr_with_hz(10)
    };
    let bar = ProgressBar::with_draw_target(total, target);
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.with_message(what.to_owned())
}
