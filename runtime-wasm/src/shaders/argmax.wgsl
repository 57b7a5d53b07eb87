// Greedy choice on the GPU: the next token goes where the next step's embedding reads it, and the step moves on, so that
// a step can be submitted before the last one's token was read. Ties go to the lowest id.

override WG: u32 = 256u;
override VOCAB: u32 = 1u;

struct Step {
    pos: u32,
    n_tokens: u32,
    zero: u32,
    unused: u32,
}

@group(0) @binding(0) var<storage, read> logits: array<f32>;          // [VOCAB]
@group(0) @binding(1) var<storage, read_write> tokens: array<u32>;
@group(0) @binding(2) var<storage, read_write> step: Step;

var<workgroup> best_logit: array<f32, WG>;
var<workgroup> best_id: array<u32, WG>;

@compute @workgroup_size(WG)
fn main(@builtin(local_invocation_index) tid: u32) {
    var logit = -3.4e38;
    var id = min(tid, VOCAB - 1u);
    for (var i = tid; i < VOCAB; i = i + WG) {
        if (logits[i] > logit) {
            logit = logits[i];
            id = i;
        }
    }
    best_logit[tid] = logit;
    best_id[tid] = id;
    workgroupBarrier();
    if (tid == 0u) {
        for (var t = 1u; t < WG; t = t + 1u) {
            if (best_logit[t] > logit || (best_logit[t] == logit && best_id[t] < id)) {
                logit = best_logit[t];
                id = best_id[t];
            }
        }
        tokens[0] = id;
        step.pos = step.pos + step.n_tokens;
        step.n_tokens = 1u;
    }
}
