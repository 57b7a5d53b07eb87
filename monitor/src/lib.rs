//! Watching a model at work: is what people ask still what it was trained for?
//!
//! ```text
//! server:  request -> Record (no text) -> one JSON line of the log
//! command: logs -> read -> Traffic (sums a day) -> watch: against the Baseline -> Findings -> page, JSON, exit status
//! ```
//!
//! A [`record::Record`] is all that a server says of a request; it holds figures and a [`sketch::Sketch`], never a word. The feature
//! `watch` adds the other half, which keeps sums and no records, so that memory grows with days and not with requests.
#![forbid(unsafe_code)]

pub mod record;
pub mod sketch;

#[cfg(feature = "watch")]
pub mod baseline;
#[cfg(feature = "watch")]
pub mod cusum;
#[cfg(feature = "watch")]
pub mod divergence;
#[cfg(feature = "watch")]
pub mod read;
#[cfg(feature = "watch")]
pub mod report;
#[cfg(feature = "watch")]
pub mod traffic;
#[cfg(feature = "watch")]
pub mod watch;
