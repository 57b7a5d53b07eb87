//! Operands, and how they become panels.

use std::ops::Range;

/// One side of a product: a matrix of lanes (rows of A, columns of B) by depth.
pub trait Operand: Sync {
    /// Writes the values of `lanes` at `depth` as a panel: for each p of `depth` `width` values, those of the lanes, then 0.
    fn pack(&self, lanes: Range<usize>, depth: Range<usize>, width: usize, panel: &mut [f32]);
}

/// A dense matrix: the value of lane i at depth p is `data[i * lane + p * depth]`.
#[derive(Debug, Clone, Copy)]
pub struct Strided<'a> {
    data: &'a [f32],
    lane: usize,
    depth: usize,
}

impl<'a> Strided<'a> {
    /// Lanes are rows of `data`, `stride` apart: A as it is, or B transposed.
    pub fn rows(data: &'a [f32], stride: usize) -> Self {
        Self {
            data,
            lane: stride,
            depth: 1,
        }
    }

    /// Lanes are columns of `data`, whose rows are `stride` apart: B as it is, or A transposed.
    pub fn columns(data: &'a [f32], stride: usize) -> Self {
        Self {
            data,
            lane: 1,
            depth: stride,
        }
    }
}

/// Depths that are transposed together, so that a line of the cache is read and written once.
const TOGETHER: usize = 16;

impl Operand for Strided<'_> {
    fn pack(&self, lanes: Range<usize>, depth: Range<usize>, width: usize, panel: &mut [f32]) {
        let n = lanes.len();
        if self.lane == 1 {
            for (p, out) in depth.zip(panel.chunks_exact_mut(width)) {
                let from = p * self.depth + lanes.start;
                out[..n].copy_from_slice(&self.data[from..from + n]);
                out[n..].fill(0.0);
            }
            return;
        }
        if n < width {
            panel.fill(0.0);
        }
        for (group, out) in panel.chunks_mut(TOGETHER * width).enumerate() {
            let from = depth.start + group * TOGETHER;
            let len = out.len() / width;
            for (i, lane) in lanes.clone().enumerate() {
                let values = &self.data[lane * self.lane + from..][..len];
                for (p, value) in values.iter().enumerate() {
                    out[p * width + i] = *value;
                }
            }
        }
    }
}
