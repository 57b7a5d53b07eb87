// y = epilogue(W · norm(x)) for the last token of the step, W in blocks of 32 (`quant_blocks.wgsl`): decoding, and the
// logits. Each workgroup normalises and quantises the row for itself: that costs a few percent and saves a dispatch.

const CHUNK_BLOCKS: u32 = 128u;  // staged at a time: 5 KiB

var<workgroup> staged_low: array<vec4<u32>, CHUNK_BLOCKS>;
var<workgroup> staged_high: array<vec4<u32>, CHUNK_BLOCKS>;
var<workgroup> staged_scale: array<vec2<f32>, CHUNK_BLOCKS>;

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
            let a = quantize_block(token, chunk + b, terms);
            staged_low[b] = a.low;
            staged_high[b] = a.high;
            staged_scale[b] = vec2<f32>(a.scale, a.sum);
        }
        workgroupBarrier();
        let first = rows * n_blocks + chunk;
        for (var b = lane; b < n_staged; b = b + LANES) {
            let a = Activations(staged_low[b], staged_high[b], staged_scale[b].x, staged_scale[b].y);
            sums.x = add_product(sums.x, read_block(first.x + b), a);
            sums.y = add_product(sums.y, read_block(first.y + b), a);
        }
    }
    write_row(pair, lane, sums, tid);
}
