//! A model file as bytes, mapped into memory: nothing is read before it is needed, and the pages are shared between
//! processes and given back under memory pressure. The one place of this crate with `unsafe` in it.
#![allow(
    unsafe_code,
    reason = "memmap2 cannot promise that nobody truncates the file; see SAFETY below"
)]

use bytes::Bytes;
use std::{fs::File, io, path::Path};

/// Maps the file at `path` read-only. The bytes live as long as any clone of the result.
///
/// The file must not be shortened while it is mapped: replace a model by writing beside it and renaming, as
/// `fledgling export` does, which leaves the old file to those who have it open.
///
/// # Errors
/// Those of opening and mapping, with the path in the message; a directory and an empty file are refused too.
pub fn mapped_file(path: impl AsRef<Path>) -> io::Result<Bytes> {
    let path = path.as_ref();
    map(path).map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}

fn map(path: &Path) -> io::Result<Bytes> {
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not a regular file",
        ));
    }
    if metadata.len() == 0 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the file is empty",
        ));
    }
    // SAFETY: the mapping is private and read-only, and no code of ours writes to a file that it maps: models are
    // written beside their place and renamed, which keeps the old inode. What remains is another program truncating
    // the file in place; that ends the process with SIGBUS, it cannot make memory of ours invalid.
    let map = unsafe { memmap2::MmapOptions::new().map_copy_read_only(&file)? };
    Ok(Bytes::from_owner(map))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_the_bytes_of_the_file_and_outlives_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.gguf");
        std::fs::write(&path, b"GGUF and more").unwrap();
        let bytes = mapped_file(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(&bytes[..], b"GGUF and more");
    }

    #[test]
    fn names_the_path_of_what_it_cannot_map() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("missing.gguf");
        let error = mapped_file(&missing).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(error.to_string().contains("missing.gguf"), "{error}");

        let error = mapped_file(dir.path()).unwrap_err();
        assert!(error.to_string().contains("not a regular file"), "{error}");

        let empty = dir.path().join("empty.gguf");
        std::fs::write(&empty, b"").unwrap();
        let error = mapped_file(&empty).unwrap_err();
        assert!(error.to_string().contains("empty"), "{error}");
    }
}
