// A product with one row of input: its norm, and the end of it.

var<workgroup> lane_sums: array<f32, 16>;

// The sum of the row's elements (minus `mean`, squared when `squared`) in 16 lanes, folded in halves: the order that
// "The arithmetic" of ARCHITECTURE.md gives to every engine.
fn row_sum(token: u32, mean: f32, squared: bool, tid: u32) -> f32 {
    workgroupBarrier();
    for (var lane = tid; lane < 16u; lane = lane + WG) {
        var sum = 0.0;
        for (var i = lane; i < part.n_cols; i = i + 16u) {
            let c = x[token * part.n_cols + i] - mean;
            sum = sum + select(c, c * c, squared);
        }
        lane_sums[lane] = sum;
    }
    workgroupBarrier();
    return fold16();
}

fn fold16() -> f32 {
    return (((lane_sums[0] + lane_sums[8]) + (lane_sums[4] + lane_sums[12]))
        + ((lane_sums[2] + lane_sums[10]) + (lane_sums[6] + lane_sums[14])))
        + (((lane_sums[1] + lane_sums[9]) + (lane_sums[5] + lane_sums[13]))
        + ((lane_sums[3] + lane_sums[11]) + (lane_sums[7] + lane_sums[15])));
}

// (mean, 1 / deviation) of the row; the mean of an RMSNorm is 0.
fn norm_terms(token: u32, tid: u32) -> vec2<f32> {
    if (NORM == 0u) {
        return vec2<f32>(0.0, 1.0);
    }
    let n = f32(part.n_cols);
    var mean = 0.0;
    if (NORM == LAYER_NORM) {
        mean = row_sum(token, 0.0, false, tid) / n;
    }
    return vec2<f32>(mean, 1.0 / sqrt(row_sum(token, mean, true, tid) / n + NORM_EPS));
}

// Adds what the lanes of a pair found, and hands it on.
fn write_row(pair: u32, lane: u32, found: vec2<f32>, tid: u32) {
    var sums = found;
    if (LANES > 1u) {
        workgroupBarrier();
        partial[tid] = sums;
        workgroupBarrier();
        for (var i = 1u; i < LANES; i = i + 1u) {
            // Only lane 0 keeps what it adds.
            sums = sums + partial[min(tid + i, WG - 1u)];
        }
    }
    if (lane == 0u && pair < part.n_pairs) {
        write_pair(0u, pair, sums);
    }
}
