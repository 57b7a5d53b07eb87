//! Matrices of the base that stay in the blocks of their file: LoRA over a quantised base (Dettmers et al., "`QLoRA`").
//!
//! A product with such a matrix dequantises what it packs into panels, forward and in the backward pass alike; the matrix is
//! never there in f32 as a whole and has no gradient. The bits are those of products with the dequantised matrix.

use burn::tensor::{Device, Tensor, TensorData};
use bytes::Bytes;
use fledgling_core::quant::{self, DType};
use fledgling_kernels::{
    Operand, Strided,
    gemm::{Start, gemm},
};
use rayon::prelude::*;
use std::ops::Range;

/// Values that are quantised by one task.
const TASK_LEN: usize = 1 << 18;
/// Values that are dequantised at a time: whole blocks of every type.
const PART_LEN: usize = 256;

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
        let rows: Vec<Vec<u8>> = values
            .par_chunks((TASK_LEN / shape[1].max(1)).max(1) * shape[1])
            .map(|rows| {
                let mut bytes = Vec::new();
                quant::quantize(dtype, rows, &mut bytes);
                bytes
            })
            .collect();
        Self::new(dtype, rows.concat().into(), shape)
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
        values
            .par_chunks_mut(self.n_in)
            .with_min_len(16)
            .zip(bytes.par_chunks(row_bytes))
            .for_each(|(values, bytes)| quant::dequantize(self.dtype, bytes, values));
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
        let n = x.len() / n_in;
        let mut y = vec![0.0; n * n_out];
        let x = Strided::rows(x, n_in);
        if is_transposed {
            gemm(n, n_out, n_in, &x, &Columns(self), Start::Zero, &mut y);
        } else {
            gemm(n, n_out, n_in, &x, &Rows(self), Start::Zero, &mut y);
        }
        y
    }

    /// Calls `each` with parts of a row's values, dequantised, and where in the part the values of `columns` begin.
    fn part_of_row(
        &self,
        row: usize,
        columns: Range<usize>,
        scratch: &mut [f32; PART_LEN],
        mut each: impl FnMut(Range<usize>, &[f32]),
    ) {
        let (len, row_bytes) = (self.dtype.block_len(), self.bytes.len() / self.n_out);
        let block_bytes = row_bytes / (self.n_in / len);
        let blocks = columns.start / len..columns.end.div_ceil(len);
        for first in blocks.clone().step_by(PART_LEN / len) {
            let last = (first + PART_LEN / len).min(blocks.end);
            let bytes = &self.bytes[row * row_bytes..][first * block_bytes..last * block_bytes];
            let values = &mut scratch[..(last - first) * len];
            quant::dequantize(self.dtype, bytes, values);
            let wanted = columns.start.max(first * len)..columns.end.min(last * len);
            each(
                wanted.start - columns.start..wanted.end - columns.start,
                &values[wanted.start - first * len..wanted.end - first * len],
            );
        }
    }
}

/// The matrix as B of a product whose columns are its rows.
struct Rows<'a>(&'a Frozen);

impl Operand for Rows<'_> {
    fn pack(&self, lanes: Range<usize>, depth: Range<usize>, width: usize, panel: &mut [f32]) {
        if lanes.len() < width {
            panel.fill(0.0);
        }
        let mut scratch = [0.0; PART_LEN];
        for (lane, row) in lanes.enumerate() {
            self.0
                .part_of_row(row, depth.clone(), &mut scratch, |places, values| {
                    for (p, value) in places.zip(values) {
                        panel[p * width + lane] = *value;
                    }
                });
        }
    }
}

/// The matrix as B of a product whose columns are its own.
struct Columns<'a>(&'a Frozen);

impl Operand for Columns<'_> {
    fn pack(&self, lanes: Range<usize>, depth: Range<usize>, width: usize, panel: &mut [f32]) {
        let mut scratch = [0.0; PART_LEN];
        for (row, out) in depth.zip(panel.chunks_exact_mut(width)) {
            out[lanes.len()..].fill(0.0);
            self.0
                .part_of_row(row, lanes.clone(), &mut scratch, |places, values| {
                    out[places].copy_from_slice(values);
                });
        }
    }
}

/// Whether a device multiplies with blocks as they are. On a GPU the values are there in f32: they would be sent anew
/// for every product.
pub fn computes_with_blocks(device: &Device) -> bool {
    device.clone().inner() == Device::flex()
}
