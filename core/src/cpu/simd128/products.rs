//! Products with quantised weights.
//!
//! Decode reads one row of weights after the other: rows side by side come out of memory five times slower (no prefetch in
//! wasm; 4 and 22 GB/s, EPYC Genoa). The sums of four parts of a row are folded together, and what they add to the row's
//! chain (rule 3) is kept until four rows are there, whose chains then run in the lanes of a vector.
//!
//! Prefill unpacks eight rows to i16 once, in an order in which a lane is a row, for all tokens.

use super::arch::*;
use super::weights::{Integers, Parts, Weight, split};
use crate::{
    cpu::{
        kernels::{Activations, BLOCK, Ordered, QuantBlock, Scratch},
        weights::Matrix,
    },
    quant::blocks,
};
use fledgling_pool::Columns;
use std::ops::Range;

/// Rows of weights whose chains run in one vector.
const ROWS: usize = 4;
/// Vectors of rows that one step of prefill takes.
const GROUPS: usize = 2;
/// Tokens that one step of prefill takes ([`dot_four`]); fewer are done one by one.
const TOKENS: usize = 4;
/// Bytes that come out of memory together.
const LINE_BYTES: usize = 64;

pub(super) fn matmul_blocks<W: Weight>(
    w: &Matrix,
    rows: Range<usize>,
    x: &Activations,
    out: &mut Columns<'_>,
    scratch: &mut Scratch,
) {
    order::<W>(x, &mut scratch.ordered);
    let row = |r: usize| blocks::<W>(w.row(r));
    if x.n_rows < TOKENS {
        for r in rows.clone().step_by(ROWS) {
            let n = ROWS.min(rows.end - r);
            for t in 0..x.n_rows {
                let y = dot_rows(|i| row(r + i), n, &mut scratch.ordered, t, x.n_cols / BLOCK);
                store(y, &mut out.row_mut(t)[r - rows.start..][..n]);
            }
        }
        return;
    }
    let step = GROUPS * ROWS;
    for r in rows.clone().step_by(step) {
        // Rows that are not there are the last one once more.
        let last = rows.end - 1;
        touch(
            &w.bytes[(r + step).min(last) * w.row_bytes..],
            step * w.row_bytes,
        );
        unpack::<W>(|i| row((r + i).min(last)), scratch);
        let n = step.min(rows.end - r);
        let mut out = out.narrow(r - rows.start..r - rows.start + n);
        let mut t = 0;
        while t + TOKENS <= x.n_rows {
            dot_four::<W>(scratch, t, x.n_cols / BLOCK, &mut out);
            t += TOKENS;
        }
        while t < x.n_rows {
            dot_one::<W>(scratch, t, x.n_cols / BLOCK, &mut out);
            t += 1;
        }
    }
}

/// Brings the first `n` bytes into the cache in the order in which they lie.
fn touch(bytes: &[u8], n: usize) {
    let lines = bytes[..n.min(bytes.len())].chunks(LINE_BYTES);
    std::hint::black_box(lines.fold(0, |all, line| all | line[0]));
}

/// As many of the lanes as `out` holds.
#[inline(always)]
fn store(lanes: v128, out: &mut [f32]) {
    let mut four = [0.0f32; ROWS];
    // SAFETY: four elements.
    unsafe { v128_store(four.as_mut_ptr().cast(), lanes) }
    out.copy_from_slice(&four[..out.len()]);
}

/// Brings activations into the order of the weights.
fn order<W: Weight>(x: &Activations, out: &mut Ordered) {
    let n_parts = x.n_cols / BLOCK;
    out.n_parts = n_parts.next_multiple_of(4);
    let n = x.n_rows * out.n_parts;
    out.q.resize(n * BLOCK, 0);
    out.scales.resize(n, 0.0);
    out.sums.resize(n, 0);
    out.terms.resize(2 * ROWS * out.n_parts, 0.0);
    let none = QuantBlock::default();
    for t in 0..x.n_rows {
        let row = x.quant_row(t).iter().chain([&none; 3]);
        for (i, x) in (t * out.n_parts..(t + 1) * out.n_parts).zip(row) {
            out.scales[i] = x.scale;
            out.sums[i] = x.sum;
            let to = &mut out.q[i * BLOCK..][..BLOCK];
            // SAFETY: four vectors each.
            unsafe {
                let q = load(x.q.as_ptr());
                let q = if W::IS_SPLIT { split(q) } else { q };
                let to = to.as_mut_ptr().cast::<v128>();
                v128_store(to, q.0);
                v128_store(to.add(1), q.1);
                v128_store(to.add(2), q.2);
                v128_store(to.add(3), q.3);
            }
        }
    }
}

/// 32 integers.
///
/// # Safety
/// They are there.
#[inline(always)]
unsafe fn load(q: *const i16) -> Integers {
    let q = q.cast::<v128>();
    // SAFETY: by the caller.
    unsafe {
        (
            v128_load(q),
            v128_load(q.add(1)),
            v128_load(q.add(2)),
            v128_load(q.add(3)),
        )
    }
}

/// W (n, K) @ x[t] (K) -> (n), for up to four rows.
#[inline(always)]
fn dot_rows<'a, W: Weight>(
    row: impl Fn(usize) -> &'a [W],
    n: usize,
    x: &mut Ordered,
    t: usize,
    n_parts: usize,
) -> v128 {
    for i in 0..n {
        terms(row(i), x, t, i, n_parts);
    }
    let (scaled, mins) = x.terms.split_at(ROWS * x.n_parts);
    let mut acc = f32x4_splat(0.0);
    for part in (0..n_parts).step_by(4) {
        let column = |terms: &[f32], i: usize| {
            let four = &terms[i * x.n_parts + part..][..4];
            // SAFETY: four elements.
            unsafe { v128_load(four.as_ptr().cast()) }
        };
        let columns = |terms: &[f32]| {
            transpose(
                column(terms, 0),
                column(terms, 1),
                column(terms, 2),
                column(terms, 3),
            )
        };
        let scaled = columns(scaled);
        let mins = if W::HAS_MIN { columns(mins) } else { scaled };
        let add = |acc: v128, scaled: v128, min: v128| {
            let acc = f32x4_add(acc, scaled);
            if W::HAS_MIN { f32x4_add(acc, min) } else { acc }
        };
        let left = n_parts - part;
        acc = add(acc, scaled.0, mins.0);
        if left > 1 {
            acc = add(acc, scaled.1, mins.1);
        }
        if left > 2 {
            acc = add(acc, scaled.2, mins.2);
        }
        if left > 3 {
            acc = add(acc, scaled.3, mins.3);
        }
    }
    acc
}

/// What each part of a row adds to its sum: row `i` of [`Ordered::terms`].
#[inline(always)]
fn terms<W: Weight>(w: &[W], x: &mut Ordered, t: usize, i: usize, n_parts: usize) {
    let first = t * x.n_parts;
    assert!(
        w.len() * W::PARTS == n_parts
            && n_parts <= x.n_parts
            && x.n_parts.is_multiple_of(4)
            && x.q.len() >= (first + x.n_parts) * BLOCK
            && x.scales.len() >= first + x.n_parts
            && x.sums.len() >= first + x.n_parts
            && x.terms.len() >= 2 * ROWS * x.n_parts
            && i < ROWS,
        "as wide as the matrix"
    );
    // SAFETY: a group of four parts from `part` on stays within the lengths above.
    unsafe {
        let (q, scales, sums) = (
            x.q.as_ptr().add(first * BLOCK),
            x.scales.as_ptr().add(first),
            x.sums.as_ptr().add(first),
        );
        let scaled = x.terms.as_mut_ptr().add(i * x.n_parts);
        let mins = x.terms.as_mut_ptr().add((ROWS + i) * x.n_parts);
        let four = |part: usize, parts: Parts<'_, W>| {
            let q = q.add(part * BLOCK);
            let isum = sum_each(
                products(parts[0], q),
                products(parts[1], q.add(BLOCK)),
                products(parts[2], q.add(2 * BLOCK)),
                products(parts[3], q.add(3 * BLOCK)),
            );
            let sums = v128_load(sums.add(part).cast());
            let x_scales = v128_load(scales.add(part).cast());
            let isum = match W::OFFSET {
                0 => isum,
                offset => i32x4_sub(isum, i32x4_mul(sums, i32x4_splat(i32::from(offset)))),
            };
            let (d, m) = W::scales(parts);
            let y = f32x4_mul(f32x4_convert_i32x4(isum), f32x4_mul(d, x_scales));
            v128_store(scaled.add(part).cast(), y);
            if W::HAS_MIN {
                let y = f32x4_mul(m, f32x4_mul(x_scales, f32x4_convert_i32x4(sums)));
                v128_store(mins.add(part).cast(), y);
            }
        };
        if W::PARTS == 1 {
            let (fours, rest) = w.as_chunks::<4>();
            for (g, [a, b, c, d]) in fours.iter().enumerate() {
                four(4 * g, [(a, 0), (b, 0), (c, 0), (d, 0)]);
            }
            if let Some(last) = rest.last() {
                let at = |i: usize| (rest.get(i).unwrap_or(last), 0);
                four(4 * fours.len(), [at(0), at(1), at(2), at(3)]);
            }
        } else {
            for (b, w) in w.iter().enumerate() {
                for s in (0..W::PARTS).step_by(4) {
                    four(
                        b * W::PARTS + s,
                        [(w, s), (w, s + 1), (w, s + 2), (w, s + 3)],
                    );
                }
            }
        }
    }
}

/// Four parts of the sum of 32 products.
///
/// # Safety
/// `q` holds 32.
#[inline(always)]
unsafe fn products<W: Weight>((w, s): (&W, usize), q: *const i16) -> v128 {
    let w = w.integers(s);
    // SAFETY: by the caller.
    let q = unsafe { load(q) };
    i32x4_add(
        i32x4_add(i32x4_dot_i16x8(w.0, q.0), i32x4_dot_i16x8(w.1, q.1)),
        i32x4_add(i32x4_dot_i16x8(w.2, q.2), i32x4_dot_i16x8(w.3, q.3)),
    )
}

/// The sum of each vector's lanes: four vectors to one.
#[inline(always)]
fn sum_each(a: v128, b: v128, c: v128, d: v128) -> v128 {
    let pairs = |a, b| {
        i32x4_add(
            i32x4_shuffle::<0, 4, 1, 5>(a, b),
            i32x4_shuffle::<2, 6, 3, 7>(a, b),
        )
    };
    let (ab, cd) = (pairs(a, b), pairs(c, d));
    i32x4_add(i64x2_shuffle::<0, 2>(ab, cd), i64x2_shuffle::<1, 3>(ab, cd))
}

/// Four rows of four 32-bit lanes to four columns.
#[inline(always)]
fn transpose(a: v128, b: v128, c: v128, d: v128) -> (v128, v128, v128, v128) {
    let low = |a, b| i32x4_shuffle::<0, 4, 1, 5>(a, b);
    let high = |a, b| i32x4_shuffle::<2, 6, 3, 7>(a, b);
    let (ab_low, ab_high, cd_low, cd_high) = (low(a, b), high(a, b), low(c, d), high(c, d));
    (
        i64x2_shuffle::<0, 2>(ab_low, cd_low),
        i64x2_shuffle::<1, 3>(ab_low, cd_low),
        i64x2_shuffle::<0, 2>(ab_high, cd_high),
        i64x2_shuffle::<1, 3>(ab_high, cd_high),
    )
}

/// Unpacks eight rows: integers as i16 in the order [K / 2, 8, 2], scales and minima as f32 [K / 32, 8].
#[inline(always)]
fn unpack<'a, W: Weight>(row: impl Fn(usize) -> &'a [W], scratch: &mut Scratch) {
    let n_blocks = row(0).len();
    let n_scales = n_blocks * W::PARTS * GROUPS * ROWS;
    scratch.tile.resize(n_scales * BLOCK, 0);
    scratch.scales.resize(n_scales, 0.0);
    scratch.mins.resize(n_scales, 0.0);
    for g in 0..GROUPS {
        let (w0, w1) = (row(g * ROWS), row(g * ROWS + 1));
        let (w2, w3) = (row(g * ROWS + 2), row(g * ROWS + 3));
        for (b, (((w0, w1), w2), w3)) in w0.iter().zip(w1).zip(w2).zip(w3).enumerate() {
            for s in 0..W::PARTS {
                let part = b * W::PARTS + s;
                let (scale, min) = W::scales([(w0, s), (w1, s), (w2, s), (w3, s)]);
                let (a, b) = (w0.integers(s), w1.integers(s));
                let (c, d) = (w2.integers(s), w3.integers(s));
                // SAFETY: the buffers were given room for all parts.
                unsafe {
                    let at = (part * GROUPS + g) * ROWS;
                    v128_store(scratch.scales.as_mut_ptr().add(at).cast(), scale);
                    v128_store(scratch.mins.as_mut_ptr().add(at).cast(), min);
                    let tile = scratch.tile.as_mut_ptr().cast::<v128>();
                    let tile = tile.add(part * BLOCK / 2 * GROUPS + g);
                    store_pairs::<W>(tile, transpose(a.0, b.0, c.0, d.0));
                    store_pairs::<W>(tile.add(4 * GROUPS), transpose(a.1, b.1, c.1, d.1));
                    store_pairs::<W>(tile.add(8 * GROUPS), transpose(a.2, b.2, c.2, d.2));
                    store_pairs::<W>(tile.add(12 * GROUPS), transpose(a.3, b.3, c.3, d.3));
                }
            }
        }
    }
}

/// Stores four pairs of four rows, less [`Weight::OFFSET`].
///
/// # Safety
/// There is room for them.
#[inline(always)]
unsafe fn store_pairs<W: Weight>(to: *mut v128, pairs: (v128, v128, v128, v128)) {
    let offset = i16x8_splat(W::OFFSET);
    // SAFETY: by the caller.
    unsafe {
        v128_store(to, i16x8_sub(pairs.0, offset));
        v128_store(to.add(GROUPS), i16x8_sub(pairs.1, offset));
        v128_store(to.add(2 * GROUPS), i16x8_sub(pairs.2, offset));
        v128_store(to.add(3 * GROUPS), i16x8_sub(pairs.3, offset));
    }
}

/// Defines a tile for some tokens, each by its number and names for its activations, its two sums and its two chains. Written
/// out, because a loop over them keeps its registers only where the compiler may unroll, and the page's wasm is made small.
macro_rules! dot_tile {
    ($name:ident, $n:expr, $(($t:literal $q:ident $low:ident $high:ident $acc_low:ident $acc_high:ident))+) => {
        /// W (8, K) as unpacked @ x (T, K) of tokens from `first` on
        #[inline(always)]
        fn $name<W: Weight>(scratch: &Scratch, first: usize, n_parts: usize, out: &mut Columns<'_>) {
            let (x, n_scales) = (&scratch.ordered, n_parts * GROUPS * ROWS);
            let n_x = (first + $n) * x.n_parts;
            assert!(
                scratch.tile.len() == n_scales * BLOCK
                    && scratch.scales.len() == n_scales
                    && scratch.mins.len() == n_scales
                    && n_parts <= x.n_parts
                    && x.q.len() >= n_x * BLOCK
                    && x.scales.len() >= n_x
                    && x.sums.len() >= n_x,
                "unpacked"
            );
            $(let (mut $acc_low, mut $acc_high) = (f32x4_splat(0.0), f32x4_splat(0.0));)+
            for part in 0..n_parts {
                // SAFETY: indices stay below the lengths checked.
                unsafe {
                    let at = |t: usize| (first + t) * x.n_parts + part;
                    $(
                        let $q = x.q.as_ptr().add(at($t) * BLOCK);
                        let (mut $low, mut $high) = (i32x4_splat(0), i32x4_splat(0));
                    )+
                    let tile = scratch.tile.as_ptr().cast::<v128>().add(part * GROUPS * BLOCK / 2);
                    for pair in 0..BLOCK / 2 {
                        let low = v128_load(tile.add(pair * GROUPS));
                        let high = v128_load(tile.add(pair * GROUPS + 1));
                        $(
                            let q = v128_load32_splat($q.add(2 * pair).cast());
                            $low = i32x4_add($low, i32x4_dot_i16x8(low, q));
                            $high = i32x4_add($high, i32x4_dot_i16x8(high, q));
                        )+
                    }
                    let scales = |of: &[f32], g: usize| {
                        v128_load(of.as_ptr().add((part * GROUPS + g) * ROWS).cast())
                    };
                    let (d_low, d_high) = (scales(&scratch.scales, 0), scales(&scratch.scales, 1));
                    let (m_low, m_high) = (scales(&scratch.mins, 0), scales(&scratch.mins, 1));
                    $(
                        let scale = *x.scales.as_ptr().add(at($t));
                        let sum = scale * *x.sums.as_ptr().add(at($t)) as f32;
                        $acc_low = accumulate::<W>($acc_low, $low, d_low, m_low, scale, sum);
                        $acc_high = accumulate::<W>($acc_high, $high, d_high, m_high, scale, sum);
                    )+
                }
            }
            $(
                let row = out.row_mut(first + $t);
                let (low, high) = row.split_at_mut(ROWS.min(row.len()));
                store($acc_low, low);
                store($acc_high, high);
            )+
        }
    };
}

dot_tile!(dot_one, 1, (0 q low_sum high_sum acc_low acc_high));
dot_tile!(
    dot_four, 4,
    (0 q0 low0 high0 acc_low0 acc_high0)
    (1 q1 low1 high1 acc_low1 acc_high1)
    (2 q2 low2 high2 acc_low2 acc_high2)
    (3 q3 low3 high3 acc_low3 acc_high3)
);

/// `acc + isum * (d * x.d)`, and `+ m * (x.d * sum)` where there are minima (rule 3).
#[inline(always)]
fn accumulate<W: Weight>(acc: v128, isum: v128, d: v128, m: v128, scale: f32, sum: f32) -> v128 {
    let scale = f32x4_mul(d, f32x4_splat(scale));
    let acc = f32x4_add(acc, f32x4_mul(f32x4_convert_i32x4(isum), scale));
    if W::HAS_MIN {
        f32x4_add(acc, f32x4_mul(m, f32x4_splat(sum)))
    } else {
        acc
    }
}
