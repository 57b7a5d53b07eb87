//! What is known of a run afterwards, read without Burn: `metrics.jsonl` holds the [`events`] that training wrote, one a line.

pub mod environment;
pub mod events;
pub mod history;
