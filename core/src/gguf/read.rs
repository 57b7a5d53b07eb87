//! The parser of a header. Every length is checked against the bytes that are there before anything is allocated.

use super::{Array, GgufError, Header, Metadata, StringArray, TensorInfo, Value};
use crate::quant::{self, DType};

/// No model comes near these; a file that says more is corrupt, and a browser should not wait for its header.
const MAX_PAIRS: u64 = 1 << 16;
const MAX_TENSORS: u64 = 1 << 16;
const MAX_NAME_BYTES: u64 = 1 << 16;
const MAX_STRING_BYTES: u64 = 1 << 28;
const MAX_ARRAY_LEN: u64 = 1 << 26;
const MAX_ALIGNMENT: u64 = 1 << 20;
const DEFAULT_ALIGNMENT: u64 = 32;

/// Bytes of the smallest pair (empty key, type, one byte) and of the smallest tensor entry (empty name, one axis).
const MIN_PAIR_BYTES: u64 = 8 + 4 + 1;
const MIN_TENSOR_BYTES: u64 = 8 + 4 + 8 + 4 + 8;

pub(super) fn header(prefix: &[u8]) -> Result<Header, GgufError> {
    let mut reader = Reader {
        bytes: prefix,
        pos: 0,
    };
    reader.magic_and_version()?;
    let n_tensors = reader.count("the number of tensors", MAX_TENSORS, 0)?;
    let n_pairs = reader.count("the number of metadata pairs", MAX_PAIRS, MIN_PAIR_BYTES)?;

    let mut entries = Vec::with_capacity(n_pairs);
    for _ in 0..n_pairs {
        let key = reader.string("a metadata key", MAX_NAME_BYTES)?;
        let type_offset = reader.pos;
        let type_id = reader.u32()?;
        let value = reader.value(&key, type_id, type_offset)?;
        entries.push((key, value));
    }
    let metadata = Metadata::from_entries(entries).map_err(GgufError::DuplicateKey)?;
    let alignment = alignment(&metadata)?;

    reader.require(n_tensors as u64 * MIN_TENSOR_BYTES)?;
    let mut tensors = Vec::with_capacity(n_tensors);
    for _ in 0..n_tensors {
        tensors.push(reader.tensor_info(alignment)?);
    }
    let data_offset_bytes = (reader.pos as u64).next_multiple_of(alignment);
    check_places(&tensors, data_offset_bytes)?;
    Ok(Header {
        metadata,
        tensors,
        data_offset_bytes,
        alignment,
    })
}

pub(super) fn alignment(metadata: &Metadata) -> Result<u64, GgufError> {
    let Some(value) = metadata.get("general.alignment") else {
        return Ok(DEFAULT_ALIGNMENT);
    };
    match metadata.u64("general.alignment") {
        Some(n) if n.is_power_of_two() && n <= MAX_ALIGNMENT => Ok(n),
        Some(n) => Err(GgufError::BadAlignment(n.to_string())),
        None => Err(GgufError::BadAlignment(short_debug(value))),
    }
}

fn short_debug(value: &Value) -> String {
    match value {
        Value::String(_) => "a string".to_owned(),
        Value::Array(_) => "an array".to_owned(),
        scalar => format!("{scalar:?}"),
    }
}

/// Names are unique, and no two tensors share a byte, or lie where no file reaches.
pub(super) fn check_places(
    tensors: &[TensorInfo],
    data_offset_bytes: u64,
) -> Result<(), GgufError> {
    let mut names: Vec<&str> = tensors.iter().map(|info| info.name.as_str()).collect();
    names.sort_unstable();
    if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(GgufError::DuplicateTensor(pair[0].to_owned()));
    }
    for info in tensors {
        let end = info.offset_bytes.checked_add(info.len_bytes);
        let end = end.and_then(|end| end.checked_add(data_offset_bytes));
        if end.is_none_or(|end| end > i64::MAX as u64) {
            return Err(GgufError::OutOfRange {
                tensor: info.name.clone(),
                offset: info.offset_bytes,
                len: info.len_bytes,
            });
        }
    }
    let mut by_offset: Vec<&TensorInfo> = tensors.iter().collect();
    by_offset.sort_by_key(|info| info.offset_bytes);
    for pair in by_offset.windows(2) {
        if pair[0].offset_bytes + pair[0].len_bytes > pair[1].offset_bytes {
            return Err(GgufError::Overlap {
                first: pair[0].name.clone(),
                second: pair[1].name.clone(),
            });
        }
    }
    Ok(())
}

/// A cursor over the bytes that have arrived.
struct Reader<'a> {
    bytes: &'a [u8],
    pos: usize,
}

impl<'a> Reader<'a> {
    /// That `n` more bytes are there.
    fn require(&self, n: u64) -> Result<(), GgufError> {
        if n <= (self.bytes.len() - self.pos) as u64 {
            return Ok(());
        }
        Err(GgufError::Incomplete {
            have: self.bytes.len() as u64,
            need: (self.pos as u64).saturating_add(n),
        })
    }

    fn take(&mut self, n: u64) -> Result<&'a [u8], GgufError> {
        self.require(n)?;
        let taken = &self.bytes[self.pos..self.pos + n as usize];
        self.pos += n as usize;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], GgufError> {
        let bytes = self.take(N as u64)?;
        Ok(bytes.try_into().expect("take gives the length asked for"))
    }

    fn u32(&mut self) -> Result<u32, GgufError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, GgufError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A count of things of at least `min_bytes` each, all of which must be there.
    fn count(&mut self, what: &str, limit: u64, min_bytes: u64) -> Result<usize, GgufError> {
        let offset = self.pos as u64;
        let value = self.u64()?;
        if value > limit {
            let what = what.to_owned();
            return Err(GgufError::TooLarge {
                what,
                value,
                limit,
                offset,
            });
        }
        self.require(value * min_bytes)?;
        Ok(value as usize)
    }

    fn magic_and_version(&mut self) -> Result<(), GgufError> {
        let begin = &self.bytes[..self.bytes.len().min(4)];
        if !b"GGUF".starts_with(begin) {
            let found = describe(self.bytes);
            return Err(GgufError::NotGguf { found });
        }
        self.take(4)?;
        // Version 2 has the same layout; version 1 had 32-bit counts.
        match self.u32()? {
            2 | 3 => Ok(()),
            swapped if swapped.trailing_zeros() >= 16 && swapped != 0 => {
                Err(GgufError::BigEndian(swapped.swap_bytes()))
            }
            other => Err(GgufError::Version(other)),
        }
    }

    fn string(&mut self, what: &str, limit: u64) -> Result<String, GgufError> {
        let len = self.count(&format!("the length of {what}"), limit, 1)?;
        let offset = self.pos as u64;
        let bytes = self.take(len as u64)?;
        let not_utf8 = |_| GgufError::NotUtf8 {
            what: what.to_owned(),
            offset,
        };
        Ok(std::str::from_utf8(bytes).map_err(not_utf8)?.to_owned())
    }

    fn value(&mut self, key: &str, type_id: u32, offset: usize) -> Result<Value, GgufError> {
        Ok(match type_id {
            0 => Value::U8(u8::from_le_bytes(self.array()?)),
            1 => Value::I8(i8::from_le_bytes(self.array()?)),
            2 => Value::U16(u16::from_le_bytes(self.array()?)),
            3 => Value::I16(i16::from_le_bytes(self.array()?)),
            4 => Value::U32(self.u32()?),
            5 => Value::I32(i32::from_le_bytes(self.array()?)),
            6 => Value::F32(f32::from_le_bytes(self.array()?)),
            7 => Value::Bool(bool_from(key, self.array::<1>()?[0])?),
            8 => Value::String(self.string(&format!("metadata key `{key}`"), MAX_STRING_BYTES)?),
            9 => Value::Array(self.value_array(key)?),
            10 => Value::U64(self.u64()?),
            11 => Value::I64(i64::from_le_bytes(self.array()?)),
            12 => Value::F64(f64::from_le_bytes(self.array()?)),
            _ => return Err(unknown_type(key, type_id, offset)),
        })
    }

    fn value_array(&mut self, key: &str) -> Result<Array, GgufError> {
        let offset = self.pos;
        let type_id = self.u32()?;
        Ok(match type_id {
            0 => Array::U8(self.numbers(key, u8::from_le_bytes)?),
            1 => Array::I8(self.numbers(key, i8::from_le_bytes)?),
            2 => Array::U16(self.numbers(key, u16::from_le_bytes)?),
            3 => Array::I16(self.numbers(key, i16::from_le_bytes)?),
            4 => Array::U32(self.numbers(key, u32::from_le_bytes)?),
            5 => Array::I32(self.numbers(key, i32::from_le_bytes)?),
            6 => Array::F32(self.numbers(key, f32::from_le_bytes)?),
            7 => Array::Bool(self.bools(key)?),
            8 => Array::String(self.strings(key)?),
            9 => {
                return Err(GgufError::NestedArray {
                    key: key.to_owned(),
                });
            }
            10 => Array::U64(self.numbers(key, u64::from_le_bytes)?),
            11 => Array::I64(self.numbers(key, i64::from_le_bytes)?),
            12 => Array::F64(self.numbers(key, f64::from_le_bytes)?),
            _ => return Err(unknown_type(key, type_id, offset)),
        })
    }

    fn array_len(&mut self, key: &str, min_bytes: u64) -> Result<usize, GgufError> {
        let what = format!("the length of the array under `{key}`");
        self.count(&what, MAX_ARRAY_LEN, min_bytes)
    }

    fn numbers<T, const N: usize>(
        &mut self,
        key: &str,
        from_bytes: impl Fn([u8; N]) -> T,
    ) -> Result<Vec<T>, GgufError> {
        let len = self.array_len(key, N as u64)?;
        let bytes = self.take((len * N) as u64)?;
        Ok(bytes.as_chunks().0.iter().map(|b| from_bytes(*b)).collect())
    }

    fn bools(&mut self, key: &str) -> Result<Vec<bool>, GgufError> {
        let bytes = self.numbers(key, u8::from_le_bytes)?;
        bytes.into_iter().map(|b| bool_from(key, b)).collect()
    }

    /// Two passes: the first adds up the lengths, so that the second copies into one buffer of the right size.
    fn strings(&mut self, key: &str) -> Result<StringArray, GgufError> {
        let len = self.array_len(key, 8)?;
        let begin = self.pos;
        let what = format!("the length of a string in `{key}`");
        let mut ends = Vec::with_capacity(len);
        let mut text_len = 0;
        for idx in 0..len {
            // The lengths of the strings after this one need at least 8 bytes each.
            self.require((len - idx) as u64 * 8)?;
            let offset = self.pos as u64;
            let value = self.u64()?;
            if value > MAX_STRING_BYTES {
                let (what, limit) = (what.clone(), MAX_STRING_BYTES);
                return Err(GgufError::TooLarge {
                    what,
                    value,
                    limit,
                    offset,
                });
            }
            self.take(value)?;
            text_len += value as usize;
            ends.push(text_len);
        }
        let mut text = Vec::with_capacity(text_len);
        let mut pos = begin;
        for end in &ends {
            let start = pos + 8;
            pos = start + (end - text.len());
            text.extend_from_slice(&self.bytes[start..pos]);
        }
        StringArray::from_utf8(text, ends).map_err(|idx| GgufError::NotUtf8 {
            what: format!("string {idx} of the array under `{key}`"),
            offset: begin as u64,
        })
    }

    fn tensor_info(&mut self, alignment: u64) -> Result<TensorInfo, GgufError> {
        let name = self.string("a tensor name", MAX_NAME_BYTES)?;
        let n_axes = self.u32()?;
        check_axes(&name, n_axes.into())?;
        let shape = (0..n_axes)
            .map(|_| self.u64())
            .collect::<Result<Vec<_>, _>>()?;
        let type_id = self.u32()?;
        let offset_bytes = self.u64()?;
        let Some(dtype) = DType::from_ggml(type_id) else {
            let type_name = match quant::ggml_type_name(type_id) {
                Some(name) => name.to_owned(),
                None => format!("number {type_id}"),
            };
            return Err(GgufError::UnsupportedType {
                tensor: name,
                type_name,
            });
        };
        let len_bytes = match tensor_len_bytes(dtype, &shape) {
            Ok(len) => len,
            Err(reason) => {
                return Err(GgufError::BadShape {
                    tensor: name,
                    shape,
                    reason,
                });
            }
        };
        if !offset_bytes.is_multiple_of(alignment) {
            let (tensor, offset) = (name, offset_bytes);
            return Err(GgufError::Misaligned {
                tensor,
                offset,
                alignment,
            });
        }
        Ok(TensorInfo {
            name,
            dtype,
            shape,
            offset_bytes,
            len_bytes,
        })
    }
}

/// ggml's `GGML_MAX_DIMS`.
pub(super) fn check_axes(name: &str, n_axes: u64) -> Result<(), GgufError> {
    if (1..=4).contains(&n_axes) {
        return Ok(());
    }
    let tensor = name.to_owned();
    Err(GgufError::BadAxes { tensor, n_axes })
}

/// The size of a tensor, the fastest axis first.
pub(super) fn tensor_len_bytes(dtype: DType, shape: &[u64]) -> Result<u64, &'static str> {
    let (block_len, block_bytes) = (dtype.block_len() as u64, dtype.block_bytes() as u64);
    if shape.contains(&0) {
        return Err("an axis is empty");
    }
    if !shape[0].is_multiple_of(block_len) {
        return Err(match block_len {
            32 => "a row of a quantised tensor must be a whole number of blocks of 32",
            _ => "a row of a tensor of a K type must be a whole number of blocks of 256",
        });
    }
    let rows = shape[1..].iter().copied();
    rows.chain([shape[0] / block_len, block_bytes])
        .try_fold(1_u64, u64::checked_mul)
        .ok_or("its size is beyond 64 bits")
}

fn bool_from(key: &str, value: u8) -> Result<bool, GgufError> {
    match value {
        0 => Ok(false),
        1 => Ok(true),
        value => Err(GgufError::BadBool {
            key: key.to_owned(),
            value,
        }),
    }
}

fn unknown_type(key: &str, type_id: u32, offset: usize) -> GgufError {
    let (key, offset) = (key.to_owned(), offset as u64);
    GgufError::UnknownValueType {
        key,
        type_id,
        offset,
    }
}

/// What the beginning of a foreign file looks like, for somebody who picked or downloaded the wrong one.
fn describe(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(64)]).to_lowercase();
    let text = text.trim_start_matches(['\u{feff}', ' ', '\n', '\r', '\t']);
    let json_at_8 = bytes.get(8) == Some(&b'{') && bytes[4..8] == [0; 4];
    let looks_like = match bytes {
        _ if text.starts_with("<!doctype") || text.starts_with("<html") => {
            "looks like an HTML page, not the file behind it"
        }
        _ if text.starts_with("version https://git-lfs") => {
            "a Git LFS pointer, not the file itself"
        }
        _ if json_at_8 => "looks like safetensors; convert it to GGUF first",
        [b'P', b'K', 3 | 5, ..] => "looks like zip (a PyTorch checkpoint or an archive)",
        [0x1f, 0x8b, ..] => "looks like gzip; unpack it first",
        [b't', b'j' | b'm', b'g', b'g', ..] | [b'l', b'm', b'g', b'g', ..] => {
            "an old GGML format; convert the model to GGUF again"
        }
        [b'{' | b'[', ..] => "looks like JSON",
        _ => "no format we know",
    };
    let begin = &bytes[..bytes.len().min(8)];
    format!("\"{}\" ({looks_like})", begin.escape_ascii())
}
