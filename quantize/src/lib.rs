//! Quantisation that knows what a model computes with its weights.
//!
//! ```text
//! text -> engine -> moments: X^T X of what every matrix reads
//!                      |-> factor: what an error in one column can still be made good by in the next
//!                      |      '-> feedback: integers with that done            -> blocks
//!                      '-> sensitivity: what each type of each matrix costs    -> types under a limit
//! ```
//!
//! Blocks, their search and named recipes are [`fledgling_core::quant`]'s, which knows one row at a time and no text.

mod factor;
mod feedback;
mod moments;
mod rows;
pub mod select;
pub mod sensitivity;

pub use factor::Factor;
pub use feedback::{Compensated, quantize_with_feedback};
pub use moments::{Input, Moments};
pub use rows::quantize_rows;
