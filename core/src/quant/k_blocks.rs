//! The super-blocks of the K types: 256 elements under one or two f16 scales, which scale small integers that scale
//! the sub-blocks (`block_q4_K` and its like in `ggml-common.h`).

use super::{
    blocks::{Block, half},
    k_search,
};
use bytemuck::{Pod, Zeroable};
use half::f16;

/// Elements in a super-block.
pub const SUPER_LEN: usize = 256;
/// Bytes of the eight scales and eight minima of 6 bits.
const SCALES_LEN: usize = 12;

/// 4 bits: `w = d * sc * q - dmin * m`, with sc and m of 6 bits for each 32 elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ4K {
    /// Scale of the scales, an f16 in little-endian.
    pub d: [u8; 2],
    /// Scale of the minima, an f16 in little-endian.
    pub dmin: [u8; 2],
    /// See [`scale_and_min`].
    pub scales: [u8; SCALES_LEN],
    /// 32 bytes hold sub-block 2i in their low and 2i + 1 in their high nibbles.
    pub qs: [u8; SUPER_LEN / 2],
}

/// 5 bits: `w = d * sc * q - dmin * m`, with sc and m of 6 bits for each 32 elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ5K {
    /// Scale of the scales, an f16 in little-endian.
    pub d: [u8; 2],
    /// Scale of the minima, an f16 in little-endian.
    pub dmin: [u8; 2],
    /// See [`scale_and_min`].
    pub scales: [u8; SCALES_LEN],
    /// Bit s of byte i is the fifth bit of element i of sub-block s.
    pub qh: [u8; SUPER_LEN / 8],
    /// The lower four bits, as in [`BlockQ4K`].
    pub qs: [u8; SUPER_LEN / 2],
}

/// 6 bits: `w = d * sc * (q - 32)`, with sc of 8 bits for each 16 elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ6K {
    /// Lower four bits. Of each 128 elements, 64 bytes: elements i and i + 64 in byte i.
    pub ql: [u8; SUPER_LEN / 2],
    /// Upper two bits. Of each 128 elements, 32 bytes: elements i, i + 32, i + 64 and i + 96 in byte i, the first lowest.
    pub qh: [u8; SUPER_LEN / 4],
    /// Of each 16 elements.
    pub scales: [i8; SUPER_LEN / 16],
    /// Scale of the scales, an f16 in little-endian.
    pub d: [u8; 2],
}

const _: () = {
    assert!(size_of::<BlockQ4K>() == 144 && align_of::<BlockQ4K>() == 1);
    assert!(size_of::<BlockQ5K>() == 176 && align_of::<BlockQ5K>() == 1);
    assert!(size_of::<BlockQ6K>() == 210 && align_of::<BlockQ6K>() == 1);
};

/// Scale and minimum of sub-block `s` of 8, 6 bits each (`get_scale_min_k4`).
///
/// Bytes 0..4 hold the scales of 0..4 and bytes 4..8 their minima, in six bits. The upper two bits of these bytes belong
/// to sub-blocks 4..8, whose lower four stand in bytes 8..12: scale in the low nibble, minimum in the high one.
#[inline]
pub fn scale_and_min(scales: &[u8; SCALES_LEN], s: usize) -> (u8, u8) {
    if s < 4 {
        return (scales[s] & 63, scales[s + 4] & 63);
    }
    (
        scales[s + 4] & 15 | scales[s - 4] >> 6 << 4,
        scales[s + 4] >> 4 | scales[s] >> 6 << 4,
    )
}

/// The inverse of [`scale_and_min`].
fn pack_scales(scales: [u8; 8], mins: [u8; 8]) -> [u8; SCALES_LEN] {
    let mut out = [0; SCALES_LEN];
    for s in 0..4 {
        out[s] = scales[s] | scales[s + 4] >> 4 << 6;
        out[s + 4] = mins[s] | mins[s + 4] >> 4 << 6;
        out[s + 8] = scales[s + 4] & 15 | mins[s + 4] << 4;
    }
    out
}

/// Parts of a super-block of [`BlockQ4K`] or [`BlockQ5K`] before packing.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Affine {
    pub(super) d: f16,
    pub(super) dmin: f16,
    pub(super) scales: [u8; 8],
    pub(super) mins: [u8; 8],
    pub(super) q: [u8; SUPER_LEN],
}

/// Parts of a super-block of [`BlockQ6K`] before packing.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Symmetric {
    pub(super) d: f16,
    pub(super) scales: [i8; 16],
    /// -32 to 31.
    pub(super) q: [i8; SUPER_LEN],
}

fn nibbles(q: &[u8; SUPER_LEN]) -> [u8; SUPER_LEN / 2] {
    std::array::from_fn(|i| {
        let first = i / 32 * 64 + i % 32;
        q[first] & 15 | q[first + 32] << 4
    })
}

impl BlockQ4K {
    pub(super) fn pack(parts: &Affine) -> Self {
        Self {
            d: parts.d.to_le_bytes(),
            dmin: parts.dmin.to_le_bytes(),
            scales: pack_scales(parts.scales, parts.mins),
            qs: nibbles(&parts.q),
        }
    }
}

fn fifth_bits(q: &[u8; SUPER_LEN]) -> [u8; SUPER_LEN / 8] {
    let fifth = |i: usize, s: usize| (q[s * 32 + i] >> 4 & 1) << s;
    std::array::from_fn(|i| (0..8).map(|s| fifth(i, s)).sum())
}

fn affine_grid(
    d: [u8; 2],
    dmin: [u8; 2],
    scales: &[u8; SCALES_LEN],
    step: &mut [f32],
    offset: &mut [f32],
) {
    let (d, dmin) = (half(d), half(dmin));
    let blocks = step.chunks_exact_mut(32).zip(offset.chunks_exact_mut(32));
    for (s, (step, offset)) in blocks.enumerate() {
        let (sc, m) = scale_and_min(scales, s);
        step.fill(d * f32::from(sc));
        offset.fill(-(dmin * f32::from(m)));
    }
}

impl BlockQ5K {
    pub(super) fn pack(parts: &Affine) -> Self {
        Self {
            d: parts.d.to_le_bytes(),
            dmin: parts.dmin.to_le_bytes(),
            scales: pack_scales(parts.scales, parts.mins),
            qh: fifth_bits(&parts.q),
            qs: nibbles(&parts.q),
        }
    }
}

impl BlockQ6K {
    pub(super) fn pack(parts: &Symmetric) -> Self {
        let q = |i: usize| (parts.q[i] + 32) as u8;
        Self {
            ql: std::array::from_fn(|i| {
                let first = i / 64 * 128 + i % 64;
                q(first) & 15 | q(first + 64) << 4
            }),
            qh: std::array::from_fn(|i| {
                let first = i / 32 * 128 + i % 32;
                (0..4).map(|k| q(first + 32 * k) >> 4 << (2 * k)).sum()
            }),
            scales: parts.scales,
            d: parts.d.to_le_bytes(),
        }
    }
}

impl Block for BlockQ4K {
    const LEN: usize = SUPER_LEN;

    fn quantize(x: &[f32]) -> Self {
        Self::pack(&k_search::affine_nearest(x, 15))
    }

    fn dequantize(&self, y: &mut [f32]) {
        let (d, dmin) = (half(self.d), half(self.dmin));
        for (s, y) in y.chunks_exact_mut(32).enumerate() {
            let (sc, m) = scale_and_min(&self.scales, s);
            let (d, m) = (d * f32::from(sc), dmin * f32::from(m));
            for (y, q) in y.iter_mut().zip(&self.qs[s / 2 * 32..]) {
                *y = d * f32::from(q >> (4 * (s % 2)) & 15) - m;
            }
        }
    }

    const INTEGERS: (i8, i8) = (0, 15);

    fn grid(&self, step: &mut [f32], offset: &mut [f32]) {
        affine_grid(self.d, self.dmin, &self.scales, step, offset);
    }

    fn set_integers(&mut self, q: &[i8]) {
        self.qs = nibbles(&std::array::from_fn(|i| q[i] as u8));
    }
}

impl Block for BlockQ5K {
    const LEN: usize = SUPER_LEN;

    fn quantize(x: &[f32]) -> Self {
        Self::pack(&k_search::affine_nearest(x, 31))
    }

    fn dequantize(&self, y: &mut [f32]) {
        let (d, dmin) = (half(self.d), half(self.dmin));
        for (s, y) in y.chunks_exact_mut(32).enumerate() {
            let (sc, m) = scale_and_min(&self.scales, s);
            let (d, m) = (d * f32::from(sc), dmin * f32::from(m));
            for ((y, q), h) in y.iter_mut().zip(&self.qs[s / 2 * 32..]).zip(self.qh) {
                let q = q >> (4 * (s % 2)) & 15 | (h >> s & 1) << 4;
                *y = d * f32::from(q) - m;
            }
        }
    }

    const INTEGERS: (i8, i8) = (0, 31);

    fn grid(&self, step: &mut [f32], offset: &mut [f32]) {
        affine_grid(self.d, self.dmin, &self.scales, step, offset);
    }

    fn set_integers(&mut self, q: &[i8]) {
        let q = std::array::from_fn(|i| q[i] as u8);
        (self.qh, self.qs) = (fifth_bits(&q), nibbles(&q));
    }
}

impl Block for BlockQ6K {
    const LEN: usize = SUPER_LEN;

    fn quantize(x: &[f32]) -> Self {
        Self::pack(&k_search::symmetric_nearest(x))
    }

    fn dequantize(&self, y: &mut [f32]) {
        let d = half(self.d);
        for (s, y) in y.chunks_exact_mut(32).enumerate() {
            let (half, k) = (s / 4, s % 4);
            let (ql, qh) = (&self.ql[64 * half + 32 * (k % 2)..], &self.qh[32 * half..]);
            for (i, (y, (l, h))) in y.iter_mut().zip(ql.iter().zip(qh)).enumerate() {
                let q = l >> (4 * (k / 2)) & 15 | (h >> (2 * k) & 3) << 4;
                let sc = f32::from(self.scales[2 * s + i / 16]);
                *y = d * sc * (f32::from(q) - 32.0);
            }
        }
    }

    const INTEGERS: (i8, i8) = (-32, 31);

    fn grid(&self, step: &mut [f32], offset: &mut [f32]) {
        let d = half(self.d);
        for (step, scale) in step.chunks_exact_mut(16).zip(self.scales) {
            step.fill(d * f32::from(scale));
        }
        offset.fill(0.0);
    }

    fn set_integers(&mut self, q: &[i8]) {
        *self = Self::pack(&Symmetric {
            d: f16::from_le_bytes(self.d),
            scales: self.scales,
            q: std::array::from_fn(|i| q[i]),
        });
    }
}
