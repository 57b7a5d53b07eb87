//! From a heap of documents to clean token shards: what `fledgling data prepare` does.
//!
//! ```text
//! sources -> collect -> clean -> spool -> dedupe -> split -> decontaminate -> encode -> pack -> shards + report
//! ```
//!
//! Documents never are in memory all at once: [`collect`] streams them, [`clean`] looks at one at a time, the [`spool`] keeps
//! them on disk, and [`dedupe`] sorts fixed-size records partition by partition. The result depends on the config and the
//! documents only: not on threads, nor on the order of files.
//!
//! The crate knows no command line and no Burn. The command shows [`control::Control`]'s progress, the trainer reads
//! [`shards`].

pub mod clean;
pub mod collect;
pub mod config;
pub mod control;
pub mod dedupe;
pub mod document;
pub mod encode;
pub mod pack;
pub mod prepare;
pub mod report;
pub mod shards;
pub mod split;
pub mod spool;
pub mod tokenizer_training;
pub mod toml_config;
pub mod words;
