//! The operations between the matrix products on slices, forward and backward, for the CPU.
//!
//! Burn's own operations are one pass over memory each, on one thread, with the C library's `exp`; these are one pass in
//! all, over rows in parallel. Results do not depend on the number of threads: rows are independent, and sums over rows
//! go in blocks of fixed size, in order.

#![expect(
    clippy::inline_always,
    reason = "each loop must become vector code of its own"
)]

use fledgling_core::spec::Pairing;
use fledgling_kernels::{
    Strided, exp,
    gemm::{Start, gemm_serial, product},
    threads::{each_part, map, split, split_mut},
    wide, zeros,
};
use std::{ops::Range, sync::Arc};

/// Rows whose contributions to a parameter's gradient are summed by one task.
const ROWS_PER_SUM: usize = 64;
/// Rows that one task takes of an operation on rows.
const ROWS_PER_TASK: usize = 8;
/// Lanes of a dot product: what the compiler turns into vectors.
const LANES: usize = 32;
/// `sqrt(2 / pi)` and the cubic coefficient of GELU's tanh form (Hendrycks and Gimpel, 2016).
const GELU_SCALE: f32 = 0.797_884_6;
const GELU_CUBIC: f32 = 0.044_715;

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// `Σ f(i)` in lanes.
#[inline(always)]
fn sum(n: usize, f: impl Fn(usize) -> f32) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let whole = n / LANES * LANES;
    for start in (0..whole).step_by(LANES) {
        for (lane, total) in lanes.iter_mut().enumerate() {
            *total += f(start + lane);
        }
    }
    let tail: f32 = (whole..n).map(&f).sum();
    lanes.iter().sum::<f32>() + tail
}

#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let (a_chunks, a_tail) = a.as_chunks::<LANES>();
    let (b_chunks, b_tail) = b.as_chunks::<LANES>();
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for lane in 0..LANES {
            lanes[lane] += a[lane] * b[lane];
        }
    }
    let tail: f32 = a_tail.iter().zip(b_tail).map(|(a, b)| a * b).sum();
    lanes.iter().sum::<f32>() + tail
}

/// `y += a x`
#[inline(always)]
fn axpy(a: f32, x: &[f32], y: &mut [f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y += a * x;
    }
}

/// Sums `add(row, total)` over rows in blocks of fixed size. -> [width]
#[inline(always)]
fn sum_rows(n_rows: usize, width: usize, add: impl Fn(usize, &mut [f32]) + Sync) -> Vec<f32> {
    let blocks: Vec<Vec<f32>> = map(n_rows.div_ceil(ROWS_PER_SUM), |block| {
        let mut total = vec![0.0; width];
        let rows = block * ROWS_PER_SUM..((block + 1) * ROWS_PER_SUM).min(n_rows);
        wide(
            #[inline(always)]
            || {
                for row in rows {
                    add(row, &mut total);
                }
            },
        );
        total
    });
    let mut total = vec![0.0; width];
    for block in &blocks {
        axpy(1.0, block, &mut total);
    }
    total
}

/// `f(y, rows of the inputs)` for every row y of a new matrix. inputs [N, C] -> [N, C]
///
/// `f` does not know that rows have C values: loops over a row as iterators, or indexed below a length of its own.
fn by_rows<const N: usize>(
    inputs: [&[f32]; N],
    c: usize,
    f: impl Fn(&mut [f32], [&[f32]; N]) + Sync,
) -> Vec<f32> {
    let mut y = zeros(inputs[0].len());
    let task = ROWS_PER_TASK * c;
    each_part(split_mut(&mut y, task), |part, y| {
        wide(
            #[inline(always)]
            || {
                for (row, y) in y.chunks_exact_mut(c).enumerate() {
                    f(y, inputs.map(|x| &x[part * task + row * c..][..c]));
                }
            },
        );
    });
    y
}

/// RMSNorm. x [N, C], gamma [C]
pub fn rms_norm(x: &[f32], gamma: &[f32], eps: f32) -> Vec<f32> {
    by_rows(
        [x],
        gamma.len(),
        #[inline(always)]
        |y, [x]| {
            let inverse = inverse_rms(x, eps);
            for ((y, x), gamma) in y.iter_mut().zip(x).zip(gamma) {
                *y = x * inverse * gamma;
            }
        },
    )
}

#[inline(always)]
fn inverse_rms(x: &[f32], eps: f32) -> f32 {
    1.0 / (dot(x, x) / x.len() as f32 + eps).sqrt()
}

/// dx [N, C] of RMSNorm.
pub fn rms_norm_dx(x: &[f32], gamma: &[f32], dy: &[f32], eps: f32) -> Vec<f32> {
    let c = gamma.len();
    by_rows(
        [x, dy],
        c,
        #[inline(always)]
        |dx, [x, dy]| {
            let inverse = inverse_rms(x, eps);
            let along = sum(c, |i| x[i] * gamma[i] * dy[i]) * inverse * inverse / c as f32;
            for i in 0..c {
                dx[i] = inverse * (gamma[i] * dy[i] - x[i] * along);
            }
        },
    )
}

/// dgamma [C] of RMSNorm.
pub fn rms_norm_dgamma(x: &[f32], dy: &[f32], c: usize, eps: f32) -> Vec<f32> {
    sum_rows(x.len() / c, c, |row, total| {
        let (x, dy) = (&x[row * c..][..c], &dy[row * c..][..c]);
        let inverse = inverse_rms(x, eps);
        for i in 0..c {
            total[i] += dy[i] * x[i] * inverse;
        }
    })
}

/// Mean and 1 / standard deviation.
#[inline(always)]
fn moments(x: &[f32], eps: f32) -> (f32, f32) {
    let n = x.len() as f32;
    let mean = sum(x.len(), |i| x[i]) / n;
    let variance = sum(x.len(), |i| (x[i] - mean) * (x[i] - mean)) / n;
    (mean, 1.0 / (variance + eps).sqrt())
}

/// LayerNorm. x [N, C], gamma and beta [C]
pub fn layer_norm(x: &[f32], gamma: &[f32], beta: &[f32], eps: f32) -> Vec<f32> {
    by_rows(
        [x],
        gamma.len(),
        #[inline(always)]
        |y, [x]| {
            let (mean, inverse) = moments(x, eps);
            for (((y, x), gamma), beta) in y.iter_mut().zip(x).zip(gamma).zip(beta) {
                *y = (x - mean) * inverse * gamma + beta;
            }
        },
    )
}

/// dx [N, C] of LayerNorm.
pub fn layer_norm_dx(x: &[f32], gamma: &[f32], dy: &[f32], eps: f32) -> Vec<f32> {
    let c = gamma.len();
    by_rows(
        [x, dy],
        c,
        #[inline(always)]
        |dx, [x, dy]| {
            let (mean, inverse) = moments(x, eps);
            let mean_d = sum(c, |i| gamma[i] * dy[i]) / c as f32;
            let along = sum(c, |i| gamma[i] * dy[i] * (x[i] - mean)) * inverse * inverse / c as f32;
            for i in 0..c {
                dx[i] = inverse * (gamma[i] * dy[i] - mean_d - (x[i] - mean) * along);
            }
        },
    )
}

/// dgamma [C] of LayerNorm.
pub fn layer_norm_dgamma(x: &[f32], dy: &[f32], c: usize, eps: f32) -> Vec<f32> {
    sum_rows(x.len() / c, c, |row, total| {
        let (x, dy) = (&x[row * c..][..c], &dy[row * c..][..c]);
        let (mean, inverse) = moments(x, eps);
        for i in 0..c {
            total[i] += dy[i] * (x[i] - mean) * inverse;
        }
    })
}

/// Sum over rows: dbeta [C] of LayerNorm.
pub fn sum_over_rows(dy: &[f32], c: usize) -> Vec<f32> {
    sum_rows(dy.len() / c, c, |row, total| {
        axpy(1.0, &dy[row * c..][..c], total);
    })
}

/// Elements that one task takes.
const ELEMENTS: usize = 8192;

/// `silu(gate) * up`.
pub fn swiglu(gate: &[f32], up: &[f32]) -> Vec<f32> {
    let mut y = zeros(gate.len());
    let inputs = (split(gate, ELEMENTS), split(up, ELEMENTS));
    each_part(
        (split_mut(&mut y, ELEMENTS), inputs),
        |_, (y, (gate, up))| {
            wide(
                #[inline(always)]
                || {
                    for ((y, &gate), up) in y.iter_mut().zip(gate).zip(up) {
                        *y = gate * sigmoid(gate) * up;
                    }
                },
            );
        },
    );
    y
}

/// dgate and dup of [`swiglu`].
pub fn swiglu_backward(gate: &[f32], up: &[f32], dy: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let (mut d_gate, mut d_up) = (zeros(gate.len()), zeros(gate.len()));
    let inputs = (
        split(gate, ELEMENTS),
        split(up, ELEMENTS),
        split(dy, ELEMENTS),
    );
    let outputs = (
        split_mut(&mut d_gate, ELEMENTS),
        split_mut(&mut d_up, ELEMENTS),
    );
    each_part((outputs, inputs), |_, ((d_gate, d_up), (gate, up, dy))| {
        wide(
            #[inline(always)]
            || {
                for i in 0..gate.len() {
                    let s = sigmoid(gate[i]);
                    d_gate[i] = dy[i] * up[i] * s * (1.0 + gate[i] * (1.0 - s));
                    d_up[i] = dy[i] * gate[i] * s;
                }
            },
        );
    });
    (d_gate, d_up)
}

/// The tanh form of GELU, which is `x · sigmoid(2 u)`.
pub fn gelu(x: &[f32]) -> Vec<f32> {
    let mut y = zeros(x.len());
    each_part(
        (split_mut(&mut y, ELEMENTS), split(x, ELEMENTS)),
        |_, (y, x)| {
            wide(
                #[inline(always)]
                || {
                    for (y, &x) in y.iter_mut().zip(x) {
                        *y = x * sigmoid(2.0 * GELU_SCALE * (x + GELU_CUBIC * x * x * x));
                    }
                },
            );
        },
    );
    y
}

/// dx of [`gelu`].
pub fn gelu_backward(x: &[f32], dy: &[f32]) -> Vec<f32> {
    let mut dx = zeros(x.len());
    let inputs = (split(x, ELEMENTS), split(dy, ELEMENTS));
    each_part(
        (split_mut(&mut dx, ELEMENTS), inputs),
        |_, (dx, (x, dy))| {
            wide(
                #[inline(always)]
                || {
                    for ((dx, &x), dy) in dx.iter_mut().zip(x).zip(dy) {
                        let s = sigmoid(2.0 * GELU_SCALE * (x + GELU_CUBIC * x * x * x));
                        let du = 2.0 * GELU_SCALE * (1.0 + 3.0 * GELU_CUBIC * x * x);
                        *dx = dy * (s + x * s * (1.0 - s) * du);
                    }
                },
            );
        },
    );
    dx
}

/// Sum of the squares, in f64.
pub fn sum_of_squares(x: &[f32]) -> f64 {
    let parts = map(x.len().div_ceil(ELEMENTS), |idx| {
        let x = &x[idx * ELEMENTS..x.len().min((idx + 1) * ELEMENTS)];
        f64::from(wide(
            #[inline(always)]
            || dot(x, x),
        ))
    });
    parts.into_iter().sum()
}

/// Multiplies by a number, in place.
pub fn scale(x: &mut [f32], by: f32) {
    each_part(split_mut(x, ELEMENTS), |_, x| {
        for x in x {
            *x *= by;
        }
    });
}

/// Constants of a step of `AdamW`, of one parameter.
#[derive(Debug, Clone, Copy)]
pub struct AdamWStep {
    /// Decay of the first moment.
    pub beta1: f32,
    /// 1 minus that.
    pub rest1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// 1 minus that.
    pub rest2: f32,
    /// The root of the second moment's correction.
    pub root2: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
    /// Learning rate over the first moment's correction.
    pub rate: f32,
    /// What the weights shrink to.
    pub decay: f32,
}

/// A step of `AdamW`, in place: one pass over weights, moments and gradients.
pub fn adamw(step: &AdamWStep, x: &mut [f32], m: &mut [f32], v: &mut [f32], gradient: &[f32]) {
    let step = *step;
    let state = (split_mut(m, ELEMENTS), split_mut(v, ELEMENTS));
    let parts = (split_mut(x, ELEMENTS), state, split(gradient, ELEMENTS));
    each_part(parts, |_, (x, (m, v), gradient)| {
        wide(
            #[inline(always)]
            || {
                for (((x, m), v), g) in x.iter_mut().zip(m).zip(v).zip(gradient) {
                    *m = *m * step.beta1 + g * step.rest1;
                    *v = *v * step.beta2 + g * g * step.rest2;
                    let update = *m / (v.sqrt() / step.root2 + step.eps) * step.rate;
                    *x = *x * step.decay - update;
                }
            },
        );
    });
}

/// Extents of an attention, and the rotations of its positions.
#[derive(Debug, Clone)]
pub struct Heads {
    /// B
    pub n_rows: usize,
    /// T
    pub n_tokens: usize,
    /// H
    pub n_head: usize,
    /// Key and value heads.
    pub n_kv_head: usize,
    /// D
    pub head_dim: usize,
    /// Cosine and sine for each pair of each position; empty without rotary positions. [T, D/2]
    pub rotations: Arc<[(f32, f32)]>,
    /// Which two elements of a head are a pair.
    pub pairing: Pairing,
}

impl Heads {
    fn group(&self) -> usize {
        self.n_head / self.n_kv_head
    }

    /// One head of one row, rotated. -> [T, D]
    fn head(&self, x: Beside, row: usize, head: usize, rotate: bool) -> Vec<f32> {
        let (t, d) = (self.n_tokens, self.head_dim);
        let mut out = Vec::with_capacity(t * d);
        for token in row * t..(row + 1) * t {
            out.extend_from_slice(&x.values[token * x.width + x.first + head * d..][..d]);
        }
        if rotate && !self.rotations.is_empty() {
            self.turn(&mut out, 1.0);
        }
        out
    }

    /// Turns the gradient of a rotated head into that of the head itself. [T, D]
    fn unrotate(&self, dx: &mut [f32]) {
        if self.rotations.is_empty() {
            return;
        }
        self.turn(dx, -1.0);
    }

    /// Rotates by the positions' angles times `direction`. [T, D]
    fn turn(&self, x: &mut [f32], direction: f32) {
        let d = self.head_dim;
        for (vector, rotations) in x
            .chunks_exact_mut(d)
            .zip(self.rotations.chunks_exact(d / 2))
        {
            match self.pairing {
                Pairing::Neighbours => {
                    let pairs = vector.as_chunks_mut::<2>().0.iter_mut();
                    for ([a, b], &(cos, sin)) in pairs.zip(rotations) {
                        let sin = sin * direction;
                        (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
                    }
                }
                Pairing::Halves => {
                    let (low, high) = vector.split_at_mut(d / 2);
                    for ((a, b), &(cos, sin)) in low.iter_mut().zip(high).zip(rotations) {
                        let sin = sin * direction;
                        (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
                    }
                }
            }
        }
    }

    /// Puts heads beside each other, from column `first` of `out` [N, width] on; `head(row, head)` is one of them. [T, D]
    fn put<'a>(
        &self,
        n_heads: usize,
        head: impl Fn(usize, usize) -> &'a [f32] + Sync,
        out: &mut [f32],
        (width, first): (usize, usize),
    ) {
        let (t, d) = (self.n_tokens, self.head_dim);
        each_part(split_mut(out, t * width), |row, out| {
            for idx in 0..n_heads {
                for (token, vector) in head(row, idx).chunks_exact(d).enumerate() {
                    out[token * width + first + idx * d..][..d].copy_from_slice(vector);
                }
            }
        });
    }

    /// Widths of q, and of k and v.
    fn widths(&self) -> (usize, usize) {
        (self.n_head * self.head_dim, self.n_kv_head * self.head_dim)
    }

    /// q, k and v of a fused projection.
    fn parts<'a>(&self, qkv: &'a [f32]) -> [Beside<'a>; 3] {
        let (q, kv) = self.widths();
        [0, q, q + kv].map(|first| Beside {
            values: qkv,
            width: q + 2 * kv,
            first,
        })
    }

    /// `f(row, key head)` for all pairs of the two, on all threads.
    fn for_pairs<R: Send>(&self, f: impl Fn(usize, usize) -> R + Sync) -> Vec<R> {
        let n_kv_head = self.n_kv_head;
        map(self.n_rows * n_kv_head, |pair| {
            f(pair / n_kv_head, pair % n_kv_head)
        })
    }
}

/// Heads beside each other: columns of a matrix in rows of `width`, from column `first` on.
#[derive(Debug, Clone, Copy)]
struct Beside<'a> {
    values: &'a [f32],
    width: usize,
    first: usize,
}

impl<'a> Beside<'a> {
    /// All columns of a matrix.
    fn all(values: &'a [f32], width: usize) -> Self {
        Self {
            values,
            width,
            first: 0,
        }
    }
}

/// Turns scores into probabilities, in place; the first `n` count, the others become 0.
#[inline(always)]
fn softmax(row: &mut [f32], n: usize, scale: f32) {
    let (row, rest) = row.split_at_mut(n);
    rest.fill(0.0);
    let max = maximum(row) * scale;
    for p in row.iter_mut() {
        *p = exp(*p * scale - max);
    }
    let inverse = 1.0 / sum(n, |s| row[s]);
    for p in row.iter_mut() {
        *p *= inverse;
    }
}

/// The largest value. -infinity for none.
#[inline(always)]
fn maximum(x: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, tail) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*lane, *x);
        }
    }
    lanes
        .into_iter()
        .chain(tail.iter().copied())
        .fold(f32::NEG_INFINITY, larger)
}

/// Queries of a head that are computed together: their scores against all keys are what attention holds.
const QUERIES: usize = 64;

/// Probabilities of `queries` of a head over the keys up to the last of them. `q` and `k` are rotated. `p` [queries, T],
/// of which as many columns are filled as there are such keys.
fn probabilities(q: &[f32], k: &[f32], queries: &Range<usize>, heads: &Heads, p: &mut [f32]) {
    let (t, d) = (heads.n_tokens, heads.head_dim);
    let size = [queries.len(), queries.end, d];
    let q = Strided::rows(&q[queries.start * d..], d);
    gemm_serial(size, &q, &Strided::rows(k, d), Start::Zero, p, t);
    let scale = 1.0 / (d as f32).sqrt();
    wide(
        #[inline(always)]
        || {
            for (query, row) in queries.clone().zip(p.chunks_mut(t)) {
                softmax(&mut row[..queries.end], query + 1, scale);
            }
        },
    );
}

/// Blocks of queries.
fn query_blocks(t: usize) -> impl Iterator<Item = Range<usize>> {
    (0..t)
        .step_by(QUERIES)
        .map(move |first| first..(first + QUERIES).min(t))
}

/// `A · B` of matrices in rows, each as it is or transposed. -> [m, n]
#[derive(Debug, Clone, Copy)]
pub struct Product {
    /// Rows of the result.
    pub m: usize,
    /// Columns of the result.
    pub n: usize,
    /// Length of the sums.
    pub k: usize,
    /// A is stored as [k, m] and not [m, k].
    pub a_transposed: bool,
    /// B is stored as [n, k] and not [k, n].
    pub b_transposed: bool,
}

impl Product {
    /// The product, plus one row for all where there is one. [n]
    pub fn forward(&self, a: &[f32], b: &[f32], row: Option<&[f32]>) -> Vec<f32> {
        let a = strided(a, self.m, self.k, !self.a_transposed);
        let b = strided(b, self.n, self.k, self.b_transposed);
        product([self.m, self.n, self.k], &a, &b, row)
    }

    /// Gradient of A as it is stored, from that of the product.
    pub fn da(&self, b: &[f32], dc: &[f32]) -> Vec<f32> {
        let (m, n, k) = (self.m, self.n, self.k);
        let (dc, b) = (Strided::rows(dc, n), strided(b, k, n, !self.b_transposed));
        if self.a_transposed {
            product([k, m, n], &b, &dc, None)
        } else {
            product([m, k, n], &dc, &b, None)
        }
    }

    /// Gradient of B as it is stored, from that of the product.
    pub fn db(&self, a: &[f32], dc: &[f32]) -> Vec<f32> {
        let (m, n, k) = (self.m, self.n, self.k);
        let (dc, a) = (Strided::columns(dc, n), strided(a, k, m, self.a_transposed));
        if self.b_transposed {
            product([n, k, m], &dc, &a, None)
        } else {
            product([k, n, m], &a, &dc, None)
        }
    }
}

/// A matrix of `lanes` by `depth`, whose lanes are stored as rows or as columns.
fn strided(data: &[f32], lanes: usize, depth: usize, in_rows: bool) -> Strided<'_> {
    if in_rows {
        Strided::rows(data, depth)
    } else {
        Strided::columns(data, lanes)
    }
}

/// Causal attention with rotary positions and grouped heads. q [N, H * D], k and v [N, KV * D] -> [N, H * D]
///
/// Padding stands on the right, so that the causal order keeps it out of every position before it.
pub fn attention(q: &[f32], k: &[f32], v: &[f32], heads: &Heads) -> Vec<f32> {
    let (q_width, kv_width) = heads.widths();
    let [k, v] = [k, v].map(|x| Beside::all(x, kv_width));
    attend([Beside::all(q, q_width), k, v], heads)
}

/// As [`attention`], of q, k and v beside each other. [N, (H + 2 KV) * D] -> [N, H * D]
pub fn attention_qkv(qkv: &[f32], heads: &Heads) -> Vec<f32> {
    attend(heads.parts(qkv), heads)
}

fn attend([q, k, v]: [Beside; 3], heads: &Heads) -> Vec<f32> {
    let (t, d, group) = (heads.n_tokens, heads.head_dim, heads.group());
    let one = |row: usize, kv: usize| -> Vec<Vec<f32>> {
        let k = heads.head(k, row, kv, true);
        let v = heads.head(v, row, kv, false);
        let mut p = vec![0.0; QUERIES.min(t) * t];
        let mut query_head = |head: usize| {
            let q = heads.head(q, row, head, true);
            let mut y = vec![0.0; t * d];
            for queries in query_blocks(t) {
                probabilities(&q, &k, &queries, heads, &mut p);
                gemm_serial(
                    [queries.len(), d, queries.end],
                    &Strided::rows(&p, t),
                    &Strided::columns(&v, d),
                    Start::Zero,
                    &mut y[queries.start * d..queries.end * d],
                    d,
                );
            }
            y
        };
        (kv * group..(kv + 1) * group)
            .map(&mut query_head)
            .collect()
    };
    let parts = heads.for_pairs(one);
    let (width, _) = heads.widths();
    let mut out = zeros(heads.n_rows * t * width);
    let head =
        |row: usize, head: usize| &parts[row * heads.n_kv_head + head / group][head % group][..];
    heads.put(heads.n_head, head, &mut out, (width, 0));
    out
}

/// From the gradients of probabilities to those of scores, in place. `p` and `d` [n, T]
fn score_gradients(p: &[f32], d: &mut [f32], n: usize, n_keys: usize, t: usize, scale: f32) {
    wide(
        #[inline(always)]
        || {
            for (p, d) in p.chunks(t).zip(d.chunks_mut(t)).take(n) {
                let (p, d) = (&p[..n_keys], &mut d[..n_keys]);
                let mean = dot(p, d);
                for (d, p) in d.iter_mut().zip(p) {
                    *d = p * (*d - mean) * scale;
                }
            }
        },
    );
}

/// dq, dk and dv of [`attention`]. The probabilities are computed again: keeping them would cost T² memory.
pub fn attention_backward(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    dy: &[f32],
    heads: &Heads,
) -> [Vec<f32>; 3] {
    let (q_width, kv_width) = heads.widths();
    let parts = [
        Beside::all(q, q_width),
        Beside::all(k, kv_width),
        Beside::all(v, kv_width),
    ];
    let gradients = attend_backward(parts, dy, heads);
    let mut out = [zeros(q.len()), zeros(k.len()), zeros(v.len())];
    let [dq, dk, dv] = &mut out;
    gradients.put_q(heads, dq, (q_width, 0));
    gradients.put_k(heads, dk, (kv_width, 0));
    gradients.put_v(heads, dv, (kv_width, 0));
    out
}

/// The gradient of [`attention_qkv`]'s input. [N, (H + 2 KV) * D]
pub fn attention_qkv_backward(qkv: &[f32], dy: &[f32], heads: &Heads) -> Vec<f32> {
    let (q_width, kv_width) = heads.widths();
    let width = q_width + 2 * kv_width;
    let gradients = attend_backward(heads.parts(qkv), dy, heads);
    let mut out = zeros(qkv.len());
    gradients.put_q(heads, &mut out, (width, 0));
    gradients.put_k(heads, &mut out, (width, q_width));
    gradients.put_v(heads, &mut out, (width, q_width + kv_width));
    out
}

/// Gradients of one key head of one row: dq of its query heads, dk and dv. [T, D]
type HeadGradients = (Vec<Vec<f32>>, Vec<f32>, Vec<f32>);

/// Gradients of all heads.
struct AttentionGradients(Vec<HeadGradients>);

impl AttentionGradients {
    fn put_q(&self, heads: &Heads, out: &mut [f32], columns: (usize, usize)) {
        let group = heads.group();
        let head = |row: usize, head: usize| {
            &self.0[row * heads.n_kv_head + head / group].0[head % group][..]
        };
        heads.put(heads.n_head, head, out, columns);
    }

    fn put_k(&self, heads: &Heads, out: &mut [f32], columns: (usize, usize)) {
        let head = |row: usize, head: usize| &self.0[row * heads.n_kv_head + head].1[..];
        heads.put(heads.n_kv_head, head, out, columns);
    }

    fn put_v(&self, heads: &Heads, out: &mut [f32], columns: (usize, usize)) {
        let head = |row: usize, head: usize| &self.0[row * heads.n_kv_head + head].2[..];
        heads.put(heads.n_kv_head, head, out, columns);
    }
}

fn attend_backward([q, k, v]: [Beside; 3], dy: &[f32], heads: &Heads) -> AttentionGradients {
    let (q_width, _) = heads.widths();
    let dy = Beside::all(dy, q_width);
    let (t, d, group) = (heads.n_tokens, heads.head_dim, heads.group());
    let scale = 1.0 / (d as f32).sqrt();
    let one = |row: usize, kv: usize| -> HeadGradients {
        let k = heads.head(k, row, kv, true);
        let v = heads.head(v, row, kv, false);
        let (mut dk, mut dv) = (vec![0.0; t * d], vec![0.0; t * d]);
        let n = QUERIES.min(t) * t;
        let (mut p, mut ds) = (vec![0.0; n], vec![0.0; n]);
        let mut query_head = |head: usize| {
            let q = heads.head(q, row, head, true);
            let dy = heads.head(dy, row, head, false);
            let mut dq = vec![0.0; t * d];
            for queries in query_blocks(t) {
                let (n, n_keys) = (queries.len(), queries.end);
                let of_block = queries.start * d..queries.end * d;
                probabilities(&q, &k, &queries, heads, &mut p);
                let dy_rows = Strided::rows(&dy[of_block.clone()], d);
                gemm_serial(
                    [n, n_keys, d],
                    &dy_rows,
                    &Strided::rows(&v, d),
                    Start::Zero,
                    &mut ds,
                    t,
                );
                score_gradients(&p, &mut ds, n, n_keys, t, scale);
                let k_columns = Strided::columns(&k, d);
                let dq = &mut dq[of_block.clone()];
                gemm_serial(
                    [n, d, n_keys],
                    &Strided::rows(&ds, t),
                    &k_columns,
                    Start::Zero,
                    dq,
                    d,
                );
                let q_columns = Strided::columns(&q[of_block.clone()], d);
                gemm_serial(
                    [n_keys, d, n],
                    &Strided::columns(&ds, t),
                    &q_columns,
                    Start::Add,
                    &mut dk[..n_keys * d],
                    d,
                );
                let dy_columns = Strided::columns(&dy[of_block], d);
                gemm_serial(
                    [n_keys, d, n],
                    &Strided::columns(&p, t),
                    &dy_columns,
                    Start::Add,
                    &mut dv[..n_keys * d],
                    d,
                );
            }
            heads.unrotate(&mut dq);
            dq
        };
        let dq = (kv * group..(kv + 1) * group)
            .map(&mut query_head)
            .collect();
        heads.unrotate(&mut dk);
        (dq, dk, dv)
    };
    AttentionGradients(heads.for_pairs(one))
}

/// Cross-entropy of rows of logits. On return `logits` holds the gradient of `scale` times the sum of the losses.
/// logits [M, V], targets [M] -> the losses' sum
pub fn cross_entropy(logits: &mut [f32], targets: &[u32], scale: f32) -> f64 {
    let v = logits.len() / targets.len();
    let mut losses = vec![0.0; targets.len()];
    let rows = (
        split_mut(logits, v),
        split_mut(&mut losses, 1),
        split(targets, 1),
    );
    each_part(rows, |_, (row, loss, target)| {
        let target = target[0] as usize;
        let max = maximum(row);
        let picked = row[target] - max;
        let total = wide(
            #[inline(always)]
            || {
                for value in row.iter_mut() {
                    *value = exp(*value - max);
                }
                let total = sum(v, |i| row[i]);
                let factor = scale / total;
                for value in row.iter_mut() {
                    *value *= factor;
                }
                total
            },
        );
        row[target] -= scale;
        loss[0] = f64::from(total).ln() - f64::from(picked);
    });
    losses.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values in (-2, 2) that look random.
    fn values(n: usize, seed: u64) -> Vec<f32> {
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) + 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1 << 22) as f32 - 2.0
        };
        (0..n).map(|_| next()).collect()
    }

    /// Every gradient against the difference quotient of `Σ dy · f`, whose error at h = 1e-2 in f32 is about 1e-3.
    fn check_gradient(f: &dyn Fn(&[f32]) -> Vec<f32>, x: &[f32], dy: &[f32], dx: &[f32]) {
        assert_eq!(x.len(), dx.len());
        let h = 1e-2;
        let total = |x: &[f32]| {
            f(x).iter()
                .zip(dy)
                .map(|(y, dy)| f64::from(*y) * f64::from(*dy))
                .sum::<f64>()
        };
        for i in 0..x.len() {
            let (mut up, mut down) = (x.to_vec(), x.to_vec());
            up[i] += h;
            down[i] -= h;
            let quotient = (total(&up) - total(&down)) / f64::from(up[i] - down[i]);
            assert!(
                (quotient - f64::from(dx[i])).abs() < 5e-3 * (1.0 + quotient.abs()),
                "{i}: {quotient} {}",
                dx[i]
            );
        }
    }

    #[test]
    fn norms_have_the_gradients_of_their_values() {
        let (c, eps) = (13, 1e-5);
        let (x, gamma, beta, dy) = (
            values(5 * c, 1),
            values(c, 2),
            values(c, 3),
            values(5 * c, 4),
        );
        check_gradient(
            &|x| rms_norm(x, &gamma, eps),
            &x,
            &dy,
            &rms_norm_dx(&x, &gamma, &dy, eps),
        );
        check_gradient(
            &|gamma| rms_norm(&x, gamma, eps),
            &gamma,
            &dy,
            &rms_norm_dgamma(&x, &dy, c, eps),
        );
        check_gradient(
            &|x| layer_norm(x, &gamma, &beta, eps),
            &x,
            &dy,
            &layer_norm_dx(&x, &gamma, &dy, eps),
        );
        check_gradient(
            &|gamma| layer_norm(&x, gamma, &beta, eps),
            &gamma,
            &dy,
            &layer_norm_dgamma(&x, &dy, c, eps),
        );
        check_gradient(
            &|beta| layer_norm(&x, &gamma, beta, eps),
            &beta,
            &dy,
            &sum_over_rows(&dy, c),
        );
    }

    #[test]
    fn activations_have_the_gradients_of_their_values() {
        let (gate, up, dy) = (values(33, 1), values(33, 2), values(33, 3));
        let (d_gate, d_up) = swiglu_backward(&gate, &up, &dy);
        check_gradient(&|gate| swiglu(gate, &up), &gate, &dy, &d_gate);
        check_gradient(&|up| swiglu(&gate, up), &up, &dy, &d_up);
        check_gradient(&gelu, &up, &dy, &gelu_backward(&up, &dy));
    }

    #[test]
    fn attention_has_the_gradients_of_its_values() {
        for (rotary, pairing) in [
            (false, Pairing::Neighbours),
            (true, Pairing::Neighbours),
            (true, Pairing::Halves),
        ] {
            let rotations = (0..5 * 2)
                .map(|i| ((i as f32).cos(), (i as f32).sin()))
                .filter(|_| rotary)
                .collect();
            let heads = Heads {
                n_rows: 2,
                n_tokens: 5,
                n_head: 4,
                n_kv_head: 2,
                head_dim: 4,
                rotations,
                pairing,
            };
            let (q, k, v, dy) = (values(160, 1), values(80, 2), values(80, 3), values(160, 4));
            let [dq, dk, dv] = attention_backward(&q, &k, &v, &dy, &heads);
            check_gradient(&|q| attention(q, &k, &v, &heads), &q, &dy, &dq);
            check_gradient(&|k| attention(&q, k, &v, &heads), &k, &dy, &dk);
            check_gradient(&|v| attention(&q, &k, v, &heads), &v, &dy, &dv);
        }
    }

    #[test]
    fn attention_is_its_definition_over_more_positions_than_a_block_has() {
        let (t, d) = (QUERIES + 37, 4);
        let heads = Heads {
            n_rows: 2,
            n_tokens: t,
            n_head: 2,
            n_kv_head: 1,
            head_dim: d,
            rotations: [].into(),
            pairing: Pairing::Neighbours,
        };
        let (n, width) = (2 * t, 2 * d);
        let (q, k, v) = (values(n * width, 1), values(n * d, 2), values(n * d, 3));
        let got = attention(&q, &k, &v, &heads);
        for (row, head, token) in [(0, 0, 0), (0, 1, 63), (1, 0, 64), (1, 1, 65), (1, 1, t - 1)] {
            let q = &q[(row * t + token) * width + head * d..][..d];
            let of = |x: &[f32], key: usize| x[(row * t + key) * d..][..d].to_vec();
            let score = |key: usize| f64::from(dot(q, &of(&k, key))) / (d as f64).sqrt();
            let weights: Vec<f64> = (0..=token).map(|key| score(key).exp()).collect();
            let total: f64 = weights.iter().sum();
            for i in 0..d {
                let expected = (0..=token)
                    .map(|key| weights[key] / total * f64::from(of(&v, key)[i]))
                    .sum::<f64>();
                let got = f64::from(got[(row * t + token) * width + head * d + i]);
                assert!((got - expected).abs() < 1e-5, "{row} {head} {token} {i}");
            }
        }
    }

    #[test]
    fn attention_of_a_fused_projection_is_that_of_its_parts() {
        let (t, d) = (QUERIES + 5, 4);
        let heads = Heads {
            n_rows: 2,
            n_tokens: t,
            n_head: 4,
            n_kv_head: 2,
            head_dim: d,
            rotations: (0..t * d / 2)
                .map(|i| ((i as f32).cos(), (i as f32).sin()))
                .collect(),
            pairing: Pairing::Halves,
        };
        let (n, widths) = (2 * t, [4 * d, 2 * d, 2 * d]);
        let [q, k, v] = [0, 1, 2].map(|i| values(n * widths[i], i as u64 + 1));
        let dy = values(n * 4 * d, 9);
        let beside = |[q, k, v]: [&[f32]; 3]| -> Vec<f32> {
            (0..n)
                .flat_map(|row| {
                    [
                        &q[row * widths[0]..][..widths[0]],
                        &k[row * widths[1]..][..widths[1]],
                        &v[row * widths[2]..][..widths[2]],
                    ]
                    .concat()
                })
                .collect()
        };
        let qkv = beside([&q, &k, &v]);
        assert_eq!(attention_qkv(&qkv, &heads), attention(&q, &k, &v, &heads));
        let [dq, dk, dv] = attention_backward(&q, &k, &v, &dy, &heads);
        assert_eq!(
            attention_qkv_backward(&qkv, &dy, &heads),
            beside([&dq, &dk, &dv])
        );
    }

    #[test]
    fn products_have_the_gradients_of_their_factors() {
        let (m, n, k) = (3, 5, 4);
        let (a, b, dy) = (values(m * k, 1), values(k * n, 2), values(m * n, 3));
        let mut of_plain = None;
        for (a_transposed, b_transposed) in
            [(false, false), (false, true), (true, false), (true, true)]
        {
            let product = Product {
                m,
                n,
                k,
                a_transposed,
                b_transposed,
            };
            let turned = |x: &[f32], rows: usize, columns: usize, turn: bool| -> Vec<f32> {
                let at = |idx: usize| idx % rows * columns + idx / rows;
                (0..x.len())
                    .map(|idx| x[if turn { at(idx) } else { idx }])
                    .collect()
            };
            let (a, b) = (
                turned(&a, m, k, a_transposed),
                turned(&b, k, n, b_transposed),
            );
            let y = product.forward(&a, &b, None);
            assert_eq!(of_plain.get_or_insert_with(|| y.clone()), &y);
            check_gradient(
                &|a| product.forward(a, &b, None),
                &a,
                &dy,
                &product.da(&b, &dy),
            );
            check_gradient(
                &|b| product.forward(&a, b, None),
                &b,
                &dy,
                &product.db(&a, &dy),
            );
        }
        let exact: f32 = (0..k).map(|p| a[p] * b[p * n]).sum();
        assert!((of_plain.unwrap()[0] - exact).abs() < 1e-5);
    }

    #[test]
    fn cross_entropy_leaves_its_gradient() {
        let (x, targets) = (values(3 * 7, 1), [2, 0, 6]);
        let loss = |x: &[f32]| vec![cross_entropy(&mut x.to_vec(), &targets, 1.0) as f32];
        let mut gradient = x.clone();
        cross_entropy(&mut gradient, &targets, 0.5);
        check_gradient(&loss, &x, &[0.5], &gradient);
    }
}
