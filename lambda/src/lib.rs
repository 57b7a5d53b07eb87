//! The HTTP API (under construction).
#![deny(unsafe_code)]

mod mapped;

pub use mapped::mapped_file;
