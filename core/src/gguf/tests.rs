use super::*;
use crate::{
    spec::Family,
    testing::{exercise_file, tiny_model},
};
use proptest::prelude::*;

/// A file written by hand after ggml's `docs/gguf.md`, so that reader and writer cannot be wrong together.
#[derive(Clone)]
struct ByHand {
    version: u32,
    /// Each with its number of pairs, and tensors.
    pairs: Vec<Vec<u8>>,
    tensors: Vec<Vec<u8>>,
    data: Vec<u8>,
}

fn string(s: &str) -> Vec<u8> {
    let mut out = (s.len() as u64).to_le_bytes().to_vec();
    out.extend(s.as_bytes());
    out
}

fn pair(key: &str, type_id: u32, value: &[u8]) -> Vec<u8> {
    [&string(key), &type_id.to_le_bytes()[..], value].concat()
}

fn array(key: &str, type_id: u32, len: u64, values: &[u8]) -> Vec<u8> {
    pair(
        key,
        9,
        &[&type_id.to_le_bytes()[..], &len.to_le_bytes(), values].concat(),
    )
}

fn tensor(name: &str, shape: &[u64], type_id: u32, offset: u64) -> Vec<u8> {
    let mut out = string(name);
    out.extend((shape.len() as u32).to_le_bytes());
    out.extend(shape.iter().flat_map(|n| n.to_le_bytes()));
    out.extend(type_id.to_le_bytes());
    out.extend(offset.to_le_bytes());
    out
}

impl ByHand {
    /// Two tensors: `a`, a row of four floats, and `b`, a block of `Q8_0`.
    fn new() -> Self {
        let mut data = vec![0; 32 + 34];
        for (i, x) in [1.0_f32, -2.0, 0.5, 4.0].iter().enumerate() {
            data[4 * i..4 * i + 4].copy_from_slice(&x.to_le_bytes());
        }
        // Scale 1.0, then 7 in the first place.
        data[32..35].copy_from_slice(&[0x00, 0x3c, 7]);
        Self {
            version: 3,
            pairs: vec![
                pair("general.name", 8, &string("hand")),
                pair("n", 4, &7_u32.to_le_bytes()),
            ],
            tensors: vec![tensor("a", &[4], 0, 0), tensor("b", &[32, 1], 8, 32)],
            data,
        }
    }

    fn header_bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.pairs.len() as u64).to_le_bytes());
        out.extend(self.pairs.concat());
        out.extend(self.tensors.concat());
        out
    }

    fn bytes(&self) -> Vec<u8> {
        let mut out = self.header_bytes();
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend(&self.data);
        out
    }

    fn parse(&self) -> Result<Gguf, GgufError> {
        Gguf::parse(self.bytes().into())
    }
}

#[test]
fn a_file_by_hand() {
    let gguf = ByHand::new().parse().expect("a valid file");
    let header = gguf.header();
    assert_eq!(
        (
            header.metadata.str("general.name"),
            header.metadata.u64("n")
        ),
        (Some("hand"), Some(7))
    );
    assert_eq!((header.alignment, header.tensors.len()), (32, 2));
    assert_eq!(header.tensor("b").expect("b").shape, [32, 1]);
    assert_eq!(gguf.tensor_f32("a"), Ok(vec![1.0, -2.0, 0.5, 4.0]));
    let b = gguf.tensor_f32("b").expect("b");
    assert_eq!((b.len(), b[0], b[1]), (32, 7.0, 0.0));
    assert_eq!(
        gguf.tensor("c").map(|_| ()),
        Err(GgufError::MissingTensor("c".into()))
    );
}

#[test]
fn every_type_of_value() {
    let mut file = ByHand::new();
    file.pairs = vec![
        pair("u8", 0, &[200]),
        pair("i8", 1, &[0xff]),
        pair("u16", 2, &60_000_u16.to_le_bytes()),
        pair("i16", 3, &(-3_i16).to_le_bytes()),
        pair("u32", 4, &4_000_000_000_u32.to_le_bytes()),
        pair("i32", 5, &(-5_i32).to_le_bytes()),
        pair("f32", 6, &1.5_f32.to_le_bytes()),
        pair("bool", 7, &[1]),
        pair("string", 8, &string("héllo")),
        pair("u64", 10, &u64::MAX.to_le_bytes()),
        pair("i64", 11, &(-7_i64).to_le_bytes()),
        pair("f64", 12, &2.5_f64.to_le_bytes()),
        array("bools", 7, 3, &[1, 0, 1]),
        array(
            "strings",
            8,
            3,
            &[string("a"), string(""), string("ü")].concat(),
        ),
        array("i32s", 5, 2, &[1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]),
        array("f32s", 6, 1, &0.25_f32.to_le_bytes()),
        array("empty", 8, 0, &[]),
    ];
    let gguf = file.parse().expect("a valid file");
    let m = &gguf.header().metadata;
    assert_eq!(m.len(), file.pairs.len());
    assert_eq!(
        (m.u64("u8"), m.u64("u16"), m.u64("u32"), m.u64("u64")),
        (Some(200), Some(60_000), Some(4_000_000_000), Some(u64::MAX))
    );
    assert_eq!(
        (m.u64("i8"), m.f64("i8"), m.f64("i16"), m.f64("i32")),
        (None, Some(-1.0), Some(-3.0), Some(-5.0))
    );
    assert_eq!(
        (m.f64("f32"), m.f64("f64"), m.f64("u8"), m.f64("i64")),
        (Some(1.5), Some(2.5), Some(200.0), Some(-7.0))
    );
    assert_eq!(
        (m.bool("bool"), m.str("string"), m.str("u8"), m.bool("u8")),
        (Some(true), Some("héllo"), None, None)
    );
    assert_eq!(
        m.get("bools"),
        Some(&Value::Array(Array::Bool(vec![true, false, true])))
    );
    let strings = m.strings("strings").expect("strings");
    assert_eq!(strings.iter().collect::<Vec<_>>(), ["a", "", "ü"]);
    assert_eq!((strings.len(), &strings[2], strings.get(3)), (3, "ü", None));
    assert!(m.strings("empty").expect("an empty array").is_empty());
    assert_eq!(
        (m.ints("i32s"), m.ints("f32s"), m.floats("f32s")),
        (Some(vec![1, -1]), None, Some(vec![0.25]))
    );
}

#[test]
fn metadata_keeps_its_order_and_its_keys_unique() {
    let mut m = Metadata::new();
    m.set("b", 1_u32);
    m.set("a", "x");
    m.set("b", 2_u32);
    assert_eq!(m.iter().map(|(key, _)| key).collect::<Vec<_>>(), ["b", "a"]);
    assert_eq!(
        (m.u64("b"), m.remove("b"), m.get("b")),
        (Some(2), Some(Value::U32(2)), None)
    );
    let mut other = Metadata::new();
    other.set("a", "y");
    other.set("c", true);
    m.extend(other);
    assert_eq!(
        (m.len(), m.str("a"), m.bool("c")),
        (2, Some("y"), Some(true))
    );
}

/// The message for the file after `change`.
fn refusal(change: impl Fn(&mut ByHand)) -> String {
    let mut file = ByHand::new();
    change(&mut file);
    file.parse()
        .expect_err("the change must be refused")
        .to_string()
}

fn assert_refused(change: impl Fn(&mut ByHand), expected: &str) {
    let message = refusal(change);
    assert!(message.contains(expected), "{message:?} lacks {expected:?}");
}

#[test]
fn versions_we_do_not_read_are_named() {
    for (version, expected) in [
        (1, "GGUF version 1 is not supported"),
        (4, "GGUF version 4 is not supported"),
        (3_u32.swap_bytes(), "big-endian (version 3)"),
    ] {
        assert_refused(|f| f.version = version, expected);
    }
}

#[test]
fn each_defect_of_metadata_has_its_message() {
    let half = [2, 0, 0, 0, 0, 0, 0, 0, 0xc3, 0x28];
    // The bytes of two strings are valid together, but not each by itself.
    let halves = [1, 0, 0, 0, 0, 0, 0, 0, 0xc3, 1, 0, 0, 0, 0, 0, 0, 0, 0xbc];
    let alignment = |n: u32| pair("general.alignment", 4, &n.to_le_bytes());
    for (added, expected) in [
        (pair("n", 0, &[1]), "metadata key `n` stands twice"),
        (
            pair("x", 13, &[]),
            "metadata key `x` has the unknown value type 13",
        ),
        (
            array("x", 13, 0, &[]),
            "metadata key `x` has the unknown value type 13",
        ),
        (
            array("x", 9, 1, &[]),
            "metadata key `x` is an array of arrays",
        ),
        (
            pair("x", 7, &[2]),
            "metadata key `x` holds the byte 2 where a bool",
        ),
        (
            array("x", 7, 2, &[1, 3]),
            "metadata key `x` holds the byte 3 where a bool",
        ),
        (pair("x", 8, &half), "metadata key `x` is no valid UTF-8"),
        (
            array("x", 8, 2, &halves),
            "string 0 of the array under `x` is no valid UTF-8",
        ),
        (alignment(33), "`general.alignment` is 33"),
        (alignment(0), "`general.alignment` is 0"),
        (
            pair("general.alignment", 8, &string("32")),
            "`general.alignment` is a string",
        ),
    ] {
        assert_refused(|f| f.pairs.push(added.clone()), expected);
    }
}

#[test]
fn each_defect_of_a_tensor_has_its_message() {
    for (b, expected) in [
        (tensor("a", &[32], 8, 32), "tensor `a` stands twice"),
        (tensor("b", &[31], 8, 32), "whole number of blocks of 32"),
        (tensor("b", &[32, 0], 8, 32), "an axis is empty"),
        (
            tensor("b", &[32, 1 << 62, 4], 8, 32),
            "its size is beyond 64 bits",
        ),
        (
            tensor("b", &[], 8, 32),
            "tensor `b` has 0 axes, it must have 1 to 4",
        ),
        (
            tensor("b", &[32, 1, 1, 1, 1], 8, 32),
            "tensor `b` has 5 axes, it must have 1 to 4",
        ),
        (
            tensor("b", &[32], 8, 33),
            "`b` begins at offset 33, which is no multiple of the alignment 32",
        ),
        (tensor("b", &[32], 8, 0), "tensors `a` and `b` overlap"),
        (tensor("b", &[32], 8, 1 << 40), "the file is truncated"),
        (
            tensor("b", &[32], 8, u64::MAX - 31),
            "tensor `b` ends beyond any possible file",
        ),
        (
            tensor("b", &[256], 16, 32),
            "tensor `b` has the type IQ2_XXS, which this build does not support; use a file in q8_0, q6_k, ",
        ),
        (tensor("b", &[256], 77, 32), "has the type number 77"),
    ] {
        assert_refused(|f| f.tensors[1].clone_from(&b), expected);
    }
}

#[test]
fn absurd_counts_are_named() {
    let huge = (1_u64 << 60).to_le_bytes();
    for added in [
        pair("x", 8, &huge),
        array("x", 8, 1 << 60, &[]),
        array("x", 8, 1, &huge),
        array("x", 0, 1 << 60, &[]),
        [&huge[..], b"key"].concat(),
    ] {
        assert_refused(
            |f| f.pairs.push(added.clone()),
            "is 1152921504606846976 at byte",
        );
    }
    for place in [8, 16] {
        let mut file = ByHand::new().bytes();
        file[place..place + 8].copy_from_slice(&huge);
        assert!(matches!(
            Header::parse(&file),
            Err(GgufError::TooLarge { .. })
        ));
    }
}

#[test]
fn foreign_files_are_recognised() {
    for (bytes, expected) in [
        (&b"<!DOCTYPE html><html><head>"[..], "HTML"),
        (b"\n <html lang=en>", "HTML"),
        (b"PK\x03\x04\x14\0\0\0", "zip"),
        (b"\x50\x02\0\0\0\0\0\0{\"__metadata__\":{}}", "safetensors"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:",
            "Git LFS pointer",
        ),
        (b"tjgg\x03\0\0\0", "an old GGML format"),
        (b"\x1f\x8b\x08\0", "gzip"),
        (b"{\"model_type\": \"gpt2\"}", "JSON"),
        (b"\x89PNG\r\n", "no format we know"),
        (b"GGML", "no format we know"),
        (b"no", "no format we know"),
    ] {
        let message = Gguf::parse(Bytes::from_static(bytes))
            .expect_err("a foreign file")
            .to_string();
        assert!(
            message.starts_with("this is not a GGUF file: it begins with \""),
            "{message}"
        );
        assert!(message.contains(expected), "{message}");
    }
    let message = Gguf::parse(Bytes::new())
        .expect_err("an empty file")
        .to_string();
    assert!(message.contains("it has 0 bytes"), "{message}");
}

#[test]
fn version_2_has_the_same_layout() {
    let mut file = ByHand::new();
    file.version = 2;
    assert_eq!(
        file.parse().expect("a valid file").header(),
        ByHand::new().parse().expect("a valid file").header()
    );
}

#[test]
fn a_header_can_be_read_before_the_rest_has_arrived() {
    let file = tiny_model(Family::Llama, DType::Q4_0, 1);
    let whole = Header::parse(&file).expect("a valid file");
    let header_len = whole.data_offset_bytes as usize;
    for len in (0..header_len - 32).step_by(7) {
        match Header::parse(&file[..len]) {
            Err(GgufError::Incomplete { have, need }) => {
                assert_eq!(have, len as u64);
                assert!(need > have && need <= header_len as u64, "{have} {need}");
            }
            other => panic!("{len} bytes: {other:?}"),
        }
    }
    assert_eq!(Header::parse(&file[..header_len]), Ok(whole.clone()));
    assert_eq!(
        whole.file_len_bytes().next_multiple_of(32),
        file.len() as u64
    );

    let truncated = Bytes::from(file).slice(..header_len + 100);
    assert!(matches!(
        Gguf::parse(truncated),
        Err(GgufError::Truncated { .. })
    ));
}

#[test]
fn a_vocabulary_alone_is_a_file() {
    let mut file = ByHand::new();
    file.tensors.clear();
    let gguf = Gguf::parse(file.header_bytes().into()).expect("no tensors, no data, no padding");
    assert_eq!(gguf.header().tensors.len(), 0);
}

#[test]
fn the_writer_holds_its_caller_to_the_layout() {
    let decl = |name: &str, n| TensorDecl {
        name: name.into(),
        dtype: DType::Q8_0,
        shape: vec![n, 32],
    };
    let layout =
        || Layout::new(Metadata::new(), [decl("a", 1), decl("b", 3)]).expect("a valid layout");
    assert_eq!(layout().header().tensors[1].offset_bytes, 64);
    assert_eq!(layout().file_len_bytes() % 32, 0);

    let mut writer = layout().write_to(Vec::new()).expect("a Vec takes all");
    assert!(matches!(
        writer.write_tensor("b", &[0; 102]),
        Err(WriteError::Order { .. })
    ));
    assert!(matches!(
        writer.write_tensor("a", &[0; 33]),
        Err(WriteError::Length { .. })
    ));
    writer.write_tensor("a", &[1; 34]).expect("as declared");
    assert!(matches!(
        writer.write_tensor("a", &[1; 34]),
        Err(WriteError::Order { .. })
    ));
    writer.write_tensor("b", &[2; 102]).expect("as declared");
    assert!(matches!(
        writer.write_tensor("c", &[]),
        Err(WriteError::Order { .. })
    ));
    let bytes = writer.finish().expect("complete");
    assert_eq!(bytes.len() as u64, layout().file_len_bytes());

    let mut unfinished = layout().write_to(Vec::new()).expect("a Vec takes all");
    unfinished.write_tensor("a", &[1; 34]).expect("as declared");
    let message = unfinished.finish().expect_err("b is missing").to_string();
    assert_eq!(
        message,
        "the file is not finished: tensor `b` and those after it were not written"
    );

    let full = layout()
        .write_to(&mut [0_u8; 8][..])
        .expect_err("a full disk");
    assert!(matches!(full, WriteError::Io(_)));
    assert!(matches!(
        Layout::new(Metadata::new(), [decl("a", 1), decl("a", 1)]),
        Err(GgufError::DuplicateTensor(_))
    ));
    let uneven = TensorDecl {
        name: "a".into(),
        dtype: DType::Q4_0,
        shape: vec![2, 33],
    };
    assert!(matches!(
        Layout::new(Metadata::new(), [uneven]),
        Err(GgufError::BadShape { .. })
    ));
}

/// The stored corpus of the fuzz target `gguf`: what once broke stays mended.
#[test]
fn the_fuzz_corpus_is_replayed() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus/gguf");
    let mut n_files = 0;
    for entry in std::fs::read_dir(dir).expect("the corpus is in the repository") {
        exercise_file(&std::fs::read(entry.expect("an entry").path()).expect("a file"));
        n_files += 1;
    }
    assert!(
        n_files >= 10,
        "the corpus in {dir} has only {n_files} files"
    );
}

fn any_value() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<u8>().prop_map(Value::U8),
        any::<i8>().prop_map(Value::I8),
        any::<u16>().prop_map(Value::U16),
        any::<i16>().prop_map(Value::I16),
        any::<u32>().prop_map(Value::U32),
        any::<i32>().prop_map(Value::I32),
        (-1e30_f32..1e30).prop_map(Value::F32),
        any::<bool>().prop_map(Value::Bool),
        ".{0,12}".prop_map(Value::String),
        any::<u64>().prop_map(Value::U64),
        any::<i64>().prop_map(Value::I64),
        (-1e300_f64..1e300).prop_map(Value::F64),
        proptest::collection::vec(".{0,6}", 0..6)
            .prop_map(|v| v.iter().collect::<StringArray>().into()),
        proptest::collection::vec(any::<u8>(), 0..6).prop_map(|v| Value::Array(Array::U8(v))),
        proptest::collection::vec(any::<i8>(), 0..6).prop_map(|v| Value::Array(Array::I8(v))),
        proptest::collection::vec(any::<u16>(), 0..6).prop_map(|v| Value::Array(Array::U16(v))),
        proptest::collection::vec(any::<i16>(), 0..6).prop_map(|v| Value::Array(Array::I16(v))),
        proptest::collection::vec(any::<u32>(), 0..6).prop_map(|v| Value::Array(Array::U32(v))),
        proptest::collection::vec(any::<i32>(), 0..6).prop_map(|v| Value::Array(Array::I32(v))),
        proptest::collection::vec(any::<u64>(), 0..6).prop_map(|v| Value::Array(Array::U64(v))),
        proptest::collection::vec(any::<i64>(), 0..6).prop_map(|v| Value::Array(Array::I64(v))),
        proptest::collection::vec(any::<bool>(), 0..6).prop_map(|v| Value::Array(Array::Bool(v))),
        proptest::collection::vec(-1e30_f32..1e30, 0..6).prop_map(|v| Value::Array(Array::F32(v))),
        proptest::collection::vec(-1e300_f64..1e300, 0..6)
            .prop_map(|v| Value::Array(Array::F64(v))),
    ]
}

proptest! {
    #[test]
    fn what_is_written_is_read(
        pairs in proptest::collection::vec(("[a-z.]{1,8}", any_value()), 0..8),
        shapes in proptest::collection::vec((0..DType::ALL.len(), 1_usize..4, 1_usize..3), 0..6),
        alignment in proptest::option::of(0_u32..9),
    ) {
        let mut metadata = Metadata::new();
        for (key, value) in pairs {
            metadata.set(key, value);
        }
        if let Some(power) = alignment {
            metadata.set("general.alignment", 1_u32 << power);
        }
        let decls: Vec<_> = shapes.iter().enumerate().map(|(i, (dtype, rows, blocks))| TensorDecl {
            name: format!("tensor.{i}"),
            dtype: DType::ALL[*dtype],
            shape: vec![*rows, blocks * DType::ALL[*dtype].block_len().max(32)],
        }).collect();
        let layout = Layout::new(metadata, decls).expect("a valid layout");
        let (header, len_bytes) = (layout.header().clone(), layout.file_len_bytes());
        let mut writer = layout.write_to(Vec::new()).expect("a Vec takes all");
        for (i, info) in header.tensors.iter().enumerate() {
            writer.write_tensor(&info.name, &vec![i as u8 + 1; info.len_bytes as usize]).expect("in order");
        }
        let bytes = writer.finish().expect("complete");
        prop_assert_eq!(bytes.len() as u64, len_bytes);
        let gguf = Gguf::parse(bytes.into()).expect("a valid file");
        prop_assert_eq!(gguf.header(), &header);
        for (i, info) in header.tensors.iter().enumerate() {
            let (_, data) = gguf.tensor(&info.name).expect("it is there");
            prop_assert!(data.len() as u64 == info.len_bytes && data.iter().all(|b| *b == i as u8 + 1));
        }
    }

    #[test]
    fn mutated_files_are_read_or_refused(
        family in 0..Family::ALL.len(),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        in_header in any::<bool>(),
        cut in proptest::option::of(any::<prop::sample::Index>()),
    ) {
        let mut file = tiny_model(Family::ALL[family], DType::Q4_0, 3);
        let header_len = Header::parse(&file).expect("a valid file").data_offset_bytes as usize;
        let within = if in_header { header_len } else { 600 };
        for (place, byte) in changes {
            file[place.index(within)] = byte;
        }
        if let Some(cut) = cut {
            file.truncate(cut.index(file.len()));
        }
        exercise_file(&file);
    }

    #[test]
    fn noise_after_the_magic_is_refused(noise in proptest::collection::vec(any::<u8>(), 0..200)) {
        exercise_file(&[b"GGUF\x03\0\0\0", &noise[..]].concat());
    }
}
