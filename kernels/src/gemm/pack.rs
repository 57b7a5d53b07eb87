//! Operands, and how they become panels.

#[cfg(target_arch = "x86_64")]
use super::{Isa, Precision};
use super::{Pair, UNROUNDED, tile::pairs, with_buffer};
use std::ops::Range;

/// One side of a product: a matrix of lanes (rows of A, columns of B) by depth.
pub trait Operand: Sync {
    /// Writes the values of `lanes` at `depth` as a panel: for each p of `depth` `width` values, those of the lanes, then 0.
    fn pack(&self, lanes: Range<usize>, depth: Range<usize>, width: usize, panel: &mut [f32]);

    /// The same rounded to bf16, two depths in a value; the last has 0 in its high half when their number is odd.
    fn pack_pairs(
        &self,
        lanes: Range<usize>,
        depth: Range<usize>,
        width: usize,
        panel: &mut [Pair],
    ) {
        round(self, lanes, depth, width, panel);
    }
}

/// [`Operand::pack_pairs`] of any operand.
fn round(
    operand: &(impl Operand + ?Sized),
    lanes: Range<usize>,
    depth: Range<usize>,
    width: usize,
    panel: &mut [Pair],
) {
    with_buffer(&UNROUNDED, depth.len() * width, |values: &mut [f32]| {
        operand.pack(lanes, depth, width, values);
        for (values, out) in values.chunks(2 * width).zip(panel.chunks_mut(width)) {
            let (low, high) = values.split_at(width);
            pairs(low, high, out);
        }
    });
}

/// Two operands with the same lanes, one behind the other in depth: with them a product is the sum of two,
/// `[A1 A2] · [B1; B2] = A1 B1 + A2 B2`, without a pass over C for the second.
#[derive(Debug)]
pub struct Behind<'a, A, B> {
    first: &'a A,
    /// Depth of the first.
    depth: usize,
    second: &'a B,
}

impl<'a, A: Operand, B: Operand> Behind<'a, A, B> {
    /// `second` behind the `depth` of `first`.
    pub fn new(first: &'a A, depth: usize, second: &'a B) -> Self {
        Self {
            first,
            depth,
            second,
        }
    }

    /// The depths of each of the two.
    fn parts(&self, depth: Range<usize>) -> (Range<usize>, Range<usize>) {
        let end = self.depth;
        (
            depth.start.min(end)..depth.end.min(end),
            depth.start.max(end) - end..depth.end.max(end) - end,
        )
    }
}

impl<A: Operand, B: Operand> Operand for Behind<'_, A, B> {
    fn pack(&self, lanes: Range<usize>, depth: Range<usize>, width: usize, panel: &mut [f32]) {
        let (first, second) = self.parts(depth);
        let (of_first, of_second) = panel.split_at_mut(first.len() * width);
        self.first.pack(lanes.clone(), first, width, of_first);
        self.second.pack(lanes, second, width, of_second);
    }

    fn pack_pairs(
        &self,
        lanes: Range<usize>,
        depth: Range<usize>,
        width: usize,
        panel: &mut [Pair],
    ) {
        let (first, second) = self.parts(depth.clone());
        if first.len() % 2 == 1 {
            return round(self, lanes, depth, width, panel);
        }
        let (of_first, of_second) = panel.split_at_mut(first.len() / 2 * width);
        self.first.pack_pairs(lanes.clone(), first, width, of_first);
        self.second.pack_pairs(lanes, second, width, of_second);
    }
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
                copy(&self.data[from..from + n], out);
            }
            return;
        }
        if n < width {
            panel.fill(0.0);
        }
        for (group, out) in panel.chunks_mut(TOGETHER * width).enumerate() {
            let from = depth.start + group * TOGETHER;
            #[cfg(target_arch = "x86_64")]
            if out.len() == TOGETHER * width && Isa::best() == Isa::Avx512 {
                for first in (0..n).step_by(16) {
                    let rows = &self.data[(lanes.start + first) * self.lane + from..];
                    let n_rows = (n - first).min(16);
                    // SAFETY: the CPU has AVX-512.
                    unsafe { x86::transpose(rows, self.lane, n_rows, &mut out[first..], width) };
                }
                continue;
            }
            let len = out.len() / width;
            for (i, lane) in lanes.clone().enumerate() {
                let values = &self.data[lane * self.lane + from..][..len];
                for (p, value) in values.iter().enumerate() {
                    out[p * width + i] = *value;
                }
            }
        }
    }

    fn pack_pairs(
        &self,
        lanes: Range<usize>,
        depth: Range<usize>,
        width: usize,
        panel: &mut [Pair],
    ) {
        let n = lanes.len();
        if n < width {
            panel.fill(Pair(0));
        }
        #[cfg(target_arch = "x86_64")]
        let in_vectors = Precision::Bf16.is_native();
        #[cfg(not(target_arch = "x86_64"))]
        let in_vectors = false;
        for (group, out) in panel.chunks_mut(TOGETHER * width).enumerate() {
            let from = depth.start + group * 2 * TOGETHER;
            let len = (depth.end - from).min(2 * TOGETHER);
            #[cfg(target_arch = "x86_64")]
            if in_vectors && self.depth == 1 && len == 2 * TOGETHER {
                for first in (0..n).step_by(16) {
                    let rows = &self.data[(lanes.start + first) * self.lane + from..];
                    let n_rows = (n - first).min(16);
                    // SAFETY: the CPU has the instructions.
                    unsafe {
                        x86::transpose_pairs(rows, self.lane, n_rows, &mut out[first..], width);
                    }
                }
                continue;
            }
            for (pair, out) in out.chunks_mut(width).enumerate() {
                let p = from + 2 * pair;
                let has_high = p + 1 < from + len;
                let at = lanes.start * self.lane + p * self.depth;
                if in_vectors && self.lane == 1 {
                    let high = if has_high {
                        &self.data[at + self.depth..][..n]
                    } else {
                        &[]
                    };
                    pairs(&self.data[at..][..n], high, &mut out[..n]);
                    continue;
                }
                for (i, out) in out[..n].iter_mut().enumerate() {
                    let at = at + i * self.lane;
                    let high = if has_high {
                        &self.data[at + self.depth..][..1]
                    } else {
                        &[]
                    };
                    pairs(&self.data[at..][..1], high, std::slice::from_mut(out));
                }
            }
        }
    }
}

/// Copies the lanes of one depth, and fills up with 0. Whole vectors without a call, where the length is a tile's.
fn copy(values: &[f32], out: &mut [f32]) {
    if let (Some(values), Some(out)) = (values.as_array::<32>(), out.as_mut_array::<32>()) {
        *out = *values;
    } else if let (Some(values), Some(out)) = (values.as_array::<14>(), out.as_mut_array::<14>()) {
        *out = *values;
    } else {
        out[..values.len()].copy_from_slice(values);
        out[values.len()..].fill(0.0);
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Pair;
    use std::arch::x86_64::{
        __m512, __m512bh, _mm512_castpd_ps, _mm512_castps_pd, _mm512_cvtne2ps_pbh, _mm512_loadu_ps,
        _mm512_mask_storeu_ps, _mm512_setzero_ps, _mm512_shuffle_f32x4, _mm512_unpackhi_pd,
        _mm512_unpackhi_ps, _mm512_unpacklo_pd, _mm512_unpacklo_ps,
    };

    /// Transposes the first 16 values of `n_rows` rows (at most 16) that are `stride` apart into 16 rows of `n_rows` that
    /// are `width` apart.
    #[target_feature(enable = "avx512f")]
    pub(super) fn transpose(
        rows: &[f32],
        stride: usize,
        n_rows: usize,
        out: &mut [f32],
        width: usize,
    ) {
        assert!(
            (1..=16).contains(&n_rows)
                && rows.len() >= (n_rows - 1) * stride + 16
                && out.len() >= 15 * width + n_rows
        );
        let mut r: [__m512; 16] = [_mm512_setzero_ps(); 16];
        for (i, row) in r.iter_mut().enumerate().take(n_rows) {
            // SAFETY: a row has 16 values.
            *row = unsafe { _mm512_loadu_ps(rows.as_ptr().add(i * stride)) };
        }
        // SAFETY: the lengths were asserted.
        unsafe { store_columns(&r, n_rows, out.as_mut_ptr(), width) };
    }

    /// Transposes the first 32 values of `n_rows` rows (at most 16) that are `stride` apart, rounded to bf16, into 16 rows
    /// of `n_rows` pairs that are `width` apart.
    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(super) fn transpose_pairs(
        rows: &[f32],
        stride: usize,
        n_rows: usize,
        out: &mut [Pair],
        width: usize,
    ) {
        assert!(
            (1..=16).contains(&n_rows)
                && rows.len() >= (n_rows - 1) * stride + 32
                && out.len() >= 15 * width + n_rows
        );
        let mut r: [__m512; 16] = [_mm512_setzero_ps(); 16];
        for (i, row) in r.iter_mut().enumerate().take(n_rows) {
            // SAFETY: a row has 32 values; every bit pattern is a vector.
            *row = unsafe {
                let at = rows.as_ptr().add(i * stride);
                let (low, high) = (_mm512_loadu_ps(at), _mm512_loadu_ps(at.add(16)));
                std::mem::transmute::<__m512bh, __m512>(_mm512_cvtne2ps_pbh(high, low))
            };
        }
        // SAFETY: the lengths were asserted; a pair has 32 bits, which are only moved.
        unsafe { store_columns(&r, n_rows, out.as_mut_ptr().cast(), width) };
    }

    /// Writes the columns of 16 rows.
    ///
    /// # Safety
    /// `out` has 15 * width + `n_rows` values, and `n_rows` is 1 to 16.
    #[target_feature(enable = "avx512f")]
    #[inline]
    unsafe fn store_columns(r: &[__m512; 16], n_rows: usize, out: *mut f32, width: usize) {
        // Pairs of rows, then fours of rows: u[4 g + j] has column 4 l + j of rows 4 g to 4 g + 3 in its quarter l.
        let mut u = *r;
        for g in 0..4 {
            let [a, b, c, d] = [r[4 * g], r[4 * g + 1], r[4 * g + 2], r[4 * g + 3]];
            let (ab, cd) = (_mm512_unpacklo_ps(a, b), _mm512_unpacklo_ps(c, d));
            let (ab, cd) = (_mm512_castps_pd(ab), _mm512_castps_pd(cd));
            u[4 * g] = _mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd));
            u[4 * g + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd));
            let (ab, cd) = (_mm512_unpackhi_ps(a, b), _mm512_unpackhi_ps(c, d));
            let (ab, cd) = (_mm512_castps_pd(ab), _mm512_castps_pd(cd));
            u[4 * g + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd));
            u[4 * g + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd));
        }
        let mask = (0xFFFF_u32 >> (16 - n_rows)) as u16;
        for j in 0..4 {
            let low = _mm512_shuffle_f32x4::<0x44>(u[j], u[4 + j]);
            let high = _mm512_shuffle_f32x4::<0xEE>(u[j], u[4 + j]);
            let low2 = _mm512_shuffle_f32x4::<0x44>(u[8 + j], u[12 + j]);
            let high2 = _mm512_shuffle_f32x4::<0xEE>(u[8 + j], u[12 + j]);
            let columns = [
                _mm512_shuffle_f32x4::<0x88>(low, low2),
                _mm512_shuffle_f32x4::<0xDD>(low, low2),
                _mm512_shuffle_f32x4::<0x88>(high, high2),
                _mm512_shuffle_f32x4::<0xDD>(high, high2),
            ];
            for (l, column) in columns.into_iter().enumerate() {
                // SAFETY: the mask keeps to the `n_rows` values that `out` has from there on.
                unsafe {
                    let at = out.add((4 * l + j) * width);
                    _mm512_mask_storeu_ps(at, mask, column);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operands_behind_each_other_are_those_of_the_joined_matrix() {
        let (rows, k1, k2) = (20, 37, 24);
        let joined: Vec<f32> = (0..rows * (k1 + k2)).map(|i| i as f32).collect();
        let (mut first, mut second) = (Vec::new(), Vec::new());
        for row in joined.chunks(k1 + k2) {
            first.extend_from_slice(&row[..k1]);
            second.extend_from_slice(&row[k1..]);
        }
        let (first, second) = (Strided::rows(&first, k1), Strided::rows(&second, k2));
        let joined = Strided::rows(&joined, k1 + k2);
        let both = Behind::new(&first, k1, &second);
        for depth in [0..61, 0..16, 36..40, 35..60, 37..61, 40..48, 5..37] {
            let size = 16 * depth.len();
            let (mut got, mut expected) = (vec![-1.0; size], vec![-2.0; size]);
            both.pack(1..15, depth.clone(), 16, &mut got);
            joined.pack(1..15, depth.clone(), 16, &mut expected);
            assert_eq!(got, expected, "{depth:?}");
            let size = 16 * depth.len().div_ceil(2);
            let (mut got, mut expected) = (vec![Pair(1); size], vec![Pair(2); size]);
            both.pack_pairs(1..15, depth.clone(), 16, &mut got);
            joined.pack_pairs(1..15, depth.clone(), 16, &mut expected);
            assert_eq!(got, expected, "{depth:?}");
        }
    }

    #[test]
    fn panels_hold_each_lane_at_each_depth_and_then_zeros() {
        let (rows, stride) = (70, 61);
        let data: Vec<f32> = (0..rows * stride).map(|i| i as f32 + 1.0).collect();
        for width in [4, 6, 14, 16, 28, 32] {
            for n in 1..=width {
                for depth in [0..16, 3..51, 5..6, 7..40] {
                    let lanes = 2..2 + n;
                    let mut panel = vec![-1.0; width * depth.len()];
                    Strided::rows(&data, stride).pack(
                        lanes.clone(),
                        depth.clone(),
                        width,
                        &mut panel,
                    );
                    let mut turned = vec![-1.0; width * depth.len()];
                    Strided::columns(&data, stride).pack(lanes, depth.clone(), width, &mut turned);
                    for (p, row) in panel.chunks(width).enumerate() {
                        for (i, &value) in row.iter().enumerate() {
                            let at = (2 + i) * stride + depth.start + p;
                            let expected = if i < n { data[at] } else { 0.0 };
                            assert_eq!(
                                value.to_bits(),
                                expected.to_bits(),
                                "{width} {n} {depth:?}"
                            );
                            let at = (depth.start + p) * stride + 2 + i;
                            let expected = if i < n { data[at] } else { 0.0 };
                            assert_eq!(turned[p * width + i].to_bits(), expected.to_bits());
                        }
                    }
                }
            }
        }
    }
}
