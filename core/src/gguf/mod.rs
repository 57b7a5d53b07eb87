//! GGUF version 3: the container of a model (ggml's `docs/gguf.md`).
//!
//! [`Header::parse`] needs only the beginning of a file, so that a browser can plan its buffers while the rest is
//! still on the way; [`Gguf`] is a header and the whole file, and lends tensors without copying them.
//! Hostile bytes give a [`GgufError`] with the place, never a panic and never an allocation beyond the input's size.

use crate::quant::DType;
use bytes::Bytes;
use std::ops::Range;

/// A metadata value.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs, reason = "the variants are GGUF's own value types")]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(String),
    U64(u64),
    I64(i64),
    F64(f64),
    Array(Array),
}

/// A metadata array: one variant per element type, so that a vocabulary costs no enum a word.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the variants are GGUF's own value types")]
pub enum Array {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    F32(Vec<f32>),
    Bool(Vec<bool>),
    String(Vec<String>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F64(Vec<f64>),
}

/// Key-value pairs in file order.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Metadata {
    entries: Vec<(String, Value)>,
}

impl Metadata {
    /// The value under `key`.
    pub fn get(&self, _key: &str) -> Option<&Value> {
        todo!()
    }
    /// Sets `key`, replacing what stood there.
    pub fn set(&mut self, _key: impl Into<String>, _value: Value) {
        todo!()
    }
    /// Removes `key`.
    pub fn remove(&mut self, _key: &str) -> Option<Value> {
        todo!()
    }
    /// All pairs in file order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.entries.iter().map(|(k, v)| (k.as_str(), v))
    }
    /// A string, when the key holds one.
    pub fn str(&self, _key: &str) -> Option<&str> {
        todo!()
    }
    /// Any integer type that fits, as u64.
    pub fn u64(&self, _key: &str) -> Option<u64> {
        todo!()
    }
    /// A float of either width (or an integer), as f64.
    pub fn f64(&self, _key: &str) -> Option<f64> {
        todo!()
    }
    /// A bool.
    pub fn bool(&self, _key: &str) -> Option<bool> {
        todo!()
    }
    /// An array of strings.
    pub fn strings(&self, _key: &str) -> Option<&[String]> {
        todo!()
    }
}

/// Where a tensor lies and what it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// The name: `blk.0.attn_q.weight`.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Extent of each axis in GGUF's order, the fastest first: a `[out, in]` matrix is `[in, out]` here.
    pub shape: Vec<u64>,
    /// Offset from the start of the data section.
    pub offset_bytes: u64,
    /// Size in bytes.
    pub len_bytes: u64,
}

/// All of a file but its tensor data.
#[derive(Debug, Clone, PartialEq)]
pub struct Header {
    /// The key-value pairs.
    pub metadata: Metadata,
    /// The tensors in file order.
    pub tensors: Vec<TensorInfo>,
    /// Where the data section starts in the file.
    pub data_offset_bytes: u64,
    /// Alignment of the tensors (`general.alignment`, 32 when absent).
    pub alignment: u64,
}

impl Header {
    /// Reads a header from the first bytes of a file.
    ///
    /// # Errors
    /// [`GgufError::Incomplete`] when the bytes end before the header does: call again with more.
    /// Anything else is final.
    pub fn parse(_prefix: &[u8]) -> Result<Self, GgufError> {
        todo!()
    }
    /// The tensor of this name.
    pub fn tensor(&self, _name: &str) -> Option<&TensorInfo> {
        todo!()
    }
    /// The bytes of a tensor within the file.
    pub fn file_range(&self, info: &TensorInfo) -> Range<u64> {
        let start = self.data_offset_bytes + info.offset_bytes;
        start..start + info.len_bytes
    }
    /// The size that the whole file must have at least.
    pub fn file_len_bytes(&self) -> u64 {
        todo!()
    }
}

/// A whole file. Cloning it shares the bytes.
#[derive(Debug, Clone)]
pub struct Gguf {
    header: Header,
    bytes: Bytes,
}

impl Gguf {
    /// Opens a file's bytes (a `Vec<u8>`, a static slice, or a memory map through `Bytes::from_owner`).
    ///
    /// # Errors
    /// When the header is broken or a tensor lies outside the file.
    pub fn parse(_bytes: Bytes) -> Result<Self, GgufError> {
        todo!()
    }
    /// The header.
    pub fn header(&self) -> &Header {
        &self.header
    }
    /// The bytes of a tensor, shared with the file.
    ///
    /// # Errors
    /// [`GgufError::MissingTensor`].
    pub fn tensor(&self, _name: &str) -> Result<(&TensorInfo, Bytes), GgufError> {
        todo!()
    }
    /// A tensor's values as f32, in file order.
    ///
    /// # Errors
    /// [`GgufError::MissingTensor`].
    pub fn tensor_f32(&self, _name: &str) -> Result<Vec<f32>, GgufError> {
        todo!()
    }
}

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
    /// No tensor of this name.
    #[error("the file has no tensor `{0}`")]
    MissingTensor(String),
    // … the owner of this module adds one documented variant for each defect
}
