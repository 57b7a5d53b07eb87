// y = epilogue(W · norm(x)) for a tile of tokens, W in blocks of 32: prefill. As `matvec_quant.wgsl`, with four tokens
// for each weight that is read.

const CHUNK_BLOCKS: u32 = 16u;  // staged at a time, of each token: 8.5 KiB in all

var<workgroup> staged: array<vec4<f32>, 512>;       // [TOKENS, CHUNK_BLOCKS, 8]
var<workgroup> staged_terms: array<vec2<f32>, 64>;  // [TOKENS, CHUNK_BLOCKS]

// acc + the product of `w` with block `b` of the tile's row `slot`.
fn add_staged(acc: f32, w: Weights, slot: u32, b: u32) -> f32 {
    let at = slot * CHUNK_BLOCKS + b;
    return add_product(acc, w, 8u * at, staged_terms[at]);
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) tid: u32) {
    let first_token = group.y * TOKENS;
    let lane = tid % LANES;
    let pair = group.x * (WG / LANES) + tid / LANES;
    let rows = pair_rows(min(pair, part.n_pairs - 1u));
    let n_blocks = part.n_cols / 32u;
    if (NORM != 0u) {
        norm_terms(first_token, tid);
    }

    var sums0 = vec4<f32>(0.0);  // first row, four tokens
    var sums1 = vec4<f32>(0.0);
    for (var chunk = 0u; chunk < n_blocks; chunk = chunk + CHUNK_BLOCKS) {
        let n_staged = min(CHUNK_BLOCKS, n_blocks - chunk);
        workgroupBarrier();
        for (var i = tid; i < n_staged * TOKENS; i = i + WG) {
            let slot = i / n_staged;
            let b = i % n_staged;
            let token = min(first_token + slot, step.n_tokens - 1u);
            let at = slot * CHUNK_BLOCKS + b;
            staged_terms[at] = stage_block(8u * at, token, chunk + b, terms[slot]);
        }
        workgroupBarrier();
        let first = rows * n_blocks + chunk;
        for (var b = lane; b < n_staged; b = b + LANES) {
            let w0 = read_block(first.x + b);
            let w1 = read_block(first.y + b);
            sums0 = vec4<f32>(
                add_staged(sums0.x, w0, 0u, b), add_staged(sums0.y, w0, 1u, b),
                add_staged(sums0.z, w0, 2u, b), add_staged(sums0.w, w0, 3u, b));
            sums1 = vec4<f32>(
                add_staged(sums1.x, w1, 0u, b), add_staged(sums1.y, w1, 1u, b),
                add_staged(sums1.z, w1, 2u, b), add_staged(sums1.w, w1, 3u, b));
        }
    }
    write_tile(first_token, pair, lane, sums0, sums1, tid);
}
