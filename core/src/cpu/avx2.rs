//! x86-64 with AVX2 and F16C: the functions of [`super::scalar`] with the same bits.
//!
//! Quantised products work on eight rows of weights at once, so that the chain of rule 3 is one vector operation over
//! rows. Decode reads blocks where they lie. Prefill unpacks eight rows to i16 once, in an order in which a lane is a row,
//! and runs four tokens at a time over them: no horizontal sums, and weights are read once for all tokens.

#![allow(
    clippy::inline_always,
    reason = "an intrinsic is inlined only where its instruction set is enabled: all between it and the table's entry must be inlined"
)]
#![allow(
    clippy::wildcard_imports,
    reason = "some eighty intrinsics, whose names cannot clash"
)]

use super::{
    Isa,
    kernels::{Activations, BLOCK, Kernels, KvRows, QuantBlock, Scratch},
    scalar,
    vector::{self, Element, F32x16},
    weights::Matrix,
};
use crate::quant::{Block, BlockQ4_0, BlockQ4_1, BlockQ8_0, DType};
use fledgling_pool::Columns;
use half::{bf16, f16};
use std::{arch::x86_64::*, ops::Range};

/// The table, when this machine has the instructions.
pub(crate) fn kernels() -> Option<&'static Kernels> {
    let available = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c");
    available.then_some(&KERNELS)
}

/// Private: who has it has seen that the instructions are there.
static KERNELS: Kernels = Kernels {
    isa: Isa::Avx2,
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
const ROWS: usize = 8;
/// Tokens that one step of prefill takes.
const TOKENS: usize = 4;

/// Defines entries of the table by generic functions that are compiled for this instruction set.
macro_rules! entries {
    ($($name:ident($($arg:ident: $type:ty),*) = $body:expr;)*) => {$(
        fn $name($($arg: $type),*) {
            #[target_feature(enable = "avx2,f16c")]
            fn with_avx2($($arg: $type),*) {
                // SAFETY: compiled for the instructions that it uses.
                unsafe { $body($($arg),*) }
            }
            // SAFETY: reached only through `KERNELS`, which `kernels` hands out where the instructions are there.
            unsafe { with_avx2($($arg),*) }
        }
    )*};
}

entries! {
    quantize_row(x: &[f32], out: &mut [QuantBlock]) = quantize_blocks;
    matmul(w: &Matrix, rows: Range<usize>, x: &Activations, out: &mut Columns<'_>, scratch: &mut Scratch) = matmul_rows;
    rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) = vector::rms_norm::<Lanes>;
    layer_norm(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, out: &mut [f32]) = vector::layer_norm::<Lanes>;
    silu_mul(gate: &[f32], up: &[f32], out: &mut [f32]) = vector::silu_mul::<Lanes>;
    gelu(x: &[f32], out: &mut [f32]) = vector::gelu::<Lanes>;
    attend(q: &[f32], k: KvRows<'_>, v: KvRows<'_>, scores: &mut [f32], out: &mut [f32]) = vector::attend::<Lanes>;
}

/// Lanes 0..8 and 8..16.
#[derive(Clone, Copy)]
struct Lanes(__m256, __m256);

/// Both halves through one intrinsic.
macro_rules! both {
    ($op:ident, $($x:expr),+) => {
        // SAFETY: AVX2 by the contract of `F32x16`.
        unsafe { Lanes($op($($x.0),+), $op($($x.1),+)) }
    };
}

impl F32x16 for Lanes {
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        // SAFETY: AVX2 by the contract.
        unsafe { Self(_mm256_set1_ps(x), _mm256_set1_ps(x)) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: sixteen elements by the contract.
        unsafe { Self(_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))) }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const f16) -> Self {
        // SAFETY: sixteen elements by the contract.
        unsafe {
            let half = |i| _mm256_cvtph_ps(_mm_loadu_si128(p.add(i).cast()));
            Self(half(0), half(8))
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const bf16) -> Self {
        // SAFETY: sixteen elements by the contract. A bf16 is the upper half of an f32.
        unsafe {
            let half = |i| {
                let bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.add(i).cast()));
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(bits))
            };
            Self(half(0), half(8))
        }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: sixteen elements by the contract.
        unsafe {
            _mm256_storeu_ps(p, self.0);
            _mm256_storeu_ps(p.add(8), self.1);
        }
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        both!(_mm256_add_ps, self, other)
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        both!(_mm256_sub_ps, self, other)
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        both!(_mm256_mul_ps, self, other)
    }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        both!(_mm256_div_ps, self, other)
    }
    #[inline(always)]
    unsafe fn neg(self) -> Self {
        // SAFETY: AVX2 by the contract.
        let sign = unsafe { Self::splat(-0.0) };
        both!(_mm256_xor_ps, self, sign)
    }
    #[inline(always)]
    unsafe fn greater(self, other: Self) -> Self {
        both!(_mm256_max_ps, self, other)
    }
    #[inline(always)]
    unsafe fn less(self, other: Self) -> Self {
        both!(_mm256_min_ps, self, other)
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        // SAFETY: AVX2 by the contract.
        unsafe {
            Self(
                _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0),
                _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.1),
            )
        }
    }
    #[inline(always)]
    unsafe fn exp2_int(self) -> Self {
        // SAFETY: AVX2 by the contract.
        unsafe {
            let exp2 = |n| {
                let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent))
            };
            Self(exp2(self.0), exp2(self.1))
        }
    }
    #[inline(always)]
    unsafe fn zero_where_less(self, x: Self, bound: Self) -> Self {
        // SAFETY: AVX2 by the contract.
        unsafe {
            Self(
                _mm256_andnot_ps(_mm256_cmp_ps::<_CMP_LT_OQ>(x.0, bound.0), self.0),
                _mm256_andnot_ps(_mm256_cmp_ps::<_CMP_LT_OQ>(x.1, bound.1), self.1),
            )
        }
    }
    #[inline(always)]
    unsafe fn fold(self) -> f32 {
        // SAFETY: AVX2 by the contract.
        unsafe {
            let eight = _mm256_add_ps(self.0, self.1);
            let four = _mm_add_ps(
                _mm256_castps256_ps128(eight),
                _mm256_extractf128_ps::<1>(eight),
            );
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }
}

#[inline(always)]
unsafe fn quantize_blocks(x: &[f32], out: &mut [QuantBlock]) {
    for (x, block) in x.as_chunks::<BLOCK>().0.iter().zip(out) {
        // SAFETY: AVX2 and F16C by the table; four loads of eight stay within the block.
        unsafe {
            let x = [0, 1, 2, 3].map(|i| _mm256_loadu_ps(x.as_ptr().add(8 * i)));
            let amax = max_magnitude(x);
            let Some(inverse) = block.scale_by(amax) else {
                continue;
            };
            let inverse = _mm256_set1_ps(inverse);
            let q = x.map(|x| _mm256_cvtps_epi32(_mm256_mul_ps(x, inverse))); // ties to even by the default mode
            let sum = _mm256_add_epi32(_mm256_add_epi32(q[0], q[1]), _mm256_add_epi32(q[2], q[3]));
            block.sum = sum_i32(sum);
            for half in [0, 1] {
                let packed = _mm256_packs_epi32(q[2 * half], q[2 * half + 1]);
                // Packing works in halves of 128 bits: put the groups of four back in order.
                let in_order = _mm256_permute4x64_epi64::<0b11_01_10_00>(packed);
                _mm256_storeu_si256(block.q.as_mut_ptr().add(16 * half).cast(), in_order);
            }
        }
    }
}

/// The largest bit pattern without sign, so that a NaN is the largest.
#[inline(always)]
unsafe fn max_magnitude(x: [__m256; 4]) -> f32 {
    // SAFETY: AVX2 by the caller.
    unsafe {
        let mask = _mm256_set1_epi32(0x7fff_ffff);
        let [a, b, c, d] = x.map(|x| _mm256_and_si256(_mm256_castps_si256(x), mask));
        let eight = _mm256_max_epi32(_mm256_max_epi32(a, b), _mm256_max_epi32(c, d));
        let four = _mm_max_epi32(
            _mm256_castsi256_si128(eight),
            _mm256_extracti128_si256::<1>(eight),
        );
        let two = _mm_max_epi32(four, _mm_shuffle_epi32::<0b01_00_11_10>(four));
        let one = _mm_max_epi32(two, _mm_shuffle_epi32::<0b10_11_00_01>(two));
        _mm_cvtss_f32(_mm_castsi128_ps(one))
    }
}

#[inline(always)]
unsafe fn sum_i32(x: __m256i) -> i32 {
    // SAFETY: AVX2 by the caller.
    unsafe {
        let four = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256::<1>(x));
        let two = _mm_add_epi32(four, _mm_shuffle_epi32::<0b01_00_11_10>(four));
        _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32::<0b10_11_00_01>(two)))
    }
}

#[inline(always)]
unsafe fn matmul_rows(
    w: &Matrix,
    rows: Range<usize>,
    x: &Activations,
    out: &mut Columns<'_>,
    scratch: &mut Scratch,
) {
    // SAFETY: AVX2 and F16C by the table.
    unsafe {
        match w.dtype {
            DType::F32 => matmul_floats::<f32>(w, rows, x, out),
            DType::F16 => matmul_floats::<f16>(w, rows, x, out),
            DType::BF16 => matmul_floats::<bf16>(w, rows, x, out),
            DType::Q8_0 => matmul_blocks::<BlockQ8_0>(w, rows, x, out, scratch),
            DType::Q4_0 => matmul_blocks::<BlockQ4_0>(w, rows, x, out, scratch),
            DType::Q4_1 => matmul_blocks::<BlockQ4_1>(w, rows, x, out, scratch),
        }
    }
}

/// Four rows at a time, and the tokens over them while they are in the first cache.
#[inline(always)]
unsafe fn matmul_floats<E: Element>(
    w: &Matrix,
    rows: Range<usize>,
    x: &Activations,
    out: &mut Columns<'_>,
) {
    let row = |r: usize| w.row(r).as_ptr().cast::<E>();
    let mut r = rows.start;
    while r < rows.end {
        let column = r - rows.start;
        // SAFETY: rows of `w` hold `n_cols` elements, as rows of `x` do.
        unsafe {
            if r + 4 <= rows.end {
                let w = [row(r), row(r + 1), row(r + 2), row(r + 3)];
                for t in 0..x.n_rows {
                    out.row_mut(t)[column..column + 4]
                        .copy_from_slice(&vector::dots::<Lanes, E, 4>(w, x.row(t)));
                }
                r += 4;
            } else {
                for t in 0..x.n_rows {
                    out.row_mut(t)[column] = vector::dots::<Lanes, E, 1>([row(r)], x.row(t))[0];
                }
                r += 1;
            }
        }
    }
}

/// A quantised type that products read.
///
/// # Safety
/// The functions use AVX2.
trait Weight: Block {
    /// Whether a block has a minimum that is added (`Q4_1`).
    const HAS_MIN: bool;
    /// What is subtracted from each integer as it is stored (`Q4_0`: 8).
    const OFFSET: i32;
    fn scale(&self) -> [u8; 2];
    fn min(&self) -> [u8; 2] {
        [0; 2]
    }
    /// The integers as stored, as i16 in order: elements 0..16 and 16..32.
    unsafe fn unpack(&self) -> [__m256i; 2];
}

impl Weight for BlockQ8_0 {
    const HAS_MIN: bool = false;
    const OFFSET: i32 = 0;
    fn scale(&self) -> [u8; 2] {
        self.d
    }
    #[inline(always)]
    unsafe fn unpack(&self) -> [__m256i; 2] {
        // SAFETY: AVX2 by the contract; both halves lie within `qs`.
        unsafe {
            [0, 16].map(|i| _mm256_cvtepi8_epi16(_mm_loadu_si128(self.qs.as_ptr().add(i).cast())))
        }
    }
}

impl Weight for BlockQ4_0 {
    const HAS_MIN: bool = false;
    const OFFSET: i32 = 8;
    fn scale(&self) -> [u8; 2] {
        self.d
    }
    #[inline(always)]
    unsafe fn unpack(&self) -> [__m256i; 2] {
        // SAFETY: passed on.
        unsafe { unpack_nibbles(&self.qs) }
    }
}

impl Weight for BlockQ4_1 {
    const HAS_MIN: bool = true;
    const OFFSET: i32 = 0;
    fn scale(&self) -> [u8; 2] {
        self.d
    }
    fn min(&self) -> [u8; 2] {
        self.m
    }
    #[inline(always)]
    unsafe fn unpack(&self) -> [__m256i; 2] {
        // SAFETY: passed on.
        unsafe { unpack_nibbles(&self.qs) }
    }
}

/// The nibbles in order: low ones are elements 0..16, high ones 16..32.
#[inline(always)]
unsafe fn unpack_nibbles(qs: &[u8; 16]) -> [__m256i; 2] {
    // SAFETY: AVX2 by the caller; a load of sixteen.
    unsafe {
        let bytes = _mm256_cvtepu8_epi16(_mm_loadu_si128(qs.as_ptr().cast()));
        [
            _mm256_and_si256(bytes, _mm256_set1_epi16(15)),
            _mm256_srli_epi16::<4>(bytes),
        ]
    }
}

#[inline(always)]
unsafe fn matmul_blocks<W: Weight>(
    w: &Matrix,
    rows: Range<usize>,
    x: &Activations,
    out: &mut Columns<'_>,
    scratch: &mut Scratch,
) {
    let whole = rows.start + rows.len() / ROWS * ROWS;
    let prefill = x.n_rows >= TOKENS;
    // SAFETY: AVX2 and F16C by the table.
    unsafe {
        for r in (rows.start..whole).step_by(ROWS) {
            let group = RowGroup::<W>::new(w, r);
            let mut out = out.narrow(r - rows.start..r - rows.start + ROWS);
            if prefill {
                group.unpack(scratch);
                matmul_tile::<W>(x, scratch, &mut out);
            } else {
                for t in 0..x.n_rows {
                    _mm256_storeu_ps(out.row_mut(t).as_mut_ptr(), group.dot(x.quant_row(t)));
                }
            }
        }
    }
    for t in 0..x.n_rows {
        for r in whole..rows.end {
            out.row_mut(t)[r - rows.start] = scalar::dot(w, r, x, t);
        }
    }
}

/// Eight rows of blocks, one after the other. [8, K / 32]
struct RowGroup<'a, W> {
    blocks: &'a [W],
    n_blocks: usize,
}

impl<'a, W: Weight> RowGroup<'a, W> {
    fn new(w: &'a Matrix, r: usize) -> Self {
        let blocks = crate::quant::blocks(&w.bytes[r * w.row_bytes..][..ROWS * w.row_bytes]);
        Self {
            blocks,
            n_blocks: blocks.len() / ROWS,
        }
    }

    /// Block `b` of row `i`.
    ///
    /// # Safety
    /// `i < ROWS` and `b < n_blocks`.
    #[inline(always)]
    unsafe fn block(&self, i: usize, b: usize) -> &W {
        // SAFETY: `new` gave it `ROWS * n_blocks` blocks.
        unsafe { self.blocks.get_unchecked(i * self.n_blocks + b) }
    }

    /// The f16 that `field` picks, of block `b` of all rows.
    ///
    /// # Safety
    /// `b < n_blocks`; AVX2 and F16C.
    #[inline(always)]
    unsafe fn halves(&self, b: usize, field: impl Fn(&W) -> [u8; 2]) -> __m256 {
        // SAFETY: as the caller's.
        unsafe {
            let h = |i| i16::from_le_bytes(field(self.block(i, b)));
            _mm256_cvtph_ps(_mm_setr_epi16(
                h(0),
                h(1),
                h(2),
                h(3),
                h(4),
                h(5),
                h(6),
                h(7),
            ))
        }
    }

    /// W (8, K) @ x (K) -> (8)
    ///
    /// # Safety
    /// AVX2 and F16C.
    #[inline(always)]
    unsafe fn dot(&self, x: &[QuantBlock]) -> __m256 {
        assert_eq!(x.len(), self.n_blocks, "as wide as the matrix");
        // SAFETY: blocks are below `n_blocks`.
        unsafe {
            let mut acc = _mm256_setzero_ps();
            for (b, x) in x.iter().enumerate() {
                let q = [0, 16].map(|i| _mm256_loadu_si256(x.q.as_ptr().add(i).cast()));
                let mut isums = [_mm256_setzero_si256(); ROWS];
                for (i, isum) in isums.iter_mut().enumerate() {
                    let w = self.block(i, b).unpack();
                    *isum = _mm256_add_epi32(
                        _mm256_madd_epi16(w[0], q[0]),
                        _mm256_madd_epi16(w[1], q[1]),
                    );
                }
                let isum = _mm256_sub_epi32(sum_each(isums), _mm256_set1_epi32(W::OFFSET * x.sum));
                acc = accumulate(acc, isum, self.halves(b, W::scale), x);
                if W::HAS_MIN {
                    acc = accumulate_min(acc, self.halves(b, W::min), x);
                }
            }
            acc
        }
    }

    /// Unpacks to `scratch`: integers as i16 in the order [K / 2, 8 rows, 2], scales and minima as f32 [K / 32, 8 rows].
    ///
    /// # Safety
    /// AVX2 and F16C.
    #[inline(always)]
    unsafe fn unpack(&self, scratch: &mut Scratch) {
        scratch.tile.resize(self.n_blocks * ROWS * BLOCK, 0);
        scratch.scales.resize(self.n_blocks * ROWS, 0.0);
        scratch.mins.resize(self.n_blocks * ROWS, 0.0);
        let (scales, mins) = (scratch.scales.as_mut_ptr(), scratch.mins.as_mut_ptr());
        // SAFETY: blocks are below `n_blocks`, and the buffers were given room for them.
        unsafe {
            for b in 0..self.n_blocks {
                _mm256_storeu_ps(scales.add(b * ROWS), self.halves(b, W::scale));
                if W::HAS_MIN {
                    _mm256_storeu_ps(mins.add(b * ROWS), self.halves(b, W::min));
                }
                let mut rows = [[_mm256_setzero_si256(); 2]; ROWS];
                for (i, row) in rows.iter_mut().enumerate() {
                    *row = self.block(i, b).unpack();
                }
                let tile = scratch.tile.as_mut_ptr().add(b * ROWS * BLOCK);
                for half in [0, 1] {
                    let pairs = transpose(rows.map(|row| row[half]));
                    for (p, pair) in pairs.into_iter().enumerate() {
                        _mm256_storeu_si256(tile.add((half * 8 + p) * 2 * ROWS).cast(), pair);
                    }
                }
            }
        }
    }
}

/// `acc + isum * (d * x.d)`, for eight rows.
#[inline(always)]
unsafe fn accumulate(acc: __m256, isum: __m256i, d: __m256, x: &QuantBlock) -> __m256 {
    // SAFETY: AVX2 by the caller.
    unsafe {
        let scale = _mm256_mul_ps(d, _mm256_set1_ps(x.scale));
        _mm256_add_ps(acc, _mm256_mul_ps(_mm256_cvtepi32_ps(isum), scale))
    }
}

/// `acc + m * (x.d * sum)`, for eight rows.
#[inline(always)]
unsafe fn accumulate_min(acc: __m256, m: __m256, x: &QuantBlock) -> __m256 {
    // SAFETY: AVX2 by the caller.
    unsafe {
        _mm256_add_ps(
            acc,
            _mm256_mul_ps(m, _mm256_set1_ps(x.scale * x.sum as f32)),
        )
    }
}

/// The sum of each vector's lanes: eight vectors to one.
#[inline(always)]
unsafe fn sum_each(v: [__m256i; 8]) -> __m256i {
    // SAFETY: AVX2 by the caller.
    unsafe {
        let pairs = |i: usize| _mm256_hadd_epi32(v[i], v[i + 1]);
        let low = _mm256_hadd_epi32(pairs(0), pairs(2));
        let high = _mm256_hadd_epi32(pairs(4), pairs(6));
        _mm256_add_epi32(
            _mm256_permute2x128_si256::<0x20>(low, high),
            _mm256_permute2x128_si256::<0x31>(low, high),
        )
    }
}

/// Eight rows of eight i32 to eight columns.
#[inline(always)]
unsafe fn transpose(r: [__m256i; 8]) -> [__m256i; 8] {
    // SAFETY: AVX2 by the caller.
    unsafe {
        let lo = |i: usize| _mm256_unpacklo_epi32(r[i], r[i + 1]);
        let hi = |i: usize| _mm256_unpackhi_epi32(r[i], r[i + 1]);
        // Of rows 0..4 and 4..8: columns (0, 4), (1, 5), (2, 6), (3, 7).
        let quads = |i: usize| {
            let (l0, l2, h0, h2) = (lo(i), lo(i + 2), hi(i), hi(i + 2));
            [
                _mm256_unpacklo_epi64(l0, l2),
                _mm256_unpackhi_epi64(l0, l2),
                _mm256_unpacklo_epi64(h0, h2),
                _mm256_unpackhi_epi64(h0, h2),
            ]
        };
        let (a, b) = (quads(0), quads(4));
        let first = |c: usize| _mm256_permute2x128_si256::<0x20>(a[c], b[c]);
        let second = |c: usize| _mm256_permute2x128_si256::<0x31>(a[c], b[c]);
        [
            first(0),
            first(1),
            first(2),
            first(3),
            second(0),
            second(1),
            second(2),
            second(3),
        ]
    }
}

/// W (8, K) as unpacked @ x (T, K) -> out (T, 8)
#[inline(always)]
unsafe fn matmul_tile<W: Weight>(x: &Activations, scratch: &Scratch, out: &mut Columns<'_>) {
    // SAFETY: AVX2 by the caller.
    unsafe {
        let mut t = 0;
        while t + TOKENS <= x.n_rows {
            dot_tile::<W, TOKENS>(x, scratch, t, out);
            t += TOKENS;
        }
        while t < x.n_rows {
            dot_tile::<W, 1>(x, scratch, t, out);
            t += 1;
        }
    }
}

/// `T` tokens from `first`.
#[inline(always)]
unsafe fn dot_tile<W: Weight, const T: usize>(
    x: &Activations,
    scratch: &Scratch,
    first: usize,
    out: &mut Columns<'_>,
) {
    let n_blocks = x.n_cols / BLOCK;
    assert_eq!(scratch.tile.len(), n_blocks * ROWS * BLOCK, "unpacked");
    let blocks = &x.blocks[first * n_blocks..][..T * n_blocks];
    // SAFETY: AVX2 by the caller; indices stay below the lengths checked.
    unsafe {
        let mut acc = [_mm256_setzero_ps(); T];
        for b in 0..n_blocks {
            let tile = scratch.tile.as_ptr().add(b * ROWS * BLOCK);
            let mut isum = [_mm256_setzero_si256(); T];
            for pair in 0..BLOCK / 2 {
                let w = _mm256_loadu_si256(tile.add(pair * 2 * ROWS).cast());
                for (t, isum) in isum.iter_mut().enumerate() {
                    let q = blocks.get_unchecked(t * n_blocks + b).q.as_ptr();
                    let pair_of_x = q.add(2 * pair).cast::<[i16; 2]>().read();
                    *isum = _mm256_add_epi32(
                        *isum,
                        _mm256_madd_epi16(w, _mm256_set1_epi32(bytemuck::cast(pair_of_x))),
                    );
                }
            }
            let d = _mm256_loadu_ps(scratch.scales.as_ptr().add(b * ROWS));
            let m = _mm256_loadu_ps(scratch.mins.as_ptr().add(b * ROWS));
            for t in 0..T {
                let x = blocks.get_unchecked(t * n_blocks + b);
                let isum = _mm256_sub_epi32(isum[t], _mm256_set1_epi32(W::OFFSET * x.sum));
                acc[t] = accumulate(acc[t], isum, d, x);
                if W::HAS_MIN {
                    acc[t] = accumulate_min(acc[t], m, x);
                }
            }
        }
        for (t, acc) in acc.into_iter().enumerate() {
            _mm256_storeu_ps(out.row_mut(first + t)[..ROWS].as_mut_ptr(), acc);
        }
    }
}
