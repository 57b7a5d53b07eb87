//! Cross-target tests.

pub mod runtime_api;
