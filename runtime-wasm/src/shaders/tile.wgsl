// A product with a tile of four rows of input: their norms, and the end of it.

const TOKENS: u32 = 4u;

var<workgroup> terms: array<vec2<f32>, TOKENS>;

var<workgroup> lane_sums: array<f32, 64>;  // [TOKENS, 16]

// The sums of the tile's rows as `row.wgsl` computes one, into `lane_sums[16 * slot]`.
fn row_sums(first_token: u32, squared: bool, tid: u32) {
    workgroupBarrier();
    for (var i = tid; i < 64u; i = i + WG) {
        let token = min(first_token + i / 16u, step.n_tokens - 1u);
        let mean = select(0.0, terms[i / 16u].x, squared);
        var sum = 0.0;
        for (var c = i % 16u; c < part.n_cols; c = c + 16u) {
            let v = x[token * part.n_cols + c] - mean;
            sum = sum + select(v, v * v, squared);
        }
        lane_sums[i] = sum;
    }
    for (var half = 8u; half > 0u; half = half / 2u) {
        workgroupBarrier();
        for (var i = tid; i < 64u; i = i + WG) {
            if (i % 16u < half) {
                lane_sums[i] = lane_sums[i] + lane_sums[i + half];
            }
        }
    }
    workgroupBarrier();
}

// (mean, 1 / deviation) of the tile's rows into `terms`; the mean of an RMSNorm is 0.
fn norm_terms(first_token: u32, tid: u32) {
    let n = f32(part.n_cols);
    if (tid < TOKENS) {
        terms[tid] = vec2<f32>(0.0, 1.0);
    }
    if (NORM == LAYER_NORM) {
        row_sums(first_token, false, tid);
        if (tid < TOKENS) {
            terms[tid].x = lane_sums[16u * tid] / n;
        }
    }
    row_sums(first_token, true, tid);
    if (tid < TOKENS) {
        terms[tid].y = 1.0 / sqrt(lane_sums[16u * tid] / n + NORM_EPS);
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
