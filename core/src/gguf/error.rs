//! One variant for each defect a file can have.

/// What can be wrong with a file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GgufError {
    /// The bytes end within the header.
    #[error("the GGUF header is not complete: {have} bytes are there, at least {need} are needed")]
    Incomplete {
        /// Bytes given.
        have: u64,
        /// Bytes that are needed at least.
        need: u64,
    },
    /// A whole file ends before its header or its last tensor does.
    #[error(
        "the file is truncated: it has {have} bytes and needs at least {need}; download or export it again"
    )]
    Truncated {
        /// Bytes of the file.
        have: u64,
        /// Bytes that are needed at least.
        need: u64,
    },
    /// The file does not begin with `GGUF`.
    #[error("this is not a GGUF file: it begins with {found}")]
    NotGguf {
        /// What it looks like instead.
        found: String,
    },
    /// A version we do not read.
    #[error(
        "GGUF version {0} is not supported, this build reads versions 2 and 3; convert the model again with a current tool"
    )]
    Version(u32),
    /// Version 3 allows big-endian files.
    #[error("the GGUF file is big-endian (version {0}), this build reads little-endian files")]
    BigEndian(u32),
    /// A count or length that no real file has.
    #[error("{what} is {value} at byte {offset}, the limit is {limit}: the file is corrupt")]
    TooLarge {
        /// What is counted.
        what: String,
        /// The number in the file.
        value: u64,
        /// What we accept.
        limit: u64,
        /// Where in the file.
        offset: u64,
    },
    /// A string is no UTF-8.
    #[error("{what} is no valid UTF-8 (the string at byte {offset})")]
    NotUtf8 {
        /// Which string.
        what: String,
        /// Where its bytes begin in the file.
        offset: u64,
    },
    /// A value type that GGUF does not define.
    #[error("metadata key `{key}` has the unknown value type {type_id} (byte {offset})")]
    UnknownValueType {
        /// The key.
        key: String,
        /// The number in the file.
        type_id: u32,
        /// Where in the file.
        offset: u64,
    },
    /// An array of arrays: GGUF allows it, no model uses it, and it would let a file nest without end.
    #[error("metadata key `{key}` is an array of arrays, which is not supported")]
    NestedArray {
        /// The key.
        key: String,
    },
    /// A bool that is neither 0 nor 1.
    #[error("metadata key `{key}` holds the byte {value} where a bool (0 or 1) must be")]
    BadBool {
        /// The key.
        key: String,
        /// The byte.
        value: u8,
    },
    /// A key stands twice.
    #[error("metadata key `{0}` stands twice in the file")]
    DuplicateKey(String),
    /// A tensor name stands twice.
    #[error("tensor `{0}` stands twice in the file")]
    DuplicateTensor(String),
    /// `general.alignment` is no power of two.
    #[error("`general.alignment` is {0}, it must be a power of two up to 2^20")]
    BadAlignment(String),
    /// A tensor without axes, or with more than ggml knows.
    #[error("tensor `{tensor}` has {n_axes} axes, it must have 1 to 4")]
    BadAxes {
        /// The tensor.
        tensor: String,
        /// The number in the file.
        n_axes: u64,
    },
    /// A shape that cannot be.
    #[error("tensor `{tensor}` has the shape {shape:?}: {reason}")]
    BadShape {
        /// The tensor.
        tensor: String,
        /// The shape in GGUF's order.
        shape: Vec<u64>,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// An element type we do not read.
    #[error(
        "tensor `{tensor}` has the type {type_name}, which this build does not support; use a file in q8_0, q6_k, q5_k, q5_1, q5_0, q4_k, q4_1, q4_0, f16, bf16 or f32"
    )]
    UnsupportedType {
        /// The tensor.
        tensor: String,
        /// ggml's name for it, or its number.
        type_name: String,
    },
    /// A tensor does not begin at a multiple of the alignment.
    #[error(
        "tensor `{tensor}` begins at offset {offset}, which is no multiple of the alignment {alignment}"
    )]
    Misaligned {
        /// The tensor.
        tensor: String,
        /// Its offset in the data section.
        offset: u64,
        /// The file's alignment.
        alignment: u64,
    },
    /// A tensor's end is beyond what a file can have.
    #[error("tensor `{tensor}` ends beyond any possible file (offset {offset}, {len} bytes)")]
    OutOfRange {
        /// The tensor.
        tensor: String,
        /// Its offset in the data section.
        offset: u64,
        /// Its size in bytes.
        len: u64,
    },
    /// Two tensors share bytes.
    #[error("tensors `{first}` and `{second}` overlap")]
    Overlap {
        /// The one that begins first.
        first: String,
        /// The other.
        second: String,
    },
    /// No tensor of this name.
    #[error("the file has no tensor `{0}`")]
    MissingTensor(String),
    /// Something is wrong within one of several files.
    #[error("part {no}: {error}")]
    InPart {
        /// Number of the part, from 1.
        no: u64,
        /// What.
        error: Box<GgufError>,
    },
    /// A file is not the part that its place makes it.
    #[error(
        "part {no} of {count} says {}: it is another file, or of another model",
        of_parts(*.found_no, *.found_count)
    )]
    PartNumber {
        /// Number of the part by its place, from 1.
        no: u64,
        /// How many parts were given.
        count: u64,
        /// Number of the part by its own keys, from 1.
        found_no: Option<u64>,
        /// How many parts there are by its own keys.
        found_count: Option<u64>,
    },
    /// A part that was split alike, but of another model.
    #[error("part {no} belongs to another model than part 1")]
    ForeignPart {
        /// Number of the part, from 1.
        no: u64,
    },
    /// The parts do not hold what they say together.
    #[error(
        "the parts hold {got} tensors together and say that they are {expected}: one is of another model"
    )]
    PartTensors {
        /// Tensors by `split.tensors.count`.
        expected: u64,
        /// Tensors that are there.
        got: u64,
    },
    /// New values would move what lies behind the header.
    #[error(
        "the header would have {got} bytes instead of {expected}: values may only be replaced by others of their size"
    )]
    HeaderSize {
        /// Bytes of the header as it was planned.
        expected: u64,
        /// Bytes with the new values.
        got: u64,
    },
}

/// `that it is part 2 of 3`
fn of_parts(no: Option<u64>, count: Option<u64>) -> String {
    match (no, count) {
        (Some(no), Some(count)) => format!("that it is part {no} of {count}"),
        _ => "nothing of parts".to_owned(),
    }
}
