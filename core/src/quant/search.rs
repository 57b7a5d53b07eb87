//! Quantisation that minimises `Σ w (x - x̂)²` in each block.
//!
//! A pass ([`symmetric_pass`], [`affine_pass`]) rounds a block under a given scale, measures the true error, and
//! collects the sums from which the least-squares scale for these integers follows. Of several starting scales the one
//! whose refit promises most is refined (with a minimum, each of them): a few passes alternate rounding and refitting, every scale as the file will hold
//! it (f16). The best that was measured wins, and ggml's reference is among what is measured, so the result is never worse
//! than it.
//!
//! Sums run in eight lanes in a fixed order without fused operations: the same bits on every machine.

#![allow(
    clippy::inline_always,
    reason = "inlined into the entry that is compiled for AVX2"
)]

use super::{
    BlockQ4K, BlockQ5K, BlockQ6K, DType,
    blocks::{
        BLOCK_LEN, Block, BlockQ4_0, BlockQ4_1, BlockQ5_0, BlockQ5_1, BlockQ8_0, half, largest,
        pack_nibbles,
    },
    k_blocks::SUPER_LEN,
    k_search,
};
use half::f16;

/// Lanes of a sum.
const LANES: usize = 8;
/// Refits of the best start after its first.
const REFITS: usize = 3;
/// Passes over each start where there is a minimum.
const AFFINE_PASSES: usize = 3;

/// Integers from `lo` to `hi`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Range {
    pub(super) lo: f32,
    pub(super) hi: f32,
}

/// What a pass over a block without minimum found.
#[derive(Debug, Clone, Copy)]
pub(super) struct SymmetricSums {
    /// `Σ w (x - d q)²`
    pub(super) error: f32,
    /// `Σ w x q`
    pub(super) xq: f32,
    /// `Σ w q²`
    pub(super) qq: f32,
}

/// What a pass over a block with a minimum found.
#[derive(Debug, Clone, Copy)]
pub(super) struct AffineSums {
    /// `Σ w (x - d q - m)²`
    pub(super) error: f32,
    /// `Σ w q`
    pub(super) q: f32,
    /// `Σ w x q`
    pub(super) xq: f32,
    /// `Σ w q²`
    pub(super) qq: f32,
}

/// The nearest integer for `|x| < 2^22`, ties to even, without a call.
#[inline(always)]
fn round(x: f32) -> f32 {
    const MAGIC: f32 = 1.5 * (1 << 23) as f32;
    (x + MAGIC) - MAGIC
}

#[inline(always)]
fn clamp(x: f32, range: Range) -> f32 {
    let x = if x > range.lo { x } else { range.lo };
    if x < range.hi { x } else { range.hi }
}

#[inline(always)]
pub(super) fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

#[inline(always)]
fn sum(lanes: [f32; LANES]) -> f32 {
    let four: [f32; 4] = std::array::from_fn(|i| lanes[i] + lanes[i + 4]);
    (four[0] + four[2]) + (four[1] + four[3])
}

/// The integer of `x` under the inverse scale.
#[inline(always)]
pub(super) fn quantized(x: f32, inverse: f32, range: Range) -> f32 {
    round(clamp(x * inverse, range))
}

#[inline(always)]
pub(super) fn symmetric_pass<const N: usize>(
    x: &[f32; N],
    w: &[f32; N],
    d: f32,
    range: Range,
) -> SymmetricSums {
    let inverse = inverse(d);
    let (mut error, mut xq, mut qq) = ([0.0; LANES], [0.0; LANES], [0.0; LANES]);
    for (x, w) in x
        .as_chunks::<LANES>()
        .0
        .iter()
        .zip(w.as_chunks::<LANES>().0)
    {
        for i in 0..LANES {
            let q = quantized(x[i], inverse, range);
            let rest = x[i] - d * q;
            error[i] += w[i] * rest * rest;
            xq[i] += w[i] * x[i] * q;
            qq[i] += w[i] * q * q;
        }
    }
    SymmetricSums {
        error: sum(error),
        xq: sum(xq),
        qq: sum(qq),
    }
}

/// With integers from 0 to `n`.
#[inline(always)]
pub(super) fn affine_pass<const N: usize>(
    x: &[f32; N],
    w: &[f32; N],
    d: f32,
    m: f32,
    n: f32,
) -> AffineSums {
    let inverse = inverse(d);
    let range = Range { lo: 0.0, hi: n };
    let mut error = [0.0; LANES];
    let (mut sq, mut xq, mut qq) = ([0.0; LANES], [0.0; LANES], [0.0; LANES]);
    for (x, w) in x
        .as_chunks::<LANES>()
        .0
        .iter()
        .zip(w.as_chunks::<LANES>().0)
    {
        for i in 0..LANES {
            let q = quantized(x[i] - m, inverse, range);
            let rest = x[i] - d * q - m;
            error[i] += w[i] * rest * rest;
            sq[i] += w[i] * q;
            xq[i] += w[i] * x[i] * q;
            qq[i] += w[i] * q * q;
        }
    }
    AffineSums {
        error: sum(error),
        q: sum(sq),
        xq: sum(xq),
        qq: sum(qq),
    }
}

/// Weighted sums of a block that no scale changes: `(Σ w, Σ w x)`.
#[inline(always)]
pub(super) fn moments<const N: usize>(x: &[f32; N], w: &[f32; N]) -> (f32, f32) {
    let (mut sw, mut sx) = ([0.0; LANES], [0.0; LANES]);
    for (x, w) in x
        .as_chunks::<LANES>()
        .0
        .iter()
        .zip(w.as_chunks::<LANES>().0)
    {
        for i in 0..LANES {
            sw[i] += w[i];
            sx[i] += w[i] * x[i];
        }
    }
    (sum(sw), sum(sx))
}

/// Where a search for a scale starts: `n` candidates, under which the extreme (or the span from minimum to maximum)
/// becomes `from` to `to` steps.
#[derive(Debug, Clone, Copy)]
pub(super) struct Starts {
    pub(super) from: f32,
    pub(super) to: f32,
    pub(super) n: usize,
}

impl Starts {
    #[inline(always)]
    fn steps(self) -> impl Iterator<Item = f32> {
        let step = (self.to - self.from) / (self.n - 1) as f32;
        (0..self.n).map(move |i| self.from + step * i as f32)
    }
}

/// The scale of the smallest error, which `snap` rounds as the file does, beginning with `first`.
#[inline(always)]
pub(super) fn best_scale<const N: usize>(
    x: &[f32; N],
    w: &[f32; N],
    range: Range,
    starts: Starts,
    first: f32,
    snap: impl Fn(f32) -> f32,
) -> f32 {
    let extreme = largest(x);
    let sums = symmetric_pass(x, w, first, range);
    let mut best = (sums.error, first);
    if extreme == 0.0 {
        return first;
    }
    // What a refit takes off the error is `(Σ w x q)² / Σ w q²`.
    let promise = |sums: &SymmetricSums| sums.xq * sums.xq * inverse(sums.qq);
    let mut start = (promise(&sums), sums);
    // The extreme goes to the side that has one step more room, or to the other; they differ where there is one.
    let room = -range.lo - range.hi;
    let signs: &[f32] = if room == 0.0 { &[-1.0] } else { &[-1.0, 1.0] };
    for sign in signs {
        let less = if *sign > 0.0 { room } else { 0.0 };
        for t in starts.steps() {
            let sums = symmetric_pass(x, w, sign * extreme / (t - less), range);
            if promise(&sums) > start.0 {
                start = (promise(&sums), sums);
            }
        }
    }
    let mut d = snap(start.1.xq * inverse(start.1.qq));
    for _ in 0..=REFITS {
        let sums = symmetric_pass(x, w, d, range);
        if sums.error < best.0 {
            best = (sums.error, d);
        }
        let next = snap(sums.xq * inverse(sums.qq));
        if next.to_bits() == d.to_bits() {
            break;
        }
        d = next;
    }
    best.1
}

/// Scale and minimum of the smallest error, which `snap` rounds as the file does, beginning with `first`.
#[inline(always)]
pub(super) fn best_affine<const N: usize>(
    x: &[f32; N],
    w: &[f32; N],
    n: f32,
    starts: Starts,
    first: (f32, f32),
    snap: impl Fn(f32, f32) -> (f32, f32),
) -> (f32, f32) {
    let min = x.iter().fold(f32::MAX, |m, &x| if x < m { x } else { m });
    let max = x.iter().fold(f32::MIN, |m, &x| if x > m { x } else { m });
    let (sw, sx) = moments(x, w);
    let mut best = (affine_pass(x, w, first.0, first.1, n).error, first);
    // Errors of different starts are too close to tell before they are refitted.
    for t in starts.steps() {
        // Half of what is cut off is cut off on each side.
        let d = (max - min) / t;
        let mut pair = snap(d, min + (max - min - d * n) * 0.5);
        for _ in 0..AFFINE_PASSES {
            let sums = affine_pass(x, w, pair.0, pair.1, n);
            if sums.error < best.0 {
                best = (sums.error, pair);
            }
            let next = snap_refit(refit(&sums, sw, sx), &sums, &snap);
            if next == pair {
                break;
            }
            pair = next;
        }
    }
    best.1
}

/// A minimum that `snap` moved asks for another scale.
#[inline(always)]
fn snap_refit(
    (d, m): (f32, f32),
    sums: &AffineSums,
    snap: impl Fn(f32, f32) -> (f32, f32),
) -> (f32, f32) {
    let snapped = snap(d, m);
    if (snapped.1 - m).abs() <= d.abs() * 1e-3 {
        return snapped;
    }
    snap((sums.xq - snapped.1 * sums.q) * inverse(sums.qq), snapped.1)
}

/// The least-squares scale and minimum for the integers of a pass.
#[inline(always)]
fn refit(sums: &AffineSums, sw: f32, sx: f32) -> (f32, f32) {
    let det = sw * sums.qq - sums.q * sums.q;
    if det <= 0.0 {
        return (0.0, sx * inverse(sw));
    }
    (
        (sw * sums.xq - sx * sums.q) / det,
        (sums.qq * sx - sums.q * sums.xq) / det,
    )
}

#[inline(always)]
fn to_f16(x: f32) -> f32 {
    f16::from_f32(x).to_f32()
}

/// Appends a row of a quantised type to `out`. `w` is as long as `row`.
pub(super) fn append_row(dtype: DType, row: &[f32], w: &[f32], out: &mut Vec<u8>) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        // SAFETY: the machine has AVX2.
        return unsafe { append_row_avx2(dtype, row, w, out) };
    }
    append_row_here(dtype, row, w, out);
}

/// The same code with wider vectors; no operation differs.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn append_row_avx2(dtype: DType, row: &[f32], w: &[f32], out: &mut Vec<u8>) {
    append_row_here(dtype, row, w, out);
}

#[inline(always)]
fn append_row_here(dtype: DType, row: &[f32], w: &[f32], out: &mut Vec<u8>) {
    match dtype {
        DType::Q8_0 => each_block(row, w, out, search_q8_0),
        DType::Q4_0 => each_block(row, w, out, search_q4_0),
        DType::Q4_1 => each_block(row, w, out, search_q4_1),
        DType::Q5_0 => each_block(row, w, out, search_q5_0),
        DType::Q5_1 => each_block(row, w, out, search_q5_1),
        DType::Q4K => each_block::<_, SUPER_LEN>(row, w, out, |x, w| {
            BlockQ4K::pack(&k_search::affine_search(x, w, 15))
        }),
        DType::Q5K => each_block::<_, SUPER_LEN>(row, w, out, |x, w| {
            BlockQ5K::pack(&k_search::affine_search(x, w, 31))
        }),
        DType::Q6K => each_block::<_, SUPER_LEN>(row, w, out, |x, w| {
            BlockQ6K::pack(&k_search::symmetric_search(x, w))
        }),
        DType::F32 | DType::F16 | DType::BF16 => super::quantize(dtype, row, out),
    }
}

#[inline(always)]
fn each_block<B: Block, const N: usize>(
    row: &[f32],
    w: &[f32],
    out: &mut Vec<u8>,
    search: impl Fn(&[f32; N], &[f32; N]) -> B,
) {
    for (x, w) in row.as_chunks().0.iter().zip(w.as_chunks().0) {
        out.extend_from_slice(bytemuck::bytes_of(&search(x, w)));
    }
}

type X = [f32; BLOCK_LEN];

#[inline(always)]
fn search_q8_0(x: &X, w: &X) -> BlockQ8_0 {
    let nearest = BlockQ8_0::quantize(x);
    let range = Range {
        lo: -127.0,
        hi: 127.0,
    };
    let starts = Starts {
        from: 122.0,
        to: 127.0,
        n: 6,
    };
    let d = best_scale(x, w, range, starts, half(nearest.d), to_f16);
    let inverse = inverse(d);
    BlockQ8_0 {
        d: f16::from_f32(d).to_le_bytes(),
        qs: x.map(|x| quantized(x, inverse, range) as i8),
    }
}

#[inline(always)]
fn search_q4_0(x: &X, w: &X) -> BlockQ4_0 {
    let nearest = BlockQ4_0::quantize(x);
    let range = Range { lo: -8.0, hi: 7.0 };
    let starts = Starts {
        from: 6.0,
        to: 9.0,
        n: 13,
    };
    let d = best_scale(x, w, range, starts, half(nearest.d), to_f16);
    let inverse = inverse(d);
    BlockQ4_0 {
        d: f16::from_f32(d).to_le_bytes(),
        qs: pack_nibbles(|i| (quantized(x[i], inverse, range) + 8.0) as u8),
    }
}

#[inline(always)]
fn search_q5_0(x: &X, w: &X) -> BlockQ5_0 {
    let nearest = BlockQ5_0::quantize(x);
    let range = Range {
        lo: -16.0,
        hi: 15.0,
    };
    let starts = Starts {
        from: 13.5,
        to: 17.0,
        n: 10,
    };
    let d = best_scale(x, w, range, starts, half(nearest.d), to_f16);
    let inverse = inverse(d);
    BlockQ5_0::pack(f16::from_f32(d), |i| {
        (quantized(x[i], inverse, range) + 16.0) as u8
    })
}

#[inline(always)]
fn search_q4_1(x: &X, w: &X) -> BlockQ4_1 {
    let nearest = BlockQ4_1::quantize(x);
    let starts = Starts {
        from: 13.0,
        to: 17.5,
        n: 10,
    };
    let first = (half(nearest.d), half(nearest.m));
    let (d, m) = best_affine(x, w, 15.0, starts, first, |d, m| (to_f16(d), to_f16(m)));
    let q = affine_integers(x, d, m, 15.0);
    BlockQ4_1 {
        d: f16::from_f32(d).to_le_bytes(),
        m: f16::from_f32(m).to_le_bytes(),
        qs: pack_nibbles(|i| q[i]),
    }
}

#[inline(always)]
fn search_q5_1(x: &X, w: &X) -> BlockQ5_1 {
    let nearest = BlockQ5_1::quantize(x);
    let starts = Starts {
        from: 28.5,
        to: 33.0,
        n: 9,
    };
    let first = (half(nearest.d), half(nearest.m));
    let (d, m) = best_affine(x, w, 31.0, starts, first, |d, m| (to_f16(d), to_f16(m)));
    let q = affine_integers(x, d, m, 31.0);
    BlockQ5_1::pack(f16::from_f32(d), f16::from_f32(m), |i| q[i])
}

/// The integers of [`affine_pass`].
#[inline(always)]
pub(super) fn affine_integers<const N: usize>(x: &[f32; N], d: f32, m: f32, n: f32) -> [u8; N] {
    let inverse = inverse(d);
    let range = Range { lo: 0.0, hi: n };
    x.map(|x| quantized(x - m, inverse, range) as u8)
}
