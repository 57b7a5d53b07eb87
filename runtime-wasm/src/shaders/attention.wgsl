// Attention of one head and one token of the step over the cache; one workgroup each.
// Keys are scored a thread each and a segment at a time; the softmax's maximum and sum are carried over segments.

override WG: u32 = 64u;
override N_HEAD: u32 = 1u;
override N_KV_HEAD: u32 = 1u;
override HEAD_DIM: u32 = 2u;
override N_CTX: u32 = 1u;
override SCALE: f32 = 1.0;  // 1 / sqrt(HEAD_DIM)

const SEGMENT: u32 = 1024u;

struct Step {
    pos: u32,
    n_tokens: u32,
    unused_a: u32,
    unused_b: u32,
}

@group(0) @binding(0) var<uniform> step: Step;
@group(0) @binding(1) var<storage, read> q: array<vec2<f32>>;         // [n_tokens, N_HEAD, HEAD_DIM / 2]
@group(0) @binding(2) var<storage, read> kv: array<u32>;              // [2, N_CTX, N_KV_HEAD, HEAD_DIM / 2]
@group(0) @binding(3) var<storage, read_write> y: array<vec2<f32>>;   // [n_tokens, N_HEAD, HEAD_DIM / 2]

var<workgroup> query: array<vec2<f32>, HEAD_DIM / 2u>;
var<workgroup> scores: array<f32, SEGMENT>;
var<workgroup> partial: array<vec2<f32>, WG>;
var<workgroup> folded: array<f32, 8>;

// Folds `v` over the workgroup: the largest, or the sum.
fn fold(v: f32, largest: bool, tid: u32) -> f32 {
    partial[tid].x = v;
    workgroupBarrier();
    if (tid < 8u) {
        var s = v;
        for (var i = tid + 8u; i < WG; i = i + 8u) {
            s = select(s + partial[i].x, max(s, partial[i].x), largest);
        }
        folded[tid] = s;
    }
    workgroupBarrier();
    var s = folded[0];
    for (var i = 1u; i < 8u; i = i + 1u) {
        s = select(s + folded[i], max(s, folded[i]), largest);
    }
    return s;
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
    let n = step.pos + token + 1u;

    for (var i = tid; i < pairs; i = i + WG) {
        query[i] = q[(token * N_HEAD + head) * pairs + i];
    }

    // Threads share the values: each takes one pair of dimensions, and every `stripes`-th position.
    let stripes = WG / pairs;
    let pair = tid % pairs;
    let stripe = tid / pairs;
    var most = -3.0e38;
    var sum = 0.0;
    var value = vec2<f32>(0.0);
    for (var segment = 0u; segment < n; segment = segment + SEGMENT) {
        let len = min(SEGMENT, n - segment);
        workgroupBarrier();
        var segment_most = -3.0e38;
        for (var t = tid; t < len; t = t + WG) {
            let key = first_key + (segment + t) * row;
            var s = vec2<f32>(0.0);
            for (var i = 0u; i < pairs; i = i + 1u) {
                s = s + query[i] * unpack2x16float(kv[key + i]);
            }
            let score = (s.x + s.y) * SCALE;
            scores[t] = score;
            segment_most = max(segment_most, score);
        }
        let new_most = max(most, fold(segment_most, true, tid));
        var segment_sum = 0.0;
        for (var t = tid; t < len; t = t + WG) {
            let p = exp(scores[t] - new_most);
            scores[t] = p;
            segment_sum = segment_sum + p;
        }
        let carried = exp(most - new_most);
        // The fold's barriers also make all scores visible.
        sum = sum * carried + fold(segment_sum, false, tid);
        value = value * carried;
        if (stripe < stripes) {
            for (var t = stripe; t < len; t = t + stripes) {
                value = value + scores[t] * unpack2x16float(kv[first_value + (segment + t) * row + pair]);
            }
        }
        most = new_most;
    }

    workgroupBarrier();
    partial[tid] = value;
    workgroupBarrier();
    if (tid < pairs) {
        for (var s = 1u; s < stripes; s = s + 1u) {
            value = value + partial[s * pairs + tid];
        }
        y[(token * N_HEAD + head) * pairs + tid] = value * (1.0 / sum);
    }
}
