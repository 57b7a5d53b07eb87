//! What a Fledgling model file means, and how it computes. Bytes in, numbers out.
//!
//! This crate opens no file, reads no clock and no environment, and builds for `wasm32-unknown-unknown`.
//! The terminal, the Lambda function and the browser all read the same file through it, and the CPU engine
//! gives the same bits on each of them (see "The arithmetic" in ARCHITECTURE.md).
#![warn(missing_docs)]

pub mod chat;
pub mod cpu;
pub mod generate;
pub mod gguf;
pub mod model;
pub mod quant;
pub mod sampler;
pub mod spec;
pub mod speculate;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod tokenizer;
mod xxh64;
