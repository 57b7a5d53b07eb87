//! Cross-entropy at the counted positions, and its gradients.
//!
//! The logits of a chat batch would be the largest tensor of all (V is a fifth of SmolLM2's arithmetic), so the output
//! matrix works by chunks of rows outside autodiff: each chunk's logits give the loss, the gradient with respect to the
//! hidden states and, where the matrix is trained, to it; then they are dropped. The gradient of the hidden states
//! enters the backward pass through `sum(hidden * gradient)`, whose derivative it is.

use super::{
    composed, device, kernels,
    model::{Batch, Head, Transformer, ints, take_gradients, to_vec},
    ops,
};
use burn::tensor::{Tensor, TensorData};
use std::{collections::BTreeMap, ops::Range};

/// Rows of logits that are in memory at a time: at V = 49,152 a chunk is 48 MiB.
pub(super) const CHUNK_ROWS: usize = 256;

/// Gradients by parameter name, flattened.
pub type Gradients = BTreeMap<String, Tensor<1>>;

/// Logits at the counted positions. [M, V]
pub fn logits(model: &Transformer, batch: &Batch) -> Tensor<2> {
    model.head().logits(model.hidden(batch).inner())
}

/// The logits at the counted positions, by chunks of rows. [m, V]
pub fn logits_by_chunk(
    model: &Transformer,
    batch: &Batch,
    mut each: impl FnMut(Range<usize>, Tensor<2>),
) {
    let (hidden, head) = (model.hidden(batch).inner(), model.head());
    for (start, len) in chunks(batch) {
        let logits = head.logits(hidden.clone().narrow(0, start, len));
        each(start..start + len, logits);
    }
}

/// Sum of the cross-entropies at the counted positions (nats), without gradients.
pub fn loss_sum(model: &Transformer, batch: &Batch) -> f64 {
    let hidden = model.hidden(batch).inner();
    let head = model.head();
    let losses = chunks(batch).map(|chunk| chunk_loss(&hidden, &head, batch, chunk, 1.0).0);
    total(losses.collect())
}

/// Sum of the cross-entropies, and the gradients of `scale` times that sum.
pub fn loss_and_gradients(model: &Transformer, batch: &Batch, scale: f64) -> (f64, Gradients) {
    let hidden = model.hidden(batch); // [M, C]
    let head = head_gradients(model, &hidden.clone().inner(), batch, scale);
    let surrogate = (hidden * Tensor::from_inner(head.d_hidden)).sum();
    let mut gradients = take_gradients(model, surrogate.backward());
    add_head(&mut gradients, model, head.d_head);
    (total(head.losses), gradients)
}

/// What the output matrix gives.
pub(super) struct HeadGradients {
    /// Cross-entropies of the chunks: [`total`].
    pub(super) losses: Vec<ChunkLoss>,
    /// Of `scale` times the sum with respect to the hidden states. [M, C]
    pub(super) d_hidden: Tensor<2>,
    /// With respect to the output matrix, where it is trained. [V, C]
    pub(super) d_head: Option<Tensor<2>>,
}

/// Loss and gradients of the output matrix, by chunks of rows of the hidden states, outside autodiff.
pub(super) fn head_gradients(
    model: &Transformer,
    hidden: &Tensor<2>,
    batch: &Batch,
    scale: f64,
) -> HeadGradients {
    let head = model.head();
    let (mut losses, mut d_hidden, mut d_head) = (Vec::new(), Vec::new(), None::<Tensor<2>>);
    for (start, len) in chunks(batch) {
        let (loss, d_logits) = chunk_loss(hidden, &head, batch, (start, len), scale);
        losses.push(loss);
        if head.is_trained() {
            let of_chunk = hidden.clone().narrow(0, start, len);
            let d = ops::product(d_logits.clone(), of_chunk, [true, false]); // [V, C]
            d_head = Some(match d_head {
                Some(sum) => sum + d,
                None => d,
            });
        }
        d_hidden.push(head.backward(d_logits));
    }
    HeadGradients {
        losses,
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

/// The loss of a chunk of rows: on a GPU it stays there until all work is queued.
pub(super) enum ChunkLoss {
    Here(f64),
    OnDevice(Box<Tensor<1>>),
}

/// Sum of the chunks' losses. On a GPU it waits for all work before it, so it comes after everything is queued.
pub(super) fn total(losses: Vec<ChunkLoss>) -> f64 {
    let (mut sum, mut there) = (0.0, Vec::new());
    for loss in losses {
        match loss {
            ChunkLoss::Here(loss) => sum += loss,
            ChunkLoss::OnDevice(loss) => there.push(*loss),
        }
    }
    if there.is_empty() {
        return sum;
    }
    to_vec(Tensor::cat(there, 0))
        .into_iter()
        .map(f64::from)
        .sum()
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
    head: &Head,
    batch: &Batch,
    (start, len): (usize, usize),
    scale: f64,
) -> (ChunkLoss, Tensor<2>) {
    let targets = &batch.targets[start..start + len];
    let logits = head.logits(hidden.clone().narrow(0, start, len));
    let (shape, device) = (logits.dims(), logits.device());
    if !device::is_cpu(&device) {
        let (loss, d_logits) = composed::cross_entropy(logits, ints(targets, &device), scale);
        return (ChunkLoss::OnDevice(Box::new(loss)), d_logits);
    }
    let mut values = to_vec(logits);
    let loss = kernels::cross_entropy(&mut values, targets, scale as f32);
    (
        ChunkLoss::Here(loss),
        Tensor::from_data(TensorData::new(values, shape), &device),
    )
}
