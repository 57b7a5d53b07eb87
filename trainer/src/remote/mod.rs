//! Data, models and runs in object stores, by URL: `s3://`, `gs://`, `az://` (and `abfs://`), and `file://` for a local folder.
//!
//! - [`Remote`]: one place in a store;
//! - [`folder`]: folders that are there whole or not at all, by a manifest that is written last;
//! - [`fetch`]: what a URL names as a file or folder of this machine, by way of a cache.

pub mod fetch;
pub mod folder;
#[cfg(feature = "cloud")]
mod store;
#[cfg(not(feature = "cloud"))]
#[path = "absent.rs"]
mod store;

pub use fetch::local_copy;
pub use store::Remote;

use std::collections::BTreeMap;

/// How the URLs begin that are for an object store.
const SCHEMES: [&str; 9] = [
    "s3", "s3a", "gs", "az", "adl", "azure", "abfs", "abfss", "file",
];

/// What lies directly below a place.
#[derive(Debug, Default)]
pub struct Listing {
    /// Names of folders.
    pub folders: Vec<String>,
    /// Objects by name.
    pub objects: BTreeMap<String, Object>,
}

/// What is known of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// Its length.
    pub len_bytes: u64,
    /// What tells its version, where the store has that.
    pub etag: Option<String>,
    /// When it was written.
    pub modified: String,
}

/// Whether `text` is the URL of something in an object store.
pub fn is_url(text: &str) -> bool {
    text.split_once("://")
        .is_some_and(|(scheme, _)| SCHEMES.contains(&scheme))
}
