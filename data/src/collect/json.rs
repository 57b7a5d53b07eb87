//! Lines of JSON, and arrays in JSON files of any length, a row at a time.

use super::{
    Flaw, Rows,
    bytes::{READ_BYTES, Stream},
    rows::{Wanted, name_list},
};
use crate::document::Body;
use std::io::{self, BufRead, BufReader, Read};

/// A longer row is an error, and is passed over without being kept.
pub(super) const MOST_ROW_BYTES: usize = 256 << 20;

/// A document a line; empty lines are passed over.
pub(super) struct Lines {
    reader: BufReader<Stream>,
    wanted: Wanted,
    line: Vec<u8>,
    row: u64,
    most_bytes: usize,
}

impl Lines {
    pub(super) fn rows(stream: Stream, wanted: Wanted) -> Rows {
        Box::new(Self::with_limit(stream, wanted, MOST_ROW_BYTES))
    }

    pub(super) fn with_limit(stream: Stream, wanted: Wanted, most_bytes: usize) -> Self {
        Self {
            reader: BufReader::with_capacity(READ_BYTES, stream),
            wanted,
            line: Vec::new(),
            row: 0,
            most_bytes,
        }
    }

    /// Reads a line; false at the end. A line that is too long is left empty.
    fn read_line(&mut self) -> Result<bool, Flaw> {
        let whole = |row| move |error: io::Error| Flaw::whole(row, error.to_string());
        self.line.clear();
        // One long line shall not hold its memory for the rest of the file.
        self.line.shrink_to(READ_BYTES * 4);
        self.row += 1;
        let row = self.row;
        let mut limited = (&mut self.reader).take(self.most_bytes as u64 + 1);
        let n = limited
            .read_until(b'\n', &mut self.line)
            .map_err(whole(row))?;
        if self.line.last() != Some(&b'\n') && n > self.most_bytes {
            self.line = Vec::new();
            self.reader.skip_until(b'\n').map_err(whole(row))?;
            return Err(too_long(row, self.most_bytes));
        }
        Ok(n > 0)
    }
}

fn too_long(row: u64, most_bytes: usize) -> Flaw {
    Flaw::row(row, format!("the row is longer than {most_bytes} bytes"))
}

impl Iterator for Lines {
    type Item = Result<(u64, Body), Flaw>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.read_line() {
                Ok(false) => return None,
                Ok(true) if self.line.trim_ascii().is_empty() => {}
                Ok(true) => {
                    // Columns in errors are those of this line, not of the empty one after it.
                    let line = self.line.trim_ascii_end();
                    let body = self.wanted.body_of_json(line, self.row, true);
                    return Some(body.map(|body| (self.row, body)));
                }
                Err(flaw) => return Some(Err(flaw)),
            }
        }
    }
}

/// The elements of the array that a file is, or of the one array of objects in the object that it is.
///
/// Elements are told apart by their brackets and strings alone, so that an invalid one does not take the rest with it.
pub(super) struct Elements {
    scan: Scan,
    wanted: Wanted,
    element: Vec<u8>,
    row: u64,
    state: State,
    most_bytes: usize,
}

enum State {
    Start,
    /// In the array; before the first element or not.
    Array {
        first: bool,
    },
    Done,
}

impl Elements {
    pub(super) fn rows(stream: Stream, wanted: Wanted) -> Rows {
        Box::new(Self::with_limit(stream, wanted, MOST_ROW_BYTES))
    }

    pub(super) fn with_limit(stream: Stream, wanted: Wanted, most_bytes: usize) -> Self {
        Self {
            scan: Scan {
                reader: BufReader::with_capacity(READ_BYTES, stream),
                n_bytes: 0,
                object: None,
            },
            wanted,
            element: Vec::new(),
            row: 0,
            state: State::Start,
            most_bytes,
        }
    }

    fn step(&mut self) -> Result<Option<Body>, Broken> {
        if matches!(self.state, State::Start) {
            match self.scan.byte()? {
                b'[' => {}
                b'{' => {
                    self.scan.object = Some(Keys::default());
                    if !self.scan.find_array(true)? {
                        self.scan.end()?;
                        return Ok(None);
                    }
                }
                _ => return Err(self.scan.broken("a JSON file begins with `[` or `{`")),
            }
            self.state = State::Array { first: true };
        }
        if !self.next_element()? {
            self.after_array()?;
            return Ok(None);
        }
        self.row += 1;
        self.element.clear();
        self.element.shrink_to(READ_BYTES * 4);
        if !self
            .scan
            .value(Some((&mut self.element, self.most_bytes)))?
        {
            return Err(Broken::Row(too_long(self.row, self.most_bytes)));
        }
        let body = self.wanted.body_of_json(&self.element, self.row, false);
        body.map(Some).map_err(Broken::Row)
    }

    /// Goes to where the next element begins; false at the array's end.
    fn next_element(&mut self) -> Result<bool, Broken> {
        let first = matches!(self.state, State::Array { first: true });
        self.state = State::Array { first: false };
        match (self.scan.peek()?, first) {
            (b']', _) => {
                self.scan.byte()?;
                Ok(false)
            }
            (_, true) => Ok(true),
            (b',', false) => {
                self.scan.byte()?;
                Ok(true)
            }
            (other, false) => Err(self.scan.broken(&format!(
                "expected `,` or `]`, found `{}`",
                other.escape_ascii()
            ))),
        }
    }

    fn after_array(&mut self) -> Result<(), Broken> {
        self.state = State::Done;
        if self.scan.object.is_some() {
            self.scan.find_array(false)?;
        }
        self.scan.end()
    }
}

impl Iterator for Elements {
    type Item = Result<(u64, Body), Flaw>;

    fn next(&mut self) -> Option<Self::Item> {
        if matches!(self.state, State::Done) {
            return None;
        }
        match self.step() {
            Ok(Some(body)) => Some(Ok((self.row, body))),
            Ok(None) => {
                self.state = State::Done;
                None
            }
            Err(Broken::Row(flaw)) => Some(Err(flaw)),
            Err(Broken::File(reason)) => {
                self.state = State::Done;
                Some(Err(Flaw::whole(self.row, reason)))
            }
            Err(Broken::Io(error)) => {
                self.state = State::Done;
                Some(Err(Flaw::whole(self.row, error.to_string())))
            }
        }
    }
}

enum Broken {
    Row(Flaw),
    File(String),
    Io(io::Error),
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// The keys of the outer object.
#[derive(Default)]
struct Keys {
    names: Vec<String>,
    /// The key of the array that is read.
    array: Option<String>,
    /// An array without elements was seen, which is as good as one with none left.
    empty: bool,
}

/// Goes through JSON by bytes.
struct Scan {
    reader: BufReader<Stream>,
    n_bytes: u64,
    object: Option<Keys>,
}

impl Scan {
    fn broken(&self, reason: &str) -> Broken {
        Broken::File(format!("invalid JSON at byte {}: {reason}", self.n_bytes))
    }

    fn consume(&mut self, n: usize) {
        self.reader.consume(n);
        self.n_bytes += n as u64;
    }

    /// The next byte that is no space, left where it is; none at the end.
    fn peek_or_end(&mut self) -> Result<Option<u8>, Broken> {
        loop {
            let bytes = fill(&mut self.reader)?;
            if bytes.is_empty() {
                return Ok(None);
            }
            let n_spaces = bytes
                .iter()
                .take_while(|byte| byte.is_ascii_whitespace())
                .count();
            let next = bytes.get(n_spaces).copied();
            self.consume(n_spaces);
            if next.is_some() {
                return Ok(next);
            }
        }
    }

    fn peek(&mut self) -> Result<u8, Broken> {
        match self.peek_or_end()? {
            Some(byte) => Ok(byte),
            None => Err(self.broken("the file is cut off")),
        }
    }

    fn byte(&mut self) -> Result<u8, Broken> {
        let byte = self.peek()?;
        self.consume(1);
        Ok(byte)
    }

    fn expect(&mut self, expected: u8) -> Result<(), Broken> {
        match self.byte()? {
            byte if byte == expected => Ok(()),
            byte => {
                let (expected, byte) = (expected.escape_ascii(), byte.escape_ascii());
                Err(self.broken(&format!("expected `{expected}`, found `{byte}`")))
            }
        }
    }

    /// Passes over one value, and keeps it where asked; false when it was longer than `keep` allows.
    fn value(&mut self, mut keep: Option<(&mut Vec<u8>, usize)>) -> Result<bool, Broken> {
        self.peek()?;
        let mut end = ValueEnd::default();
        let mut fits = true;
        loop {
            let bytes = fill(&mut self.reader)?;
            if bytes.is_empty() {
                // A number may end with the file; whoever asked for it misses what follows.
                return Err(self.broken("the file is cut off"));
            }
            let (n, ended) = end.find(bytes);
            if let Some((kept, most_bytes)) = &mut keep
                && fits
            {
                fits = kept.len() + n <= *most_bytes;
                if fits {
                    kept.extend_from_slice(&bytes[..n]);
                } else {
                    **kept = Vec::new();
                }
            }
            self.consume(n);
            if ended {
                return Ok(fits);
            }
        }
    }

    /// Goes through an object up to the first element of its array of objects (`first`), or to its end. False when there is
    /// no such array (which is an error unless one is empty).
    fn find_array(&mut self, first: bool) -> Result<bool, Broken> {
        let mut separated = first;
        loop {
            match self.peek()? {
                b'}' => {
                    self.consume(1);
                    return self.object_ended();
                }
                b',' if !separated => {
                    self.consume(1);
                    separated = true;
                    continue;
                }
                b'"' if separated => separated = false,
                other => {
                    let other = other.escape_ascii();
                    return Err(self.broken(&format!("expected a key, found `{other}`")));
                }
            }
            let name = self.key()?;
            self.expect(b':')?;
            if self.peek()? != b'[' {
                self.value(None)?;
            } else if self.enter_array(name)? {
                return Ok(true);
            }
        }
    }

    fn key(&mut self) -> Result<String, Broken> {
        let mut key = Vec::new();
        self.value(Some((&mut key, 1 << 16)))?;
        let name = serde_json::from_slice(&key).unwrap_or_default();
        if let Some(keys) = &mut self.object
            && keys.names.len() < 1000
        {
            keys.names.push(String::clone(&name));
        }
        Ok(name)
    }

    /// Goes into the array where it holds objects, over it where not.
    fn enter_array(&mut self, name: String) -> Result<bool, Broken> {
        self.consume(1);
        let next = self.peek()?;
        if next == b'{' {
            let keys = self.object.get_or_insert_default();
            if matches!(name.as_str(), "messages" | "conversations") {
                return Err(Broken::File(format!(
                    "the file is one conversation (`{name}`): put it on a line of a .jsonl file, or in an array"
                )));
            }
            if let Some(other) = &keys.array {
                return Err(Broken::File(format!(
                    "the file has two arrays of objects, `{other}` and `{name}`; which to take cannot be told"
                )));
            }
            keys.array = Some(name);
            return Ok(true);
        }
        let mut is_empty = true;
        while self.peek()? != b']' {
            is_empty = false;
            self.value(None)?;
            match self.peek()? {
                b',' => self.consume(1),
                b']' => {}
                other => {
                    let other = other.escape_ascii();
                    return Err(self.broken(&format!("expected `,` or `]`, found `{other}`")));
                }
            }
        }
        self.consume(1);
        self.object.get_or_insert_default().empty |= is_empty;
        Ok(false)
    }

    fn object_ended(&mut self) -> Result<bool, Broken> {
        let keys = self.object.get_or_insert_default();
        if keys.array.is_some() || keys.empty {
            return Ok(false);
        }
        Err(Broken::File(format!(
            "the file is an object without an array of objects; its keys: {}",
            name_list(&keys.names)
        )))
    }

    fn end(&mut self) -> Result<(), Broken> {
        match self.peek_or_end()? {
            None => Ok(()),
            Some(byte) => {
                let byte = byte.escape_ascii();
                Err(self.broken(&format!("`{byte}` follows after the end")))
            }
        }
    }
}

/// What is read but not consumed; empty at the end.
fn fill(reader: &mut BufReader<Stream>) -> io::Result<&[u8]> {
    while let Err(error) = reader.fill_buf() {
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    Ok(reader.buffer())
}

/// Finds where a value ends, over any number of pieces.
#[derive(Default)]
struct ValueEnd {
    begun: bool,
    depth: u64,
    in_string: bool,
    escaped: bool,
}

impl ValueEnd {
    /// How many of the bytes belong to the value, and whether it ends there.
    fn find(&mut self, bytes: &[u8]) -> (usize, bool) {
        for (i, &byte) in bytes.iter().enumerate() {
            if self.in_string {
                if self.escaped {
                    self.escaped = false;
                } else if byte == b'\\' {
                    self.escaped = true;
                } else if byte == b'"' {
                    self.in_string = false;
                    if self.depth == 0 {
                        return (i + 1, true);
                    }
                }
                continue;
            }
            match byte {
                b'"' | b'{' | b'[' if self.depth == 0 && self.begun => return (i, true),
                b'}' | b']' | b',' | b' ' | b'\t' | b'\n' | b'\r' if self.depth == 0 => {
                    return (i, true);
                }
                b'"' => self.in_string = true,
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => {
                    self.depth -= 1;
                    if self.depth == 0 {
                        return (i + 1, true);
                    }
                }
                _ => {}
            }
            self.begun = true;
        }
        (bytes.len(), false)
    }
}
