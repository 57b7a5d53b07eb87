//! Every instruction set against the oracle, bit by bit, and the engine's promises on tiny models.

mod engine;
mod kernels;
