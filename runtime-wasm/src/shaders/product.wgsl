// What every matrix product shares: where its input comes from, the norm before it, and what becomes of its output.
// The CPU twin of the epilogues is `fledgling_core::cpu`'s forward pass.

// The norm of the input row: 0 none, 1 LayerNorm, 2 RMSNorm.
override NORM: u32 = 0u;
override NORM_EPS: f32 = 1e-5;
// What happens to W·x, see `write_pair`.
override EPILOGUE: u32 = 0u;
override HAS_BIAS: bool = false;
// Threads of a workgroup, and how many of them share one pair of rows.
override WG: u32 = 64u;
override LANES: u32 = 1u;
// The stacked rows of q, k and v, for the epilogue QKV.
override N_Q: u32 = 0u;
override N_KV: u32 = 0u;
override HEAD_DIM: u32 = 2u;
override N_CTX: u32 = 1u;

const LAYER_NORM: u32 = 1u;
const RMS_NORM: u32 = 2u;

const STORE: u32 = 0u;     // y = v
const ADD: u32 = 1u;       // y = y + v
const SWIGLU: u32 = 2u;    // y = silu(v0) * v1: the pair is (gate, up)
const GELU: u32 = 3u;      // y = gelu(v)
const QKV: u32 = 4u;       // q, k and v: rotated, k and v into the cache
const SILU_MUL: u32 = 5u;  // y = silu(y) * v: the gate was stored before

// One part of a matrix: a matrix beyond the adapter's binding limit is split by rows.
struct Part {
    n_cols: u32,
    n_rows: u32,      // in this part
    n_pairs: u32,     // rows are computed in pairs
    first_out: u32,   // index of the part's first output
    width: u32,       // outputs of the whole matrix: the length of a row of y
}

// Where in the context this submission stands.
struct Step {
    pos: u32,        // position of the first token
    n_tokens: u32,
    zero: u32,
    unused: u32,
}

@group(0) @binding(0) var<uniform> part: Part;
@group(0) @binding(1) var<uniform> step: Step;
// [norm weight (n_cols)] [norm bias (n_cols), LayerNorm only] [bias (all rows)]
@group(0) @binding(2) var<storage, read> vectors: array<f32>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;
// Keys of all positions, then values: two halves a word. [2, N_CTX, N_KV / 2]
@group(0) @binding(4) var<storage, read_write> kv: array<u32>;
// (cos, sin) for each position and pair of a head. [N_CTX, HEAD_DIM / 2]
@group(0) @binding(5) var<storage, read> rope: array<vec2<f32>>;

// The input rows. [n_tokens, n_cols]
@group(0) @binding(6) var<storage, read> x: array<f32>;

var<workgroup> partial: array<vec2<f32>, WG>;

// An element of token `token`'s row after the norm; `terms` is (mean, 1 / deviation).
fn input(token: u32, c: u32, terms: vec2<f32>) -> f32 {
    let v = x[token * part.n_cols + c];
    if (NORM == 0u) {
        return v;
    }
    if (NORM == RMS_NORM) {
        return (v * terms.y) * vectors[c];
    }
    return (((v - terms.x) * terms.y) * vectors[c]) + vectors[part.n_cols + c];
}

// The two rows of a pair, in this part. An odd last row is its own neighbour.
fn pair_rows(pair: u32) -> vec2<u32> {
    if (EPILOGUE == SWIGLU) {
        return vec2<u32>(pair, pair + part.n_pairs);
    }
    return vec2<u32>(2u * pair, min(2u * pair + 1u, part.n_rows - 1u));
}

fn bias_at(out: u32) -> f32 {
    let n_norm = select(select(0u, 2u, NORM == LAYER_NORM), 1u, NORM == RMS_NORM);
    return vectors[n_norm * part.n_cols + out];
}

fn silu(v: f32) -> f32 {
    return v / (1.0 + exp_exact(-v));
}

// The tanh form, as v * sigmoid(2u).
fn gelu(v: f32) -> f32 {
    let u = 0.7978845608 * (v + 0.044715 * (v * v * v));
    return v / (1.0 + exp_exact(-2.0 * u));
}

fn write_one(token: u32, out: u32, v: f32) {
    let at = token * part.width + out;
    switch EPILOGUE {
        case ADD: { y[at] = y[at] + v; }
        case GELU: { y[at] = gelu(v); }
        case SILU_MUL: { y[at] = silu(y[at]) * v; }
        default: { y[at] = v; }
    }
}

fn write_qkv(token: u32, row: u32, v: vec2<f32>) {
    let pos = step.pos + token;
    let turn = rope[pos * (HEAD_DIM / 2u) + (row % HEAD_DIM) / 2u];
    let rotated = vec2<f32>(v.x * turn.x - v.y * turn.y, v.x * turn.y + v.y * turn.x);
    if (row < N_Q) {
        y[token * N_Q + row] = rotated.x;
        y[token * N_Q + row + 1u] = rotated.y;
    } else if (row < N_Q + N_KV) {
        let at = (pos * N_KV + row - N_Q) / 2u;
        kv[at] = f32_to_half(rotated.x) | (f32_to_half(rotated.y) << 16u);
    } else {
        let at = (N_CTX * N_KV + pos * N_KV + row - N_Q - N_KV) / 2u;
        kv[at] = f32_to_half(v.x) | (f32_to_half(v.y) << 16u);
    }
}

// Takes the two products of a pair of rows.
fn write_pair(token: u32, pair: u32, products: vec2<f32>) {
    if (EPILOGUE == SWIGLU) {
        y[token * part.width + part.first_out + pair] = silu(products.x) * products.y;
        return;
    }
    let out = part.first_out + 2u * pair;
    let has_second = 2u * pair + 1u < part.n_rows;
    var v = products;
    if (HAS_BIAS) {
        v.x = v.x + bias_at(out);
        if (has_second) {
            v.y = v.y + bias_at(out + 1u);
        }
    }
    if (EPILOGUE == QKV) {
        write_qkv(token, out, v);
        return;
    }
    write_one(token, out, v.x);
    if (has_second) {
        write_one(token, out + 1u, v.y);
    }
}
