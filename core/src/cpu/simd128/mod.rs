//! Vectors of 128 bits, of wasm32 with simd128 and of aarch64 with NEON: the functions of [`super::scalar`] with the same
//! bits. Chosen when compiling: a wasm module with one SIMD instruction runs only where all of them are there, and every
//! aarch64 has NEON.
//!
//! Written in wasm's instructions; `neon.rs` says what these are on aarch64. Start at [`products`]; [`weights`] unpacks blocks.

#![allow(
    clippy::inline_always,
    reason = "the functions written over vectors must be compiled as one"
)]
#![allow(
    clippy::wildcard_imports,
    reason = "some sixty intrinsics, whose names cannot clash"
)]
#![allow(
    clippy::cast_ptr_alignment,
    reason = "vectors are read and written by `v128_load` and `v128_store` only, which need no alignment"
)]

mod lanes;
#[cfg(target_arch = "aarch64")]
mod neon;
mod products;
mod weights;

#[cfg(target_arch = "aarch64")]
use neon as arch;
#[cfg(target_arch = "wasm32")]
use std::arch::wasm32 as arch;

use super::{
    Isa,
    kernels::{Activations, BLOCK, Kernels, KvRows, QuantBlock, Scratch},
    scalar, vector,
    weights::Matrix,
};
use crate::quant::{
    BlockQ4_0, BlockQ4_1, BlockQ4K, BlockQ5_0, BlockQ5_1, BlockQ5K, BlockQ6K, BlockQ8_0, DType,
};
use arch::*;
use fledgling_pool::Columns;
use half::{bf16, f16};
use lanes::Lanes;
use products::matmul_blocks;
use std::ops::Range;

#[cfg(target_arch = "aarch64")]
const ISA: Isa = Isa::Neon;
#[cfg(target_arch = "wasm32")]
const ISA: Isa = Isa::Simd128;

pub(crate) static KERNELS: Kernels = Kernels {
    isa: ISA,
    quantize_row,
    matmul,
    rms_norm,
    layer_norm,
    rope: scalar::rope,
    rope_halves: scalar::rope_halves,
    silu_mul,
    gelu,
    add: scalar::add,
    attend,
};

/// Defines entries of the table by the functions written over vectors.
macro_rules! entries {
    ($($name:ident($($arg:ident: $type:ty),*);)*) => {$(
        fn $name($($arg: $type),*) {
            // SAFETY: this module is compiled only where simd128 is there.
            unsafe { vector::$name::<Lanes>($($arg),*) }
        }
    )*};
}

entries! {
    rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]);
    layer_norm(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, out: &mut [f32]);
    silu_mul(gate: &[f32], up: &[f32], out: &mut [f32]);
    gelu(x: &[f32], out: &mut [f32]);
}

fn attend(d: usize, q: &[f32], k: KvRows<'_>, v: KvRows<'_>, scores: &mut [f32], out: &mut [f32]) {
    match (k, v) {
        // SAFETY: this module is compiled only where simd128 is there.
        (KvRows::F16(k), KvRows::F16(v)) => unsafe {
            vector::attend_to::<Lanes, f16>(d, q, k, v, scores, out);
        },
        // A cache in f32 is for comparisons, for which the page need not download 40 kB.
        _ => scalar::attend(d, q, k, v, scores, out),
    }
}

fn quantize_row(x: &[f32], out: &mut [QuantBlock]) {
    for (x, block) in x.as_chunks::<BLOCK>().0.iter().zip(out) {
        // SAFETY: a load of four of the block.
        let load = |i: usize| unsafe { v128_load(x.as_ptr().add(4 * i).cast()) };
        let mask = u32x4_splat(0x7fff_ffff);
        // The largest bit pattern without sign, so that a NaN is the largest.
        let mut amax = v128_and(load(0), mask);
        for i in 1..8 {
            amax = u32x4_max(amax, v128_and(load(i), mask));
        }
        let amax = u32x4_max(amax, i32x4_shuffle::<2, 3, 2, 3>(amax, amax));
        let amax = u32x4_max(amax, i32x4_shuffle::<1, 1, 1, 1>(amax, amax));
        let Some(inverse) = block.scale_by(f32x4_extract_lane::<0>(amax)) else {
            continue;
        };
        let inverse = f32x4_splat(inverse);
        let round = |i: usize| i32x4_trunc_sat_f32x4(f32x4_nearest(f32x4_mul(load(i), inverse)));
        let mut sums = i32x4_splat(0);
        for (i, out) in block.q.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let (a, b) = (round(2 * i), round(2 * i + 1));
            sums = i32x4_add(sums, i32x4_add(a, b));
            // SAFETY: a store of eight.
            unsafe { v128_store(out.as_mut_ptr().cast(), i16x8_narrow_i32x4(a, b)) }
        }
        let two = i32x4_add(sums, i32x4_shuffle::<2, 3, 2, 3>(sums, sums));
        block.sum = i32x4_extract_lane::<0>(two).wrapping_add(i32x4_extract_lane::<1>(two));
    }
}

fn matmul(
    w: &Matrix,
    rows: Range<usize>,
    x: &Activations,
    out: &mut Columns<'_>,
    scratch: &mut Scratch,
) {
    match w.dtype {
        // SAFETY: simd128 is enabled for this module.
        DType::F32 => unsafe { vector::matmul::<Lanes, f32, 2, 1>(w, rows, x, out) },
        // SAFETY: simd128 is enabled for this module.
        DType::F16 => unsafe { vector::matmul::<Lanes, f16, 2, 1>(w, rows, x, out) },
        // SAFETY: simd128 is enabled for this module.
        DType::BF16 => unsafe { vector::matmul::<Lanes, bf16, 2, 1>(w, rows, x, out) },
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
