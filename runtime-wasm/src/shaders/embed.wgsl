// Writes the rows of the step's tokens. `element(row, c)` is that of `embed_quant.wgsl` or `embed_float.wgsl`.
// A token outside this part of the embedding is another dispatch's.

struct Part {
    n_cols: u32,
    n_rows: u32,
    n_pairs: u32,
    first_out: u32,  // id of the part's first row
    width: u32,
}

struct Step {
    pos: u32,
    n_tokens: u32,
    zero: u32,
    unused: u32,
}

@group(0) @binding(0) var<uniform> part: Part;
@group(0) @binding(1) var<uniform> step: Step;
@group(0) @binding(2) var<storage, read> tokens: array<u32>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;  // [n_tokens, n_cols]

@compute @workgroup_size(WG)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let c = id.x;
    let token = id.y;
    if (c >= part.n_cols || token >= step.n_tokens) {
        return;
    }
    let row = tokens[token] - part.first_out;  // wraps below the part
    if (row >= part.n_rows) {
        return;
    }
    var v = element(row, c);
    if (HAS_POSITION) {
        v = v + positions[(step.pos + token) * part.n_cols + c];
    }
    y[token * part.n_cols + c] = v;
}
