//! Sixteen f32 in four vectors of 128 bits.

use super::arch::*;
use crate::cpu::vector::F32x16;
use half::{bf16, f16};

/// Lanes 0..4, 4..8, 8..12 and 12..16.
///
/// Written out vector by vector: `array::map` leaves calls in the middle of a loop.
#[derive(Clone, Copy)]
pub(super) struct Lanes(v128, v128, v128, v128);

/// The same operation on all four vectors of one or two operands.
macro_rules! each {
    ($op:expr, $a:expr) => {
        Lanes($op($a.0), $op($a.1), $op($a.2), $op($a.3))
    };
    ($op:expr, $a:expr, $b:expr) => {
        Lanes(
            $op($a.0, $b.0),
            $op($a.1, $b.1),
            $op($a.2, $b.2),
            $op($a.3, $b.3),
        )
    };
}

impl F32x16 for Lanes {
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        let x = f32x4_splat(x);
        Self(x, x, x, x)
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        let p = p.cast::<v128>();
        // SAFETY: sixteen elements by the contract.
        unsafe {
            Self(
                v128_load(p),
                v128_load(p.add(1)),
                v128_load(p.add(2)),
                v128_load(p.add(3)),
            )
        }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const f16) -> Self {
        let p = p.cast::<v128>();
        // SAFETY: sixteen elements by the contract.
        let (a, b) = unsafe { (v128_load(p), v128_load(p.add(1))) };
        Self(
            widen_f16(upper_low(a)),
            widen_f16(upper_high(a)),
            widen_f16(upper_low(b)),
            widen_f16(upper_high(b)),
        )
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const bf16) -> Self {
        let p = p.cast::<v128>();
        // SAFETY: sixteen elements by the contract. A bf16 is the upper half of an f32.
        let (a, b) = unsafe { (v128_load(p), v128_load(p.add(1))) };
        Self(upper_low(a), upper_high(a), upper_low(b), upper_high(b))
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        let p = p.cast::<v128>();
        // SAFETY: sixteen elements by the contract.
        unsafe {
            v128_store(p, self.0);
            v128_store(p.add(1), self.1);
            v128_store(p.add(2), self.2);
            v128_store(p.add(3), self.3);
        }
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        each!(f32x4_add, self, other)
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        each!(f32x4_sub, self, other)
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        each!(f32x4_mul, self, other)
    }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        each!(f32x4_div, self, other)
    }
    #[inline(always)]
    unsafe fn neg(self) -> Self {
        each!(f32x4_neg, self)
    }
    #[inline(always)]
    unsafe fn greater(self, other: Self) -> Self {
        // `pmax(a, b)` is `a < b ? b : a`.
        each!(f32x4_pmax, other, self)
    }
    #[inline(always)]
    unsafe fn less(self, other: Self) -> Self {
        // `pmin(a, b)` is `b < a ? b : a`.
        each!(f32x4_pmin, other, self)
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        each!(f32x4_nearest, self)
    }
    #[inline(always)]
    unsafe fn exp2_int(self) -> Self {
        each!(exp2_int, self)
    }
    #[inline(always)]
    unsafe fn zero_where_less(self, x: Self, bound: Self) -> Self {
        let less = each!(f32x4_lt, x, bound);
        each!(v128_andnot, self, less)
    }
    #[inline(always)]
    unsafe fn fold(self) -> f32 {
        let four = f32x4_add(f32x4_add(self.0, self.2), f32x4_add(self.1, self.3));
        let two = f32x4_add(four, i32x4_shuffle::<2, 3, 2, 3>(four, four));
        f32x4_extract_lane::<0>(two) + f32x4_extract_lane::<1>(two)
    }
}

#[inline(always)]
fn exp2_int(n: v128) -> v128 {
    i32x4_shl(i32x4_add(i32x4_trunc_sat_f32x4(n), i32x4_splat(127)), 23)
}

/// The first four u16 as the upper halves of lanes.
#[inline(always)]
fn upper_low(x: v128) -> v128 {
    i16x8_shuffle::<0, 8, 1, 9, 2, 10, 3, 11>(u16x8_splat(0), x)
}

/// The last four u16 as the upper halves of lanes.
#[inline(always)]
fn upper_high(x: v128) -> v128 {
    i16x8_shuffle::<4, 12, 5, 13, 6, 14, 7, 15>(u16x8_splat(0), x)
}

/// Four f16, each in the upper half of a lane, as f32. What is in the lower halves does not matter.
#[inline(always)]
pub(super) fn widen_f16(upper: v128) -> v128 {
    // Sign, exponent and mantissa at their places in an f32; the shift fills the three bits between with the sign.
    let bits = v128_and(i32x4_shr(upper, 3), u32x4_splat(0x8fff_e000));
    // The exponents' biases differ by 112. The product is exact, for subnormal halves too.
    let scaled = f32x4_mul(bits, f32x4_splat(f32::from_bits((112 + 127) << 23)));
    // Infinity and NaN have the largest exponent of a half, and get the largest of an f32.
    let largest = u32x4_splat(0x0f80_0000);
    let special = i32x4_eq(v128_and(bits, largest), largest);
    v128_or(scaled, v128_and(special, u32x4_splat(0x7f80_0000)))
}
