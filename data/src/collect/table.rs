//! Tables as text: values parted by commas or tabs, with a header.

use super::{
    Flaw, Rows,
    bytes::{READ_BYTES, Stream},
    json::MOST_ROW_BYTES,
    rows::{Picked, Wanted},
};
use crate::document::Body;
use csv::{ByteRecord, ErrorKind, Reader, ReaderBuilder, Terminator};
use serde_json::{Map, Value};
use std::{
    io::{self, Read},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// A document a record.
pub(super) struct Records {
    reader: Reader<Watched>,
    watch: Watch,
    wanted: Wanted,
    /// The header.
    names: Vec<String>,
    /// Of each column the number of the wanted key.
    columns: Vec<Option<usize>>,
    record: ByteRecord,
    most_bytes: usize,
}

impl Records {
    pub(super) fn rows(stream: Stream, delimiter: u8, wanted: Wanted) -> Result<Rows, Flaw> {
        let records = Self::with_limit(stream, delimiter, wanted, MOST_ROW_BYTES)?;
        Ok(Box::new(records))
    }

    pub(super) fn with_limit(
        stream: Stream,
        delimiter: u8,
        wanted: Wanted,
        most_bytes: usize,
    ) -> Result<Self, Flaw> {
        let watch = Watch::default();
        let watched = Watched {
            stream,
            watch: watch.clone(),
        };
        // With the other terminator the reader ends a record at `\r` and counts its `\n` to the next one.
        let reader = ReaderBuilder::new()
            .delimiter(delimiter)
            .terminator(Terminator::Any(b'\n'))
            .has_headers(false)
            .flexible(true)
            .buffer_capacity(READ_BYTES)
            .from_reader(watched);
        let mut records = Self {
            reader,
            watch,
            wanted,
            names: Vec::new(),
            columns: Vec::new(),
            record: ByteRecord::new(),
            most_bytes,
        };
        // An empty file has no rows, and so no wrong ones.
        if let Some(row) = records.read()? {
            records.take_header(row)?;
        }
        Ok(records)
    }

    fn take_header(&mut self, row: u64) -> Result<(), Flaw> {
        let names = self.record.iter().map(String::from_utf8_lossy);
        self.names = names.map(|name| name.trim().to_owned()).collect();
        let names: Vec<&str> = self.names.iter().map(String::as_str).collect();
        let checked = self.wanted.check(&names);
        checked.map_err(|reason| Flaw::whole(row, reason))?;
        self.columns = names.iter().map(|name| self.wanted.find(name)).collect();
        Ok(())
    }

    /// Reads the next record, and tells the line where it begins.
    fn read(&mut self) -> Result<Option<u64>, Flaw> {
        loop {
            self.watch.lock().left = self.most_bytes;
            let start = self.reader.position().line();
            match self.reader.read_byte_record(&mut self.record) {
                Ok(false) => return Ok(None),
                Ok(true) if self.record.len() == 1 && &self.record[0] == b"\r" => {}
                Ok(true) => return Ok(Some(self.line())),
                Err(error) => {
                    return Err(match error.into_kind() {
                        ErrorKind::Io(error) => Flaw::whole(start, error.to_string()),
                        other => Flaw::whole(start, format!("{other:?}")),
                    });
                }
            }
        }
    }

    /// Empty lines before a record are passed over silently, so that its line is counted from its end.
    fn line(&self) -> u64 {
        let end = self.reader.position();
        let n_breaks_within: usize = self
            .record
            .iter()
            .map(|value| value.split(|&byte| byte == b'\n').count() - 1)
            .sum();
        let watched = self.watch.lock();
        let unterminated = end.byte() == watched.n_bytes && watched.last != b'\n';
        let last_line = end.line() - u64::from(!unterminated).min(end.line());
        last_line.saturating_sub(n_breaks_within as u64).max(1)
    }

    fn body(&self, row: u64) -> Result<Body, Flaw> {
        let (len, expected) = (self.record.len(), self.columns.len());
        if len != expected {
            let reason = format!("the record has {len} fields, but the header {expected}");
            return Err(Flaw::row(row, reason));
        }
        if self.wanted.is_record() {
            let values = (0..len).map(|idx| self.value(idx, row));
            let pairs = self.names.iter().cloned().zip(values);
            let record: Map<_, _> = pairs
                .map(|(name, value)| Ok((name, value?)))
                .collect::<Result<_, Flaw>>()?;
            return Ok(Body::Text(Value::Object(record).to_string()));
        }
        let mut picked = Picked::default();
        for (idx, key_idx) in self.columns.iter().enumerate() {
            if let Some(key_idx) = *key_idx {
                self.wanted
                    .offer(&mut picked, key_idx, self.value(idx, row)?);
            }
        }
        let body = self.wanted.body(picked);
        body.map_err(|misfit| Flaw::row(row, misfit.reason::<&str>(&[])))
    }
}

impl Records {
    /// The value in a column of the record at hand, without the `\r` that ends a line.
    fn value(&self, idx: usize, row: u64) -> Result<Value, Flaw> {
        let value = &self.record[idx];
        let ends_line = idx + 1 == self.record.len();
        let value = value
            .strip_suffix(b"\r")
            .filter(|_| ends_line)
            .unwrap_or(value);
        let text = std::str::from_utf8(value);
        let text = text.map_err(|_| Flaw::row(row, "invalid UTF-8".to_owned()))?;
        Ok(Value::String(text.to_owned()))
    }
}

impl Iterator for Records {
    type Item = Result<(u64, Body), Flaw>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.read() {
            Ok(row) => row.map(|row| self.body(row).map(|body| (row, body))),
            Err(flaw) => Some(Err(flaw)),
        }
    }
}

/// What went into the reader, and how much more may for the record at hand: it would keep a quote that is never closed as
/// a whole.
#[derive(Clone, Default)]
struct Watch(Arc<Mutex<Progress>>);

#[derive(Default)]
struct Progress {
    left: usize,
    n_bytes: u64,
    last: u8,
}

impl Watch {
    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Watched {
    stream: Stream,
    watch: Watch,
}

impl Read for Watched {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.watch.lock().left == 0 {
            return Err(io::Error::other(
                "a record is too long; a quote may be left open",
            ));
        }
        let n = self.stream.read(buffer)?;
        let mut progress = self.watch.lock();
        progress.left = progress.left.saturating_sub(n);
        progress.n_bytes += n as u64;
        progress.last = buffer[..n].last().copied().unwrap_or(progress.last);
        Ok(n)
    }
}
