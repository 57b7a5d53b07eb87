//! Block-wise recomputation: of the forward pass only the input of each block is kept, and the backward pass computes a
//! block again when it needs its activations (Chen et al. 2016, "Training deep nets with sublinear memory cost").
//!
//! The backward pass is driven by hand: a block's gradients are those of `sum(output * gradient)`, from the last block to the
//! first. Each sum has the same terms in the same order as without, so the gradients have the same bits.

use super::{
    loss::{Gradients, add_head, head_gradients, total},
    model::{Batch, Transformer, take_gradients},
};
use burn::{module::Module, tensor::Tensor};

/// As [`super::loss::loss_and_gradients`], with the memory of one block's activations.
pub fn loss_and_gradients(model: &Transformer, batch: &Batch, scale: f64) -> (f64, Gradients) {
    // Without autodiff: a forward pass that no backward pass follows would keep its activations.
    let plain = model.valid();
    let heads = model.heads(batch);
    let mut x = plain.embed(batch); // [N, C]
    let mut inputs = Vec::new();
    for layer in 0..model.n_blocks() {
        inputs.push(x.clone());
        x = plain.block(layer, x, &heads);
    }
    let end = Tensor::from_inner(x).require_grad();
    let hidden = model.leave(end.clone(), batch); // [M, C]
    let head = head_gradients(model, &hidden.clone().inner(), batch, scale);
    let (mut gradients, mut dx) = backward(model, hidden, head.d_hidden, &end);
    for (layer, input) in inputs.into_iter().enumerate().rev() {
        let input = Tensor::from_inner(input).require_grad();
        let output = model.block(layer, input.clone(), &heads);
        let (new, d_input) = backward(model, output, dx, &input);
        gradients.extend(new);
        dx = d_input;
    }
    let start = model.embed(batch);
    if model.trains_embedding() {
        let surrogate = (start * Tensor::from_inner(dx)).sum();
        gradients.extend(take_gradients(model, surrogate.backward()));
    }
    add_head(&mut gradients, model, head.d_head);
    (total(head.losses), gradients)
}

/// The gradients of the parameters between `input` and `output`, and that of `input`, from that of `output`.
fn backward(
    model: &Transformer,
    output: Tensor<2>,
    d_output: Tensor<2>,
    input: &Tensor<2>,
) -> (Gradients, Tensor<2>) {
    let surrogate = (output * Tensor::from_inner(d_output)).sum();
    let mut gradients = surrogate.backward();
    let d_input = input
        .grad_remove(&mut gradients)
        .expect("the input was asked for a gradient");
    (take_gradients(model, gradients), d_input)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        run::LoraSize,
        train::{
            config::{FamilyName, LoraConfig, ModelConfig},
            loss,
            model::{LoraSpec, to_vec},
            start,
        },
    };
    use burn::tensor::Device;

    fn model(family: FamilyName, with_lora: bool) -> Transformer {
        let config = ModelConfig::new(family, 3, 32, 4, 64);
        let spec = config.spec(50);
        let mut values = start::random_parameters(&spec, 3);
        let lora = LoraSpec {
            size: LoraSize {
                rank: 2,
                alpha: 4.0,
                rslora: false,
            },
            dropout: 0.0,
        };
        if with_lora {
            let entries = start::lora_entries(&spec, &LoraConfig::default()).unwrap();
            let mut additions = start::lora_parameters(&entries, 2, 5);
            // B starts at 0, where A has no gradient.
            for value in additions.values_mut().flatten() {
                *value += 0.01;
            }
            values.extend(additions);
        }
        let lora = with_lora.then_some(&lora);
        Transformer::new(&spec, values, lora, &Device::flex().autodiff()).unwrap()
    }

    #[test]
    fn gradients_have_the_bits_of_those_without() {
        let batch = Batch {
            tokens: (0..24).map(|i| i * 7 % 50).collect(),
            n_rows: 2,
            n_tokens: 12,
            counted: vec![0, 1, 4, 5, 6, 13, 20, 23],
            targets: vec![3, 1, 4, 1, 5, 9, 2, 6],
        };
        for (family, with_lora) in [
            (FamilyName::Gpt2, false),
            (FamilyName::Llama, false),
            (FamilyName::Gpt2, true),
            (FamilyName::Llama, true),
            (FamilyName::Qwen3, false),
        ] {
            let model = model(family, with_lora);
            let (expected_loss, expected) = loss::loss_and_gradients(&model, &batch, 0.125);
            let (loss, got) = loss_and_gradients(&model, &batch, 0.125);
            assert_eq!(loss.to_bits(), expected_loss.to_bits());
            assert_eq!(
                got.keys().collect::<Vec<_>>(),
                expected.keys().collect::<Vec<_>>()
            );
            for (name, gradient) in got {
                let bits =
                    |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect::<Vec<_>>();
                let expected = bits(to_vec(expected[&name].clone()));
                assert!(expected.iter().any(|&bits| bits != 0), "{name}");
                assert_eq!(bits(to_vec(gradient)), expected, "{family:?} {name}");
            }
        }
    }
}
