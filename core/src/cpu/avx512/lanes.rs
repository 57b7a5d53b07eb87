//! Sixteen lanes in one register.

use crate::cpu::vector::F32x16;
use half::{bf16, f16};
use std::arch::x86_64::*;

/// The lanes of rule 2.
#[derive(Clone, Copy)]
pub(super) struct Lanes(__m512);

/// Functions of registers alone.
macro_rules! by_lane {
    ($($name:ident($self:ident $(, $other:ident)?) = $op:expr;)*) => {$(
        #[inline(always)]
        unsafe fn $name($self $(, $other: Self)?) -> Self {
            // SAFETY: the instruction set by the contract of `F32x16`.
            unsafe { Self($op) }
        }
    )*};
}

impl F32x16 for Lanes {
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        // SAFETY: the instruction set by the contract.
        unsafe { Self(_mm512_set1_ps(x)) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: sixteen elements by the contract.
        unsafe { Self(_mm512_loadu_ps(p)) }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const f16) -> Self {
        // SAFETY: sixteen elements by the contract.
        unsafe { Self(_mm512_cvtph_ps(_mm256_loadu_si256(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const bf16) -> Self {
        // SAFETY: sixteen elements by the contract. A bf16 is the upper half of an f32.
        unsafe {
            let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
            Self(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits)))
        }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: sixteen elements by the contract.
        unsafe { _mm512_storeu_ps(p, self.0) }
    }
    by_lane! {
        add(self, other) = _mm512_add_ps(self.0, other.0);
        sub(self, other) = _mm512_sub_ps(self.0, other.0);
        mul(self, other) = _mm512_mul_ps(self.0, other.0);
        div(self, other) = _mm512_div_ps(self.0, other.0);
        greater(self, other) = _mm512_max_ps(self.0, other.0);
        less(self, other) = _mm512_min_ps(self.0, other.0);
        neg(self) = _mm512_xor_ps(self.0, _mm512_set1_ps(-0.0));
        round(self) = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0);
        exp2_int(self) = {
            let exponent = _mm512_add_epi32(_mm512_cvtps_epi32(self.0), _mm512_set1_epi32(127));
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(exponent))
        };
    }
    #[inline(always)]
    unsafe fn zero_where_less(self, x: Self, bound: Self) -> Self {
        // SAFETY: the instruction set by the contract.
        unsafe {
            let keep = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(x.0, bound.0);
            Self(_mm512_maskz_mov_ps(keep, self.0))
        }
    }
    #[inline(always)]
    unsafe fn fold(self) -> f32 {
        // SAFETY: the instruction set by the contract.
        unsafe {
            let eight = _mm256_add_ps(
                _mm512_castps512_ps256(self.0),
                _mm512_extractf32x8_ps::<1>(self.0),
            );
            let four = _mm_add_ps(
                _mm256_castps256_ps128(eight),
                _mm256_extractf128_ps::<1>(eight),
            );
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }
    /// In a tree: each step folds two vectors into the halves, then the quarters, of one.
    #[inline(always)]
    unsafe fn fold_each(all: &[Self; 16]) -> Self {
        // SAFETY: the instruction set by the contract.
        unsafe {
            let mut eights = [_mm512_setzero_ps(); 8];
            for (i, eight) in eights.iter_mut().enumerate() {
                let (a, b) = (all[i].0, all[i + 8].0);
                // Lanes 0..8 of both, and lanes 8..16 of both.
                *eight = _mm512_add_ps(
                    _mm512_shuffle_f32x4::<0b01_00_01_00>(a, b),
                    _mm512_shuffle_f32x4::<0b11_10_11_10>(a, b),
                );
            }
            let mut fours = [_mm512_setzero_ps(); 4];
            for (i, four) in fours.iter_mut().enumerate() {
                // Quarters are vectors i, i + 8, i + 4, i + 12.
                let (a, b) = (eights[i], eights[i + 4]);
                *four = _mm512_add_ps(
                    _mm512_shuffle_f32x4::<0b10_00_10_00>(a, b),
                    _mm512_shuffle_f32x4::<0b11_01_11_01>(a, b),
                );
            }
            let mut twos = [_mm512_setzero_pd(); 2];
            for (i, two) in twos.iter_mut().enumerate() {
                let (a, b) = (_mm512_castps_pd(fours[i]), _mm512_castps_pd(fours[i + 2]));
                let (low, high) = (_mm512_unpacklo_pd(a, b), _mm512_unpackhi_pd(a, b));
                *two =
                    _mm512_castps_pd(_mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high)));
            }
            let (a, b) = (_mm512_castpd_ps(twos[0]), _mm512_castpd_ps(twos[1]));
            // In each quarter: vectors j, j + 2, j + 1, j + 3 of its first j.
            let sums = _mm512_add_ps(
                _mm512_shuffle_ps::<0b10_00_10_00>(a, b),
                _mm512_shuffle_ps::<0b11_01_11_01>(a, b),
            );
            let order = _mm512_setr_epi32(0, 2, 1, 3, 8, 10, 9, 11, 4, 6, 5, 7, 12, 14, 13, 15);
            Self(_mm512_permutexvar_ps(order, sums))
        }
    }
}
