//! What the cross-target tests share: Lambda's Runtime API in the small, and one function a target.

pub mod runtime_api;
pub mod targets;
