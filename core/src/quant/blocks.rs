//! The blocks as they lie in a file. All fields are bytes, so a block has alignment 1 and any byte slice of the
//! right length can be read as blocks where it lies: in a memory map, in a received buffer, in wasm's memory.

use bytemuck::{Pod, Zeroable};
use half::f16;

/// Elements in a block of the types without super-blocks.
pub const BLOCK_LEN: usize = 32;

/// A block of [`Self::LEN`] quantised values.
pub trait Block: Pod {
    /// Elements in the block: [`BLOCK_LEN`], or [`super::SUPER_LEN`] for the K types.
    const LEN: usize;
    /// The block by [`super::Method::Nearest`]. `x` has [`Self::LEN`] elements.
    fn quantize(x: &[f32]) -> Self;
    /// The values. `y` has [`Self::LEN`] elements.
    fn dequantize(&self, y: &mut [f32]);
    /// The smallest and the largest integer.
    const INTEGERS: (i8, i8);
    /// What the integers stand for, element by element: `w = step * q + offset`, as [`Self::dequantize`] rounds it.
    fn grid(&self, step: &mut [f32], offset: &mut [f32]);
    /// Replaces the integers, which are within [`Self::INTEGERS`]; the scales stay.
    fn set_integers(&mut self, q: &[i8]);
}

/// Reads bytes as blocks without copying.
///
/// # Panics
/// When `bytes` is no whole number of blocks.
pub fn blocks<B: Block>(bytes: &[u8]) -> &[B] {
    bytemuck::cast_slice(bytes)
}

/// 8 bits: `w = d * q`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ8_0 {
    /// Scale, an f16 in little-endian.
    pub d: [u8; 2],
    /// Integers in order.
    pub qs: [i8; BLOCK_LEN],
}

/// 4 bits: `w = d * (q - 8)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ4_0 {
    /// Scale, an f16 in little-endian.
    pub d: [u8; 2],
    /// Element i in the low nibble of byte i, element i + 16 in the high nibble.
    pub qs: [u8; BLOCK_LEN / 2],
}

/// 4 bits: `w = d * q + m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ4_1 {
    /// Scale, an f16 in little-endian.
    pub d: [u8; 2],
    /// Minimum, an f16 in little-endian.
    pub m: [u8; 2],
    /// Element i in the low nibble of byte i, element i + 16 in the high nibble.
    pub qs: [u8; BLOCK_LEN / 2],
}

/// 5 bits: `w = d * (q - 16)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ5_0 {
    /// Scale, an f16 in little-endian.
    pub d: [u8; 2],
    /// Bit i is the fifth bit of element i, little-endian.
    pub qh: [u8; 4],
    /// The lower four bits, as in [`BlockQ4_0`].
    pub qs: [u8; BLOCK_LEN / 2],
}

/// 5 bits: `w = d * q + m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ5_1 {
    /// Scale, an f16 in little-endian.
    pub d: [u8; 2],
    /// Minimum, an f16 in little-endian.
    pub m: [u8; 2],
    /// Bit i is the fifth bit of element i, little-endian.
    pub qh: [u8; 4],
    /// The lower four bits, as in [`BlockQ4_1`].
    pub qs: [u8; BLOCK_LEN / 2],
}

const _: () = {
    assert!(size_of::<BlockQ8_0>() == 34 && align_of::<BlockQ8_0>() == 1);
    assert!(size_of::<BlockQ4_0>() == 18 && align_of::<BlockQ4_0>() == 1);
    assert!(size_of::<BlockQ4_1>() == 20 && align_of::<BlockQ4_1>() == 1);
    assert!(size_of::<BlockQ5_0>() == 22 && align_of::<BlockQ5_0>() == 1);
    assert!(size_of::<BlockQ5_1>() == 24 && align_of::<BlockQ5_1>() == 1);
};

impl Block for BlockQ8_0 {
    const LEN: usize = BLOCK_LEN;

    /// `quantize_row_q8_0_ref`.
    fn quantize(x: &[f32]) -> Self {
        let amax = x.iter().fold(0.0_f32, |amax, v| amax.max(v.abs()));
        let d = amax / 127.0;
        let id = inverse(d);
        Self {
            d: f16::from_f32(d).to_le_bytes(),
            // C's roundf: halves away from zero.
            qs: std::array::from_fn(|i| (x[i] * id).round() as i8),
        }
    }

    fn dequantize(&self, y: &mut [f32]) {
        let d = half(self.d);
        for (y, q) in y.iter_mut().zip(self.qs) {
            *y = f32::from(q) * d;
        }
    }

    const INTEGERS: (i8, i8) = (-127, 127);

    fn grid(&self, step: &mut [f32], offset: &mut [f32]) {
        step.fill(half(self.d));
        offset.fill(0.0);
    }

    fn set_integers(&mut self, q: &[i8]) {
        self.qs.copy_from_slice(q);
    }
}

impl Block for BlockQ4_0 {
    const LEN: usize = BLOCK_LEN;

    /// `quantize_row_q4_0_ref`: the value of largest magnitude, with its sign, becomes -8.
    fn quantize(x: &[f32]) -> Self {
        let d = largest(x) / -8.0;
        let id = inverse(d);
        Self {
            d: f16::from_f32(d).to_le_bytes(),
            qs: pack_nibbles(|i| at_most(x[i] * id + 8.5, 15)),
        }
    }

    fn dequantize(&self, y: &mut [f32]) {
        let d = half(self.d);
        unpack(&self.qs, 0, y, |q| (q - 8.0) * d);
    }

    const INTEGERS: (i8, i8) = (-8, 7);

    fn grid(&self, step: &mut [f32], offset: &mut [f32]) {
        step.fill(half(self.d));
        offset.fill(0.0);
    }

    fn set_integers(&mut self, q: &[i8]) {
        self.qs = pack_nibbles(|i| (q[i] + 8) as u8);
    }
}

impl Block for BlockQ4_1 {
    const LEN: usize = BLOCK_LEN;

    /// `quantize_row_q4_1_ref`: minimum and maximum become 0 and 15.
    fn quantize(x: &[f32]) -> Self {
        let (min, d) = min_and_step(x, 15.0);
        let id = inverse(d);
        Self {
            d: f16::from_f32(d).to_le_bytes(),
            m: f16::from_f32(min).to_le_bytes(),
            qs: pack_nibbles(|i| at_most((x[i] - min) * id + 0.5, 15)),
        }
    }

    fn dequantize(&self, y: &mut [f32]) {
        let (d, m) = (half(self.d), half(self.m));
        unpack(&self.qs, 0, y, |q| q * d + m);
    }

    const INTEGERS: (i8, i8) = (0, 15);

    fn grid(&self, step: &mut [f32], offset: &mut [f32]) {
        step.fill(half(self.d));
        offset.fill(half(self.m));
    }

    fn set_integers(&mut self, q: &[i8]) {
        self.qs = pack_nibbles(|i| q[i] as u8);
    }
}

impl Block for BlockQ5_0 {
    const LEN: usize = BLOCK_LEN;

    /// `quantize_row_q5_0_ref`: the value of largest magnitude, with its sign, becomes -16.
    fn quantize(x: &[f32]) -> Self {
        let d = largest(x) / -16.0;
        let id = inverse(d);
        Self::pack(f16::from_f32(d), |i| at_most(x[i] * id + 16.5, 31))
    }

    fn dequantize(&self, y: &mut [f32]) {
        let d = half(self.d);
        unpack(&self.qs, u32::from_le_bytes(self.qh), y, |q| (q - 16.0) * d);
    }

    const INTEGERS: (i8, i8) = (-16, 15);

    fn grid(&self, step: &mut [f32], offset: &mut [f32]) {
        step.fill(half(self.d));
        offset.fill(0.0);
    }

    fn set_integers(&mut self, q: &[i8]) {
        *self = Self::pack(f16::from_le_bytes(self.d), |i| (q[i] + 16) as u8);
    }
}

impl BlockQ5_0 {
    /// From a scale and the integers as stored (0 to 31).
    pub(super) fn pack(d: f16, q: impl Fn(usize) -> u8) -> Self {
        Self {
            d: d.to_le_bytes(),
            qh: fifth_bits(&q),
            qs: pack_nibbles(q),
        }
    }
}

impl Block for BlockQ5_1 {
    const LEN: usize = BLOCK_LEN;

    /// `quantize_row_q5_1_ref`: minimum and maximum become 0 and 31.
    fn quantize(x: &[f32]) -> Self {
        let (min, d) = min_and_step(x, 31.0);
        let id = inverse(d);
        // The reference cuts to a byte and does not clamp; the bits beyond the fifth are lost then.
        let q = |i: usize| ((x[i] - min) * id + 0.5) as u8;
        Self::pack(f16::from_f32(d), f16::from_f32(min), q)
    }

    fn dequantize(&self, y: &mut [f32]) {
        let (d, m) = (half(self.d), half(self.m));
        unpack(&self.qs, u32::from_le_bytes(self.qh), y, |q| q * d + m);
    }

    const INTEGERS: (i8, i8) = (0, 31);

    fn grid(&self, step: &mut [f32], offset: &mut [f32]) {
        step.fill(half(self.d));
        offset.fill(half(self.m));
    }

    fn set_integers(&mut self, q: &[i8]) {
        let (d, m) = (f16::from_le_bytes(self.d), f16::from_le_bytes(self.m));
        *self = Self::pack(d, m, |i| q[i] as u8);
    }
}

impl BlockQ5_1 {
    /// From a scale, a minimum and the integers as stored (0 to 31).
    pub(super) fn pack(d: f16, m: f16, q: impl Fn(usize) -> u8) -> Self {
        Self {
            d: d.to_le_bytes(),
            m: m.to_le_bytes(),
            qh: fifth_bits(&q),
            qs: pack_nibbles(q),
        }
    }
}

/// The reference divides by the f32 scale, before it is rounded to f16.
fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

pub(super) fn half(bytes: [u8; 2]) -> f32 {
    f16::from_le_bytes(bytes).to_f32()
}

/// The value of largest magnitude, the first of several.
pub(super) fn largest(x: &[f32]) -> f32 {
    let larger = |max: f32, v: &f32| if max.abs() < v.abs() { *v } else { max };
    x.iter().fold(0.0, larger)
}

/// The minimum, and the step that `n` of them lead to the maximum.
fn min_and_step(x: &[f32], n: f32) -> (f32, f32) {
    let min = x.iter().copied().fold(f32::MAX, f32::min);
    let max = x.iter().copied().fold(f32::MIN, f32::max);
    (min, (max - min) / n)
}

fn at_most(v: f32, max: i8) -> u8 {
    (v as i8).min(max) as u8
}

/// The lower four bits of each integer, element i beside element i + 16.
pub(super) fn pack_nibbles(q: impl Fn(usize) -> u8) -> [u8; BLOCK_LEN / 2] {
    std::array::from_fn(|i| (q(i) & 15) | ((q(i + BLOCK_LEN / 2) & 15) << 4))
}

fn fifth_bits(q: impl Fn(usize) -> u8) -> [u8; 4] {
    let bit = |i: usize| u32::from(q(i) >> 4 & 1) << i;
    (0..BLOCK_LEN).map(bit).sum::<u32>().to_le_bytes()
}

/// Nibbles with the fifth bits `qh`.
fn unpack(qs: &[u8; BLOCK_LEN / 2], qh: u32, y: &mut [f32], value: impl Fn(f32) -> f32) {
    let (low, high) = y.split_at_mut(BLOCK_LEN / 2);
    for (i, ((q, low), high)) in qs.iter().zip(low).zip(high).enumerate() {
        let fifth = |i: usize| ((qh >> i & 1) as u8) << 4;
        *low = value(f32::from(q & 0x0f | fifth(i)));
        *high = value(f32::from(q >> 4 | fifth(i + BLOCK_LEN / 2)));
    }
}
