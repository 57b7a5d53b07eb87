// Weights that are floats: rows of whole vec4<u32>, padded with zeros (ARCHITECTURE.md, "The arithmetic", 2).

// 0 F32: 4 elements in a vec4<u32>. 1 F16, 2 BF16: 8 elements.
override FORMAT: u32 = 0u;

const F32: u32 = 0u;
const F16: u32 = 1u;

@group(0) @binding(7) var<storage, read> weights: array<vec4<u32>>;

// Elements in a vec4<u32>.
fn group_len() -> u32 {
    return select(8u, 4u, FORMAT == F32);
}

// vec4<u32>s in a row.
fn row_groups() -> u32 {
    return (part.n_cols + group_len() - 1u) / group_len();
}

// The elements of a group: for F32 all are in `low`.
struct Group {
    low: vec4<f32>,
    high: vec4<f32>,
}

fn read_group(at: u32) -> Group {
    let w = weights[at];
    if (FORMAT == F32) {
        return Group(bitcast<vec4<f32>>(w), vec4<f32>(0.0));
    }
    if (FORMAT == F16) {
        return Group(
            vec4<f32>(unpack2x16float(w.x), unpack2x16float(w.y)),
            vec4<f32>(unpack2x16float(w.z), unpack2x16float(w.w)));
    }
    let even = bitcast<vec4<f32>>(w << vec4<u32>(16u));
    let odd = bitcast<vec4<f32>>(w & vec4<u32>(0xffff0000u));
    return Group(vec4<f32>(even.x, odd.x, even.y, odd.y), vec4<f32>(even.z, odd.z, even.w, odd.w));
}

// Four elements of token `token`'s row after the norm, 0 beyond its end.
fn input4(token: u32, c: u32, terms: vec2<f32>) -> vec4<f32> {
    var v = vec4<f32>(0.0);
    for (var i = 0u; i < min(4u, part.n_cols - min(c, part.n_cols)); i = i + 1u) {
        v[i] = input(token, c + i, terms);
    }
    return v;
}
