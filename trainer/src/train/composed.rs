//! The operations of [`super::ops`] as compositions of Burn's tensor operations, for GPUs: the backward passes are the
//! same formulas as in [`super::kernels`], so that nothing is kept for them but the inputs. Norms, softmax and loss are
//! f32 whatever the matrices are computed in. Shapes and legend as in [`super::model`].

use super::{
    config::Dtype,
    device::is_cpu,
    dropout::Draw,
    frozen::Frozen,
    kernels::{Heads, Product},
    lora::LoraProduct,
};
use burn::tensor::{Device, FloatDType, Int, Tensor, TensorData};
use fledgling_core::spec::Pairing;
use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicBool, Ordering},
};

/// `sqrt(2 / pi)` and the cubic coefficient of GELU's tanh form (Hendrycks and Gimpel, 2016).
const GELU_SCALE: f32 = 0.797_884_6;
const GELU_CUBIC: f32 = 0.044_715;
/// Attention scores that are in memory at a time (64 MiB): queries are taken in chunks that give no more, since all of
/// them would be T² a head. Within the 128 MiB that every WebGPU adapter binds.
const SCORES: usize = 1 << 24;
/// Added to the scores of later positions. Finite, because WGSL promises nothing about infinities.
const LATER: f32 = -1e30;

/// Whether matrices are multiplied in bf16. Of the process, as Burn's own number formats are: it trains one run.
static IN_BF16: AtomicBool = AtomicBool::new(false);

/// Sets what matrices are multiplied in from now on, on every device but the CPU.
pub fn compute_in(dtype: Dtype) {
    IN_BF16.store(dtype == Dtype::Bf16, Ordering::Relaxed);
}

/// `a b`, f32 before and after.
pub fn matmul<const D: usize>(a: Tensor<D>, b: Tensor<D>) -> Tensor<D> {
    if IN_BF16.load(Ordering::Relaxed) && !is_cpu(&a.device()) {
        matmul_bf16(a, b)
    } else {
        a.matmul(b)
    }
}

fn matmul_bf16<const D: usize>(a: Tensor<D>, b: Tensor<D>) -> Tensor<D> {
    let product = a.cast(FloatDType::BF16).matmul(b.cast(FloatDType::BF16));
    product.cast(FloatDType::F32)
}

fn turned(x: Tensor<2>, turn: bool) -> Tensor<2> {
    if turn { x.transpose() } else { x }
}

/// `a · b`, each as it is or transposed.
pub fn product(a: Tensor<2>, b: Tensor<2>, product: &Product) -> Tensor<2> {
    matmul(
        turned(a, product.a_transposed),
        turned(b, product.b_transposed),
    )
}

/// da and db of [`product`].
pub fn product_backward(
    a: Tensor<2>,
    b: Tensor<2>,
    dy: Tensor<2>,
    product: &Product,
    wanted: [bool; 2],
) -> [Option<Tensor<2>>; 2] {
    let da = wanted[0].then(|| {
        let d = matmul(dy.clone(), turned(b, !product.b_transposed)); // [m, k]
        turned(d, product.a_transposed)
    });
    let db = wanted[1].then(|| {
        let d = matmul(turned(a, !product.a_transposed), dy); // [k, n]
        turned(d, product.b_transposed)
    });
    [da, db]
}

/// [`LoraProduct::forward`]. x [N, in], a [rank, in], b [out, rank], weight [out, in], bias [out] -> [N, out]
pub fn lora_product(
    of: &LoraProduct,
    [x, a, b]: [Tensor<2>; 3],
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
) -> Tensor<2> {
    let mut y = matmul(x.clone(), weight.transpose());
    if let Some(bias) = bias {
        y = y + row(bias);
    }
    if of.is_merged {
        return y;
    }
    y + matmul(low(of, x, a), b.transpose())
}

/// Gradients of x, A and B of [`lora_product`].
pub fn lora_product_backward(
    of: &LoraProduct,
    [x, a, b]: [Tensor<2>; 3],
    weight: Tensor<2>,
    dy: Tensor<2>,
    wanted: [bool; 3],
) -> [Option<Tensor<2>>; 3] {
    let d_low = matmul(dy.clone(), b).mul_scalar(of.scale);
    let db = wanted[2].then(|| matmul(dy.clone().transpose(), low(of, x.clone(), a.clone())));
    let da = wanted[1].then(|| matmul(d_low.clone().transpose(), dropped(of, x.clone())));
    let dx = wanted[0].then(|| {
        let dx = matmul(dy, weight);
        if of.is_merged {
            return dx;
        }
        let more = matmul(d_low, a);
        dx + match &of.draw {
            Some(draw) => more * mask(&x, draw),
            None => more,
        }
    });
    [dx, da, db]
}

/// `scale · dropout(x) Aᵀ`. -> [N, rank]
fn low(of: &LoraProduct, x: Tensor<2>, a: Tensor<2>) -> Tensor<2> {
    matmul(dropped(of, x), a.transpose()).mul_scalar(of.scale)
}

fn dropped(of: &LoraProduct, x: Tensor<2>) -> Tensor<2> {
    match &of.draw {
        Some(draw) => x.clone() * mask(&x, draw),
        None => x,
    }
}

/// The draws, made on the CPU: they are the same on every device.
fn mask(x: &Tensor<2>, draw: &Draw) -> Tensor<2> {
    let [n, n_in] = x.dims();
    Tensor::from_data(TensorData::new(draw.mask(n), [n, n_in]), &x.device())
}

/// `x Wᵀ`, or `x W` when `is_transposed`. The values are sent for each product.
pub fn frozen_product(x: Tensor<2>, matrix: &Frozen, is_transposed: bool) -> Tensor<2> {
    let matrix = dequantized(matrix, &x.device());
    matmul(x, turned(matrix, !is_transposed))
}

/// A matrix that is in blocks, on a device. [out, in]
pub fn dequantized(matrix: &Frozen, device: &Device) -> Tensor<2> {
    Tensor::from_data(TensorData::new(matrix.values(), matrix.shape()), device)
}

/// `1 / (1 + e^-x)`; the bound keeps `e^-x` finite and is far beyond where f32 tells the result from 0.
fn sigmoid<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    x.neg().clamp_max(80.0).exp().add_scalar(1.0).recip()
}

fn mean_of_columns(x: Tensor<2>) -> Tensor<2> {
    let c = x.dims()[1];
    x.sum_dim(1).div_scalar(c as f64)
}

fn sum_of_rows(x: Tensor<2>) -> Tensor<1> {
    let c = x.dims()[1];
    x.sum_dim(0).reshape([c])
}

/// [C] -> [1, C]
fn row(x: Tensor<1>) -> Tensor<2> {
    x.unsqueeze()
}

fn inverse_rms(x: &Tensor<2>, eps: f32) -> Tensor<2> {
    mean_of_columns(x.clone() * x.clone())
        .add_scalar(eps)
        .sqrt()
        .recip()
}

/// RMSNorm. x [N, C], gamma [C]
pub fn rms_norm(x: Tensor<2>, gamma: Tensor<1>, eps: f32) -> Tensor<2> {
    let inverse = inverse_rms(&x, eps);
    x * inverse * row(gamma)
}

/// dx and dgamma of [`rms_norm`].
pub fn rms_norm_backward(
    x: &Tensor<2>,
    gamma: Tensor<1>,
    dy: Tensor<2>,
    eps: f32,
    wanted: [bool; 2],
) -> (Option<Tensor<2>>, Option<Tensor<1>>) {
    let inverse = inverse_rms(x, eps);
    let normed = x.clone() * inverse.clone();
    let d_gamma = wanted[1].then(|| sum_of_rows(dy.clone() * normed.clone()));
    let dx = wanted[0].then(|| {
        let d = dy * row(gamma);
        let along = mean_of_columns(d.clone() * normed.clone());
        inverse * (d - normed * along)
    });
    (dx, d_gamma)
}

/// `(x - mean) / std` and `1 / std`.
fn standardised(x: &Tensor<2>, eps: f32) -> (Tensor<2>, Tensor<2>) {
    let centred = x.clone() - mean_of_columns(x.clone());
    let inverse = inverse_rms(&centred, eps);
    (centred * inverse.clone(), inverse)
}

/// LayerNorm. x [N, C], gamma and beta [C]
pub fn layer_norm(x: &Tensor<2>, gamma: Tensor<1>, beta: Tensor<1>, eps: f32) -> Tensor<2> {
    standardised(x, eps).0 * row(gamma) + row(beta)
}

/// dx, dgamma and dbeta of [`layer_norm`].
pub fn layer_norm_backward(
    x: &Tensor<2>,
    gamma: Tensor<1>,
    dy: Tensor<2>,
    eps: f32,
    wanted: [bool; 3],
) -> (Option<Tensor<2>>, Option<Tensor<1>>, Option<Tensor<1>>) {
    let (normed, inverse) = standardised(x, eps);
    let d_beta = wanted[2].then(|| sum_of_rows(dy.clone()));
    let d_gamma = wanted[1].then(|| sum_of_rows(dy.clone() * normed.clone()));
    let dx = wanted[0].then(|| {
        let d = dy * row(gamma);
        let along = mean_of_columns(d.clone() * normed.clone());
        let mean = mean_of_columns(d.clone());
        inverse * (d - mean - normed * along)
    });
    (dx, d_gamma, d_beta)
}

/// `silu(gate) * up`.
pub fn swiglu(gate: Tensor<2>, up: Tensor<2>) -> Tensor<2> {
    sigmoid(gate.clone()) * gate * up
}

/// dgate and dup of [`swiglu`].
pub fn swiglu_backward(gate: Tensor<2>, up: Tensor<2>, dy: Tensor<2>) -> (Tensor<2>, Tensor<2>) {
    let s = sigmoid(gate.clone());
    let slope = s.clone() * (gate.clone() * (s.clone().neg().add_scalar(1.0))).add_scalar(1.0);
    (dy.clone() * up * slope, dy * gate * s)
}

/// `sigmoid(2 u)` and `2 du/dx` of GELU's `u = scale · (x + cubic · x³)`.
fn gelu_parts(x: &Tensor<2>) -> (Tensor<2>, Tensor<2>) {
    let square = x.clone() * x.clone();
    let inner = x.clone() * square.clone().mul_scalar(GELU_CUBIC).add_scalar(1.0);
    let slope = square
        .mul_scalar(3.0 * GELU_CUBIC)
        .add_scalar(1.0)
        .mul_scalar(2.0 * GELU_SCALE);
    (sigmoid(inner.mul_scalar(2.0 * GELU_SCALE)), slope)
}

/// The tanh form of GELU, which is `x · sigmoid(2 u)`.
pub fn gelu(x: Tensor<2>) -> Tensor<2> {
    let (s, _) = gelu_parts(&x);
    x * s
}

/// dx of [`gelu`].
pub fn gelu_backward(x: Tensor<2>, dy: Tensor<2>) -> Tensor<2> {
    let (s, slope) = gelu_parts(&x);
    let rest = s.clone().neg().add_scalar(1.0);
    dy * (s.clone() + x * s * rest * slope)
}

/// Cosines and sines of all positions on a device, shaped to meet the pairs, and the axis of a pair's two elements.
#[derive(Debug, Clone)]
struct Rotation {
    cos: Tensor<5>,
    sin: Tensor<5>,
    pairing: Pairing,
}

/// The table that was uploaded last: all layers of a batch share one, and most batches have one length.
type Uploaded = (Arc<[(f32, f32)]>, Rotation);
static LAST_ROTATION: Mutex<Option<Uploaded>> = Mutex::new(None);

fn rotation(heads: &Heads, device: &Device) -> Option<Rotation> {
    if heads.rotations.is_empty() {
        return None;
    }
    let mut last = LAST_ROTATION.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((table, found)) = &*last
        && (Arc::ptr_eq(table, &heads.rotations) || **table == *heads.rotations)
        && found.pairing == heads.pairing
        && found.cos.device() == *device
        && found.cos.dims()[1] == heads.n_tokens
    {
        return Some(found.clone());
    }
    let (t, half) = (heads.n_tokens, heads.rotations.len() / heads.n_tokens);
    let shape = match heads.pairing {
        Pairing::Neighbours => [1, t, 1, half, 1],
        Pairing::Halves => [1, t, 1, 1, half],
    };
    let upload = |part: fn(&(f32, f32)) -> f32| {
        let values: Vec<f32> = heads.rotations.iter().map(part).collect();
        Tensor::from_data(TensorData::new(values, shape), device)
    };
    let rotation = Rotation {
        cos: upload(|(cos, _)| *cos),
        sin: upload(|(_, sin)| *sin),
        pairing: heads.pairing,
    };
    *last = Some((heads.rotations.clone(), rotation.clone()));
    Some(rotation)
}

/// Rotates pairs by their position's angle, or back. [B, T, heads, D]
fn rotate(x: Tensor<4>, rotation: Option<&Rotation>, back: bool) -> Tensor<4> {
    let Some(Rotation { cos, sin, pairing }) = rotation.cloned() else {
        return x;
    };
    let [b, t, n, d] = x.dims();
    let (shape, axis) = match pairing {
        Pairing::Neighbours => ([b, t, n, d / 2, 2], 4),
        Pairing::Halves => ([b, t, n, 2, d / 2], 3),
    };
    let pairs = x.reshape(shape);
    let (first, second) = (pairs.clone().narrow(axis, 0, 1), pairs.narrow(axis, 1, 1));
    let sin = if back { sin.neg() } else { sin };
    let turned = vec![
        first.clone() * cos.clone() - second.clone() * sin.clone(),
        first * sin + second * cos,
    ];
    Tensor::cat(turned, axis).reshape([b, t, n, d])
}

/// A batch's attention with the heads that share keys folded into rows: what is multiplied is [B·KV, G·m, D] with
/// [B·KV, T, D], so that keys and values are never repeated for their group.
struct Grouped<'a> {
    heads: &'a Heads,
    rotation: Option<Rotation>,
    /// Queries in a chunk.
    chunk: usize,
}

impl<'a> Grouped<'a> {
    fn new(heads: &'a Heads, device: &Device, scores: usize) -> Self {
        let a_query = heads.n_rows * heads.n_head * heads.n_tokens;
        Self {
            heads,
            rotation: rotation(heads, device),
            chunk: (scores / a_query).clamp(1, heads.n_tokens),
        }
    }

    fn group(&self) -> usize {
        self.heads.n_head / self.heads.n_kv_head
    }

    /// Chunks of queries: start and length.
    fn chunks(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let (t, chunk) = (self.heads.n_tokens, self.chunk);
        (0..t)
            .step_by(chunk)
            .map(move |start| (start, chunk.min(t - start)))
    }

    /// Queries or their gradients: [N, H·D] -> [B, KV, G, T, D]
    fn queries(&self, x: Tensor<2>, rotated: bool) -> Tensor<5> {
        let Heads {
            n_rows: b,
            n_tokens: t,
            n_head: h,
            n_kv_head: kv,
            head_dim: d,
            ..
        } = *self.heads;
        let x = x.reshape([b, t, h, d]);
        let x = if rotated {
            rotate(x, self.rotation.as_ref(), false)
        } else {
            x
        };
        x.reshape([b, t, kv, self.group(), d])
            .permute([0, 2, 3, 1, 4])
    }

    /// [B, KV, G, T, D] -> [B·KV, G·m, D] of one chunk
    fn chunk_of(x: &Tensor<5>, (start, len): (usize, usize)) -> Tensor<3> {
        let [b, kv, g, _, d] = x.dims();
        x.clone()
            .narrow(3, start, len)
            .reshape([b * kv, g * len, d])
    }

    /// The chunks' results as they came in: [B·KV, G·m, D] each -> [B, T, H, D]
    fn join(&self, chunks: Vec<Tensor<3>>) -> Tensor<4> {
        let (b, kv, g, d) = (
            self.heads.n_rows,
            self.heads.n_kv_head,
            self.group(),
            self.heads.head_dim,
        );
        let chunks = chunks
            .into_iter()
            .map(|chunk| {
                let len = chunk.dims()[1] / g;
                chunk.reshape([b, kv, g, len, d])
            })
            .collect();
        Tensor::cat(chunks, 3)
            .permute([0, 3, 1, 2, 4])
            .reshape([b, self.heads.n_tokens, kv * g, d])
    }

    /// Keys or values: [N, KV·D] -> [B·KV, T, D]
    fn keys(&self, x: Tensor<2>, rotated: bool) -> Tensor<3> {
        let (b, t, kv, d) = self.key_shape();
        let x = x.reshape([b, t, kv, d]);
        let x = if rotated {
            rotate(x, self.rotation.as_ref(), false)
        } else {
            x
        };
        x.permute([0, 2, 1, 3]).reshape([b * kv, t, d])
    }

    /// [B·KV, T, D] -> [B, T, KV, D]
    fn keys_back(&self, x: Tensor<3>) -> Tensor<4> {
        let (b, t, kv, d) = self.key_shape();
        x.reshape([b, kv, t, d]).permute([0, 2, 1, 3])
    }

    fn key_shape(&self) -> (usize, usize, usize, usize) {
        (
            self.heads.n_rows,
            self.heads.n_tokens,
            self.heads.n_kv_head,
            self.heads.head_dim,
        )
    }

    fn scale(&self) -> f64 {
        1.0 / (self.heads.head_dim as f64).sqrt()
    }

    /// Probabilities of a chunk's queries over the first `start + len` keys. -> [B·KV, G·m, start + m]
    fn probabilities(&self, q: Tensor<3>, k: Tensor<3>, (start, len): (usize, usize)) -> Tensor<3> {
        let ([bkv, rows, _], n_keys) = (q.dims(), k.dims()[1]);
        let ahead = Tensor::<1, Int>::arange(0..n_keys as i64, &q.device()).reshape([1, n_keys])
            - Tensor::<1, Int>::arange(start as i64..(start + len) as i64, &q.device())
                .reshape([len, 1]); // [m, keys]
        let later = ahead.greater_elem(0).float().mul_scalar(LATER);
        let scores = matmul(q, k.swap_dims(1, 2))
            .mul_scalar(self.scale())
            .reshape([bkv, rows / len, len, n_keys])
            + later.reshape([1, 1, len, n_keys]);
        let weights = (scores.clone() - scores.max_dim(3)).exp();
        let sums = weights.clone().sum_dim(3);
        (weights / sums).reshape([bkv, rows, n_keys])
    }
}

/// Causal attention with rotary positions and grouped heads. q [N, H * D], k and v [N, KV * D] -> [N, H * D]
///
/// Padding stands on the right, so that the causal order keeps it out of every position before it.
pub fn attention(q: Tensor<2>, k: Tensor<2>, v: Tensor<2>, heads: &Heads) -> Tensor<2> {
    attention_within(SCORES, q, k, v, heads)
}

/// As [`attention`], of q, k and v beside each other. [N, (H + 2 KV) * D] -> [N, H * D]
pub fn attention_qkv(qkv: &Tensor<2>, heads: &Heads) -> Tensor<2> {
    let [q, k, v] = parts(qkv, heads);
    attention(q, k, v, heads)
}

/// The gradient of [`attention_qkv`]'s input.
pub fn attention_qkv_backward(qkv: &Tensor<2>, dy: Tensor<2>, heads: &Heads) -> Tensor<2> {
    let [q, k, v] = parts(qkv, heads);
    Tensor::cat(attention_backward(q, k, v, dy, heads).into(), 1)
}

fn parts(qkv: &Tensor<2>, heads: &Heads) -> [Tensor<2>; 3] {
    let (q, kv) = (
        heads.n_head * heads.head_dim,
        heads.n_kv_head * heads.head_dim,
    );
    [(0, q), (q, kv), (q + kv, kv)].map(|(first, len)| qkv.clone().narrow(1, first, len))
}

fn attention_within(
    scores: usize,
    q: Tensor<2>,
    k: Tensor<2>,
    v: Tensor<2>,
    heads: &Heads,
) -> Tensor<2> {
    let shape = q.dims();
    let grouped = Grouped::new(heads, &q.device(), scores);
    let (q, k, v) = (
        grouped.queries(q, true),
        grouped.keys(k, true),
        grouped.keys(v, false),
    );
    let chunks = grouped
        .chunks()
        .map(|(start, len)| {
            let seen = start + len;
            let p = grouped.probabilities(
                Grouped::chunk_of(&q, (start, len)),
                k.clone().narrow(1, 0, seen),
                (start, len),
            );
            matmul(p, v.clone().narrow(1, 0, seen))
        })
        .collect();
    grouped.join(chunks).reshape(shape)
}

/// dq, dk and dv of [`attention`]. The probabilities are computed again: keeping them would cost T² memory.
pub fn attention_backward(
    q: Tensor<2>,
    k: Tensor<2>,
    v: Tensor<2>,
    dy: Tensor<2>,
    heads: &Heads,
) -> [Tensor<2>; 3] {
    attention_backward_within(SCORES, q, k, v, dy, heads)
}

fn attention_backward_within(
    scores: usize,
    q: Tensor<2>,
    k: Tensor<2>,
    v: Tensor<2>,
    dy: Tensor<2>,
    heads: &Heads,
) -> [Tensor<2>; 3] {
    let (q_shape, k_shape) = (q.dims(), k.dims());
    let grouped = Grouped::new(heads, &q.device(), scores);
    let (q, dy) = (grouped.queries(q, true), grouped.queries(dy, false));
    let (k, v) = (grouped.keys(k, true), grouped.keys(v, false));
    let (mut dq, mut dk, mut dv) = (Vec::new(), None, None);
    for (start, len) in grouped.chunks() {
        let seen = start + len;
        let (k, v) = (k.clone().narrow(1, 0, seen), v.clone().narrow(1, 0, seen));
        let (q, dy) = (
            Grouped::chunk_of(&q, (start, len)),
            Grouped::chunk_of(&dy, (start, len)),
        );
        let p = grouped.probabilities(q.clone(), k.clone(), (start, len));
        let dp = matmul(dy.clone(), v.swap_dims(1, 2)); // [B·KV, G·m, seen]
        let along = (p.clone() * dp.clone()).sum_dim(2);
        let ds = (p.clone() * (dp - along)).mul_scalar(grouped.scale());
        let n = heads.n_tokens;
        dv = Some(add_first(dv, matmul(p.swap_dims(1, 2), dy), n));
        dk = Some(add_first(dk, matmul(ds.clone().swap_dims(1, 2), q), n));
        dq.push(matmul(ds, k));
    }
    let rotation = grouped.rotation.as_ref();
    let keys = |x: Option<Tensor<3>>| x.map(|x| grouped.keys_back(x));
    let (Some(dk), Some(dv)) = (keys(dk), keys(dv)) else {
        unreachable!("a batch has at least one position")
    };
    [
        rotate(grouped.join(dq), rotation, true).reshape(q_shape),
        rotate(dk, rotation, true).reshape(k_shape),
        dv.reshape(k_shape),
    ]
}

/// `sum + part`, where `part` covers the first positions only. [.., t <= n, D] -> [.., n, D]
fn add_first(sum: Option<Tensor<3>>, part: Tensor<3>, n: usize) -> Tensor<3> {
    let [b, t, d] = part.dims();
    let part = if t < n {
        let rest = Tensor::zeros([b, n - t, d], &part.device());
        Tensor::cat(vec![part, rest], 1)
    } else {
        part
    };
    match sum {
        Some(sum) => sum + part,
        None => part,
    }
}

/// The sum of the cross-entropies of some rows, and the gradient of `scale` times it with respect to their logits.
/// logits [m, V] -> [1], [m, V]
pub fn cross_entropy(
    logits: Tensor<2>,
    targets: Tensor<1, Int>,
    scale: f64,
) -> (Tensor<1>, Tensor<2>) {
    let [m, v] = logits.dims();
    let ids = Tensor::<1, Int>::arange(0..v as i64, &logits.device()).reshape([1, v]);
    let is_target = ids.equal(targets.reshape([m, 1])).float(); // [m, V]
    let shifted = logits.clone() - logits.max_dim(1);
    let weights = shifted.clone().exp();
    let sums = weights.clone().sum_dim(1); // [m, 1]
    let picked = (shifted * is_target.clone()).sum_dim(1);
    let loss = (sums.clone().log() - picked).sum();
    (loss, (weights / sums - is_target).mul_scalar(scale))
}

/// The operations on the primitives of Burn's GPU backend.
#[cfg(feature = "gpu")]
mod cube {
    use super::{
        super::{
            lora::LoraProduct,
            ops::{FusedOps, Kernels, Op},
        },
        attention, attention_backward, attention_qkv, attention_qkv_backward, dequantized,
        frozen_product, gelu, gelu_backward, layer_norm, layer_norm_backward, lora_product,
        lora_product_backward, product, product_backward, rms_norm, rms_norm_backward, swiglu,
        swiglu_backward,
    };
    use burn::{
        backend::{Cube, tensor::FloatTensor},
        tensor::Tensor,
    };

    type Primitive = FloatTensor<Cube>;

    fn lift<const D: usize>(primitive: &Primitive) -> Tensor<D> {
        Tensor::from_primitive::<Cube>(primitive.clone())
    }

    fn lower<const D: usize>(tensor: Tensor<D>) -> Primitive {
        tensor
            .try_into_primitive::<Cube>()
            .expect("what is composed of tensors of a device is on that device")
    }

    impl Kernels for Cube {
        fn forward<const N: usize>(op: &Op, inputs: [Primitive; N]) -> Primitive {
            let x = |idx: usize| lift::<2>(&inputs[idx]);
            let row = |idx: usize| lift::<1>(&inputs[idx]);
            lower(match op {
                Op::RmsNorm { eps } => rms_norm(x(0), row(1), *eps),
                Op::LayerNorm { eps } => layer_norm(&x(0), row(1), row(2), *eps),
                Op::SwiGlu => swiglu(x(0), x(1)),
                Op::Gelu => gelu(x(0)),
                Op::Attention(heads) => attention(x(0), x(1), x(2), heads),
                Op::AttentionQkv(heads) => attention_qkv(&x(0), heads),
                Op::Product(of) => product(x(0), x(1), of),
                Op::ProductPlus(of) => product(x(0), x(1), of) + row(2).unsqueeze(),
                Op::LoraProduct(of) => {
                    let (weight, bias) = rest(of, &inputs);
                    lora_product(of, [x(0), x(1), x(2)], weight, bias)
                }
                Op::FrozenProduct {
                    matrix,
                    is_transposed,
                } => frozen_product(x(0), matrix, *is_transposed),
            })
        }

        fn backward<const N: usize>(
            op: &Op,
            inputs: [Primitive; N],
            dy: Primitive,
            wanted: [bool; N],
        ) -> [Option<Primitive>; N] {
            let x = |idx: usize| lift::<2>(&inputs[idx]);
            let row = |idx: usize| lift::<1>(&inputs[idx]);
            let want = |idx: usize| wanted[idx];
            let dy = lift::<2>(&dy);
            let gradients: Vec<Option<Primitive>> = match op {
                Op::RmsNorm { eps } => {
                    let wanted = [want(0), want(1)];
                    let (dx, d_gamma) = rms_norm_backward(&x(0), row(1), dy, *eps, wanted);
                    vec![dx.map(lower), d_gamma.map(lower)]
                }
                Op::LayerNorm { eps } => {
                    let wanted = [want(0), want(1), want(2)];
                    let (dx, d_gamma, d_beta) =
                        layer_norm_backward(&x(0), row(1), dy, *eps, wanted);
                    vec![dx.map(lower), d_gamma.map(lower), d_beta.map(lower)]
                }
                Op::SwiGlu => {
                    let (d_gate, d_up) = swiglu_backward(x(0), x(1), dy);
                    vec![Some(lower(d_gate)), Some(lower(d_up))]
                }
                Op::Gelu => vec![Some(lower(gelu_backward(x(0), dy)))],
                Op::Attention(heads) => attention_backward(x(0), x(1), x(2), dy, heads)
                    .map(|gradient| Some(lower(gradient)))
                    .into(),
                Op::AttentionQkv(heads) => {
                    vec![Some(lower(attention_qkv_backward(&x(0), dy, heads)))]
                }
                Op::Product(of) => product_backward(x(0), x(1), dy, of, [want(0), want(1)])
                    .map(|gradient| gradient.map(lower))
                    .into(),
                Op::ProductPlus(of) => {
                    let d_row = want(2).then(|| lower(dy.clone().sum_dim(0).squeeze_dim::<1>(0)));
                    let [da, db] = product_backward(x(0), x(1), dy, of, [want(0), want(1)]);
                    vec![da.map(lower), db.map(lower), d_row]
                }
                Op::LoraProduct(of) => {
                    let (weight, _) = rest(of, &inputs);
                    let wanted = [want(0), want(1), want(2)];
                    lora_product_backward(of, [x(0), x(1), x(2)], weight, dy, wanted)
                        .map(|gradient| gradient.map(lower))
                        .into()
                }
                Op::FrozenProduct {
                    matrix,
                    is_transposed,
                } => vec![Some(lower(frozen_product(dy, matrix, !is_transposed)))],
            };
            let mut gradients = gradients.into_iter();
            inputs.map(|_| gradients.next().flatten())
        }
    }

    impl FusedOps for Cube {
        fn fused1(a: Primitive, op: Op) -> Primitive {
            <Self as Kernels>::forward(&op, [a])
        }
        fn fused2(a: Primitive, b: Primitive, op: Op) -> Primitive {
            <Self as Kernels>::forward(&op, [a, b])
        }
        fn fused3(a: Primitive, b: Primitive, c: Primitive, op: Op) -> Primitive {
            <Self as Kernels>::forward(&op, [a, b, c])
        }
        fn fused4(a: Primitive, b: Primitive, c: Primitive, d: Primitive, op: Op) -> Primitive {
            <Self as Kernels>::forward(&op, [a, b, c, d])
        }
        fn fused5(
            a: Primitive,
            b: Primitive,
            c: Primitive,
            d: Primitive,
            e: Primitive,
            op: Op,
        ) -> Primitive {
            <Self as Kernels>::forward(&op, [a, b, c, d, e])
        }
    }

    /// W and the bias of a product.
    fn rest<const N: usize>(
        of: &LoraProduct,
        inputs: &[Primitive; N],
    ) -> (Tensor<2>, Option<Tensor<1>>) {
        let tensors = of.tensors(inputs);
        let weight = match (&of.matrix, tensors.weight) {
            (_, Some(weight)) => lift::<2>(weight),
            (Some(matrix), None) => dequantized(matrix, &lift::<2>(tensors.x).device()),
            (None, None) => unreachable!("a matrix is in blocks or dense"),
        };
        (weight, tensors.bias.map(lift::<1>))
    }
}

/// Against [`super::kernels`], which are tested against finite differences and PyTorch: on the CPU, where a composition
/// differs from them in the order of sums only.
#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::{dropout::Moment, kernels, lora::Tensors, model::to_vec};

    const EPS: f32 = 1e-5;

    fn values(n: usize, seed: usize) -> Vec<f32> {
        (0..n)
            .map(|i| ((i * 37 + seed * 101) % 211) as f32 / 60.0 - 1.7)
            .collect()
    }

    fn matrix(n: usize, c: usize, seed: usize) -> Tensor<2> {
        Tensor::from_data(
            TensorData::new(values(n * c, seed), [n, c]),
            &Device::flex(),
        )
    }

    fn vector(c: usize, seed: usize) -> Tensor<1> {
        Tensor::from_data(TensorData::new(values(c, seed), [c]), &Device::flex())
    }

    fn assert_close<const D: usize>(what: &str, got: Tensor<D>, expected: &[f32]) {
        let got = to_vec(got);
        assert_eq!(got.len(), expected.len(), "{what}");
        for (got, expected) in got.iter().zip(expected) {
            assert!(
                (got - expected).abs() <= 2e-5 * expected.abs().max(1.0),
                "{what}: {got} for {expected}"
            );
        }
    }

    #[test]
    fn norms_and_activations_are_those_of_the_kernels() {
        let (n, c) = (5, 13);
        let (x, gamma, beta, dy) = (
            values(n * c, 1),
            values(c, 2),
            values(c, 3),
            values(n * c, 4),
        );
        let (tx, tg, tb, td) = (matrix(n, c, 1), vector(c, 2), vector(c, 3), matrix(n, c, 4));

        assert_close(
            "rms",
            rms_norm(tx.clone(), tg.clone(), EPS),
            &kernels::rms_norm(&x, &gamma, EPS),
        );
        let (dx, d_gamma) = rms_norm_backward(&tx, tg.clone(), td.clone(), EPS, [true; 2]);
        assert_close(
            "rms dx",
            dx.unwrap(),
            &kernels::rms_norm_dx(&x, &gamma, &dy, EPS),
        );
        assert_close(
            "rms dgamma",
            d_gamma.unwrap(),
            &kernels::rms_norm_dgamma(&x, &dy, c, EPS),
        );

        assert_close(
            "layer",
            layer_norm(&tx, tg.clone(), tb, EPS),
            &kernels::layer_norm(&x, &gamma, &beta, EPS),
        );
        let (dx, d_gamma, d_beta) =
            layer_norm_backward(&tx, tg.clone(), td.clone(), EPS, [true; 3]);
        assert_close(
            "layer dx",
            dx.unwrap(),
            &kernels::layer_norm_dx(&x, &gamma, &dy, EPS),
        );
        assert_close(
            "layer dgamma",
            d_gamma.unwrap(),
            &kernels::layer_norm_dgamma(&x, &dy, c, EPS),
        );
        assert_close(
            "layer dbeta",
            d_beta.unwrap(),
            &kernels::sum_over_rows(&dy, c),
        );
        let none = layer_norm_backward(&tx, tg, td.clone(), EPS, [false; 3]);
        assert!(none.0.is_none() && none.1.is_none() && none.2.is_none());

        let up = values(n * c, 5);
        let tu = matrix(n, c, 5);
        assert_close(
            "swiglu",
            swiglu(tx.clone(), tu.clone()),
            &kernels::swiglu(&x, &up),
        );
        let (d_gate, d_up) = swiglu_backward(tx.clone(), tu, td.clone());
        let expected = kernels::swiglu_backward(&x, &up, &dy);
        assert_close("dgate", d_gate, &expected.0);
        assert_close("dup", d_up, &expected.1);
        assert_close("gelu", gelu(tx.clone()), &kernels::gelu(&x));
        assert_close(
            "dgelu",
            gelu_backward(tx, td),
            &kernels::gelu_backward(&x, &dy),
        );
    }

    #[test]
    fn activations_stay_finite_far_out() {
        let x: Tensor<2> = Tensor::from_data([[-1e4_f32, -90.0, 90.0, 1e4]], &Device::flex());
        let ones = x.ones_like();
        let all = [
            gelu(x.clone()),
            gelu_backward(x.clone(), ones.clone()),
            swiglu(x.clone(), ones.clone()),
            swiglu_backward(x, ones.clone(), ones).0,
        ];
        for y in all {
            let y = to_vec(y);
            assert!(
                y.iter().all(|y| y.is_finite()) && y[0].abs() < 1e-20,
                "{y:?}"
            );
        }
    }

    #[test]
    fn attention_is_that_of_the_kernels_in_one_chunk_and_in_many() {
        // Rows, tokens, heads, key heads, width of a head.
        for (b, t, h, kv, d, pairing) in [
            (2, 7, 4, 2, 6, Some(Pairing::Neighbours)),
            (1, 1, 3, 3, 5, None),
            (3, 5, 2, 1, 4, Some(Pairing::Neighbours)),
            (2, 7, 4, 2, 6, Some(Pairing::Halves)),
            // More positions than the kernels take at a time, and not a multiple.
            (2, 100, 2, 1, 4, Some(Pairing::Halves)),
        ] {
            let rotations = if pairing.is_some() {
                (0..t * d / 2)
                    .map(|i| (0.3 * i as f32).sin_cos())
                    .map(|(sin, cos)| (cos, sin))
                    .collect()
            } else {
                [].into()
            };
            let heads = Heads {
                n_rows: b,
                n_tokens: t,
                n_head: h,
                n_kv_head: kv,
                head_dim: d,
                rotations,
                pairing: pairing.unwrap_or(Pairing::Neighbours),
            };
            let n = b * t;
            let widths = [h * d, kv * d, kv * d, h * d];
            let flat: Vec<_> = (0..4).map(|i| values(n * widths[i], i)).collect();
            let of = |i: usize| matrix(n, widths[i], i);
            let expected = kernels::attention(&flat[0], &flat[1], &flat[2], &heads);
            let gradients =
                kernels::attention_backward(&flat[0], &flat[1], &flat[2], &flat[3], &heads);
            for scores in [SCORES, b * h * t * 2, 1] {
                assert_close(
                    "attention",
                    attention_within(scores, of(0), of(1), of(2), &heads),
                    &expected,
                );
                let got = attention_backward_within(scores, of(0), of(1), of(2), of(3), &heads);
                for (name, (got, expected)) in ["dq", "dk", "dv"]
                    .iter()
                    .zip(got.into_iter().zip(&gradients))
                {
                    assert_close(name, got, expected);
                }
            }
        }
    }

    #[test]
    fn products_are_those_of_the_kernels_each_way_round() {
        let (m, n, k) = (5, 7, 3);
        for (a_transposed, b_transposed) in
            [(false, false), (false, true), (true, false), (true, true)]
        {
            let of = Product {
                m,
                n,
                k,
                a_transposed,
                b_transposed,
            };
            let shape = |rows, columns, turn| {
                if turn {
                    (columns, rows)
                } else {
                    (rows, columns)
                }
            };
            let (a_rows, a_columns) = shape(m, k, a_transposed);
            let (b_rows, b_columns) = shape(k, n, b_transposed);
            let (a, b, dy) = (
                matrix(a_rows, a_columns, 1),
                matrix(b_rows, b_columns, 2),
                matrix(m, n, 3),
            );
            let (fa, fb, fdy) = (values(m * k, 1), values(k * n, 2), values(m * n, 3));
            assert_close(
                "ab",
                product(a.clone(), b.clone(), &of),
                &of.forward(&fa, &fb, None),
            );
            let [da, db] = product_backward(a, b, dy, &of, [true; 2]);
            assert_close("da", da.unwrap(), &of.da(&fb, &fdy));
            assert_close("db", db.unwrap(), &of.db(&fa, &fdy));
        }
    }

    #[test]
    fn a_layer_with_a_lora_is_that_of_the_kernels() {
        let (n, n_in, n_out, rank) = (6, 8, 5, 2);
        let moment = Moment {
            seed: 1,
            step: 2,
            first_row: 0,
            n_tokens: 3,
        };
        let [x, a, b] = [(n, n_in, 1), (rank, n_in, 2), (n_out, rank, 3)]
            .map(|(rows, columns, seed)| matrix(rows, columns, seed));
        let (weight, bias, dy) = (
            matrix(n_out, n_in, 4),
            vector(n_out, 5),
            matrix(n, n_out, 6),
        );
        for case in 0..8 {
            let [drops, has_bias, is_merged] = [1, 2, 4].map(|bit| case & bit != 0);
            let of = LoraProduct {
                matrix: None,
                has_bias,
                rank,
                scale: 0.75,
                draw: drops.then(|| Draw::new(&moment, 0, n_in, 0.3)),
                is_merged,
            };
            let bias = has_bias.then(|| bias.clone());
            let values = [&x, &a, &b, &weight, &dy].map(|tensor| to_vec(tensor.clone()));
            let bias_values = bias.clone().map(to_vec);
            let tensors = Tensors {
                x: &values[0][..],
                a: &values[1],
                b: &values[2],
                weight: Some(&values[3]),
                bias: bias_values.as_deref(),
            };
            let factors = || [x.clone(), a.clone(), b.clone()];
            let y = lora_product(&of, factors(), weight.clone(), bias);
            assert_close("y", y, &of.forward(&tensors));
            let wanted = [true; 3];
            let got = lora_product_backward(&of, factors(), weight.clone(), dy.clone(), wanted);
            let expected = of.backward(&tensors, &values[4], wanted);
            for (name, (got, expected)) in
                ["dx", "da", "db"].iter().zip(got.into_iter().zip(expected))
            {
                assert_close(name, got.unwrap(), &expected.unwrap());
            }
        }
    }

    #[test]
    fn cross_entropy_is_that_of_the_kernels() {
        let (m, v) = (6, 17);
        let targets: Vec<u32> = (0..m as u32).map(|i| i * 3 % 17).collect();
        let mut logits = values(m * v, 9);
        let (loss, d_logits) = cross_entropy(
            matrix(m, v, 9),
            crate::train::model::ints(&targets, &Device::flex()),
            0.25,
        );
        let expected = kernels::cross_entropy(&mut logits, &targets, 0.25);
        assert_close("loss", loss, &[expected as f32]);
        assert_close("dlogits", d_logits, &logits);
    }

    #[test]
    fn bf16_is_near_f32_and_leaves_f32_behind() {
        let (a, b) = (matrix(7, 9, 1), matrix(9, 5, 2));
        // The CPU computes in f32 whatever GPUs do.
        compute_in(Dtype::Bf16);
        let exact = to_vec(matmul(a.clone(), b.clone()));
        compute_in(Dtype::F32);
        assert_eq!(exact, to_vec(a.clone().matmul(b.clone())));
        let near = matmul_bf16(a, b);
        assert_eq!(near.dtype(), burn::tensor::DType::F32);
        let near = to_vec(near);
        assert_ne!(near, exact);
        for (near, exact) in near.iter().zip(&exact) {
            // Nine products of numbers up to 1.8, each factor within 2^-9.
            assert!(
                (near - exact).abs() < 9.0 * 1.8 * 1.8 * 2.0 / 256.0,
                "{near} for {exact}"
            );
        }
    }
}
