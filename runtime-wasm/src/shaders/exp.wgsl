// e^x as `fledgling_core::cpu::math::exp` computes it, operation by operation: the built-in may be some ulp off, and a
// quantised activation that falls on the other side is enough to change a greedy text. `step.zero` keeps a compiler from
// adding the last two terms in another order, which Mesa does.

fn exp_exact(v: f32) -> f32 {
    let x = min(v, 88.0);
    let n = round(x * 1.44269504);
    let r = (x - n * 0.693359375) - n * -0.000212194440;
    var p = 0.00019875691500;
    p = p * r + 0.0013982;
    p = p * r + 0.0083334519073;
    p = p * r + 0.041665795894;
    p = p * r + 0.16666665459;
    p = p * r + 0.50000001201;
    let y = bitcast<f32>(bitcast<u32>(p * (r * r) + r) ^ step.zero) + 1.0;
    return select(y * bitcast<f32>((i32(n) + 127) << 23u), 0.0, v < -87.0);
}
