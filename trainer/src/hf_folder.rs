//! A model as a folder that `transformers` loads: `config.json`, safetensors, and the tokenizer with the chat template.

use crate::{
    files::{Staged, check_free_space, explain_write, write_whole},
    interrupt::Unfinished,
    model::Model,
    output::step_bar,
};
use anyhow::{Result, bail, ensure};
use fledgling_core::{
    quant::{self, DType},
    spec::{TensorEntry, tensor_table},
};
use serde_json::{Map, Value, json};
use std::{fs, io::Write, path::Path};

/// Where transformers begins another file.
pub const MAX_SHARD_BYTES: u64 = 5_000_000_000;

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// Names in the folder.
    pub files: Vec<String>,
    /// Bytes of the weights.
    pub len_bytes: u64,
}

/// The element type that keeps what a model has: that of its matrices, or f32 where they are quantised or differ.
pub fn natural_dtype(model: &Model) -> DType {
    let header = model.gguf.header();
    let mut types = tensor_table(&model.info.spec)
        .into_iter()
        .filter(|entry| entry.quantizable)
        .filter_map(|entry| header.tensor(&entry.gguf).map(|info| info.dtype));
    match types.next() {
        Some(dtype) if !dtype.is_quantized() && types.all(|other| other == dtype) => dtype,
        _ => DType::F32,
    }
}

/// Writes `model` to `folder` in files of at most `max_shard_bytes`, but that each holds a tensor.
///
/// The folder is made beside its place and moved there whole. With `replace`, files of a model that is there already are
/// replaced, and all else stays.
///
/// # Errors
/// When the folder is there and not empty and `replace` is not set, a value does not fit the type, or the disk is full.
pub fn write(
    model: &Model,
    folder: &Path,
    dtype: DType,
    max_shard_bytes: u64,
    replace: bool,
) -> Result<Written> {
    ensure!(
        !dtype.is_quantized(),
        "safetensors hold f32, f16 or bf16, not {}",
        dtype.name()
    );
    refuse_filled(folder, replace)?;
    let shards = plan(model, dtype, max_shard_bytes);
    let len_bytes = shards.iter().flatten().map(|tensor| tensor.len_bytes).sum();
    let parent = match folder.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    fs::create_dir_all(parent).map_err(|error| explain_write(error, parent))?;
    check_free_space(folder, len_bytes)?;
    let staged = tempfile::Builder::new()
        .prefix(".fledgling-")
        .tempdir_in(parent)
        .map_err(|error| explain_write(error, parent))?;
    let _unfinished = Unfinished::new(staged.path());
    let mut files = write_weights(model, staged.path(), dtype, &shards)?;
    for (name, text) in texts(model, dtype)? {
        write_whole(&staged.path().join(name), text.as_bytes())?;
        files.push(name.to_owned());
    }
    move_into(staged.path(), folder, &files)?;
    Ok(Written { files, len_bytes })
}

fn refuse_filled(folder: &Path, replace: bool) -> Result<()> {
    match fs::read_dir(folder) {
        Ok(mut entries) => ensure!(
            replace || entries.next().is_none(),
            "{} is there already: choose another place, or replace the model in it with --force",
            folder.display()
        ),
        Err(_) if folder.exists() => bail!(
            "{} is there and is no folder: choose another place",
            folder.display()
        ),
        Err(_) => {}
    }
    Ok(())
}

/// Files of weights that would be taken for those of the new model.
fn is_old_weights(name: &str) -> bool {
    (name.starts_with("model") || name.starts_with("pytorch_model"))
        && [".safetensors", ".bin", ".index.json"]
            .iter()
            .any(|ending| name.ends_with(ending))
}

fn move_into(staged: &Path, folder: &Path, files: &[String]) -> Result<()> {
    let failed = |error| explain_write(error, folder);
    fs::create_dir_all(folder).map_err(failed)?;
    for entry in fs::read_dir(folder).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let name = name.to_string_lossy();
        if is_old_weights(&name) && !files.iter().any(|file| *file == name) {
            fs::remove_file(folder.join(&*name)).map_err(failed)?;
        }
    }
    for file in files {
        fs::rename(staged.join(file), folder.join(file)).map_err(failed)?;
    }
    Ok(())
}

/// A tensor of a file.
#[derive(Debug)]
struct Planned {
    entry: TensorEntry,
    len_bytes: u64,
}

/// The tensors of each file, in the table's order.
fn plan(model: &Model, dtype: DType, max_shard_bytes: u64) -> Vec<Vec<Planned>> {
    let mut shards: Vec<Vec<Planned>> = Vec::new();
    let mut filled = 0;
    for entry in tensor_table(&model.info.spec) {
        let n_values: usize = entry.shape.iter().product();
        let len_bytes = (n_values * dtype.block_bytes()) as u64;
        let planned = Planned { entry, len_bytes };
        match shards.last_mut() {
            Some(shard) if filled + len_bytes <= max_shard_bytes => shard.push(planned),
            _ => {
                filled = 0;
                shards.push(vec![planned]);
            }
        }
        filled += len_bytes;
    }
    shards
}

fn write_weights(
    model: &Model,
    folder: &Path,
    dtype: DType,
    shards: &[Vec<Planned>],
) -> Result<Vec<String>> {
    let n_shards = shards.len();
    let bar = step_bar("tensors", shards.iter().flatten().count() as u64);
    let (mut files, mut weight_map) = (Vec::new(), Map::new());
    for (i, shard) in shards.iter().enumerate() {
        let file = if n_shards == 1 {
            "model.safetensors".to_owned()
        } else {
            format!("model-{:05}-of-{n_shards:05}.safetensors", i + 1)
        };
        write_shard(model, &folder.join(&file), dtype, shard, || bar.inc(1))?;
        for tensor in shard {
            weight_map.insert(tensor.entry.hf.clone(), file.clone().into());
        }
        files.push(file);
    }
    bar.finish_and_clear();
    if n_shards > 1 {
        let total: u64 = shards.iter().flatten().map(|tensor| tensor.len_bytes).sum();
        let index = json!({ "metadata": { "total_size": total }, "weight_map": weight_map });
        let name = "model.safetensors.index.json".to_owned();
        write_whole(&folder.join(&name), pretty(&index)?.as_bytes())?;
        files.push(name);
    }
    Ok(files)
}

/// Writes one file tensor by tensor: the length of the header, the header, the values.
fn write_shard(
    model: &Model,
    path: &Path,
    dtype: DType,
    shard: &[Planned],
    done: impl Fn(),
) -> Result<()> {
    let type_name = match dtype {
        DType::F16 => "F16",
        DType::BF16 => "BF16",
        _ => "F32",
    };
    let mut header = Map::new();
    header.insert("__metadata__".to_owned(), json!({ "format": "pt" }));
    let mut offset = 0;
    for tensor in shard {
        let end = offset + tensor.len_bytes;
        let place = json!({ "dtype": type_name, "shape": tensor.entry.hf_shape(), "data_offsets": [offset, end] });
        header.insert(tensor.entry.hf.clone(), place);
        offset = end;
    }
    let mut header = serde_json::to_vec(&header)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    let failed = |error| explain_write(error, path);
    let mut staged = Staged::create(path, false)?;
    staged
        .write_all(&(header.len() as u64).to_le_bytes())
        .map_err(failed)?;
    staged.write_all(&header).map_err(failed)?;
    for tensor in shard {
        let bytes = bytes_of(model, &tensor.entry, dtype)?;
        staged.write_all(&bytes).map_err(failed)?;
        done();
    }
    staged.commit()
}

fn bytes_of(model: &Model, entry: &TensorEntry, dtype: DType) -> Result<Vec<u8>> {
    let values = model.gguf.tensor_f32(&entry.gguf)?;
    crate::export::check_values(&entry.gguf, &values, dtype)?;
    let mut bytes = Vec::new();
    quant::quantize(dtype, &entry.to_hf_layout(values), &mut bytes);
    Ok(bytes)
}

/// The files beside the weights; `config.json` comes last, because a folder without it is no model.
fn texts(model: &Model, dtype: DType) -> Result<Vec<(&'static str, String)>> {
    let tokenizer = &model.info.tokenizer;
    let ids = [
        ("bos_token_id", tokenizer.bos()),
        ("eos_token_id", tokenizer.eos()),
    ];
    let with_ids = |mut object: Value| {
        for (key, id) in ids {
            if let Some(id) = id {
                object[key] = id.into();
            }
        }
        object
    };
    let mut config = with_ids(model.info.spec.to_hf_config());
    let dtype = match dtype {
        DType::F16 => "float16",
        DType::BF16 => "bfloat16",
        _ => "float32",
    };
    // The second is what transformers before 4.56 reads.
    config["dtype"] = dtype.into();
    config["torch_dtype"] = dtype.into();
    Ok(vec![
        ("tokenizer.json", tokenizer.to_hf_json()),
        ("tokenizer_config.json", pretty(&tokenizer_config(model))?),
        ("generation_config.json", pretty(&with_ids(json!({})))?),
        ("config.json", pretty(&config)?),
    ])
}

fn tokenizer_config(model: &Model) -> Value {
    let tokenizer = &model.info.tokenizer;
    let mut config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": model.info.spec.n_ctx,
        "clean_up_tokenization_spaces": false,
    });
    for (key, id) in [
        ("bos_token", tokenizer.bos()),
        ("eos_token", tokenizer.eos()),
    ] {
        if let Some(text) = id.and_then(|id| tokenizer.token_text(id)) {
            config[key] = text.into();
        }
    }
    let template = model.gguf.header().metadata.str("tokenizer.chat_template");
    if let Some(template) = template {
        config["chat_template"] = template.into();
    }
    config
}

fn pretty(value: &Value) -> Result<String> {
    Ok(serde_json::to_string_pretty(value)? + "\n")
}
