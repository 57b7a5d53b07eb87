//! The exponential function of loops that are to become vector code.

/// `e^x` within 2 ulp for |x| < 87, without branches so that loops over it become vector code (Cephes, `expf.c`). Below -87
/// and above 88 it is constant; NaN stays NaN.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 · 2^23: adding it rounds to an integer, which then stands in the low bits
    const LN_2_HIGH: f32 = 355.0 / 512.0; // ln 2 in two parts, the first exact for every product with n
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let x = x.clamp(-87.0, 88.0);
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = (x - n * LN_2_HIGH) - n * LN_2_LOW;
    let p = ((((1.987_569_1e-4 * r + 1.398_2e-3) * r + 8.333_452e-3) * r + 4.166_579_6e-2) * r
        + 1.666_666_5e-1)
        * r
        + 0.5;
    let y = p * (r * r) + r + 1.0;
    y * f32::from_bits((rounded.to_bits() << 23).wrapping_add(127 << 23))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_ulp() {
        for i in -8700..8700_i32 {
            let x = i as f32 / 100.0;
            let expected = f64::from(x).exp();
            assert!(
                (f64::from(exp(x)) - expected).abs() <= 2.5e-7 * expected,
                "{x}"
            );
        }
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn below_zero_it_is_within_a_few_ulp() {
        for i in 0..=87_000 {
            let x = -(i as f32) / 1000.0;
            let want = f64::from(x).exp();
            let got = f64::from(exp(x));
            assert!((got / want - 1.0).abs() < 4e-7, "{x}: {got} {want}");
        }
        assert!(exp(-1000.0) < 1e-37);
    }
}
