//! Quantisation of super-blocks: first each sub-block's own best scale (and minimum), then the integers that stand for
//! these under the super-block's f16 scales, chosen by the error that they really make, and the f16 scales refitted to them.

#![allow(
    clippy::inline_always,
    reason = "inlined into the entry that is compiled for AVX2"
)]

use super::{
    blocks::largest,
    k_blocks::{Affine, SUPER_LEN, Symmetric},
    search::{
        Range, Starts, affine_integers, affine_pass, best_affine, best_scale, inverse, moments,
        quantized, symmetric_pass,
    },
};
use half::f16;

/// The largest scale or minimum of a sub-block, of 6 bits.
const SCALE_MAX: f32 = 63.0;
/// Integers of `Q6_K`.
const SIX_BITS: Range = Range {
    lo: -32.0,
    hi: 31.0,
};
/// What the largest sub-block's scale becomes, in turn: the best of them is refined.
const TOP_SCALES: [f32; 2] = [63.0, 60.0];
/// The same for the 8 bits of `Q6_K`. Negative ones take the extreme to -128.
const TOP_SCALES_Q6: [f32; 2] = [-128.0, 124.0];
/// Rounds of refitting the f16 scales and choosing integers again.
const ROUNDS: usize = 2;

fn to_f16(x: f32) -> f32 {
    f16::from_f32(x).to_f32()
}

/// Each sub-block from its minimum (or 0) to its maximum. `x` has 256 elements.
pub(super) fn affine_nearest(x: &[f32], n: u8) -> Affine {
    let x: &[f32; SUPER_LEN] = x.try_into().expect("a super-block");
    let n = f32::from(n);
    let (d, dmin, pairs) = nearest_pairs(x, n);
    finish_affine(x, d, dmin, &pairs, n)
}

/// The f16 scales, and the integers of each sub-block's scale and minimum.
#[inline(always)]
fn nearest_pairs(x: &[f32; SUPER_LEN], n: f32) -> (f32, f32, [(f32, f32); 8]) {
    let fits = std::array::from_fn(|s| span(&x.as_chunks::<32>().0[s], n));
    let (d, dmin) = super_scales(&fits, SCALE_MAX);
    let pairs = fits.map(|(step, min)| {
        (
            (step * inverse(d)).round().min(SCALE_MAX),
            (min * inverse(dmin)).round().min(SCALE_MAX),
        )
    });
    (d, dmin, pairs)
}

/// Step and minus the minimum, so that 0 and `n` are the ends of the values and of 0.
#[inline(always)]
fn span(x: &[f32; 32], n: f32) -> (f32, f32) {
    let min = x.iter().fold(0.0_f32, |m, &x| if x < m { x } else { m });
    let max = x.iter().fold(min, |m, &x| if x > m { x } else { m });
    ((max - min) / n, -min)
}

/// The f16 scales under which the largest step and minimum become `top`.
#[inline(always)]
fn super_scales(fits: &[(f32, f32); 8], top: f32) -> (f32, f32) {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let (d, m) = fits.iter().fold((0.0, 0.0), |(d, m), fit| {
        (larger(d, fit.0), larger(m, fit.1))
    });
    (to_f16_above_0(d / top), to_f16_above_0(m / top))
}

/// The nearest f16, or for what is too small for any of them the least, so that the sub-scales can still count in it.
#[inline(always)]
fn to_f16_above_0(x: f32) -> f32 {
    let rounded = to_f16(x);
    if rounded == 0.0 && x != 0.0 {
        f16::from_bits(1).to_f32().copysign(x)
    } else {
        rounded
    }
}

#[inline(always)]
fn finish_affine(
    x: &[f32; SUPER_LEN],
    d: f32,
    dmin: f32,
    pairs: &[(f32, f32); 8],
    n: f32,
) -> Affine {
    let mut q = [0; SUPER_LEN];
    let blocks = q.as_chunks_mut::<32>().0.iter_mut();
    for ((q, x), (scale, min)) in blocks.zip(x.as_chunks::<32>().0).zip(pairs) {
        *q = affine_integers(x, d * scale, -(dmin * min), n);
    }
    Affine {
        d: f16::from_f32(d),
        dmin: f16::from_f32(dmin),
        scales: pairs.map(|(scale, _)| scale as u8),
        mins: pairs.map(|(_, min)| min as u8),
        q,
    }
}

/// The smallest error that was found for integers of 0 to `n`.
#[inline(always)]
pub(super) fn affine_search(x: &[f32; SUPER_LEN], w: &[f32; SUPER_LEN], n: u8) -> Affine {
    let n = f32::from(n);
    let (xs, ws) = (x.as_chunks::<32>().0, w.as_chunks::<32>().0);
    let starts = Starts {
        from: n - 2.0,
        to: n + 2.5,
        n: 12,
    };
    let mut fits = [(0.0, 0.0); 8];
    for ((fit, x), w) in fits.iter_mut().zip(xs).zip(ws) {
        let (step, min) = span(x, n);
        // The file has no room for a minimum above 0.
        let snap = |d: f32, m: f32| (d, if m < 0.0 { m } else { 0.0 });
        let (d, m) = best_affine(x, w, n, starts, (step, -min), snap);
        *fit = if d >= 0.0 { (d, -m) } else { (step, min) };
    }
    let (d, dmin, pairs) = nearest_pairs(x, n);
    let mut best = (Normal::of(xs, ws, &pairs, d, dmin, n), d, dmin, pairs);
    let mut candidate = |d: f32, dmin: f32| {
        let pairs = std::array::from_fn(|s| best_pair(&xs[s], &ws[s], fits[s], d, dmin, n));
        let normal = Normal::of(xs, ws, &pairs, d, dmin, n);
        if normal.error < best.0.error {
            best = (normal, d, dmin, pairs);
        }
        best.0.solve(best.1, best.2)
    };
    let mut next = (0.0, 0.0);
    for top in TOP_SCALES {
        let (d, dmin) = super_scales(&fits, top);
        next = candidate(d, dmin);
    }
    for _ in 0..ROUNDS {
        next = candidate(next.0, next.1);
    }
    finish_affine(x, best.1, best.2, &best.3, n)
}

/// The integers for a sub-block's scale and minimum that make the smallest error.
#[inline(always)]
fn best_pair(
    x: &[f32; 32],
    w: &[f32; 32],
    fit: (f32, f32),
    d: f32,
    dmin: f32,
    n: f32,
) -> (f32, f32) {
    let (sw, sx) = moments(x, w);
    let at = |value: f32| {
        let rounded = value.round();
        if rounded > 0.0 {
            rounded.min(SCALE_MAX)
        } else {
            0.0
        }
    };
    let (scale, inverse_min) = (at(fit.0 * inverse(d)), inverse(dmin));
    let mut best = (f32::INFINITY, (scale, at(fit.1 * inverse_min)));
    for scale in [scale - 1.0, scale, scale + 1.0] {
        if !(0.0..=SCALE_MAX).contains(&scale) {
            continue;
        }
        let sums = affine_pass(x, w, d * scale, -fit.1, n);
        // Where the minimum lies best for these integers.
        let min = at((d * scale * sums.q - sx) * inverse(sw) * inverse_min);
        for min in [min - 1.0, min, min + 1.0] {
            if !(0.0..=SCALE_MAX).contains(&min) {
                continue;
            }
            let error = affine_pass(x, w, d * scale, -(dmin * min), n).error;
            if error < best.0 {
                best = (error, (scale, min));
            }
        }
    }
    best.1
}

/// The normal equations of `x = d a - dmin b` over a super-block, with a the scaled integers and b the minima.
#[derive(Debug, Default, Clone, Copy)]
struct Normal {
    error: f32,
    aa: f32,
    ab: f32,
    bb: f32,
    xa: f32,
    xb: f32,
}

impl Normal {
    #[inline(always)]
    fn of(
        xs: &[[f32; 32]],
        ws: &[[f32; 32]],
        pairs: &[(f32, f32); 8],
        d: f32,
        dmin: f32,
        n: f32,
    ) -> Self {
        let mut normal = Self::default();
        for ((x, w), &(scale, min)) in xs.iter().zip(ws).zip(pairs) {
            let (sw, sx) = moments(x, w);
            let sums = affine_pass(x, w, d * scale, -(dmin * min), n);
            normal.error += sums.error;
            normal.aa += scale * scale * sums.qq;
            normal.ab += scale * min * sums.q;
            normal.bb += min * min * sw;
            normal.xa += scale * sums.xq;
            normal.xb += min * sx;
        }
        normal
    }

    /// The least-squares scales as f16, or those given where there are none.
    #[inline(always)]
    fn solve(&self, d: f32, dmin: f32) -> (f32, f32) {
        let det = self.aa * self.bb - self.ab * self.ab;
        if det > 0.0 {
            let new_d = (self.xa * self.bb - self.xb * self.ab) / det;
            let new_dmin = (self.xa * self.ab - self.xb * self.aa) / det;
            if new_d > 0.0 && new_dmin >= 0.0 {
                return (to_f16(new_d), to_f16(new_dmin));
            }
        }
        (d, dmin)
    }
}

/// Each sub-block's extreme to -32. `x` has 256 elements.
pub(super) fn symmetric_nearest(x: &[f32]) -> Symmetric {
    let x: &[f32; SUPER_LEN] = x.try_into().expect("a super-block");
    let (d, scales) = nearest_scales(x);
    finish_symmetric(x, d, &scales)
}

#[inline(always)]
fn nearest_scales(x: &[f32; SUPER_LEN]) -> (f32, [f32; 16]) {
    let fits = std::array::from_fn(|s| largest(&x.as_chunks::<16>().0[s]) / -32.0);
    let d = to_f16_above_0(largest(&fits) / -128.0);
    let scales = fits.map(|fit: f32| (fit * inverse(d)).round().clamp(-128.0, 127.0));
    (d, scales)
}

#[inline(always)]
fn finish_symmetric(x: &[f32; SUPER_LEN], d: f32, scales: &[f32; 16]) -> Symmetric {
    let mut q = [0; SUPER_LEN];
    let blocks = q.as_chunks_mut::<16>().0.iter_mut();
    for ((q, x), scale) in blocks.zip(x.as_chunks::<16>().0).zip(scales) {
        let inverse = inverse(d * scale);
        *q = x.map(|x| quantized(x, inverse, SIX_BITS) as i8);
    }
    Symmetric {
        d: f16::from_f32(d),
        scales: scales.map(|scale| scale as i8),
        q,
    }
}

/// The smallest error that was found.
#[inline(always)]
pub(super) fn symmetric_search(x: &[f32; SUPER_LEN], w: &[f32; SUPER_LEN]) -> Symmetric {
    let (xs, ws) = (x.as_chunks::<16>().0, w.as_chunks::<16>().0);
    let starts = Starts {
        from: 29.0,
        to: 33.5,
        n: 10,
    };
    let mut fits = [0.0; 16];
    for ((fit, x), w) in fits.iter_mut().zip(xs).zip(ws) {
        *fit = best_scale(x, w, SIX_BITS, starts, largest(x) / -32.0, |d| d);
    }
    let (d, scales) = nearest_scales(x);
    let error = |s: usize| symmetric_pass(&xs[s], &ws[s], d * scales[s], SIX_BITS).error;
    let mut best = ((0..16).map(error).sum::<f32>(), d, scales);
    let mut refitted = d;
    let mut candidate = |d: f32| {
        let mut scales = [0.0; 16];
        let (mut error, mut aa, mut xa) = (0.0, 0.0, 0.0);
        for s in 0..16 {
            let sums;
            (scales[s], sums) = best_integer_scale(&xs[s], &ws[s], fits[s], d);
            error += sums.error;
            aa += scales[s] * scales[s] * sums.qq;
            xa += scales[s] * sums.xq;
        }
        if error < best.0 {
            best = (error, d, scales);
            refitted = to_f16(xa * inverse(aa));
        }
        refitted
    };
    let mut next = d;
    for top in TOP_SCALES_Q6 {
        next = candidate(to_f16_above_0(largest(&fits) / top));
    }
    for _ in 0..ROUNDS {
        next = candidate(next);
    }
    finish_symmetric(x, best.1, &best.2)
}

/// The integer for a sub-block's scale that makes the smallest error.
#[inline(always)]
fn best_integer_scale(
    x: &[f32; 16],
    w: &[f32; 16],
    fit: f32,
    d: f32,
) -> (f32, super::search::SymmetricSums) {
    let middle = (fit * inverse(d)).round().clamp(-128.0, 127.0);
    let mut best = (middle, symmetric_pass(x, w, d * middle, SIX_BITS));
    for scale in [middle - 1.0, middle + 1.0] {
        let sums = symmetric_pass(x, w, d * scale, SIX_BITS);
        if (-128.0..=127.0).contains(&scale) && sums.error < best.1.error {
            best = (scale, sums);
        }
    }
    best
}
