//! The oracle: the definition of every kernel in plain Rust, as "The arithmetic" in ARCHITECTURE.md states it.

use super::{
    Isa,
    kernels::{Activations, BLOCK, Kernels, KvRows, QuantBlock, Scratch},
    math::{exp, gelu as gelu_of, silu, sum_lanes},
    weights::Matrix,
};
use crate::quant::{Block, BlockQ4K, BlockQ5K, BlockQ6K, DType, blocks, scale_and_min};
use fledgling_pool::Columns;
use half::{bf16, f16};
use std::ops::Range;

pub(crate) static KERNELS: Kernels = Kernels {
    isa: Isa::Scalar,
    quantize_row,
    matmul,
    rms_norm,
    layer_norm,
    rope,
    rope_halves,
    silu_mul,
    gelu,
    add,
    attend,
};

pub(crate) fn quantize_row(x: &[f32], out: &mut [QuantBlock]) {
    for (x, block) in x.chunks_exact(BLOCK).zip(out) {
        // The largest bit pattern is the largest |x|, and a NaN is larger than all.
        let amax = f32::from_bits(
            x.iter()
                .map(|x| x.to_bits() & 0x7fff_ffff)
                .fold(0, u32::max),
        );
        let Some(inverse) = block.scale_by(amax) else {
            continue;
        };
        for (q, x) in block.q.iter_mut().zip(x) {
            *q = (x * inverse).round_ties_even() as i16;
        }
        block.sum = block.q.iter().map(|&q| i32::from(q)).sum();
    }
}

pub(crate) fn matmul(
    w: &Matrix,
    rows: Range<usize>,
    x: &Activations,
    out: &mut Columns<'_>,
    _: &mut Scratch,
) {
    for t in 0..x.n_rows {
        for (y, r) in out.row_mut(t).iter_mut().zip(rows.clone()) {
            *y = dot(w, r, x, t);
        }
    }
}

/// `W[r] · x[t]`. [K], [K] -> 1
pub(crate) fn dot(w: &Matrix, r: usize, x: &Activations, t: usize) -> f32 {
    let row = w.row(r);
    match w.dtype {
        DType::F32 => dot_lanes(row, x.row(t), |b: [u8; 4]| f32::from_le_bytes(b)),
        DType::F16 => dot_lanes(row, x.row(t), |b: [u8; 2]| f16::from_le_bytes(b).to_f32()),
        DType::BF16 => dot_lanes(row, x.row(t), |b: [u8; 2]| bf16::from_le_bytes(b).to_f32()),
        DType::Q8_0 | DType::Q4_0 | DType::Q4_1 | DType::Q5_0 | DType::Q5_1 => {
            dot_blocks(w.dtype, row, x.quant_row(t))
        }
        DType::Q4K => dot_super_blocks(row, x.quant_row(t), BlockQ4K::part),
        DType::Q5K => dot_super_blocks(row, x.quant_row(t), BlockQ5K::part),
        DType::Q6K => dot_super_blocks(row, x.quant_row(t), BlockQ6K::part),
    }
}

/// Float weights of `N` bytes each, in 16 lanes (rule 2).
fn dot_lanes<const N: usize>(w: &[u8], x: &[f32], value: impl Fn([u8; N]) -> f32) -> f32 {
    let (w, _) = w.as_chunks::<N>();
    sum_lanes(x.len(), |i| value(w[i]) * x[i])
}

/// Quantised weights, block by block (rule 3).
fn dot_blocks(dtype: DType, w: &[u8], x: &[QuantBlock]) -> f32 {
    let half_at = |w: &[u8], i: usize| f16::from_le_bytes([w[i], w[i + 1]]).to_f32();
    let mut acc = 0.0;
    for (w, x) in w.chunks_exact(dtype.block_bytes()).zip(x) {
        let isum = match dtype {
            DType::Q8_0 => isum_bytes(&w[2..], &x.q),
            DType::Q4_0 => isum_nibbles(&w[2..], &x.q) - 8 * x.sum,
            DType::Q4_1 => isum_nibbles(&w[4..], &x.q),
            DType::Q5_0 => isum_nibbles(&w[6..], &x.q) + isum_fifths(&w[2..6], &x.q) - 16 * x.sum,
            _ => isum_nibbles(&w[8..], &x.q) + isum_fifths(&w[4..8], &x.q),
        };
        acc += isum as f32 * (half_at(w, 0) * x.scale);
        if matches!(dtype, DType::Q4_1 | DType::Q5_1) {
            acc += half_at(w, 2) * (x.scale * x.sum as f32);
        }
    }
    acc
}

/// Bytes are signed weights.
fn isum_bytes(w: &[u8], q: &[i16]) -> i32 {
    w.iter()
        .zip(q)
        .map(|(&w, &q)| i32::from(w as i8) * i32::from(q))
        .sum()
}

/// Low nibbles are elements 0..16 of a block, high nibbles 16..32.
fn isum_nibbles(w: &[u8], q: &[i16]) -> i32 {
    let (low, high) = q.split_at(BLOCK / 2);
    let products = w.iter().zip(low.iter().zip(high));
    products
        .map(|(&w, (&l, &h))| i32::from(w & 15) * i32::from(l) + i32::from(w >> 4) * i32::from(h))
        .sum()
}

/// Bit i is the fifth bit of element i.
fn isum_fifths(w: &[u8], q: &[i16]) -> i32 {
    let bit = |i: usize| i32::from(w[i / 8] >> (i % 8) & 1);
    let products = q.iter().enumerate().map(|(i, &q)| bit(i) * i32::from(q));
    16 * products.sum::<i32>()
}

/// 32 elements of a super-block as rule 3 reads them: `w = scale * q`, plus `min` where the type has one.
struct Part {
    q: [i16; BLOCK],
    scale: f32,
    min: Option<f32>,
}

/// Quantised weights in super-blocks of eight parts (rule 3).
fn dot_super_blocks<W: Block>(w: &[u8], x: &[QuantBlock], part: impl Fn(&W, usize) -> Part) -> f32 {
    let mut acc = 0.0;
    for (w, x) in blocks::<W>(w).iter().zip(x.as_chunks::<8>().0) {
        for (s, x) in x.iter().enumerate() {
            let w = part(w, s);
            let products = w.q.iter().zip(&x.q);
            let isum: i32 = products.map(|(&w, &q)| i32::from(w) * i32::from(q)).sum();
            acc += isum as f32 * (w.scale * x.scale);
            if let Some(min) = w.min {
                acc += min * (x.scale * x.sum as f32);
            }
        }
    }
    acc
}

trait Parts {
    /// Elements `32 s..32 (s + 1)`.
    fn part(&self, s: usize) -> Part;
}

impl Parts for BlockQ4K {
    fn part(&self, s: usize) -> Part {
        let (scale, min) = scale_and_min(&self.scales, s);
        let qs = &self.qs[s / 2 * 32..];
        Part {
            q: std::array::from_fn(|i| i16::from(qs[i] >> (4 * (s % 2)) & 15)),
            scale: half_of(self.d) * f32::from(scale),
            min: Some(-(half_of(self.dmin) * f32::from(min))),
        }
    }
}

impl Parts for BlockQ5K {
    fn part(&self, s: usize) -> Part {
        let (scale, min) = scale_and_min(&self.scales, s);
        let qs = &self.qs[s / 2 * 32..];
        let fifth = |i: usize| (self.qh[i] >> s & 1) << 4;
        Part {
            q: std::array::from_fn(|i| i16::from(qs[i] >> (4 * (s % 2)) & 15 | fifth(i))),
            scale: half_of(self.d) * f32::from(scale),
            min: Some(-(half_of(self.dmin) * f32::from(min))),
        }
    }
}

impl Parts for BlockQ6K {
    /// The scales of both halves are multiplied in: `sc * (q - 32)` is at most 4096.
    fn part(&self, s: usize) -> Part {
        let (half, k) = (s / 4, s % 4);
        let (ql, qh) = (&self.ql[64 * half + 32 * (k % 2)..], &self.qh[32 * half..]);
        let six_bits = |i: usize| ql[i] >> (4 * (k / 2)) & 15 | (qh[i] >> (2 * k) & 3) << 4;
        let scale = |i: usize| i16::from(self.scales[2 * s + i / 16]);
        Part {
            q: std::array::from_fn(|i| scale(i) * (i16::from(six_bits(i)) - 32)),
            scale: half_of(self.d),
            min: None,
        }
    }
}

fn half_of(bytes: [u8; 2]) -> f32 {
    f16::from_le_bytes(bytes).to_f32()
}

pub(crate) fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let mean_square = sum_lanes(x.len(), |i| x[i] * x[i]) / x.len() as f32;
    let scale = 1.0 / (mean_square + eps).sqrt();
    for ((o, x), w) in out.iter_mut().zip(x).zip(weight) {
        *o = (x * scale) * w;
    }
}

pub(crate) fn layer_norm(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, out: &mut [f32]) {
    let mean = sum_lanes(x.len(), |i| x[i]) / x.len() as f32;
    let variance = sum_lanes(x.len(), |i| (x[i] - mean) * (x[i] - mean)) / x.len() as f32;
    let scale = 1.0 / (variance + eps).sqrt();
    for (((o, x), w), b) in out.iter_mut().zip(x).zip(weight).zip(bias) {
        *o = (((x - mean) * scale) * w) + b;
    }
}

#[allow(
    clippy::inline_always,
    reason = "compiled once more for each instruction set, by `vector`"
)]
#[inline(always)]
pub(crate) fn rope(x: &mut [f32], rotations: &[(f32, f32)]) {
    for (pair, &(cos, sin)) in x.as_chunks_mut::<2>().0.iter_mut().zip(rotations) {
        let [a, b] = *pair;
        *pair = [a * cos - b * sin, a * sin + b * cos];
    }
}

#[allow(
    clippy::inline_always,
    reason = "compiled once more for each instruction set, by `vector`"
)]
#[inline(always)]
pub(crate) fn rope_halves(x: &mut [f32], rotations: &[(f32, f32)]) {
    let (low, high) = x.split_at_mut(x.len() / 2);
    for ((a, b), &(cos, sin)) in low.iter_mut().zip(high).zip(rotations) {
        (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
    }
}

pub(crate) fn silu_mul(gate: &[f32], up: &[f32], out: &mut [f32]) {
    for ((o, &g), &u) in out.iter_mut().zip(gate).zip(up) {
        *o = silu(g) * u;
    }
}

pub(crate) fn gelu(x: &[f32], out: &mut [f32]) {
    for (o, &x) in out.iter_mut().zip(x) {
        *o = gelu_of(x);
    }
}

#[allow(
    clippy::inline_always,
    reason = "compiled once more for each instruction set, by `vector`"
)]
#[inline(always)]
pub(crate) fn add(x: &mut [f32], y: &[f32]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x += y;
    }
}

pub(crate) fn attend(
    d: usize,
    q: &[f32],
    k: KvRows<'_>,
    v: KvRows<'_>,
    scores: &mut [f32],
    out: &mut [f32],
) {
    let n = scores.len() / (q.len() / d);
    let heads = q.chunks_exact(d).zip(scores.chunks_exact_mut(n));
    for ((q, scores), out) in heads.zip(out.chunks_exact_mut(d)) {
        attend_one(q, k, v, scores, out);
    }
}

/// q (D), k (n, D), v (n, D) -> out (D)
fn attend_one(q: &[f32], k: KvRows<'_>, v: KvRows<'_>, scores: &mut [f32], out: &mut [f32]) {
    let d = q.len();
    let scale = 1.0 / (d as f32).sqrt();
    for (t, score) in scores.iter_mut().enumerate() {
        *score = sum_lanes(d, |i| q[i] * k.get(t * d + i)) * scale; // (D) · (D)
    }
    // `max` by comparison: a NaN score is passed over here and found in the sum.
    let max = scores
        .iter()
        .fold(f32::NEG_INFINITY, |m, &s| if s > m { s } else { m });
    for score in scores.iter_mut() {
        *score = exp(*score - max);
    }
    let inverse = 1.0 / sum_lanes(scores.len(), |t| scores[t]);
    out.fill(0.0);
    for (t, &p) in scores.iter().enumerate() {
        for (i, o) in out.iter_mut().enumerate() {
            *o += p * v.get(t * d + i); // (n) @ (n, D) -> (D)
        }
    }
    for o in out {
        *o *= inverse;
    }
}

impl KvRows<'_> {
    fn get(&self, i: usize) -> f32 {
        match self {
            Self::F16(rows) => rows[i].to_f32(),
            Self::F32(rows) => rows[i],
        }
    }
}
