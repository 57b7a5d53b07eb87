//! `fledgling eval --device`: logits by Burn, with the model and the devices of training.

use super::{
    config::{Dtype, LoraBase},
    device::{self, Choice, Chosen},
    loss::logits_by_chunk,
    model::{Batch, Transformer, to_vec},
    start,
};
use crate::model::Model;
use anyhow::Result;
use burn::module::Module;
use fledgling_eval::engine::{Take, Text, WholeTexts};

/// Positions of a batch, padding included, where its texts are not longer by themselves.
const BATCH_POSITIONS: usize = 4096;

/// A model on a device of Burn's.
#[derive(Debug)]
pub struct BurnEngine {
    model: Transformer,
    chosen: Chosen,
}

impl BurnEngine {
    /// Puts the weights of a model on a device. On a CPU matrices stay in the blocks of their file.
    ///
    /// # Errors
    /// When the device is not there or fails its self-test, the model does not fit it, or its file lacks a tensor.
    pub fn open(model: &Model, choice: Choice) -> Result<Self> {
        let chosen = device::choose(choice, Dtype::F32, false)?;
        let spec = &model.info.spec;
        chosen.check_sizes(spec, 1, BATCH_POSITIONS.max(spec.n_ctx))?;
        // Modules are built for training; `valid` is what computes without gradients.
        let device = chosen.device.clone().autodiff();
        let model = device::guard(&chosen.device, || {
            let (values, frozen) = start::frozen_base(&model.gguf, spec, LoraBase::File, &device)?;
            Transformer::with_frozen(spec, values, frozen, None, &device)
        })?;
        let model = model.valid();
        Ok(Self { model, chosen })
    }

    /// Where it computes, in words.
    pub fn place(&self) -> &str {
        &self.chosen.name
    }
}

impl WholeTexts for BurnEngine {
    fn logits(&self, texts: &[Text<'_>], take: &mut Take<'_>) -> Result<()> {
        device::guard(&self.chosen.device, || {
            for batch in batches(texts) {
                let rows = batch
                    .iter()
                    .map(|&i| (texts[i].tokens, texts[i].wanted_from));
                let places = batch.iter().flat_map(|&i| {
                    let wanted = texts[i].wanted_from..texts[i].tokens.len();
                    wanted.map(move |t| (i, t))
                });
                let places: Vec<_> = places.collect();
                let batch = Batch::of_texts(&rows.collect::<Vec<_>>());
                logits_by_chunk(&self.model, &batch, |rows, logits| {
                    take(&places[rows], &to_vec(logits));
                });
            }
            Ok(())
        })
    }

    fn vocab_size(&self) -> usize {
        self.model.spec().vocab_size
    }
}

/// Texts of like length together; those of which nothing is wanted are left out.
fn batches(texts: &[Text<'_>]) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..texts.len())
        .filter(|&i| texts[i].wanted_from < texts[i].tokens.len())
        .collect();
    order.sort_by_key(|&i| texts[i].tokens.len());
    let mut batches: Vec<Vec<usize>> = Vec::new();
    for i in order {
        // Rows are as long as the last one.
        match batches.last_mut() {
            Some(batch) if (batch.len() + 1) * texts[i].tokens.len() <= BATCH_POSITIONS => {
                batch.push(i);
            }
            _ => batches.push(vec![i]),
        }
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_are_of_like_length_and_bounded() {
        let tokens = vec![1; 5000];
        let lens = [3000, 10, 5000, 20, 4000, 2, 4];
        let texts: Vec<_> = lens
            .iter()
            .map(|&n| Text {
                tokens: &tokens[..n],
                wanted_from: usize::from(n == 2) * 2,
            })
            .collect();
        assert_eq!(batches(&texts), [vec![6, 1, 3], vec![0], vec![4], vec![2]]);
        let rows = [6, 1].map(|i| (texts[i].tokens, 2));
        let batch = Batch::of_texts(&rows);
        assert_eq!((batch.n_rows, batch.n_tokens), (2, 10));
        assert_eq!(batch.tokens[..12], [1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 1, 1]);
        assert_eq!(batch.counted[..4], [2, 3, 12, 13]);
    }
}
