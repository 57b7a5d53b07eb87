// Half precision by integer arithmetic: the built-in conversions may round towards zero and flush what is
// below 2^-14, and a small weight's scale is often there. Rounds to nearest, ties to even.

fn half_to_f32(h: u32) -> f32 {
    let exponent_mantissa = (h & 0x7fffu) << 13u;
    let normal = bitcast<f32>(exponent_mantissa + (112u << 23u));
    let subnormal = f32(h & 0x03ffu) * 5.9604644775390625e-08;
    let magnitude = select(normal, subnormal, (h & 0x7c00u) == 0u);
    return select(magnitude, -magnitude, (h & 0x8000u) != 0u);
}

fn f32_to_half(x: f32) -> u32 {
    let bits = bitcast<u32>(x);
    let magnitude = bits & 0x7fffffffu;
    let normal = ((magnitude + 0x0fffu + ((magnitude >> 13u) & 1u)) >> 13u) - (112u << 10u);
    let subnormal = u32(round(min(abs(x), 0.0001) * 16777216.0));
    let finite = select(normal, subnormal, magnitude < 0x38800000u);
    return ((bits >> 16u) & 0x8000u) | select(finite, 0x7c00u, magnitude >= 0x477ff000u);
}
