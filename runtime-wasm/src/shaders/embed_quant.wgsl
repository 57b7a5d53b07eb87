// x = the token's row of the embedding, in blocks of 32 as `quant_blocks.wgsl` lays them out, plus the position's row.

override WG: u32 = 64u;
override FORMAT: u32 = 0u;          // 0 Q8_0, 1 Q4_0, 2 Q4_1
override HAS_POSITION: bool = false;

const Q8_0: u32 = 0u;
const Q4_1: u32 = 2u;

@group(0) @binding(4) var<storage, read> positions: array<f32>;  // [n_ctx, n_cols]
@group(0) @binding(5) var<storage, read> quants: array<u32>;
@group(0) @binding(6) var<storage, read> scales: array<u32>;

fn element(row: u32, c: u32) -> f32 {
    let block = row * (part.n_cols / 32u) + c / 32u;
    let j = c % 32u;
    let word = scales[block];
    if (FORMAT == Q8_0) {
        let bytes = quants[8u * block + j / 4u];
        return bitcast<f32>(word) * f32(extractBits(i32(bytes), 8u * (j % 4u), 8u));
    }
    let bytes = quants[4u * block + (j % 16u) / 4u];
    let q = f32(extractBits(bytes, 8u * (j % 4u) + 4u * (j / 16u), 4u));
    if (FORMAT == Q4_1) {
        return half_to_f32(word & 0xffffu) * q + half_to_f32(word >> 16u);
    }
    return bitcast<f32>(word) * (q - 8.0);
}
