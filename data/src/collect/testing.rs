//! What the fuzz target `rows` and the replay of its corpus do.

use super::documents_of;
use crate::config::{Format, Source};

/// Reads bytes as an input from somewhere. The first byte chooses its format, or that its content tells.
///
/// # Panics
/// When something is wrong with this crate.
pub fn exercise_rows(bytes: &[u8]) {
    let Some((mode, rest)) = bytes.split_first() else {
        return;
    };
    let source = Source {
        format: match mode % 8 {
            0 => Some(Format::Jsonl),
            1 => Some(Format::Json),
            2 => Some(Format::Csv),
            3 => Some(Format::Html),
            4 => Some(Format::Md),
            5 => Some(Format::Tsv),
            6 => Some(Format::Parquet),
            _ => None,
        },
        ..Source::default()
    };
    let stored = std::io::Cursor::new(rest.to_vec());
    let mut n_told = 0;
    let Ok(mut documents) = documents_of(stored, "input", &source, |n| n_told += n) else {
        return;
    };
    let mut n_items = 0;
    for document in &mut documents {
        n_items += 1;
        match document {
            Ok(document) => assert!(document.body.len_bytes() < usize::MAX / 2),
            Err(defect) => assert!(!defect.reason.is_empty()),
        }
        assert!(n_items < 1 << 24, "the documents do not end");
    }
    let ended = documents.finish().expect("bytes in memory can be read");
    assert_eq!(ended.len_bytes, rest.len() as u64);
    assert_eq!(n_told, ended.len_bytes);
}
