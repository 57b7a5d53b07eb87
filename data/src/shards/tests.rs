use super::*;
use crate::{
    config::{PackMode, Split},
    control::Quiet,
    encode::{Encoder, TokenizerId},
    pack::Row,
};
use fledgling_core::{
    gguf::Header, model::ModelInfo, quant::DType, spec::Family, testing::tiny_model,
};
use proptest::{collection::vec, prelude::*};
use serde_json::{Value, json};
use std::{collections::BTreeMap, fs, path::Path};

fn tokenizer(vocab_size: usize) -> TokenizerId {
    TokenizerId {
        name: "some".to_owned(),
        vocab_size,
        sha256: "00".to_owned(),
        template_sha256: None,
    }
}

fn layout(vocab_size: usize, shard_tokens: usize) -> Layout {
    Layout {
        tokenizer: tokenizer(vocab_size),
        context: 64,
        mode: PackMode::Segments,
        shard_tokens,
    }
}

/// A row of segments of these lengths, with ids below `vocab_size`, of which every `each`-th counts.
fn row(segments: &[u32], vocab_size: u32, each: usize) -> Row {
    let n = segments.iter().sum::<u32>();
    let mut counted: Vec<bool> = (0..n as usize).map(|i| i % each == 0).collect();
    let mut start = 0;
    for len in segments {
        counted[start] = false;
        start += *len as usize;
    }
    Row {
        tokens: (0..n).map(|i| (i * 7919 + 13) % vocab_size).collect(),
        counted,
        segments: segments.to_vec(),
    }
}

fn write(folder: &Path, layout: Layout, rows: &[(Split, Row)]) -> Manifest {
    let mut writer = DatasetWriter::create(folder, layout).unwrap();
    for (split, row) in rows {
        writer.push(*split, row).unwrap();
    }
    let about = About {
        fingerprint: "f".to_owned(),
        config: json!({ "b": 1, "a": 2 }),
        ..About::default()
    };
    writer.finish(about).unwrap()
}

fn all(split: &SplitShards) -> Vec<Row> {
    (0..split.n_rows()).map(|i| split.row(i).unwrap()).collect()
}

/// Name and content of every file.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| {
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            (name, fs::read(&path).unwrap())
        })
        .collect()
}

fn example(folder: &Path) -> Vec<(Split, Row)> {
    let rows = vec![
        (Split::Train, row(&[5, 9], 300, 2)),
        (Split::Valid, row(&[3], 300, 1)),
        (Split::Train, row(&[40, 2, 2], 300, 3)),
        (Split::Train, row(&[65], 300, 5)),
    ];
    write(folder, layout(300, 60), &rows);
    rows
}

fn rows() -> impl Strategy<Value = Vec<(Split, Row)>> {
    let split = prop_oneof![Just(Split::Train), Just(Split::Valid), Just(Split::Test)];
    let shape = (split, vec(2_u32..9, 1..6), 1_usize..4);
    vec(shape, 0..40).prop_map(|shapes| {
        shapes
            .into_iter()
            .map(|(split, segments, each)| (split, row(&segments, 300, each)))
            .collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn rows_come_back_with_masks_and_segments(rows in rows(), wide: bool, shard_tokens in 1_usize..200) {
        let folder = tempfile::tempdir().unwrap();
        let vocab_size = if wide { 70_000 } else { 65_536 };
        let rows: Vec<_> = rows
            .into_iter()
            .map(|(split, mut row)| {
                row.tokens.iter_mut().for_each(|id| *id = vocab_size - 1 - *id);
                (split, row)
            })
            .collect();
        let manifest = write(folder.path(), layout(vocab_size as usize, shard_tokens), &rows);
        let shards = Shards::open(folder.path()).unwrap();
        prop_assert_eq!(shards.manifest(), &manifest);
        shards.verify(&Quiet).unwrap();
        for split in [Split::Train, Split::Valid, Split::Test] {
            let wanted: Vec<Row> = rows.iter().filter(|(s, _)| *s == split).map(|(_, row)| row.clone()).collect();
            let Some(read) = shards.split(split) else {
                prop_assert!(wanted.is_empty());
                continue;
            };
            read.check_ids().unwrap();
            prop_assert_eq!(all(read), wanted.clone());
            prop_assert_eq!(read.n_counted(), wanted.iter().map(|row| row.n_counted() as u64).sum::<u64>());
            for (i, row) in wanted.iter().enumerate() {
                prop_assert_eq!(read.row_len(i), row.tokens.len());
                for range in read.segments(i) {
                    let segment = read.segment(i, range.clone()).unwrap();
                    prop_assert_eq!(read.n_counted_in(i, range.clone()), segment.n_counted());
                    prop_assert_eq!(&segment.tokens, &row.tokens[range.clone()]);
                    prop_assert_eq!(&segment.counted, &row.counted[range]);
                }
            }
        }
    }

    /// A folder of which any byte is another is an error, or else reads without a panic.
    #[test]
    fn damage_is_an_error_and_no_panic(file in 0_usize..16, at: prop::sample::Index, byte: u8, cut: bool) {
        let folder = tempfile::tempdir().unwrap();
        example(folder.path());
        let files = files(folder.path());
        let (name, mut bytes) = files.into_iter().cycle_nth(file);
        let at = at.index(bytes.len());
        if cut {
            bytes.truncate(at);
        } else {
            bytes[at] = byte;
        }
        fs::write(folder.path().join(&name), &bytes).unwrap();
        if let Ok(shards) = Shards::open(folder.path()) {
            prop_assert!(!cut || name == MANIFEST_FILE);
            let _ = shards.verify(&Quiet);
            for split in [Split::Train, Split::Valid] {
                if let Some(split) = shards.split(split) {
                    let _ = (0..split.n_rows()).map(|i| split.row(i)).collect::<Vec<_>>();
                }
            }
        }
    }

    #[test]
    fn a_manifest_may_be_anything(bytes in vec(any::<u8>(), 0..200)) {
        prop_assert!(Manifest::parse(&bytes).is_err());
    }
}

trait CycleNth: Iterator {
    fn cycle_nth(self, n: usize) -> Self::Item;
}
impl<I: Iterator> CycleNth for I {
    fn cycle_nth(self, n: usize) -> I::Item {
        let mut items: Vec<_> = self.collect();
        let n = n % items.len();
        items.swap_remove(n)
    }
}

#[test]
fn the_bytes_are_those_that_the_format_says() {
    let folder = tempfile::tempdir().unwrap();
    let rows = [
        (Split::Train, row(&[2, 3], 10, 1)),
        (Split::Train, row(&[4], 10, 3)),
    ];
    write(folder.path(), layout(10, 1000), &rows);
    let files = files(folder.path());
    let names: Vec<_> = files.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "manifest.json",
            "train-00000.mask",
            "train-00000.rows",
            "train-00000.segments",
            "train-00000.tokens"
        ]
    );
    assert_eq!(files["train-00000.tokens"].len(), 9 * 2);
    assert_eq!(files["train-00000.tokens"][..4], [3, 0, 2, 0]);
    assert_eq!(files["train-00000.mask"], [0b0001_1010, 0b1]);
    assert_eq!(
        files["train-00000.segments"],
        [2, 0, 0, 0, 3, 0, 0, 0, 4, 0, 0, 0]
    );
    assert_eq!(
        files["train-00000.rows"][24..],
        [
            5, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 1, 0, 0, 0
        ]
    );
}

#[test]
fn the_same_rows_make_the_same_bytes_and_no_mask_where_all_counts() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    example(a.path());
    example(b.path());
    assert_eq!(files(a.path()), files(b.path()));
    let names: Vec<_> = files(a.path()).into_keys().collect();
    assert!(names.contains(&"train-00001.mask".to_owned()));
    assert!(!names.contains(&"valid-00000.mask".to_owned()));
    assert!(!names.iter().any(|name| name.starts_with('.')));
}

#[test]
fn a_new_dataset_replaces_the_old_one_and_its_shards_but_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    example(folder.path());
    for name in ["notes.txt", "train-1.tokens", "train-00000.txt"] {
        fs::write(folder.path().join(name), "mine").unwrap();
    }
    let old = Shards::open(folder.path()).unwrap();
    let before = all(old.split(Split::Train).unwrap());
    let rows = [(Split::Train, row(&[7, 4], 300, 1))];
    write(folder.path(), layout(300, 1000), &rows);
    let names: Vec<_> = files(folder.path()).into_keys().collect();
    assert_eq!(
        names,
        [
            "manifest.json",
            "notes.txt",
            "train-00000.rows",
            "train-00000.segments",
            "train-00000.tokens",
            "train-00000.txt",
            "train-1.tokens"
        ]
    );
    let new = Shards::open(folder.path()).unwrap();
    assert!(new.split(Split::Valid).is_none());
    assert_eq!(all(new.split(Split::Train).unwrap()), [rows[0].1.clone()]);
    assert_eq!(
        all(old.split(Split::Train).unwrap()),
        before,
        "a map keeps what it shows"
    );
}

#[test]
fn a_writer_that_is_not_finished_leaves_what_was_there() {
    let folder = tempfile::tempdir().unwrap();
    example(folder.path());
    let before = files(folder.path());
    fs::create_dir(folder.path().join(".new")).unwrap();
    fs::write(folder.path().join(".new/left-over"), "").unwrap();
    let mut writer = DatasetWriter::create(folder.path(), layout(300, 10)).unwrap();
    writer.push(Split::Train, &row(&[9], 300, 1)).unwrap();
    writer.push(Split::Train, &row(&[9], 300, 1)).unwrap();
    drop(writer);
    assert_eq!(files(folder.path()), before);

    let empty = tempfile::tempdir().unwrap();
    let error = format!("{:#}", Shards::open(empty.path()).unwrap_err());
    assert!(error.contains("no prepared data") && !Shards::is_dataset(empty.path()));
    let manifest = write(empty.path(), layout(300, 10), &[]);
    assert!(manifest.splits.is_empty() && Shards::is_dataset(empty.path()));
    assert!(
        Shards::open(empty.path())
            .unwrap()
            .into_split(Split::Train)
            .is_none()
    );
}

#[test]
fn what_has_changed_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let check = |name: &str, change: &dyn Fn(&mut Vec<u8>), expect: &str| {
        example(folder.path());
        let path = folder.path().join(name);
        let mut bytes = fs::read(&path).unwrap();
        change(&mut bytes);
        fs::write(&path, bytes).unwrap();
        let error = Shards::open(folder.path())
            .and_then(|shards| shards.verify(&Quiet))
            .unwrap_err();
        let error = format!("{error:#}");
        assert!(
            error.contains(name) && error.contains("prepare the data again"),
            "{error}"
        );
        assert!(error.contains(expect), "{error}");
    };
    check("train-00000.tokens", &|bytes| bytes.truncate(1), "bytes");
    check("train-00000.tokens", &|bytes| bytes[0] ^= 1, "has changed");
    check("train-00001.mask", &|bytes| bytes[0] ^= 4, "has changed");
    check("train-00000.rows", &|bytes| bytes[0] ^= 1, "does not begin");
    check(
        "train-00000.rows",
        &|bytes| bytes[19] = 255,
        "beyond the end",
    );
    fs::remove_file(folder.path().join("train-00000.segments")).unwrap();
    let error = format!("{:#}", Shards::open(folder.path()).unwrap_err());
    assert!(error.contains("train-00000.segments"), "{error}");

    example(folder.path());
    let path = folder.path().join("valid-00000.tokens");
    fs::write(&path, [255; 6]).unwrap();
    let shards = Shards::open(folder.path()).unwrap();
    let split = shards.split(Split::Valid).unwrap();
    for error in [split.row(0).unwrap_err(), split.check_ids().unwrap_err()] {
        assert!(error.to_string().contains("beyond the vocabulary"));
    }
}

#[test]
fn a_manifest_that_contradicts_itself_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    example(folder.path());
    let bytes = fs::read(folder.path().join(MANIFEST_FILE)).unwrap();
    let good: Value = serde_json::from_slice(&bytes).unwrap();
    assert!(Manifest::parse(good.to_string().as_bytes()).is_ok());
    let check = |pointer: &str, value: Value, expect: &str| {
        let mut bad = good.clone();
        *bad.pointer_mut(pointer).expect(pointer) = value;
        let error = Manifest::parse(bad.to_string().as_bytes()).unwrap_err();
        let error = format!("{error:#}");
        assert!(error.contains(expect), "{error}");
    };
    check("/format", json!("other"), "something else");
    check("/version", json!(2), "prepare the data again");
    check("/context", json!(0), "a context of 0");
    check("/tokenizer/vocab_size", json!(0), "a vocabulary of 0");
    check("/tokenizer/vocab_size", json!(70_000), "bytes");
    check("/splits/train/rows", json!(7), "hold other");
    let shard = "/splits/train/shards/0";
    for (key, value) in [("rows", 0_u64), ("segments", 0), ("counted", 10_000)] {
        check(&format!("{shard}/{key}"), json!(value), "to be learnt");
    }
    for key in ["tokens", "rows", "segments", "counted"] {
        let mut bad = good.clone();
        *bad.pointer_mut(&format!("{shard}/{key}")).unwrap() = json!(u64::MAX);
        assert!(Manifest::parse(bad.to_string().as_bytes()).is_err());
    }
    check(
        &format!("{shard}/files/0/name"),
        json!("../../etc/passwd"),
        "is called",
    );
    check(&format!("{shard}/files"), json!([]), "0 files");
    check(&format!("{shard}/files/1/len_bytes"), json!(1), "bytes");
}

#[test]
fn data_for_another_tokenizer_is_refused() {
    let info = |change: fn(&mut Header)| {
        let mut header = Header::parse(&tiny_model(Family::Llama, DType::Q8_0, 1)).unwrap();
        change(&mut header);
        Encoder::from_model(&ModelInfo::from_header(&header).unwrap())
    };
    let mine = info(|_| ());
    let other_name = info(|header| header.metadata.set("general.name", "second"));
    let other_eos = info(|header| {
        header.metadata.set("general.name", "third");
        header.metadata.set("tokenizer.ggml.eos_token_id", 296_u32);
    });
    let other_template = info(|header| {
        header
            .metadata
            .set("tokenizer.chat_template", "{{ messages }}");
    });
    let folder = tempfile::tempdir().unwrap();
    let open = |uses_template| {
        let mut layout = layout(300, 100);
        layout.tokenizer = mine.id(uses_template);
        write(folder.path(), layout, &[(Split::Train, row(&[5], 200, 1))]);
        Shards::open(folder.path()).unwrap()
    };
    let (text, chats) = (open(false), open(true));
    for shards in [&text, &chats] {
        shards.check_tokenizer(&mine).unwrap();
        shards.check_tokenizer(&other_name).unwrap();
        let error = shards.check_tokenizer(&other_eos).unwrap_err().to_string();
        assert!(
            error.contains("tiny-llama") && error.contains("third"),
            "{error}"
        );
    }
    text.check_tokenizer(&other_template).unwrap();
    let error = chats.check_tokenizer(&other_template).unwrap_err();
    assert!(error.to_string().contains("chat template"));
}
