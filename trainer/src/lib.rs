//! The library behind the command `fledgling`, so that tests can call what the command calls.
#![forbid(unsafe_code)]

pub mod run;
#[cfg(feature = "train")]
pub mod train;
