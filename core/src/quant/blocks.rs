//! The blocks as they lie in a file. All fields are bytes, so a block has alignment 1 and any byte slice of the
//! right length can be read as blocks where it lies: in a memory map, in a received buffer, in wasm's memory.

use bytemuck::{Pod, Zeroable};
use half::f16;

/// Elements in a block of every quantised type.
pub const BLOCK_LEN: usize = 32;

/// A block of [`BLOCK_LEN`] quantised values.
pub trait Block: Pod {
    /// The block nearest to `x` by ggml's reference.
    fn quantize(x: &[f32; BLOCK_LEN]) -> Self;
    /// The values.
    fn dequantize(&self, y: &mut [f32; BLOCK_LEN]);
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

const _: () = {
    assert!(size_of::<BlockQ8_0>() == 34 && align_of::<BlockQ8_0>() == 1);
    assert!(size_of::<BlockQ4_0>() == 18 && align_of::<BlockQ4_0>() == 1);
    assert!(size_of::<BlockQ4_1>() == 20 && align_of::<BlockQ4_1>() == 1);
};

impl Block for BlockQ8_0 {
    /// `quantize_row_q8_0_ref`.
    fn quantize(x: &[f32; BLOCK_LEN]) -> Self {
        let amax = x.iter().fold(0.0_f32, |amax, v| amax.max(v.abs()));
        let d = amax / 127.0;
        let id = inverse(d);
        Self {
            d: f16::from_f32(d).to_le_bytes(),
            // C's roundf: halves away from zero.
            qs: x.map(|v| (v * id).round() as i8),
        }
    }

    fn dequantize(&self, y: &mut [f32; BLOCK_LEN]) {
        let d = f16::from_le_bytes(self.d).to_f32();
        *y = self.qs.map(|q| f32::from(q) * d);
    }
}

impl Block for BlockQ4_0 {
    /// `quantize_row_q4_0_ref`: the value of largest magnitude, with its sign, becomes -8.
    fn quantize(x: &[f32; BLOCK_LEN]) -> Self {
        let largest = |max: f32, v: &f32| if max.abs() < v.abs() { *v } else { max };
        let d = x.iter().fold(0.0, largest) / -8.0;
        let id = inverse(d);
        Self {
            d: f16::from_f32(d).to_le_bytes(),
            qs: pack_nibbles(x, |v| v * id + 8.5),
        }
    }

    fn dequantize(&self, y: &mut [f32; BLOCK_LEN]) {
        let d = f16::from_le_bytes(self.d).to_f32();
        unpack_nibbles(&self.qs, y, |q| (q - 8.0) * d);
    }
}

impl Block for BlockQ4_1 {
    /// `quantize_row_q4_1_ref`: minimum and maximum become 0 and 15.
    fn quantize(x: &[f32; BLOCK_LEN]) -> Self {
        let min = x.iter().copied().fold(f32::MAX, f32::min);
        let max = x.iter().copied().fold(f32::MIN, f32::max);
        let d = (max - min) / 15.0;
        let id = inverse(d);
        Self {
            d: f16::from_f32(d).to_le_bytes(),
            m: f16::from_f32(min).to_le_bytes(),
            qs: pack_nibbles(x, |v| (v - min) * id + 0.5),
        }
    }

    fn dequantize(&self, y: &mut [f32; BLOCK_LEN]) {
        let d = f16::from_le_bytes(self.d).to_f32();
        let m = f16::from_le_bytes(self.m).to_f32();
        unpack_nibbles(&self.qs, y, |q| q * d + m);
    }
}

/// The reference divides by the f32 scale, before it is rounded to f16.
fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

fn pack_nibbles(x: &[f32; BLOCK_LEN], scaled: impl Fn(f32) -> f32) -> [u8; BLOCK_LEN / 2] {
    let nibble = |v: f32| (scaled(v) as i8).min(15) as u8;
    std::array::from_fn(|i| nibble(x[i]) | (nibble(x[i + BLOCK_LEN / 2]) << 4))
}

fn unpack_nibbles(qs: &[u8; BLOCK_LEN / 2], y: &mut [f32; BLOCK_LEN], value: impl Fn(f32) -> f32) {
    for (i, q) in qs.iter().enumerate() {
        y[i] = value(f32::from(q & 0x0f));
        y[i + BLOCK_LEN / 2] = value(f32::from(q >> 4));
    }
}
