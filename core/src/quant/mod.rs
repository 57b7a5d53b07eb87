//! Element types of tensors and their blocks, as ggml defines them (`ggml-common.h`, `ggml-quants.c`).
//!
//! Invariant: a row of a quantised tensor is a whole number of blocks along the fastest axis: of 32 elements, or of 256
//! for the K types. Values are read exactly as ggml reads them. They are written in one of two ways ([`Method`]).

mod blocks;
mod grid;
mod importance;
mod k_blocks;
mod k_search;
pub mod recipe;
mod search;
#[cfg(test)]
mod tests;

pub use blocks::{BLOCK_LEN, Block, BlockQ4_0, BlockQ4_1, BlockQ5_0, BlockQ5_1, BlockQ8_0, blocks};
pub use grid::Grid;
pub use importance::{Importance, ImportanceError};
pub use recipe::{Planned, Recipe, RecipeError};

use half::{bf16, f16};
pub use k_blocks::{BlockQ4K, BlockQ5K, BlockQ6K, SUPER_LEN, scale_and_min};

/// The least weight of a column, as a part of the mean: calibration text has not seen everything.
const LEAST_WEIGHT: f32 = 1e-3;

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
    /// 5 bits, one f16 scale: `w = d * (q - 16)`; 22 bytes for 32.
    Q5_0 = 6,
    /// 5 bits, f16 scale and minimum: `w = d * q + m`; 24 bytes for 32.
    Q5_1 = 7,
    /// 8 bits, one f16 scale: `w = d * q`; 34 bytes for 32.
    Q8_0 = 8,
    /// 4 bits, scaled scales and minima: `w = d * sc * q - dmin * m`; 144 bytes for 256.
    Q4K = 12,
    /// 5 bits, scaled scales and minima: `w = d * sc * q - dmin * m`; 176 bytes for 256.
    Q5K = 13,
    /// 6 bits, scaled scales: `w = d * sc * (q - 32)`; 210 bytes for 256.
    Q6K = 14,
    /// bfloat16.
    BF16 = 30,
}

impl DType {
    /// All types, the widest first.
    pub const ALL: [Self; 11] = [
        Self::F32,
        Self::F16,
        Self::BF16,
        Self::Q8_0,
        Self::Q6K,
        Self::Q5_1,
        Self::Q5K,
        Self::Q5_0,
        Self::Q4_1,
        Self::Q4K,
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
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q8_0 => "Q8_0",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
            Self::BF16 => "BF16",
        }
    }
    /// Whether the type keeps blocks of integers with a scale.
    pub fn is_quantized(self) -> bool {
        !matches!(self, Self::F32 | Self::F16 | Self::BF16)
    }
    /// Elements in one block: 1 for the float types, 256 for the K types, 32 for the others.
    pub fn block_len(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => 1,
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 => BLOCK_LEN,
            Self::Q4K | Self::Q5K | Self::Q6K => SUPER_LEN,
        }
    }
    /// Bytes in one block.
    pub fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::Q4_0 => size_of::<BlockQ4_0>(),
            Self::Q4_1 => size_of::<BlockQ4_1>(),
            Self::Q5_0 => size_of::<BlockQ5_0>(),
            Self::Q5_1 => size_of::<BlockQ5_1>(),
            Self::Q8_0 => size_of::<BlockQ8_0>(),
            Self::Q4K => size_of::<BlockQ4K>(),
            Self::Q5K => size_of::<BlockQ5K>(),
            Self::Q6K => size_of::<BlockQ6K>(),
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
        9 => "Q8_1",
        10 => "Q2_K",
        11 => "Q3_K",
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
        DType::Q5_0 => each_block::<BlockQ5_0>(bytes, out),
        DType::Q5_1 => each_block::<BlockQ5_1>(bytes, out),
        DType::Q4K => each_block::<BlockQ4K>(bytes, out),
        DType::Q5K => each_block::<BlockQ5K>(bytes, out),
        DType::Q6K => each_block::<BlockQ6K>(bytes, out),
    }
}

fn each<const N: usize>(bytes: &[u8], out: &mut [f32], value: impl Fn([u8; N]) -> f32) {
    for (b, y) in bytes.as_chunks().0.iter().zip(out) {
        *y = value(*b);
    }
}

fn each_block<B: Block>(bytes: &[u8], out: &mut [f32]) {
    for (block, y) in blocks::<B>(bytes).iter().zip(out.chunks_exact_mut(B::LEN)) {
        block.dequantize(y);
    }
}

/// How values become integers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Method {
    /// The scale follows from the extremes. For the types without super-blocks this is ggml's `quantize_row_*_ref`, bit by
    /// bit; ggml has no such reference for the K types.
    Nearest,
    /// The scale (and minimum) of the smallest weighted square error.
    #[default]
    Search,
}

/// Appends a row (whole blocks) to `out` in `dtype`. `importance`, one weight for each column, is used by
/// [`Method::Search`], which minimises `Σ importance sqrt(mean x² + x²) (x - x̂)²`. A weight that is not above 0 counts as a
/// small part of the mean; without importance all are 1.
///
/// Rows do not depend on each other: spread them over threads.
///
/// # Panics
/// When `row` is no whole number of blocks, or `importance` has another length.
pub fn quantize_row(
    dtype: DType,
    row: &[f32],
    importance: Option<&[f32]>,
    method: Method,
    out: &mut Vec<u8>,
) {
    if method == Method::Nearest || !dtype.is_quantized() {
        return quantize(dtype, row, out);
    }
    let len_bytes = dtype.row_bytes(row.len());
    out.reserve(len_bytes.expect("the row is whole blocks"));
    search::append_row(dtype, row, &weights(row, importance), out);
}

/// Appends `values` (whole blocks) to `out` in `dtype` by [`Method::Nearest`].
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
        DType::Q5_0 => append_blocks::<BlockQ5_0>(values, out),
        DType::Q5_1 => append_blocks::<BlockQ5_1>(values, out),
        DType::Q4K => append_blocks::<BlockQ4K>(values, out),
        DType::Q5K => append_blocks::<BlockQ5K>(values, out),
        DType::Q6K => append_blocks::<BlockQ6K>(values, out),
    }
}

fn append_blocks<B: Block>(values: &[f32], out: &mut Vec<u8>) {
    for x in values.chunks_exact(B::LEN) {
        out.extend_from_slice(bytemuck::bytes_of(&B::quantize(x)));
    }
}

/// The type that a row of `n_cols` elements gets where `wanted` is asked for: itself, or where that needs whole
/// blocks that the row has not, what llama.cpp takes instead (`llama-quant.cpp`): `Q5_0` for `Q4_K`, `Q5_1` for `Q5_K`,
/// `Q8_0` for `Q6_K`, and F16 where blocks of 32 do not fit either.
pub fn fitting(wanted: DType, n_cols: usize) -> DType {
    let fits = |dtype: DType| dtype.row_bytes(n_cols).is_some();
    let smaller_blocks = match wanted {
        DType::Q4K => DType::Q5_0,
        DType::Q5K => DType::Q5_1,
        DType::Q6K => DType::Q8_0,
        other => other,
    };
    match wanted {
        wanted if fits(wanted) => wanted,
        _ if fits(smaller_blocks) => smaller_blocks,
        _ => DType::F16,
    }
}

/// What the square errors of a row count: importance times `sqrt(mean x² + x²)`. [K]
///
/// The root is llama.cpp's. Without it the square error of the weights is smaller, and the divergence larger: see LOG.md.
fn weights(row: &[f32], importance: Option<&[f32]>) -> Vec<f32> {
    let mean_square = row.iter().map(|x| x * x).sum::<f32>() / row.len() as f32;
    let mut weights: Vec<f32> = row.iter().map(|x| (mean_square + x * x).sqrt()).collect();
    let Some(importance) = importance else {
        return weights;
    };
    assert_eq!(importance.len(), row.len(), "a weight for each column");
    let valid = |w: f32| if w > 0.0 && w.is_finite() { w } else { 0.0 };
    let sum: f64 = importance.iter().map(|&w| f64::from(valid(w))).sum();
    if sum > 0.0 {
        // Only their ratios count: a mean of 1 keeps the sums in range.
        let scale = (row.len() as f64 / sum) as f32;
        for (weight, &importance) in weights.iter_mut().zip(importance) {
            *weight *= (valid(importance) * scale).max(LEAST_WEIGHT);
        }
    }
    weights
}
