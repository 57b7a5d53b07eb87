// A product with one row of input: its norm, and the end of it.

var<workgroup> folded: array<f32, 8>;

// The sum of `v` over the workgroup.
fn total(v: f32, tid: u32) -> f32 {
    partial[tid].x = v;
    workgroupBarrier();
    if (tid < 8u) {
        var s = 0.0;
        for (var i = tid; i < WG; i = i + 8u) {
            s = s + partial[i].x;
        }
        folded[tid] = s;
    }
    workgroupBarrier();
    return ((folded[0] + folded[4]) + (folded[2] + folded[6])) + ((folded[1] + folded[5]) + (folded[3] + folded[7]));
}

// (mean, 1 / deviation) of the row; the mean of an RMSNorm is 0.
fn norm_terms(token: u32, tid: u32) -> vec2<f32> {
    if (NORM == 0u) {
        return vec2<f32>(0.0, 1.0);
    }
    let n = f32(part.n_cols);
    var mean = 0.0;
    if (NORM == LAYER_NORM) {
        var sum = 0.0;
        for (var i = tid; i < part.n_cols; i = i + WG) {
            sum = sum + x[token * part.n_cols + i];
        }
        mean = total(sum, tid) / n;
    }
    var squares = 0.0;
    for (var i = tid; i < part.n_cols; i = i + WG) {
        let c = x[token * part.n_cols + i] - mean;
        squares = squares + c * c;
    }
    return vec2<f32>(mean, 1.0 / sqrt(total(squares, tid) / n + NORM_EPS));
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
