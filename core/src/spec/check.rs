//! The one place where a file's tensors are held against its spec: an engine that starts from here finds every
//! tensor with the shape and a type it expects.

use super::{ModelSpec, ROPE_FREQS, SpecError, TensorEntry, tensor_table};
use crate::gguf::{Header, TensorInfo};
use std::collections::{HashMap, HashSet};

/// Checks that the file holds every tensor of the model with the right shape and a type that the engines run,
/// and no tensor whose absence from the computation would change it.
///
/// # Errors
/// [`SpecError`] naming the tensor, what was expected, and what is there.
pub fn check_tensors(header: &Header, spec: &ModelSpec) -> Result<(), SpecError> {
    spec.validate()?;
    let by_name: HashMap<&str, &TensorInfo> = header
        .tensors
        .iter()
        .map(|info| (info.name.as_str(), info))
        .collect();
    // Each block has tensors of its own, so a layer count out of proportion to the file ends here.
    if spec.n_layer > header.tensors.len() {
        return Err(SpecError::MissingTensor(format!(
            "blk.{}.attn_norm.weight",
            spec.n_layer - 1
        )));
    }
    let table = tensor_table(spec);
    for entry in &table {
        let info = by_name.get(entry.gguf.as_str());
        let info = info.ok_or_else(|| SpecError::MissingTensor(entry.gguf.clone()))?;
        check_tensor(info, entry)?;
    }
    let known: HashSet<&str> = table.iter().map(|entry| entry.gguf.as_str()).collect();
    match header
        .tensors
        .iter()
        .find(|info| !known.contains(info.name.as_str()) && !is_ignorable(&info.name))
    {
        Some(info) => Err(SpecError::UnexpectedTensor(info.name.clone())),
        None => Ok(()),
    }
}

/// Tensors that old converters wrote and no engine reads, and the one that is read elsewhere.
fn is_ignorable(name: &str) -> bool {
    name == ROPE_FREQS
        || name.ends_with(".attn_rot_embd")
        || name.ends_with(".attention.rotary_emb.inv_freq")
}

fn check_tensor(info: &TensorInfo, entry: &TensorEntry) -> Result<(), SpecError> {
    let got: Vec<u64> = info.shape.iter().rev().copied().collect();
    if !got
        .iter()
        .copied()
        .eq(entry.shape.iter().map(|n| *n as u64))
    {
        return Err(SpecError::WrongShape {
            tensor: info.name.clone(),
            expected: entry.shape.clone(),
            got,
        });
    }
    // On 32 bits (wasm) a tensor's values as f32 must fit the address space, so that no engine's size overflows.
    let n_values = info.shape.iter().try_fold(4, |n: usize, axis| {
        n.checked_mul(usize::try_from(*axis).ok()?)
    });
    if n_values.is_none_or(|n| n > isize::MAX as usize) {
        return Err(SpecError::TooLarge(info.name.clone()));
    }
    if info.dtype.is_quantized() && !entry.quantizable {
        return Err(SpecError::WrongType {
            tensor: info.name.clone(),
            got: info.dtype,
            expected: "F32, F16 or BF16",
        });
    }
    Ok(())
}
