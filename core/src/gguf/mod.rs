//! GGUF version 3: the container of a model (ggml's `docs/gguf.md`).
//!
//! [`Header::parse`] needs only the beginning of a file, so that a browser can plan its buffers while the rest is
//! still on the way; [`Gguf`] is a header and the whole file, and lends tensors without copying them.
//! A model may lie in several files ([`split`]), which [`Gguf::from_parts`] opens as one.
//! Hostile bytes give a [`GgufError`] with the place, never a panic and never an allocation out of proportion to
//! the input's size.

mod error;
mod read;
pub mod split;
#[cfg(test)]
mod tests;
mod value;
mod write;

pub use error::GgufError;
pub use value::{Array, Metadata, StringArray, Value};
pub use write::{Layout, TensorDecl, WriteError, Writer};

use crate::quant::{self, DType};
use bytes::Bytes;
use std::ops::Range;

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
    pub fn parse(prefix: &[u8]) -> Result<Self, GgufError> {
        read::header(prefix)
    }
    /// The tensor of this name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.iter().find(|info| info.name == name)
    }
    /// The bytes of a tensor within the file.
    pub fn file_range(&self, info: &TensorInfo) -> Range<u64> {
        let start = self.data_offset_bytes + info.offset_bytes;
        start..start + info.len_bytes
    }
    /// The size that the whole file must have at least.
    pub fn file_len_bytes(&self) -> u64 {
        let ends = self.tensors.iter().map(|info| self.file_range(info).end);
        ends.max().unwrap_or(self.data_offset_bytes)
    }
}

/// A whole file, or all parts of a model in several. Cloning it shares the bytes.
#[derive(Debug, Clone)]
pub struct Gguf {
    header: Header,
    /// By where they begin. Never empty, and the first begins at 0.
    parts: Vec<split::Part>,
}

impl Gguf {
    /// Opens a file's bytes (a `Vec<u8>`, a static slice, or a memory map through `Bytes::from_owner`). Of a part of a model in
    /// several files this is that part alone.
    ///
    /// # Errors
    /// When the header is broken or a tensor lies outside the file.
    pub fn parse(bytes: Bytes) -> Result<Self, GgufError> {
        let header = whole_header(&bytes)?;
        let parts = vec![split::Part { start: 0, bytes }];
        Ok(Self { header, parts })
    }
    /// Opens a model that lies in several files, given in their order (one alone may be whole). Its header is that of one file: the metadata of the first
    /// part, and [`Header::file_range`] counts through the parts as if they lay one behind the other.
    ///
    /// # Errors
    /// [`GgufError::InPart`] for what is wrong within a part; a part that is missing, out of place, or of another model; tensors
    /// that are missing or stand twice.
    pub fn from_parts(parts: Vec<Bytes>) -> Result<Self, GgufError> {
        let parts = parts.into_iter().enumerate().map(|(idx, bytes)| {
            let header = whole_header(&bytes).map_err(|error| GgufError::InPart {
                no: idx as u64 + 1,
                error: Box::new(error),
            })?;
            Ok((header, bytes))
        });
        let (header, parts) = split::join(parts.collect::<Result<_, _>>()?)?;
        Ok(Self { header, parts })
    }
    /// How many files it was opened from.
    pub fn n_parts(&self) -> usize {
        self.parts.len()
    }
    /// The header.
    pub fn header(&self) -> &Header {
        &self.header
    }
    /// The bytes of a tensor, shared with the file.
    ///
    /// # Errors
    /// [`GgufError::MissingTensor`].
    pub fn tensor(&self, name: &str) -> Result<(&TensorInfo, Bytes), GgufError> {
        let missing = || GgufError::MissingTensor(name.to_owned());
        let info = self.header.tensor(name).ok_or_else(missing)?;
        let Range { start, end } = self.header.file_range(info);
        // Whatever opened the file has checked that the range lies within a part's bytes, so both ends fit usize.
        let idx = self.parts.partition_point(|part| part.start <= start) - 1;
        let part = &self.parts[idx];
        let range = (start - part.start) as usize..(end - part.start) as usize;
        Ok((info, part.bytes.slice(range)))
    }
    /// A tensor's values as f32, in file order.
    ///
    /// # Errors
    /// [`GgufError::MissingTensor`].
    pub fn tensor_f32(&self, name: &str) -> Result<Vec<f32>, GgufError> {
        let (info, bytes) = self.tensor(name)?;
        let n_blocks = bytes.len() / info.dtype.block_bytes();
        let mut values = vec![0.0; n_blocks * info.dtype.block_len()];
        quant::dequantize(info.dtype, &bytes, &mut values);
        Ok(values)
    }
}

/// The header of a file that is there as a whole.
fn whole_header(bytes: &[u8]) -> Result<Header, GgufError> {
    let have = bytes.len() as u64;
    let header = Header::parse(bytes).map_err(|error| match error {
        GgufError::Incomplete { have, need } => GgufError::Truncated { have, need },
        other => other,
    })?;
    let need = header.file_len_bytes();
    // A file without tensors (a vocabulary) may end before the padding of its header does.
    if have < need && !header.tensors.is_empty() {
        return Err(GgufError::Truncated { have, need });
    }
    Ok(header)
}
