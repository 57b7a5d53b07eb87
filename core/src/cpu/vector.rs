//! The f32 kernels in 16 lanes, written once for every instruction set that provides an [`F32x16`].
//!
//! Each function is the twin of the one of the same name in [`super::scalar`] and gives the same bits: lanes are those of
//! rule 2, and what does not fill a vector is left to the scalar functions.
//!
//! All functions here are `inline(always)`, so that they are compiled with the instruction set of the function that
//! calls them: an entry of its module's [`super::kernels::Kernels`].

#![allow(
    clippy::inline_always,
    reason = "an intrinsic is inlined only where its instruction set is enabled: all between it and the table's entry must be inlined"
)]

use super::{
    kernels::KvRows,
    math::{EXP_MAX, EXP_MIN, EXP_POLY, GELU_CUBIC, GELU_SCALE, LANES, LN2_HI, LN2_LO, fold_lanes},
    scalar,
};
use half::{bf16, f16};

/// Sixteen f32 lanes: one register or several.
///
/// # Safety
/// Every function may use instructions of its implementation's instruction set, which the machine must have. Pointers must
/// be valid for sixteen elements; they need no alignment.
pub(crate) trait F32x16: Copy {
    unsafe fn splat(x: f32) -> Self;
    unsafe fn load(p: *const f32) -> Self;
    unsafe fn load_f16(p: *const f16) -> Self;
    unsafe fn load_bf16(p: *const bf16) -> Self;
    unsafe fn store(self, p: *mut f32);
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    unsafe fn div(self, other: Self) -> Self;
    unsafe fn neg(self) -> Self;
    /// `if self > other { self } else { other }`, lane by lane.
    unsafe fn greater(self, other: Self) -> Self;
    /// `if self < other { self } else { other }`, lane by lane.
    unsafe fn less(self, other: Self) -> Self;
    /// To the nearest integer, ties to even.
    unsafe fn round(self) -> Self;
    /// `2^self` for integers within the exponents of normal numbers.
    unsafe fn exp2_int(self) -> Self;
    /// 0 where `x < bound`, else `self`.
    unsafe fn zero_where_less(self, x: Self, bound: Self) -> Self;
    /// The lanes folded in halves (rule 2).
    unsafe fn fold(self) -> f32;
}

/// An element that dot products read.
pub(crate) trait Element: Copy {
    /// # Safety
    /// As [`F32x16`].
    unsafe fn load<V: F32x16>(p: *const Self) -> V;
    fn get(self) -> f32;
}

impl Element for f32 {
    #[inline(always)]
    unsafe fn load<V: F32x16>(p: *const Self) -> V {
        // SAFETY: passed on.
        unsafe { V::load(p) }
    }
    fn get(self) -> f32 {
        self
    }
}

impl Element for f16 {
    #[inline(always)]
    unsafe fn load<V: F32x16>(p: *const Self) -> V {
        // SAFETY: passed on.
        unsafe { V::load_f16(p) }
    }
    fn get(self) -> f32 {
        self.to_f32()
    }
}

impl Element for bf16 {
    #[inline(always)]
    unsafe fn load<V: F32x16>(p: *const Self) -> V {
        // SAFETY: passed on.
        unsafe { V::load_bf16(p) }
    }
    fn get(self) -> f32 {
        self.to_f32()
    }
}

/// Adds a tail shorter than 16 to lanes 0… and folds.
#[inline(always)]
unsafe fn finish<V: F32x16>(sum: V, tail: impl ExactSizeIterator<Item = f32>) -> f32 {
    // SAFETY: `lanes` holds sixteen; the instruction set by the caller's contract.
    unsafe {
        if tail.len() == 0 {
            return sum.fold();
        }
        let mut lanes = [0.0; LANES];
        sum.store(lanes.as_mut_ptr());
        for (lane, term) in lanes.iter_mut().zip(tail) {
            *lane += term;
        }
        fold_lanes(&mut lanes)
    }
}

/// Dot products of `R` rows of weights with one row of activations (rule 2).
///
/// # Safety
/// Each pointer is valid for `x.len()` elements of any alignment; the instruction set is there.
#[inline(always)]
pub(crate) unsafe fn dots<V: F32x16, E: Element, const R: usize>(
    w: [*const E; R],
    x: &[f32],
) -> [f32; R] {
    let whole = x.len() / LANES * LANES;
    // SAFETY: indices stay below `x.len()`.
    unsafe {
        let mut sums = [V::splat(0.0); R];
        let mut i = 0;
        while i < whole {
            let xi = V::load(x.as_ptr().add(i));
            for (sum, w) in sums.iter_mut().zip(w) {
                *sum = sum.add(E::load::<V>(w.add(i)).mul(xi));
            }
            i += LANES;
        }
        let mut out = [0.0; R];
        for ((out, sum), w) in out.iter_mut().zip(sums).zip(w) {
            let tail = &x[whole..];
            *out = finish(
                sum,
                tail.iter()
                    .enumerate()
                    .map(|(j, x)| w.add(whole + j).read_unaligned().get() * x),
            );
        }
        out
    }
}

/// # Safety
/// The instruction set is there.
#[inline(always)]
pub(crate) unsafe fn exp<V: F32x16>(x: V) -> V {
    // SAFETY: passed on.
    unsafe {
        let clamped = V::splat(EXP_MAX).less(x);
        let n = clamped.mul(V::splat(std::f32::consts::LOG2_E)).round();
        let r = clamped
            .sub(n.mul(V::splat(LN2_HI)))
            .sub(n.mul(V::splat(LN2_LO)));
        let mut p = V::splat(EXP_POLY[0]);
        for &c in &EXP_POLY[1..] {
            p = p.mul(r).add(V::splat(c));
        }
        let y = p.mul(r.mul(r)).add(r).add(V::splat(1.0));
        y.mul(n.exp2_int()).zero_where_less(x, V::splat(EXP_MIN))
    }
}

/// # Safety
/// The instruction set is there.
#[inline(always)]
pub(crate) unsafe fn rms_norm<V: F32x16>(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let n = x.len();
    assert!(weight.len() == n && out.len() == n, "one width");
    let whole = n / LANES * LANES;
    // SAFETY: indices stay below `n`.
    unsafe {
        let mut sum = V::splat(0.0);
        for i in (0..whole).step_by(LANES) {
            let xi = V::load(x.as_ptr().add(i));
            sum = sum.add(xi.mul(xi));
        }
        let mean_square = finish(sum, x[whole..].iter().map(|x| x * x)) / n as f32;
        let scale = 1.0 / (mean_square + eps).sqrt();
        for i in (0..whole).step_by(LANES) {
            let y = V::load(x.as_ptr().add(i))
                .mul(V::splat(scale))
                .mul(V::load(weight.as_ptr().add(i)));
            y.store(out.as_mut_ptr().add(i));
        }
        for i in whole..n {
            out[i] = (x[i] * scale) * weight[i];
        }
    }
}

/// # Safety
/// The instruction set is there.
#[inline(always)]
pub(crate) unsafe fn layer_norm<V: F32x16>(
    x: &[f32],
    weight: &[f32],
    bias: &[f32],
    eps: f32,
    out: &mut [f32],
) {
    let n = x.len();
    assert!(
        weight.len() == n && bias.len() == n && out.len() == n,
        "one width"
    );
    let whole = n / LANES * LANES;
    // SAFETY: indices stay below `n`.
    unsafe {
        let mut sum = V::splat(0.0);
        for i in (0..whole).step_by(LANES) {
            sum = sum.add(V::load(x.as_ptr().add(i)));
        }
        let mean = finish(sum, x[whole..].iter().copied()) / n as f32;
        let mut squares = V::splat(0.0);
        for i in (0..whole).step_by(LANES) {
            let c = V::load(x.as_ptr().add(i)).sub(V::splat(mean));
            squares = squares.add(c.mul(c));
        }
        let variance =
            finish(squares, x[whole..].iter().map(|x| (x - mean) * (x - mean))) / n as f32;
        let scale = 1.0 / (variance + eps).sqrt();
        for i in (0..whole).step_by(LANES) {
            let c = V::load(x.as_ptr().add(i))
                .sub(V::splat(mean))
                .mul(V::splat(scale));
            let y = c
                .mul(V::load(weight.as_ptr().add(i)))
                .add(V::load(bias.as_ptr().add(i)));
            y.store(out.as_mut_ptr().add(i));
        }
        for i in whole..n {
            out[i] = (((x[i] - mean) * scale) * weight[i]) + bias[i];
        }
    }
}

/// # Safety
/// The instruction set is there.
#[inline(always)]
pub(crate) unsafe fn silu_mul<V: F32x16>(gate: &[f32], up: &[f32], out: &mut [f32]) {
    let n = out.len();
    assert!(gate.len() == n && up.len() == n, "one width");
    let whole = n / LANES * LANES;
    // SAFETY: indices stay below `n`.
    unsafe {
        for i in (0..whole).step_by(LANES) {
            let g = V::load(gate.as_ptr().add(i));
            let silu = g.div(V::splat(1.0).add(exp(g.neg())));
            silu.mul(V::load(up.as_ptr().add(i)))
                .store(out.as_mut_ptr().add(i));
        }
    }
    scalar::silu_mul(&gate[whole..], &up[whole..], &mut out[whole..]);
}

/// # Safety
/// The instruction set is there.
#[inline(always)]
pub(crate) unsafe fn gelu<V: F32x16>(x: &[f32], out: &mut [f32]) {
    let n = out.len();
    assert_eq!(x.len(), n, "one width");
    let whole = n / LANES * LANES;
    // SAFETY: indices stay below `n`.
    unsafe {
        for i in (0..whole).step_by(LANES) {
            let x = V::load(x.as_ptr().add(i));
            let cube = x.mul(x).mul(x);
            let u = V::splat(GELU_SCALE).mul(x.add(V::splat(GELU_CUBIC).mul(cube)));
            let y = x.div(V::splat(1.0).add(exp(V::splat(-2.0).mul(u))));
            y.store(out.as_mut_ptr().add(i));
        }
    }
    scalar::gelu(&x[whole..], &mut out[whole..]);
}

/// # Safety
/// The instruction set is there.
#[inline(always)]
pub(crate) unsafe fn attend<V: F32x16>(
    q: &[f32],
    k: KvRows<'_>,
    v: KvRows<'_>,
    scores: &mut [f32],
    out: &mut [f32],
) {
    // SAFETY: passed on.
    unsafe {
        match (k, v) {
            (KvRows::F16(k), KvRows::F16(v)) => attend_to::<V, f16>(q, k, v, scores, out),
            (KvRows::F32(k), KvRows::F32(v)) => attend_to::<V, f32>(q, k, v, scores, out),
            _ => unreachable!("one type of cache for keys and values"),
        }
    }
}

/// q (D), k (n, D), v (n, D) -> out (D)
#[inline(always)]
unsafe fn attend_to<V: F32x16, E: Element>(
    q: &[f32],
    k: &[E],
    v: &[E],
    scores: &mut [f32],
    out: &mut [f32],
) {
    let (n, d) = (scores.len(), q.len());
    assert!(
        k.len() == n * d && v.len() == n * d && out.len() == d,
        "n positions of one head"
    );
    let scale = 1.0 / (d as f32).sqrt();
    // SAFETY: rows and lanes stay within the lengths asserted.
    unsafe {
        for (t, score) in scores.iter_mut().enumerate() {
            *score = dots::<V, E, 1>([k.as_ptr().add(t * d)], q)[0] * scale; // (D) · (D)
        }
        let inverse = 1.0 / softmax_sum::<V>(scores);
        let mut i = 0;
        while i + 4 * LANES <= d {
            weighted_sum::<V, E, 4>(scores, v.as_ptr().add(i), d, inverse, &mut out[i..]);
            i += 4 * LANES;
        }
        while i + LANES <= d {
            weighted_sum::<V, E, 1>(scores, v.as_ptr().add(i), d, inverse, &mut out[i..]);
            i += LANES;
        }
        for i in i..d {
            let sum = scores
                .iter()
                .enumerate()
                .fold(0.0, |sum, (t, p)| sum + p * v[t * d + i].get());
            out[i] = sum * inverse;
        }
    }
}

/// Scores to `exp(score - max)`, and their sum. [n]
#[inline(always)]
unsafe fn softmax_sum<V: F32x16>(scores: &mut [f32]) -> f32 {
    let whole = scores.len() / LANES * LANES;
    // SAFETY: indices stay below `scores.len()`.
    unsafe {
        let mut max = V::splat(f32::NEG_INFINITY);
        for i in (0..whole).step_by(LANES) {
            max = V::load(scores.as_ptr().add(i)).greater(max);
        }
        let mut lanes = [0.0; LANES];
        max.store(lanes.as_mut_ptr());
        let max = lanes
            .iter()
            .chain(&scores[whole..])
            .fold(f32::NEG_INFINITY, |m, &s| if s > m { s } else { m });
        let mut sum = V::splat(0.0);
        for i in (0..whole).step_by(LANES) {
            let p = exp(V::load(scores.as_ptr().add(i)).sub(V::splat(max)));
            p.store(scores.as_mut_ptr().add(i));
            sum = sum.add(p);
        }
        for score in &mut scores[whole..] {
            *score = super::math::exp(*score - max);
        }
        finish(sum, scores[whole..].iter().copied())
    }
}

/// `out = (Σ_t p[t] v[t]) * inverse` for `N` vectors of dimensions. p (n), v (n, d) -> out (16 N)
#[inline(always)]
unsafe fn weighted_sum<V: F32x16, E: Element, const N: usize>(
    p: &[f32],
    v: *const E,
    d: usize,
    inverse: f32,
    out: &mut [f32],
) {
    assert!(out.len() >= N * LANES, "room for the vectors");
    // SAFETY: the caller's rows hold `N` vectors from `v`; `out` is asserted.
    unsafe {
        let mut sums = [V::splat(0.0); N];
        for (t, &p) in p.iter().enumerate() {
            for (j, sum) in sums.iter_mut().enumerate() {
                *sum = sum.add(V::splat(p).mul(E::load::<V>(v.add(t * d + j * LANES))));
            }
        }
        for (j, sum) in sums.into_iter().enumerate() {
            sum.mul(V::splat(inverse))
                .store(out.as_mut_ptr().add(j * LANES));
        }
    }
}
