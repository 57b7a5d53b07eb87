// Quantised weights and activations: the integer product of two blocks of 32 (ARCHITECTURE.md, "The arithmetic", 3).
// Weights are repacked at upload: the quants of a row's blocks one after another, one word of scale a block.

// 0 Q8_0: 32 bytes; the scale word is an f32. 1 Q4_0: 16 bytes, low nibbles first; the scale word is an f32.
// 2 Q4_1: 16 bytes; the scale word is the file's (f16 scale, f16 minimum).
override FORMAT: u32 = 0u;

const Q8_0: u32 = 0u;
const Q4_0: u32 = 1u;
const Q4_1: u32 = 2u;
const ONES: u32 = 0x01010101u;
const NIBBLES: vec4<u32> = vec4<u32>(0x0f0f0f0fu);

@group(0) @binding(7) var<storage, read> quants: array<vec4<u32>>;
@group(0) @binding(8) var<storage, read> scales: array<u32>;

// A block of activations: 32 signed bytes, the scale d16, and the sum of the bytes.
struct Activations {
    low: vec4<u32>,
    high: vec4<u32>,
    scale: f32,
    sum: f32,
}

fn dot16(w: vec4<u32>, a: vec4<u32>) -> i32 {
    return dot4I8Packed(w.x, a.x) + dot4I8Packed(w.y, a.y) + dot4I8Packed(w.z, a.z) + dot4I8Packed(w.w, a.w);
}

// A block of weights: 32 signed bytes, their scale, and what is added to each scaled byte (Q4_1).
struct Weights {
    low: vec4<u32>,
    high: vec4<u32>,
    scale: f32,
    minimum: f32,
}

fn read_block(block: u32) -> Weights {
    let word = scales[block];
    var w: Weights;
    if (FORMAT == Q8_0) {
        w.low = quants[2u * block];
        w.high = quants[2u * block + 1u];
    } else {
        let nibbles = quants[block];
        w.low = nibbles & NIBBLES;
        w.high = (nibbles >> vec4<u32>(4u)) & NIBBLES;
    }
    if (FORMAT == Q4_1) {
        w.scale = half_to_f32(word & 0xffffu);
        w.minimum = half_to_f32(word >> 16u);
    } else {
        w.scale = bitcast<f32>(word);
    }
    return w;
}

// acc + the product of two blocks. Q4_0 takes its 8 off the exact integer sum.
fn add_product(acc: f32, w: Weights, a: Activations) -> f32 {
    var isum = dot16(w.low, a.low) + dot16(w.high, a.high);
    if (FORMAT == Q4_0) {
        isum = isum - 8 * i32(a.sum);
    }
    let scaled = acc + f32(isum) * (w.scale * a.scale);
    if (FORMAT == Q4_1) {
        return scaled + w.minimum * (a.scale * a.sum);
    }
    return scaled;
}

// Four elements of token `token`'s row after the norm.
fn input4(token: u32, i: u32, terms: vec2<f32>) -> vec4<f32> {
    let c = 4u * i;
    return vec4<f32>(
        input(token, c, terms), input(token, c + 1u, terms), input(token, c + 2u, terms), input(token, c + 3u, terms));
}

fn input_word(token: u32, i: u32, terms: vec2<f32>, inverse: f32) -> u32 {
    return pack4xI8(vec4<i32>(round(input4(token, i, terms) * inverse)));
}

fn sum16(words: vec4<u32>) -> i32 {
    return dot16(words, vec4<u32>(ONES));
}

// Quantises block `block` of token `token`'s row.
fn quantize_block(token: u32, block: u32, terms: vec2<f32>) -> Activations {
    let first = 8u * block;
    var most = vec4<f32>(0.0);
    for (var i = 0u; i < 8u; i = i + 1u) {
        most = max(most, abs(input4(token, first + i, terms)));
    }
    let amax = max(max(most.x, most.y), max(most.z, most.w));
    let d16 = half_to_f32(f32_to_half(amax / 127.0));
    var inverse = 0.0;
    if (d16 > 0.0) {
        inverse = 127.0 / amax;
    }
    var a: Activations;
    a.low = vec4<u32>(
        input_word(token, first, terms, inverse), input_word(token, first + 1u, terms, inverse),
        input_word(token, first + 2u, terms, inverse), input_word(token, first + 3u, terms, inverse));
    a.high = vec4<u32>(
        input_word(token, first + 4u, terms, inverse), input_word(token, first + 5u, terms, inverse),
        input_word(token, first + 6u, terms, inverse), input_word(token, first + 7u, terms, inverse));
    a.scale = d16;
    a.sum = f32(sum16(a.low) + sum16(a.high));
    return a;
}
