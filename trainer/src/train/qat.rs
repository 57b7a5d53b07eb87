//! Quantisation-aware training: the loss is that of the weights as the exported file will hold them.
//!
//! Before a step, every matrix that export would quantise is replaced by `dequantise(quantise(W))`, by export's own choice
//! of types and core's own quantisation; the gradients at those values are applied to W itself, as if rounding were the
//! identity (the straight-through estimator of Bengio, Léonard and Courville). What is kept and saved is W.
//!
//! With a LoRA it is the merged matrix `W + scale · B A` that is quantised, since that is what export writes; it is
//! held in blocks, and no dense gradient is formed: A and B get theirs through the low-rank product.

use super::{
    frozen::{Frozen, computes_with_blocks},
    model::{Matrix, Transformer, to_vec},
};
use crate::{
    adapter::Addition,
    export::{Quant, types},
};
use anyhow::Result;
use burn::{
    module::Param,
    tensor::{Tensor, TensorData},
};
use fledgling_core::{
    quant::DType,
    spec::{ModelSpec, tensor_table},
};
use fledgling_kernels::threads::{each_part, split_mut};
use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

/// What is quantised to what.
#[derive(Debug)]
pub struct Qat {
    /// By the names of the parameters.
    types: BTreeMap<String, DType>,
    /// Matrices that are not trained: quantised once.
    still: Mutex<BTreeMap<String, Frozen>>,
}

impl Qat {
    /// Training for an export in `format`.
    ///
    /// # Errors
    /// When the model's shapes do not take it.
    pub fn new(spec: &ModelSpec, format: Quant) -> Result<Self> {
        let by_gguf = types(spec, format)?;
        let named = tensor_table(spec)
            .into_iter()
            .filter_map(|entry| Some((entry.burn, *by_gguf.get(&entry.gguf)?)));
        Ok(Self {
            types: named.filter(|(_, dtype)| *dtype != DType::F32).collect(),
            still: Mutex::default(),
        })
    }

    /// The model with its matrices as an export would hold them. Gradients of its parameters are gradients of `model`'s.
    pub fn view(&self, model: &Transformer) -> Transformer {
        let mut view = model.clone();
        for (name, matrix) in view.matrices_mut() {
            if let Some(dtype) = self.types.get(&name) {
                self.quantize(&name, matrix, *dtype);
            }
        }
        view
    }

    fn quantize(&self, name: &str, matrix: Matrix<'_>, dtype: DType) {
        let shape = match (&*matrix.weight, &*matrix.frozen) {
            (Some(weight), _) => weight.val().dims(),
            (None, Some(frozen)) => frozen.shape(),
            (None, None) => return,
        };
        let is_trained = matrix
            .weight
            .as_ref()
            .is_some_and(|weight| weight.val().is_require_grad());
        if is_trained {
            if let Some(weight) = matrix.weight {
                *weight = rounded(weight, dtype, shape);
            }
            return;
        }
        let values = || match (&*matrix.weight, &*matrix.frozen) {
            (_, Some(frozen)) => frozen.values(),
            (Some(weight), None) => to_vec(weight.val().inner()),
            (None, None) => Vec::new(),
        };
        let quantized = match matrix.lora {
            Some(lora) => {
                lora.set_merged();
                let mut merged = values();
                merge(&mut merged, &lora.addition(), shape[1]);
                Frozen::quantize(dtype, &merged, shape)
            }
            None => {
                let mut still = self.still.lock().unwrap_or_else(PoisonError::into_inner);
                still
                    .entry(name.to_owned())
                    .or_insert_with(|| Frozen::quantize(dtype, &values(), shape))
                    .clone()
            }
        };
        let device = matrix.weight.as_ref().map(|weight| weight.val().device());
        (*matrix.weight, *matrix.frozen) = match device {
            Some(device) if !computes_with_blocks(&device) => {
                let data = TensorData::new(quantized.values(), shape);
                let tensor = Tensor::<2>::from_data(data, &device);
                let param = Param::from_tensor(tensor.set_require_grad(false));
                (Some(param.set_require_grad(false)), None)
            }
            _ => (None, Some(quantized)),
        };
    }
}

/// The same bits as export's merge, by all threads.
fn merge(values: &mut [f32], addition: &Addition, n_in: usize) {
    const ROWS: usize = 64;
    each_part(split_mut(values, ROWS * n_in), |chunk, rows| {
        addition.add_to(rows, chunk * ROWS, 1.0);
    });
}

/// A trained matrix with the values of its quantisation.
fn rounded(weight: &Param<Tensor<2>>, dtype: DType, shape: [usize; 2]) -> Param<Tensor<2>> {
    let value = weight.val();
    let quantized = Frozen::quantize(dtype, &to_vec(value.clone().inner()), shape);
    let data = TensorData::new(quantized.values(), shape);
    let tensor = Tensor::<2>::from_data(data, &value.device());
    Param::from_tensor(tensor.set_require_grad(true)).set_require_grad(true)
}
