// y = epilogue(W · norm(x)) for a tile of tokens, W in F32, F16 or BF16: prefill. As `matvec_float.wgsl`, with four
// tokens for each weight that is read.

const CHUNK: u32 = 128u;  // vec4s staged at a time, of each token: 8 KiB in all

var<workgroup> staged: array<vec4<f32>, 512>;  // [TOKENS, CHUNK]

fn add4(sums: vec4<f32>, w: vec4<f32>, at: u32) -> vec4<f32> {
    return sums + vec4<f32>(
        dot(w, staged[at]), dot(w, staged[CHUNK + at]), dot(w, staged[2u * CHUNK + at]), dot(w, staged[3u * CHUNK + at]));
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) tid: u32) {
    let first_token = group.y * TOKENS;
    let lane = tid % LANES;
    let pair = group.x * (WG / LANES) + tid / LANES;
    let rows = pair_rows(min(pair, part.n_pairs - 1u));
    let n_groups = row_groups();
    let per_group = group_len() / 4u;
    if (NORM != 0u) {
        norm_terms(first_token, tid);
    }

    var sums0 = vec4<f32>(0.0);  // first row, four tokens
    var sums1 = vec4<f32>(0.0);
    let chunk_groups = CHUNK / per_group;
    for (var chunk = 0u; chunk < n_groups; chunk = chunk + chunk_groups) {
        let n_staged = min(chunk_groups, n_groups - chunk);
        let n_vecs = n_staged * per_group;
        workgroupBarrier();
        for (var i = tid; i < n_vecs * TOKENS; i = i + WG) {
            let slot = i / n_vecs;
            let v = i % n_vecs;
            let token = min(first_token + slot, step.n_tokens - 1u);
            staged[slot * CHUNK + v] = input4(token, 4u * (chunk * per_group + v), terms[slot]);
        }
        workgroupBarrier();
        let first = rows * n_groups + chunk;
        for (var i = lane; i < n_staged; i = i + LANES) {
            let w0 = read_group(first.x + i);
            let w1 = read_group(first.y + i);
            sums0 = add4(sums0, w0.low, i * per_group);
            sums1 = add4(sums1, w1.low, i * per_group);
            if (FORMAT != F32) {
                sums0 = add4(sums0, w0.high, i * per_group + 1u);
                sums1 = add4(sums1, w1.high, i * per_group + 1u);
            }
        }
    }
    write_tile(first_token, pair, lane, sums0, sums1, tid);
}
