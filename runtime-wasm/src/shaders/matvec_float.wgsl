// y = epilogue(W · norm(x)) for the last token of the step, W in F32, F16 or BF16 (`float_rows.wgsl`).

const CHUNK: u32 = 512u;  // vec4s staged at a time: 8 KiB

var<workgroup> staged: array<vec4<f32>, CHUNK>;
@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) tid: u32) {
    let token = step.n_tokens - 1u;
    let lane = tid % LANES;
    let pair = group.x * (WG / LANES) + tid / LANES;
    let rows = pair_rows(min(pair, part.n_pairs - 1u));
    let n_groups = row_groups();
    let per_group = group_len() / 4u;  // vec4s of input
    let terms = norm_terms(token, tid);

    var sum0 = vec4<f32>(0.0);
    var sum1 = vec4<f32>(0.0);
    let chunk_groups = CHUNK / per_group;
    for (var chunk = 0u; chunk < n_groups; chunk = chunk + chunk_groups) {
        let n_staged = min(chunk_groups, n_groups - chunk);
        workgroupBarrier();
        for (var i = tid; i < n_staged * per_group; i = i + WG) {
            staged[i] = input4(token, 4u * (chunk * per_group + i), terms);
        }
        workgroupBarrier();
        let first = rows * n_groups + chunk;
        for (var i = lane; i < n_staged; i = i + LANES) {
            let w0 = read_group(first.x + i);
            let w1 = read_group(first.y + i);
            let low = staged[i * per_group];
            sum0 = sum0 + w0.low * low;
            sum1 = sum1 + w1.low * low;
            if (FORMAT != F32) {
                let high = staged[i * per_group + 1u];
                sum0 = sum0 + w0.high * high;
                sum1 = sum1 + w1.high * high;
            }
        }
    }
    let sums = vec2<f32>((sum0.x + sum0.z) + (sum0.y + sum0.w), (sum1.x + sum1.z) + (sum1.y + sum1.w));
    write_row(pair, lane, sums, tid);
}
