//! Where the built web page lies.

use anyhow::{Result, bail};
use std::path::{Path, PathBuf};

/// The folder of the built page: the one that was named, or the first place that has one.
///
/// # Errors
/// When the named folder has no `index.html`.
pub fn find_page(named: Option<&Path>) -> Result<Option<PathBuf>> {
    let has_page = |folder: &Path| folder.join("index.html").is_file();
    if let Some(folder) = named {
        if !has_page(folder) {
            bail!(
                "--page {}: there is no index.html in it; build the page with `cargo xtask web` (it goes to web/dist)",
                folder.display()
            );
        }
        return Ok(Some(folder.to_owned()));
    }
    let command = std::env::current_exe().ok();
    let beside = command.as_deref().and_then(Path::parent);
    let places = [
        beside.map(|folder| folder.join("page")),
        beside
            .and_then(Path::parent)
            .map(|prefix| prefix.join("share/fledgling/page")),
        Some(PathBuf::from("web/dist")),
    ];
    Ok(places.into_iter().flatten().find(|folder| has_page(folder)))
}
