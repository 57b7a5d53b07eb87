//! Matrices of the base that stay in the blocks of their file: LoRA over a quantised base (Dettmers et al., "`QLoRA`").
//!
//! A product with such a matrix dequantises what it packs into panels, forward and in the backward pass alike; the matrix is
//! never there in f32 as a whole and has no gradient. The bits are those of products with the dequantised matrix.

use burn::tensor::{Device, Tensor, TensorData};
use bytes::Bytes;
use fledgling_core::quant::{self, DType, Method};
use fledgling_kernels::{
    Operand, Strided,
    gemm::{Pair, product},
    threads::{each_part, split, split_mut},
};
use fledgling_quantize::quantize_rows;
use std::{cell::RefCell, ops::Range};

/// Rows that are dequantised by one task.
const ROWS: usize = 16;

/// A matrix in the blocks of a GGUF file, `[out, in]`.
#[derive(Clone)]
pub struct Frozen {
    dtype: DType,
    bytes: Bytes,
    n_out: usize,
    n_in: usize,
}

impl std::fmt::Debug for Frozen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Frozen([{}, {}] {})",
            self.n_out,
            self.n_in,
            self.dtype.name()
        )
    }
}

impl Frozen {
    /// Takes the bytes of a GGUF tensor.
    ///
    /// # Panics
    /// When the bytes are not those of the shape.
    pub fn new(dtype: DType, bytes: Bytes, [n_out, n_in]: [usize; 2]) -> Self {
        assert_eq!(
            dtype.row_bytes(n_in).map(|len| len * n_out),
            Some(bytes.len()),
            "the bytes of a {dtype} matrix [{n_out}, {n_in}]"
        );
        Self {
            dtype,
            bytes,
            n_out,
            n_in,
        }
    }

    /// Quantises values as export does.
    ///
    /// # Panics
    /// When the values are not those of the shape, or rows are no whole blocks.
    pub fn quantize(dtype: DType, values: &[f32], shape: [usize; 2]) -> Self {
        let bytes = quantize_rows(dtype, values, shape[1], None, Method::Nearest);
        Self::new(dtype, bytes.into(), shape)
    }

    /// `[out, in]`
    pub fn shape(&self) -> [usize; 2] {
        [self.n_out, self.n_in]
    }

    /// Bytes in memory (or in the mapped file).
    pub fn len_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// All values, dequantised.
    pub fn values(&self) -> Vec<f32> {
        self.rows(0..self.n_out)
    }

    /// The values of some rows, dequantised. [rows, in]
    fn rows(&self, rows: Range<usize>) -> Vec<f32> {
        let row_bytes = self.bytes.len() / self.n_out;
        let mut values = vec![0.0; rows.len() * self.n_in];
        let bytes = &self.bytes[rows.start * row_bytes..rows.end * row_bytes];
        let parts = (
            split_mut(&mut values, ROWS * self.n_in),
            split(bytes, ROWS * row_bytes),
        );
        each_part(parts, |_, (values, bytes)| {
            quant::dequantize(self.dtype, bytes, values);
        });
        values
    }

    /// Rows by their numbers, without a gradient. [n, in]
    ///
    /// # Panics
    /// When a number is no row's.
    pub fn select(&self, ids: &[u32], device: &Device) -> Tensor<2> {
        let values: Vec<f32> = ids
            .iter()
            .flat_map(|&id| self.rows(id as usize..id as usize + 1))
            .collect();
        Tensor::from_data(TensorData::new(values, [ids.len(), self.n_in]), device)
    }

    /// `x Wᵀ`, or `x W` when `is_transposed`. [N, in] -> [N, out], or the other way round
    ///
    /// # Panics
    /// When x has rows of another length.
    pub fn product(&self, x: &[f32], is_transposed: bool) -> Vec<f32> {
        let (n_in, n_out) = if is_transposed {
            (self.n_out, self.n_in)
        } else {
            (self.n_in, self.n_out)
        };
        let size = [x.len() / n_in, n_out, n_in];
        product(
            size,
            &Strided::rows(x, n_in),
            &self.as_b(is_transposed),
            None,
        )
    }

    /// The matrix as B of a product: of `x Wᵀ`, or of `x W` when `is_transposed`.
    pub fn as_b(&self, is_transposed: bool) -> AsB<'_> {
        AsB {
            matrix: self,
            is_transposed,
        }
    }

    /// Calls `f` with the values of some columns of some rows, and their number from one row to the next.
    fn dequantized<R>(
        &self,
        rows: Range<usize>,
        columns: Range<usize>,
        f: impl FnOnce(&[f32], usize) -> R,
    ) -> R {
        let (len, row_bytes) = (self.dtype.block_len(), self.bytes.len() / self.n_out);
        let block_bytes = row_bytes / (self.n_in / len);
        let blocks = columns.start / len..columns.end.div_ceil(len);
        let stride = blocks.len() * len;
        let mut values = VALUES.take();
        values.resize(values.len().max(rows.len() * stride), 0.0);
        for (row, out) in rows.clone().zip(values.chunks_exact_mut(stride)) {
            let bytes = &self.bytes[row * row_bytes..][..row_bytes];
            let bytes = &bytes[blocks.start * block_bytes..blocks.end * block_bytes];
            quant::dequantize(self.dtype, bytes, out);
        }
        let result = f(&values[columns.start - blocks.start * len..], stride);
        VALUES.replace(values);
        result
    }
}

thread_local! {
    /// What is dequantised for a panel.
    static VALUES: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// See [`Frozen::as_b`].
#[derive(Debug, Clone, Copy)]
pub struct AsB<'a> {
    matrix: &'a Frozen,
    is_transposed: bool,
}

impl AsB<'_> {
    /// Calls `f` with the values of `lanes` at `depth`, dequantised.
    #[inline(always)]
    #[expect(
        clippy::inline_always,
        reason = "a panel is filled by another loop for each direction"
    )]
    fn dequantized(&self, lanes: Range<usize>, depth: Range<usize>, f: impl FnOnce(Strided)) {
        if self.is_transposed {
            let turned = |values: &[f32], stride| f(Strided::columns(values, stride));
            self.matrix.dequantized(depth, lanes, turned);
        } else {
            let plain = |values: &[f32], stride| f(Strided::rows(values, stride));
            self.matrix.dequantized(lanes, depth, plain);
        }
    }
}

impl Operand for AsB<'_> {
    fn pack(&self, lanes: Range<usize>, depth: Range<usize>, width: usize, panel: &mut [f32]) {
        let (n, len) = (lanes.len(), depth.len());
        self.dequantized(lanes, depth, |values| {
            values.pack(0..n, 0..len, width, panel);
        });
    }

    fn pack_pairs(
        &self,
        lanes: Range<usize>,
        depth: Range<usize>,
        width: usize,
        panel: &mut [Pair],
    ) {
        let (n, len) = (lanes.len(), depth.len());
        self.dequantized(lanes, depth, |values| {
            values.pack_pairs(0..n, 0..len, width, panel);
        });
    }
}

/// Whether a device multiplies with blocks as they are. On a GPU the values are there in f32: they would be sent anew
/// for every product.
pub fn computes_with_blocks(device: &Device) -> bool {
    device.clone().inner() == Device::flex()
}
