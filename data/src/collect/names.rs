//! What names say about files.

use crate::config::{Counts, Format};

/// The endings by which files in folders and archives are found.
const ENDINGS: &[(&str, Format)] = &[
    ("txt", Format::Txt),
    ("text", Format::Txt),
    ("md", Format::Md),
    ("markdown", Format::Md),
    ("html", Format::Html),
    ("htm", Format::Html),
    ("xhtml", Format::Html),
    ("jsonl", Format::Jsonl),
    ("ndjson", Format::Jsonl),
    ("json", Format::Json),
    ("csv", Format::Csv),
    ("tsv", Format::Tsv),
    ("tab", Format::Tsv),
    ("parquet", Format::Parquet),
];
const COMPRESSED: &[&str] = &["gz", "zst", "zstd"];
const ARCHIVES: &[&str] = &["zip", "tar", "tgz", "tzst"];

/// The last part of a name after a dot, in small letters; empty where there is none.
fn ending(name: &str) -> (&str, String) {
    let file = name.rsplit(['/', '\\']).next().unwrap_or(name);
    match file.rsplit_once('.') {
        Some((stem, ending)) if !stem.is_empty() => (stem, ending.to_ascii_lowercase()),
        _ => (file, String::new()),
    }
}

/// The ending under a compression's, if there is one.
fn inner_ending(name: &str) -> String {
    let (stem, outer) = ending(name);
    if COMPRESSED.contains(&outer.as_str()) {
        ending(stem).1
    } else {
        outer
    }
}

/// The format that a file's name or an address tells.
pub(super) fn format(name: &str) -> Option<Format> {
    let path = if is_url(name) {
        name.split(['?', '#']).next().unwrap_or(name)
    } else {
        name
    };
    let ending = inner_ending(path);
    let known = ENDINGS.iter().find(|(known, _)| *known == ending);
    known.map(|(_, format)| *format)
}

pub(super) fn is_url(name: &str) -> bool {
    name.starts_with("http://") || name.starts_with("https://")
}

/// Whether a file found in a folder or an archive is read; counts what is not. Hidden files do not even count.
pub(super) fn is_taken(name: &str, skipped: &mut Counts) -> bool {
    let mut parts = name.split(['/', '\\']);
    if parts.any(|part| part.starts_with('.') && part != "." && part != "..") {
        return false;
    }
    let inner = inner_ending(name);
    let taken = format(name).is_some() || ARCHIVES.contains(&inner.as_str());
    if !taken {
        let (_, ending) = ending(name);
        let kind = if ending.is_empty() {
            "no ending".to_owned()
        } else {
            format!(".{ending}")
        };
        *skipped.entry(kind).or_default() += 1;
    }
    taken
}

/// What a server says it sends.
pub(super) fn format_of_mime(mime: &str) -> Option<Format> {
    Some(match mime {
        "text/html" | "application/xhtml+xml" => Format::Html,
        "text/markdown" => Format::Md,
        "application/json" => Format::Json,
        "application/jsonl" | "application/x-ndjson" | "application/x-jsonlines" => Format::Jsonl,
        "text/csv" => Format::Csv,
        "text/tab-separated-values" => Format::Tsv,
        "application/vnd.apache.parquet" => Format::Parquet,
        _ => return None,
    })
}

/// The format that the first bytes tell; none for what may be any text.
pub(super) fn format_of_content(head: &[u8]) -> Option<Format> {
    let text = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head);
    let text = text.trim_ascii_start();
    let begins = |tag: &[u8]| {
        text.get(..tag.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(tag))
    };
    if head.starts_with(b"PAR1") {
        return Some(Format::Parquet);
    }
    if begins(b"<!doctype html") || begins(b"<html") {
        return Some(Format::Html);
    }
    let (line, _) = first_line(text);
    let json: Result<serde::de::IgnoredAny, _> = serde_json::from_slice(line);
    match text.first()? {
        // Cut off, or a whole line, or the begin of an object over many lines.
        b'{' if json.is_ok() || line.len() == text.len() => Some(Format::Jsonl),
        b'{' if line.trim_ascii_end() == b"{" => Some(Format::Json),
        b'[' if line.trim_ascii_end() == b"[" || text[1..].trim_ascii_start().starts_with(b"{") => {
            Some(Format::Json)
        }
        _ => None,
    }
}

/// Whether a file that calls itself JSON holds lines of JSON, as many do.
pub(super) fn is_lines_of_json(head: &[u8]) -> bool {
    let (line, rest) = first_line(head.trim_ascii_start());
    let json: Result<serde::de::IgnoredAny, _> = serde_json::from_slice(line);
    line.starts_with(b"{") && json.is_ok() && rest.trim_ascii_start().starts_with(b"{")
}

fn first_line(text: &[u8]) -> (&[u8], &[u8]) {
    let end = text.iter().position(|&byte| byte == b'\n');
    text.split_at(end.unwrap_or(text.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_formats() {
        let check =
            |name: &str, expected: Option<Format>| assert_eq!(format(name), expected, "{name}");
        check("a/b.TXT", Some(Format::Txt));
        check("a.jsonl.gz", Some(Format::Jsonl));
        check("https://x.org/a.csv.zst?b=c.txt#d", Some(Format::Csv));
        check("a?b.md", Some(Format::Md));
        check("a.tar.gz", None);
        check(".txt", None);
        check("README", None);
    }

    #[test]
    fn contents_tell_formats() {
        let check = |head: &str, expected: Option<Format>| {
            assert_eq!(format_of_content(head.as_bytes()), expected, "{head}");
        };
        check("{\"a\": 1}\n{\"a\": 2}\n", Some(Format::Jsonl));
        check("{\"a\": 1", Some(Format::Jsonl));
        check("{\n  \"a\": [\n", Some(Format::Json));
        check("\u{feff} [{\"a\": 1}", Some(Format::Json));
        check("[1] A reference.", None);
        check("{ curly } and so on\nand on", None);
        check("\n<!DOCTYPE HTML>", Some(Format::Html));
        check("a,b\n1,2\n", None);
        assert!(is_lines_of_json(b"{\"a\": 1}\n\n{\"a\": 2}"));
        assert!(!is_lines_of_json(b"{\"a\": 1}\n"));
    }

    #[test]
    fn what_is_not_taken_is_counted() {
        let mut skipped = Counts::new();
        for name in [
            "a/b.png",
            "c.PNG",
            "LICENSE",
            "d.gz",
            ".git/x.txt",
            "e.tar.gz",
            "f.md",
        ] {
            is_taken(name, &mut skipped);
        }
        let counted: Vec<_> = skipped
            .iter()
            .map(|(kind, n)| (kind.as_str(), *n))
            .collect();
        assert_eq!(counted, [(".gz", 1), (".png", 2), ("no ending", 1)]);
    }
}
