//! Cross-entropy at the counted positions, and its gradients.
//!
//! The logits of a chat batch would be the largest tensor of all (V is a fifth of SmolLM2's arithmetic), so the output
//! matrix works by chunks of rows outside autodiff: each chunk's logits give the loss, the gradient with respect to the
//! hidden states and, where the matrix is trained, to it; then they are dropped. The gradient of the hidden states
//! enters the backward pass through `sum(hidden * gradient)`, whose derivative it is.

use super::{
    kernels,
    model::{Batch, Transformer, take_gradients, to_vec},
    ops,
};
use burn::tensor::{Tensor, TensorData};
use std::collections::BTreeMap;

/// Rows of logits that are in memory at a time: at V = 49,152 a chunk is 48 MiB.
const CHUNK_ROWS: usize = 256;

/// Gradients by parameter name, flattened.
pub type Gradients = BTreeMap<String, Tensor<1>>;

/// Logits at the counted positions. [M, V]
pub fn logits(model: &Transformer, batch: &Batch) -> Tensor<2> {
    ops::product(
        model.hidden(batch).inner(),
        model.head().inner(),
        [false, true],
    )
}

/// Sum of the cross-entropies at the counted positions (nats), without gradients.
pub fn loss_sum(model: &Transformer, batch: &Batch) -> f64 {
    let hidden = model.hidden(batch).inner();
    let head = model.head().inner();
    chunks(batch)
        .map(|chunk| chunk_loss(&hidden, &head, batch, chunk, 1.0).0)
        .sum()
}

/// Sum of the cross-entropies, and the gradients of `scale` times that sum.
pub fn loss_and_gradients(model: &Transformer, batch: &Batch, scale: f64) -> (f64, Gradients) {
    let hidden = model.hidden(batch); // [M, C]
    let head = head_gradients(model, hidden.clone().inner(), batch, scale);
    let surrogate = (hidden * Tensor::from_inner(head.d_hidden)).sum();
    let mut gradients = take_gradients(model, surrogate.backward());
    add_head(&mut gradients, model, head.d_head);
    (head.sum, gradients)
}

/// What the output matrix gives.
pub(super) struct HeadGradients {
    /// Sum of the cross-entropies.
    pub(super) sum: f64,
    /// Of `scale` times the sum with respect to the hidden states. [M, C]
    pub(super) d_hidden: Tensor<2>,
    /// With respect to the output matrix, where it is trained. [V, C]
    pub(super) d_head: Option<Tensor<2>>,
}

/// Loss and gradients of the output matrix, by chunks of rows of the hidden states, outside autodiff.
pub(super) fn head_gradients(
    model: &Transformer,
    hidden: Tensor<2>,
    batch: &Batch,
    scale: f64,
) -> HeadGradients {
    let head = model.head();
    let head_trained = head.is_require_grad();
    let head = head.inner();
    let (mut sum, mut d_hidden, mut d_head) = (0.0, Vec::new(), None::<Tensor<2>>);
    for (start, len) in chunks(batch) {
        let (loss, d_logits) = chunk_loss(&hidden, &head, batch, (start, len), scale);
        sum += loss;
        if head_trained {
            let of_chunk = hidden.clone().narrow(0, start, len);
            let d = ops::product(d_logits.clone(), of_chunk, [true, false]); // [V, C]
            d_head = Some(match d_head {
                Some(sum) => sum + d,
                None => d,
            });
        }
        d_hidden.push(ops::product(d_logits, head.clone(), [false, false]));
    }
    HeadGradients {
        sum,
        d_hidden: Tensor::cat(d_hidden, 0),
        d_head,
    }
}

/// Adds the gradient of the output matrix, which also has one from the embedding where it is tied.
pub(super) fn add_head(gradients: &mut Gradients, model: &Transformer, d_head: Option<Tensor<2>>) {
    let Some(d_head) = d_head else { return };
    let n = d_head.shape().num_elements();
    let d_head = d_head.reshape([n]);
    let name = model.head_name();
    let sum = match gradients.remove(name) {
        Some(embedding) => embedding + d_head,
        None => d_head,
    };
    gradients.insert(name.to_owned(), sum);
}

fn chunks(batch: &Batch) -> impl Iterator<Item = (usize, usize)> {
    let n = batch.counted.len();
    (0..n)
        .step_by(CHUNK_ROWS)
        .map(move |start| (start, CHUNK_ROWS.min(n - start)))
}

/// The loss of `len` rows from `start`, and the gradient of `scale` times it with respect to their logits. [m, V]
fn chunk_loss(
    hidden: &Tensor<2>,
    head: &Tensor<2>,
    batch: &Batch,
    (start, len): (usize, usize),
    scale: f64,
) -> (f64, Tensor<2>) {
    let of_chunk = hidden.clone().narrow(0, start, len);
    let logits = ops::product(of_chunk, head.clone(), [false, true]);
    let (shape, device) = (logits.dims(), logits.device());
    let mut values = to_vec(logits);
    let loss = kernels::cross_entropy(
        &mut values,
        &batch.targets[start..start + len],
        scale as f32,
    );
    (
        loss,
        Tensor::from_data(TensorData::new(values, shape), &device),
    )
}
