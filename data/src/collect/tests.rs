//! What comes out of files as they lie about.

use super::*;
use crate::config::Fields;
use std::{cell::Cell, io::Write, path::Path};

mod formats;
mod stored;

fn source() -> Source {
    Source::default()
}

fn format(format: Format) -> Source {
    Source {
        format: Some(format),
        ..Source::default()
    }
}

/// Documents and defects, each on a line as a person may read it.
fn read_as(name: &str, bytes: &[u8], source: &Source) -> Vec<String> {
    let stored = io::Cursor::new(bytes.to_vec());
    match documents_of(stored, name, source, |_| {}) {
        Ok(documents) => documents.map(shown).collect(),
        Err(defect) => vec![shown(Err(defect))],
    }
}

fn read(name: &str, bytes: impl AsRef<[u8]>) -> Vec<String> {
    read_as(name, bytes.as_ref(), &source())
}

fn shown(document: Result<Document, Defect>) -> String {
    match document {
        Ok(Document { place, body }) => match body {
            Body::Text(text) => format!("{place}: {text}"),
            Body::Completion { prompt, completion } => format!("{place}: {prompt} -> {completion}"),
            Body::Chat(messages) => {
                let said = messages
                    .iter()
                    .map(|m| format!("{}: {}", m.role, m.content));
                format!("{place}: [{}]", said.collect::<Vec<_>>().join("; "))
            }
        },
        Err(defect) if defect.whole_file => format!("FILE {defect}"),
        Err(defect) => format!("ROW {defect}"),
    }
}

fn write(folder: &Path, name: &str, bytes: impl AsRef<[u8]>) {
    let path = folder.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, bytes).unwrap();
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    writer.write_all(bytes).unwrap();
    writer.finish().unwrap()
}

#[test]
fn documents_can_be_read_in_another_thread() {
    fn is_send<T: Send>(_: &T) {}
    let documents = documents_of(io::empty(), "a.txt", &source(), |_| {});
    is_send(&documents.unwrap());
}

/// The stored corpus of the fuzz target `rows`: what once broke stays mended.
#[test]
fn the_fuzz_corpus_is_replayed() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus/rows");
    let mut n_files = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        testing::exercise_rows(&std::fs::read(entry.unwrap().path()).unwrap());
        n_files += 1;
    }
    assert!(n_files >= 10, "the corpus has only {n_files} files");
}

proptest::proptest! {
    /// Bytes of the corpus, changed and cut, do not break anything.
    #[test]
    fn broken_files_are_no_panic(
        file in 0_usize..14,
        at in proptest::collection::vec((0.0..1.0, 0_u8..=255), 0..6),
        cut in 0.0..1.2_f64,
    ) {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus/rows");
        let mut paths: Vec<_> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
        paths.sort();
        let mut bytes = std::fs::read(&paths[file % paths.len()]).unwrap();
        let len = bytes.len();
        for (position, byte) in at {
            bytes[1 + (position * (len - 1) as f64) as usize] = byte;
        }
        bytes.truncate(1 + ((len - 1) as f64 * cut) as usize);
        testing::exercise_rows(&bytes);
    }
}
