//! wasm32 with simd128: the functions of [`super::scalar`] with the same bits. Chosen when compiling: a module with
//! one SIMD instruction runs only where all of them are there.
//!
//! Quantised products work on four rows of weights at once, in the lanes of one vector. Decode reads blocks where they
//! lie. Prefill unpacks four rows to i16 once, in an order in which a lane is a row, for all tokens.

#![allow(
    clippy::inline_always,
    reason = "the functions written over vectors must be compiled as one"
)]
#![allow(
    clippy::wildcard_imports,
    reason = "some sixty intrinsics, whose names cannot clash"
)]

use super::{
    Isa,
    kernels::{Activations, BLOCK, Kernels, KvRows, QuantBlock, Scratch},
    scalar,
    vector::{self, F32x16},
    weights::Matrix,
};
use crate::quant::{
    Block, BlockQ4_0, BlockQ4_1, BlockQ4K, BlockQ5_0, BlockQ5_1, BlockQ5K, BlockQ6K, BlockQ8_0,
    DType, scale_and_min,
};
use fledgling_pool::Columns;
use half::{bf16, f16};
use std::{arch::wasm32::*, ops::Range};

pub(crate) static KERNELS: Kernels = Kernels {
    isa: Isa::Simd128,
    quantize_row,
    matmul,
    rms_norm,
    layer_norm,
    rope: scalar::rope,
    rope_halves: scalar::rope_halves,
    silu_mul,
    gelu,
    add: scalar::add,
    attend,
};

/// Rows of weights that one step takes.
const ROWS: usize = 4;
/// Tokens that one step of prefill takes.
const TOKENS: usize = 4;

/// Defines entries of the table by the functions written over vectors.
macro_rules! entries {
    ($($name:ident($($arg:ident: $type:ty),*);)*) => {$(
        fn $name($($arg: $type),*) {
            // SAFETY: this module is compiled only where simd128 is there.
            unsafe { vector::$name::<Lanes>($($arg),*) }
        }
    )*};
}

entries! {
    rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]);
    layer_norm(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, out: &mut [f32]);
    silu_mul(gate: &[f32], up: &[f32], out: &mut [f32]);
    gelu(x: &[f32], out: &mut [f32]);
    attend(d: usize, q: &[f32], k: KvRows<'_>, v: KvRows<'_>, scores: &mut [f32], out: &mut [f32]);
}

/// Lanes 0..4, 4..8, 8..12 and 12..16.
#[derive(Clone, Copy)]
struct Lanes([v128; 4]);

impl Lanes {
    #[inline(always)]
    fn zip(self, other: Self, op: impl Fn(v128, v128) -> v128) -> Self {
        let (a, b) = (self.0, other.0);
        Self([
            op(a[0], b[0]),
            op(a[1], b[1]),
            op(a[2], b[2]),
            op(a[3], b[3]),
        ])
    }
}

impl F32x16 for Lanes {
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Self([f32x4_splat(x); 4])
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: sixteen elements by the contract.
        unsafe { Self([0, 4, 8, 12].map(|i| v128_load(p.add(i).cast()))) }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const f16) -> Self {
        // SAFETY: sixteen elements by the contract.
        unsafe { Self([0, 4, 8, 12].map(|i| widen_f16(u32x4_load_extend_u16x4(p.add(i).cast())))) }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const bf16) -> Self {
        // SAFETY: sixteen elements by the contract. A bf16 is the upper half of an f32.
        unsafe {
            Self([0, 4, 8, 12].map(|i| i32x4_shl(u32x4_load_extend_u16x4(p.add(i).cast()), 16)))
        }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        for (i, x) in self.0.into_iter().enumerate() {
            // SAFETY: sixteen elements by the contract.
            unsafe { v128_store(p.add(4 * i).cast(), x) }
        }
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| f32x4_add(a, b))
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        self.zip(other, |a, b| f32x4_sub(a, b))
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        self.zip(other, |a, b| f32x4_mul(a, b))
    }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        self.zip(other, |a, b| f32x4_div(a, b))
    }
    #[inline(always)]
    unsafe fn neg(self) -> Self {
        Self(self.0.map(|x| f32x4_neg(x)))
    }
    #[inline(always)]
    unsafe fn greater(self, other: Self) -> Self {
        // `pmax(a, b)` is `a < b ? b : a`.
        self.zip(other, |a, b| f32x4_pmax(b, a))
    }
    #[inline(always)]
    unsafe fn less(self, other: Self) -> Self {
        // `pmin(a, b)` is `b < a ? b : a`.
        self.zip(other, |a, b| f32x4_pmin(b, a))
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        Self(self.0.map(|x| f32x4_nearest(x)))
    }
    #[inline(always)]
    unsafe fn exp2_int(self) -> Self {
        let exp2 = |n| i32x4_shl(i32x4_add(i32x4_trunc_sat_f32x4(n), i32x4_splat(127)), 23);
        Self(self.0.map(exp2))
    }
    #[inline(always)]
    unsafe fn zero_where_less(self, x: Self, bound: Self) -> Self {
        let less = x.zip(bound, |x, bound| f32x4_lt(x, bound));
        self.zip(less, |value, less| v128_andnot(value, less))
    }
    #[inline(always)]
    unsafe fn fold(self) -> f32 {
        let [a, b, c, d] = self.0;
        let four = f32x4_add(f32x4_add(a, c), f32x4_add(b, d));
        let two = f32x4_add(four, i32x4_shuffle::<2, 3, 2, 3>(four, four));
        f32x4_extract_lane::<0>(two) + f32x4_extract_lane::<1>(two)
    }
}

/// Four f16, each in the lower half of a lane, as f32.
#[inline(always)]
fn widen_f16(half: v128) -> v128 {
    let sign = i32x4_shl(v128_and(half, u32x4_splat(0x8000)), 16);
    let magnitude = i32x4_shl(v128_and(half, u32x4_splat(0x7fff)), 13);
    // The exponents' biases differ by 112. The product is exact, for subnormal halves too.
    let scaled = f32x4_mul(magnitude, f32x4_splat(f32::from_bits((112 + 127) << 23)));
    // Infinity and NaN have the largest exponent of a half, and get the largest of an f32.
    let special = v128_and(
        u32x4_ge(magnitude, u32x4_splat(0x7c00 << 13)),
        u32x4_splat(0x7f80_0000),
    );
    v128_or(v128_or(scaled, special), sign)
}

fn quantize_row(x: &[f32], out: &mut [QuantBlock]) {
    for (x, block) in x.as_chunks::<BLOCK>().0.iter().zip(out) {
        // SAFETY: eight loads of four stay within the block.
        let x =
            [0, 1, 2, 3, 4, 5, 6, 7].map(|i| unsafe { v128_load(x.as_ptr().add(4 * i).cast()) });
        let amax = max_magnitude(x);
        let Some(inverse) = block.scale_by(amax) else {
            continue;
        };
        let inverse = f32x4_splat(inverse);
        let q = x.map(|x| i32x4_trunc_sat_f32x4(f32x4_nearest(f32x4_mul(x, inverse))));
        for (i, out) in block.q.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let narrow = i16x8_narrow_i32x4(q[2 * i], q[2 * i + 1]);
            // SAFETY: a store of eight.
            unsafe { v128_store(out.as_mut_ptr().cast(), narrow) }
        }
        let sums = q
            .into_iter()
            .fold(i32x4_splat(0), |sum, q| i32x4_add(sum, q));
        block.sum = sum_i32(sums);
    }
}

/// The largest bit pattern without sign, so that a NaN is the largest.
#[inline(always)]
fn max_magnitude(x: [v128; 8]) -> f32 {
    let mask = u32x4_splat(0x7fff_ffff);
    let four = x
        .into_iter()
        .fold(u32x4_splat(0), |m, x| u32x4_max(m, v128_and(x, mask)));
    let two = u32x4_max(four, i32x4_shuffle::<2, 3, 2, 3>(four, four));
    let one = u32x4_max(two, i32x4_shuffle::<1, 1, 1, 1>(two, two));
    f32x4_extract_lane::<0>(one)
}

#[inline(always)]
fn sum_i32(x: v128) -> i32 {
    let two = i32x4_add(x, i32x4_shuffle::<2, 3, 2, 3>(x, x));
    i32x4_extract_lane::<0>(two).wrapping_add(i32x4_extract_lane::<1>(two))
}

fn matmul(
    w: &Matrix,
    rows: Range<usize>,
    x: &Activations,
    out: &mut Columns<'_>,
    scratch: &mut Scratch,
) {
    match w.dtype {
        // SAFETY: simd128 is enabled for this module.
        DType::F32 => unsafe { vector::matmul::<Lanes, f32, 2, 1>(w, rows, x, out) },
        // SAFETY: simd128 is enabled for this module.
        DType::F16 => unsafe { vector::matmul::<Lanes, f16, 2, 1>(w, rows, x, out) },
        // SAFETY: simd128 is enabled for this module.
        DType::BF16 => unsafe { vector::matmul::<Lanes, bf16, 2, 1>(w, rows, x, out) },
        DType::Q8_0 => matmul_blocks::<BlockQ8_0>(w, rows, x, out, scratch),
        DType::Q4_0 => matmul_blocks::<BlockQ4_0>(w, rows, x, out, scratch),
        DType::Q4_1 => matmul_blocks::<BlockQ4_1>(w, rows, x, out, scratch),
        DType::Q5_0 => matmul_blocks::<BlockQ5_0>(w, rows, x, out, scratch),
        DType::Q5_1 => matmul_blocks::<BlockQ5_1>(w, rows, x, out, scratch),
        DType::Q4K => matmul_blocks::<BlockQ4K>(w, rows, x, out, scratch),
        DType::Q5K => matmul_blocks::<BlockQ5K>(w, rows, x, out, scratch),
        DType::Q6K => matmul_blocks::<BlockQ6K>(w, rows, x, out, scratch),
    }
}

/// A quantised type that products read, in parts of 32 elements.
trait Weight: Block {
    /// Parts of a block.
    const PARTS: usize = Self::LEN / BLOCK;
    /// Whether a part has a minimum that is added (`Q4_1`).
    const HAS_MIN: bool;
    /// Of part `s` of four rows.
    fn scales(rows: [&Self; ROWS], s: usize) -> v128;
    /// What is added to part `s` of four rows, where [`Self::HAS_MIN`].
    fn mins(_rows: [&Self; ROWS], _s: usize) -> v128 {
        f32x4_splat(0.0)
    }
    /// The integers of part `s`, any offset subtracted, as i16 in order.
    fn unpack(&self, s: usize) -> [v128; 4];
}

/// Four f16, each of another row.
#[inline(always)]
fn halves(halves: [[u8; 2]; ROWS]) -> v128 {
    let [a, b, c, d] = halves.map(|half| u32::from(u16::from_le_bytes(half)));
    widen_f16(u32x4(a, b, c, d))
}

/// Four bytes, each of another row, as f32.
#[inline(always)]
fn bytes([a, b, c, d]: [u8; ROWS]) -> v128 {
    f32x4(f32::from(a), f32::from(b), f32::from(c), f32::from(d))
}

impl Weight for BlockQ8_0 {
    const HAS_MIN: bool = false;
    #[inline(always)]
    fn scales(rows: [&Self; ROWS], _: usize) -> v128 {
        halves(rows.map(|row| row.d))
    }
    #[inline(always)]
    fn unpack(&self, _: usize) -> [v128; 4] {
        // SAFETY: four loads of eight stay within `qs`.
        [0, 8, 16, 24].map(|i| unsafe { i16x8_load_extend_i8x8(self.qs.as_ptr().add(i)) })
    }
}

impl Weight for BlockQ4_0 {
    const HAS_MIN: bool = false;
    #[inline(always)]
    fn scales(rows: [&Self; ROWS], _: usize) -> v128 {
        halves(rows.map(|row| row.d))
    }
    #[inline(always)]
    fn unpack(&self, _: usize) -> [v128; 4] {
        unpack_nibbles(&self.qs).map(|q| i16x8_sub(q, i16x8_splat(8)))
    }
}

impl Weight for BlockQ5_0 {
    const HAS_MIN: bool = false;
    #[inline(always)]
    fn scales(rows: [&Self; ROWS], _: usize) -> v128 {
        halves(rows.map(|row| row.d))
    }
    #[inline(always)]
    fn unpack(&self, _: usize) -> [v128; 4] {
        add_fifths(unpack_nibbles(&self.qs), self.qh).map(|q| i16x8_sub(q, i16x8_splat(16)))
    }
}

impl Weight for BlockQ4_1 {
    const HAS_MIN: bool = true;
    #[inline(always)]
    fn scales(rows: [&Self; ROWS], _: usize) -> v128 {
        halves(rows.map(|row| row.d))
    }
    #[inline(always)]
    fn mins(rows: [&Self; ROWS], _: usize) -> v128 {
        halves(rows.map(|row| row.m))
    }
    #[inline(always)]
    fn unpack(&self, _: usize) -> [v128; 4] {
        unpack_nibbles(&self.qs)
    }
}

impl Weight for BlockQ5_1 {
    const HAS_MIN: bool = true;
    #[inline(always)]
    fn scales(rows: [&Self; ROWS], _: usize) -> v128 {
        halves(rows.map(|row| row.d))
    }
    #[inline(always)]
    fn mins(rows: [&Self; ROWS], _: usize) -> v128 {
        halves(rows.map(|row| row.m))
    }
    #[inline(always)]
    fn unpack(&self, _: usize) -> [v128; 4] {
        add_fifths(unpack_nibbles(&self.qs), self.qh)
    }
}

impl Weight for BlockQ4K {
    const HAS_MIN: bool = true;
    #[inline(always)]
    fn scales(rows: [&Self; ROWS], s: usize) -> v128 {
        let scales = bytes(rows.map(|row| scale_and_min(&row.scales, s).0));
        f32x4_mul(halves(rows.map(|row| row.d)), scales)
    }
    #[inline(always)]
    fn mins(rows: [&Self; ROWS], s: usize) -> v128 {
        let mins = bytes(rows.map(|row| scale_and_min(&row.scales, s).1));
        f32x4_neg(f32x4_mul(halves(rows.map(|row| row.dmin)), mins))
    }
    #[inline(always)]
    fn unpack(&self, s: usize) -> [v128; 4] {
        let q = half_bytes(&self.qs, s / 2, 4 * (s as u32 % 2));
        widen(q)
    }
}

impl Weight for BlockQ5K {
    const HAS_MIN: bool = true;
    #[inline(always)]
    fn scales(rows: [&Self; ROWS], s: usize) -> v128 {
        let scales = bytes(rows.map(|row| scale_and_min(&row.scales, s).0));
        f32x4_mul(halves(rows.map(|row| row.d)), scales)
    }
    #[inline(always)]
    fn mins(rows: [&Self; ROWS], s: usize) -> v128 {
        let mins = bytes(rows.map(|row| scale_and_min(&row.scales, s).1));
        f32x4_neg(f32x4_mul(halves(rows.map(|row| row.dmin)), mins))
    }
    #[inline(always)]
    fn unpack(&self, s: usize) -> [v128; 4] {
        let low = half_bytes(&self.qs, s / 2, 4 * (s as u32 % 2));
        let fifth = load_bytes(&self.qh, 0)
            .map(|h| u8x16_shl(v128_and(u8x16_shr(h, s as u32), u8x16_splat(1)), 4));
        widen([v128_or(low[0], fifth[0]), v128_or(low[1], fifth[1])])
    }
}

impl Weight for BlockQ6K {
    const HAS_MIN: bool = false;
    #[inline(always)]
    fn scales(rows: [&Self; ROWS], _: usize) -> v128 {
        halves(rows.map(|row| row.d))
    }
    /// Times the scales of the sub-blocks of 16.
    #[inline(always)]
    fn unpack(&self, s: usize) -> [v128; 4] {
        let (half, k) = (s / 4, s % 4);
        let low = half_bytes(&self.ql, 2 * half + k % 2, 4 * (k as u32 / 2));
        let high = load_bytes(&self.qh, half)
            .map(|h| u8x16_shl(v128_and(u8x16_shr(h, 2 * k as u32), u8x16_splat(3)), 4));
        let six = |i: usize| i8x16_sub(v128_or(low[i], high[i]), i8x16_splat(32));
        let q = widen([six(0), six(1)]);
        let scale = |i: usize| i16x8_splat(i16::from(self.scales[2 * s + i]));
        [0, 1, 2, 3].map(|i| i16x8_mul(q[i], scale(i / 2)))
    }
}

/// 32 bytes from `32 i` on.
#[inline(always)]
fn load_bytes(bytes: &[u8], i: usize) -> [v128; 2] {
    let bytes = &bytes[32 * i..][..32];
    // SAFETY: two loads of sixteen.
    [0, 16].map(|i| unsafe { v128_load(bytes.as_ptr().add(i).cast()) })
}

/// The same, four bits of each byte.
#[inline(always)]
fn half_bytes(bytes: &[u8], i: usize, bits: u32) -> [v128; 2] {
    load_bytes(bytes, i).map(|b| v128_and(u8x16_shr(b, bits), u8x16_splat(15)))
}

/// Signed bytes to i16, in order.
#[inline(always)]
fn widen(bytes: [v128; 2]) -> [v128; 4] {
    [
        i16x8_extend_low_i8x16(bytes[0]),
        i16x8_extend_high_i8x16(bytes[0]),
        i16x8_extend_low_i8x16(bytes[1]),
        i16x8_extend_high_i8x16(bytes[1]),
    ]
}

/// Sets the fifth bit of element i where bit i of `qh` is set.
#[inline(always)]
fn add_fifths(nibbles: [v128; 4], qh: [u8; 4]) -> [v128; 4] {
    let bits = i16x8(1, 2, 4, 8, 16, 32, 64, 128);
    [0, 1, 2, 3].map(|i| {
        let byte = i16x8_splat(i16::from(qh[i]));
        let is_set = i16x8_eq(v128_and(byte, bits), bits);
        v128_or(nibbles[i], v128_and(is_set, i16x8_splat(16)))
    })
}

/// Low nibbles are elements 0..16, high ones 16..32.
#[inline(always)]
fn unpack_nibbles(qs: &[u8; 16]) -> [v128; 4] {
    // SAFETY: a load of sixteen.
    let bytes = unsafe { v128_load(qs.as_ptr().cast()) };
    let (low, high) = (v128_and(bytes, u8x16_splat(15)), u8x16_shr(bytes, 4));
    [
        u16x8_extend_low_u8x16(low),
        u16x8_extend_high_u8x16(low),
        u16x8_extend_low_u8x16(high),
        u16x8_extend_high_u8x16(high),
    ]
}

fn matmul_blocks<W: Weight>(
    w: &Matrix,
    rows: Range<usize>,
    x: &Activations,
    out: &mut Columns<'_>,
    scratch: &mut Scratch,
) {
    let whole = rows.start + rows.len() / ROWS * ROWS;
    let prefill = x.n_rows >= TOKENS;
    for r in (rows.start..whole).step_by(ROWS) {
        let blocks = crate::quant::blocks::<W>(&w.bytes[r * w.row_bytes..][..ROWS * w.row_bytes]);
        let mut out = out.narrow(r - rows.start..r - rows.start + ROWS);
        if prefill {
            unpack(blocks, scratch);
            let mut t = 0;
            while t + TOKENS <= x.n_rows {
                dot_tile::<W, TOKENS>(x, scratch, t, &mut out);
                t += TOKENS;
            }
            while t < x.n_rows {
                dot_tile::<W, 1>(x, scratch, t, &mut out);
                t += 1;
            }
        } else {
            for t in 0..x.n_rows {
                let y = dot_rows(blocks, x.quant_row(t));
                // SAFETY: the narrowed rows hold four.
                unsafe { v128_store(out.row_mut(t).as_mut_ptr().cast(), y) }
            }
        }
    }
    for t in 0..x.n_rows {
        for r in whole..rows.end {
            out.row_mut(t)[r - rows.start] = scalar::dot(w, r, x, t);
        }
    }
}

/// Block `b` of each of four rows.
#[inline(always)]
fn block_of_rows<W>(blocks: &[W], n_blocks: usize, b: usize) -> [&W; ROWS] {
    [0, 1, 2, 3].map(|i| &blocks[i * n_blocks + b])
}

/// W (4, K) @ x (K) -> (4)
#[inline(always)]
fn dot_rows<W: Weight>(blocks: &[W], x: &[QuantBlock]) -> v128 {
    let n_blocks = x.len() / W::PARTS;
    assert_eq!(blocks.len(), ROWS * n_blocks, "as wide as the matrix");
    let mut acc = f32x4_splat(0.0);
    for (b, x) in x.chunks_exact(W::PARTS).enumerate() {
        let rows = block_of_rows(blocks, n_blocks, b);
        for (s, x) in x.iter().enumerate() {
            // SAFETY: four loads of eight stay within the block.
            let q = [0, 8, 16, 24].map(|i| unsafe { v128_load(x.q.as_ptr().add(i).cast()) });
            let isums = rows.map(|row| {
                let w = row.unpack(s);
                let products = |j: usize| i32x4_dot_i16x8(w[j], q[j]);
                i32x4_add(
                    i32x4_add(products(0), products(1)),
                    i32x4_add(products(2), products(3)),
                )
            });
            acc = accumulate(acc, sum_each(isums), W::scales(rows, s), x);
            if W::HAS_MIN {
                acc = accumulate_min(acc, W::mins(rows, s), x);
            }
        }
    }
    acc
}

/// `acc + isum * (d * x.d)`, for four rows.
#[inline(always)]
fn accumulate(acc: v128, isum: v128, d: v128, x: &QuantBlock) -> v128 {
    let scale = f32x4_mul(d, f32x4_splat(x.scale));
    f32x4_add(acc, f32x4_mul(f32x4_convert_i32x4(isum), scale))
}

/// `acc + m * (x.d * sum)`, for four rows.
#[inline(always)]
fn accumulate_min(acc: v128, m: v128, x: &QuantBlock) -> v128 {
    f32x4_add(acc, f32x4_mul(m, f32x4_splat(x.scale * x.sum as f32)))
}

/// The sum of each vector's lanes: four vectors to one.
#[inline(always)]
fn sum_each(v: [v128; 4]) -> v128 {
    let [a, b, c, d] = transpose(v);
    i32x4_add(i32x4_add(a, b), i32x4_add(c, d))
}

/// Four rows of four i32 to four columns.
#[inline(always)]
fn transpose([a, b, c, d]: [v128; 4]) -> [v128; 4] {
    let (ab_low, ab_high) = (
        i32x4_shuffle::<0, 4, 1, 5>(a, b),
        i32x4_shuffle::<2, 6, 3, 7>(a, b),
    );
    let (cd_low, cd_high) = (
        i32x4_shuffle::<0, 4, 1, 5>(c, d),
        i32x4_shuffle::<2, 6, 3, 7>(c, d),
    );
    [
        i64x2_shuffle::<0, 2>(ab_low, cd_low),
        i64x2_shuffle::<1, 3>(ab_low, cd_low),
        i64x2_shuffle::<0, 2>(ab_high, cd_high),
        i64x2_shuffle::<1, 3>(ab_high, cd_high),
    ]
}

/// Unpacks four rows: integers as i16 in the order [K / 2, 4 rows, 2], scales and minima as f32 [K / 32, 4 rows].
fn unpack<W: Weight>(blocks: &[W], scratch: &mut Scratch) {
    let n_blocks = blocks.len() / ROWS;
    let n_parts = n_blocks * W::PARTS;
    scratch.tile.resize(n_parts * ROWS * BLOCK, 0);
    scratch.scales.resize(n_parts * ROWS, 0.0);
    scratch.mins.resize(n_parts * ROWS, 0.0);
    for b in 0..n_blocks {
        let rows = block_of_rows(blocks, n_blocks, b);
        for s in 0..W::PARTS {
            let part = b * W::PARTS + s;
            let unpacked = rows.map(|row| row.unpack(s));
            // SAFETY: the buffers were given room for all parts.
            unsafe {
                let scales = scratch.scales.as_mut_ptr().add(part * ROWS);
                v128_store(scales.cast(), W::scales(rows, s));
                if W::HAS_MIN {
                    let mins = scratch.mins.as_mut_ptr().add(part * ROWS);
                    v128_store(mins.cast(), W::mins(rows, s));
                }
                let tile = scratch.tile.as_mut_ptr().add(part * ROWS * BLOCK);
                for quarter in [0, 1, 2, 3] {
                    let pairs = transpose(unpacked.map(|row| row[quarter]));
                    for (p, pair) in pairs.into_iter().enumerate() {
                        v128_store(tile.add((quarter * 4 + p) * 2 * ROWS).cast(), pair);
                    }
                }
            }
        }
    }
}

/// W (4, K) as unpacked @ x (T, K) of `T` tokens from `first`
#[inline(always)]
fn dot_tile<W: Weight, const T: usize>(
    x: &Activations,
    scratch: &Scratch,
    first: usize,
    out: &mut Columns<'_>,
) {
    let n_blocks = x.n_cols / BLOCK;
    assert_eq!(scratch.tile.len(), n_blocks * ROWS * BLOCK, "unpacked");
    let blocks = &x.blocks[first * n_blocks..][..T * n_blocks];
    let mut acc = [f32x4_splat(0.0); T];
    for b in 0..n_blocks {
        let mut isum = [i32x4_splat(0); T];
        // SAFETY: indices stay below the lengths checked.
        let (d, m) = unsafe {
            let tile = scratch.tile.as_ptr().add(b * ROWS * BLOCK);
            for pair in 0..BLOCK / 2 {
                let w = v128_load(tile.add(pair * 2 * ROWS).cast());
                for (t, isum) in isum.iter_mut().enumerate() {
                    let q = blocks.get_unchecked(t * n_blocks + b).q.as_ptr();
                    let x = v128_load32_splat(q.add(2 * pair).cast());
                    *isum = i32x4_add(*isum, i32x4_dot_i16x8(w, x));
                }
            }
            (
                v128_load(scratch.scales.as_ptr().add(b * ROWS).cast()),
                v128_load(scratch.mins.as_ptr().add(b * ROWS).cast()),
            )
        };
        for t in 0..T {
            let x = &blocks[t * n_blocks + b];
            acc[t] = accumulate(acc[t], isum[t], d, x);
            if W::HAS_MIN {
                acc[t] = accumulate_min(acc[t], m, x);
            }
        }
    }
    for (t, acc) in acc.into_iter().enumerate() {
        // SAFETY: the narrowed rows hold four.
        unsafe { v128_store(out.row_mut(first + t)[..ROWS].as_mut_ptr().cast(), acc) }
    }
}
