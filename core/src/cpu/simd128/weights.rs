//! Blocks of weights: their integers as i16, the scales and minima of four parts in the lanes of a vector.

use super::arch::*;
use super::lanes::widen_f16;
use crate::{
    cpu::kernels::BLOCK,
    quant::{
        Block, BlockQ4_0, BlockQ4_1, BlockQ4K, BlockQ5_0, BlockQ5_1, BlockQ5K, BlockQ6K, BlockQ8_0,
        scale_and_min,
    },
};
use std::mem::offset_of;

/// Four parts of 32 elements, each by its block and its number there: of one row, or of four.
pub(super) type Parts<'a, W> = [(&'a W, usize); 4];

/// 32 integers as i16, in the order of their type.
pub(super) type Integers = (v128, v128, v128, v128);

/// A quantised type that products read, in parts of 32 elements.
pub(super) trait Weight: Block {
    /// Parts of a block.
    const PARTS: usize = Self::LEN / BLOCK;
    /// Whether a part has a minimum that is added (`Q4_1`).
    const HAS_MIN: bool;
    /// What is still to be subtracted from each of [`Self::integers`] (`Q4_0`: 8).
    const OFFSET: i16 = 0;
    /// Whether [`Self::integers`] come in pairs as [`split`] makes them, and not in order.
    const IS_SPLIT: bool;
    /// The scales of the parts, and what is added to them where [`Self::HAS_MIN`].
    fn scales(parts: Parts<'_, Self>) -> (v128, v128);
    /// The integers of part `s`.
    fn integers(&self, s: usize) -> Integers;
}

/// 32 activations in the order of weights that are split.
#[inline(always)]
pub(super) fn split(q: Integers) -> Integers {
    let even = |a, b| i16x8_shuffle::<0, 2, 4, 6, 8, 10, 12, 14>(a, b);
    let odd = |a, b| i16x8_shuffle::<1, 3, 5, 7, 9, 11, 13, 15>(a, b);
    (even(q.0, q.1), odd(q.0, q.1), even(q.2, q.3), odd(q.2, q.3))
}

/// Sixteen bytes as two vectors: those at even places, those at odd ones.
#[inline(always)]
fn split_bytes(bytes: v128) -> (v128, v128) {
    (v128_and(bytes, u16x8_splat(0x00ff)), u16x8_shr(bytes, 8))
}

/// The low nibbles of sixteen bytes at even places, and of those at odd ones.
#[inline(always)]
fn low_nibbles(bytes: v128) -> (v128, v128) {
    let mask = u16x8_splat(15);
    (v128_and(bytes, mask), v128_and(u16x8_shr(bytes, 8), mask))
}

/// The same of the high nibbles.
#[inline(always)]
fn high_nibbles(bytes: v128) -> (v128, v128) {
    let mask = u16x8_splat(15);
    (v128_and(u16x8_shr(bytes, 4), mask), u16x8_shr(bytes, 12))
}

/// Low nibbles are elements 0..16, high ones 16..32.
#[inline(always)]
fn nibbles(qs: &[u8; BLOCK / 2]) -> Integers {
    let bytes = load(qs, 0);
    let (low, high) = (low_nibbles(bytes), high_nibbles(bytes));
    (low.0, low.1, high.0, high.1)
}

/// Sets the fifth bit of element i where bit i of `qh` is set.
#[inline(always)]
fn with_fifths(q: Integers, qh: [u8; 4]) -> Integers {
    let even = u16x8(1, 1 << 2, 1 << 4, 1 << 6, 1 << 8, 1 << 10, 1 << 12, 1 << 14);
    let odd = i16x8_shl(even, 1);
    let half = |i: usize| u16x8_splat(u16::from_le_bytes([qh[i], qh[i + 1]]));
    let fifth = |half: v128, bits: v128| {
        let is_set = i16x8_eq(v128_and(half, bits), bits);
        v128_and(is_set, i16x8_splat(16))
    };
    let (low, high) = (half(0), half(2));
    (
        v128_or(q.0, fifth(low, even)),
        v128_or(q.1, fifth(low, odd)),
        v128_or(q.2, fifth(high, even)),
        v128_or(q.3, fifth(high, odd)),
    )
}

/// Sixteen bytes from `at` on.
#[inline(always)]
fn load(bytes: &[u8], at: usize) -> v128 {
    let bytes = &bytes[at..][..16];
    // SAFETY: sixteen bytes.
    unsafe { v128_load(bytes.as_ptr().cast()) }
}

/// The four bytes at `offset` of each block.
#[inline(always)]
fn words<W>(parts: Parts<'_, W>, offset: usize) -> v128 {
    assert!(offset + 4 <= size_of::<W>(), "within the block");
    // SAFETY: four bytes within each block.
    let word = |i: usize| unsafe {
        let block: *const W = parts[i].0;
        v128_load32_zero(block.cast::<u8>().add(offset).cast())
    };
    let (ab, cd) = (
        i32x4_shuffle::<0, 4, 1, 5>(word(0), word(1)),
        i32x4_shuffle::<0, 4, 1, 5>(word(2), word(3)),
    );
    i64x2_shuffle::<0, 2>(ab, cd)
}

/// The f16 in the lower halves.
#[inline(always)]
fn lower(words: v128) -> v128 {
    widen_f16(i32x4_shl(words, 16))
}

/// Types that begin with their scale.
#[inline(always)]
fn scale_only<W>(parts: Parts<'_, W>) -> (v128, v128) {
    (lower(words(parts, 0)), f32x4_splat(0.0))
}

/// Types that begin with scale and minimum.
#[inline(always)]
fn scale_and_minimum<W>(parts: Parts<'_, W>) -> (v128, v128) {
    let words = words(parts, 0);
    (lower(words), widen_f16(words))
}

/// The same of `Q4_K` and `Q5_K`, with those of part `s`.
#[inline(always)]
fn sub_scales<W>(parts: Parts<'_, W>, of_part: impl Fn(&W, usize) -> (u8, u8)) -> (v128, v128) {
    let (d, dmin) = scale_and_minimum(parts);
    let of = |i: usize| of_part(parts[i].0, parts[i].1);
    let (a, b, c, e) = (of(0), of(1), of(2), of(3));
    let f = f32::from;
    let scale = f32x4_mul(d, f32x4(f(a.0), f(b.0), f(c.0), f(e.0)));
    let min = f32x4_mul(dmin, f32x4(f(a.1), f(b.1), f(c.1), f(e.1)));
    (scale, f32x4_neg(min))
}

impl Weight for BlockQ8_0 {
    const HAS_MIN: bool = false;
    const IS_SPLIT: bool = false;
    #[inline(always)]
    fn scales(parts: Parts<'_, Self>) -> (v128, v128) {
        scale_only(parts)
    }
    #[inline(always)]
    fn integers(&self, _: usize) -> Integers {
        let qs = self.qs.as_ptr();
        // SAFETY: four loads of eight stay within `qs`.
        unsafe {
            (
                i16x8_load_extend_i8x8(qs),
                i16x8_load_extend_i8x8(qs.add(8)),
                i16x8_load_extend_i8x8(qs.add(16)),
                i16x8_load_extend_i8x8(qs.add(24)),
            )
        }
    }
}

impl Weight for BlockQ4_0 {
    const HAS_MIN: bool = false;
    const OFFSET: i16 = 8;
    const IS_SPLIT: bool = true;
    #[inline(always)]
    fn scales(parts: Parts<'_, Self>) -> (v128, v128) {
        scale_only(parts)
    }
    #[inline(always)]
    fn integers(&self, _: usize) -> Integers {
        nibbles(&self.qs)
    }
}

impl Weight for BlockQ5_0 {
    const HAS_MIN: bool = false;
    const OFFSET: i16 = 16;
    const IS_SPLIT: bool = true;
    #[inline(always)]
    fn scales(parts: Parts<'_, Self>) -> (v128, v128) {
        scale_only(parts)
    }
    #[inline(always)]
    fn integers(&self, _: usize) -> Integers {
        with_fifths(nibbles(&self.qs), self.qh)
    }
}

impl Weight for BlockQ4_1 {
    const HAS_MIN: bool = true;
    const IS_SPLIT: bool = true;
    #[inline(always)]
    fn scales(parts: Parts<'_, Self>) -> (v128, v128) {
        scale_and_minimum(parts)
    }
    #[inline(always)]
    fn integers(&self, _: usize) -> Integers {
        nibbles(&self.qs)
    }
}

impl Weight for BlockQ5_1 {
    const HAS_MIN: bool = true;
    const IS_SPLIT: bool = true;
    #[inline(always)]
    fn scales(parts: Parts<'_, Self>) -> (v128, v128) {
        scale_and_minimum(parts)
    }
    #[inline(always)]
    fn integers(&self, _: usize) -> Integers {
        with_fifths(nibbles(&self.qs), self.qh)
    }
}

impl Weight for BlockQ4K {
    const HAS_MIN: bool = true;
    const IS_SPLIT: bool = true;
    #[inline(always)]
    fn scales(parts: Parts<'_, Self>) -> (v128, v128) {
        sub_scales(parts, |block, s| scale_and_min(&block.scales, s))
    }
    #[inline(always)]
    fn integers(&self, s: usize) -> Integers {
        let at = s / 2 * BLOCK;
        let (a, b) = (load(&self.qs, at), load(&self.qs, at + 16));
        let (a, b) = if s.is_multiple_of(2) {
            (low_nibbles(a), low_nibbles(b))
        } else {
            (high_nibbles(a), high_nibbles(b))
        };
        (a.0, a.1, b.0, b.1)
    }
}

impl Weight for BlockQ5K {
    const HAS_MIN: bool = true;
    const IS_SPLIT: bool = true;
    #[inline(always)]
    fn scales(parts: Parts<'_, Self>) -> (v128, v128) {
        sub_scales(parts, |block, s| scale_and_min(&block.scales, s))
    }
    #[inline(always)]
    fn integers(&self, s: usize) -> Integers {
        let sixteen = |at: usize| {
            let low = v128_and(
                u8x16_shr(load(&self.qs, s / 2 * BLOCK + at), 4 * (s as u32 % 2)),
                u8x16_splat(15),
            );
            let fifth = v128_and(u8x16_shr(load(&self.qh, at), s as u32), u8x16_splat(1));
            split_bytes(v128_or(low, u8x16_shl(fifth, 4)))
        };
        let (a, b) = (sixteen(0), sixteen(16));
        (a.0, a.1, b.0, b.1)
    }
}

impl Weight for BlockQ6K {
    const HAS_MIN: bool = false;
    const IS_SPLIT: bool = true;
    #[inline(always)]
    fn scales(parts: Parts<'_, Self>) -> (v128, v128) {
        // The scale is the end of the block.
        let words = words(parts, offset_of!(Self, d) - 2);
        (widen_f16(words), f32x4_splat(0.0))
    }
    /// Times the scales of the sub-blocks of 16.
    #[inline(always)]
    fn integers(&self, s: usize) -> Integers {
        let (half, k) = (s / 4, s % 4);
        let sixteen = |i: usize| {
            let low = load(&self.ql, (2 * half + k % 2) * BLOCK + 16 * i);
            let low = v128_and(u8x16_shr(low, 4 * (k as u32 / 2)), u8x16_splat(15));
            let high = u8x16_shr(load(&self.qh, half * BLOCK + 16 * i), 2 * k as u32);
            let high = u8x16_shl(v128_and(high, u8x16_splat(3)), 4);
            let (even, odd) = split_bytes(v128_or(low, high));
            let scale = i16x8_splat(i16::from(self.scales[2 * s + i]));
            let offset = i16x8_splat(32);
            (
                i16x8_mul(i16x8_sub(even, offset), scale),
                i16x8_mul(i16x8_sub(odd, offset), scale),
            )
        };
        let (a, b) = (sixteen(0), sixteen(1));
        (a.0, a.1, b.0, b.1)
    }
}
