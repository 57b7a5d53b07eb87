//! In a build without the feature `cloud`: every URL is an error that names it.

use super::{Listing, Object};
use anyhow::{Result, bail};
use bytes::Bytes;
use std::path::{Path, PathBuf};

/// A place in an object store, of which there are none in this build.
#[derive(Debug, Clone)]
pub struct Remote(std::convert::Infallible);

#[expect(
    clippy::missing_errors_doc,
    reason = "the same functions as of a build with the feature, none of which can be called"
)]
impl Remote {
    /// # Errors
    /// Always.
    pub fn open(url: &str) -> Result<Self> {
        bail!(
            "{url}: this build has no object stores: build with the feature `cloud`, or name a local file"
        )
    }
    #[must_use]
    pub fn below(&self, _name: &str) -> Self {
        match self.0 {}
    }
    pub fn url(&self) -> &str {
        match self.0 {}
    }
    pub fn local_path(&self) -> Option<PathBuf> {
        match self.0 {}
    }
    pub fn list(&self) -> Result<Listing> {
        match self.0 {}
    }
    pub fn head(&self) -> Result<Option<Object>> {
        match self.0 {}
    }
    pub fn read(&self) -> Result<Option<Bytes>> {
        match self.0 {}
    }
    pub fn write(&self, _bytes: Bytes) -> Result<()> {
        match self.0 {}
    }
    pub fn upload(&self, _path: &Path) -> Result<()> {
        match self.0 {}
    }
    pub fn download(&self, _target: &Path) -> Result<()> {
        match self.0 {}
    }
    pub fn remove(&self) -> Result<()> {
        match self.0 {}
    }
    pub fn remove_all(&self, _first: &str) -> Result<()> {
        match self.0 {}
    }
}
