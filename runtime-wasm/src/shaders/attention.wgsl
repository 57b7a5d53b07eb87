// Attention of one head and one token of the step over the cache; one workgroup each.
// Keys are scored a thread each; sums run in the order of "The arithmetic" in ARCHITECTURE.md, so that they have the CPU
// engine's bits. Only beyond SEGMENT positions the softmax's maximum and sum are carried over segments instead.

override WG: u32 = 64u;
override N_HEAD: u32 = 1u;
override N_KV_HEAD: u32 = 1u;
override HEAD_DIM: u32 = 2u;
override N_CTX: u32 = 1u;
override SCALE: f32 = 1.0;  // 1 / sqrt(HEAD_DIM)

const SEGMENT: u32 = 3072u;  // 12 KiB of scores

struct Step {
    pos: u32,
    n_tokens: u32,
    zero: u32,
    unused: u32,
}

@group(0) @binding(0) var<uniform> step: Step;
@group(0) @binding(1) var<storage, read> q: array<vec2<f32>>;         // [n_tokens, N_HEAD, HEAD_DIM / 2]
@group(0) @binding(2) var<storage, read> kv: array<u32>;              // [2, N_CTX, N_KV_HEAD, HEAD_DIM / 2]
@group(0) @binding(3) var<storage, read_write> y: array<vec2<f32>>;   // [n_tokens, N_HEAD, HEAD_DIM / 2]

// The query in vectors of four, with zeros up to a multiple of 16 elements.
var<workgroup> query: array<vec4<f32>, (HEAD_DIM + 15u) / 16u * 4u>;
var<workgroup> scores: array<f32, SEGMENT>;
var<workgroup> folded: array<f32, WG>;

fn query_at(first: u32, i: u32) -> f32 {
    if (i >= HEAD_DIM) {
        return 0.0;
    }
    let pair = q[first + i / 2u];
    return select(pair.x, pair.y, i % 2u == 1u);
}

// Elements 4i to 4i + 3 of the key at `first`; those beyond its end meet zeros of the query.
fn key4(first: u32, i: u32) -> vec4<f32> {
    let last = HEAD_DIM / 2u - 1u;
    return vec4<f32>(
        unpack2x16float(kv[first + min(2u * i, last)]), unpack2x16float(kv[first + min(2u * i + 1u, last)]));
}

// q·k in 16 lanes, folded in halves.
fn score(key: u32) -> f32 {
    var lanes0 = vec4<f32>(0.0);
    var lanes4 = vec4<f32>(0.0);
    var lanes8 = vec4<f32>(0.0);
    var lanes12 = vec4<f32>(0.0);
    for (var i = 0u; i < (HEAD_DIM + 15u) / 16u * 4u; i = i + 4u) {
        lanes0 = lanes0 + query[i] * key4(key, i);
        lanes4 = lanes4 + query[i + 1u] * key4(key, i + 1u);
        lanes8 = lanes8 + query[i + 2u] * key4(key, i + 2u);
        lanes12 = lanes12 + query[i + 3u] * key4(key, i + 3u);
    }
    let half = (lanes0 + lanes8) + (lanes4 + lanes12);
    return (half.x + half.z) + (half.y + half.w);
}

// The largest of `v` over the workgroup.
fn largest(v: f32, tid: u32) -> f32 {
    folded[tid] = v;
    workgroupBarrier();
    var most = folded[0];
    for (var i = 1u; i < WG; i = i + 1u) {
        most = max(most, folded[i]);
    }
    workgroupBarrier();
    return most;
}

// The sum of the first `len` scores in 16 lanes, folded in halves.
fn sum_of_scores(len: u32, tid: u32) -> f32 {
    if (tid < 16u) {
        var sum = 0.0;
        for (var t = tid; t < len; t = t + 16u) {
            sum = sum + scores[t];
        }
        folded[tid] = sum;
    }
    workgroupBarrier();
    return (((folded[0] + folded[8]) + (folded[4] + folded[12])) + ((folded[2] + folded[10]) + (folded[6] + folded[14])))
        + (((folded[1] + folded[9]) + (folded[5] + folded[13])) + ((folded[3] + folded[11]) + (folded[7] + folded[15])));
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) tid: u32) {
    let head = group.x;
    let token = group.y;
    let pairs = HEAD_DIM / 2u;
    let kv_head = head / (N_HEAD / N_KV_HEAD);
    let row = N_KV_HEAD * pairs;             // words of a position
    let first_key = kv_head * pairs;
    let first_value = N_CTX * row + first_key;
    let first_query = (token * N_HEAD + head) * pairs;
    let n = step.pos + token + 1u;

    for (var i = tid; i < (HEAD_DIM + 15u) / 16u * 4u; i = i + WG) {
        query[i] = vec4<f32>(
            query_at(first_query, 4u * i), query_at(first_query, 4u * i + 1u),
            query_at(first_query, 4u * i + 2u), query_at(first_query, 4u * i + 3u));
    }
    var most = -3.0e38;
    var sum = 0.0;
    var value = vec2<f32>(0.0);              // of the pair of dimensions `tid`
    for (var segment = 0u; segment < n; segment = segment + SEGMENT) {
        let len = min(SEGMENT, n - segment);
        workgroupBarrier();
        var segment_most = most;
        for (var t = tid; t < len; t = t + WG) {
            let s = score(first_key + (segment + t) * row) * SCALE;
            scores[t] = s;
            segment_most = max(segment_most, s);
        }
        let new_most = largest(segment_most, tid);
        for (var t = tid; t < len; t = t + WG) {
            scores[t] = exp_exact(scores[t] - new_most);
        }
        workgroupBarrier();
        if (segment > 0u) {
            let carried = exp_exact(most - new_most);
            sum = sum * carried;
            value = value * carried;
        }
        sum = sum + sum_of_scores(len, tid);
        if (tid < pairs) {
            for (var t = 0u; t < len; t = t + 1u) {
                value = value + scores[t] * unpack2x16float(kv[first_value + (segment + t) * row + tid]);
            }
        }
        most = new_most;
    }
    if (tid < pairs) {
        y[first_query + tid] = value * (1.0 / sum);
    }
}
