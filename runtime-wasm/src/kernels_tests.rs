//! Every shader against its scalar twin, on lavapipe, over odd sizes. The twins follow "The arithmetic" of ARCHITECTURE.md
//! line by line; what may differ is the order of f32 sums, and the last bit of division, square root and `exp`.

use crate::{
    gpu::{Gpu, Tuning},
    kernels::{
        Dims, Epilogue, HeadStep, Kernels, Product, RowNorm, Rows, SHADER_TYPES, TILE_TOKENS,
    },
    weights::repack,
};
use fledgling_core::quant::{self, DType};
use half::{bf16, f16};
use wgpu::{BindGroup, Buffer, BufferUsages, ComputePipeline};

const EPS: f32 = 1e-5;
/// For kernels that take no sizes as constants.
const PLAIN: Dims = Dims {
    n_head: 1,
    n_kv_head: 1,
    head_dim: 2,
    n_ctx: 1,
    vocab_size: 1,
    norm_eps: EPS,
};
const TUNINGS: [Tuning; 2] = [Tuning::SOFTWARE, Tuning::HARDWARE];

fn gpu() -> Gpu {
    pollster::block_on(Gpu::open_named("llvmpipe"))
        .expect("these tests run on lavapipe: install mesa-vulkan-drivers and libvulkan1, or run `cargo xtask setup`")
}

/// Values in -1..1 from a seed.
fn noise(seed: u32, n: usize) -> Vec<f32> {
    let mut state = u64::from(seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

fn upload<T: bytemuck::NoUninit>(gpu: &Gpu, values: &[T]) -> Buffer {
    let bytes: &[u8] = bytemuck::cast_slice(values);
    let buffer = gpu.storage("test", bytes.len() as u64);
    gpu.queue.write_buffer(&buffer, 0, bytes);
    buffer
}

fn step_buffer(gpu: &Gpu, pos: usize, n_tokens: usize) -> Buffer {
    let buffer = gpu.buffer("step", 16, BufferUsages::UNIFORM | BufferUsages::STORAGE);
    gpu.queue.write_buffer(
        &buffer,
        0,
        bytemuck::cast_slice(&[pos as u32, n_tokens as u32, 0, 0]),
    );
    buffer
}

/// Runs one dispatch and reads `out`.
fn run<T: bytemuck::AnyBitPattern + bytemuck::NoUninit>(
    gpu: &Gpu,
    pipeline: &ComputePipeline,
    group: &BindGroup,
    [x, y]: [u32; 2],
    out: &Buffer,
) -> Vec<T> {
    let usage = BufferUsages::MAP_READ | BufferUsages::COPY_DST;
    let read = gpu.device.create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size: out.size(),
        usage,
        mapped_at_creation: false,
    });
    let mut encoder = gpu
        .device
        .create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    {
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        pass.set_pipeline(pipeline);
        pass.set_bind_group(0, group, &[]);
        pass.dispatch_workgroups(x, y, 1);
    }
    encoder.copy_buffer_to_buffer(out, 0, &read, 0, out.size());
    let submission = gpu.queue.submit([encoder.finish()]);
    let read = gpu.start_read(read, submission);
    pollster::block_on(read.wait(|bytes| bytemuck::pod_collect_to_vec(bytes)))
        .expect("the device works")
        .0
}

fn assert_close(got: &[f32], want: &[f32], tolerance: f32, what: &str) {
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let allowed = tolerance * (1.0 + want.abs());
        assert!(
            (got - want).abs() <= allowed,
            "{what}: element {i} is {got}, the twin says {want}"
        );
    }
}

/// One product as a test asks for it.
struct Case {
    key: Product,
    n_rows: usize,
    n_cols: usize,
    n_tokens: usize,
}

/// A device with kernels cut one way, which are compiled once for all cases.
struct Bench {
    gpu: Gpu,
    kernels: Kernels,
}

impl Bench {
    fn new(tuning: Tuning) -> Self {
        let mut gpu = gpu();
        gpu.set_tuning(tuning);
        let kernels = Kernels::new(&gpu, PLAIN);
        Self { gpu, kernels }
    }
}

impl Case {
    fn name(&self) -> String {
        format!(
            "{:?} {}x{} over {} tokens",
            self.key, self.n_rows, self.n_cols, self.n_tokens
        )
    }

    /// (what the kernel says, what the twin says) for each token that the kernel computes.
    fn compute(&self, bench: &mut Bench) -> (Vec<f32>, Vec<f32>) {
        let Bench { gpu, kernels } = bench;
        let &Self {
            key,
            n_rows,
            n_cols,
            n_tokens,
        } = self;
        let weights = noise(1, n_rows * n_cols);
        let mut bytes = Vec::new();
        quant::quantize(key.dtype, &weights, &mut bytes);
        let x: Vec<f32> = noise(2, n_tokens * n_cols)
            .iter()
            .map(|v| v * 3.0)
            .collect();
        let paired = key.epilogue == Epilogue::SwiGlu;
        let n_out = if paired { n_rows / 2 } else { n_rows };
        let norm_vectors = match key.norm {
            RowNorm::None => 0,
            RowNorm::Rms => 1,
            RowNorm::Layer => 2,
        };
        let vectors = noise(3, norm_vectors * n_cols + n_out);
        let y = noise(4, n_tokens * n_out);

        let n_pairs = if paired { n_out } else { n_rows.div_ceil(2) };
        let part = gpu.uniform(
            "part",
            &[n_cols, n_rows, n_pairs, 0, n_out, 0, 0, 0].map(|n| n as u32),
        );
        let (packed, scales) = repack(key.dtype, n_cols, &bytes);
        let out = upload(gpu, &y);
        let (unread, unwritten) = (upload(gpu, &[0u32; 4]), upload(gpu, &[0u32; 4]));
        let pipeline = kernels.product(key);
        let group = kernels.bind_product([
            &part,
            &step_buffer(gpu, 0, n_tokens),
            &upload(gpu, &vectors),
            &out,
            &unwritten,
            &unread,
            &upload(gpu, &x),
            &upload(gpu, &packed),
            &upload(gpu, &scales),
        ]);
        let tiles = (n_tokens as u32).div_ceil(TILE_TOKENS);
        let groups = [
            kernels.product_groups(key.rows, n_pairs),
            if key.rows == Rows::Last { 1 } else { tiles },
        ];
        let got: Vec<f32> = run(gpu, &pipeline, &group, groups, &out);

        let rows = match key.rows {
            Rows::Last => n_tokens - 1..n_tokens,
            Rows::Tiles => 0..n_tokens,
        };
        let want = rows.clone().enumerate().flat_map(|(i, t)| {
            let input = norm_twin(key.norm, &x[t * n_cols..(t + 1) * n_cols], &vectors);
            let products = (0..n_rows)
                .map(|r| dot_twin(key.dtype, &bytes, r, &input))
                .collect::<Vec<_>>();
            let bias = &vectors[norm_vectors * n_cols..];
            epilogue_twin(key, &products, bias, &y[i * n_out..(i + 1) * n_out])
        });
        (got[..rows.len() * n_out].to_vec(), want.collect())
    }

    fn check(&self, bench: &mut Bench) {
        let (got, want) = self.compute(bench);
        // A norm that differs in its last bit may move a quantised activation by one step of 3/4095.
        let moves = self.key.norm != RowNorm::None && self.key.dtype.block_len() > 1;
        assert_close(&got, &want, if moves { 1e-3 } else { 2e-5 }, &self.name());
    }
}

fn norm_twin(norm: RowNorm, x: &[f32], vectors: &[f32]) -> Vec<f32> {
    let n = x.len() as f32;
    let mean = if norm == RowNorm::Layer {
        x.iter().sum::<f32>() / n
    } else {
        0.0
    };
    let inverse = 1.0 / (x.iter().map(|v| (v - mean) * (v - mean)).sum::<f32>() / n + EPS).sqrt();
    let weighted = |c: usize| ((x[c] - mean) * inverse) * vectors[c];
    match norm {
        RowNorm::None => x.to_vec(),
        RowNorm::Rms => (0..x.len()).map(weighted).collect(),
        RowNorm::Layer => (0..x.len())
            .map(|c| weighted(c) + vectors[x.len() + c])
            .collect(),
    }
}

/// Row `r` of the file's bytes times `x`.
fn dot_twin(dtype: DType, bytes: &[u8], r: usize, x: &[f32]) -> f32 {
    let row_bytes = dtype.row_bytes(x.len()).expect("whole blocks");
    let row = &bytes[r * row_bytes..(r + 1) * row_bytes];
    if dtype.block_len() == 1 {
        let mut weights = vec![0.0; x.len()];
        quant::dequantize(dtype, row, &mut weights);
        return weights.iter().zip(x).map(|(w, x)| w * x).sum();
    }
    let mut acc = 0.0;
    for (block, x) in row
        .chunks_exact(dtype.block_bytes())
        .zip(x.chunks_exact(32))
    {
        let amax = x.iter().fold(0.0f32, |most, v| most.max(v.abs()));
        let scale = amax / 4095.0;
        let q: Vec<i32> = x
            .iter()
            .map(|v| {
                if scale.is_normal() {
                    (v * (4095.0 / amax)).round_ties_even() as i32
                } else {
                    0
                }
            })
            .collect();
        let half = |at: usize| f16::from_le_bytes([block[at], block[at + 1]]).to_f32();
        let nibble = |head: usize, j: usize| {
            i32::from(if j < 16 {
                block[head + j] & 15
            } else {
                block[head + j - 16] >> 4
            })
        };
        let isum = |w: &dyn Fn(usize) -> i32| (0..32).map(|j| w(j) * q[j]).sum::<i32>() as f32;
        match dtype {
            DType::Q8_0 => acc += isum(&|j| i32::from(block[2 + j] as i8)) * (half(0) * scale),
            DType::Q4_0 => acc += isum(&|j| nibble(2, j) - 8) * (half(0) * scale),
            _ => {
                acc += isum(&|j| nibble(4, j)) * (half(0) * scale);
                acc += half(2) * (scale * q.iter().sum::<i32>() as f32);
            }
        }
    }
    acc
}

fn silu(v: f32) -> f32 {
    v / (1.0 + (-v).exp())
}

fn gelu(v: f32) -> f32 {
    v / (1.0 + (-2.0 * 0.797_884_6 * (v + 0.044_715 * (v * v * v))).exp())
}

fn epilogue_twin(key: Product, products: &[f32], bias: &[f32], y: &[f32]) -> Vec<f32> {
    let n_out = y.len();
    let biased = |i: usize| products[i] + if key.has_bias { bias[i] } else { 0.0 };
    (0..n_out)
        .map(|i| match key.epilogue {
            Epilogue::Store | Epilogue::Qkv => biased(i),
            Epilogue::Add => y[i] + biased(i),
            Epilogue::Gelu => gelu(biased(i)),
            Epilogue::SwiGlu => silu(products[i]) * products[n_out + i],
            Epilogue::SiluMul => silu(y[i]) * biased(i),
        })
        .collect()
}

#[test]
fn products_of_every_type_are_their_twins() {
    for tuning in TUNINGS {
        let mut bench = Bench::new(tuning);
        for dtype in SHADER_TYPES {
            for (rows, n_tokens) in [(Rows::Last, 3), (Rows::Tiles, 1), (Rows::Tiles, 5)] {
                let key = Product {
                    rows,
                    dtype,
                    norm: RowNorm::None,
                    epilogue: Epilogue::Store,
                    has_bias: false,
                };
                // 160 columns are five blocks: an odd number, and no multiple of any number of lanes.
                for (n_rows, n_cols) in [(1, 32), (7, 160), (66, 96)] {
                    Case {
                        key,
                        n_rows,
                        n_cols,
                        n_tokens,
                    }
                    .check(&mut bench);
                }
            }
        }
    }
}

#[test]
fn rows_longer_than_a_chunk_are_their_twins() {
    let mut bench = Bench::new(Tuning::SOFTWARE);
    for dtype in [DType::Q8_0, DType::Q4_1, DType::F32, DType::F16] {
        for rows in [Rows::Last, Rows::Tiles] {
            let key = Product {
                rows,
                dtype,
                norm: RowNorm::Rms,
                epilogue: Epilogue::Store,
                has_bias: false,
            };
            Case {
                key,
                n_rows: 5,
                n_cols: 4160,
                n_tokens: 2,
            }
            .check(&mut bench);
        }
    }
}

#[test]
fn float_rows_need_no_whole_blocks() {
    let mut bench = Bench::new(Tuning::HARDWARE);
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        for rows in [Rows::Last, Rows::Tiles] {
            let key = Product {
                rows,
                dtype,
                norm: RowNorm::Layer,
                epilogue: Epilogue::Store,
                has_bias: true,
            };
            for n_cols in [1, 6, 13] {
                Case {
                    key,
                    n_rows: 9,
                    n_cols,
                    n_tokens: 3,
                }
                .check(&mut bench);
            }
        }
    }
}

#[test]
fn norms_and_epilogues_are_their_twins() {
    let mut bench = Bench::new(Tuning::HARDWARE);
    // Norms and epilogues are shared text (`product.wgsl`), so each pair of a type and a shape need not meet all.
    for (dtype, rows, n_tokens) in [(DType::Q8_0, Rows::Last, 1), (DType::F32, Rows::Tiles, 6)] {
        for norm in [RowNorm::None, RowNorm::Layer, RowNorm::Rms] {
            for epilogue in [
                Epilogue::Store,
                Epilogue::Add,
                Epilogue::SwiGlu,
                Epilogue::Gelu,
                Epilogue::SiluMul,
            ] {
                let has_bias = epilogue != Epilogue::SwiGlu;
                let key = Product {
                    rows,
                    dtype,
                    norm,
                    epilogue,
                    has_bias,
                };
                Case {
                    key,
                    n_rows: 34,
                    n_cols: 96,
                    n_tokens,
                }
                .check(&mut bench);
            }
        }
    }
}

#[test]
fn qkv_is_rotated_and_cached() {
    let gpu = gpu();
    let (n_head, n_kv_head, head_dim, n_ctx, n_cols, n_tokens, pos) = (2, 1, 6, 9, 32, 3, 4);
    let (n_q, n_kv) = (n_head * head_dim, n_kv_head * head_dim);
    let n_rows = n_q + 2 * n_kv;
    let mut bytes = Vec::new();
    quant::quantize(DType::F32, &noise(1, n_rows * n_cols), &mut bytes);
    let x = noise(2, n_tokens * n_cols);
    let turns: Vec<[f32; 2]> = noise(3, n_ctx * head_dim / 2)
        .iter()
        .map(|a| [a.cos(), a.sin()])
        .collect();
    for rows in [Rows::Last, Rows::Tiles] {
        let dims = Dims {
            n_head,
            n_kv_head,
            head_dim,
            n_ctx,
            vocab_size: 1,
            norm_eps: EPS,
        };
        let mut kernels = Kernels::new(&gpu, dims);
        let key = Product {
            rows,
            dtype: DType::F32,
            norm: RowNorm::None,
            epilogue: Epilogue::Qkv,
            has_bias: false,
        };
        // A single token is the last of a step of one.
        let n_tokens = if rows == Rows::Last { 1 } else { n_tokens };
        let part = gpu.uniform(
            "part",
            &[n_cols, n_rows, n_rows / 2, 0, n_rows, 0, 0, 0].map(|n| n as u32),
        );
        let (q, kv) = (
            upload(&gpu, &vec![0.0f32; n_tokens * n_q]),
            upload(&gpu, &vec![0u32; n_ctx * n_kv]),
        );
        let bind = |kernels: &Kernels| {
            kernels.bind_product([
                &part,
                &step_buffer(&gpu, pos, n_tokens),
                &upload(&gpu, &[0.0f32; 4]),
                &q,
                &kv,
                &upload(&gpu, bytemuck::cast_slice::<_, f32>(&turns)),
                &upload(&gpu, &x),
                &upload(&gpu, &repack(DType::F32, n_cols, &bytes).0),
                &upload(&gpu, &[0u32; 4]),
            ])
        };
        let (pipeline, group) = (kernels.product(key), bind(&kernels));
        let groups = [kernels.product_groups(rows, n_rows / 2), 1];
        let got_q: Vec<f32> = run(&gpu, &pipeline, &group, groups, &q);
        let got_kv: Vec<u32> = run(&gpu, &pipeline, &group, groups, &kv);
        for t in 0..n_tokens {
            let y: Vec<f32> = (0..n_rows)
                .map(|r| dot_twin(DType::F32, &bytes, r, &x[t * n_cols..(t + 1) * n_cols]))
                .collect();
            let turned = |r: usize| {
                let [cos, sin] = turns[(pos + t) * head_dim / 2 + r % head_dim / 2];
                [y[r] * cos - y[r + 1] * sin, y[r] * sin + y[r + 1] * cos]
            };
            let unpack =
                |word: u32| [word as u16, (word >> 16) as u16].map(|h| f16::from_bits(h).to_f32());
            for r in (0..n_rows).step_by(2) {
                let (got, want) = if r < n_q {
                    ([got_q[t * n_q + r], got_q[t * n_q + r + 1]], turned(r))
                } else if r < n_q + n_kv {
                    (unpack(got_kv[((pos + t) * n_kv + r - n_q) / 2]), turned(r))
                } else {
                    (
                        unpack(got_kv[((n_ctx + pos + t) * n_kv + r - n_q - n_kv) / 2]),
                        [y[r], y[r + 1]],
                    )
                };
                assert_close(
                    &got,
                    &want,
                    1e-3,
                    &format!("row {r} of token {t}, {rows:?}"),
                );
            }
        }
    }
}

#[test]
fn half_precision_is_exact_for_every_scale() {
    // Through the embedding of F16: every one of the 65,536 halves is looked up once; NaNs are left out.
    let gpu = gpu();
    let mut kernels = Kernels::new(&gpu, PLAIN);
    let n_cols = 1 << 16;
    let halves: Vec<u16> = (0..=u16::MAX).collect();
    let part = gpu.uniform("part", &[n_cols, 1, 1, 0, n_cols, 0, 0, 0]);
    let y = gpu.storage("y", 4 * u64::from(n_cols));
    let unread = upload(&gpu, &[0u32; 4]);
    let (pipeline, wg) = kernels.embed(DType::F16, false);
    let group = kernels.bind_embed([
        &part,
        &step_buffer(&gpu, 0, 1),
        &upload(&gpu, &[0u32; 4]),
        &y,
        &unread,
        &upload(&gpu, &halves),
        &unread,
    ]);
    let got: Vec<f32> = run(&gpu, &pipeline, &group, [n_cols.div_ceil(wg), 1], &y);
    for (h, got) in halves.iter().zip(got) {
        let want = f16::from_bits(*h);
        assert!(
            !want.is_finite() || got.to_bits() == want.to_f32().to_bits(),
            "half {h:#06x} is {got}, not {want}"
        );
    }
}

#[test]
fn embeddings_of_every_type_are_their_rows() {
    let gpu = gpu();
    let (n_rows, n_cols, first, ids) = (11usize, 96usize, 4usize, [3u32, 4, 14, 15, 9]);
    let positions = noise(7, 8 * n_cols);
    for dtype in SHADER_TYPES {
        let mut bytes = Vec::new();
        quant::quantize(dtype, &noise(5, n_rows * n_cols), &mut bytes);
        let mut rows = vec![0.0f32; n_rows * n_cols];
        quant::dequantize(dtype, &bytes, &mut rows);
        for has_position in [false, true] {
            let mut kernels = Kernels::new(&gpu, PLAIN);
            let part = gpu.uniform(
                "part",
                &[n_cols, n_rows, 0, first, n_cols, 0, 0, 0].map(|n| n as u32),
            );
            let (packed, scales) = repack(dtype, n_cols, &bytes);
            let y = upload(&gpu, &vec![-7.0f32; ids.len() * n_cols]);
            let (pipeline, wg) = kernels.embed(dtype, has_position);
            let group = kernels.bind_embed([
                &part,
                &step_buffer(&gpu, 2, ids.len()),
                &upload(&gpu, &ids),
                &y,
                &upload(&gpu, &positions),
                &upload(&gpu, &packed),
                &upload(&gpu, &scales),
            ]);
            let got: Vec<f32> = run(
                &gpu,
                &pipeline,
                &group,
                [(n_cols as u32).div_ceil(wg), ids.len() as u32],
                &y,
            );
            for (t, &id) in ids.iter().enumerate() {
                let row = (id as usize).checked_sub(first).filter(|&row| row < n_rows);
                let want: Vec<f32> = match row {
                    // Another part's row is left alone.
                    None => vec![-7.0; n_cols],
                    Some(row) => (0..n_cols)
                        .map(|c| {
                            rows[row * n_cols + c]
                                + if has_position {
                                    positions[(2 + t) * n_cols + c]
                                } else {
                                    0.0
                                }
                        })
                        .collect(),
                };
                assert_close(
                    &got[t * n_cols..(t + 1) * n_cols],
                    &want,
                    1e-6,
                    &format!("token {id} in {dtype:?}"),
                );
            }
        }
    }
}

#[test]
fn heads_are_normed_and_rotated_as_their_twin() {
    let gpu = gpu();
    for (n_head, n_kv_head, head_dim, pos, n_tokens) in
        [(3, 1, 6, 0, 3), (4, 2, 16, 70, 2), (2, 1, 130, 5, 3)]
    {
        for (halves, norm) in [(false, true), (true, false), (true, true)] {
            let (n_ctx, pairs, n_heads) =
                (pos + n_tokens + 1, head_dim / 2, n_head + 2 * n_kv_head);
            let dims = Dims {
                n_head,
                n_kv_head,
                head_dim,
                n_ctx,
                vocab_size: 1,
                norm_eps: EPS,
            };
            let mut kernels = Kernels::new(&gpu, dims);
            let qkv = noise(1, n_tokens * n_heads * head_dim);
            let norms = noise(2, 2 * head_dim);
            let turns = noise(3, n_ctx * head_dim);
            let q = upload(&gpu, &vec![0.0f32; n_tokens * n_head * head_dim]);
            let kv = upload(&gpu, &vec![0u32; 2 * n_ctx * n_kv_head * pairs]);
            let group = kernels.bind_heads([
                &step_buffer(&gpu, pos, n_tokens),
                &upload(&gpu, &qkv),
                &upload(&gpu, &norms),
                &upload(&gpu, &turns),
                &q,
                &kv,
            ]);
            let pipeline = kernels.heads(HeadStep { halves, norm });
            let size = [n_heads as u32, n_tokens as u32];
            let got_q: Vec<f32> = run(&gpu, &pipeline, &group, size, &q);
            let got_kv: Vec<u16> = run(&gpu, &pipeline, &group, size, &kv);

            let mut want_q = Vec::new();
            let mut want_kv = vec![0.0; 2 * n_ctx * n_kv_head * head_dim];
            for t in 0..n_tokens {
                for head in 0..n_heads {
                    let mut x = qkv[(t * n_heads + head) * head_dim..][..head_dim].to_vec();
                    if head < n_head + n_kv_head {
                        let weights = &norms[if head < n_head { 0 } else { head_dim }..];
                        let mean_square = x.iter().map(|v| v * v).sum::<f32>() / head_dim as f32;
                        for (v, w) in x.iter_mut().zip(weights).filter(|_| norm) {
                            *v = *v / (mean_square + EPS).sqrt() * w;
                        }
                        for p in 0..pairs {
                            let (i, j) = if halves {
                                (p, p + pairs)
                            } else {
                                (2 * p, 2 * p + 1)
                            };
                            let turn = 2 * ((pos + t) * pairs + p);
                            let (cos, sin, a, b) = (turns[turn], turns[turn + 1], x[i], x[j]);
                            (x[i], x[j]) = (a * cos - b * sin, a * sin + b * cos);
                        }
                    }
                    if head < n_head {
                        want_q.extend(x);
                    } else {
                        let (half, kv_head) =
                            ((head - n_head) / n_kv_head, (head - n_head) % n_kv_head);
                        let at = ((half * n_ctx + pos + t) * n_kv_head + kv_head) * head_dim;
                        want_kv[at..at + head_dim].copy_from_slice(&x);
                    }
                }
            }
            let what = format!("{n_head} heads of {head_dim}, halves {halves}, norm {norm}");
            assert_close(&got_q, &want_q, 1e-5, &what);
            let got_kv: Vec<f32> = got_kv
                .into_iter()
                .map(|h| f16::from_bits(h).to_f32())
                .collect();
            assert_close(&got_kv, &want_kv, 2e-3, &what);
        }
    }
}

#[test]
fn attention_is_its_twin() {
    let gpu = gpu();
    // Beyond 1024 positions the kernel goes through several segments.
    for (n_head, n_kv_head, head_dim, pos, n_tokens) in [
        (3, 1, 6, 0, 3),
        (4, 2, 16, 70, 2),
        (2, 2, 64, 1030, 1),
        (2, 1, 80, 2050, 3),
    ] {
        for tuning in TUNINGS {
            let n_ctx = pos + n_tokens + 3;
            let mut tuned = gpu.clone();
            tuned.set_tuning(tuning);
            let dims = Dims {
                n_head,
                n_kv_head,
                head_dim,
                n_ctx,
                vocab_size: 1,
                norm_eps: EPS,
            };
            let mut kernels = Kernels::new(&tuned, dims);
            let row = n_kv_head * head_dim;
            let q = noise(1, n_tokens * n_head * head_dim);
            let kv: Vec<f16> = noise(2, 2 * n_ctx * row)
                .into_iter()
                .map(|v| f16::from_f32(4.0 * v))
                .collect();
            let bits: Vec<u16> = kv.iter().map(|v| v.to_bits()).collect();
            let y = upload(&gpu, &vec![0.0f32; q.len()]);
            let group = kernels.bind_attention([
                &step_buffer(&gpu, pos, n_tokens),
                &upload(&gpu, &q),
                &upload(&gpu, &bits),
                &y,
            ]);
            let got: Vec<f32> = run(
                &gpu,
                &kernels.attention(),
                &group,
                [n_head as u32, n_tokens as u32],
                &y,
            );
            let at = |which: usize, t: usize, head: usize, i: usize| {
                kv[(which * n_ctx + t) * row + head * head_dim + i].to_f32()
            };
            let mut want = Vec::new();
            for t in 0..n_tokens {
                for head in 0..n_head {
                    let kv_head = head / (n_head / n_kv_head);
                    let q = &q[(t * n_head + head) * head_dim..][..head_dim];
                    let scores: Vec<f32> = (0..=pos + t)
                        .map(|k| {
                            (0..head_dim)
                                .map(|i| q[i] * at(0, k, kv_head, i))
                                .sum::<f32>()
                                * (1.0 / (head_dim as f32).sqrt())
                        })
                        .collect();
                    let most = scores.iter().copied().fold(f32::MIN, f32::max);
                    let p: Vec<f32> = scores.iter().map(|s| (s - most).exp()).collect();
                    let sum: f32 = p.iter().sum();
                    want.extend((0..head_dim).map(|i| {
                        (0..p.len())
                            .map(|k| p[k] * at(1, k, kv_head, i))
                            .sum::<f32>()
                            / sum
                    }));
                }
            }
            assert_close(
                &got,
                &want,
                1e-4,
                &format!("{n_head} heads of {head_dim} at {pos}"),
            );
        }
    }
}

#[test]
fn argmax_takes_the_lowest_of_equals_and_moves_the_step_on() {
    let gpu = gpu();
    for (vocab_size, ties) in [
        (1usize, vec![0usize]),
        (300, vec![299]),
        (257, vec![256, 5, 250]),
        (50_257, vec![40_001, 40_000, 256 + 40_000]),
    ] {
        let dims = Dims {
            n_head: 1,
            n_kv_head: 1,
            head_dim: 2,
            n_ctx: 1,
            vocab_size,
            norm_eps: EPS,
        };
        let mut kernels = Kernels::new(&gpu, dims);
        let mut logits = noise(9, vocab_size);
        for &id in &ties {
            logits[id] = 2.0;
        }
        let (tokens, step) = (upload(&gpu, &[0u32; 4]), step_buffer(&gpu, 10, 3));
        let step_read = gpu.storage("step", 16);
        let group = kernels.bind_argmax([&upload(&gpu, &logits), &tokens, &step_read]);
        gpu.queue
            .write_buffer(&step_read, 0, bytemuck::cast_slice(&[10u32, 3, 0, 0]));
        drop(step);
        let got: Vec<u32> = run(&gpu, &kernels.argmax(), &group, [1, 1], &tokens);
        assert_eq!(
            got[0] as usize,
            *ties.iter().min().expect("one at least"),
            "of {vocab_size}"
        );
        // It ran once more by now than the read shows: reading the step runs it again, from (13, 1).
        let step: Vec<u32> = run(&gpu, &kernels.argmax(), &group, [1, 1], &step_read);
        assert_eq!(step[..2], [14, 1]);
    }
}

#[test]
fn bf16_rows_are_taken_apart_in_order() {
    let values: Vec<f32> = noise(3, 10);
    let mut bytes = Vec::new();
    quant::quantize(DType::BF16, &values, &mut bytes);
    let (rows, scales) = repack(DType::BF16, 5, &bytes);
    assert_eq!((rows.len(), scales.len()), (32, 0));
    assert_eq!(rows[16..18], bf16::from_f32(values[5]).to_le_bytes());
    assert_eq!(rows[10..16], [0; 6]);
}
