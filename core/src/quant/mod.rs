//! Element types of tensors and their blocks, as ggml defines them (`ggml-common.h`, `ggml-quants.c`).
//!
//! Invariant: a row of a quantised tensor is a whole number of blocks of 32 elements along the fastest axis.

/// Element type of a tensor. The discriminants are ggml's type ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[repr(u32)]
pub enum DType {
    /// IEEE single precision.
    F32 = 0,
    /// IEEE half precision.
    F16 = 1,
    /// 4 bits, one f16 scale: `w = d * (q - 8)`; 18 bytes for 32.
    Q4_0 = 2,
    /// 4 bits, f16 scale and minimum: `w = d * q + m`; 20 bytes for 32.
    Q4_1 = 3,
    /// 8 bits, one f16 scale: `w = d * q`; 34 bytes for 32.
    Q8_0 = 8,
    /// bfloat16.
    BF16 = 30,
}

impl DType {
    /// The type with this ggml id, if it is one we read.
    pub fn from_ggml(_id: u32) -> Option<Self> {
        todo!()
    }
    /// The name as llama.cpp prints it, upper case: `Q8_0`.
    pub fn name(self) -> &'static str {
        todo!()
    }
    /// Elements in one block (1 for the float types, 32 for the others).
    pub fn block_len(self) -> usize {
        todo!()
    }
    /// Bytes in one block.
    pub fn block_bytes(self) -> usize {
        todo!()
    }
    /// Bytes of a row of `n_cols` elements, or `None` when `n_cols` is no whole number of blocks.
    pub fn row_bytes(self, _n_cols: usize) -> Option<usize> {
        todo!()
    }
}

/// Writes the values of `bytes` (whole blocks) to `out`.
///
/// # Panics
/// When the lengths do not fit each other: callers check shapes when the file is opened.
pub fn dequantize(_dtype: DType, _bytes: &[u8], _out: &mut [f32]) {
    todo!()
}

/// Appends `values` (whole blocks) to `out` in `dtype`, rounding as ggml's reference quantisation does.
///
/// # Panics
/// When `values` is no whole number of blocks.
pub fn quantize(_dtype: DType, _values: &[f32], _out: &mut Vec<u8>) {
    todo!()
}
