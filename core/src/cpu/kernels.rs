//! What an instruction set provides: one table of functions, picked once when a model is loaded.
//!
//! [`super::scalar`] is the oracle; every other table gives the same bits (tested function by function).

use super::{Isa, KvDType, weights::Matrix};
use fledgling_pool::Columns;
use half::f16;
use std::ops::Range;

/// Elements of a block of quantised weights, and of quantised activations.
pub(crate) const BLOCK: usize = crate::quant::BLOCK_LEN;

/// The largest magnitude of a quantised activation: 32 products with weights of 8 bits still sum to less than 2^24, so
/// that an f32 holds the sum exactly, in any order (a GPU computes it in f32).
pub(crate) const ACTIVATION_MAX: f32 = 4095.0;

/// `(w, rows, x, out, scratch)`.
type Matmul = fn(&Matrix, Range<usize>, &Activations, &mut Columns<'_>, &mut Scratch);

/// `(x, weight, bias, eps, out)`.
type LayerNorm = fn(&[f32], &[f32], &[f32], f32, &mut [f32]);

/// `(head_dim, q, k, v, scores, out)`.
type Attend = fn(usize, &[f32], KvRows<'_>, KvRows<'_>, &mut [f32], &mut [f32]);

impl std::fmt::Debug for Kernels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Kernels({:?})", self.isa)
    }
}

/// Functions over rows. Lengths are checked by the caller's construction and asserted here and there.
pub(crate) struct Kernels {
    pub(crate) isa: Isa,
    /// Quantises one row of activations (rule 3).
    pub(crate) quantize_row: fn(x: &[f32], out: &mut [QuantBlock]),
    /// `out[t][r] = W[rows.start + r] · x[t]`: W (N, K) @ x (T, K) -> out (T, rows)
    pub(crate) matmul: Matmul,
    /// RMSNorm. [C] -> [C]
    pub(crate) rms_norm: fn(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]),
    /// LayerNorm. [C] -> [C]
    pub(crate) layer_norm: LayerNorm,
    /// Rotates neighbours of one head in place. [dim] by [dim / 2]
    pub(crate) rope: fn(x: &mut [f32], rotations: &[(f32, f32)]),
    /// Rotates element i with i + dim / 2 of one head in place. [dim] by [dim / 2]
    pub(crate) rope_halves: fn(x: &mut [f32], rotations: &[(f32, f32)]),
    /// `out = silu(gate) * up`. [F], [F] -> [F]
    pub(crate) silu_mul: fn(gate: &[f32], up: &[f32], out: &mut [f32]),
    /// `out = gelu(x)`. [F] -> [F]
    pub(crate) gelu: fn(x: &[f32], out: &mut [f32]),
    /// `x = x + y`.
    pub(crate) add: fn(x: &mut [f32], y: &[f32]),
    /// Queries that read the same keys and values, of `n` positions (rule 4); `scores` is scratch. q (H, D), k (n, D), v (n, D),
    /// scores (H, n) -> out (H, D)
    pub(crate) attend: Attend,
}

impl Kernels {
    /// The table for `isa`, when this machine can run it.
    pub(crate) fn for_isa(isa: Isa) -> Option<&'static Self> {
        match isa {
            Isa::Scalar => Some(&super::scalar::KERNELS),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => super::avx2::kernels(),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => super::avx512::kernels(),
            #[cfg(not(target_arch = "x86_64"))]
            Isa::Avx2 | Isa::Avx512 => None,
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => Some(&super::simd128::KERNELS),
            #[cfg(not(target_arch = "aarch64"))]
            Isa::Neon => None,
            #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
            Isa::Simd128 => Some(&super::simd128::KERNELS),
            #[cfg(not(all(target_arch = "wasm32", target_feature = "simd128")))]
            Isa::Simd128 => None,
        }
    }
}

/// Keys or values of one head, position by position. [n, D]
#[derive(Clone, Copy)]
pub(crate) enum KvRows<'a> {
    F16(&'a [f16]),
    F32(&'a [f32]),
}

impl KvDType {
    /// Bytes of one element.
    pub(crate) fn size_bytes(self) -> usize {
        match self {
            Self::F16 => 2,
            Self::F32 => 4,
        }
    }
}

/// Memory of one thread, kept between calls; what is in it means nothing outside a call.
#[derive(Debug, Clone, Default)]
pub(crate) struct Scratch {
    /// Attention scores. [n]
    pub(crate) scores: Vec<f32>,
    /// A head before its norm. [D]
    pub(crate) head: Vec<f32>,
    /// Unpacked weights of a group of rows, in the order that an instruction set likes. [K, rows]
    pub(crate) tile: Vec<i16>,
    /// Their scales. [K / 32, rows]
    pub(crate) scales: Vec<f32>,
    /// Their minima. [K / 32, rows]
    pub(crate) mins: Vec<f32>,
    /// Rows of activations as products of 128 bits read them.
    #[cfg(any(target_arch = "aarch64", target_arch = "wasm32"))]
    pub(crate) ordered: Ordered,
    /// A few rows of activations in bytes. [T, K / 32]
    #[cfg(target_arch = "x86_64")]
    pub(crate) digits: Vec<Digits>,
}

/// Quantised rows, part after part in arrays, each row filled up with zeros to whole fours of parts.
#[cfg(any(target_arch = "aarch64", target_arch = "wasm32"))]
#[derive(Debug, Clone, Default)]
pub(crate) struct Ordered {
    /// Parts of a row, with those that fill it up.
    pub(crate) n_parts: usize,
    /// In the order of the weights' type. [T, parts, 32]
    pub(crate) q: Vec<i16>,
    /// As the blocks'. [T, parts]
    pub(crate) scales: Vec<f32>,
    /// As the blocks'. [T, parts]
    pub(crate) sums: Vec<i32>,
    /// Terms of the sums of four rows, for the scales and for the minima. [2, 4 rows, parts]
    pub(crate) terms: Vec<f32>,
}

/// A [`QuantBlock`] in signed bytes: `q = 256 high + low`.
#[cfg(target_arch = "x86_64")]
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Digits {
    pub(crate) high: [i8; BLOCK],
    pub(crate) low: [i8; BLOCK],
    /// As the block's.
    pub(crate) scale: f32,
    /// As the block's.
    pub(crate) sum: i32,
    /// Sum of the first sixteen `q`.
    pub(crate) first_sum: i32,
}

/// 32 quantised activations (rule 3).
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[repr(C)]
pub(crate) struct QuantBlock {
    pub(crate) q: [i16; BLOCK],
    /// `d`, what a `q` of 1 is worth.
    pub(crate) scale: f32,
    /// Sum of `q`.
    pub(crate) sum: i32,
}

/// Rows of activations as products read them: f32, and quantised when a quantised matrix is to read them.
#[derive(Debug, Default)]
pub(crate) struct Activations {
    /// Rows. (T)
    pub(crate) n_rows: usize,
    /// Width of a row. (K)
    pub(crate) n_cols: usize,
    /// The values. [T, K]
    pub(crate) x: Vec<f32>,
    /// The values quantised. [T, K / 32]
    pub(crate) blocks: Vec<QuantBlock>,
}

impl QuantBlock {
    /// Sets `scale` for a block whose largest magnitude is `amax`, and gives what to multiply by. When there is nothing
    /// to divide by (zeros, subnormal numbers, or no finite number), `q` is zero and the answer `None`.
    pub(crate) fn scale_by(&mut self, amax: f32) -> Option<f32> {
        self.scale = amax / ACTIVATION_MAX;
        if self.scale.is_normal() {
            return Some(ACTIVATION_MAX / amax);
        }
        (self.q, self.sum) = ([0; BLOCK], 0);
        None
    }
}

impl Activations {
    /// Gives it this shape; the values are whatever was there.
    pub(crate) fn reshape(&mut self, n_rows: usize, n_cols: usize) {
        (self.n_rows, self.n_cols) = (n_rows, n_cols);
        self.x.resize(n_rows * n_cols, 0.0);
        self.blocks
            .resize(n_rows * (n_cols / BLOCK), QuantBlock::default());
    }

    /// The values of row `t`. [K]
    pub(crate) fn row(&self, t: usize) -> &[f32] {
        &self.x[t * self.n_cols..][..self.n_cols]
    }

    /// Row `t` quantised. [K / 32]
    pub(crate) fn quant_row(&self, t: usize) -> &[QuantBlock] {
        let n_blocks = self.n_cols / BLOCK;
        &self.blocks[t * n_blocks..][..n_blocks]
    }
}
