//! A model's files: one GGUF file, or all parts of one that lies in several.

use crate::mapped_file;
use fledgling_core::gguf::{
    Gguf, GgufError,
    split::{self, PartName},
};
use std::{
    io,
    path::{Path, PathBuf},
};

/// Missing parts that a message names.
const MAX_NAMED: usize = 3;

/// A model, mapped.
#[derive(Debug)]
pub struct MappedModel {
    /// Its contents.
    pub gguf: Gguf,
    /// Its files, in the order of the parts.
    pub files: Vec<PathBuf>,
}

/// Maps the model at `path`: a file, or any part of one that lies in several (`NAME-00001-of-00003.gguf`), whose other parts are
/// taken from the same folder.
///
/// # Errors
/// When a file cannot be mapped or is broken, or a part is missing or of another model; with the path.
pub fn mapped_model(path: impl AsRef<Path>) -> Result<MappedModel, ModelFileError> {
    let path = path.as_ref();
    let gguf = Gguf::parse(mapped_file(path)?).map_err(|error| broken(path, error))?;
    let Some(count) = split::n_parts(&gguf.header().metadata) else {
        let files = vec![path.to_owned()];
        return Ok(MappedModel { gguf, files });
    };
    drop(gguf);
    let files = parts_of(path, count)?;
    let maps = files.iter().map(mapped_file).collect::<Result<_, _>>()?;
    let gguf = Gguf::from_parts(maps).map_err(|error| {
        let (GgufError::InPart { no, .. }
        | GgufError::PartNumber { no, .. }
        | GgufError::ForeignPart { no }) = &error
        else {
            return broken(path, error);
        };
        broken(&files[*no as usize - 1], error)
    })?;
    Ok(MappedModel { gguf, files })
}

/// The parts in `folder` of the model that is called `prefix`: that of the lowest number, for each number of parts there is.
pub fn first_parts(folder: &Path, prefix: &str) -> Vec<PathBuf> {
    let mut found: Vec<PartName> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| PartName::parse(entry.file_name().to_str()?))
        .filter(|name| name.prefix == prefix)
        .collect();
    found.sort_by_key(|name| (name.count, name.no));
    found.dedup_by_key(|name| name.count);
    let path = |name: &PartName| folder.join(name.file_name(name.no));
    found.iter().map(path).collect()
}

/// The paths of all parts, by the name of one.
fn parts_of(path: &Path, count: u64) -> Result<Vec<PathBuf>, ModelFileError> {
    let name = path.file_name().and_then(|name| name.to_str());
    let name = name
        .and_then(PartName::parse)
        .filter(|name| u64::from(name.count) == count);
    let Some(name) = name else {
        let path = path.to_owned();
        return Err(ModelFileError::PartName { path, count });
    };
    let paths: Vec<_> = (1..=name.count)
        .map(|no| path.with_file_name(name.file_name(no)))
        .collect();
    let missing: Vec<_> = paths.iter().filter(|path| !path.is_file()).collect();
    if missing.is_empty() {
        return Ok(paths);
    }
    let named: Vec<_> = missing
        .iter()
        .take(MAX_NAMED)
        .map(|path| path.display().to_string())
        .collect();
    Err(ModelFileError::MissingParts {
        n_missing: missing.len(),
        count,
        named: named.join(", "),
    })
}

fn broken(path: &Path, error: GgufError) -> ModelFileError {
    let path = path.to_owned();
    ModelFileError::Gguf { path, error }
}

/// Why a model's files could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelFileError {
    /// A file cannot be mapped.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A file is broken.
    #[error("{}: {error}", path.display())]
    Gguf {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: GgufError,
    },
    /// The other parts are found by name.
    #[error(
        "{} is one of {count} parts of a model and is not called so: give it back its name, NAME-00001-of-{count:05}.gguf for the first", path.display()
    )]
    PartName {
        /// The file.
        path: PathBuf,
        /// How many parts there are.
        count: u64,
    },
    /// Parts are not there.
    #[error("{n_missing} of the model's {count} parts are missing: put them beside the others ({named}{})", if *n_missing > MAX_NAMED { ", …" } else { "" })]
    MissingParts {
        /// How many are missing.
        n_missing: usize,
        /// How many there are.
        count: u64,
        /// The first of them.
        named: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use fledgling_core::{gguf::TensorDecl, quant::DType, spec::Family, testing::tiny_model};

    /// A model in parts of at most `max_bytes`, written under `prefix`. How many there are.
    fn write_parts(folder: &Path, prefix: &str, seed: u64, max_bytes: u64) -> u32 {
        let whole = Gguf::parse(tiny_model(Family::Llama, DType::Q8_0, seed).into()).unwrap();
        let header = whole.header();
        let decls: Vec<_> = header
            .tensors
            .iter()
            .map(|info| TensorDecl {
                name: info.name.clone(),
                dtype: info.dtype,
                shape: info.shape.iter().rev().map(|n| *n as usize).collect(),
            })
            .collect();
        let id = seed.to_string();
        let layouts = split::split(&header.metadata, &decls, max_bytes, &id).unwrap();
        let count = layouts.len() as u32;
        for (no, layout) in (1..).zip(layouts) {
            let names: Vec<_> = layout
                .header()
                .tensors
                .iter()
                .map(|i| i.name.clone())
                .collect();
            let mut writer = layout.write_to(Vec::new()).unwrap();
            for name in names {
                writer
                    .write_tensor(&name, &whole.tensor(&name).unwrap().1)
                    .unwrap();
            }
            let name = PartName {
                prefix: prefix.to_owned(),
                no,
                count,
            };
            std::fs::write(folder.join(name.file_name(no)), writer.finish().unwrap()).unwrap();
        }
        count
    }

    fn message(path: &Path) -> String {
        mapped_model(path).unwrap_err().to_string()
    }

    #[test]
    fn any_part_opens_the_model() {
        let dir = tempfile::tempdir().unwrap();
        let count = write_parts(dir.path(), "tiny", 1, 40_000);
        assert!(count >= 3, "{count} parts");
        let whole = Gguf::parse(tiny_model(Family::Llama, DType::Q8_0, 1).into()).unwrap();
        for no in 1..=count {
            let model =
                mapped_model(dir.path().join(format!("tiny-{no:05}-of-{count:05}.gguf"))).unwrap();
            assert_eq!(model.files.len(), count as usize);
            assert_eq!(model.gguf.header().metadata, whole.header().metadata);
            for info in &whole.header().tensors {
                assert_eq!(
                    model.gguf.tensor(&info.name).unwrap().1,
                    whole.tensor(&info.name).unwrap().1
                );
            }
        }
        let first = first_parts(dir.path(), "tiny");
        assert_eq!(
            first,
            [dir.path().join(format!("tiny-00001-of-{count:05}.gguf"))]
        );
        assert!(first_parts(dir.path(), "tin").is_empty());
    }

    #[test]
    fn what_is_wrong_with_a_part_is_told_with_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let count = write_parts(dir.path(), "tiny", 1, 40_000);
        let part = |prefix: &str, no: u32| {
            dir.path()
                .join(format!("{prefix}-{no:05}-of-{count:05}.gguf"))
        };
        assert_eq!(write_parts(dir.path(), "other", 2, 40_000), count);

        std::fs::rename(part("tiny", 2), dir.path().join("kept")).unwrap();
        let text = message(&part("tiny", 1));
        assert!(
            text.contains(&format!("1 of the model's {count} parts are missing"))
                && text.contains("tiny-00002"),
            "{text}"
        );

        std::fs::copy(part("other", 2), part("tiny", 2)).unwrap();
        let text = message(&part("tiny", 1));
        assert!(
            text.contains("tiny-00002") && text.contains("another model"),
            "{text}"
        );

        std::fs::copy(part("tiny", 3), part("tiny", 2)).unwrap();
        let text = message(&part("tiny", 1));
        assert!(
            text.contains(&format!("part 2 of {count} says that it is part 3")),
            "{text}"
        );

        let bytes = std::fs::read(dir.path().join("kept")).unwrap();
        std::fs::write(part("tiny", 2), &bytes[..bytes.len() - 64]).unwrap();
        let text = message(&part("tiny", 1));
        assert!(
            text.contains("tiny-00002") && text.contains("truncated"),
            "{text}"
        );

        std::fs::rename(part("other", 1), dir.path().join("renamed.gguf")).unwrap();
        let text = message(&dir.path().join("renamed.gguf"));
        assert!(
            text.contains("renamed.gguf is one of") && text.contains("is not called so"),
            "{text}"
        );
    }
}
