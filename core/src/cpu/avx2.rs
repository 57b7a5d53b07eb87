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
    vector::{self, F32x16, entries},
    weights::Matrix,
};
use crate::quant::{
    Block, BlockQ4_0, BlockQ4_1, BlockQ4K, BlockQ5_0, BlockQ5_1, BlockQ5K, BlockQ6K, BlockQ8_0,
    DType,
};
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
    rope,
    rope_halves,
    silu_mul,
    gelu,
    add,
    attend,
};

/// Rows of weights that one step takes.
const ROWS: usize = 8;
/// Tokens that one step of prefill takes.
const TOKENS: usize = 4;

entries! {
    "avx2,f16c";
    quantize_row(x: &[f32], out: &mut [QuantBlock]) = quantize_blocks;
    matmul(w: &Matrix, rows: Range<usize>, x: &Activations, out: &mut Columns<'_>, scratch: &mut Scratch) = matmul_rows;
    rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) = vector::rms_norm::<Lanes>;
    layer_norm(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, out: &mut [f32]) = vector::layer_norm::<Lanes>;
    rope(x: &mut [f32], rotations: &[(f32, f32)]) = vector::rope;
    rope_halves(x: &mut [f32], rotations: &[(f32, f32)]) = vector::rope_halves;
    add(x: &mut [f32], y: &[f32]) = vector::add;
    silu_mul(gate: &[f32], up: &[f32], out: &mut [f32]) = vector::silu_mul::<Lanes>;
    gelu(x: &[f32], out: &mut [f32]) = vector::gelu::<Lanes>;
    attend(d: usize, q: &[f32], k: KvRows<'_>, v: KvRows<'_>, scores: &mut [f32], out: &mut [f32]) = vector::attend::<Lanes>;
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
            DType::F32 => vector::matmul::<Lanes, f32, 4, 1>(w, rows, x, out),
            DType::F16 => vector::matmul::<Lanes, f16, 4, 1>(w, rows, x, out),
            DType::BF16 => vector::matmul::<Lanes, bf16, 4, 1>(w, rows, x, out),
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
}

/// A quantised type that products read, in parts of 32 elements.
///
/// # Safety
/// The functions use AVX2 and F16C; `s` is below [`Self::PARTS`].
trait Weight: Block {
    /// Parts of a block.
    const PARTS: usize = Self::LEN / BLOCK;
    /// Whether a part has a minimum that is added (`Q4_1`).
    const HAS_MIN: bool;
    /// What is subtracted from each integer as it is stored (`Q4_0`: 8).
    const OFFSET: i32 = 0;
    /// What the parts' scales are made of, for eight rows.
    type Scales: Copy;
    /// Reads them from the same block of eight rows.
    unsafe fn scales<'a>(row: impl Fn(usize) -> &'a Self) -> Self::Scales;
    /// The scales of part `s`.
    unsafe fn scale(scales: Self::Scales, s: usize) -> __m256;
    /// What is added to part `s`, where [`Self::HAS_MIN`].
    unsafe fn min(scales: Self::Scales, _s: usize) -> __m256;
    /// The integers of part `s` as stored, as i16 in order: elements 0..16 and 16..32.
    unsafe fn unpack(&self, s: usize) -> [__m256i; 2];
}

/// Eight f16, each of another row.
#[inline(always)]
unsafe fn halves(half: impl Fn(usize) -> [u8; 2]) -> __m256 {
    let h = |i| i16::from_le_bytes(half(i));
    // SAFETY: F16C by the caller.
    unsafe {
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

/// Types with a scale and no minimum.
macro_rules! scale_only {
    ($($name:ident, $offset:expr, |$block:ident| $unpack:expr;)*) => {$(
        impl Weight for $name {
            const HAS_MIN: bool = false;
            const OFFSET: i32 = $offset;
            type Scales = __m256;
            #[inline(always)]
            unsafe fn scales<'a>(row: impl Fn(usize) -> &'a Self) -> __m256 {
                // SAFETY: passed on.
                unsafe { halves(|i| row(i).d) }
            }
            #[inline(always)]
            unsafe fn scale(d: __m256, _: usize) -> __m256 {
                d
            }
            #[inline(always)]
            unsafe fn min(_: __m256, _: usize) -> __m256 {
                // SAFETY: AVX2 by the contract.
                unsafe { _mm256_setzero_ps() }
            }
            #[inline(always)]
            unsafe fn unpack(&self, _: usize) -> [__m256i; 2] {
                let $block = self;
                // SAFETY: passed on.
                unsafe { $unpack }
            }
        }
    )*};
}

scale_only! {
    BlockQ8_0, 0, |block| unpack_bytes(&block.qs);
    BlockQ4_0, 8, |block| unpack_nibbles(&block.qs);
    BlockQ5_0, 16, |block| add_fifths(unpack_nibbles(&block.qs), block.qh);
}

/// Types with a scale and a minimum.
macro_rules! scale_and_min {
    ($($name:ident, |$block:ident| $unpack:expr;)*) => {$(
        impl Weight for $name {
            const HAS_MIN: bool = true;
            type Scales = (__m256, __m256);
            #[inline(always)]
            unsafe fn scales<'a>(row: impl Fn(usize) -> &'a Self) -> (__m256, __m256) {
                // SAFETY: passed on.
                unsafe { (halves(|i| row(i).d), halves(|i| row(i).m)) }
            }
            #[inline(always)]
            unsafe fn scale((d, _): (__m256, __m256), _: usize) -> __m256 {
                d
            }
            #[inline(always)]
            unsafe fn min((_, m): (__m256, __m256), _: usize) -> __m256 {
                m
            }
            #[inline(always)]
            unsafe fn unpack(&self, _: usize) -> [__m256i; 2] {
                let $block = self;
                // SAFETY: passed on.
                unsafe { $unpack }
            }
        }
    )*};
}

scale_and_min! {
    BlockQ4_1, |block| unpack_nibbles(&block.qs);
    BlockQ5_1, |block| add_fifths(unpack_nibbles(&block.qs), block.qh);
}

/// Scales and minima of the super-blocks of eight rows.
#[derive(Clone, Copy)]
struct SuperScales {
    d: __m256,
    /// Minus `dmin`.
    min: __m256,
    /// Scales of parts 0..4 and 4..8, a byte each.
    scales: [__m256i; 2],
    /// Minima of the same.
    mins: [__m256i; 2],
}

impl SuperScales {
    /// `get_scale_min_k4` for four parts at a time.
    ///
    /// # Safety
    /// AVX2 and F16C.
    #[inline(always)]
    unsafe fn new<'a>(
        d: impl Fn(usize) -> [u8; 2],
        dmin: impl Fn(usize) -> [u8; 2],
        scales: impl Fn(usize) -> &'a [u8; 12],
    ) -> Self {
        // SAFETY: AVX2 and F16C by the caller.
        unsafe {
            let word = |k: usize| {
                let w = |i: usize| i32::from_le_bytes(scales(i).as_chunks().0[k]);
                _mm256_setr_epi32(w(0), w(1), w(2), w(3), w(4), w(5), w(6), w(7))
            };
            let [a, b, c] = [word(0), word(1), word(2)];
            let six = |x| _mm256_and_si256(x, _mm256_set1_epi32(0x3f3f_3f3f));
            let low = |x| _mm256_and_si256(x, _mm256_set1_epi32(0x0f0f_0f0f));
            // The upper two of eight bits, as bits four and five.
            let top =
                |x| _mm256_and_si256(_mm256_srli_epi32::<2>(x), _mm256_set1_epi32(0x3030_3030));
            Self {
                d: halves(d),
                min: _mm256_xor_ps(halves(dmin), _mm256_set1_ps(-0.0)),
                scales: [six(a), _mm256_or_si256(low(c), top(a))],
                mins: [
                    six(b),
                    _mm256_or_si256(low(_mm256_srli_epi32::<4>(c)), top(b)),
                ],
            }
        }
    }

    /// Byte `s` of eight, in each row.
    #[inline(always)]
    unsafe fn byte(words: [__m256i; 2], s: usize) -> __m256 {
        // SAFETY: AVX2 by the caller.
        unsafe {
            let shift = _mm_cvtsi32_si128(8 * (s as i32 % 4));
            let byte = _mm256_and_si256(
                _mm256_srl_epi32(words[s / 4], shift),
                _mm256_set1_epi32(0xff),
            );
            _mm256_cvtepi32_ps(byte)
        }
    }
}

/// The K types with scales and minima of six bits.
macro_rules! super_scales {
    ($($name:ident, |$block:ident, $s:ident| $unpack:expr;)*) => {$(
        impl Weight for $name {
            const HAS_MIN: bool = true;
            type Scales = SuperScales;
            #[inline(always)]
            unsafe fn scales<'a>(row: impl Fn(usize) -> &'a Self) -> SuperScales {
                // SAFETY: passed on.
                unsafe { SuperScales::new(|i| row(i).d, |i| row(i).dmin, |i| &row(i).scales) }
            }
            #[inline(always)]
            unsafe fn scale(x: SuperScales, s: usize) -> __m256 {
                // SAFETY: passed on.
                unsafe { _mm256_mul_ps(x.d, SuperScales::byte(x.scales, s)) }
            }
            #[inline(always)]
            unsafe fn min(x: SuperScales, s: usize) -> __m256 {
                // SAFETY: passed on.
                unsafe { _mm256_mul_ps(x.min, SuperScales::byte(x.mins, s)) }
            }
            #[inline(always)]
            unsafe fn unpack(&self, $s: usize) -> [__m256i; 2] {
                let $block = self;
                // SAFETY: passed on.
                unsafe { $unpack }
            }
        }
    )*};
}

super_scales! {
    BlockQ4K, |block, s| widen(half_bytes(&block.qs, s / 2, 4 * (s % 2)));
    BlockQ5K, |block, s| {
        let fifth = _mm256_and_si256(shifted(&block.qh, 0, s), _mm256_set1_epi8(1));
        // Bits stay within their byte.
        let fifth = _mm256_slli_epi16::<4>(fifth);
        widen(_mm256_or_si256(half_bytes(&block.qs, s / 2, 4 * (s % 2)), fifth))
    };
}

impl Weight for BlockQ6K {
    const HAS_MIN: bool = false;
    type Scales = __m256;
    #[inline(always)]
    unsafe fn scales<'a>(row: impl Fn(usize) -> &'a Self) -> __m256 {
        // SAFETY: passed on.
        unsafe { halves(|i| row(i).d) }
    }
    #[inline(always)]
    unsafe fn scale(d: __m256, _: usize) -> __m256 {
        d
    }
    #[inline(always)]
    unsafe fn min(_: __m256, _: usize) -> __m256 {
        // SAFETY: AVX2 by the contract.
        unsafe { _mm256_setzero_ps() }
    }
    /// Times the scales of the sub-blocks of 16.
    #[inline(always)]
    unsafe fn unpack(&self, s: usize) -> [__m256i; 2] {
        let (half, k) = (s / 4, s % 4);
        // SAFETY: AVX2 by the contract; the shifted bytes are those of this part.
        unsafe {
            let low = half_bytes(&self.ql, 2 * half + k % 2, 4 * (k / 2));
            let high = _mm256_and_si256(shifted(&self.qh, half, 2 * k), _mm256_set1_epi8(3));
            let six = _mm256_or_si256(low, _mm256_slli_epi16::<4>(high));
            let q = widen(_mm256_sub_epi8(six, _mm256_set1_epi8(32)));
            // Two by name: a closure for both may become a function without AVX2.
            let (first, second) = (self.scales[2 * s], self.scales[2 * s + 1]);
            [
                _mm256_mullo_epi16(q[0], _mm256_set1_epi16(i16::from(first))),
                _mm256_mullo_epi16(q[1], _mm256_set1_epi16(i16::from(second))),
            ]
        }
    }
}

/// 32 bytes from `32 i` on, shifted down as words: the bits that come from the neighbour are for the caller to mask.
#[inline(always)]
unsafe fn shifted(bytes: &[u8], i: usize, bits: usize) -> __m256i {
    let bytes = &bytes[32 * i..][..32];
    // SAFETY: AVX2 by the caller; a load of 32.
    unsafe {
        let bytes = _mm256_loadu_si256(bytes.as_ptr().cast());
        _mm256_srl_epi16(bytes, _mm_cvtsi32_si128(bits as i32))
    }
}

/// The same, four bits of each byte.
#[inline(always)]
unsafe fn half_bytes(bytes: &[u8], i: usize, bits: usize) -> __m256i {
    // SAFETY: passed on.
    unsafe { _mm256_and_si256(shifted(bytes, i, bits), _mm256_set1_epi8(15)) }
}

/// Signed bytes to i16, in order.
#[inline(always)]
unsafe fn widen(bytes: __m256i) -> [__m256i; 2] {
    // SAFETY: AVX2 by the caller.
    unsafe {
        [
            _mm256_cvtepi8_epi16(_mm256_castsi256_si128(bytes)),
            _mm256_cvtepi8_epi16(_mm256_extracti128_si256::<1>(bytes)),
        ]
    }
}

/// Signed bytes in order: elements 0..16 and 16..32.
#[inline(always)]
unsafe fn unpack_bytes(qs: &[i8; BLOCK]) -> [__m256i; 2] {
    // SAFETY: AVX2 by the caller; both halves lie within `qs`.
    unsafe { [0, 16].map(|i| _mm256_cvtepi8_epi16(_mm_loadu_si128(qs.as_ptr().add(i).cast()))) }
}

/// Sets the fifth bit of element i where bit i of `qh` is set.
#[inline(always)]
unsafe fn add_fifths(nibbles: [__m256i; 2], qh: [u8; 4]) -> [__m256i; 2] {
    // SAFETY: AVX2 by the caller.
    unsafe {
        let bits = _mm256_setr_epi16(
            1,
            2,
            4,
            8,
            16,
            32,
            64,
            128,
            256,
            512,
            1024,
            2048,
            4096,
            8192,
            16384,
            i16::MIN,
        );
        let [a, b, c, d] = qh;
        let fifth = _mm256_set1_epi16(16);
        // Two by name: a closure for both would be a function without AVX2.
        let low = _mm256_set1_epi16(i16::from_le_bytes([a, b]));
        let high = _mm256_set1_epi16(i16::from_le_bytes([c, d]));
        let low = _mm256_cmpeq_epi16(_mm256_and_si256(low, bits), bits);
        let high = _mm256_cmpeq_epi16(_mm256_and_si256(high, bits), bits);
        [
            _mm256_or_si256(nibbles[0], _mm256_and_si256(low, fifth)),
            _mm256_or_si256(nibbles[1], _mm256_and_si256(high, fifth)),
        ]
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

    /// The scales of block `b` of all rows.
    ///
    /// # Safety
    /// `b < n_blocks`; AVX2 and F16C.
    #[inline(always)]
    unsafe fn scales(&self, b: usize) -> W::Scales {
        // SAFETY: as the caller's.
        unsafe { W::scales(|i| self.block(i, b)) }
    }

    /// W (8, K) @ x (K) -> (8)
    ///
    /// # Safety
    /// AVX2 and F16C.
    #[inline(always)]
    unsafe fn dot(&self, x: &[QuantBlock]) -> __m256 {
        assert_eq!(x.len(), self.n_blocks * W::PARTS, "as wide as the matrix");
        // SAFETY: blocks are below `n_blocks`.
        unsafe {
            let mut acc = _mm256_setzero_ps();
            for (b, x) in x.chunks_exact(W::PARTS).enumerate() {
                let scales = self.scales(b);
                for (s, x) in x.iter().enumerate() {
                    let q = [0, 16].map(|i| _mm256_loadu_si256(x.q.as_ptr().add(i).cast()));
                    let mut isums = [_mm256_setzero_si256(); ROWS];
                    for (i, isum) in isums.iter_mut().enumerate() {
                        let w = self.block(i, b).unpack(s);
                        *isum = _mm256_add_epi32(
                            _mm256_madd_epi16(w[0], q[0]),
                            _mm256_madd_epi16(w[1], q[1]),
                        );
                    }
                    let offset = _mm256_set1_epi32(W::OFFSET * x.sum);
                    let isum = _mm256_sub_epi32(sum_each(isums), offset);
                    acc = accumulate(acc, isum, W::scale(scales, s), x);
                    if W::HAS_MIN {
                        acc = accumulate_min(acc, W::min(scales, s), x);
                    }
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
        let n_parts = self.n_blocks * W::PARTS;
        scratch.tile.resize(n_parts * ROWS * BLOCK, 0);
        scratch.scales.resize(n_parts * ROWS, 0.0);
        scratch.mins.resize(n_parts * ROWS, 0.0);
        let (scales, mins) = (scratch.scales.as_mut_ptr(), scratch.mins.as_mut_ptr());
        // SAFETY: blocks are below `n_blocks`, and the buffers were given room for them.
        unsafe {
            for b in 0..self.n_blocks {
                let of_block = self.scales(b);
                for s in 0..W::PARTS {
                    let part = b * W::PARTS + s;
                    _mm256_storeu_ps(scales.add(part * ROWS), W::scale(of_block, s));
                    if W::HAS_MIN {
                        _mm256_storeu_ps(mins.add(part * ROWS), W::min(of_block, s));
                    }
                    let mut rows = [[_mm256_setzero_si256(); 2]; ROWS];
                    for (i, row) in rows.iter_mut().enumerate() {
                        *row = self.block(i, b).unpack(s);
                    }
                    let tile = scratch.tile.as_mut_ptr().add(part * ROWS * BLOCK);
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
