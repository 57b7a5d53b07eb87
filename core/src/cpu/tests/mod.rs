//! Every instruction set against the oracle, bit by bit, and the engine's promises on tiny models.

#![allow(clippy::unwrap_used, reason = "tests")]

mod engine;
mod kernels;
mod session;
mod speculate;
