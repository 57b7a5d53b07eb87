//! Tables as text: values parted by commas or tabs, with a header.

use super::{
    Flaw, Rows,
    bytes::{READ_BYTES, Stream},
    json::MOST_ROW_BYTES,
    rows::{Misfit, Picked, Wanted},
};
use crate::document::Body;
use csv::{ByteRecord, ErrorKind, Position, Reader, ReaderBuilder};
use serde_json::Value;
use std::{
    io::{self, Read},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

/// A document a record.
pub(super) struct Records {
    reader: Reader<Limited>,
    budget: Budget,
    wanted: Wanted,
    /// Of each column the number of the wanted key.
    columns: Vec<Option<usize>>,
    record: ByteRecord,
}

impl Records {
    pub(super) fn rows(stream: Stream, delimiter: u8, wanted: Wanted) -> Result<Rows, Flaw> {
        Ok(Box::new(Self::with_limit(
            stream,
            delimiter,
            wanted,
            MOST_ROW_BYTES,
        )?))
    }

    pub(super) fn with_limit(
        stream: Stream,
        delimiter: u8,
        wanted: Wanted,
        most_bytes: usize,
    ) -> Result<Self, Flaw> {
        let budget = Budget {
            left: Arc::new(AtomicUsize::new(most_bytes)),
            most_bytes,
        };
        let limited = Limited {
            stream,
            budget: budget.clone(),
        };
        let mut reader = ReaderBuilder::new()
            .delimiter(delimiter)
            .buffer_capacity(READ_BYTES)
            .from_reader(limited);
        let header = reader.byte_headers().map_err(|error| flaw(&error, 1))?;
        let names: Vec<String> = header
            .iter()
            .map(|name| String::from_utf8_lossy(name).trim().to_owned())
            .collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        // An empty file has no rows, and so no wrong ones.
        if !names.is_empty() {
            wanted
                .check(&names)
                .map_err(|reason| Flaw::whole(1, reason))?;
        }
        let columns = names.iter().map(|name| wanted.find(name)).collect();
        Ok(Self {
            reader,
            budget,
            wanted,
            columns,
            record: ByteRecord::new(),
        })
    }

    fn body(&self, row: u64) -> Result<Body, Flaw> {
        let mut picked = Picked::default();
        for (value, key_idx) in self.record.iter().zip(&self.columns) {
            if let Some(key_idx) = *key_idx {
                let text = std::str::from_utf8(value)
                    .map_err(|_| Flaw::row(row, "invalid UTF-8".to_owned()))?;
                self.wanted
                    .offer(&mut picked, key_idx, Value::String(text.to_owned()));
            }
        }
        let body = self.wanted.body(picked);
        body.map_err(|misfit: Misfit| Flaw::row(row, misfit.reason::<&str>(&[])))
    }
}

impl Iterator for Records {
    type Item = Result<(u64, Body), Flaw>;

    fn next(&mut self) -> Option<Self::Item> {
        self.budget.refill();
        let line = self.reader.position().line();
        match self.reader.read_byte_record(&mut self.record) {
            Ok(false) => None,
            Ok(true) => {
                let row = self.record.position().map_or(line, Position::line);
                Some(self.body(row).map(|body| (row, body)))
            }
            Err(error) => Some(Err(flaw(&error, line))),
        }
    }
}

fn flaw(error: &csv::Error, line: u64) -> Flaw {
    match error.kind() {
        ErrorKind::UnequalLengths {
            pos,
            expected_len,
            len,
        } => {
            let row = pos.as_ref().map_or(line, Position::line);
            Flaw::row(
                row,
                format!("has {len} fields, but the header {expected_len}"),
            )
        }
        ErrorKind::Io(error) => Flaw::whole(line, error.to_string()),
        _ => Flaw::whole(line, error.to_string()),
    }
}

/// How much more may be read for the record at hand: the reader would keep a quote that is never closed as a whole.
#[derive(Clone)]
struct Budget {
    left: Arc<AtomicUsize>,
    most_bytes: usize,
}

impl Budget {
    fn refill(&self) {
        self.left.store(self.most_bytes, Ordering::Relaxed);
    }
}

struct Limited {
    stream: Stream,
    budget: Budget,
}

impl Read for Limited {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.budget.left.load(Ordering::Relaxed);
        if left == 0 {
            return Err(io::Error::other(format!(
                "a record is longer than {} bytes: a quote may be left open",
                self.budget.most_bytes
            )));
        }
        let n = self.stream.read(buffer)?;
        self.budget
            .left
            .store(left.saturating_sub(n), Ordering::Relaxed);
        Ok(n)
    }
}
