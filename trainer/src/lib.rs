//! The library behind the command `fledgling`, so that tests can call what the command calls.
#![forbid(unsafe_code)]

pub mod adapter;
pub mod advice;
pub mod bench;
pub mod cache;
pub mod chat;
pub mod cli;
pub mod convert;
pub mod data;
pub mod doctor;
pub mod eval;
pub mod export;
pub mod files;
pub mod generate;
pub mod gguf_file;
pub mod hf_folder;
pub mod inspect;
pub mod interrupt;
pub mod manifest;
pub mod model;
pub mod output;
pub mod page;
pub mod pull;
pub mod remote;
pub mod report;
pub mod run;
pub mod runs;
pub mod serve;
pub mod tokenize;
pub mod tokenizer;
#[cfg(feature = "train")]
pub mod train;
pub mod verify;
