//! What a model can do, on the CPU engine or another one: perplexity, tasks, a comparison with a reference, the quality of its text; a report of it,
//! and advice.
//!
//! ```text
//! text, shards, rows ------> perplexity --+
//! task.toml -> items ------> task --------+--> Report -> page (HTML), JSON
//! two engines in lockstep -> reference ---+         \--> advice
//! prompts -----------------> quality -----+
//! ```
//!
//! Memory is bounded: logits are reduced as they come ([`logits`]), and nothing is kept but a few numbers a token. Every figure has its
//! standard error ([`stats`]). The crate knows no command line and no Burn; who calls it gives a
//! [`Control`](fledgling_data::control::Control) for progress and for the wish to stop.

pub mod advice;
pub mod engine;
pub mod logits;
pub mod page;
pub mod perplexity;
pub mod plot;
pub mod quality;
pub mod reference;
pub mod report;
pub mod score;
pub mod stats;
pub mod task;
pub mod text;

#[cfg(any(test, feature = "testing"))]
pub mod testing;
