// Quantised weights and activations: the integer product of two blocks of 32 (ARCHITECTURE.md, "The arithmetic", 3).
// The integers are computed as f32: every partial sum stays below 2^24, so that it is exact in any order.
// Weights are repacked at upload: the quants of a row's blocks one after another, one word of scale a block.

// 0 Q8_0: 32 bytes; the scale word is an f32. 1 Q4_0: 16 bytes, low nibbles first; the scale word is an f32.
// 2 Q4_1: 16 bytes; the scale word is the file's (f16 scale, f16 minimum).
override FORMAT: u32 = 0u;

const Q8_0: u32 = 0u;
const Q4_0: u32 = 1u;
const Q4_1: u32 = 2u;
// The largest magnitude of a quantised activation.
const ACTIVATION_MAX: f32 = 4095.0;
const LEAST_NORMAL: f32 = 1.17549435e-38;

@group(0) @binding(7) var<storage, read> quants: array<vec4<u32>>;
@group(0) @binding(8) var<storage, read> scales: array<u32>;

// A block of weights: 32 integers, their scale, and what is added to each scaled one (Q4_1).
struct Weights {
    low: mat4x4<f32>,   // elements 0..16
    high: mat4x4<f32>,  // elements 16..32
    scale: f32,
    minimum: f32,
}

fn signed_bytes(word: u32) -> vec4<f32> {
    return vec4<f32>(vec4<i32>(vec4<u32>(word) << vec4<u32>(24u, 16u, 8u, 0u)) >> vec4<u32>(24u));
}

fn nibbles(word: u32) -> vec4<f32> {
    return vec4<f32>((vec4<u32>(word) >> vec4<u32>(0u, 8u, 16u, 24u)) & vec4<u32>(15u));
}

fn read_block(block: u32) -> Weights {
    let word = scales[block];
    var w: Weights;
    if (FORMAT == Q8_0) {
        let l = quants[2u * block];
        let h = quants[2u * block + 1u];
        w.low = mat4x4<f32>(signed_bytes(l.x), signed_bytes(l.y), signed_bytes(l.z), signed_bytes(l.w));
        w.high = mat4x4<f32>(signed_bytes(h.x), signed_bytes(h.y), signed_bytes(h.z), signed_bytes(h.w));
    } else {
        let l = quants[block];
        let h = l >> vec4<u32>(4u);
        w.low = mat4x4<f32>(nibbles(l.x), nibbles(l.y), nibbles(l.z), nibbles(l.w));
        w.high = mat4x4<f32>(nibbles(h.x), nibbles(h.y), nibbles(h.z), nibbles(h.w));
    }
    if (FORMAT == Q4_1) {
        w.scale = half_to_f32(word & 0xffffu);
        w.minimum = half_to_f32(word >> 16u);
    } else {
        w.scale = bitcast<f32>(word);
    }
    return w;
}

// acc + the product of a block with the activations staged from `at` on; `a` is their (scale, sum).
// Q4_0 takes its 8 off the exact integer sum.
fn add_product(acc: f32, w: Weights, at: u32, a: vec2<f32>) -> f32 {
    let v = w.low[0] * staged[at] + w.low[1] * staged[at + 1u] + w.low[2] * staged[at + 2u] + w.low[3] * staged[at + 3u]
        + w.high[0] * staged[at + 4u] + w.high[1] * staged[at + 5u] + w.high[2] * staged[at + 6u]
        + w.high[3] * staged[at + 7u];
    var isum = (v.x + v.y) + (v.z + v.w);
    if (FORMAT == Q4_0) {
        isum = isum - 8.0 * a.y;
    }
    let scaled = acc + isum * (w.scale * a.x);
    if (FORMAT == Q4_1) {
        return scaled + w.minimum * (a.x * a.y);
    }
    return scaled;
}

// Four elements of token `token`'s row after the norm.
fn input4(token: u32, i: u32, terms: vec2<f32>) -> vec4<f32> {
    let c = 4u * i;
    return vec4<f32>(
        input(token, c, terms), input(token, c + 1u, terms), input(token, c + 2u, terms), input(token, c + 3u, terms));
}

// Quantises block `block` of token `token`'s row into `staged` from `at` on, and gives its (scale, sum).
fn stage_block(at: u32, token: u32, block: u32, terms: vec2<f32>) -> vec2<f32> {
    let first = 8u * block;
    var most = vec4<f32>(0.0);
    for (var i = 0u; i < 8u; i = i + 1u) {
        most = max(most, abs(input4(token, first + i, terms)));
    }
    let amax = max(max(most.x, most.y), max(most.z, most.w));
    let scale = amax / ACTIVATION_MAX;
    var inverse = 0.0;
    if (scale >= LEAST_NORMAL) {
        inverse = ACTIVATION_MAX / amax;
    }
    var sum = vec4<f32>(0.0);
    for (var i = 0u; i < 8u; i = i + 1u) {
        let q = round(input4(token, first + i, terms) * inverse);
        staged[at + i] = q;
        sum = sum + q;
    }
    return vec2<f32>(scale, (sum.x + sum.y) + (sum.z + sum.w));
}
