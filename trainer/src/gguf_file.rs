//! Writes a GGUF file tensor by tensor: the whole model is never in memory, and the file is there whole or not at all.

use crate::{
    files::{Staged, check_free_space, explain_write, refuse_existing},
    output::step_bar,
};
use anyhow::{Context, Result};
use fledgling_core::{
    gguf::{Layout, Metadata, TensorDecl, WriteError},
    quant::DType,
    spec::{ModelSpec, ROPE_FREQS, TensorEntry, tensor_table},
};
use std::path::Path;

/// Writes a whole model: every tensor of its table, and the frequency divisors where it has them.
///
/// # Errors
/// As [`write`].
pub fn write_model(
    target: &Path,
    replace: bool,
    spec: &ModelSpec,
    metadata: Metadata,
    dtype_of: impl Fn(&TensorEntry) -> Result<DType>,
    bytes_of: impl Fn(&TensorEntry, DType) -> Result<Vec<u8>>,
) -> Result<()> {
    let table = tensor_table(spec);
    let mut decls = Vec::with_capacity(table.len() + 1);
    for entry in &table {
        decls.push(TensorDecl {
            name: entry.gguf.clone(),
            dtype: dtype_of(entry)?,
            shape: entry.shape.clone(),
        });
    }
    let rope_freqs = spec.rope_freqs_tensor().unwrap_or_default();
    if !rope_freqs.is_empty() {
        decls.push(TensorDecl {
            name: ROPE_FREQS.to_owned(),
            dtype: DType::F32,
            shape: vec![rope_freqs.len()],
        });
    }
    let mut entries = table.iter();
    // The table's tensors come first and in its order; the divisors are what is left.
    write(target, replace, metadata, &decls, |decl| {
        match entries.next() {
            Some(entry) => bytes_of(entry, decl.dtype),
            None => Ok(rope_freqs
                .iter()
                .flat_map(|factor| factor.to_le_bytes())
                .collect()),
        }
    })
}

/// Writes `target`; `bytes_of` gives each tensor's bytes in turn.
///
/// # Errors
/// When the disk is too small or full, `target` is there and `replace` is not set, or `bytes_of` fails.
pub fn write(
    target: &Path,
    replace: bool,
    metadata: Metadata,
    tensors: &[TensorDecl],
    mut bytes_of: impl FnMut(&TensorDecl) -> Result<Vec<u8>>,
) -> Result<()> {
    let failed = |error: WriteError| match error {
        WriteError::Io(error) => explain_write(error, target),
        other => anyhow::Error::new(other).context(target.display().to_string()),
    };
    refuse_existing(target, replace)?;
    let layout = Layout::new(metadata, tensors.iter().cloned())
        .with_context(|| target.display().to_string())?;
    let staged = Staged::create(target, replace)?;
    check_free_space(target, layout.file_len_bytes())?;
    let bar = step_bar("tensors", tensors.len() as u64);
    let mut writer = layout.write_to(staged).map_err(failed)?;
    for tensor in tensors {
        let bytes = bytes_of(tensor)?;
        writer.write_tensor(&tensor.name, &bytes).map_err(failed)?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    writer.finish().map_err(failed)?.commit()
}
