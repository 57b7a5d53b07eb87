//! Where documents lie: compressed, in archives, in folders, behind addresses.

use super::*;
use sha2::Digest;
use std::{io::BufRead, net::TcpListener};

const TWO_LINES: &[u8] = b"{\"text\": \"a\"}\n{\"text\": \"b\"}\n";

fn zip(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut writer = ::zip::ZipWriter::new(io::Cursor::new(Vec::new()));
    for (idx, (name, bytes)) in files.iter().enumerate() {
        let method = [
            ::zip::CompressionMethod::Stored,
            ::zip::CompressionMethod::Deflated,
        ][idx % 2];
        let options = ::zip::write::SimpleFileOptions::default().compression_method(method);
        writer.start_file(*name, options).unwrap();
        writer.write_all(bytes).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut writer = ::tar::Builder::new(Vec::new());
    for (name, bytes) in files {
        let mut header = ::tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        writer.append_data(&mut header, name, *bytes).unwrap();
    }
    writer.into_inner().unwrap()
}

fn zst(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}

#[test]
fn compression_is_told_by_content() {
    for name in ["a.jsonl.gz", "a.jsonl", "a"] {
        let expected = [format!("{name}:1: a"), format!("{name}:2: b")];
        assert_eq!(read(name, gzip(TWO_LINES)), expected);
        assert_eq!(read(name, zst(TWO_LINES)), expected);
        let members = [gzip(&TWO_LINES[..20]), gzip(&TWO_LINES[20..])].concat();
        assert_eq!(read(name, members), expected);
        let frames = [zst(&TWO_LINES[..20]), zst(&TWO_LINES[20..])].concat();
        assert_eq!(read(name, frames), expected);
    }
    assert_eq!(
        read("a.gz", gzip(&gzip(b"a"))),
        ["FILE a.gz: is compressed twice"]
    );
}

#[test]
fn broken_compression_is_an_error_after_what_was_whole() {
    let text = "{\"text\": \"a\"}\n".repeat(10);
    let mut cut = gzip(text.as_bytes());
    cut.truncate(cut.len() - 4);
    let items = read("a.jsonl.gz", &cut);
    assert_eq!(items.len(), 11);
    assert!(
        items[10].starts_with("FILE a.jsonl.gz:11: broken gzip after 140 bytes: "),
        "{}",
        items[10]
    );
    let mut cut = zst(text.as_bytes());
    cut.truncate(cut.len() - 4);
    let items = read("a.txt.zst", &cut);
    assert!(
        items[0].starts_with("FILE a.txt.zst: broken zstd after 0 bytes: "),
        "{}",
        items[0]
    );
}

fn members() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("x/a.txt", b"a\n".repeat(400)),
        (
            "b.jsonl.gz",
            gzip(b"{\"text\": \"a\"}\nx\n{\"text\": \"b\"}\n"),
        ),
        ("c.png", b"\0\0".to_vec()),
        ("d.txt", vec![0; 100]),
        ("__MACOSX/._a.txt", b"x".to_vec()),
        ("LICENSE", b"x".to_vec()),
        ("e.zip", zip(&[("a.txt", b"a")])),
        ("f.csv", b"text\nf\n".to_vec()),
    ]
}

#[test]
fn files_in_archives_are_read_one_after_the_other() {
    let members = members();
    let files: Vec<(&str, &[u8])> = members
        .iter()
        .map(|(name, bytes)| (*name, bytes.as_slice()))
        .collect();
    let archives = [
        ("a.zip", zip(&files)),
        ("a.tar", tar(&files)),
        ("a.tgz", gzip(&tar(&files))),
        ("a.tar.zst", zst(&tar(&files))),
    ];
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in archives {
        let expected = |name: &str| {
            vec![
                format!("{name}/x/a.txt: {}", "a\n".repeat(400)),
                format!("{name}/b.jsonl.gz:1: a"),
                format!("ROW {name}/b.jsonl.gz:2: invalid JSON at column 1: expected value"),
                format!("{name}/b.jsonl.gz:3: b"),
                format!("FILE {name}/d.txt: is a binary file, not text"),
                format!("FILE {name}/e.zip: is an archive in an archive; unpack the outer one"),
                format!("{name}/f.csv:2: f"),
            ]
        };
        assert_eq!(read(name, &bytes), expected(name));
        write(folder.path(), name, &bytes);
        let path = folder.path().join(name).to_str().unwrap().to_owned();
        let source = Source { path, ..source() };
        let input = find(std::slice::from_ref(&source))
            .unwrap()
            .inputs
            .remove(0);
        let mut n_told = 0;
        let mut documents = documents(&input, &source, |n| n_told += n).unwrap();
        let all: Vec<String> = documents.by_ref().map(shown).collect();
        assert_eq!(all, expected(&input.name));
        let ended = documents.finish().unwrap();
        let skipped: Vec<_> = ended
            .skipped
            .iter()
            .map(|(kind, n)| (kind.as_str(), *n))
            .collect();
        assert_eq!(skipped, [(".png", 1), ("no ending", 1)]);
        assert_eq!(
            (ended.len_bytes, n_told),
            (bytes.len() as u64, bytes.len() as u64)
        );
    }
}

#[test]
fn broken_archives_are_errors_of_the_archive_or_of_one_file() {
    let mut bytes = zip(&[("a.txt", b"some text"), ("b.txt", b"b")]);
    let at = bytes
        .windows(9)
        .position(|window| window == b"some text")
        .unwrap();
    bytes[at] = b'S';
    assert_eq!(
        read("a.zip", &bytes),
        [
            "FILE a.zip/a.txt: broken zip after 9 bytes: the checksum is wrong",
            "a.zip/b.txt: b"
        ]
    );
    let items = read("a.zip", &bytes[..at + 3]);
    assert!(
        items[0].starts_with("FILE a.zip: broken zip: "),
        "{}",
        items[0]
    );
    let bytes = tar(&[("a.txt", b"a"), ("b.txt", &[b'b'; 1000])]);
    let cut = &bytes[..512 * 3 + 700];
    assert_eq!(
        read("a.tar", cut),
        [
            "a.tar/a.txt: a",
            "FILE a.tar/b.txt: the tar archive is cut off"
        ]
    );
    let mut cut = gzip(&bytes);
    cut.truncate(cut.len() / 2);
    let items = read("a.tar.gz", cut);
    let last = items.last().unwrap();
    assert!(last.contains("broken gzip after "), "{last}");
    assert_eq!(
        items.iter().filter(|item| item.starts_with("FILE")).count(),
        1
    );
    let long = format!("{}/x.txt", "n".repeat(180));
    assert_eq!(
        read("a.tar", tar(&[(&long, b"a")])),
        [format!("a.tar/{long}: a")]
    );
}

#[test]
fn the_hash_is_of_the_bytes_as_stored() {
    let stored = gzip(TWO_LINES);
    let documents = documents_of(
        io::Cursor::new(stored.clone()),
        "a.jsonl",
        &source(),
        |_| {},
    );
    let mut documents = documents.unwrap();
    assert!(documents.next().unwrap().is_ok());
    let expected = format!("{:x}", sha2::Sha256::digest(&stored));
    assert_eq!(documents.finish().unwrap().sha256, expected);
}

fn names_below(folder: &Path, paths: &[&str]) -> Result<Vec<(u32, String)>, String> {
    let sources = paths.iter().map(|path| Source {
        path: match *path {
            "-" => "-".to_owned(),
            url if url.starts_with("http") => url.to_owned(),
            path => folder.join(path).to_str().unwrap().to_owned(),
        },
        ..source()
    });
    let found = find(&sources.collect::<Vec<_>>());
    let start = format!("{}/", folder.display());
    let below = |input: Input| (input.source, input.name.replace(&start, ""));
    match found {
        Ok(found) => Ok(found.inputs.into_iter().map(below).collect()),
        Err(error) => Err(format!("{error:#}").replace(&start, "")),
    }
}

#[test]
fn inputs_are_found_in_the_order_of_names_and_never_twice() {
    let folder = tempfile::tempdir().unwrap();
    for name in [
        "b.txt",
        "a.txt",
        "c/d/e.md",
        "c/a.jsonl.gz",
        "c/x.rs",
        "c/LICENSE",
        ".git/x.txt",
        "z.zip",
    ] {
        write(folder.path(), name, "x");
    }
    let check = |paths: &[&str], expected: &[(u32, &str)]| {
        let found = names_below(folder.path(), paths).unwrap();
        let found: Vec<_> = found
            .iter()
            .map(|(source, name)| (*source, name.as_str()))
            .collect();
        assert_eq!(found, expected, "{paths:?}");
    };
    let all = [
        (0, "a.txt"),
        (0, "b.txt"),
        (0, "c/a.jsonl.gz"),
        (0, "c/d/e.md"),
        (0, "z.zip"),
    ];
    check(&[""], &all.map(|(source, name)| (source, name)));
    check(
        &["**/*.txt", "c"],
        &[
            (0, "a.txt"),
            (0, "b.txt"),
            (1, "c/a.jsonl.gz"),
            (1, "c/d/e.md"),
        ],
    );
    check(&["b.txt", "*"], &[(0, "b.txt"), (1, "a.txt"), (1, "z.zip")]);
    check(&["c/**/*.{rs,md}"], &[(0, "c/d/e.md"), (0, "c/x.rs")]);
    check(
        &["-", "-", "http://a/b", "http://a/b"],
        &[(0, "-"), (2, "http://a/b")],
    );
    let failed = |path: &str| names_below(folder.path(), &[path]).unwrap_err();
    assert_eq!(failed("no.txt"), "no.txt: there is no such file or folder");
    assert_eq!(failed("*.csv"), "*.csv: the glob matches nothing");
    assert!(failed("a[").contains("a[: the glob is wrong"));
    write(folder.path(), "empty/a.png", "x");
    assert_eq!(
        failed("empty"),
        "empty: the folder has no file of a known ending (1 .png)"
            .replace("empty:", &format!("{}:", "empty"))
    );
    let found = find(&[Source {
        path: folder.path().join("c").to_str().unwrap().to_owned(),
        ..source()
    }])
    .unwrap();
    let skipped: Vec<_> = found
        .skipped
        .iter()
        .map(|(kind, n)| (kind.as_str(), *n))
        .collect();
    assert_eq!(skipped, [(".rs", 1), ("no ending", 1)]);
    assert_eq!(found.inputs[0].len_bytes, Some(1));
    assert!(found.inputs[0].modified_unix_ns.unwrap() > 1_600_000_000_000_000_000);
}

#[test]
fn a_link_to_a_file_is_not_read_again() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "b.txt", "x");
    #[cfg(unix)]
    std::os::unix::fs::symlink(folder.path().join("b.txt"), folder.path().join("c.txt")).unwrap();
    assert_eq!(
        names_below(folder.path(), &["*.txt"]).unwrap(),
        [(0, "b.txt".to_owned())]
    );
}

#[test]
fn what_is_gone_when_it_is_read_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "a.txt", "x");
    let path = folder.path().join("a.txt");
    let source = Source {
        path: path.to_str().unwrap().to_owned(),
        ..source()
    };
    let input = find(std::slice::from_ref(&source))
        .unwrap()
        .inputs
        .remove(0);
    std::fs::remove_file(path).unwrap();
    let defect = documents(&input, &source, |_| {}).err().unwrap();
    assert!(defect.whole_file);
    assert!(defect.reason.starts_with("cannot be read: "), "{defect}");
}

#[test]
fn standard_input_needs_a_format_where_its_content_does_not_tell() {
    assert_eq!(read("-", TWO_LINES), ["-:1: a", "-:2: b"]);
    assert_eq!(read_as("-", b"a", &format(Format::Txt)), ["-: a"]);
    assert_eq!(
        read("-", b"a,b\n"),
        ["FILE -: what standard input holds does not show by itself: set the source's `format`"]
    );
}

/// Answers one request with these bytes.
fn serve(answer: Vec<u8>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut lines = io::BufReader::new(stream.try_clone().unwrap()).lines();
        while !lines.next().unwrap().unwrap().is_empty() {}
        stream.write_all(&answer).unwrap();
    });
    format!("http://{address}")
}

fn fetch(path: &str, head: &str, len: usize, body: &[u8]) -> Vec<String> {
    let mut answer =
        format!("HTTP/1.1 {head}\r\nContent-Length: {len}\r\nConnection: close\r\n\r\n")
            .into_bytes();
    answer.extend_from_slice(body);
    let server = serve(answer);
    let source = Source {
        path: format!("{server}{path}"),
        ..source()
    };
    let input = find(std::slice::from_ref(&source))
        .unwrap()
        .inputs
        .remove(0);
    let items = match documents(&input, &source, |_| {}) {
        Ok(documents) => documents.map(shown).collect(),
        Err(defect) => vec![shown(Err(defect))],
    };
    items
        .into_iter()
        .map(|item: String| item.replace(&server, ""))
        .collect()
}

#[test]
fn addresses_are_fetched() {
    let stored = gzip(TWO_LINES);
    assert_eq!(
        fetch("/a.jsonl.gz?x=1", "200 OK", stored.len(), &stored),
        ["/a.jsonl.gz?x=1:1: a", "/a.jsonl.gz?x=1:2: b"]
    );
    assert_eq!(
        fetch(
            "/page",
            "200 OK\r\nContent-Type: text/html; charset=utf-8",
            8,
            b"<p>a</p>"
        ),
        ["/page: a\n"]
    );
    let archive = zip(&[("a.txt", b"a")]);
    assert_eq!(
        fetch("/z", "200 OK", archive.len(), &archive),
        ["/z/a.txt: a"]
    );
    assert_eq!(
        fetch("/a.txt", "404 Not Found", 1, b"x"),
        ["FILE /a.txt: the server answered 404 Not Found"]
    );
    let cut = fetch("/a.jsonl", "200 OK", 100, TWO_LINES);
    assert_eq!(cut.len(), 3);
    assert!(
        cut[2].starts_with("FILE /a.jsonl:3: cannot be read: "),
        "{}",
        cut[2]
    );
    let closed = Source {
        path: "http://127.0.0.1:1/a.txt".to_owned(),
        ..source()
    };
    let input = find(std::slice::from_ref(&closed))
        .unwrap()
        .inputs
        .remove(0);
    let defect = documents(&input, &closed, |_| {}).err().unwrap();
    assert!(defect.reason.starts_with("cannot be fetched: "), "{defect}");
}
