//! The functions that "The arithmetic" in ARCHITECTURE.md defines, in scalar form, and the table of RoPE.
//!
//! Invariant: only `mul`, `add`, `sub`, division and comparison, in a fixed order, so that every vector form gives the same bits.

use crate::spec::Position;

/// Lanes of a sum (rule 2).
pub const LANES: usize = 16;

/// Below this `exp` is 0, before the result would be subnormal.
pub(crate) const EXP_MIN: f32 = -87.0;
/// Above this `exp` stays where it is, before the exponent overflows.
pub(crate) const EXP_MAX: f32 = 88.0;
/// `ln 2` in two parts: the first, 0.693359375, has so few bits that `n * LN2_HI` is exact (Cephes, `expf.c`).
pub(crate) const LN2_HI: f32 = 0.693_359_4;
pub(crate) const LN2_LO: f32 = -2.121_944_4e-4;
/// Coefficients of `(exp(r) - 1 - r) / r²` on `|r| <= ln 2 / 2`, highest power first (Cephes, `expf.c`).
pub(crate) const EXP_POLY: [f32; 6] = [
    1.987_569_1e-4,
    1.398_2e-3,
    8.333_452e-3,
    4.166_579_6e-2,
    1.666_666_5e-1,
    0.5,
];

/// `sqrt(2 / pi)` and the cubic coefficient of GELU's tanh form (Hendrycks and Gimpel, 2016).
pub(crate) const GELU_SCALE: f32 = 0.797_884_6;
pub(crate) const GELU_CUBIC: f32 = 0.044_715;

/// `e^x`, within 2 ulp on `[EXP_MIN, EXP_MAX]`. A NaN stays one.
pub fn exp(x: f32) -> f32 {
    if x < EXP_MIN {
        return 0.0;
    }
    let x = if x > EXP_MAX { EXP_MAX } else { x };
    let n = (x * std::f32::consts::LOG2_E).round_ties_even();
    let r = (x - n * LN2_HI) - n * LN2_LO;
    let mut p = EXP_POLY[0];
    for c in &EXP_POLY[1..] {
        p = p * r + c;
    }
    let y = (p * (r * r) + r) + 1.0;
    y * f32::from_bits(((n as i32 + 127) << 23) as u32)
}

/// `x * sigmoid(x)`.
pub fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// GELU in the tanh form, as GPT-2 has it: `0.5 x (1 + tanh u)` is `x * sigmoid(2u)`.
pub fn gelu(x: f32) -> f32 {
    let u = GELU_SCALE * (x + GELU_CUBIC * (x * x * x));
    x / (1.0 + exp(-2.0 * u))
}

/// Sum of `term(i)` for `i < n` in 16 lanes, folded in halves (rule 2).
pub fn sum_lanes(n: usize, term: impl Fn(usize) -> f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    for i in 0..n {
        lanes[i % LANES] += term(i);
    }
    fold_lanes(&mut lanes)
}

/// Folds the lanes in halves: `+8`, `+4`, `+2`, `+1`.
pub(crate) fn fold_lanes(lanes: &mut [f32; LANES]) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
        half /= 2;
    }
    lanes[0]
}

/// The rotations of one position: `(cos, sin)` for each pair of neighbours, appended to `out`. [dim / 2]
///
/// Nothing is appended for models without RoPE. Computed in f64 and rounded once, so that position 8000 is as exact as
/// position 1, and by `libm` rather than the platform, so that every target has the same table.
pub fn rope_row(position: &Position, pos: usize, out: &mut Vec<(f32, f32)>) {
    let Position::Rope {
        base,
        dim,
        freq_factors,
        ..
    } = position
    else {
        return;
    };
    for i in 0..dim / 2 {
        let frequency = libm::pow(f64::from(*base), -2.0 * i as f64 / *dim as f64);
        let factor = freq_factors.get(i).map_or(1.0, |&f| f64::from(f));
        let angle = pos as f64 * (frequency / factor);
        out.push((libm::cos(angle) as f32, libm::sin(angle) as f32));
    }
}

#[cfg(test)]
#[allow(clippy::float_cmp, reason = "the definition is on bits")]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_ulp_of_libm() {
        let mut worst = 0u32;
        let mut x = EXP_MIN;
        while x <= EXP_MAX {
            let want = libm::exp(f64::from(x)) as f32;
            worst = worst.max(exp(x).to_bits().abs_diff(want.to_bits()));
            x += 0.000_7;
        }
        assert!(worst <= 2, "{worst} ulp");
    }

    #[test]
    fn exp_at_its_ends() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-87.1), 0.0);
        assert_eq!(exp(f32::INFINITY).to_bits(), exp(EXP_MAX).to_bits());
        assert!(exp(EXP_MAX).is_finite());
        assert!(exp(EXP_MIN) >= f32::MIN_POSITIVE);
        assert!(exp(f32::NAN).is_nan());
    }

    /// PyTorch: `F.silu` and `F.gelu(approximate="tanh")` in f64, rounded.
    #[test]
    fn activations_follow_their_definitions() {
        for i in -2000..2000 {
            let x = i as f32 * 0.01;
            let xd = f64::from(x);
            let silu_want = xd / (1.0 + libm::exp(-xd));
            let gelu_want = 0.5
                * xd
                * (1.0
                    + libm::tanh(
                        (2.0 / std::f64::consts::PI).sqrt() * (xd + 0.044_715 * xd.powi(3)),
                    ));
            assert!(
                (f64::from(silu(x)) - silu_want).abs() <= 1e-6 * silu_want.abs() + 1e-12,
                "silu({x})"
            );
            assert!(
                (f64::from(gelu(x)) - gelu_want).abs() <= 2e-6 * gelu_want.abs() + 1e-12,
                "gelu({x})"
            );
        }
        assert!(silu(f32::NAN).is_nan() && gelu(f32::NAN).is_nan());
        assert!(silu(-1e20).abs() < 1e-15, "saturates towards 0");
    }

    #[test]
    fn a_sum_folds_in_halves() {
        // Lane 0 holds 1e8, lane 8 holds 1: added first they vanish, in another order they would not.
        let mut x = [0.0f32; 19];
        x[0] = 1e8;
        x[8] = 1.0;
        x[16] = -1e8;
        x[4] = 0.5;
        assert_eq!(sum_lanes(19, |i| x[i]), 1.5);
        assert_eq!(sum_lanes(0, |_| 1.0), 0.0);
        assert_eq!(sum_lanes(5, |i| i as f32), 10.0);
    }

    #[test]
    fn rope_rows_turn_slower_with_each_pair() {
        let position = Position::Rope {
            base: 10_000.0,
            dim: 4,
            pairing: crate::spec::Pairing::Neighbours,
            freq_factors: vec![1.0, 2.0],
        };
        let mut row = Vec::new();
        rope_row(&position, 3, &mut row);
        let want = [
            (3.0f64.cos(), 3.0f64.sin()),
            (0.015f64.cos(), 0.015f64.sin()),
        ];
        assert_eq!(row, want.map(|(c, s)| (c as f32, s as f32)));
        rope_row(&Position::Learned, 3, &mut row);
        assert_eq!(row.len(), 2);
    }
}
