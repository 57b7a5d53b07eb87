//! Cross-entropy at the counted positions, and its gradients.
//!
//! The logits of a chat batch would be the largest tensor of all (V is a fifth of SmolLM2's arithmetic), so the output
//! matrix works by chunks of rows outside autodiff: each chunk's logits give the loss, the gradient with respect to the
//! hidden states and, where the matrix is trained, to it; then they are dropped. The gradient of the hidden states
//! enters the backward pass through `sum(hidden * gradient)`, whose derivative it is.

use super::model::{Batch, Transformer, ints, take_gradients, to_vec};
use burn::tensor::{IndexingUpdateOp, Int, Tensor, activation};
use std::collections::BTreeMap;

/// Rows of logits that are in memory at a time: at V = 49,152 a chunk is 48 MiB.
const CHUNK_ROWS: usize = 256;

/// Gradients by parameter name, flattened.
pub type Gradients = BTreeMap<String, Tensor<1>>;

/// Logits at the counted positions. [M, V]
pub fn logits(model: &Transformer, batch: &Batch) -> Tensor<2> {
    model
        .hidden(batch)
        .inner()
        .matmul(model.head().inner().transpose())
}

/// Sum of the cross-entropies at the counted positions (nats), without gradients.
pub fn loss_sum(model: &Transformer, batch: &Batch) -> f64 {
    let hidden = model.hidden(batch).inner();
    let head = model.head().inner();
    chunks(batch)
        .map(|(start, len)| chunk_loss(&hidden, &head, batch, start, len).0)
        .sum()
}

/// Sum of the cross-entropies, and the gradients of `scale` times that sum.
pub fn loss_and_gradients(model: &Transformer, batch: &Batch, scale: f64) -> (f64, Gradients) {
    let hidden = model.hidden(batch); // [M, C]
    let head = model.head();
    let head_trained = head.is_require_grad();
    let (inner, head) = (hidden.clone().inner(), head.inner());
    let (mut sum, mut d_hidden, mut d_head) = (0.0, Vec::new(), None::<Tensor<2>>);
    for (start, len) in chunks(batch) {
        let (loss, probabilities, targets) = chunk_loss(&inner, &head, batch, start, len);
        sum += loss;
        let minus_one = Tensor::ones([len, 1], &probabilities.device()).neg();
        let d_logits = probabilities
            .scatter(1, targets, minus_one, IndexingUpdateOp::Add)
            .mul_scalar(scale); // [m, V]
        d_hidden.push(d_logits.clone().matmul(head.clone()));
        if head_trained {
            let d = d_logits
                .transpose()
                .matmul(inner.clone().narrow(0, start, len)); // [V, C]
            d_head = Some(match d_head {
                Some(sum) => sum + d,
                None => d,
            });
        }
    }
    let surrogate = (hidden * Tensor::from_inner(Tensor::cat(d_hidden, 0))).sum();
    let mut gradients = take_gradients(model, surrogate.backward());
    if let Some(d_head) = d_head {
        let n = d_head.shape().num_elements();
        let d_head = d_head.reshape([n]);
        let name = model.head_name();
        // A tied matrix also has a gradient from the embedding.
        let sum = match gradients.remove(name) {
            Some(embedding) => embedding + d_head,
            None => d_head,
        };
        gradients.insert(name.to_owned(), sum);
    }
    (sum, gradients)
}

fn chunks(batch: &Batch) -> impl Iterator<Item = (usize, usize)> {
    let n = batch.counted.len();
    (0..n)
        .step_by(CHUNK_ROWS)
        .map(move |start| (start, CHUNK_ROWS.min(n - start)))
}

/// The loss of `len` rows from `start`, their probabilities [m, V] and targets [m, 1].
fn chunk_loss(
    hidden: &Tensor<2>,
    head: &Tensor<2>,
    batch: &Batch,
    start: usize,
    len: usize,
) -> (f64, Tensor<2>, Tensor<2, Int>) {
    let logits = hidden
        .clone()
        .narrow(0, start, len)
        .matmul(head.clone().transpose());
    let targets: Tensor<2, Int> =
        ints(&batch.targets[start..start + len], &logits.device()).unsqueeze_dim(1);
    let probabilities = activation::softmax(logits.clone(), 1);
    // log p = logit - max - ln Σ exp(logit - max), and the largest probability is 1 / Σ exp(logit - max).
    let max = to_vec(logits.clone().max_dim(1));
    let largest = to_vec(probabilities.clone().max_dim(1));
    let picked = to_vec(logits.gather(1, targets.clone()));
    let rows = max.iter().zip(&largest).zip(&picked);
    let loss = rows
        .map(|((&max, &largest), &picked)| {
            f64::from(max) - f64::from(largest).ln() - f64::from(picked)
        })
        .sum();
    (loss, probabilities, targets)
}
