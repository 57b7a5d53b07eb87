//! How a long job tells where it is, and hears that it shall end.

use anyhow::{Result, bail};

/// What the caller of a long job gives it. Called from several threads.
pub trait Control: Sync {
    /// A stage begins; it has so many bytes or documents (`unit` says which) to go through, where that is known.
    fn begin(&self, stage: &str, unit: Unit, total: Option<u64>);
    /// So many more are done.
    fn advance(&self, n: u64);
    /// A line for the person who watches.
    fn note(&self, line: &str);
    /// Whether somebody wishes to stop.
    fn cancelled(&self) -> bool;

    /// Fails when somebody wishes to stop.
    ///
    /// # Errors
    /// [`Cancelled`].
    fn check(&self) -> Result<()> {
        if self.cancelled() {
            bail!(Cancelled);
        }
        Ok(())
    }
}

/// What a stage counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Bytes of input.
    Bytes,
    /// Documents.
    Documents,
}

/// Somebody wished to stop; what was finished stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cancelled;

impl std::fmt::Display for Cancelled {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("stopped; the same command goes on from here")
    }
}

impl std::error::Error for Cancelled {}

/// Nobody watches, nobody stops.
#[derive(Debug, Clone, Copy)]
pub struct Quiet;

impl Control for Quiet {
    fn begin(&self, _: &str, _: Unit, _: Option<u64>) {}
    fn advance(&self, _: u64) {}
    fn note(&self, _: &str) {}
    fn cancelled(&self) -> bool {
        false
    }
}
