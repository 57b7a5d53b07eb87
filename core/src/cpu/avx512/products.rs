//! Products of quantised rows with activations.

use super::weights::{ROWS, Rows, Weight};
use crate::cpu::{
    kernels::{Activations, BLOCK, Digits, QuantBlock, Scratch},
    scalar,
    weights::Matrix,
};
use fledgling_pool::Columns;
use std::{
    arch::{asm, x86_64::*},
    ops::Range,
};

/// Groups of rows and tokens that one step of prefill takes: sixteen block sums, which hide the four cycles of each
/// `vpdpwssd`, for ten loads.
const GROUPS: usize = 2;
const TOKENS: usize = 8;
/// Tokens for which it does not pay to unpack to memory.
const FEW: usize = 4;
/// Elements of an unpacked part of sixteen rows.
const PART: usize = ROWS * BLOCK;
/// Bytes that reading is asked for ahead of the next group of rows: what comes in while its first columns are read, which lie all over it.
const AHEAD: usize = 4096;
/// Bytes of a line of the cache.
const LINE: usize = 64;

#[inline(always)]
pub(super) unsafe fn matmul_blocks<W: Weight>(
    w: &Matrix,
    rows: Range<usize>,
    x: &Activations,
    out: &mut Columns<'_>,
    scratch: &mut Scratch,
) {
    assert_eq!(x.n_cols, w.n_cols, "as wide as the matrix");
    let whole = rows.start + rows.len() / ROWS * ROWS;
    if x.n_rows <= FEW {
        // SAFETY: the instructions by the table.
        unsafe { split(x, &mut scratch.digits) };
    }
    let mut r = rows.start;
    while r < whole {
        let n = match x.n_rows {
            0..=FEW => 1,
            _ => GROUPS.min((whole - r) / ROWS),
        };
        let mut out = out.narrow(r - rows.start..r - rows.start + n * ROWS);
        // SAFETY: the instructions by the table.
        unsafe {
            match x.n_rows {
                1 => dot_few::<W, 1>(w, r, &scratch.digits, &mut out),
                2 => dot_few::<W, 2>(w, r, &scratch.digits, &mut out),
                3 => dot_few::<W, 3>(w, r, &scratch.digits, &mut out),
                4 => dot_few::<W, 4>(w, r, &scratch.digits, &mut out),
                _ => dot_many::<W>(w, r, n, x, scratch, &mut out),
            }
        }
        r += n * ROWS;
    }
    for t in 0..x.n_rows {
        for r in whole..rows.end {
            out.row_mut(t)[r - rows.start] = scalar::dot(w, r, x, t);
        }
    }
}

/// Splits the activations into bytes, for [`dot_few`].
#[inline(always)]
unsafe fn split(x: &Activations, digits: &mut Vec<Digits>) {
    digits.resize(x.blocks.len(), Digits::default());
    for (digits, block) in digits.iter_mut().zip(&x.blocks) {
        // SAFETY: the instructions by the caller; a block is one vector, or two halves of bytes.
        unsafe {
            let q = _mm512_loadu_si512(block.q.as_ptr().cast());
            let high = _mm512_srai_epi16::<8>(_mm512_add_epi16(q, _mm512_set1_epi16(128)));
            _mm256_storeu_si256(digits.high.as_mut_ptr().cast(), _mm512_cvtepi16_epi8(high));
            _mm256_storeu_si256(digits.low.as_mut_ptr().cast(), _mm512_cvtepi16_epi8(q));
            let pairs = _mm512_madd_epi16(q, _mm512_set1_epi16(1));
            digits.first_sum = _mm512_mask_reduce_add_epi32(0xff, pairs);
        }
        (digits.scale, digits.sum) = (block.scale, block.sum);
    }
}

/// W (16, K) from row `r` @ x (T, K) -> out (T, 16), unpacked to registers.
///
/// # Safety
/// The table's instructions.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn dot_few<W: Weight, const T: usize>(
    w: &Matrix,
    r: usize,
    x: &[Digits],
    out: &mut Columns<'_>,
) {
    let n_blocks = w.n_cols / W::LEN;
    let n_parts = n_blocks * W::PARTS;
    assert_eq!(x.len(), T * n_parts, "as wide as the matrix");
    let group = &w.bytes[r * w.row_bytes..][..ROWS * w.row_bytes];
    let mut rows = Rows::<W>::new(group.as_ptr(), w.row_bytes);
    // SAFETY: the instructions by the caller; blocks lie within `group`, tokens and parts within `x`.
    unsafe {
        let mut acc = [_mm512_setzero_ps(); T];
        for b in 0..n_blocks {
            let of_groups = ROWS * size_of::<W>();
            prefetch(group.as_ptr_range().end, b * of_groups + AHEAD, of_groups);
            let scales = W::scales(&rows);
            for s in 0..W::PARTS {
                let bytes = W::bytes(&rows, s);
                let (d, m) = (W::scale(&scales, s), W::min(&scales, s));
                for (t, acc) in acc.iter_mut().enumerate() {
                    let x = x.get_unchecked(t * n_parts + b * W::PARTS + s);
                    let isum = W::isum(&bytes, &scales, s, x);
                    *acc = accumulate(*acc, isum, d, x.scale);
                    if W::HAS_MIN {
                        *acc = accumulate_min(*acc, m, x.scale * x.sum as f32);
                    }
                }
            }
            rows = rows.next();
        }
        for (t, acc) in acc.into_iter().enumerate() {
            _mm512_storeu_ps(out.row_mut(t)[..ROWS].as_mut_ptr(), acc);
        }
    }
}

/// Asks for the `len` bytes from `start + offset`, which need not exist. What the next group of rows reads comes while this one is
/// computed: sixteen rows side by side are more streams than the hardware follows. To the second cache, as two groups may not fit the first.
#[inline(always)]
unsafe fn prefetch(start: *const u8, offset: usize, len: usize) {
    for line in (0..len).step_by(LINE) {
        let at = start.wrapping_add(offset + line);
        // SAFETY: a prefetch of an address that is not there does nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) };
    }
}

/// `sums + w * q` over pairs of i16, exact. In assembly because LLVM, which tunes for CPUs in general, makes two instructions of the
/// intrinsic (its `fast-dpwssd` is not to be had from Rust), and the vector units are what these loops wait for.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
fn add_products(mut sums: __m512i, w: __m512i, q: __m512i) -> __m512i {
    // SAFETY: registers alone; the instruction by the function's features.
    unsafe {
        asm!(
            "vpdpwssd {sums}, {w}, {q}",
            sums = inout(zmm_reg) sums,
            w = in(zmm_reg) w,
            q = in(zmm_reg) q,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sums
}

/// Elements 2p and 2p + 1 of an activation block, for every row.
///
/// # Safety
/// The instructions, and `p` below 16.
#[inline(always)]
unsafe fn pair_of(x: &QuantBlock, p: usize) -> __m512i {
    // SAFETY: by the caller.
    let pair = unsafe { x.q.as_ptr().add(2 * p).cast::<[i16; 2]>().read() };
    // SAFETY: by the caller.
    unsafe { _mm512_set1_epi32(bytemuck::cast(pair)) }
}

/// `acc + isum * (d * x_d)`, for sixteen rows.
#[inline(always)]
unsafe fn accumulate(acc: __m512, isum: __m512i, d: __m512, x_d: f32) -> __m512 {
    // SAFETY: the instructions by the caller.
    unsafe {
        let scale = _mm512_mul_ps(d, _mm512_set1_ps(x_d));
        _mm512_add_ps(acc, _mm512_mul_ps(_mm512_cvtepi32_ps(isum), scale))
    }
}

/// `acc + m * x_sum`, for sixteen rows.
#[inline(always)]
unsafe fn accumulate_min(acc: __m512, m: __m512, x_sum: f32) -> __m512 {
    // SAFETY: the instructions by the caller.
    unsafe { _mm512_add_ps(acc, _mm512_mul_ps(m, _mm512_set1_ps(x_sum))) }
}

/// W (16 n, K) from row `r` @ x (T, K) -> out (T, 16 n): unpacked once, then some tokens at a time.
#[inline(always)]
unsafe fn dot_many<W: Weight>(
    w: &Matrix,
    r: usize,
    n: usize,
    x: &Activations,
    scratch: &mut Scratch,
    out: &mut Columns<'_>,
) {
    // SAFETY: the instructions by the caller.
    unsafe {
        for group in 0..n {
            unpack::<W>(w, r + group * ROWS, group, scratch);
        }
        let next = &w.bytes[(r + n * ROWS) * w.row_bytes..];
        let tile = Tile {
            next: &next[..next.len().min(n * ROWS * w.row_bytes)],
            scratch,
            n_parts: w.n_cols / BLOCK,
            offset: W::OFFSET,
        };
        match (W::HAS_MIN, n) {
            (true, GROUPS) => dot_tile::<true, GROUPS>(&tile, x, out),
            (false, GROUPS) => dot_tile::<false, GROUPS>(&tile, x, out),
            (true, _) => dot_tile::<true, 1>(&tile, x, out),
            (false, _) => dot_tile::<false, 1>(&tile, x, out),
        }
    }
}

/// Unpacks sixteen rows from `r` to place `group` of `scratch`. [group, K / 32, pair, 16 rows, 2]; scales and minima [group, K / 32, 16 rows]
#[inline(always)]
unsafe fn unpack<W: Weight>(w: &Matrix, r: usize, group: usize, scratch: &mut Scratch) {
    let n_parts = w.n_cols / BLOCK;
    scratch.tile.resize(GROUPS * n_parts * PART, 0);
    scratch.scales.resize(GROUPS * n_parts * ROWS, 0.0);
    scratch.mins.resize(GROUPS * n_parts * ROWS, 0.0);
    let tile = &mut scratch.tile[group * n_parts * PART..][..n_parts * PART];
    let d = &mut scratch.scales[group * n_parts * ROWS..][..n_parts * ROWS];
    let m = &mut scratch.mins[group * n_parts * ROWS..][..n_parts * ROWS];
    let group = &w.bytes[r * w.row_bytes..][..ROWS * w.row_bytes];
    let mut rows = Rows::<W>::new(group.as_ptr(), w.row_bytes);
    // SAFETY: the instructions by the caller; blocks lie within `group`, and parts are below `n_parts`.
    unsafe {
        for b in 0..n_parts / W::PARTS {
            let scales = W::scales(&rows);
            for s in 0..W::PARTS {
                let part = b * W::PARTS + s;
                _mm512_storeu_ps(d.as_mut_ptr().add(part * ROWS), W::scale(&scales, s));
                if W::HAS_MIN {
                    _mm512_storeu_ps(m.as_mut_ptr().add(part * ROWS), W::min(&scales, s));
                }
                let to = tile.as_mut_ptr().add(part * PART);
                for (p, pair) in W::pairs(&rows, &scales, s).into_iter().enumerate() {
                    _mm512_storeu_si512(to.add(p * 2 * ROWS).cast(), pair);
                }
            }
            rows = rows.next();
        }
    }
}

/// Unpacked groups of rows.
struct Tile<'a> {
    /// What is read next.
    next: &'a [u8],
    scratch: &'a Scratch,
    n_parts: usize,
    /// [`Weight::OFFSET`].
    offset: i32,
}

/// The `G` groups of a tile @ x (T, K) -> out (T, 16 G)
///
/// # Safety
/// The table's instructions; the tile was unpacked for `G` groups of as many columns as `x` has.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn dot_tile<const MIN: bool, const G: usize>(
    tile: &Tile<'_>,
    x: &Activations,
    out: &mut Columns<'_>,
) {
    // SAFETY: passed on; tokens are below `x.n_rows`.
    unsafe {
        let mut t = 0;
        let mut asked = 0;
        while t < x.n_rows {
            // A share of what is read next for each step.
            let until = tile.next.len() * (t + TOKENS).min(x.n_rows) / x.n_rows;
            prefetch(tile.next.as_ptr(), asked, until - asked);
            asked = until;
            t += match x.n_rows - t {
                TOKENS.. => dot_tokens::<MIN, G, TOKENS>(tile, x, t, out),
                4.. => dot_tokens::<MIN, G, 4>(tile, x, t, out),
                2.. => dot_tokens::<MIN, G, 2>(tile, x, t, out),
                _ => dot_tokens::<MIN, G, 1>(tile, x, t, out),
            }
        }
    }
}

/// `T` tokens from `first`, whose number it gives back.
#[inline(always)]
unsafe fn dot_tokens<const MIN: bool, const G: usize, const T: usize>(
    tile: &Tile<'_>,
    x: &Activations,
    first: usize,
    out: &mut Columns<'_>,
) -> usize {
    let n_parts = tile.n_parts;
    let blocks = &x.blocks[first * n_parts..][..T * n_parts];
    // SAFETY: the instructions and the tile by the caller; parts are below `n_parts`.
    unsafe {
        let mut acc = [[_mm512_setzero_ps(); G]; T];
        for part in 0..n_parts {
            let x = |t: usize| blocks.get_unchecked(t * n_parts + part);
            let isums = dot_block::<G, T>(tile, part, x);
            let at = |g: usize| (g * n_parts + part) * ROWS;
            for t in 0..T {
                for g in 0..G {
                    let d = _mm512_loadu_ps(tile.scratch.scales.as_ptr().add(at(g)));
                    acc[t][g] = accumulate(acc[t][g], isums[t][g], d, x(t).scale);
                    if MIN {
                        let m = _mm512_loadu_ps(tile.scratch.mins.as_ptr().add(at(g)));
                        acc[t][g] = accumulate_min(acc[t][g], m, x(t).scale * x(t).sum as f32);
                    }
                }
            }
        }
        for (t, acc) in acc.iter().enumerate() {
            let out = &mut out.row_mut(first + t)[..G * ROWS];
            for (g, acc) in acc.iter().enumerate() {
                _mm512_storeu_ps(out.as_mut_ptr().add(g * ROWS), *acc);
            }
        }
    }
    T
}

/// The block sums of part `part`. [T, G, 16]
#[inline(always)]
unsafe fn dot_block<'a, const G: usize, const T: usize>(
    tile: &Tile<'_>,
    part: usize,
    x: impl Fn(usize) -> &'a QuantBlock,
) -> [[__m512i; G]; T] {
    // SAFETY: as the caller's.
    unsafe {
        let mut isums = [[_mm512_setzero_si512(); G]; T];
        for (t, isums) in isums.iter_mut().enumerate() {
            *isums = [_mm512_set1_epi32(-tile.offset * x(t).sum); G];
        }
        for p in 0..BLOCK / 2 {
            let mut w = [_mm512_setzero_si512(); G];
            for (g, w) in w.iter_mut().enumerate() {
                let at = (g * tile.n_parts + part) * PART + p * 2 * ROWS;
                *w = _mm512_loadu_si512(tile.scratch.tile.as_ptr().add(at).cast());
            }
            for (t, isums) in isums.iter_mut().enumerate() {
                let q = pair_of(x(t), p);
                for (isum, w) in isums.iter_mut().zip(w) {
                    *isum = add_products(*isum, w, q);
                }
            }
        }
        isums
    }
}
