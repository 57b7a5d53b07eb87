//! Logs: what a server printed, however it was kept. A line may be the record, the record behind a time stamp (an export of `CloudWatch`
//! Logs to S3, `aws logs tail`), or the record in an envelope: Lambda's JSON format, a subscription's or Firehose's `logEvents`,
//! `filter-log-events` and Insights as the AWS command line prints them, Docker's `log`.
//!
//! Whoever can send requests can also write into some logs, so nothing here panics, and memory is bounded by [`MAX_LINE_BYTES`].

use crate::{record::Record, traffic::Traffic};
use anyhow::{Context, Result, bail};
use flate2::read::MultiGzDecoder;
use serde::Serialize;
use serde_json::{Deserializer, Value};
use std::{
    collections::{BTreeMap, HashSet},
    fs::File,
    hash::{BuildHasher, RandomState},
    io::{self, BufRead, BufReader, Read},
    path::{Path, PathBuf},
};

/// A longer line is counted and skipped.
pub const MAX_LINE_BYTES: usize = 16 << 20;
/// JSON over several lines (`aws logs filter-log-events`) is read as a whole up to here.
const MAX_DOCUMENT_BYTES: u64 = 1 << 30;
/// Envelopes within envelopes.
const MAX_DEPTH: usize = 12;
/// Broken lines that are shown.
const N_EXAMPLES: usize = 5;

/// What was in the logs beside the requests.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Tally {
    /// Files, standard input included.
    pub files: u64,
    /// Lines and messages.
    pub lines: u64,
    /// Requests that were taken.
    pub records: u64,
    /// Records that were there twice, as in exports that overlap.
    pub repeated: u64,
    /// Lines of something else: START and REPORT, other messages.
    pub other: u64,
    /// Records of other models than the one asked for.
    pub other_models: u64,
    /// What was broken, and how often.
    pub broken: BTreeMap<String, u64>,
    /// The first of them: where, and what.
    pub examples: Vec<String>,
}

impl Tally {
    fn broken(&mut self, place: &str, what: &str) {
        // Reasons of JSON name a column, so that each would be one of its own.
        let kind = what
            .split(" at line ")
            .next()
            .unwrap_or_default()
            .to_owned();
        let is_room = self.broken.len() < 50 || self.broken.contains_key(&kind);
        *self
            .broken
            .entry(if is_room { kind } else { "other".to_owned() })
            .or_default() += 1;
        if self.examples.len() < N_EXAMPLES {
            self.examples.push(format!("{place}: {what}"));
        }
    }

    /// How many lines were broken.
    pub fn n_broken(&self) -> u64 {
        self.broken.values().sum()
    }
}

/// Reads logs one after the other.
#[derive(Debug, Default)]
pub struct Reader {
    /// The requests so far.
    pub traffic: Traffic,
    /// What else there was.
    pub tally: Tally,
    /// Only requests to this model, where one is named.
    pub model: Option<String>,
    seen: HashSet<u64>,
    hasher: RandomState,
}

impl Reader {
    /// Reads a file, or all files below a folder in the order of their names. Compression is seen by the file's first bytes.
    ///
    /// # Errors
    /// When it is not there or cannot be opened. What is broken within it is counted.
    pub fn read_path(&mut self, path: &Path) -> Result<()> {
        if path.is_dir() {
            let entries = std::fs::read_dir(path)
                .with_context(|| format!("cannot list {}", path.display()))?;
            let mut paths: Vec<PathBuf> = entries
                .map(|entry| Ok(entry?.path()))
                .collect::<io::Result<_>>()
                .with_context(|| format!("cannot list {}", path.display()))?;
            paths.sort();
            // A link back to a folder above would never end.
            return paths
                .iter()
                .filter(|path| !(path.is_symlink() && path.is_dir()))
                .try_for_each(|path| self.read_path(path));
        }
        let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
        self.read(&path.display().to_string(), file);
        Ok(())
    }

    /// Reads a stream; `name` is for messages.
    pub fn read(&mut self, name: &str, stream: impl Read) {
        self.tally.files += 1;
        let mut stream = BufReader::new(stream);
        let is_gzip = stream
            .fill_buf()
            .is_ok_and(|start| start.starts_with(&[0x1f, 0x8b]));
        let read = if is_gzip {
            self.lines(name, BufReader::new(MultiGzDecoder::new(stream)))
        } else {
            self.lines(name, stream)
        };
        if let Err(error) = read {
            self.tally
                .broken(name, &format!("the file breaks off: {error}"));
        }
    }

    fn lines(&mut self, name: &str, mut stream: impl BufRead) -> io::Result<()> {
        let mut line = Vec::new();
        for no in 1_u64.. {
            line.clear();
            let is_whole = read_line(&mut stream, &mut line)?;
            if line.is_empty() {
                return Ok(());
            }
            let place = format!("{name}:{no}");
            if no == 1 && begins_a_document(&line) {
                self.document(name, line, stream);
                return Ok(());
            }
            if is_whole {
                self.line(&place, &line);
            } else {
                self.tally.lines += 1;
                self.tally.broken(
                    &place,
                    &format!("a line of more than {MAX_LINE_BYTES} bytes"),
                );
            }
        }
        Ok(())
    }

    /// JSON that goes over several lines.
    fn document(&mut self, name: &str, start: Vec<u8>, stream: impl Read) {
        let all = io::Cursor::new(start).chain(stream.take(MAX_DOCUMENT_BYTES));
        for value in Deserializer::from_reader(BufReader::new(all)).into_iter::<Value>() {
            match value {
                Ok(value) => self.value(name, value, 0),
                Err(error) => {
                    self.tally
                        .broken(name, &format!("the JSON is broken: {error}"));
                    break;
                }
            }
        }
    }

    fn line(&mut self, place: &str, line: &[u8]) {
        let text = String::from_utf8_lossy(line);
        if !text.trim().is_empty() {
            self.message(place, &text, 0);
        }
    }

    /// A line's text: JSON from its first brace on. Firehose writes objects without anything between them.
    fn message(&mut self, place: &str, text: &str, depth: usize) {
        self.tally.lines += 1;
        let Some(start) = text.find(['{', '[']).filter(|_| text.contains('{')) else {
            self.tally.other += 1;
            return;
        };
        // `[INFO] {…}` is no list.
        let start = if text[start..]
            .trim_start_matches('[')
            .trim_start()
            .starts_with(['{', '"'])
        {
            start
        } else {
            text.find('{').unwrap_or(start)
        };
        for value in Deserializer::from_str(&text[start..]).into_iter::<Value>() {
            match value {
                Ok(value) => self.value(place, value, depth + 1),
                // Only what meant to be a record is missed.
                Err(error) if text.contains("fledgling_record") => {
                    self.tally
                        .broken(place, &format!("the JSON is broken: {error}"));
                    return;
                }
                Err(_) => {
                    self.tally.other += 1;
                    return;
                }
            }
        }
    }

    fn value(&mut self, place: &str, value: Value, depth: usize) {
        if depth > MAX_DEPTH {
            self.tally
                .broken(place, "too many envelopes within each other");
            return;
        }
        let mut fields = match value {
            Value::Object(fields) => fields,
            Value::Array(items) => {
                for item in items {
                    self.value(place, item, depth + 1);
                }
                return;
            }
            Value::String(text) => return self.message(place, &text, depth),
            _ => {
                self.tally.other += 1;
                return;
            }
        };
        if fields.contains_key("fledgling_record") {
            return self.record(place, Value::Object(fields));
        }
        // An Insights row is a list of fields.
        if fields.get("field").is_some_and(|field| field != "@message") {
            return;
        }
        for key in [
            "logEvents",
            "events",
            "results",
            "message",
            "@message",
            "log",
            "fields",
            "record",
            "value",
        ] {
            if let Some(inner) = fields.remove(key) {
                return self.value(place, inner, depth + 1);
            }
        }
        self.tally.other += 1;
    }

    fn record(&mut self, place: &str, value: Value) {
        let record = match Record::from_value(value) {
            Ok(record) => record,
            Err(error) => return self.tally.broken(place, &error.to_string()),
        };
        if self
            .model
            .as_ref()
            .is_some_and(|model| *model != record.model)
        {
            self.tally.other_models += 1;
            return;
        }
        if let Some(id) = &record.request_id {
            let key = self.hasher.hash_one((id, record.time_ms, &record.model));
            if !self.seen.insert(key) {
                self.tally.repeated += 1;
                return;
            }
        }
        match self.traffic.add(&record) {
            Ok(()) => self.tally.records += 1,
            Err(error) => self.tally.broken(place, &error.to_string()),
        }
    }
}

/// Whether a first line is the beginning of JSON that goes on below it.
fn begins_a_document(line: &[u8]) -> bool {
    let text = String::from_utf8_lossy(line);
    let text = text.trim();
    matches!(text, "{" | "[" | "[{" | "[[")
        || (text.starts_with(['{', '['])
            && serde_json::from_str::<Value>(text).is_err_and(|error| error.is_eof()))
}

/// Reads to the end of a line; false when it was too long, and its beginning is what is kept.
fn read_line(stream: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<bool> {
    let n = stream.take(MAX_LINE_BYTES as u64).read_until(b'\n', line)?;
    if n < MAX_LINE_BYTES || line.ends_with(b"\n") {
        return Ok(true);
    }
    // The rest is skipped piece by piece.
    loop {
        let buffer = stream.fill_buf()?;
        let end = buffer.iter().position(|&byte| byte == b'\n');
        let n = end.map_or(buffer.len(), |end| end + 1);
        if n == 0 {
            return Ok(false);
        }
        stream.consume(n);
        if end.is_some() {
            return Ok(false);
        }
    }
}

/// Reads the logs that a command line names; `-` is standard input.
///
/// # Errors
/// When a file cannot be opened, or no request is in any of them.
pub fn read_logs(paths: &[PathBuf], model: Option<String>) -> Result<(Traffic, Tally)> {
    let mut reader = Reader {
        model,
        ..Reader::default()
    };
    for path in paths {
        if path.as_os_str() == "-" {
            reader.read("standard input", io::stdin().lock());
        } else {
            reader.read_path(path)?;
        }
    }
    if reader.tally.records == 0 {
        let tally = &reader.tally;
        let hint = if let Some(example) = tally.examples.first() {
            format!("the first that is broken: {example}")
        } else if tally.other_models > 0 {
            format!("there are {} of other models", tally.other_models)
        } else {
            "the server writes a line a request with FLEDGLING_LOG=metrics".to_owned()
        };
        bail!(
            "no request in {} lines of {} files: {hint}",
            tally.lines,
            tally.files
        );
    }
    reader.traffic.sort();
    Ok((reader.traffic, reader.tally))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{record::VERSION, sketch::Sketch};
    use flate2::{Compression, write::GzEncoder};
    use proptest::prelude::*;
    use serde_json::json;
    use std::io::Write;

    fn line(i: u64) -> String {
        let record = Record {
            version: VERSION,
            time_ms: 1_790_000_000_000 + i,
            model: "m".to_owned(),
            request_id: Some(format!("r{i}")),
            outcome: "stop".to_owned(),
            prompt_tokens: 3,
            sketch: Some(Sketch::of(0, &[1, 2, 3], &[])),
            ..Record::default()
        };
        record.to_line()
    }

    fn read(text: impl AsRef<[u8]>) -> Reader {
        let mut reader = Reader::default();
        reader.read("log", text.as_ref());
        assert_eq!(reader.traffic.requests(), reader.tally.records);
        reader
    }

    #[test]
    fn every_envelope_is_opened() {
        let event =
            |i| json!({"id": "1", "timestamp": 1_790_000_000_000_u64, "message": line(i) + "\n"});
        let pretty = |value: &Value| serde_json::to_string_pretty(value).unwrap();
        let insights = json!({"results": [
            [{"field": "@timestamp", "value": "2026-09-21 14:13:20.000"}, {"field": "@message", "value": line(1)}, {"field": "@ptr", "value": "x"}],
            [{"field": "@message", "value": line(2)}]], "status": "Complete"});
        let tracing: Value = serde_json::from_str(&line(1)).unwrap();
        let lambda = json!({"timestamp": "2026-09-21T14:13:20Z", "level": "INFO", "message": tracing, "requestId": "x"});
        let cases = [
            ("plain", format!("{}\n{}\n", line(1), line(2)), 2),
            ("export to S3", format!("2026-09-21T14:13:20.000Z {}\n2026-09-21T14:13:20.000Z START RequestId: x\n", line(1)), 1),
            ("aws logs tail", format!("2026-09-21T14:13:20 2026/09/21/[$LATEST]ab12 {}\n", line(1)), 1),
            ("prefix in brackets", format!("[INFO] {}\n", line(1)), 1),
            ("subscription", json!({"messageType": "DATA_MESSAGE", "logGroup": "g", "logEvents": [event(1), event(2)]}).to_string(), 2),
            ("firehose", format!("{}{}", json!({"logEvents": [event(1)]}), json!({"logEvents": [event(2)]})), 2),
            ("filter-log-events", pretty(&json!({"events": [event(1), event(2)], "searchedLogStreams": []})), 2),
            ("list of events", pretty(&json!([event(1)])), 1),
            ("insights", pretty(&insights), 2),
            ("lambda", lambda.to_string(), 1),
            ("docker", json!({"log": line(1) + "\n", "stream": "stdout", "time": "t"}).to_string(), 1),
        ];
        for (name, text, n) in cases {
            let reader = read(&text);
            assert_eq!(reader.tally.records, n, "{name}: {:?}", reader.tally);
            assert_eq!(reader.tally.n_broken(), 0, "{name}: {:?}", reader.tally);
        }
    }

    #[test]
    fn compressed_members_are_read_until_they_break_off() {
        let pack = |text: &str| {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
            encoder.write_all(text.as_bytes()).unwrap();
            encoder.finish().unwrap()
        };
        let mut two = pack(&(line(1) + "\n"));
        two.extend(pack(&(line(2) + "\n")));
        assert_eq!(read(&two).tally.records, 2);
        two.truncate(two.len() - 12);
        let reader = read(&two);
        assert!(
            reader.tally.records >= 1 && reader.tally.n_broken() == 1,
            "{:?}",
            reader.tally
        );
    }

    #[test]
    fn hostile_lines_are_counted_and_cost_nothing_else() {
        let deep = "[".repeat(100_000) + &"]".repeat(100_000);
        let nested = (0..9).fold(line(9), |inner, _| json!({"message": inner}).to_string());
        let long = format!(
            "{{\"fledgling_record\": 1, \"model\": \"{}\"}}",
            "x".repeat(MAX_LINE_BYTES)
        );
        let text = [
            line(1),
            "{\"fledgling_record\": 1, \"time_ms\": ".to_owned(),
            "{\"fledgling_record\": 1}".to_owned(),
            "{\"fledgling_record\": 7}".to_owned(),
            line(2).replace("1790000000002", "17"),
            deep,
            nested,
            long,
            "\u{0}\u{1} {{{{ ]]".to_owned(),
            line(1),
            line(3),
        ]
        .join("\n");
        let mut bytes = text.into_bytes();
        bytes.extend(b"\n\xff\xfe{\n");
        let tally = read(bytes).tally;
        assert_eq!((tally.records, tally.repeated), (2, 1), "{tally:?}");
        assert_eq!(tally.n_broken(), 6, "{tally:?}");
        assert_eq!(tally.examples.len(), N_EXAMPLES);
        assert!(
            tally.examples[0].starts_with("log:2: the JSON is broken"),
            "{tally:?}"
        );
    }

    #[test]
    fn one_model_may_be_asked_for() {
        let mut reader = Reader {
            model: Some("n".to_owned()),
            ..Reader::default()
        };
        reader.read("log", line(1).as_bytes());
        assert_eq!((reader.tally.records, reader.tally.other_models), (0, 1));
    }

    #[test]
    fn folders_are_read_and_nothing_found_is_said() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("stream")).unwrap();
        std::fs::write(dir.path().join("stream/000000"), line(1)).unwrap();
        std::fs::write(dir.path().join("b.log"), "nothing\n").unwrap();
        let paths = [dir.path().to_owned()];
        let (traffic, tally) = read_logs(&paths, None).unwrap();
        assert_eq!((traffic.requests(), tally.files, tally.other), (1, 2, 1));
        let error = read_logs(&[dir.path().join("b.log")], None)
            .unwrap_err()
            .to_string();
        assert!(error.contains("FLEDGLING_LOG=metrics"), "{error}");
        assert!(read_logs(&[dir.path().join("none")], None).is_err());
    }

    proptest! {
        #[test]
        fn nothing_panics(bytes in proptest::collection::vec(any::<u8>(), 0..400), at in 0_usize..400, with in any::<u8>()) {
            read(&bytes);
            let mut broken = line(1).into_bytes();
            let at = at % broken.len();
            broken[at] = with;
            read(&broken);
            broken.truncate(at);
            read(&broken);
        }
    }
}
