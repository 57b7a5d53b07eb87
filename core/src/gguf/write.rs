//! The writer. A [`Layout`] is planned first, so that the size of the file is known before a byte is written;
//! then tensors are handed over one at a time, so that nobody holds two copies of a model.

use super::{Array, GgufError, Header, Metadata, StringArray, TensorInfo, Value, read};
use crate::quant::DType;
use std::io::{self, Write};

const VERSION: u32 = 3;

/// A tensor to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorDecl {
    /// The name: `blk.0.attn_q.weight`.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Row-major shape, the fastest axis last: `[out, in]`.
    pub shape: Vec<usize>,
}

/// Where everything goes in a file to be written.
#[derive(Debug, Clone)]
pub struct Layout {
    header: Header,
    header_bytes: Vec<u8>,
}

impl Layout {
    /// Plans a file. Tensors are aligned to `general.alignment`, 32 when `metadata` has none.
    ///
    /// # Errors
    /// What [`Header::parse`] would refuse: a name that stands twice, a row that is no whole number of blocks, ….
    pub fn new(
        metadata: Metadata,
        tensors: impl IntoIterator<Item = TensorDecl>,
    ) -> Result<Self, GgufError> {
        let alignment = read::alignment(&metadata)?;
        let mut infos = Vec::new();
        let mut offset_bytes = 0_u64;
        for decl in tensors {
            let info = tensor_info(decl, offset_bytes)?;
            offset_bytes = (offset_bytes + info.len_bytes).next_multiple_of(alignment);
            infos.push(info);
        }
        let header_bytes = encode_header(&metadata, &infos, alignment);
        let data_offset_bytes = header_bytes.len() as u64;
        read::check_places(&infos, data_offset_bytes)?;
        let header = Header {
            metadata,
            tensors: infos,
            data_offset_bytes,
            alignment,
        };
        Ok(Self {
            header,
            header_bytes,
        })
    }

    /// The header as a reader will see it.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The size of the whole file. The last tensor is padded like the others: ggml reads the padding.
    pub fn file_len_bytes(&self) -> u64 {
        self.header
            .file_len_bytes()
            .next_multiple_of(self.header.alignment)
    }

    /// The header's bytes, up to where the tensors begin.
    pub fn header_bytes(&self) -> &[u8] {
        &self.header_bytes
    }

    /// The same file with other values of metadata: what is known only when the tensors are written takes the place of
    /// values of the same size.
    ///
    /// # Errors
    /// [`GgufError::HeaderSize`] when the tensors would not lie where they do.
    pub fn with_values(&self, values: Metadata) -> Result<Self, GgufError> {
        let mut header = self.header.clone();
        header.metadata.extend(values);
        let header_bytes = encode_header(&header.metadata, &header.tensors, header.alignment);
        let (expected, got) = (self.header_bytes.len() as u64, header_bytes.len() as u64);
        if expected != got {
            return Err(GgufError::HeaderSize { expected, got });
        }
        Ok(Self {
            header,
            header_bytes,
        })
    }

    /// Writes the header and takes the tensors next.
    ///
    /// # Errors
    /// What `out` says.
    pub fn write_to<W: Write>(self, mut out: W) -> Result<Writer<W>, WriteError> {
        out.write_all(&self.header_bytes)?;
        Ok(Writer {
            out,
            header: self.header,
            n_written: 0,
        })
    }
}

/// A file being written.
#[derive(Debug)]
pub struct Writer<W> {
    out: W,
    header: Header,
    n_written: usize,
}

impl<W: Write> Writer<W> {
    /// Writes the next tensor of the layout; `name` says which one the caller thinks it is.
    ///
    /// # Errors
    /// Another tensor is next, `bytes` has the wrong length, or what the output says.
    pub fn write_tensor(&mut self, name: &str, bytes: &[u8]) -> Result<(), WriteError> {
        let next = self.header.tensors.get(self.n_written);
        let Some(info) = next.filter(|info| info.name == name) else {
            return Err(WriteError::Order {
                expected: next.map_or_else(|| "no tensor".to_owned(), |info| info.name.clone()),
                got: name.to_owned(),
            });
        };
        if info.len_bytes != bytes.len() as u64 {
            return Err(WriteError::Length {
                tensor: name.to_owned(),
                expected: info.len_bytes,
                got: bytes.len() as u64,
            });
        }
        self.out.write_all(bytes)?;
        let end = info.offset_bytes + info.len_bytes;
        let padding = end.next_multiple_of(self.header.alignment) - end;
        self.out.write_all(&vec![0; padding as usize])?;
        self.n_written += 1;
        Ok(())
    }

    /// Checks that all tensors came, flushes, and gives the output back.
    ///
    /// # Errors
    /// The first tensor that is missing, or what the output says.
    pub fn finish(mut self) -> Result<W, WriteError> {
        if let Some(info) = self.header.tensors.get(self.n_written) {
            return Err(WriteError::Unfinished(info.name.clone()));
        }
        self.out.flush()?;
        Ok(self.out)
    }
}

/// Why a file could not be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// The output failed: a full disk, a closed pipe.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Tensors come in another order than the layout's.
    #[error("tensor `{got}` was given where `{expected}` is next")]
    Order {
        /// The next tensor of the layout.
        expected: String,
        /// What was given.
        got: String,
    },
    /// A tensor's bytes do not fit its type and shape.
    #[error("tensor `{tensor}` has {got} bytes, its type and shape ask for {expected}")]
    Length {
        /// The tensor.
        tensor: String,
        /// Bytes by type and shape.
        expected: u64,
        /// Bytes given.
        got: u64,
    },
    /// Not all tensors came.
    #[error("the file is not finished: tensor `{0}` and those after it were not written")]
    Unfinished(String),
}

fn tensor_info(decl: TensorDecl, offset_bytes: u64) -> Result<TensorInfo, GgufError> {
    let TensorDecl { name, dtype, shape } = decl;
    let shape: Vec<u64> = shape.iter().rev().map(|n| *n as u64).collect();
    read::check_axes(&name, shape.len() as u64)?;
    match read::tensor_len_bytes(dtype, &shape) {
        Ok(len_bytes) => Ok(TensorInfo {
            name,
            dtype,
            shape,
            offset_bytes,
            len_bytes,
        }),
        Err(reason) => Err(GgufError::BadShape {
            tensor: name,
            shape,
            reason,
        }),
    }
}

fn encode_header(metadata: &Metadata, tensors: &[TensorInfo], alignment: u64) -> Vec<u8> {
    let mut out = Encoder(b"GGUF".to_vec());
    out.bytes(&VERSION.to_le_bytes());
    out.u64(tensors.len() as u64);
    out.u64(metadata.len() as u64);
    for (key, value) in metadata.iter() {
        out.string(key);
        out.value(value);
    }
    for info in tensors {
        out.string(&info.name);
        out.u32(info.shape.len() as u32);
        for n in &info.shape {
            out.u64(*n);
        }
        out.u32(info.dtype as u32);
        out.u64(info.offset_bytes);
    }
    let len = out.0.len().next_multiple_of(alignment as usize);
    out.0.resize(len, 0);
    out.0
}

/// Bytes that [`encode_header`] gives a tensor.
pub(super) fn tensor_entry_bytes(info: &TensorInfo) -> u64 {
    (8 + info.name.len() + 4 + 8 * info.shape.len() + 4 + 8) as u64
}

struct Encoder(Vec<u8>);

impl Encoder {
    fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    fn u32(&mut self, x: u32) {
        self.bytes(&x.to_le_bytes());
    }

    fn u64(&mut self, x: u64) {
        self.bytes(&x.to_le_bytes());
    }

    fn string(&mut self, s: &str) {
        self.u64(s.len() as u64);
        self.bytes(s.as_bytes());
    }

    /// The type's number, then the value.
    fn value(&mut self, value: &Value) {
        match value {
            Value::U8(x) => self.scalar(0, x.to_le_bytes()),
            Value::I8(x) => self.scalar(1, x.to_le_bytes()),
            Value::U16(x) => self.scalar(2, x.to_le_bytes()),
            Value::I16(x) => self.scalar(3, x.to_le_bytes()),
            Value::U32(x) => self.scalar(4, x.to_le_bytes()),
            Value::I32(x) => self.scalar(5, x.to_le_bytes()),
            Value::F32(x) => self.scalar(6, x.to_le_bytes()),
            Value::Bool(x) => self.scalar(7, [u8::from(*x)]),
            Value::String(s) => {
                self.u32(8);
                self.string(s);
            }
            Value::Array(array) => {
                self.u32(9);
                self.array(array);
            }
            Value::U64(x) => self.scalar(10, x.to_le_bytes()),
            Value::I64(x) => self.scalar(11, x.to_le_bytes()),
            Value::F64(x) => self.scalar(12, x.to_le_bytes()),
        }
    }

    fn scalar<const N: usize>(&mut self, type_id: u32, bytes: [u8; N]) {
        self.u32(type_id);
        self.bytes(&bytes);
    }

    fn array(&mut self, array: &Array) {
        match array {
            Array::U8(xs) => self.numbers(0, xs, u8::to_le_bytes),
            Array::I8(xs) => self.numbers(1, xs, i8::to_le_bytes),
            Array::U16(xs) => self.numbers(2, xs, u16::to_le_bytes),
            Array::I16(xs) => self.numbers(3, xs, i16::to_le_bytes),
            Array::U32(xs) => self.numbers(4, xs, u32::to_le_bytes),
            Array::I32(xs) => self.numbers(5, xs, i32::to_le_bytes),
            Array::F32(xs) => self.numbers(6, xs, f32::to_le_bytes),
            Array::Bool(xs) => self.numbers(7, xs, |x| [u8::from(x)]),
            Array::String(strings) => self.strings(strings),
            Array::U64(xs) => self.numbers(10, xs, u64::to_le_bytes),
            Array::I64(xs) => self.numbers(11, xs, i64::to_le_bytes),
            Array::F64(xs) => self.numbers(12, xs, f64::to_le_bytes),
        }
    }

    fn numbers<T: Copy, const N: usize>(
        &mut self,
        type_id: u32,
        xs: &[T],
        to_bytes: impl Fn(T) -> [u8; N],
    ) {
        self.u32(type_id);
        self.u64(xs.len() as u64);
        for x in xs {
            self.bytes(&to_bytes(*x));
        }
    }

    fn strings(&mut self, strings: &StringArray) {
        self.u32(8);
        self.u64(strings.len() as u64);
        for s in strings.iter() {
            self.string(s);
        }
    }
}
