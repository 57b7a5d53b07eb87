//! A safetensors file of f32 values, written one tensor after another: of a large model only one is in memory twice.

use crate::files::{Staged, explain_write};
use anyhow::{Result, ensure};
use serde_json::{Map, json};
use std::{collections::BTreeMap, io::Write, path::Path};

/// Writes `target` whole: tensors in the given order, `values` gives each by name.
///
/// # Errors
/// When the disk is full or may not be written, or values do not fit their shape.
pub fn write_safetensors(
    target: &Path,
    tensors: &[(String, Vec<usize>)],
    notes: &BTreeMap<String, String>,
    mut values: impl FnMut(&str) -> Result<Vec<f32>>,
) -> Result<()> {
    let header = header(tensors, notes)?;
    let mut staged = Staged::create(target, true)?;
    let mut put = |bytes: &[u8]| {
        staged
            .write_all(bytes)
            .map_err(|error| explain_write(error, target))
    };
    put(&(header.len() as u64).to_le_bytes())?;
    put(&header)?;
    let mut bytes = Vec::new();
    for (name, shape) in tensors {
        let values = values(name)?;
        ensure!(
            values.len() == shape.iter().product::<usize>(),
            "`{name}` has {} values, which are not {shape:?}",
            values.len()
        );
        for part in values.chunks(1 << 18) {
            bytes.clear();
            bytes.extend(part.iter().flat_map(|value| value.to_le_bytes()));
            put(&bytes)?;
        }
    }
    staged.commit()
}

/// The header, filled up with spaces so that the values are aligned.
fn header(tensors: &[(String, Vec<usize>)], notes: &BTreeMap<String, String>) -> Result<Vec<u8>> {
    let mut map = Map::new();
    map.insert("__metadata__".to_owned(), json!(notes));
    let mut start = 0;
    for (name, shape) in tensors {
        let end = start + 4 * shape.iter().product::<usize>();
        let old = map.insert(
            name.clone(),
            json!({"dtype": "F32", "shape": shape, "data_offsets": [start, end]}),
        );
        ensure!(old.is_none(), "the tensor `{name}` is there twice");
        start = end;
    }
    let mut bytes = serde_json::to_vec(&map)?;
    bytes.resize(bytes.len().next_multiple_of(8), b' ');
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::safetensors_contents;

    #[test]
    fn what_is_written_is_read_by_the_format_s_own_library() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        let tensors = [
            ("b".to_owned(), vec![2, 3]),
            ("a".to_owned(), vec![0]),
            ("c".to_owned(), vec![1]),
        ];
        let notes = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
        let values = |name: &str| match name {
            "b" => vec![1.0, -2.5, f32::MIN_POSITIVE, 0.0, 1e30, -0.0],
            "c" => vec![7.0],
            _ => vec![],
        };
        write_safetensors(&path, &tensors, &notes, |name| Ok(values(name))).unwrap();
        let (got, got_notes) = safetensors_contents(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(got_notes, notes);
        for (name, _) in &tensors {
            assert_eq!(got[name], values(name));
        }
        let wrong = write_safetensors(&path, &tensors, &notes, |_| Ok(vec![1.0]));
        assert!(wrong.unwrap_err().to_string().contains("[2, 3]"));
    }
}
