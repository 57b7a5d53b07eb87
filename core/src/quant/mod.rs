//! Element types of tensors and their blocks, as ggml defines them (`ggml-common.h`, `ggml-quants.c`).
//!
//! Invariant: a row of a quantised tensor is a whole number of blocks of 32 elements along the fastest axis.
//! Quantisation rounds exactly as ggml's `quantize_row_*_ref`, so that a file of ours equals one of llama.cpp's.

mod blocks;
#[cfg(test)]
mod tests;

pub use blocks::{BLOCK_LEN, Block, BlockQ4_0, BlockQ4_1, BlockQ8_0, blocks};
use half::{bf16, f16};

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
    /// All types, the widest first.
    pub const ALL: [Self; 6] = [
        Self::F32,
        Self::F16,
        Self::BF16,
        Self::Q8_0,
        Self::Q4_1,
        Self::Q4_0,
    ];

    /// The type with this ggml id, if it is one we read.
    pub fn from_ggml(id: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|dtype| *dtype as u32 == id)
    }
    /// The type of this name, in either case: `q8_0`.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|dtype| dtype.name().eq_ignore_ascii_case(name))
    }
    /// The name as llama.cpp prints it, upper case: `Q8_0`.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q8_0 => "Q8_0",
            Self::BF16 => "BF16",
        }
    }
    /// Whether the type keeps blocks of integers with a scale.
    pub fn is_quantized(self) -> bool {
        matches!(self, Self::Q4_0 | Self::Q4_1 | Self::Q8_0)
    }
    /// Elements in one block (1 for the float types, 32 for the others).
    pub fn block_len(self) -> usize {
        if self.is_quantized() { BLOCK_LEN } else { 1 }
    }
    /// Bytes in one block.
    pub fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::Q4_0 => size_of::<BlockQ4_0>(),
            Self::Q4_1 => size_of::<BlockQ4_1>(),
            Self::Q8_0 => size_of::<BlockQ8_0>(),
        }
    }
    /// Bytes of a row of `n_cols` elements, or `None` when `n_cols` is no whole number of blocks.
    pub fn row_bytes(self, n_cols: usize) -> Option<usize> {
        let n_blocks = n_cols / self.block_len();
        if n_cols.is_multiple_of(self.block_len()) {
            n_blocks.checked_mul(self.block_bytes())
        } else {
            None
        }
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

/// The name of any of ggml's types, also of those we do not read, so that a refusal can say what it refuses.
pub fn ggml_type_name(id: u32) -> Option<&'static str> {
    // enum ggml_type in ggml.h; 4, 5, 31 to 33 and 36 to 38 were removed.
    Some(match id {
        6 => "Q5_0",
        7 => "Q5_1",
        9 => "Q8_1",
        10 => "Q2_K",
        11 => "Q3_K",
        12 => "Q4_K",
        13 => "Q5_K",
        14 => "Q6_K",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        _ => return DType::from_ggml(id).map(DType::name),
    })
}

/// Writes the values of `bytes` (whole blocks) to `out`.
///
/// # Panics
/// When the lengths do not fit each other: callers check shapes when the file is opened.
pub fn dequantize(dtype: DType, bytes: &[u8], out: &mut [f32]) {
    assert_eq!(
        dtype.row_bytes(out.len()),
        Some(bytes.len()),
        "{dtype}: {} bytes for {} values",
        bytes.len(),
        out.len()
    );
    match dtype {
        DType::F32 => each(bytes, out, f32::from_le_bytes),
        DType::F16 => each(bytes, out, |b| f16::from_le_bytes(b).to_f32()),
        DType::BF16 => each(bytes, out, |b| bf16::from_le_bytes(b).to_f32()),
        DType::Q8_0 => each_block::<BlockQ8_0>(bytes, out),
        DType::Q4_0 => each_block::<BlockQ4_0>(bytes, out),
        DType::Q4_1 => each_block::<BlockQ4_1>(bytes, out),
    }
}

fn each<const N: usize>(bytes: &[u8], out: &mut [f32], value: impl Fn([u8; N]) -> f32) {
    for (b, y) in bytes.as_chunks().0.iter().zip(out) {
        *y = value(*b);
    }
}

fn each_block<B: Block>(bytes: &[u8], out: &mut [f32]) {
    for (block, y) in blocks::<B>(bytes).iter().zip(out.as_chunks_mut().0) {
        block.dequantize(y);
    }
}

/// Appends `values` (whole blocks) to `out` in `dtype`, rounding as ggml's reference quantisation does.
///
/// # Panics
/// When `values` is no whole number of blocks.
pub fn quantize(dtype: DType, values: &[f32], out: &mut Vec<u8>) {
    let len_bytes = dtype.row_bytes(values.len());
    out.reserve(len_bytes.expect("the values are whole blocks"));
    match dtype {
        DType::F32 => out.extend(values.iter().flat_map(|x| x.to_le_bytes())),
        DType::F16 => out.extend(values.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes())),
        DType::BF16 => out.extend(values.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes())),
        DType::Q8_0 => append_blocks::<BlockQ8_0>(values, out),
        DType::Q4_0 => append_blocks::<BlockQ4_0>(values, out),
        DType::Q4_1 => append_blocks::<BlockQ4_1>(values, out),
    }
}

fn append_blocks<B: Block>(values: &[f32], out: &mut Vec<u8>) {
    for x in values.as_chunks().0 {
        out.extend_from_slice(bytemuck::bytes_of(&B::quantize(x)));
    }
}
