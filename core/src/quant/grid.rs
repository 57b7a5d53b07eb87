//! One block in two steps, for whoever chooses its integers himself: scales by [`super::Method::Search`], then integers.

use super::{
    BlockQ4_0, BlockQ4_1, BlockQ4K, BlockQ5_0, BlockQ5_1, BlockQ5K, BlockQ6K, BlockQ8_0, DType,
    blocks::Block, k_blocks::SUPER_LEN, search,
};

/// A block's scales, as the values that its integers stand for: `w = step * q + offset`.
#[derive(Debug, Clone)]
pub struct Grid {
    dtype: DType,
    bytes: Vec<u8>,
    step: [f32; SUPER_LEN],
    /// 0 where the step is.
    inverse: [f32; SUPER_LEN],
    offset: [f32; SUPER_LEN],
    lo: f32,
    hi: f32,
}

/// Runs `$body` with `$B` standing for the block of a quantised type.
macro_rules! with_block {
    ($dtype:expr, $B:ident, $body:expr) => {
        match $dtype {
            DType::Q8_0 => with_block!(@ $B, BlockQ8_0, $body),
            DType::Q4_0 => with_block!(@ $B, BlockQ4_0, $body),
            DType::Q4_1 => with_block!(@ $B, BlockQ4_1, $body),
            DType::Q5_0 => with_block!(@ $B, BlockQ5_0, $body),
            DType::Q5_1 => with_block!(@ $B, BlockQ5_1, $body),
            DType::Q4K => with_block!(@ $B, BlockQ4K, $body),
            DType::Q5K => with_block!(@ $B, BlockQ5K, $body),
            DType::Q6K => with_block!(@ $B, BlockQ6K, $body),
            DType::F32 | DType::F16 | DType::BF16 => panic!("{} has no blocks", $dtype),
        }
    };
    (@ $B:ident, $block:ty, $body:expr) => {{
        type $B = $block;
        $body
    }};
}

impl Grid {
    /// For blocks of a quantised type.
    ///
    /// # Panics
    /// When `dtype` is a float type.
    pub fn new(dtype: DType) -> Self {
        let (lo, hi) = with_block!(dtype, B, B::INTEGERS);
        Self {
            dtype,
            bytes: Vec::with_capacity(dtype.block_bytes()),
            step: [0.0; SUPER_LEN],
            inverse: [0.0; SUPER_LEN],
            offset: [0.0; SUPER_LEN],
            lo: f32::from(lo),
            hi: f32::from(hi),
        }
    }

    /// Takes the scales for which `Σ weights (x - x̂)²` is smallest when each element is rounded by itself. [block], [block]
    ///
    /// # Panics
    /// When the lengths are not the type's block.
    pub fn fit(&mut self, x: &[f32], weights: &[f32]) {
        let len = self.dtype.block_len();
        assert_eq!((x.len(), weights.len()), (len, len), "one block");
        self.bytes.clear();
        search::append_row(self.dtype, x, weights, &mut self.bytes);
        let (step, offset) = (&mut self.step[..len], &mut self.offset[..len]);
        with_block!(self.dtype, B, {
            bytemuck::from_bytes::<B>(&self.bytes).grid(step, offset);
        });
        for (inverse, step) in self.inverse.iter_mut().zip(step) {
            *inverse = search::inverse(*step);
        }
    }

    /// The integer for element `i` that is nearest to `x`.
    #[inline]
    pub fn nearest(&self, i: usize, x: f32) -> i8 {
        let q = ((x - self.offset[i]) * self.inverse[i]).round_ties_even();
        q.max(self.lo).min(self.hi) as i8
    }

    /// What integer `q` of element `i` stands for.
    #[inline]
    pub fn value(&self, i: usize, q: i8) -> f32 {
        self.step[i] * f32::from(q) + self.offset[i]
    }

    /// The block with these integers, as it stands in a file. [block]
    ///
    /// # Panics
    /// When there is another number of integers than the block has, or nothing was fitted.
    pub fn block(&mut self, q: &[i8]) -> &[u8] {
        assert_eq!(
            q.len(),
            self.dtype.block_len(),
            "an integer for each element"
        );
        with_block!(self.dtype, B, {
            bytemuck::from_bytes_mut::<B>(&mut self.bytes).set_integers(q);
        });
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::dequantize;
    use proptest::prelude::*;

    proptest! {
        /// Rounded by itself, each element is what the search makes of it; any integers come back as they were set.
        #[test]
        fn a_block_in_two_steps_is_the_block(
            x in proptest::collection::vec(-3.0_f32..3.0, SUPER_LEN),
            seed in 0_u32..1000,
        ) {
            for dtype in DType::ALL.into_iter().filter(|dtype| dtype.is_quantized()) {
                let len = dtype.block_len();
                let (x, weights) = (&x[..len], vec![1.0; len]);
                let mut grid = Grid::new(dtype);
                grid.fit(x, &weights);
                let mut whole = Vec::new();
                search::append_row(dtype, x, &weights, &mut whole);
                let nearest: Vec<i8> = (0..len).map(|i| grid.nearest(i, x[i])).collect();
                let mut values = vec![0.0; len];
                dequantize(dtype, grid.block(&nearest), &mut values);
                let mut expected = vec![0.0; len];
                dequantize(dtype, &whole, &mut expected);
                for i in 0..len {
                    let (error, of_search) = ((values[i] - x[i]).abs(), (expected[i] - x[i]).abs());
                    prop_assert!(error <= of_search * 1.0001 + 1e-6, "{dtype} {i}");
                }
                let (lo, hi) = (grid.lo as i64, grid.hi as i64);
                let any = |i: usize| {
                    lo + (i as i64 * 7919 + i64::from(seed) * 104_729) % (hi - lo + 1)
                };
                let any: Vec<i8> = (0..len).map(|i| any(i) as i8).collect();
                dequantize(dtype, grid.block(&any), &mut values);
                for i in 0..len {
                    // Equal but for the sign of 0.
                    let expected = grid.value(i, any[i]);
                    prop_assert!(values[i].total_cmp(&expected).is_eq() || values[i] + expected == 0.0, "{} {}", dtype, i);
                }
            }
        }
    }
}
