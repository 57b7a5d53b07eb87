//! Formats, row shapes and encodings.

use super::*;

#[test]
fn lines_of_json_in_every_shape() {
    let lines = concat!(
        "\u{feff}{\"text\": \"a\", \"more\": {\"x\": [1]}}\r\n",
        "\n",
        "{\"prompt\": \"p\", \"completion\": \"c\"}\n",
        "{\"question\": \"q\", \"answer\": \"a\", \"text\": \"t\"}\n",
        "{\"instruction\": \"i\", \"input\": \"n\", \"output\": \"o\"}\n",
        "{\"instruction\": \"i\", \"input\": \"\", \"output\": \"o\"}\n",
        "{\"instruction\": \"i\", \"input\": null, \"output\": \"o\", \"messages\": null}\n",
        "{\"messages\": [{\"role\": \"system\", \"content\": \"s\"}, {\"role\": \"user\", \"content\": [{\"type\": \"text\", \"text\": \"u\"}, {\"type\": \"text\", \"text\": \"v\"}], \"name\": \"n\"}]}\n",
        "{\"conversations\": [{\"from\": \"human\", \"value\": \"h\"}, {\"from\": \"gpt\", \"value\": \"g\"}]}\n",
        "{\"body\": \"\"}",
    );
    let expected = [
        "a.jsonl:1: a",
        "a.jsonl:3: p -> c",
        "a.jsonl:4: q -> a",
        "a.jsonl:5: i\n\nn -> o",
        "a.jsonl:6: i -> o",
        "a.jsonl:7: i -> o",
        "a.jsonl:8: [system: s; user: u\nv]",
        "a.jsonl:9: [user: h; assistant: g]",
        "a.jsonl:10: ",
    ];
    assert_eq!(read("a.jsonl", lines), expected);
}

#[test]
fn a_bad_line_is_an_error_with_its_number_and_the_next_ones_come() {
    let lines = b"{\"text\": \"a\n{\"text\": \"\xff\"}\n[1]\n{\"title\": \"x\", \"id\": 1}\n{\"text\": null}\n{\"text\": 7}\n{\"text\": \"a\"} x\n{}\n{\"messages\": [{\"role\": \"user\"}]}\n{\"messages\": [{\"role\": \"user\", \"content\": [{\"type\": \"image_url\"}]}]}\n{\"text\": \"z\"}\n";
    let expected = [
        "ROW a.jsonl:1: invalid JSON at column 11: EOF while parsing a string",
        "ROW a.jsonl:2: invalid UTF-8 at byte 11 of the row",
        "ROW a.jsonl:3: is no object with keys and values",
        "ROW a.jsonl:4: there is no `text`, `prompt` with `completion`, `messages` or another usual name, only `title`, `id`",
        "ROW a.jsonl:5: `text` is null",
        "ROW a.jsonl:6: `text` is a number, not a string",
        "ROW a.jsonl:7: invalid JSON at column 15: trailing characters",
        "ROW a.jsonl:8: there is no `text`, `prompt` with `completion`, `messages` or another usual name, nor anything",
        "ROW a.jsonl:9: `messages`: message 1 has no `content` and no `value`",
        "ROW a.jsonl:10: `messages`: message 1 has a part of the type `image_url` without a text",
        "a.jsonl:11: z",
    ];
    assert_eq!(read("a.jsonl", lines), expected);
}

#[test]
fn chosen_fields_are_the_only_ones() {
    let mut source = format(Format::Jsonl);
    let lines = b"{\"text\": \"t\", \"a\": \"x\", \"b\": \"y\"}\n{\"text\": \"t\"}\n";
    source.fields.text = Some("b".to_owned());
    let expected = ["a:1: y", "ROW a:2: there is no `b`, only `text`"];
    assert_eq!(read_as("a", lines, &source), expected);
    source.fields = Fields {
        prompt: Some("a".to_owned()),
        completion: Some("b".to_owned()),
        input: Some("text".to_owned()),
        ..Fields::default()
    };
    assert_eq!(read_as("a", lines, &source)[0], "a:1: x\n\nt -> y");
    source.fields.chat = Some(true);
    assert_eq!(
        read_as("a", lines, &source)[0],
        "a:1: [user: x\n\nt; assistant: y]"
    );
    source.fields.text = Some("b".to_owned());
    assert_eq!(
        read_as("a", lines, &source),
        [
            "FILE a: the fields name two shapes: either `text`, or `prompt` and `completion`, or `messages`"
        ]
    );
}

#[test]
fn a_line_that_is_too_long_is_passed_over() {
    let wanted = rows::Wanted::new(&Fields::default()).unwrap();
    let lines = format!(
        "{{\"text\": \"{}\"}}\n{{\"text\": \"b\"}}\n",
        "a".repeat(100)
    );
    let stream = || Box::new(io::Cursor::new(lines.clone().into_bytes()));
    let rows = json::Lines::with_limit(stream(), wanted.clone(), 50);
    let rows: Vec<_> = rows.map(|row| row.map_err(|flaw| flaw.reason)).collect();
    assert_eq!(rows[0], Err("the row is longer than 50 bytes".to_owned()));
    assert_eq!(rows[1], Ok((2, Body::Text("b".to_owned()))));
    let array = format!("[{}]", lines.trim().replace('\n', ","));
    let stream = Box::new(io::Cursor::new(array.into_bytes()));
    let rows = json::Elements::with_limit(stream, wanted, 50);
    let rows: Vec<_> = rows.map(|row| row.map_err(|flaw| flaw.reason)).collect();
    assert_eq!(rows[0], Err("the row is longer than 50 bytes".to_owned()));
    assert_eq!(rows[1], Ok((2, Body::Text("b".to_owned()))));
}

#[test]
fn arrays_of_json() {
    let check = |json: &str, expected: &[&str]| {
        assert_eq!(read("a.json", json), expected, "{json}");
    };
    check(
        "[{\"text\": \"a]\\\"}\"},\n {\"text\": tru}, 3, {\"text\": \"b\"}]\n",
        &[
            "a.json:1: a]\"}",
            "ROW a.json:2: invalid JSON at line 1, column 13 of this element: expected ident",
            "ROW a.json:3: is no object with keys and values",
            "a.json:4: b",
        ],
    );
    check(
        "{\"v\": 1, \"tags\": [\"x\", [1]], \"data\": [{\"text\": \"a\"}, {\"text\": \"b\"}], \"o\": {\"x\": [{}]}}",
        &["a.json:1: a", "a.json:2: b"],
    );
    check("[]", &[]);
    check(
        "{\"a\": [}",
        &["FILE a.json: invalid JSON at byte 7: expected `,` or `]`, found `}`"],
    );
    check("{\"data\": []}", &[]);
    check(
        "{\"text\": \"a\"}\n{\"text\": \"b\"}\n",
        &["a.json:1: a", "a.json:2: b"],
    );
    check(
        "{\"text\": \"a\", \"x\": 1}",
        &["FILE a.json: the file is an object without an array of objects; its keys: `text`, `x`"],
    );
    check(
        "{\"a\": [{\"text\": \"a\"}], \"b\": [{}]}",
        &[
            "a.json:1: a",
            "FILE a.json:1: the file has two arrays of objects, `a` and `b`; which to take cannot be told",
        ],
    );
    check(
        "",
        &["FILE a.json: invalid JSON at byte 0: the file is cut off"],
    );
    check(
        "x",
        &["FILE a.json: invalid JSON at byte 1: a JSON file begins with `[` or `{`"],
    );
    check(
        "[{\"text\": \"a\"}, {\"te",
        &[
            "a.json:1: a",
            "FILE a.json:2: invalid JSON at byte 20: the file is cut off",
        ],
    );
    check(
        "[{\"text\": \"a\"} {}]",
        &[
            "a.json:1: a",
            "FILE a.json:1: invalid JSON at byte 15: expected `,` or `]`, found `{`",
        ],
    );
    check(
        "[{\"text\": \"a\"}] x",
        &[
            "a.json:1: a",
            "FILE a.json:1: invalid JSON at byte 16: `x` follows after the end",
        ],
    );
    check(
        "{\"messages\": [{\"role\": \"user\"}]}",
        &[
            "FILE a.json: the file is one conversation (`messages`): put it on a line of a .jsonl file, or in an array",
        ],
    );
}

#[test]
fn tables_of_commas_and_tabs() {
    let csv = "label,text\r\n1,\"a\nb \"\"c\"\"\"\r\n\r\n2,d\r\n3\r\n4,\r\n";
    let expected = [
        "a.csv:2: a\nb \"c\"",
        "a.csv:5: d",
        "ROW a.csv:6: the record has 1 fields, but the header 2",
        "a.csv:7: ",
    ];
    assert_eq!(read("a.csv", csv), expected);
    assert_eq!(read("a.csv", csv.replace('\r', "")), expected);
    let quoted = "text\n\"a\r\n\"\n\n\n\"b\nc\"";
    assert_eq!(read("a.csv", quoted), ["a.csv:2: a\r\n", "a.csv:6: b\nc"]);
    assert_eq!(
        read("a.tsv", "prompt\tcompletion\na, b\tc\n"),
        ["a.tsv:2: a, b -> c"]
    );
    assert_eq!(
        read("a.csv", "id;text\n1;a\n"),
        [
            "FILE a.csv:1: there is no `text`, `prompt` with `completion`, `messages` or another usual name, only `id;text`"
        ]
    );
    assert_eq!(
        read(
            "a.csv",
            "messages\n\"[{\"\"role\"\": \"\"user\"\", \"\"content\"\": \"\"x\"\"}]\"\nx\n"
        ),
        [
            "a.csv:2: [user: x]",
            "ROW a.csv:3: `messages`: is a string that holds no JSON array of messages"
        ]
    );
    assert!(read("a.csv", "").is_empty());
    let wanted = rows::Wanted::new(&Fields::default()).unwrap();
    let open = format!("text\n\"{}", "a\n".repeat(1 << 20));
    let stream = Box::new(io::Cursor::new(open.into_bytes()));
    let mut rows = table::Records::with_limit(stream, b',', wanted, 1000).unwrap();
    let flaw = rows.next().unwrap().unwrap_err();
    assert!(flaw.whole);
    assert_eq!(
        flaw.reason,
        "a record is too long; a quote may be left open"
    );
}

#[test]
fn files_that_are_one_document() {
    assert_eq!(read("a.txt", "a\nb\n"), ["a.txt: a\nb\n"]);
    assert_eq!(read("a", "a"), ["a: a"]);
    assert_eq!(read("a.txt", ""), ["a.txt: "]);
    assert_eq!(read("a.md", "---\nx: y\n---\n# a\n"), ["a.md: # a\n"]);
    assert_eq!(
        read("a.html", "<p>a <a href='b'>c</a><script>d</script>"),
        ["a.html: a c\n"]
    );
    let too_large = text::read(Peek::new(Box::new(io::repeat(b'a'))), Format::Txt, 1000);
    assert!(
        too_large
            .unwrap_err()
            .starts_with("is one document of more than 1000 bytes")
    );
}

fn utf16(text: &str, bytes: fn(u16) -> [u8; 2]) -> Vec<u8> {
    text.encode_utf16().flat_map(bytes).collect()
}

#[test]
fn encodings_are_told() {
    let texts = [
        "Grüße aus Köln, 42 Stück.\nUnd noch eine Zeile.\n",
        "Привет, мир! Как дела?\n",
        "こんにちは 世界。\nこれは日本語の文章です。\n",
    ];
    for text in texts {
        for marked in [text.to_owned(), format!("\u{feff}{text}")] {
            let expected = [format!("a.txt: {text}")];
            assert_eq!(read("a.txt", &marked), expected);
            assert_eq!(read("a.txt", utf16(&marked, u16::to_le_bytes)), expected);
            assert_eq!(read("a.txt", utf16(&marked, u16::to_be_bytes)), expected);
        }
    }
    let table = "text,x\nÄrger über Öl und Maß: naïve façade,1\n";
    let (latin, ..) = encoding_rs::WINDOWS_1252.encode(table);
    assert_eq!(
        read("a.csv", &latin),
        ["a.csv:2: Ärger über Öl und Maß: naïve façade"]
    );
    assert_eq!(
        read(
            "a.csv",
            utf16(&format!("\u{feff}{table}"), u16::to_le_bytes)
        ),
        ["a.csv:2: Ärger über Öl und Maß: naïve façade"]
    );
    let (latin, ..) = encoding_rs::WINDOWS_1252.encode(texts[0]);
    assert_eq!(read("a.txt", &latin), [format!("a.txt: {}", texts[0])]);
    let (sjis, ..) = encoding_rs::SHIFT_JIS.encode(texts[2]);
    assert_eq!(read("a.txt", &sjis), [format!("a.txt: {}", texts[2])]);
    let page = "<meta charset=\"koi8-r\"><p>Да</p>";
    let (koi, ..) = encoding_rs::KOI8_R.encode(page);
    assert_eq!(read("a.html", &koi), ["a.html: Да\n"]);
    assert_eq!(
        read(
            "a.jsonl",
            utf16("{\"text\": \"ä\"}\n{\"text\": \"b\"}\n", u16::to_le_bytes)
        ),
        ["a.jsonl:1: ä", "a.jsonl:2: b"]
    );
}

#[test]
fn a_slip_in_utf8_does_not_turn_the_text_into_another_encoding() {
    let mut bytes = "äöü ".repeat(100).into_bytes();
    bytes.push(0xe4);
    let expected = format!("a.txt: {}\u{fffd}", "äöü ".repeat(100));
    assert_eq!(read("a.txt", bytes), [expected]);
    assert_eq!(
        read("a.csv", b"text\n\xc3\xa4\xc3\xb6\xc3\xbc\xc3\xa4\xc3\xb6\xc3\xbc\xc3\xa4\xc3\xb6\xc3\xbc\n\xff\nb\n"),
        ["a.csv:2: äöüäöüäöü", "ROW a.csv:3: invalid UTF-8", "a.csv:4: b"]
    );
}

#[test]
fn binary_files_are_refused() {
    let noise: Vec<u8> = (0..5000_u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    for name in ["a.txt", "a.csv", "a.jsonl", "a.html"] {
        assert_eq!(
            read(name, &noise),
            [format!("FILE {name}: is a binary file, not text")]
        );
    }
    assert_eq!(
        read("a", "%PDF-1.7"),
        ["FILE a: is a PDF; make text of it first"]
    );
}

/// A table with a string column, a list of structs and a number.
fn parquet(n_rows: usize) -> Vec<u8> {
    use ::parquet::{
        data_type::{ByteArray, ByteArrayType, Int64Type},
        file::{properties::WriterProperties, writer::SerializedFileWriter},
        schema::parser::parse_message_type,
    };
    let schema = "message m {
        optional binary text (UTF8);
        optional int64 n;
        optional group messages (LIST) { repeated group list { optional group element {
            optional binary role (UTF8); optional binary content (UTF8); } } }
    }";
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let zstd = ::parquet::basic::Compression::ZSTD(::parquet::basic::ZstdLevel::default());
    let properties = WriterProperties::builder().set_compression(zstd).build();
    let mut writer = SerializedFileWriter::new(Vec::new(), schema, Arc::new(properties)).unwrap();
    let strings = |what: &str| -> Vec<ByteArray> {
        (0..n_rows)
            .map(|i| ByteArray::from(format!("{what}{i}").as_str()))
            .collect()
    };
    for _ in 0..2 {
        let mut group = writer.next_row_group().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        // Every third text is null.
        let levels: Vec<i16> = (0..n_rows).map(|i| i16::from(i % 3 != 2)).collect();
        let there: Vec<_> = strings("t")
            .into_iter()
            .zip(&levels)
            .filter(|(_, l)| **l == 1)
            .map(|(s, _)| s)
            .collect();
        column
            .typed::<ByteArrayType>()
            .write_batch(&there, Some(&levels), None)
            .unwrap();
        column.close().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        let numbers: Vec<i64> = (0..n_rows as i64).collect();
        column
            .typed::<Int64Type>()
            .write_batch(&numbers, Some(&vec![1; n_rows]), None)
            .unwrap();
        column.close().unwrap();
        for what in ["r", "c"] {
            let mut column = group.next_column().unwrap().unwrap();
            let (def, rep) = (vec![4; n_rows], vec![0; n_rows]);
            column
                .typed::<ByteArrayType>()
                .write_batch(&strings(what), Some(&def), Some(&rep))
                .unwrap();
            column.close().unwrap();
        }
        group.close().unwrap();
    }
    writer.into_inner().unwrap()
}

#[test]
fn parquet_from_a_file_a_stream_and_an_archive() {
    let bytes = parquet(3);
    let mut source = source();
    source.fields.text = Some("text".to_owned());
    let expected = |name: &str| {
        [
            "1: t0",
            "2: t1",
            "R3: `text` is null",
            "4: t0",
            "5: t1",
            "R6: `text` is null",
        ]
        .map(|row| match row.strip_prefix('R') {
            Some(row) => format!("ROW {name}:{row}"),
            None => format!("{name}:{row}"),
        })
    };
    assert_eq!(read_as("a.parquet", &bytes, &source), expected("a.parquet"));
    assert_eq!(read_as("a", &gzip(&bytes), &source), expected("a"));
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "a.parquet", &bytes);
    source.path = folder.path().join("a.parquet").to_str().unwrap().to_owned();
    let input = find(std::slice::from_ref(&source))
        .unwrap()
        .inputs
        .remove(0);
    let n_told = Cell::new(0);
    let mut documents = documents(&input, &source, |n| n_told.set(n_told.get() + n)).unwrap();
    let all: Vec<String> = documents.by_ref().map(shown).collect();
    assert_eq!(all, expected(&input.name));
    assert_eq!(documents.finish().unwrap().len_bytes, bytes.len() as u64);
    assert_eq!(n_told.get(), bytes.len() as u64);
    source.fields = Fields::default();
    assert_eq!(
        read_as("a.parquet", &bytes, &source)[1],
        "a.parquet:2: [r1: c1]"
    );
    source.fields.text = Some("n".to_owned());
    assert_eq!(
        read_as("a.parquet", &bytes, &source)[0],
        "ROW a.parquet:1: `n` is a number, not a string"
    );
    source.fields.text = Some("x".to_owned());
    assert_eq!(
        read_as("a.parquet", &bytes, &source),
        ["FILE a.parquet: there is no `x`, only `text`, `n`, `messages`"]
    );
}

#[test]
fn broken_parquet_is_an_error() {
    let bytes = parquet(200);
    assert_eq!(
        read("a.parquet", &bytes[..bytes.len() - 9]),
        ["FILE a.parquet: is no whole parquet file: it is cut off, or something else"]
    );
    for at in (0..bytes.len()).step_by(7) {
        let mut bytes = bytes.clone();
        bytes[at] ^= 0x55;
        // Some changes break nothing that is read.
        assert!(!read("a.parquet", &bytes).is_empty());
    }
}

#[test]
fn records_are_rows_as_they_are() {
    use serde_json::Value;

    let place = tempfile::tempdir().unwrap();
    let read = |name: &str, bytes: &[u8]| {
        let path = place.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let source = Source::of(&path.to_string_lossy());
        let records = crate::collect::records(&source).unwrap();
        let shown = records.map(|record| match record {
            Ok(record) => format!("{} {}", record.place.row, Value::Object(record.fields)),
            Err(error) => {
                let text = format!("{error:#}");
                text.rsplit('/').next().unwrap_or_default().to_owned()
            }
        });
        shown.collect::<Vec<_>>()
    };
    let lines = "{\"a\": [1, {\"b\": null}], \"c\": 0.5}\n\n[1]\n{\"a\": \"x\"}\n{\"a\"";
    let got = read("rows.jsonl", lines.as_bytes());
    assert_eq!(got[0], r#"1 {"a":[1,{"b":null}],"c":0.5}"#);
    assert_eq!(got[1], "rows.jsonl:3: is no object with keys and values");
    assert_eq!(got[2], r#"4 {"a":"x"}"#);
    assert!(got[3].starts_with("rows.jsonl:5: invalid JSON"), "{got:?}");
    let array = read("rows.json", b"[{\"a\": 1}, {\"b\": true}]");
    assert_eq!(array, [r#"1 {"a":1}"#, r#"2 {"b":true}"#]);
    let table = read("rows.csv", b"q,a\r\nx,1\r\n\"y, z\",2\r\n");
    assert_eq!(
        table,
        [r#"2 {"q":"x","a":"1"}"#, r#"3 {"q":"y, z","a":"2"}"#]
    );
    let text = read("rows.txt", b"a text");
    assert_eq!(text.len(), 1);
    assert!(text[0].contains("holds no rows"), "{text:?}");
}
