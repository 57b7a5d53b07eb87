//! The instructions of wasm's simd128 that the kernels are written in, by those of NEON, which every aarch64 has. Names and
//! results are wasm's (WebAssembly SIMD, "Semantics").

#![allow(
    non_camel_case_types,
    reason = "the names are those of `std::arch::wasm32`"
)]

use std::arch::aarch64::*;

/// 128 bits, read as whatever an instruction says.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct v128(uint8x16_t);

/// Ways from one type of lanes to bits and back.
macro_rules! views {
    ($($view:ident $wrap:ident $type:ty, $to:ident, $from:ident;)*) => {$(
        #[inline(always)]
        fn $view(x: v128) -> $type {
            // SAFETY: NEON is part of aarch64.
            unsafe { $to(x.0) }
        }
        #[inline(always)]
        fn $wrap(x: $type) -> v128 {
            // SAFETY: NEON is part of aarch64.
            v128(unsafe { $from(x) })
        }
    )*};
}

views! {
    f32s of_f32s float32x4_t, vreinterpretq_f32_u8, vreinterpretq_u8_f32;
    i32s of_i32s int32x4_t, vreinterpretq_s32_u8, vreinterpretq_u8_s32;
    u32s of_u32s uint32x4_t, vreinterpretq_u32_u8, vreinterpretq_u8_u32;
    i16s of_i16s int16x8_t, vreinterpretq_s16_u8, vreinterpretq_u8_s16;
    u16s of_u16s uint16x8_t, vreinterpretq_u16_u8, vreinterpretq_u8_u16;
    u64s of_u64s uint64x2_t, vreinterpretq_u64_u8, vreinterpretq_u8_u64;
}

/// Instructions that NEON has too.
macro_rules! same {
    ($($name:ident($($arg:ident),+) = $wrap:ident($neon:ident $view:ident);)*) => {$(
        #[inline(always)]
        pub(super) fn $name($($arg: v128),+) -> v128 {
            // SAFETY: NEON is part of aarch64.
            $wrap(unsafe { $neon($($view($arg)),+) })
        }
    )*};
}

same! {
    f32x4_add(a, b) = of_f32s(vaddq_f32 f32s);
    f32x4_sub(a, b) = of_f32s(vsubq_f32 f32s);
    f32x4_mul(a, b) = of_f32s(vmulq_f32 f32s);
    f32x4_div(a, b) = of_f32s(vdivq_f32 f32s);
    f32x4_neg(a) = of_f32s(vnegq_f32 f32s);
    f32x4_nearest(a) = of_f32s(vrndnq_f32 f32s);
    f32x4_lt(a, b) = of_u32s(vcltq_f32 f32s);
    f32x4_convert_i32x4(a) = of_f32s(vcvtq_f32_s32 i32s);
    i32x4_trunc_sat_f32x4(a) = of_i32s(vcvtq_s32_f32 f32s);
    i32x4_add(a, b) = of_i32s(vaddq_s32 i32s);
    i32x4_sub(a, b) = of_i32s(vsubq_s32 i32s);
    i32x4_mul(a, b) = of_i32s(vmulq_s32 i32s);
    i32x4_eq(a, b) = of_u32s(vceqq_s32 i32s);
    u32x4_max(a, b) = of_u32s(vmaxq_u32 u32s);
    i16x8_sub(a, b) = of_i16s(vsubq_s16 i16s);
    i16x8_mul(a, b) = of_i16s(vmulq_s16 i16s);
    i16x8_eq(a, b) = of_u16s(vceqq_s16 i16s);
    v128_and(a, b) = v128(vandq_u8 bits);
    v128_or(a, b) = v128(vorrq_u8 bits);
    v128_andnot(a, b) = v128(vbicq_u8 bits);
}

#[inline(always)]
fn bits(x: v128) -> uint8x16_t {
    x.0
}

/// `a < b ? b : a`, where a NaN stays what it is in `a`.
#[inline(always)]
pub(super) fn f32x4_pmax(a: v128, b: v128) -> v128 {
    v128_bitselect(b, a, f32x4_lt(a, b))
}

/// `b < a ? b : a`.
#[inline(always)]
pub(super) fn f32x4_pmin(a: v128, b: v128) -> v128 {
    v128_bitselect(b, a, f32x4_lt(b, a))
}

/// The bits of `a` where those of `mask` are set, else those of `b`.
#[inline(always)]
pub(super) fn v128_bitselect(a: v128, b: v128, mask: v128) -> v128 {
    // SAFETY: NEON is part of aarch64.
    v128(unsafe { vbslq_u8(mask.0, a.0, b.0) })
}

/// `a[2i] b[2i] + a[2i + 1] b[2i + 1]`.
#[inline(always)]
pub(super) fn i32x4_dot_i16x8(a: v128, b: v128) -> v128 {
    let (a, b) = (i16s(a), i16s(b));
    // SAFETY: NEON is part of aarch64.
    of_i32s(unsafe {
        let low = vmull_s16(vget_low_s16(a), vget_low_s16(b));
        vpaddq_s32(low, vmull_high_s16(a, b))
    })
}

/// The lanes of `a`, then those of `b`, saturated.
#[inline(always)]
pub(super) fn i16x8_narrow_i32x4(a: v128, b: v128) -> v128 {
    // SAFETY: NEON is part of aarch64.
    of_i16s(unsafe { vqmovn_high_s32(vqmovn_s32(i32s(a)), i32s(b)) })
}

/// Shifts by the same number of bits, which is less than a lane has.
macro_rules! shifts {
    ($($name:ident = $wrap:ident($neon:ident $view:ident, $splat:ident $lane:ty, $sign:literal);)*) => {$(
        #[inline(always)]
        pub(super) fn $name(a: v128, n: u32) -> v128 {
            // SAFETY: NEON is part of aarch64.
            $wrap(unsafe { $neon($view(a), $splat($sign * n as $lane)) })
        }
    )*};
}

shifts! {
    i32x4_shl = of_i32s(vshlq_s32 i32s, vdupq_n_s32 i32, 1);
    i32x4_shr = of_i32s(vshlq_s32 i32s, vdupq_n_s32 i32, -1);
    i16x8_shl = of_i16s(vshlq_s16 i16s, vdupq_n_s16 i16, 1);
    u16x8_shr = of_u16s(vshlq_u16 u16s, vdupq_n_s16 i16, -1);
    u8x16_shl = v128(vshlq_u8 bits, vdupq_n_s8 i8, 1);
    u8x16_shr = v128(vshlq_u8 bits, vdupq_n_s8 i8, -1);
}

/// The same value in all lanes.
macro_rules! splats {
    ($($name:ident($type:ty) = $wrap:ident($neon:ident);)*) => {$(
        #[inline(always)]
        pub(super) fn $name(x: $type) -> v128 {
            // SAFETY: NEON is part of aarch64.
            $wrap(unsafe { $neon(x) })
        }
    )*};
}

splats! {
    f32x4_splat(f32) = of_f32s(vdupq_n_f32);
    i32x4_splat(i32) = of_i32s(vdupq_n_s32);
    u32x4_splat(u32) = of_u32s(vdupq_n_u32);
    i16x8_splat(i16) = of_i16s(vdupq_n_s16);
    u16x8_splat(u16) = of_u16s(vdupq_n_u16);
    u8x16_splat(u8) = v128(vdupq_n_u8);
}

#[inline(always)]
pub(super) fn f32x4(a: f32, b: f32, c: f32, d: f32) -> v128 {
    // SAFETY: four elements.
    unsafe { v128_load([a, b, c, d].as_ptr().cast()) }
}

#[expect(clippy::too_many_arguments, reason = "a lane each")]
#[inline(always)]
pub(super) fn u16x8(a: u16, b: u16, c: u16, d: u16, e: u16, f: u16, g: u16, h: u16) -> v128 {
    // SAFETY: eight elements.
    unsafe { v128_load([a, b, c, d, e, f, g, h].as_ptr().cast()) }
}

#[inline(always)]
pub(super) fn f32x4_extract_lane<const N: i32>(a: v128) -> f32 {
    // SAFETY: NEON is part of aarch64.
    unsafe { vgetq_lane_f32::<N>(f32s(a)) }
}

#[inline(always)]
pub(super) fn i32x4_extract_lane<const N: i32>(a: v128) -> i32 {
    // SAFETY: NEON is part of aarch64.
    unsafe { vgetq_lane_s32::<N>(i32s(a)) }
}

/// Lanes of `a` (0..4) and `b` (4..8), those orders that the kernels have.
#[inline(always)]
pub(super) fn i32x4_shuffle<const A: usize, const B: usize, const C: usize, const D: usize>(
    a: v128,
    b: v128,
) -> v128 {
    let (a, b) = (u32s(a), u32s(b));
    // SAFETY: NEON is part of aarch64.
    unsafe {
        match (A, B, C, D) {
            (0, 4, 1, 5) => of_u32s(vzip1q_u32(a, b)),
            (2, 6, 3, 7) => of_u32s(vzip2q_u32(a, b)),
            (2, 3, 2, 3) => i64x2_shuffle::<1, 1>(of_u32s(a), of_u32s(a)),
            (1, 1, 1, 1) => of_u32s(vdupq_laneq_u32::<1>(a)),
            _ => unreachable!("no kernel has this order"),
        }
    }
}

/// Lanes of `a` (0, 1) and `b` (2, 3), those orders that the kernels have.
#[inline(always)]
pub(super) fn i64x2_shuffle<const A: usize, const B: usize>(a: v128, b: v128) -> v128 {
    let (a, b) = (u64s(a), u64s(b));
    // SAFETY: NEON is part of aarch64.
    of_u64s(unsafe {
        match (A, B) {
            (0, 2) => vzip1q_u64(a, b),
            (1, 3) => vzip2q_u64(a, b),
            (1, 1) => vzip2q_u64(a, a),
            _ => unreachable!("no kernel has this order"),
        }
    })
}

/// Lanes of `a` (0..8) and `b` (8..16), those orders that the kernels have.
#[inline(always)]
pub(super) fn i16x8_shuffle<
    const A: usize,
    const B: usize,
    const C: usize,
    const D: usize,
    const E: usize,
    const F: usize,
    const G: usize,
    const H: usize,
>(
    a: v128,
    b: v128,
) -> v128 {
    let (a, b) = (u16s(a), u16s(b));
    // SAFETY: NEON is part of aarch64.
    of_u16s(unsafe {
        match (A, B, C, D, E, F, G, H) {
            (0, 8, 1, 9, 2, 10, 3, 11) => vzip1q_u16(a, b),
            (4, 12, 5, 13, 6, 14, 7, 15) => vzip2q_u16(a, b),
            (0, 2, 4, 6, 8, 10, 12, 14) => vuzp1q_u16(a, b),
            (1, 3, 5, 7, 9, 11, 13, 15) => vuzp2q_u16(a, b),
            _ => unreachable!("no kernel has this order"),
        }
    })
}

/// Sixteen bytes.
///
/// # Safety
/// They can be read.
#[inline(always)]
pub(super) unsafe fn v128_load(p: *const v128) -> v128 {
    // SAFETY: by the caller; NEON loads need no alignment.
    v128(unsafe { vld1q_u8(p.cast()) })
}

/// Stores sixteen bytes.
///
/// # Safety
/// They can be written.
#[inline(always)]
pub(super) unsafe fn v128_store(p: *mut v128, x: v128) {
    // SAFETY: by the caller; NEON stores need no alignment.
    unsafe { vst1q_u8(p.cast(), x.0) }
}

/// Four bytes, in all lanes.
///
/// # Safety
/// They can be read.
#[inline(always)]
pub(super) unsafe fn v128_load32_splat(p: *const u32) -> v128 {
    // SAFETY: by the caller.
    u32x4_splat(unsafe { p.read_unaligned() })
}

/// Four bytes, and zeros.
///
/// # Safety
/// They can be read.
#[inline(always)]
pub(super) unsafe fn v128_load32_zero(p: *const u32) -> v128 {
    // SAFETY: by the caller.
    of_u32s(unsafe { vsetq_lane_u32::<0>(p.read_unaligned(), vdupq_n_u32(0)) })
}

/// Eight bytes as signed numbers of 16 bits.
///
/// # Safety
/// They can be read.
#[inline(always)]
pub(super) unsafe fn i16x8_load_extend_i8x8(p: *const i8) -> v128 {
    // SAFETY: by the caller.
    of_i16s(unsafe { vmovl_s8(vld1_s8(p)) })
}
