//! Where things lie.

use std::path::{Path, PathBuf};

/// The root of the workspace that cargo runs this program for. Asked at run time: clones that share a target directory share
/// the program as well.
pub(crate) fn workspace() -> PathBuf {
    let manifest =
        std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    Path::new(&manifest)
        .parent()
        .expect("xtask lies in the workspace")
        .to_path_buf()
}

/// The target directory that cargo uses.
pub(crate) fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from)
}

/// Where tools of a pinned version are installed: a cache of this project, so that nobody's own tools are replaced.
pub(crate) fn tools() -> PathBuf {
    cache().join("tools")
}

/// The project's cache folder.
fn cache() -> PathBuf {
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(home)
        .unwrap_or_else(std::env::temp_dir)
        .join("fledgling")
}

/// The command, as `cargo build --release` leaves it.
pub(crate) fn fledgling() -> PathBuf {
    target()
        .join("release")
        .join(format!("fledgling{}", std::env::consts::EXE_SUFFIX))
}
