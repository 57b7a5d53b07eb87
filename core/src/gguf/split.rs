//! A model in several files, as llama.cpp has it (`tools/gguf-split/gguf-split.cpp`, `src/llama-model-loader.cpp`).
//!
//! `NAME-00001-of-00003.gguf` holds all metadata, each part holds whole tensors, and every part says by `split.no`,
//! `split.count` and `split.tensors.count` where it belongs. Ours also carry `fledgling.split.id`, which tells the parts of
//! one model from those of another that was split alike; llama.cpp does not read it.

use super::{
    GgufError, Header, Layout, Metadata, TensorDecl, TensorInfo, read, write::tensor_entry_bytes,
};
use bytes::Bytes;

/// Number of the part, from 0.
const NO: &str = "split.no";
/// How many parts there are.
const COUNT: &str = "split.count";
/// Tensors of all parts together.
const N_TENSORS: &str = "split.tensors.count";
/// What the parts of one model have in common.
const ID: &str = "fledgling.split.id";

/// What the file name of a part says: `PREFIX-00001-of-00003.gguf`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartName {
    /// What stands before the numbers.
    pub prefix: String,
    /// Number of the part, from 1.
    pub no: u32,
    /// How many parts there are.
    pub count: u32,
}

impl PartName {
    /// Reads a file name; nothing, when it is not of this form.
    pub fn parse(file_name: &str) -> Option<Self> {
        let stem = file_name.strip_suffix(".gguf")?;
        let (rest, count) = stem.rsplit_once("-of-")?;
        let (prefix, no) = rest.rsplit_once('-')?;
        let number = |digits: &str| {
            let is_number = digits.len() >= 5 && digits.bytes().all(|b| b.is_ascii_digit());
            is_number.then(|| digits.parse::<u32>().ok()).flatten()
        };
        let (no, count) = (number(no)?, number(count)?);
        (1..=count).contains(&no).then(|| Self {
            prefix: prefix.to_owned(),
            no,
            count,
        })
    }

    /// The file name of part `no` (from 1) of the same model.
    pub fn file_name(&self, no: u32) -> String {
        format!("{}-{no:05}-of-{:05}.gguf", self.prefix, self.count)
    }
}

/// How many parts the model has that a file of this metadata is a part of; nothing for a whole model.
pub fn n_parts(metadata: &Metadata) -> Option<u64> {
    metadata.u64(COUNT).filter(|count| *count > 1)
}

/// The number of a part, from 1.
pub fn part_no(metadata: &Metadata) -> Option<u64> {
    metadata.u64(NO).and_then(|no| no.checked_add(1))
}

/// The bytes of a part and where it begins when all parts are laid one behind the other.
#[derive(Debug, Clone)]
pub(super) struct Part {
    pub(super) start: u64,
    pub(super) bytes: Bytes,
}

/// The header of all parts together: the metadata of the first without the keys of splitting, and the tensors with
/// places as if the parts were one file.
pub(super) fn join(parts: Vec<(Header, Bytes)>) -> Result<(Header, Vec<Part>), GgufError> {
    let count = parts.len() as u64;
    let mut parts = parts.into_iter().enumerate();
    let Some((_, (mut joined, bytes))) = parts.next() else {
        let (have, need) = (0, 1);
        return Err(GgufError::Truncated { have, need });
    };
    let first = Keys::of(&joined.metadata);
    first.check(1, count)?;
    let mut start = joined.file_len_bytes().max(bytes.len() as u64);
    let mut placed = vec![Part { start: 0, bytes }];
    for (idx, (header, bytes)) in parts {
        let no = idx as u64 + 1;
        let keys = Keys::of(&header.metadata);
        keys.check(no, count)?;
        if keys.id != first.id || keys.n_tensors != first.n_tensors {
            return Err(GgufError::ForeignPart { no });
        }
        // Every part begins behind the end of the one before, and that one's data section begins before its end.
        let shift = start + header.data_offset_bytes - joined.data_offset_bytes;
        joined
            .tensors
            .extend(header.tensors.iter().map(|info| TensorInfo {
                offset_bytes: shift + info.offset_bytes,
                ..info.clone()
            }));
        let len_bytes = header.file_len_bytes().max(bytes.len() as u64);
        placed.push(Part { start, bytes });
        start += len_bytes;
    }
    if let Some(expected) = first.n_tensors
        && expected != joined.tensors.len() as u64
    {
        let got = joined.tensors.len() as u64;
        return Err(GgufError::PartTensors { expected, got });
    }
    read::check_places(&joined.tensors, joined.data_offset_bytes)?;
    for key in [NO, COUNT, N_TENSORS, ID] {
        joined.metadata.remove(key);
    }
    Ok((joined, placed))
}

/// What a part says of itself.
struct Keys {
    no: Option<u64>,
    count: Option<u64>,
    n_tensors: Option<u64>,
    id: Option<String>,
}

impl Keys {
    fn of(metadata: &Metadata) -> Self {
        Self {
            no: part_no(metadata),
            count: metadata.u64(COUNT),
            n_tensors: metadata.u64(N_TENSORS),
            id: metadata.str(ID).map(str::to_owned),
        }
    }

    fn check(&self, no: u64, count: u64) -> Result<(), GgufError> {
        let is_whole = count == 1 && self.count.is_none();
        if is_whole || (self.no, self.count) == (Some(no), Some(count)) {
            return Ok(());
        }
        Err(GgufError::PartNumber {
            no,
            count,
            found_no: self.no,
            found_count: self.count,
        })
    }
}

/// Plans a model as files of at most `max_bytes`; one file, without the keys of splitting, when it fits.
///
/// Tensors stay whole and in order. One that is larger than a file may be has a file of its own, which is the only way that a
/// file gets larger; as llama.cpp's gguf-split does it, but that the header counts too. A first part whose metadata leave no
/// room for the first tensor holds none (gguf-split's `--no-tensor-first-split`). `id` is what the parts have in common.
///
/// # Errors
/// As [`Layout::new`], and when there would be more parts than llama.cpp counts.
pub fn split(
    metadata: &Metadata,
    tensors: &[TensorDecl],
    max_bytes: u64,
    id: &str,
) -> Result<Vec<Layout>, GgufError> {
    let whole = Layout::new(metadata.clone(), tensors.iter().cloned())?;
    if whole.file_len_bytes() <= max_bytes {
        return Ok(vec![whole]);
    }
    let header_bytes = |metadata: &Metadata| {
        Layout::new(with_keys(metadata, 0, 0, 0, id), []).map(|layout| layout.file_len_bytes())
    };
    let empty = Metadata::new();
    let rest_header_bytes = header_bytes(&empty)?;
    let mut parts: Vec<Vec<TensorDecl>> = vec![Vec::new()];
    let mut len_bytes = header_bytes(metadata)?;
    for (decl, info) in tensors.iter().zip(&whole.header().tensors) {
        let alignment = whole.header().alignment;
        let tensor_bytes =
            tensor_entry_bytes(info) + info.len_bytes.next_multiple_of(alignment) + alignment;
        let is_empty = parts.last().is_some_and(Vec::is_empty) && parts.len() > 1;
        if len_bytes + tensor_bytes > max_bytes && !is_empty {
            parts.push(Vec::new());
            len_bytes = rest_header_bytes;
        }
        len_bytes += tensor_bytes;
        if let Some(part) = parts.last_mut() {
            part.push(decl.clone());
        }
    }
    let Ok(count) = u16::try_from(parts.len()) else {
        return Err(GgufError::TooLarge {
            what: "the number of parts".to_owned(),
            value: parts.len() as u64,
            limit: u16::MAX.into(),
            offset: 0,
        });
    };
    let n_tensors = tensors.len() as i32;
    (0..count)
        .zip(parts)
        .map(|(no, decls)| {
            let metadata = if no == 0 { metadata } else { &empty };
            Layout::new(with_keys(metadata, no, count, n_tensors, id), decls)
        })
        .collect()
}

/// With the types that gguf-split gives them.
fn with_keys(metadata: &Metadata, no: u16, count: u16, n_tensors: i32, id: &str) -> Metadata {
    let mut metadata = metadata.clone();
    metadata.set(NO, no);
    metadata.set(COUNT, count);
    metadata.set(N_TENSORS, n_tensors);
    metadata.set(ID, id);
    metadata
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        gguf::{Gguf, Value},
        quant::DType,
        spec::Family,
        testing::{exercise_parts, tiny_model, tiny_parts},
    };
    use proptest::prelude::*;

    fn parts(max_bytes: u64) -> Vec<Bytes> {
        tiny_parts(Family::Llama, DType::Q8_0, 1, max_bytes)
            .into_iter()
            .map(Bytes::from)
            .collect()
    }

    fn open(parts: Vec<Bytes>) -> Result<Gguf, GgufError> {
        Gguf::from_parts(parts)
    }

    #[test]
    fn names_of_parts() {
        let name = PartName::parse("a-b-00002-of-00013.gguf").expect("a part");
        assert_eq!((name.prefix.as_str(), name.no, name.count), ("a-b", 2, 13));
        assert_eq!(name.file_name(13), "a-b-00013-of-00013.gguf");
        for other in [
            "a.gguf",
            "a-00002-of-00013.bin",
            "a-2-of-13.gguf",
            "a-00000-of-00003.gguf",
            "a-00004-of-00003.gguf",
            "00001-of-00003.gguf",
            "a-0000x-of-00003.gguf",
            "a-99999999999-of-99999999999.gguf",
        ] {
            assert_eq!(PartName::parse(other), None, "{other}");
        }
    }

    #[test]
    fn parts_are_as_gguf_split_has_them() {
        let parts = parts(40_000);
        let headers: Vec<_> = parts
            .iter()
            .map(|part| Header::parse(part).expect("a header"))
            .collect();
        let n_tensors: usize = headers.iter().map(|header| header.tensors.len()).sum();
        assert!(parts.len() >= 3);
        for (no, (header, part)) in headers.iter().zip(&parts).enumerate() {
            assert!(part.len() <= 40_000, "part {no} has {} bytes", part.len());
            let keys = &header.metadata;
            assert_eq!(keys.get("split.no"), Some(&Value::U16(no as u16)));
            assert_eq!(
                keys.get("split.count"),
                Some(&Value::U16(parts.len() as u16))
            );
            assert_eq!(
                keys.get("split.tensors.count"),
                Some(&Value::I32(n_tensors as i32))
            );
            // All else is in the first.
            assert_eq!(keys.len() == 4, no > 0);
        }
        // One more tensor would have been too much everywhere but at the end.
        for (part, next) in parts.iter().zip(&headers[1..]) {
            assert!(part.len() as u64 + next.tensors[0].len_bytes + 200 > 40_000);
        }
    }

    #[test]
    fn what_fits_is_one_file_without_keys() {
        let file = tiny_model(Family::Llama, DType::Q8_0, 1);
        assert_eq!(parts(file.len() as u64), [Bytes::from(file)]);
    }

    #[test]
    fn a_tensor_beyond_the_limit_has_a_part_of_its_own() {
        let parts = parts(20_000);
        let first = Header::parse(&parts[0]).expect("a header");
        assert!(
            first.tensors.is_empty(),
            "the embedding does not fit beside the metadata"
        );
        for part in &parts {
            let header = Header::parse(part).expect("a header");
            assert!(part.len() <= 20_000 || header.tensors.len() == 1);
        }
        assert!(parts.iter().any(|part| part.len() > 20_000));
        open(parts).expect("a model all the same");
    }

    #[test]
    fn the_joined_model_is_the_whole_one() {
        let whole =
            Gguf::parse(tiny_model(Family::Llama, DType::Q8_0, 1).into()).expect("a valid file");
        for max_bytes in [1, 20_000, 40_000, 1 << 20] {
            let parts = parts(max_bytes);
            let all = parts.concat();
            let n_parts = parts.len();
            let joined = open(parts).expect("valid parts");
            assert_eq!(joined.n_parts(), n_parts);
            assert_eq!(joined.header().metadata, whole.header().metadata);
            assert_eq!(joined.header().tensors.len(), whole.header().tensors.len());
            for info in &whole.header().tensors {
                let (found, bytes) = joined.tensor(&info.name).expect("it is there");
                assert_eq!(bytes, whole.tensor(&info.name).expect("it is there").1);
                // The places are those of the parts one behind the other.
                let range = joined.header().file_range(found);
                assert_eq!(bytes, all[range.start as usize..range.end as usize]);
            }
        }
    }

    #[test]
    fn parts_that_do_not_belong_together_are_refused() {
        let parts = parts(40_000);
        let n = parts.len() as u64;
        let foreign: Vec<Bytes> = tiny_parts(Family::Llama, DType::Q8_0, 2, 40_000)
            .into_iter()
            .map(Bytes::from)
            .collect();
        let with = |no: usize, part: &Bytes| {
            let mut parts = parts.clone();
            parts[no - 1] = part.clone();
            open(parts).map(|_| ())
        };
        assert_eq!(with(2, &foreign[1]), Err(GgufError::ForeignPart { no: 2 }));
        let number = |no, found_no, found_count| GgufError::PartNumber {
            no,
            count: n,
            found_no,
            found_count,
        };
        assert_eq!(with(2, &parts[2]), Err(number(2, Some(3), Some(n))));
        let whole = tiny_model(Family::Llama, DType::Q8_0, 1).into();
        assert_eq!(with(1, &whole), Err(number(1, None, None)));
        let cut = parts[1].slice(..parts[1].len() - 64);
        assert!(
            matches!(with(2, &cut), Err(GgufError::InPart { no: 2, error }) if matches!(*error, GgufError::Truncated { .. }))
        );
        let missing = open(parts[..parts.len() - 1].to_vec()).map(|_| ());
        assert_eq!(
            missing,
            Err(GgufError::PartNumber {
                no: 1,
                count: n - 1,
                found_no: Some(1),
                found_count: Some(n)
            })
        );
        assert_eq!(
            open(Vec::new()).map(|_| ()),
            Err(GgufError::Truncated { have: 0, need: 1 })
        );
    }

    /// A part of two with one tensor, and what it says of all.
    fn part(no: u16, tensor: &str, n_tensors: i32) -> Bytes {
        let decl = TensorDecl {
            name: tensor.to_owned(),
            dtype: DType::F32,
            shape: vec![4],
        };
        let layout =
            Layout::new(with_keys(&Metadata::new(), no, 2, n_tensors, "x"), [decl]).expect("valid");
        let mut writer = layout.write_to(Vec::new()).expect("a Vec takes all");
        writer
            .write_tensor(tensor, &[no as u8; 16])
            .expect("in order");
        writer.finish().expect("complete").into()
    }

    #[test]
    fn tensors_are_counted_and_unique() {
        let joined = open(vec![part(0, "a", 2), part(1, "b", 2)]).expect("valid parts");
        assert_eq!(joined.tensor("b").expect("b").1, [1; 16][..]);
        let twice = open(vec![part(0, "a", 2), part(1, "a", 2)]).map(|_| ());
        assert_eq!(twice, Err(GgufError::DuplicateTensor("a".to_owned())));
        let few = open(vec![part(0, "a", 3), part(1, "b", 3)]).map(|_| ());
        assert_eq!(
            few,
            Err(GgufError::PartTensors {
                expected: 3,
                got: 2
            })
        );
        let other = open(vec![part(0, "a", 2), part(1, "b", 3)]).map(|_| ());
        assert_eq!(other, Err(GgufError::ForeignPart { no: 2 }));
    }

    #[test]
    fn values_of_the_same_size_take_the_place_of_others() {
        let metadata = |loss: f64| {
            let mut metadata = Metadata::new();
            metadata.set("loss", loss);
            metadata.set("name", "a");
            metadata
        };
        let layout = Layout::new(metadata(0.0), []).expect("valid");
        let again = layout.with_values(metadata(2.5)).expect("of the same size");
        assert_eq!(
            again.header_bytes(),
            Layout::new(metadata(2.5), [])
                .expect("valid")
                .header_bytes()
        );
        let mut longer = Metadata::new();
        longer.set("name", "a name that is far too long for the place");
        assert!(matches!(
            layout.with_values(longer),
            Err(GgufError::HeaderSize { .. })
        ));
    }

    #[test]
    fn the_fuzz_corpus_of_parts_is_replayed() {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus/parts");
        let mut n_files = 0;
        for entry in std::fs::read_dir(dir).expect("the corpus is in the repository") {
            exercise_parts(&std::fs::read(entry.expect("an entry").path()).expect("a file"));
            n_files += 1;
        }
        assert!(n_files >= 5, "the corpus has only {n_files} files");
    }

    proptest! {
        #[test]
        fn mutated_parts_are_opened_or_refused(
            changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
            which in any::<prop::sample::Index>(),
        ) {
            let mut parts = tiny_parts(Family::Llama, DType::Q4_0, 3, 20_000);
            let part = which.index(parts.len());
            let within = Header::parse(&parts[part]).expect("a header").data_offset_bytes as usize;
            for (place, byte) in changes {
                parts[part][place.index(within)] = byte;
            }
            let framed: Vec<u8> = parts
                .iter()
                .flat_map(|part| (part.len() as u32).to_le_bytes().into_iter().chain(part.iter().copied()))
                .collect();
            exercise_parts(&framed);
        }
    }
}
