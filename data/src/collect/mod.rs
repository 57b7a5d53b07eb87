//! Documents out of files, folders, archives, addresses and standard input.
//!
//! ```text
//! find: sources -> inputs
//! documents: input -> stored bytes -> (gzip, zstd) -> (zip, tar) -> (gzip, zstd) -> format -> rows -> documents
//! ```
//!
//! Everything streams: memory holds a row, or a document where the file is one. What is wrong with a row does not end
//! its file, and what is wrong with a file does not end its archive: see [`Defect`].

mod archive;
mod bytes;
mod encoding;
mod html;
mod inputs;
mod json;
mod names;
mod parquet;
mod rows;
mod table;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;
mod text;

pub use inputs::{Found, Input, find};

use crate::{
    config::{Counts, Format, Source},
    document::{Body, Document, Place},
};
use anyhow::Context;
use archive::{Member, Members, Tar, Zip, ZipPlace};
use bytes::{MAGIC_BYTES, Magic, Peek, READ_BYTES, Stored, Stream};
use rows::Wanted;
use serde_json::{Map, Value};
use std::{
    fmt,
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};
use tempfile::NamedTempFile;

/// As much as telling a format by content looks at.
const CONTENT_BYTES: usize = 1 << 16;

/// What is wrong with a row or a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Defect {
    /// Where.
    pub place: Place,
    /// What is wrong, and what there is instead.
    pub reason: String,
    /// Nothing more comes of this file (the other files of its archive do); else only the row is lost.
    pub whole_file: bool,
}

impl fmt::Display for Defect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.reason)
    }
}

impl std::error::Error for Defect {}

/// A defect before it is known in which file it is.
#[derive(Debug)]
struct Flaw {
    row: u64,
    reason: String,
    whole: bool,
}

impl Flaw {
    fn row(row: u64, reason: String) -> Self {
        let whole = false;
        Self { row, reason, whole }
    }

    fn whole(row: u64, reason: String) -> Self {
        let whole = true;
        Self { row, reason, whole }
    }

    fn at(self, source: u32, file: &str) -> Defect {
        Defect {
            place: Place {
                source,
                file: file.to_owned(),
                row: self.row,
            },
            reason: self.reason,
            whole_file: self.whole,
        }
    }
}

/// The documents of a file, with their rows.
type Rows = Box<dyn Iterator<Item = Result<(u64, Body), Flaw>> + Send>;

/// The documents of one input, in order; made by [`documents`].
pub struct Documents<F> {
    reading: Reading,
    source: u32,
    name: String,
    stored: Stored,
    members: Option<Box<dyn Members>>,
    /// Of the file at hand, with its name.
    rows: Option<(String, Rows)>,
    skipped: Counts,
    len_bytes: Option<u64>,
    n_told: u64,
    on_bytes: F,
}

/// What is known of an input after its last document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Of the input as it is stored, in hexadecimal digits.
    pub sha256: String,
    /// Length as stored.
    pub len_bytes: u64,
    /// How many files in the archive were passed over, by their unknown endings.
    pub skipped: Counts,
}

/// How the files of an input are read.
struct Reading {
    format: Option<Format>,
    /// What the server says, for what no name tells.
    fallback: Option<Format>,
    is_stdin: bool,
    wanted: Wanted,
    /// Where formats that need it can read from any place: the input itself, uncompressed.
    path: Option<PathBuf>,
    /// How many stored bytes such formats have read.
    progress: Arc<AtomicU64>,
}

enum Content {
    Members(Box<dyn Members>),
    Rows(Rows),
}

/// The documents of one input. `on_bytes` hears how many more bytes of it (as stored) are read.
///
/// # Errors
/// When it cannot be opened or is not what it should be. What is wrong later comes in place of the documents.
pub fn documents<F: FnMut(u64)>(
    input: &Input,
    source: &Source,
    on_bytes: F,
) -> Result<Documents<F>, Defect> {
    let mut documents = Documents::of_input(input, source, on_bytes)?;
    documents.open()?;
    Ok(documents)
}

/// The documents of all inputs of some sources, one after the other, for who wants no bar.
///
/// # Errors
/// When a source holds nothing. What is wrong later comes in place of the documents.
pub fn all(sources: &[Source]) -> anyhow::Result<impl Iterator<Item = anyhow::Result<Document>>> {
    let inputs = find(sources)?.inputs;
    Ok(inputs.into_iter().flat_map(|input| {
        let opened = documents(&input, &sources[input.source as usize], |_| ());
        let (documents, defect) = match opened {
            Ok(documents) => (Some(documents), None),
            Err(defect) => (None, Some(defect)),
        };
        let documents = documents.into_iter().flatten();
        documents
            .chain(defect.map(Err))
            .map(|document| document.map_err(Into::into))
    }))
}

/// A row as it is in its file.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// Where it stands.
    pub place: Place,
    /// Columns or keys; the values of a table that is text are strings.
    pub fields: Map<String, Value>,
}

/// The rows of a source as they are (its `fields` do not matter), from JSON, tables and parquet, compressed or in archives.
/// # Errors
/// When there is nothing at the path. What is wrong later comes in place of the rows.
pub fn records(source: &Source) -> anyhow::Result<impl Iterator<Item = anyhow::Result<Record>>> {
    let inputs = find(std::slice::from_ref(source))?.inputs;
    let source = source.clone();
    Ok(inputs.into_iter().flat_map(move |input| {
        let mut opened = Documents::of_input(&input, &source, |_| ());
        if let Ok(documents) = &mut opened {
            documents.reading.wanted = Wanted::record();
        }
        let opened = opened.and_then(|mut documents| documents.open().map(|()| documents));
        let (documents, defect) = match opened {
            Ok(documents) => (Some(documents), None),
            Err(defect) => (None, Some(defect)),
        };
        let documents = documents.into_iter().flatten().chain(defect.map(Err));
        documents.map(|document| record_of(document?))
    }))
}

/// The row in a document that was read as a record.
fn record_of(document: Document) -> anyhow::Result<Record> {
    let Document { place, body } = document;
    let text = match &body {
        Body::Text(text) => text.as_str(),
        _ => "",
    };
    let fields = serde_json::from_str(text).with_context(|| place.to_string())?;
    Ok(Record { place, fields })
}

/// The same of bytes from anywhere; `name` tells their format where the source does not.
///
/// # Errors
/// As for [`documents`].
pub fn documents_of<F: FnMut(u64)>(
    stream: impl Read + Send + 'static,
    name: &str,
    source: &Source,
    on_bytes: F,
) -> Result<Documents<F>, Defect> {
    let mut documents = Documents::new(0, name, source, Box::new(stream), on_bytes)?;
    documents.open()?;
    Ok(documents)
}

impl<F: FnMut(u64)> Documents<F> {
    /// Of an input, not opened yet.
    fn of_input(input: &Input, source: &Source, on_bytes: F) -> Result<Self, Defect> {
        let opened = input.open();
        let opened =
            opened.map_err(|reason| Flaw::whole(0, reason).at(input.source, &input.name))?;
        let mut documents = Self::new(input.source, &input.name, source, opened.stream, on_bytes)?;
        documents.reading.fallback = opened.format;
        documents.reading.path = opened.path;
        documents.len_bytes = input.len_bytes;
        Ok(documents)
    }

    fn new(
        source_idx: u32,
        name: &str,
        source: &Source,
        stream: Stream,
        on_bytes: F,
    ) -> Result<Self, Defect> {
        let wanted = Wanted::new(&source.fields);
        let wanted = wanted.map_err(|reason| Flaw::whole(0, reason).at(source_idx, name))?;
        Ok(Self {
            reading: Reading {
                format: source.format,
                fallback: None,
                is_stdin: name == "-",
                wanted,
                path: None,
                progress: Arc::default(),
            },
            source: source_idx,
            name: name.to_owned(),
            stored: Stored::new(stream),
            members: None,
            rows: None,
            skipped: Counts::new(),
            len_bytes: None,
            n_told: 0,
            on_bytes,
        })
    }

    fn open(&mut self) -> Result<(), Defect> {
        let stream = Box::new(self.stored.clone());
        let content = self.reading.open(&self.name, stream);
        match content.map_err(|flaw| flaw.at(self.source, &self.name))? {
            Content::Members(members) => self.members = Some(members),
            Content::Rows(rows) => self.rows = Some((self.name.clone(), rows)),
        }
        Ok(())
    }

    /// Goes to the next file of the archive; false when there is none.
    fn next_file(&mut self) -> Result<bool, Defect> {
        let Some(members) = &mut self.members else {
            return Ok(false);
        };
        let member = members.next_member(&mut self.skipped);
        let member = member.map_err(|flaw| {
            self.members = None;
            flaw.at(self.source, &self.name)
        })?;
        let Some(Member { name, stream }) = member else {
            return Ok(false);
        };
        let file = format!("{}/{name}", self.name);
        let rows = stream.and_then(|stream| self.reading.open_member(&file, stream));
        let rows = rows.map_err(|flaw| flaw.at(self.source, &file))?;
        self.rows = Some((file, rows));
        Ok(true)
    }

    fn next_document(&mut self) -> Option<Result<Document, Defect>> {
        loop {
            if let Some((file, rows)) = &mut self.rows {
                match rows.next() {
                    Some(Ok((row, body))) => {
                        let (source, file) = (self.source, file.clone());
                        let place = Place { source, file, row };
                        return Some(Ok(Document { place, body }));
                    }
                    Some(Err(flaw)) => {
                        let whole = flaw.whole;
                        let defect = flaw.at(self.source, file);
                        if whole {
                            self.rows = None;
                        }
                        return Some(Err(defect));
                    }
                    None => self.rows = None,
                }
            }
            match self.next_file() {
                Ok(true) => {}
                Ok(false) => return None,
                Err(defect) => return Some(Err(defect)),
            }
        }
    }

    fn tell(&mut self) {
        // A zip may hold the same bytes twice.
        let far = self.reading.progress.load(Ordering::Relaxed);
        let far = far.min(self.len_bytes.unwrap_or(0));
        let n_bytes = self.stored.n_bytes().max(far);
        if n_bytes > self.n_told {
            (self.on_bytes)(n_bytes - self.n_told);
            self.n_told = n_bytes;
        }
    }

    /// Reads what no document needed, and tells what the manifest wants to know.
    ///
    /// # Errors
    /// When the rest cannot be read.
    pub fn finish(mut self) -> Result<Ended, Defect> {
        let sha256 = self
            .stored
            .finish()
            .map_err(|error| Flaw::whole(0, error.to_string()).at(self.source, &self.name))?;
        self.tell();
        Ok(Ended {
            sha256,
            len_bytes: self.stored.n_bytes(),
            skipped: self.skipped,
        })
    }
}

impl<F: FnMut(u64)> Iterator for Documents<F> {
    type Item = Result<Document, Defect>;

    fn next(&mut self) -> Option<Self::Item> {
        let document = self.next_document();
        self.tell();
        document
    }
}

impl Reading {
    /// An input: compressed or not, an archive or not.
    fn open(&self, name: &str, stream: Stream) -> Result<Content, Flaw> {
        let whole = |error: io::Error| Flaw::whole(0, error.to_string());
        let (mut peek, compressed) = bytes::decompressed(Peek::new(stream)).map_err(whole)?;
        let path = self.path.as_ref().filter(|_| !compressed);
        match bytes::magic(peek.head(MAGIC_BYTES)) {
            Some(Magic::Zip) => {
                let place = match path {
                    Some(path) => ZipPlace::Input(path.clone(), Arc::clone(&self.progress)),
                    None => ZipPlace::Copy(copied(peek).map_err(whole)?.into_temp_path()),
                };
                Ok(Content::Members(Box::new(Zip::open(place)?)))
            }
            Some(Magic::Tar) => Ok(Content::Members(Box::new(Tar::new(Box::new(peek))))),
            _ => self.rows(name, peek, path).map(Content::Rows),
        }
    }

    /// A file in an archive, which may be compressed once more.
    fn open_member(&self, name: &str, stream: Stream) -> Result<Rows, Flaw> {
        let opened = bytes::decompressed(Peek::new(stream));
        let (mut peek, _) = opened.map_err(|error| Flaw::whole(0, error.to_string()))?;
        match bytes::magic(peek.head(MAGIC_BYTES)) {
            Some(Magic::Zip | Magic::Tar) => Err(Flaw::whole(
                0,
                "is an archive in an archive; unpack the outer one".to_owned(),
            )),
            _ => self.rows(name, peek, None),
        }
    }

    fn rows(&self, name: &str, mut peek: Peek, path: Option<&PathBuf>) -> Result<Rows, Flaw> {
        let refused = |reason: &str| Err(Flaw::whole(0, reason.to_owned()));
        match bytes::magic(peek.head(MAGIC_BYTES)) {
            Some(Magic::Gzip | Magic::Zstd) => return refused("is compressed twice"),
            Some(Magic::Pdf) => return refused("is a PDF; make text of it first"),
            _ => {}
        }
        let format = match self.format.or_else(|| names::format(name)) {
            Some(Format::Json) if names::is_lines_of_json(peek.head(CONTENT_BYTES)) => {
                Format::Jsonl
            }
            Some(format) => format,
            None => match names::format_of_content(peek.head(CONTENT_BYTES)).or(self.fallback) {
                Some(format) => format,
                None if self.is_stdin => {
                    return refused(
                        "what standard input holds does not show by itself: set the source's `format`",
                    );
                }
                None => Format::Txt,
            },
        };
        let wanted = self.wanted.clone();
        if wanted.is_record() && matches!(format, Format::Txt | Format::Md | Format::Html) {
            return refused("holds no rows; they are read from jsonl, json, csv, tsv and parquet");
        }
        let utf8 =
            |peek| encoding::utf8_stream(peek, format).map_err(|reason| Flaw::whole(0, reason));
        Ok(match format {
            Format::Txt | Format::Md | Format::Html => text::rows(peek, format),
            Format::Jsonl => json::Lines::rows(utf8(peek)?, wanted),
            Format::Json => json::Elements::rows(utf8(peek)?, wanted),
            Format::Csv => table::Records::rows(utf8(peek)?, b',', wanted)?,
            Format::Tsv => table::Records::rows(utf8(peek)?, b'\t', wanted)?,
            Format::Parquet => {
                let (file, progress) = match path {
                    Some(path) => (File::open(path), Arc::clone(&self.progress)),
                    None => (copied(peek).map(NamedTempFile::into_file), Arc::default()),
                };
                let file = file.map_err(|error| Flaw::whole(0, error.to_string()))?;
                Box::new(parquet::Table::open(file, wanted, progress)?)
            }
        })
    }
}

/// A copy on disk, for what cannot be read from one end to the other.
fn copied(mut stream: impl Read) -> io::Result<NamedTempFile> {
    let mut copy = NamedTempFile::with_prefix("fledgling-")?;
    let mut buffer = vec![0; READ_BYTES];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => io::Write::write_all(&mut copy, &buffer[..n])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    copy.seek(SeekFrom::Start(0))?;
    Ok(copy)
}
