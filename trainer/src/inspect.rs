//! `fledgling inspect`: what a GGUF file says about itself, whatever model it holds.

use crate::{
    files::human_bytes,
    model,
    output::{print, print_json},
};
use anyhow::{Context, Result, bail};
use fledgling_core::gguf::{Array, Header, Value};
use serde_json::{Map, json};
use std::fmt::Write;

/// Longer arrays and texts are left out of the listing unless `--full` is given.
const MAX_ARRAY: usize = 16;
const MAX_TEXT: usize = 400;

/// Show what is in a GGUF file
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  fledgling inspect model.gguf\n  fledgling inspect smollm2-135m-instruct --json | jq .tensors[0]\n\n\
    Shapes are in GGUF's order, the fastest axis first. In --json a long array or text stands as {\"type\":…,\"len\":…} unless --full is given."
)]
pub struct Args {
    /// A GGUF file, or a pulled model's name
    file: String,
    /// Do not shorten long arrays and texts (vocabulary, merges, tokenizer)
    #[arg(long)]
    full: bool,
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// When the file is no GGUF file or a broken one.
pub fn run(args: &Args) -> Result<()> {
    let path = model::locate(&args.file)?;
    if path.is_dir() {
        bail!(
            "{} is a folder; inspect reads a GGUF file. `fledgling export {} --quant f16 -o model.gguf` makes one",
            path.display(),
            path.display()
        );
    }
    let len_bytes = std::fs::metadata(&path)
        .with_context(|| path.display().to_string())?
        .len();
    let header = model::read_header(&path)?;
    if args.json {
        print_json(&to_json(&header, len_bytes, args.full))
    } else {
        print(&to_text(&header, len_bytes, args.full)?)
    }
}

fn to_json(header: &Header, len_bytes: u64, full: bool) -> serde_json::Value {
    let tensors: Vec<_> = header
        .tensors
        .iter()
        .map(|info| json!({"name": info.name, "type": info.dtype.name(), "shape": info.shape, "offset_bytes": header.file_range(info).start, "len_bytes": info.len_bytes}))
        .collect();
    let metadata: Map<_, _> = header
        .metadata
        .iter()
        .map(|(key, value)| (key.to_owned(), value_json(value, full)))
        .collect();
    json!({"architecture": header.metadata.str("general.architecture"), "file_bytes": len_bytes, "n_parameters": n_parameters(header), "tensors": tensors, "metadata": metadata})
}

fn to_text(header: &Header, len_bytes: u64, full: bool) -> Result<String> {
    let mut text = String::new();
    let architecture = header
        .metadata
        .str("general.architecture")
        .unwrap_or("unknown");
    writeln!(
        text,
        "{architecture}, {:.1} M parameters, {} tensors, {}\n",
        n_parameters(header) as f64 / 1e6,
        header.tensors.len(),
        human_bytes(len_bytes)
    )?;
    for (key, value) in header.metadata.iter() {
        writeln!(text, "{key:44} {}", value_json(value, full))?;
    }
    writeln!(text)?;
    for info in &header.tensors {
        writeln!(
            text,
            "{:32} {:5} {:?}",
            info.name,
            info.dtype.name(),
            info.shape
        )?;
    }
    Ok(text)
}

fn n_parameters(header: &Header) -> u64 {
    header
        .tensors
        .iter()
        .map(|info| info.shape.iter().product::<u64>())
        .sum()
}

fn value_json(value: &Value, full: bool) -> serde_json::Value {
    match value {
        Value::U8(x) => json!(x),
        Value::I8(x) => json!(x),
        Value::U16(x) => json!(x),
        Value::I16(x) => json!(x),
        Value::U32(x) => json!(x),
        Value::I32(x) => json!(x),
        Value::F32(x) => json!(x),
        Value::Bool(x) => json!(x),
        Value::U64(x) => json!(x),
        Value::I64(x) => json!(x),
        Value::F64(x) => json!(x),
        Value::String(x) if !full && x.len() > MAX_TEXT => {
            json!({"type": "string", "len": x.len()})
        }
        Value::String(x) => json!(x),
        Value::Array(array) => array_json(array, full),
    }
}

fn array_json(array: &Array, full: bool) -> serde_json::Value {
    let list = |kind: &str, len: usize, items: &dyn Fn() -> serde_json::Value| {
        if full || len <= MAX_ARRAY {
            items()
        } else {
            json!({"type": format!("array of {kind}"), "len": len})
        }
    };
    match array {
        Array::U8(x) => list("u8", x.len(), &|| json!(x)),
        Array::I8(x) => list("i8", x.len(), &|| json!(x)),
        Array::U16(x) => list("u16", x.len(), &|| json!(x)),
        Array::I16(x) => list("i16", x.len(), &|| json!(x)),
        Array::U32(x) => list("u32", x.len(), &|| json!(x)),
        Array::I32(x) => list("i32", x.len(), &|| json!(x)),
        Array::F32(x) => list("f32", x.len(), &|| json!(x)),
        Array::Bool(x) => list("bool", x.len(), &|| json!(x)),
        Array::U64(x) => list("u64", x.len(), &|| json!(x)),
        Array::I64(x) => list("i64", x.len(), &|| json!(x)),
        Array::F64(x) => list("f64", x.len(), &|| json!(x)),
        Array::String(x) => list("string", x.len(), &|| x.iter().collect()),
        _ => json!({"type": "array of a newer kind"}),
    }
}
