//! Writes a GGUF file tensor by tensor: the whole model is never in memory, and the file is there whole or not at all.

use crate::{
    files::{Staged, check_free_space, explain_write, refuse_existing},
    output::step_bar,
};
use anyhow::{Context, Result};
use fledgling_core::gguf::{Layout, Metadata, TensorDecl, WriteError};
use std::path::Path;

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
    check_free_space(target, layout.file_len_bytes())?;
    let bar = step_bar("tensors", tensors.len() as u64);
    let mut writer = layout
        .write_to(Staged::create(target, replace)?)
        .map_err(failed)?;
    for tensor in tensors {
        let bytes = bytes_of(tensor)?;
        writer.write_tensor(&tensor.name, &bytes).map_err(failed)?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    writer.finish().map_err(failed)?.commit()
}
