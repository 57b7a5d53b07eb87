//! x86-64 with AVX-512 (F, BW, VL, DQ) and its VNNI: the functions of [`super::scalar`] with the same bits.
//!
//! Quantised products work on sixteen rows of weights at once. [`weights`] unpacks the same 32 elements of sixteen rows to pairs
//! of i16, in an order in which a 32-bit lane is a row, so that `vpdpwssd` with a broadcast pair of activations adds two
//! products to sixteen block sums: there are no horizontal sums, and the chain of rule 3 is one vector operation over rows.
//! [`products`] does so from registers for a few tokens, and by way of memory for many.

#![allow(
    clippy::inline_always,
    reason = "an intrinsic is inlined only where its instruction set is enabled: all between it and the table's entry must be inlined"
)]
#![allow(
    clippy::wildcard_imports,
    reason = "some eighty intrinsics, whose names cannot clash"
)]

mod lanes;
mod products;
mod weights;

use super::{
    Isa,
    kernels::{Activations, BLOCK, Kernels, KvRows, QuantBlock, Scratch},
    vector::{self, entries},
    weights::Matrix,
};
use crate::quant::{
    BlockQ4_0, BlockQ4_1, BlockQ4K, BlockQ5_0, BlockQ5_1, BlockQ5K, BlockQ6K, BlockQ8_0, DType,
};
use fledgling_pool::Columns;
use half::{bf16, f16};
use lanes::Lanes;
use products::matmul_blocks;
use std::{arch::x86_64::*, ops::Range};

/// The table, when this machine has the instructions.
pub(crate) fn kernels() -> Option<&'static Kernels> {
    let available = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vnni");
    available.then_some(&KERNELS)
}

/// Private: who has it has seen that the instructions are there.
static KERNELS: Kernels = Kernels {
    isa: Isa::Avx512,
    quantize_row,
    matmul,
    rms_norm,
    layer_norm,
    rope,
    rope_halves,
    silu_mul,
    gelu,
    add,
    attend,
};

entries! {
    "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni";
    quantize_row(x: &[f32], out: &mut [QuantBlock]) = quantize_blocks;
    matmul(w: &Matrix, rows: Range<usize>, x: &Activations, out: &mut Columns<'_>, scratch: &mut Scratch) = matmul_rows;
    rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) = vector::rms_norm::<Lanes>;
    layer_norm(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, out: &mut [f32]) = vector::layer_norm::<Lanes>;
    rope(x: &mut [f32], rotations: &[(f32, f32)]) = vector::rope;
    rope_halves(x: &mut [f32], rotations: &[(f32, f32)]) = vector::rope_halves;
    add(x: &mut [f32], y: &[f32]) = vector::add;
    silu_mul(gate: &[f32], up: &[f32], out: &mut [f32]) = vector::silu_mul::<Lanes>;
    gelu(x: &[f32], out: &mut [f32]) = vector::gelu::<Lanes>;
    attend(d: usize, q: &[f32], k: KvRows<'_>, v: KvRows<'_>, scores: &mut [f32], out: &mut [f32]) = vector::attend::<Lanes>;
}

#[inline(always)]
unsafe fn quantize_blocks(x: &[f32], out: &mut [QuantBlock]) {
    for (x, block) in x.as_chunks::<BLOCK>().0.iter().zip(out) {
        // SAFETY: the instructions by the table; two loads and stores of sixteen are a block.
        unsafe {
            let (a, b) = (
                _mm512_loadu_ps(x.as_ptr()),
                _mm512_loadu_ps(x.as_ptr().add(16)),
            );
            // The largest bit pattern without sign, so that a NaN is the largest.
            let bits = |x| _mm512_castps_si512(_mm512_abs_ps(x));
            let amax = _mm512_reduce_max_epu32(_mm512_max_epu32(bits(a), bits(b)));
            let Some(inverse) = block.scale_by(f32::from_bits(amax)) else {
                continue;
            };
            let inverse = _mm512_set1_ps(inverse);
            let a = _mm512_cvtps_epi32(_mm512_mul_ps(a, inverse)); // ties to even by the default mode
            let b = _mm512_cvtps_epi32(_mm512_mul_ps(b, inverse));
            block.sum = _mm512_reduce_add_epi32(_mm512_add_epi32(a, b));
            let q = block.q.as_mut_ptr();
            _mm256_storeu_si256(q.cast(), _mm512_cvtepi32_epi16(a));
            _mm256_storeu_si256(q.add(16).cast(), _mm512_cvtepi32_epi16(b));
        }
    }
}

#[inline(always)]
unsafe fn matmul_rows(
    w: &Matrix,
    rows: Range<usize>,
    x: &Activations,
    out: &mut Columns<'_>,
    scratch: &mut Scratch,
) {
    // SAFETY: the instructions by the table.
    unsafe {
        match w.dtype {
            DType::F32 => vector::matmul::<Lanes, f32, 8, 4>(w, rows, x, out),
            DType::F16 => vector::matmul::<Lanes, f16, 8, 4>(w, rows, x, out),
            DType::BF16 => vector::matmul::<Lanes, bf16, 8, 4>(w, rows, x, out),
            DType::Q8_0 => matmul_blocks::<BlockQ8_0>(w, rows, x, out, scratch),
            DType::Q4_0 => matmul_blocks::<BlockQ4_0>(w, rows, x, out, scratch),
            DType::Q4_1 => matmul_blocks::<BlockQ4_1>(w, rows, x, out, scratch),
            DType::Q5_0 => matmul_blocks::<BlockQ5_0>(w, rows, x, out, scratch),
            DType::Q5_1 => matmul_blocks::<BlockQ5_1>(w, rows, x, out, scratch),
            DType::Q4K => matmul_blocks::<BlockQ4K>(w, rows, x, out, scratch),
            DType::Q5K => matmul_blocks::<BlockQ5K>(w, rows, x, out, scratch),
            DType::Q6K => matmul_blocks::<BlockQ6K>(w, rows, x, out, scratch),
        }
    }
}
