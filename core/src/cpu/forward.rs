//! The forward pass: one place for all families, driven by [`ModelSpec`].
//!
//! Legend: T tokens of this call, C `n_embd`, H heads, K key-value heads, D `head_dim`, F `n_ff`, V `vocab_size`.
//! Sources: Radford et al. 2019 (GPT-2), Touvron et al. 2023 (Llama), Su et al. 2021 (RoPE), Ainslie et al. 2023 (grouped heads).

use super::{
    Feed, WatchInputs,
    kernels::{Activations, Kernels, Scratch},
    math::rope_row,
    session::Session,
    weights::{Layer, Linear, NormWeights, Weights},
};
use crate::spec::{Mlp, ModelSpec, Norm, Pairing, Position};
use fledgling_pool::{Columns, Pool};

/// Rows of a matrix that a piece of work is a multiple of: the widest step of any instruction set, for one token and for many.
const ROW_STEP: usize = 16;
const ROW_STEP_MANY: usize = 32;

/// What a forward pass needs beside the weights and the session; kept between calls.
#[derive(Debug)]
pub(crate) struct Runner {
    ops: Ops,
    /// Residual stream. [T, C]
    x: Vec<f32>,
    /// Input of the next product. [T, _]
    input: Activations,
    /// Output of the last product. [T, _]
    y: Vec<f32>,
}

impl Runner {
    pub(crate) fn new(kernels: &'static Kernels, pool: Pool) -> Self {
        let scratch = vec![Scratch::default(); pool.n_threads()];
        let ops = Ops {
            kernels,
            pool,
            scratch,
            rotations: Vec::new(),
            trace: None,
        };
        Self {
            ops,
            x: Vec::new(),
            input: Activations::default(),
            y: Vec::new(),
        }
    }

    /// Takes `rows` through the layers, which may be of several conversations. The rows of one come in order, without a gap.
    ///
    /// The sessions' caches hold the tokens afterwards; it is for the caller to commit or to truncate them. `watch` sees what each
    /// matrix reads, the output matrix too.
    pub(crate) fn layers(
        &mut self,
        spec: &ModelSpec,
        weights: &Weights,
        feeds: &mut [Feed<'_>],
        rows: &[Row],
        watch: &mut Option<&mut WatchInputs<'_>>,
    ) {
        let Self {
            ops, x, input, y, ..
        } = self;
        let is_watched = watch.is_some();
        let mut show = |w: &Linear, input: &Activations| {
            if let Some(watch) = watch {
                let names: Vec<&str> = w.parts.iter().map(|part| part.name.as_str()).collect();
                watch(&names, &input.x, input.n_cols);
            }
        };
        let n_positions = rows.iter().map(|row| row.position + 1).max();
        ops.extend_rotations(&spec.position, n_positions.unwrap_or(0));

        ops.embed(weights, feeds, rows, x); // x [T, C]
        for (l, layer) in weights.layers.iter().enumerate() {
            ops.norm(spec, &layer.attn_norm, x, input); // input [T, C]
            show(&layer.qkv, input);
            ops.linear(&layer.qkv, input, y); // y [T, (H + 2K) D]
            ops.norm_heads(spec, layer, y);
            ops.rotate(spec, rows, y);
            cache(spec, l, y, feeds, rows);
            ops.attend(spec, l, y, feeds, rows, input); // input [T, H D]
            show(&layer.attn_output, input);
            ops.linear(&layer.attn_output, input, y); // y [T, C]
            ops.add(x, y, spec.n_embd); // x [T, C]

            ops.norm(spec, &layer.ffn_norm, x, input); // input [T, C]
            show(&layer.ffn_up, input);
            ops.linear(&layer.ffn_up, input, y); // y [T, F], or gate and up [T, 2F]
            ops.activate(spec, y, input); // input [T, F]
            show(&layer.ffn_down, input);
            ops.linear(&layer.ffn_down, input, y); // y [T, C]
            ops.add(x, y, spec.n_embd); // x [T, C]
        }
        if is_watched {
            ops.norm(spec, &weights.output_norm, x, input); // input [T, C]
            show(&weights.output, input);
        }
    }

    /// The logits of some of the rows that [`Self::layers`] took last, by their numbers there. [wanted] -> [wanted, V]
    pub(crate) fn logits(
        &mut self,
        spec: &ModelSpec,
        weights: &Weights,
        wanted: &[usize],
        logits: &mut Vec<f32>,
    ) {
        let Self {
            ops, x, input, y, ..
        } = self;
        y.clear();
        for &i in wanted {
            y.extend_from_slice(&x[i * spec.n_embd..][..spec.n_embd]); // y [wanted, C]
        }
        ops.norm(spec, &weights.output_norm, y, input); // input [wanted, C]
        ops.linear(&weights.output, input, logits); // logits [wanted, V]
    }

    /// What the output matrix would read of the rows that [`Self::layers`] took last. -> [T, C]
    pub(crate) fn hidden(&mut self, spec: &ModelSpec, weights: &Weights) -> &[f32] {
        let Self { ops, x, input, .. } = self;
        ops.norm(spec, &weights.output_norm, x, input); // input [T, C]
        &input.x
    }

    /// Makes a result of each row of logits, on all threads. [n, V] -> [n]
    pub(crate) fn reduce<R: Send>(
        &mut self,
        logits: &[f32],
        vocab_size: usize,
        results: &mut [R],
        reduce: impl Fn(usize, &[f32]) -> R + Sync,
    ) {
        self.ops.pool.for_chunks(results, 1, |i, result| {
            result[0] = reduce(i, &logits[i * vocab_size..][..vocab_size]);
        });
    }

    /// From now on looks where numbers stop being finite, until [`Self::end_trace`].
    pub(crate) fn begin_trace(&mut self) {
        self.ops.trace = Some(Trace::default());
    }

    /// The first tensor after whose use the numbers were not finite.
    pub(crate) fn end_trace(&mut self) -> Option<String> {
        self.ops.trace.take()?.found
    }
}

/// One token on its way through the layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Row {
    /// Whose it is.
    pub(crate) feed: usize,
    /// Its number among the tokens that are fed there.
    pub(crate) t: usize,
    /// Its position in the conversation.
    pub(crate) position: usize,
}

/// The operations of the forward pass, over rows of T tokens, spread over threads.
#[derive(Debug)]
struct Ops {
    kernels: &'static Kernels,
    pool: Pool,
    /// For each thread.
    scratch: Vec<Scratch>,
    /// RoPE's table for all positions so far. [n, D / 2]
    rotations: Vec<(f32, f32)>,
    trace: Option<Trace>,
}

/// What [`Runner::begin_trace`] looks for.
#[derive(Debug, Default)]
struct Trace {
    found: Option<String>,
}

impl Ops {
    /// Makes the table of rotations reach `n` positions.
    fn extend_rotations(&mut self, position: &Position, n: usize) {
        let Position::Rope { dim, .. } = position else {
            return;
        };
        let n_pairs = dim / 2;
        for pos in self.rotations.len() / n_pairs..n {
            rope_row(position, pos, &mut self.rotations);
        }
    }

    /// Embeddings of the tokens, plus those of their positions where these are learned. [T] -> [T, C]
    fn embed(&mut self, weights: &Weights, feeds: &[Feed<'_>], rows: &[Row], x: &mut Vec<f32>) {
        let n_embd = weights.token_embd.n_cols;
        x.resize(rows.len() * n_embd, 0.0);
        let mut position = vec![0.0; n_embd];
        for (out, row) in x.chunks_exact_mut(n_embd).zip(rows) {
            let id = feeds[row.feed].tokens[row.t];
            weights.token_embd.dequantize_row(id as usize, out);
            if let Some(position_embd) = &weights.position_embd {
                position_embd.dequantize_row(row.position, &mut position);
                (self.kernels.add)(out, &position);
            }
        }
        self.check(x, || weights.token_embd.name.clone());
    }

    /// Normalises each row. [T, C] -> [T, C]
    fn norm(&mut self, spec: &ModelSpec, w: &NormWeights, x: &[f32], out: &mut Activations) {
        let (kernels, eps) = (self.kernels, spec.norm_eps);
        out.reshape(x.len() / spec.n_embd, spec.n_embd);
        self.pool.for_chunks(&mut out.x, spec.n_embd, |t, out| {
            let x = &x[t * spec.n_embd..][..spec.n_embd];
            match spec.norm {
                Norm::RmsNorm => (kernels.rms_norm)(x, &w.weight, eps, out),
                Norm::LayerNorm => (kernels.layer_norm)(x, &w.weight, &w.bias, eps, out),
            }
        });
        self.check(&out.x, || w.name.clone());
    }

    /// W (N, K) @ x (T, K) + b (N) -> y (T, N), for all matrices that are stacked here.
    fn linear(&mut self, w: &Linear, x: &mut Activations, y: &mut Vec<f32>) {
        let kernels = self.kernels;
        let (n_rows, n_blocks) = (x.n_rows, x.n_cols / super::kernels::BLOCK);
        if w.reads_quantized() {
            let (values, n_cols) = (&x.x, x.n_cols);
            self.pool.for_chunks(&mut x.blocks, n_blocks, |t, out| {
                (kernels.quantize_row)(&values[t * n_cols..][..n_cols], out);
            });
        }
        y.resize(n_rows * w.n_rows, 0.0);
        let x = &*x;
        let step = if n_rows == 1 { ROW_STEP } else { ROW_STEP_MANY };
        self.pool.for_columns(
            y,
            w.n_rows,
            step,
            &mut self.scratch,
            |range, mut out, scratch| {
                w.for_parts(range.clone(), |part, rows, columns| {
                    (kernels.matmul)(part, rows, x, &mut out.narrow(columns), scratch);
                });
                if !w.bias.is_empty() {
                    add_bias(kernels, &w.bias[range], n_rows, &mut out);
                }
            },
        );
        self.check(y, || {
            w.parts
                .iter()
                .map(|m| m.name.as_str())
                .collect::<Vec<_>>()
                .join(", ")
        });
    }

    /// Normalises each head of the queries and keys, where the family does. [T, (H + 2K) D]
    fn norm_heads(&mut self, spec: &ModelSpec, layer: &Layer, qkv: &mut [f32]) {
        let (Some(q_norm), Some(k_norm)) = (&layer.q_norm, &layer.k_norm) else {
            return;
        };
        let (kernels, d) = (self.kernels, spec.head_dim);
        self.pool.for_chunks_with(
            qkv,
            qkv_width(spec),
            &mut self.scratch,
            |_, row, scratch| {
                let weights = std::iter::repeat_n(q_norm, spec.n_head)
                    .chain(std::iter::repeat_n(k_norm, spec.n_kv_head));
                for (head, norm) in row.chunks_exact_mut(d).zip(weights) {
                    scratch.head.clear();
                    scratch.head.extend_from_slice(head);
                    (kernels.rms_norm)(&scratch.head, &norm.weight, spec.norm_eps, head); // [D]
                }
            },
        );
        self.check(qkv, || format!("{}, {}", q_norm.name, k_norm.name));
    }

    /// Rotates the queries and keys of each token by its position. [T, (H + 2K) D]
    fn rotate(&mut self, spec: &ModelSpec, rows: &[Row], qkv: &mut [f32]) {
        let Position::Rope { dim, pairing, .. } = spec.position else {
            return;
        };
        let (rotations, n_pairs) = (&self.rotations, dim / 2);
        let rope = match pairing {
            Pairing::Neighbours => self.kernels.rope,
            Pairing::Halves => self.kernels.rope_halves,
        };
        self.pool.for_chunks(qkv, qkv_width(spec), |t, row| {
            let rotations = &rotations[rows[t].position * n_pairs..][..n_pairs];
            for head in row
                .chunks_exact_mut(spec.head_dim)
                .take(spec.n_head + spec.n_kv_head)
            {
                rope(&mut head[..dim], rotations); // [D]
            }
        });
    }

    /// Causal attention of each token to the cache up to itself. q of [T, (H + 2K) D] -> [T, H D]
    fn attend(
        &mut self,
        spec: &ModelSpec,
        l: usize,
        qkv: &[f32],
        feeds: &[Feed<'_>],
        rows: &[Row],
        out: &mut Activations,
    ) {
        let (kernels, d) = (self.kernels, spec.head_dim);
        // Shared between threads, which is why it is not the exclusive borrows themselves.
        let sessions: Vec<&Session> = feeds.iter().map(|feed| &*feed.session).collect();
        let heads_per_kv = spec.n_head / spec.n_kv_head;
        let n_rows = qkv.len() / qkv_width(spec);
        out.reshape(n_rows, spec.n_head * d);
        // Heads that share keys and values go together, unless that leaves threads without work.
        let pieces = n_rows * spec.n_kv_head;
        let group = if pieces >= 2 * self.pool.n_threads() {
            heads_per_kv
        } else {
            1
        };
        let per_row = spec.n_head / group;
        self.pool.for_chunks_with(
            &mut out.x,
            group * d,
            &mut self.scratch,
            |i, out, scratch| {
                let (t, h) = (i / per_row, i % per_row * group);
                let n = rows[t].position + 1;
                let q = &qkv[t * qkv_width(spec) + h * d..][..group * d]; // [group, D]
                let (k, v) = sessions[rows[t].feed].head(l, h / heads_per_kv, n); // [n, D], [n, D]
                scratch.scores.resize(group * n, 0.0);
                (kernels.attend)(d, q, k, v, &mut scratch.scores, out); // [group, D]
            },
        );
        self.check(&out.x, || format!("attention of block {l}"));
    }

    /// The MLP's activation. [T, F] or gate and up [T, 2F] -> [T, F]
    fn activate(&mut self, spec: &ModelSpec, y: &[f32], out: &mut Activations) {
        let (kernels, n_ff) = (self.kernels, spec.n_ff);
        let width = match spec.mlp {
            Mlp::Gelu => n_ff,
            Mlp::SwiGlu => 2 * n_ff,
        };
        out.reshape(y.len() / width, n_ff);
        self.pool.for_chunks(&mut out.x, n_ff, |t, out| {
            let y = &y[t * width..][..width];
            match spec.mlp {
                Mlp::Gelu => (kernels.gelu)(y, out),
                Mlp::SwiGlu => (kernels.silu_mul)(&y[..n_ff], &y[n_ff..], out),
            }
        });
    }

    /// `x = x + y`. [T, C]
    fn add(&mut self, x: &mut [f32], y: &[f32], n_embd: usize) {
        let kernels = self.kernels;
        self.pool.for_chunks(x, n_embd, |t, x| {
            (kernels.add)(x, &y[t * n_embd..][..n_embd]);
        });
    }

    /// While tracing, remembers the first name after which a value is not finite.
    fn check(&mut self, values: &[f32], name: impl FnOnce() -> String) {
        if let Some(Trace {
            found: found @ None,
        }) = &mut self.trace
            && values.iter().any(|x| !x.is_finite())
        {
            *found = Some(name());
        }
    }
}

/// Elements of a token's queries, keys and values: `(H + 2K) D`.
fn qkv_width(spec: &ModelSpec) -> usize {
    (spec.n_head + 2 * spec.n_kv_head) * spec.head_dim
}

fn add_bias(kernels: &Kernels, bias: &[f32], n_rows: usize, out: &mut Columns<'_>) {
    for t in 0..n_rows {
        (kernels.add)(out.row_mut(t), bias);
    }
}

/// Appends keys and values of each token to the cache of layer `l`. [T, (H + 2K) D]
fn cache(spec: &ModelSpec, l: usize, qkv: &[f32], feeds: &mut [Feed<'_>], rows: &[Row]) {
    for (qkv, row) in qkv.chunks_exact(qkv_width(spec)).zip(rows) {
        let (k, v) = qkv[spec.n_head * spec.head_dim..].split_at(spec.n_kv_head * spec.head_dim); // [K D], [K D]
        feeds[row.feed].session.push(l, k, v);
    }
}
