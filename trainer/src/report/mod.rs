//! What is known of a run afterwards, read without Burn: `metrics.jsonl` holds the [`events`] that training wrote, one a line;
//! [`history`] is all of them, [`overview`] a few figures, [`mod@page`] a report, [`compare`] several runs on one page.

pub mod compare;
pub mod environment;
pub mod events;
pub mod history;
pub mod overview;
pub mod page;
pub use fledgling_eval::{plot, text};
