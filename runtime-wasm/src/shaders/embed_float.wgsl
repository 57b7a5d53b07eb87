// x = the token's row of the embedding, in F32, F16 or BF16 as `float_rows.wgsl` lays them out, plus the position's row.

override WG: u32 = 64u;
override FORMAT: u32 = 0u;          // 0 F32, 1 F16, 2 BF16
override HAS_POSITION: bool = false;

const F32: u32 = 0u;
const F16: u32 = 1u;

@group(0) @binding(4) var<storage, read> positions: array<f32>;  // [n_ctx, n_cols]
@group(0) @binding(5) var<storage, read> weights: array<u32>;

fn element(row: u32, c: u32) -> f32 {
    if (FORMAT == F32) {
        return bitcast<f32>(weights[row * ((part.n_cols + 3u) / 4u) * 4u + c]);
    }
    let word = weights[row * ((part.n_cols + 7u) / 8u) * 4u + c / 2u];
    let half = select(word & 0xffffu, word >> 16u, c % 2u == 1u);
    if (FORMAT == F16) {
        return half_to_f32(half);
    }
    return bitcast<f32>(half << 16u);
}
