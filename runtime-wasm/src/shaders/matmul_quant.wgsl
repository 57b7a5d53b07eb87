// y = epilogue(W · norm(x)) for a tile of tokens, W in blocks of 32: prefill. As `matvec_quant.wgsl`, with four tokens
// for each weight that is read.

const CHUNK_BLOCKS: u32 = 64u;  // staged at a time, of each token: 10 KiB in all

var<workgroup> staged_low: array<vec4<u32>, 256>;    // [TOKENS, CHUNK_BLOCKS]
var<workgroup> staged_high: array<vec4<u32>, 256>;
var<workgroup> staged_scale: array<vec2<f32>, 256>;

fn staged(token: u32, b: u32) -> Activations {
    let at = token * CHUNK_BLOCKS + b;
    return Activations(staged_low[at], staged_high[at], staged_scale[at].x, staged_scale[at].y);
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
            let a = quantize_block(token, chunk + b, terms[slot]);
            staged_low[slot * CHUNK_BLOCKS + b] = a.low;
            staged_high[slot * CHUNK_BLOCKS + b] = a.high;
            staged_scale[slot * CHUNK_BLOCKS + b] = vec2<f32>(a.scale, a.sum);
        }
        workgroupBarrier();
        let first = rows * n_blocks + chunk;
        for (var b = lane; b < n_staged; b = b + LANES) {
            let w0 = read_block(first.x + b);
            let w1 = read_block(first.y + b);
            let a0 = staged(0u, b);
            let a1 = staged(1u, b);
            let a2 = staged(2u, b);
            let a3 = staged(3u, b);
            sums0 = vec4<f32>(
                add_product(sums0.x, w0, a0), add_product(sums0.y, w0, a1),
                add_product(sums0.z, w0, a2), add_product(sums0.w, w0, a3));
            sums1 = vec4<f32>(
                add_product(sums1.x, w1, a0), add_product(sums1.y, w1, a1),
                add_product(sums1.z, w1, a2), add_product(sums1.w, w1, a3));
        }
    }
    write_tile(first_token, pair, lane, sums0, sums1, tid);
}
