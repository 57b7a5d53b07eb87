// y = epilogue(W · norm(x)) for the last token of the step, W in blocks of 32 (`quant_blocks.wgsl`): decoding, and the
// logits. Each workgroup normalises and quantises the row for itself: that costs a few percent and saves a dispatch.

const CHUNK_BLOCKS: u32 = 64u;  // staged at a time: 8.5 KiB

var<workgroup> staged: array<vec4<f32>, 512>;  // [CHUNK_BLOCKS, 8]
var<workgroup> staged_terms: array<vec2<f32>, CHUNK_BLOCKS>;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) tid: u32) {
    let token = step.n_tokens - 1u;
    let lane = tid % LANES;
    let pair = group.x * (WG / LANES) + tid / LANES;
    let rows = pair_rows(min(pair, part.n_pairs - 1u));
    let n_blocks = part.n_cols / 32u;
    let terms = norm_terms(token, tid);

    var sums = vec2<f32>(0.0);
    for (var chunk = 0u; chunk < n_blocks; chunk = chunk + CHUNK_BLOCKS) {
        let n_staged = min(CHUNK_BLOCKS, n_blocks - chunk);
        workgroupBarrier();
        for (var b = tid; b < n_staged; b = b + WG) {
            staged_terms[b] = stage_block(8u * b, token, chunk + b, terms);
        }
        workgroupBarrier();
        let first = rows * n_blocks + chunk;
        for (var b = lane; b < n_staged; b = b + LANES) {
            sums.x = add_product(sums.x, read_block(first.x + b), 8u * b, staged_terms[b]);
            sums.y = add_product(sums.y, read_block(first.y + b), 8u * b, staged_terms[b]);
        }
    }
    write_row(pair, lane, sums, tid);
}
