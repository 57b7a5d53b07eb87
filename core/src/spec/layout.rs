//! Hugging Face's order of a tensor's values to GGUF's and back (llama.cpp's `convert_hf_to_gguf.py`).

use super::{HfLayout, TensorEntry};

impl TensorEntry {
    /// Row-major shape in a Hugging Face file.
    pub fn hf_shape(&self) -> Vec<usize> {
        match self.hf_layout {
            HfLayout::Transposed => self.shape.iter().rev().copied().collect(),
            HfLayout::Same | HfLayout::RopePermuted { .. } => self.shape.clone(),
        }
    }

    /// Values of a Hugging Face file in GGUF's order.
    ///
    /// # Panics
    /// When the number of values is not that of the shape.
    pub fn to_gguf_layout<T: Copy>(&self, values: Vec<T>) -> Vec<T> {
        self.assert_len(&values);
        match self.hf_layout {
            HfLayout::Same => values,
            // [in, out] -> [out, in]
            HfLayout::Transposed => transpose(&values, self.shape[1], self.shape[0]),
            HfLayout::RopePermuted { n_head } => {
                let head_dim = self.shape[0] / n_head;
                permute_rows(&values, self.shape[0], |row| {
                    halves_from_neighbours(row, head_dim)
                })
            }
        }
    }

    /// Values of a GGUF file in Hugging Face's order: the inverse of [`Self::to_gguf_layout`].
    ///
    /// # Panics
    /// When the number of values is not that of the shape.
    pub fn to_hf_layout<T: Copy>(&self, values: Vec<T>) -> Vec<T> {
        self.assert_len(&values);
        match self.hf_layout {
            HfLayout::Same => values,
            // [out, in] -> [in, out]
            HfLayout::Transposed => transpose(&values, self.shape[0], self.shape[1]),
            HfLayout::RopePermuted { n_head } => {
                let head_dim = self.shape[0] / n_head;
                permute_rows(&values, self.shape[0], |row| {
                    neighbours_from_halves(row, head_dim)
                })
            }
        }
    }

    fn assert_len<T>(&self, values: &[T]) {
        let n = self.shape.iter().product::<usize>();
        assert_eq!(values.len(), n, "values of `{}`", self.gguf);
    }
}

/// `[n_rows, n_cols]` -> `[n_cols, n_rows]`
fn transpose<T: Copy>(values: &[T], n_rows: usize, n_cols: usize) -> Vec<T> {
    let columns = (0..n_cols).flat_map(|col| (0..n_rows).map(move |row| row * n_cols + col));
    columns.map(|i| values[i]).collect()
}

/// Row `r` of the result is row `source(r)` of `values`.
fn permute_rows<T: Copy>(values: &[T], n_rows: usize, source: impl Fn(usize) -> usize) -> Vec<T> {
    let n_cols = values.len() / n_rows;
    let rows = (0..n_rows).map(source);
    rows.flat_map(|row| &values[row * n_cols..(row + 1) * n_cols])
        .copied()
        .collect()
}

/// Where GGUF's row stands in Hugging Face's order: pairs are neighbours here, and half a head apart there.
fn halves_from_neighbours(row: usize, head_dim: usize) -> usize {
    let (head, i) = (row / head_dim, row % head_dim);
    head * head_dim + (i % 2) * (head_dim / 2) + i / 2
}

/// Where Hugging Face's row stands in GGUF's order.
fn neighbours_from_halves(row: usize, head_dim: usize) -> usize {
    let (head, i) = (row / head_dim, row % head_dim);
    let half = head_dim / 2;
    head * head_dim + 2 * (i % half) + i / half
}
