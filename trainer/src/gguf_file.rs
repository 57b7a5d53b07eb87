//! Writes a GGUF file, or the parts of one, tensor by tensor: the whole model is never in memory, and the files are there whole
//! or not at all.

use crate::{
    files::{Staged, check_free_space, commit_all, explain_write, refuse_existing},
    output::step_bar,
};
use anyhow::{Context, Result};
use fledgling_core::{
    gguf::{Gguf, Layout, Metadata, TensorDecl, WriteError},
    quant::DType,
    spec::{ModelSpec, ROPE_FREQS, TensorEntry, tensor_table},
};
use std::{
    io::Write,
    path::{Path, PathBuf},
};

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
    bytes_of: impl FnMut(&TensorDecl) -> Result<Vec<u8>>,
) -> Result<()> {
    let place = || target.display().to_string();
    let layout = Layout::new(metadata, tensors.iter().cloned()).with_context(place)?;
    let files = vec![(target.to_owned(), layout)];
    StagedModel::write(files, replace, tensors, bytes_of)?.commit(&[])
}

/// A model whose tensors are written, and whose files have not their names yet.
#[derive(Debug)]
pub struct StagedModel {
    /// In the order of the parts, each with its header.
    files: Vec<(Staged, Layout)>,
}

impl StagedModel {
    /// Writes the files of a model beside their places; `tensors` are those of all files, and `bytes_of` gives the bytes of each
    /// in turn.
    ///
    /// # Errors
    /// As [`write`].
    pub fn write(
        files: Vec<(PathBuf, Layout)>,
        replace: bool,
        tensors: &[TensorDecl],
        mut bytes_of: impl FnMut(&TensorDecl) -> Result<Vec<u8>>,
    ) -> Result<Self> {
        let len_bytes = files
            .iter()
            .map(|(_, layout)| layout.file_len_bytes())
            .sum();
        for (target, _) in &files {
            refuse_existing(target, replace)?;
        }
        let bar = step_bar("tensors", tensors.len() as u64);
        let mut decls = tensors.iter();
        let mut done: Vec<(Staged, Layout)> = Vec::new();
        for (target, layout) in files {
            let failed = |error: WriteError| match error {
                WriteError::Io(error) => explain_write(error, &target),
                other => anyhow::Error::new(other).context(target.display().to_string()),
            };
            let staged = Staged::create(&target, replace)?;
            if done.is_empty() {
                check_free_space(&target, len_bytes)?;
            }
            let n_tensors = layout.header().tensors.len();
            let mut writer = layout.clone().write_to(staged).map_err(failed)?;
            for tensor in decls.by_ref().take(n_tensors) {
                let bytes = bytes_of(tensor)?;
                writer.write_tensor(&tensor.name, &bytes).map_err(failed)?;
                bar.inc(1);
            }
            done.push((writer.finish().map_err(failed)?, layout));
        }
        bar.finish_and_clear();
        Ok(Self { files: done })
    }

    /// Maps the model as it will be. It must be gone before [`Self::set_values`].
    ///
    /// # Errors
    /// When a file cannot be read again.
    pub fn map(&mut self) -> Result<Gguf> {
        let mut parts = Vec::new();
        for (staged, _) in &mut self.files {
            staged
                .flush()
                .map_err(|error| explain_write(error, staged.target()))?;
            parts.push(fledgling_lambda::mapped_file(staged.temporary_path())?);
        }
        Ok(Gguf::from_parts(parts)?)
    }

    /// Puts values that are known only now in the place of those of the same size.
    ///
    /// # Errors
    /// When they have another size, or the disk fails.
    pub fn set_values(&mut self, values: Metadata) -> Result<()> {
        let Some((staged, layout)) = self.files.first_mut() else {
            return Ok(());
        };
        *layout = layout.with_values(values)?;
        staged.rewrite(0, layout.header_bytes())
    }

    /// Gives the files their names, all or none; `old` are files of the model that is replaced.
    ///
    /// # Errors
    /// As [`commit_all`].
    pub fn commit(self, old: &[PathBuf]) -> Result<()> {
        let staged = self.files.into_iter().map(|(staged, _)| staged).collect();
        commit_all(staged, old)
    }
}
