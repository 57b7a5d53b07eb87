//! The operations between the matrix products, by Burn's tensor operations. Shapes as in [`super::model`].

use burn::tensor::{Device, Tensor, TensorData, activation};
use fledgling_core::spec::{ModelSpec, Position};

/// `x / rms(x) * gamma`. [N, C]
pub fn rms_norm(x: Tensor<2>, gamma: Tensor<1>, eps: f64) -> Tensor<2> {
    let inverse = (x.clone() * x.clone())
        .mean_dim(1)
        .add_scalar(eps)
        .sqrt()
        .recip(); // [N, 1]
    x * inverse * gamma.unsqueeze()
}

/// `(x - mean) / std * gamma + beta`. [N, C]
pub fn layer_norm(x: Tensor<2>, gamma: Tensor<1>, beta: Tensor<1>, eps: f64) -> Tensor<2> {
    let centred = x.clone() - x.mean_dim(1);
    let inverse = (centred.clone() * centred.clone())
        .mean_dim(1)
        .add_scalar(eps)
        .sqrt()
        .recip(); // [N, 1]
    centred * inverse * gamma.unsqueeze() + beta.unsqueeze()
}

/// `silu(gate) * up`.
pub fn swiglu(gate: Tensor<2>, up: Tensor<2>) -> Tensor<2> {
    gate.clone() * activation::sigmoid(gate) * up
}

/// The tanh form of GELU, `0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³)))`, which is `x · sigmoid` of twice the inner term.
pub fn gelu(x: Tensor<2>) -> Tensor<2> {
    let twice_sqrt_2_over_pi = 2.0 * (2.0 / std::f64::consts::PI).sqrt();
    let inner = x.clone()
        * (x.clone() * x.clone())
            .mul_scalar(0.044_715 * twice_sqrt_2_over_pi)
            .add_scalar(twice_sqrt_2_over_pi);
    x * activation::sigmoid(inner)
}

/// Cosines and sines of rotary positions. [1, T, 1, D/2, 1]
#[derive(Debug)]
pub struct Rope {
    cos: Tensor<5>,
    sin: Tensor<5>,
}

impl Rope {
    /// The table for `n_tokens` positions, or `None` for a model without rotary positions.
    pub fn new(spec: &ModelSpec, n_tokens: usize, device: &Device) -> Option<Self> {
        let Position::Rope {
            base,
            dim,
            freq_factors,
        } = &spec.position
        else {
            return None;
        };
        let half = dim / 2;
        let angle = |t: usize, i: usize| {
            let factor = freq_factors.get(i).map_or(1.0, |&factor| f64::from(factor));
            t as f64 * f64::from(*base).powf(-2.0 * i as f64 / *dim as f64) / factor
        };
        let table = |f: fn(f64) -> f64| {
            let values: Vec<f32> = (0..n_tokens)
                .flat_map(|t| (0..half).map(move |i| (t, i)))
                .map(|(t, i)| f(angle(t, i)) as f32)
                .collect();
            Tensor::from_data(TensorData::new(values, [1, n_tokens, 1, half, 1]), device)
        };
        Some(Self {
            cos: table(f64::cos),
            sin: table(f64::sin),
        })
    }

    /// Rotates neighbours (2i, 2i+1). [B, T, H, D]
    pub fn rotate(&self, x: Tensor<4>) -> Tensor<4> {
        let [b, t, h, d] = x.dims();
        let pairs = x.reshape([b, t, h, d / 2, 2]);
        let (even, odd) = (pairs.clone().narrow(4, 0, 1), pairs.narrow(4, 1, 1)); // [B, T, H, D/2, 1]
        let rotated_even = even.clone() * self.cos.clone() - odd.clone() * self.sin.clone();
        let rotated_odd = even * self.sin.clone() + odd * self.cos.clone();
        Tensor::cat(vec![rotated_even, rotated_odd], 4).reshape([b, t, h, d])
    }
}

/// What is added to the scores so that no position sees a later one. Padding stands on the right, so it needs no
/// mask of its own. `group` query heads share a key head. [1, 1, group * T, T]
pub fn causal_mask(n_tokens: usize, group: usize, device: &Device) -> Tensor<4> {
    let row = |t: usize| (0..n_tokens).map(move |s| if s <= t { 0.0 } else { f32::NEG_INFINITY });
    let values: Vec<f32> = (0..group)
        .flat_map(|_| (0..n_tokens).flat_map(row))
        .collect();
    Tensor::from_data(
        TensorData::new(values, [1, 1, group * n_tokens, n_tokens]),
        device,
    )
}

/// Causal attention with grouped heads: q [B, T, H, D], k and v [B, T, KV, D] -> [N, H * D].
pub fn attention(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, mask: &Tensor<4>) -> Tensor<2> {
    let [b, t, h, d] = q.dims();
    let kv = k.dims()[2];
    let group = h / kv;
    // The query heads of one key head stand under each other, so that keys and values are not repeated.
    let q = q
        .swap_dims(1, 2)
        .mul_scalar(1.0 / (d as f64).sqrt())
        .reshape([b, kv, group * t, d]);
    let scores = q.matmul(k.permute([0, 2, 3, 1])) + mask.clone(); // [B, KV, group * T, T]
    let y = activation::softmax(scores, 3).matmul(v.swap_dims(1, 2)); // [B, KV, group * T, D]
    y.reshape([b, h, t, d])
        .swap_dims(1, 2)
        .reshape([b * t, h * d])
}
