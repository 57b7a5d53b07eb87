// A product with a tile of four rows of input: their norms, and the end of it.

const TOKENS: u32 = 4u;

var<workgroup> terms: array<vec2<f32>, TOKENS>;

// (mean, 1 / deviation) of the tile's rows into `terms`; a quarter of the workgroup sums one row.
fn norm_terms(first_token: u32, tid: u32) {
    let share = WG / TOKENS;
    let slot = tid / share;
    let token = min(first_token + slot, step.n_tokens - 1u);
    let n = f32(part.n_cols);
    var mean = 0.0;
    if (NORM == LAYER_NORM) {
        var sum = 0.0;
        for (var i = tid % share; i < part.n_cols; i = i + share) {
            sum = sum + x[token * part.n_cols + i];
        }
        partial[tid].x = sum;
        workgroupBarrier();
        for (var i = 0u; i < share; i = i + 1u) {
            mean = mean + partial[slot * share + i].x;
        }
        mean = mean / n;
        workgroupBarrier();
    }
    var squares = 0.0;
    for (var i = tid % share; i < part.n_cols; i = i + share) {
        let c = x[token * part.n_cols + i] - mean;
        squares = squares + c * c;
    }
    partial[tid].x = squares;
    workgroupBarrier();
    if (tid % share == 0u) {
        var variance = 0.0;
        for (var i = 0u; i < share; i = i + 1u) {
            variance = variance + partial[tid + i].x;
        }
        terms[slot] = vec2<f32>(mean, 1.0 / sqrt(variance / n + NORM_EPS));
    }
    workgroupBarrier();
}

// Adds what the lanes of a pair found for each token of the tile, and hands it on.
fn write_tile(first_token: u32, pair: u32, lane: u32, sums0: vec4<f32>, sums1: vec4<f32>, tid: u32) {
    for (var t = 0u; t < TOKENS; t = t + 1u) {
        var sums = vec2<f32>(sums0[t], sums1[t]);
        if (LANES > 1u) {
            workgroupBarrier();
            partial[tid] = sums;
            workgroupBarrier();
            for (var i = 1u; i < LANES; i = i + 1u) {
                // Only lane 0 keeps what it adds.
                sums = sums + partial[min(tid + i, WG - 1u)];
            }
        }
        if (lane == 0u && pair < part.n_pairs && first_token + t < step.n_tokens) {
            write_pair(first_token + t, pair, sums);
        }
    }
}
