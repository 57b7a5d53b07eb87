//! The files of an export: one or several, with what they say of themselves, whole or not at all.

use crate::{
    files::{folder_of, human_bytes, refuse_existing},
    generate::positive,
    gguf_file::StagedModel,
    model::{self, EngineArgs, Model},
    output::{UsageError, note},
    recorded::{Evaluation, Probe, Text},
    sums::sha256_hex,
    verify,
};
use anyhow::{Context, Result};
use fledgling_core::{
    cpu::CpuEngine,
    gguf::{
        Gguf, Layout, Metadata, TensorDecl,
        split::{self, PartName},
    },
};
use fledgling_eval::{engine::Engine, score};
use std::path::{Path, PathBuf};

/// What can be asked of the files.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct FileArgs {
    /// Write several files of at most this size, 40MB for example, as llama.cpp names them: OUT-00001-of-00003.gguf
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub max_shard_size: Option<u64>,
    /// Measure perplexity, and KL divergence from the unquantised model, on this text, and record both in the file for `fledgling verify --text`
    #[arg(long, value_name = "FILE")]
    pub evaluate: Option<PathBuf>,
    /// Tokens of that text to take, from its beginning
    #[arg(long, value_name = "N", default_value_t = 8192, requires = "evaluate", value_parser = positive)]
    pub evaluate_tokens: usize,
}

impl FileArgs {
    /// Whether something was asked for that only GGUF has.
    pub fn is_any(&self) -> bool {
        self.max_shard_size.is_some() || self.evaluate.is_some()
    }
}

/// `40MB`, `1.5GB`, `500k`, `40MiB`, or bytes.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let end = text
        .find(|c: char| c.is_ascii_alphabetic())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let unit = unit.to_ascii_lowercase();
    let factor = match unit.strip_suffix('b').unwrap_or(&unit) {
        "" => 1.0,
        "k" => 1e3,
        "m" => 1e6,
        "g" => 1e9,
        "ki" => 1024.0,
        "mi" => 1_048_576.0,
        "gi" => 1_073_741_824.0,
        _ => f64::NAN,
    };
    let n_bytes = number
        .trim()
        .parse::<f64>()
        .map_or(f64::NAN, |n| n * factor);
    if (1.0..1e18).contains(&n_bytes) {
        return Ok(n_bytes as u64);
    }
    Err("give a size such as 40MB, 1.5GB or 38MiB".to_owned())
}

/// Where an export goes.
#[derive(Debug)]
pub struct Target<'a> {
    output: &'a Path,
    args: &'a FileArgs,
    /// Whether the sums are written beside.
    manifest: bool,
    replace: bool,
    /// Parts of an older model of the same name.
    old: Vec<PathBuf>,
    text: Option<Text>,
}

/// What was written.
#[derive(Debug)]
pub struct Written {
    /// The file, or the first part, which stands for all of them on every command line.
    pub path: PathBuf,
    /// All files.
    pub files: Vec<PathBuf>,
    /// Their bytes together.
    pub len_bytes: u64,
    /// How the model does on the text that was given.
    pub evaluation: Option<Evaluation>,
}

impl<'a> Target<'a> {
    /// Looks at the place, and reads the text, before anything takes long.
    ///
    /// # Errors
    /// When something is there already and `replace` is not set, or the text cannot be read.
    pub fn new(
        output: &'a Path,
        args: &'a FileArgs,
        manifest: bool,
        replace: bool,
    ) -> Result<Self> {
        if manifest {
            refuse_existing(&verify::manifest_of(output), replace)?;
        }
        let mut old = Vec::new();
        if args.max_shard_size.is_some() {
            old = parts_at(output)?;
            if let Some(part) = old.first() {
                refuse_existing(part, replace)?;
            }
        } else {
            refuse_existing(output, replace)?;
        }
        let text = args.evaluate.as_deref().map(Text::read).transpose()?;
        Ok(Self {
            output,
            args,
            manifest,
            replace,
            old,
            text,
        })
    }

    /// Writes the model with these tensors; `bytes_of` gives the bytes of each in turn, `parent` is what it was made of.
    ///
    /// The tensors are written first, then what the file is to say of itself is measured with them, and takes the place that was
    /// left for it in the header.
    ///
    /// # Errors
    /// Those of the disk, of `bytes_of`, and of running the model.
    pub fn write(
        &self,
        mut metadata: Metadata,
        tensors: &[TensorDecl],
        parent: &Model,
        bytes_of: impl FnMut(&TensorDecl) -> Result<Vec<u8>>,
    ) -> Result<Written> {
        let (mut probe, mut evaluation) = self.plan(&mut metadata, parent)?;
        let layouts = self.layouts(metadata, tensors)?;
        let len_bytes = layouts
            .iter()
            .map(|(_, layout)| layout.file_len_bytes())
            .sum();
        let files: Vec<_> = layouts.iter().map(|(path, _)| path.clone()).collect();
        let mut staged = StagedModel::write(layouts, self.replace, tensors, bytes_of)?;
        let measured = self.measure(&staged.map()?, parent, &mut probe, evaluation.as_mut());
        staged.set_values(measured.context("the exported model cannot be run")?)?;
        staged.commit(&self.old)?;
        if self.manifest {
            verify::write_manifest(&verify::manifest_of(self.output), &files)?;
        }
        Ok(Written {
            path: files.first().cloned().unwrap_or_default(),
            files,
            len_bytes,
            evaluation,
        })
    }

    /// Bytes of all files with these tensors.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn len_bytes(
        &self,
        mut metadata: Metadata,
        tensors: &[TensorDecl],
        parent: &Model,
    ) -> Result<u64> {
        self.plan(&mut metadata, parent)?;
        let layouts = self.layouts(metadata, tensors)?;
        Ok(layouts
            .iter()
            .map(|(_, layout)| layout.file_len_bytes())
            .sum())
    }

    /// Leaves place for what will be measured.
    fn plan(&self, metadata: &mut Metadata, parent: &Model) -> Result<(Probe, Option<Evaluation>)> {
        let probe = Probe::plan(&parent.info);
        metadata.extend(probe.to_metadata());
        let Some(text) = &self.text else {
            return Ok((probe, None));
        };
        let types = crate::export::types_in(parent.gguf.header());
        let planned = Evaluation::plan(text, parent, &types, self.args.evaluate_tokens)?;
        metadata.extend(planned.to_metadata());
        Ok((probe, Some(planned)))
    }

    /// The files to be written.
    fn layouts(
        &self,
        metadata: Metadata,
        tensors: &[TensorDecl],
    ) -> Result<Vec<(PathBuf, Layout)>> {
        let place = || self.output.display().to_string();
        let Some(max_bytes) = self.args.max_shard_size else {
            let layout = Layout::new(metadata, tensors.iter().cloned()).with_context(place)?;
            return Ok(vec![(self.output.to_owned(), layout)]);
        };
        // What tells these parts from those of another export: all that the header says.
        let whole = Layout::new(metadata.clone(), tensors.iter().cloned()).with_context(place)?;
        let id = &sha256_hex(whole.header_bytes())[..16];
        let layouts = split::split(&metadata, tensors, max_bytes, id).with_context(place)?;
        let count = layouts.len() as u32;
        let name = PartName {
            prefix: prefix_of(self.output),
            no: 1,
            count,
        };
        if count == 1 {
            refuse_existing(self.output, self.replace)?;
        }
        let path_of = |no: u32| match count {
            1 => self.output.to_owned(),
            _ => folder_of(self.output).join(name.file_name(no)),
        };
        for layout in &layouts {
            note_too_large(layout, max_bytes);
        }
        Ok((1..).map(path_of).zip(layouts).collect())
    }

    /// What the file is to say of itself.
    fn measure(
        &self,
        gguf: &Gguf,
        parent: &Model,
        probe: &mut Probe,
        evaluation: Option<&mut Evaluation>,
    ) -> Result<Metadata> {
        let info = model::read_info(gguf, self.output)?;
        let engine_args = EngineArgs::default();
        let engine = CpuEngine::new(gguf, &engine_args.options())?;
        probe.fill(&engine)?;
        let mut values = probe.to_metadata();
        if let (Some(evaluation), Some(text)) = (evaluation, &self.text) {
            let parent_engine = engine_args.load(parent)?;
            let model = score::Model {
                name: "the exported model",
                info: &info,
                engine: Engine::Cpu(&engine),
            };
            let parent = score::Model {
                name: &parent.name,
                info: &parent.info,
                engine: Engine::Cpu(&parent_engine),
            };
            evaluation.fill(text, model, parent)?;
            values.extend(evaluation.to_metadata());
        }
        Ok(values)
    }
}

/// `mine` of `mine.gguf`.
fn prefix_of(output: &Path) -> String {
    let name = output.file_name().unwrap_or_default().to_string_lossy();
    name.strip_suffix(".gguf").unwrap_or(&name).to_owned()
}

/// Parts of models of the same name.
fn parts_at(output: &Path) -> Result<Vec<PathBuf>> {
    let prefix = prefix_of(output);
    if PartName::parse(&format!("{prefix}.gguf")).is_some() {
        return Err(UsageError(format!(
            "-o {}: give the name without the numbers of the parts",
            output.display()
        ))
        .into());
    }
    let entries = std::fs::read_dir(folder_of(output))
        .into_iter()
        .flatten()
        .flatten();
    let mut found: Vec<_> = entries
        .filter(|entry| {
            let name = entry.file_name().to_str().and_then(PartName::parse);
            name.is_some_and(|name| name.prefix == prefix)
        })
        .map(|entry| folder_of(output).join(entry.file_name()))
        .collect();
    found.sort();
    Ok(found)
}

/// As gguf-split has it, a tensor that is larger than a file may be has one of its own; metadata likewise.
fn note_too_large(layout: &Layout, max_bytes: u64) {
    let len_bytes = layout.file_len_bytes();
    if len_bytes <= max_bytes {
        return;
    }
    let what = match &layout.header().tensors[..] {
        [] => "the metadata (tokenizer and all)".to_owned(),
        [info, ..] => format!("the tensor `{}`", info.name),
    };
    note(format!(
        "--max-shard-size {}: {what} alone makes a file of {}",
        human_bytes(max_bytes),
        human_bytes(len_bytes)
    ));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        for (text, n_bytes) in [
            ("40MB", 40_000_000),
            ("40m", 40_000_000),
            ("1.5GB", 1_500_000_000),
            ("38 MiB", 38 << 20),
            ("500kB", 500_000),
            ("2Ki", 2048),
            ("12345", 12_345),
        ] {
            assert_eq!(parse_size(text), Ok(n_bytes), "{text}");
        }
        for text in [
            "", "MB", "0", "-1MB", "40XB", "40MBs", "inf", "NaN", "1e30", "4 0MB",
        ] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_prefix_is_the_name_without_its_ending() {
        assert_eq!(prefix_of(Path::new("a/mine.gguf")), "mine");
        assert_eq!(prefix_of(Path::new("a/mine")), "mine");
        assert!(parts_at(Path::new("a-00001-of-00002.gguf")).is_err());
    }
}
