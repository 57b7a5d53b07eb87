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

#[cfg(target_arch = "x86_64")]
use super::kernels::KvRows;
use super::{
    kernels::Activations,
    math::{EXP_MAX, EXP_MIN, EXP_POLY, GELU_CUBIC, GELU_SCALE, LANES, LN2_HI, LN2_LO, fold_lanes},
    scalar,
    weights::Matrix,
};
use fledgling_pool::Columns;
use half::{bf16, f16};
use std::ops::Range;

/// Defines entries of a table by generic functions that are compiled for the instruction set named first.
#[cfg(target_arch = "x86_64")]
macro_rules! entries {
    ($features:literal; $($name:ident($($arg:ident: $type:ty),*) = $body:expr;)*) => {$(
        fn $name($($arg: $type),*) {
            #[target_feature(enable = $features)]
            fn with_features($($arg: $type),*) {
                // SAFETY: compiled for the instructions that it uses.
                unsafe { $body($($arg),*) }
            }
            // SAFETY: reached only through the module's table, which is handed out where the instructions are there.
            unsafe { with_features($($arg),*) }
        }
    )*};
}
#[cfg(target_arch = "x86_64")]
pub(crate) use entries;

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
    /// [`Self::fold`] of each, a result in each lane.
    #[inline(always)]
    unsafe fn fold_each(all: &[Self; LANES]) -> Self {
        let mut out = [0.0; LANES];
        // SAFETY: passed on; sixteen elements.
        unsafe {
            for (out, &one) in out.iter_mut().zip(all) {
                *out = one.fold();
            }
            Self::load(out.as_ptr())
        }
    }
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

/// Dot products of `R` rows of weights with `T` rows of activations of `n` elements (rule 2). [T, R]
///
/// # Safety
/// Each pointer is valid for `n` elements of any alignment; the instruction set is there.
#[inline(always)]
pub(crate) unsafe fn dots<V: F32x16, E: Element, const R: usize, const T: usize>(
    w: [*const E; R],
    x: [*const f32; T],
    n: usize,
) -> [[f32; R]; T] {
    let whole = n / LANES * LANES;
    // SAFETY: indices stay below `n`.
    unsafe {
        let mut sums = [[V::splat(0.0); R]; T];
        for i in (0..whole).step_by(LANES) {
            let mut wi = [V::splat(0.0); R];
            for (wi, w) in wi.iter_mut().zip(w) {
                *wi = E::load::<V>(w.add(i));
            }
            for (sums, x) in sums.iter_mut().zip(x) {
                let xi = V::load(x.add(i));
                for (sum, wi) in sums.iter_mut().zip(wi) {
                    *sum = sum.add(wi.mul(xi));
                }
            }
        }
        let mut out = [[0.0; R]; T];
        for ((out, sums), x) in out.iter_mut().zip(sums).zip(x) {
            for ((out, sum), w) in out.iter_mut().zip(sums).zip(w) {
                let term = |i: usize| w.add(i).read_unaligned().get() * *x.add(i);
                *out = finish(sum, (whole..n).map(term));
            }
        }
        out
    }
}

/// Float weights: `R` rows and `T` tokens at a time. W (N, K) @ x (T, K) -> out (T, rows)
///
/// # Safety
/// The instruction set is there.
#[inline(always)]
pub(crate) unsafe fn matmul<V: F32x16, E: Element, const R: usize, const T: usize>(
    w: &Matrix,
    rows: Range<usize>,
    x: &Activations,
    out: &mut Columns<'_>,
) {
    let row = |r: usize| w.row(r).as_ptr().cast::<E>();
    let n = w.n_cols;
    assert_eq!(x.n_cols, n, "as wide as the matrix");
    let mut r = rows.start;
    while r < rows.end {
        let column = r - rows.start;
        let many = r + R <= rows.end;
        let mut t = 0;
        while t < x.n_rows {
            // SAFETY: rows of `w` hold `n` elements, as rows of `x` do.
            unsafe {
                if many && t + T <= x.n_rows {
                    let x = std::array::from_fn(|i| x.row(t + i).as_ptr());
                    let y = dots::<V, E, R, T>(std::array::from_fn(|i| row(r + i)), x, n);
                    for (i, y) in y.iter().enumerate() {
                        out.row_mut(t + i)[column..column + R].copy_from_slice(y);
                    }
                    t += T;
                } else if many {
                    let w = std::array::from_fn(|i| row(r + i));
                    let [y] = dots::<V, E, R, 1>(w, [x.row(t).as_ptr()], n);
                    out.row_mut(t)[column..column + R].copy_from_slice(&y);
                    t += 1;
                } else {
                    let [[y]] = dots::<V, E, 1, 1>([row(r)], [x.row(t).as_ptr()], n);
                    out.row_mut(t)[column] = y;
                    t += 1;
                }
            }
        }
        r += if many { R } else { 1 };
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

/// The scalar loops, of which the compiler makes vectors by itself.
macro_rules! as_scalar {
    ($($name:ident($($arg:ident: $type:ty),*);)*) => {$(
        /// # Safety
        /// None: unsafe as the others are that a table's entry is made of.
        #[cfg(target_arch = "x86_64")]
        #[inline(always)]
        pub(crate) unsafe fn $name($($arg: $type),*) {
            scalar::$name($($arg),*);
        }
    )*};
}

as_scalar! {
    rope(x: &mut [f32], rotations: &[(f32, f32)]);
    rope_halves(x: &mut [f32], rotations: &[(f32, f32)]);
    add(x: &mut [f32], y: &[f32]);
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
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(crate) unsafe fn attend<V: F32x16>(
    d: usize,
    q: &[f32],
    k: KvRows<'_>,
    v: KvRows<'_>,
    scores: &mut [f32],
    out: &mut [f32],
) {
    // SAFETY: passed on.
    unsafe {
        match (k, v) {
            (KvRows::F16(k), KvRows::F16(v)) => attend_to::<V, f16>(d, q, k, v, scores, out),
            (KvRows::F32(k), KvRows::F32(v)) => attend_to::<V, f32>(d, q, k, v, scores, out),
            _ => unreachable!("one type of cache for keys and values"),
        }
    }
}

/// q (H, D), k (n, D), v (n, D), scores (H, n) -> out (H, D)
///
/// # Safety
/// The instruction set is there.
#[inline(always)]
pub(crate) unsafe fn attend_to<V: F32x16, E: Element>(
    d: usize,
    q: &[f32],
    k: &[E],
    v: &[E],
    scores: &mut [f32],
    out: &mut [f32],
) {
    let n = scores.len() / (q.len() / d);
    assert!(
        k.len() == n * d && v.len() == n * d && out.len() == q.len(),
        "n positions of one head"
    );
    let mut h = 0;
    while h < q.len() / d {
        let (q, scores, out) = (&q[h * d..], &mut scores[h * n..], &mut out[h * d..]);
        // SAFETY: the instruction set by the caller; the slices hold as many heads.
        unsafe {
            h += match q.len() / d {
                3.. => attend_heads::<V, E, 3>(d, q, k, v, scores, out),
                2 => attend_heads::<V, E, 2>(d, q, k, v, scores, out),
                _ => attend_heads::<V, E, 1>(d, q, k, v, scores, out),
            }
        }
    }
}

/// `H` heads, whose number it gives back, read keys and values once.
#[inline(always)]
unsafe fn attend_heads<V: F32x16, E: Element, const H: usize>(
    d: usize,
    q: &[f32],
    k: &[E],
    v: &[E],
    scores: &mut [f32],
    out: &mut [f32],
) -> usize {
    let (n, scale) = (k.len() / d, 1.0 / (d as f32).sqrt());
    let (q, scores, out) = (&q[..H * d], &mut scores[..H * n], &mut out[..H * d]);
    // SAFETY: the instruction set by the caller; rows and lanes stay within the lengths above.
    unsafe {
        let mut t = 0;
        // Here and not where it is filled, so that it is not cleared each time.
        let mut products = [[V::splat(0.0); LANES]; H];
        while t + LANES <= n && d.is_multiple_of(LANES) {
            let k = k.as_ptr().add(t * d);
            match d {
                64 => score_lanes::<V, E, H, 4>(d, q, k, &mut products),
                128 => score_lanes::<V, E, H, 8>(d, q, k, &mut products),
                _ => score_lanes::<V, E, H, 0>(d, q, k, &mut products),
            }
            for (h, products) in products.iter().enumerate() {
                let dots = V::fold_each(products); // (D) · (D)
                dots.mul(V::splat(scale))
                    .store(scores.as_mut_ptr().add(h * n + t));
            }
            t += LANES;
        }
        for t in t..n {
            for h in 0..H {
                let (k, q) = (k.as_ptr().add(t * d), q.as_ptr().add(h * d));
                scores[h * n + t] = dots::<V, E, 1, 1>([k], [q], d)[0][0] * scale; // (D) · (D)
            }
        }
        let mut inverse = [0.0; H];
        for (scores, inverse) in scores.chunks_exact_mut(n).zip(&mut inverse) {
            *inverse = 1.0 / softmax_sum::<V>(scores);
        }
        let mut i = 0;
        while i + 4 * LANES <= d {
            weighted_sum::<V, E, 4, H>(scores, &v[i..], d, inverse, &mut out[i..]);
            i += 4 * LANES;
        }
        while i + LANES <= d {
            weighted_sum::<V, E, 1, H>(scores, &v[i..], d, inverse, &mut out[i..]);
            i += LANES;
        }
        for (h, scores) in scores.chunks_exact(n).enumerate() {
            for i in i..d {
                let sum = scores
                    .iter()
                    .enumerate()
                    .fold(0.0, |sum, (t, p)| sum + p * v[t * d + i].get());
                out[h * d + i] = sum * inverse[h];
            }
        }
    }
    H
}

/// The lanes of the products of `H` queries with sixteen keys, before they are folded. q (H, D), k (16, D) -> (H, 16, 16)
///
/// `N` is the vectors of a query, which registers hold then; 0 where they are read each time.
#[inline(always)]
unsafe fn score_lanes<V: F32x16, E: Element, const H: usize, const N: usize>(
    d: usize,
    q: &[f32],
    k: *const E,
    products: &mut [[V; LANES]; H],
) {
    assert!(q.len() == H * d && (N == 0 || d == N * LANES), "queries");
    // SAFETY: the instruction set and the keys by the caller; `q` holds `H` rows of `d`.
    unsafe {
        let load = |h: usize, i: usize| V::load(q.as_ptr().add(h * d + i * LANES));
        let mut held = [[V::splat(0.0); N]; H];
        for (h, held) in held.iter_mut().enumerate() {
            for (i, held) in held.iter_mut().enumerate() {
                *held = load(h, i);
            }
        }
        let query = |h: usize, i: usize| if N > 0 { held[h][i] } else { load(h, i) };
        for t in 0..LANES {
            let mut sums = [V::splat(0.0); H];
            for i in 0..if N > 0 { N } else { d / LANES } {
                let k = E::load::<V>(k.add(t * d + i * LANES));
                for (h, sum) in sums.iter_mut().enumerate() {
                    *sum = sum.add(k.mul(query(h, i)));
                }
            }
            for (products, sum) in products.iter_mut().zip(sums) {
                products[t] = sum;
            }
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

/// `out = (Σ_t p[t] v[t]) * inverse` for `N` vectors of dimensions of `H` heads. p (H, n), v (n, d) -> out (H, d), of which 16 N
#[inline(always)]
unsafe fn weighted_sum<V: F32x16, E: Element, const N: usize, const H: usize>(
    p: &[f32],
    v: &[E],
    d: usize,
    inverse: [f32; H],
    out: &mut [f32],
) {
    let n = p.len() / H;
    assert!(
        out.len() >= (H - 1) * d + N * LANES && v.len() >= (n - 1) * d + N * LANES,
        "room for the vectors"
    );
    // SAFETY: the instruction set by the caller; the lengths are asserted.
    unsafe {
        let mut sums = [[V::splat(0.0); N]; H];
        for t in 0..n {
            let mut row = [V::splat(0.0); N];
            for (j, row) in row.iter_mut().enumerate() {
                *row = E::load::<V>(v.as_ptr().add(t * d + j * LANES));
            }
            for (h, sums) in sums.iter_mut().enumerate() {
                let p = V::splat(*p.get_unchecked(h * n + t));
                for (sum, row) in sums.iter_mut().zip(row) {
                    *sum = sum.add(p.mul(row));
                }
            }
        }
        for (h, (sums, inverse)) in sums.into_iter().zip(inverse).enumerate() {
            for (j, sum) in sums.into_iter().enumerate() {
                sum.mul(V::splat(inverse))
                    .store(out.as_mut_ptr().add(h * d + j * LANES));
            }
        }
    }
}
