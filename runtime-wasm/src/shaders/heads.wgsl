// One head of q, k or v of one token of the step, after the projection: norm and rotation of q and k, and the way into the
// cache for k and v. One workgroup each. The CPU twins are `rms_norm`, `rope` and `rope_halves` of
// `fledgling_core::cpu::scalar`.

override WG: u32 = 64u;          // at least 16
override HALVES: bool = false;   // elements i and i + HEAD_DIM / 2 turn together, else 2i and 2i + 1
override HAS_NORM: bool = false;
override NORM_EPS: f32 = 1e-5;
override N_HEAD: u32 = 1u;
override N_KV_HEAD: u32 = 1u;
override HEAD_DIM: u32 = 2u;
override N_CTX: u32 = 1u;

struct Step {
    pos: u32,
    n_tokens: u32,
    zero: u32,
    unused: u32,
}

@group(0) @binding(0) var<uniform> step: Step;
@group(0) @binding(1) var<storage, read> qkv: array<f32>;             // [n_tokens, N_HEAD + 2 N_KV_HEAD, HEAD_DIM]
@group(0) @binding(2) var<storage, read> norms: array<f32>;           // [2, HEAD_DIM]: of q, of k
@group(0) @binding(3) var<storage, read> rope: array<vec2<f32>>;      // (cos, sin). [N_CTX, HEAD_DIM / 2]
@group(0) @binding(4) var<storage, read_write> q: array<f32>;         // [n_tokens, N_HEAD, HEAD_DIM]
@group(0) @binding(5) var<storage, read_write> kv: array<u32>;        // [2, N_CTX, N_KV_HEAD, HEAD_DIM / 2]

var<workgroup> head: array<f32, HEAD_DIM>;
var<workgroup> lanes: array<f32, 16>;

// 1 / rms of the head: the sum of squares in 16 lanes, folded in halves.
fn norm_scale(tid: u32) -> f32 {
    if (tid < 16u) {
        var sum = 0.0;
        for (var i = tid; i < HEAD_DIM; i = i + 16u) {
            sum = sum + head[i] * head[i];
        }
        lanes[tid] = sum;
    }
    workgroupBarrier();
    let sum = (((lanes[0] + lanes[8]) + (lanes[4] + lanes[12])) + ((lanes[2] + lanes[10]) + (lanes[6] + lanes[14])))
        + (((lanes[1] + lanes[9]) + (lanes[5] + lanes[13])) + ((lanes[3] + lanes[11]) + (lanes[7] + lanes[15])));
    return 1.0 / sqrt(sum / f32(HEAD_DIM) + NORM_EPS);
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) tid: u32) {
    let n_heads = N_HEAD + 2u * N_KV_HEAD;
    let pairs = HEAD_DIM / 2u;
    let token = group.y;
    let pos = step.pos + token;
    let is_q = group.x < N_HEAD;
    let is_v = group.x >= N_HEAD + N_KV_HEAD;

    for (var i = tid; i < HEAD_DIM; i = i + WG) {
        head[i] = qkv[(token * n_heads + group.x) * HEAD_DIM + i];
    }
    workgroupBarrier();
    var scale = 1.0;
    if (HAS_NORM) {
        scale = norm_scale(tid);
    }
    if (!is_v) {
        for (var p = tid; p < pairs; p = p + WG) {
            let first = select(2u * p, p, HALVES);
            let second = select(2u * p + 1u, p + pairs, HALVES);
            var a = head[first];
            var b = head[second];
            if (HAS_NORM) {
                let weights = select(HEAD_DIM, 0u, is_q);
                a = (a * scale) * norms[weights + first];
                b = (b * scale) * norms[weights + second];
            }
            let turn = rope[pos * pairs + p];
            head[first] = a * turn.x - b * turn.y;
            head[second] = a * turn.y + b * turn.x;
        }
    }
    workgroupBarrier();
    if (is_q) {
        for (var i = tid; i < HEAD_DIM; i = i + WG) {
            q[(token * N_HEAD + group.x) * HEAD_DIM + i] = head[i];
        }
        return;
    }
    let first_pos = select(0u, N_CTX, is_v);
    let kv_head = (group.x - N_HEAD) % N_KV_HEAD;
    for (var p = tid; p < pairs; p = p + WG) {
        kv[((first_pos + pos) * N_KV_HEAD + kv_head) * pairs + p] =
            f32_to_half(head[2u * p]) | (f32_to_half(head[2u * p + 1u]) << 16u);
    }
}
