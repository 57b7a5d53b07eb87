//! Rows by themselves, on all threads.

use fledgling_core::quant::{DType, Method, quantize_row};
use fledgling_kernels::threads;

/// Values that one task takes.
const TASK: usize = 1 << 16;

/// A matrix in `dtype`, row by row (see [`quantize_row`]), on all threads. [N, K], [K] -> the bytes of N rows
///
/// # Panics
/// When the values are no whole number of rows, a row no whole number of blocks, or `importance` has another length.
pub fn quantize_rows(
    dtype: DType,
    values: &[f32],
    n_cols: usize,
    importance: Option<&[f32]>,
    method: Method,
) -> Vec<u8> {
    let row_bytes = dtype.row_bytes(n_cols).expect("rows are whole blocks");
    let n_rows = values.len() / n_cols;
    assert_eq!(n_rows * n_cols, values.len(), "whole rows");
    let rows = (TASK / n_cols).max(1);
    let parts = threads::map(n_rows.div_ceil(rows), |task| {
        let end = ((task + 1) * rows).min(n_rows);
        let mut out = Vec::with_capacity((end - task * rows) * row_bytes);
        for row in values[task * rows * n_cols..end * n_cols].chunks_exact(n_cols) {
            quantize_row(dtype, row, importance, method, &mut out);
        }
        out
    });
    parts.concat()
}
