//! `fledgling inspect`: what a model file says about itself: GGUF, whatever model it holds and in however many files, safetensors,
//! and folders as the Hugging Face hub has them.

pub mod contents;

use crate::{
    files::human_bytes,
    memory::{self, Need},
    model,
    output::{print, print_json},
    recorded::Evaluation,
};
use anyhow::Result;
use contents::{Contents, Part, Tensor, open};
use fledgling_core::{
    gguf::{Array, Metadata, Value},
    spec::{ModelSpec, Position},
};
use serde_json::{Map, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
};

/// Longer arrays and texts are left out of the listing unless `--full` is given.
const MAX_ARRAY: usize = 16;
const MAX_TEXT: usize = 400;
/// Values of metadata take so many characters of a line; `--full` shows all.
const MAX_LINE: usize = 100;
/// Positions of the shorter conversation that memory is estimated for.
const SHORT_CTX: usize = 1024;

/// Show what is in a GGUF or safetensors file
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  fledgling inspect model.gguf\n  fledgling inspect smollm2-135m-instruct --json | jq .tensors[0]\n  fledgling inspect SmolLM2-135M/\n\n\
    FILE may also be any part of a model in several files, a .safetensors file, or a folder with config.json and model.safetensors. Shapes are in the file's order: of GGUF \
    the fastest axis first. Memory is that of one conversation, computed from the architecture. In --json a long array or text stands as \
    {\"type\":…,\"len\":…} unless --full is given."
)]
pub struct Args {
    /// A GGUF or safetensors file, a folder with one, or a pulled model's name
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
/// When there is no model file, or a broken one.
pub fn run(args: &Args) -> Result<()> {
    let path = model::locate(&args.file)?;
    let contents = open(&path)?;
    if args.json {
        print_json(&to_json(&contents, args.full))
    } else {
        print(&to_text(&contents, args.full)?)
    }
}

/// What a model takes on each device; nothing on a GPU where a type has no shaders.
struct Memory {
    cpu: Vec<Need>,
    gpu: Vec<Need>,
}

impl Memory {
    fn of(contents: &Contents, spec: &ModelSpec) -> Self {
        let lens = BTreeSet::from([SHORT_CTX.min(spec.n_ctx), spec.n_ctx]);
        // One look at each tensor, and not one for each length.
        let table: BTreeMap<_, _> = fledgling_core::spec::tensor_table(spec)
            .into_iter()
            .map(|entry| (entry.gguf.clone(), contents.dtype_of(&entry)))
            .collect();
        let dtype_of = |entry: &fledgling_core::spec::TensorEntry| table[&entry.gguf];
        let n_threads = model::all_cores();
        let cpu = |n_ctx: &usize| {
            memory::on_cpu(spec, dtype_of, *n_ctx, n_threads, contents.header_bytes)
        };
        Self {
            cpu: lens.iter().map(cpu).collect(),
            gpu: lens
                .iter()
                .filter_map(|n_ctx| memory::on_gpu(spec, dtype_of, *n_ctx))
                .collect(),
        }
    }
}

/// Tensors, values and bytes of one kind.
#[derive(Debug, Clone, Default)]
struct Sum {
    n_tensors: usize,
    n_values: u64,
    len_bytes: u64,
    types: BTreeSet<String>,
}

impl Sum {
    fn add(&mut self, tensor: &Tensor) {
        self.n_tensors += 1;
        self.n_values += tensor.shape.iter().product::<u64>();
        self.len_bytes += tensor.len_bytes;
        self.types.insert(tensor.dtype.clone());
    }
}

fn sums<K: Ord>(contents: &Contents, key: impl Fn(&Tensor) -> K) -> BTreeMap<K, Sum> {
    let mut sums = BTreeMap::<K, Sum>::new();
    for tensor in &contents.tensors {
        sums.entry(key(tensor)).or_default().add(tensor);
    }
    sums
}

fn to_json(contents: &Contents, full: bool) -> serde_json::Value {
    let tensors: Vec<_> = contents
        .tensors
        .iter()
        .map(|tensor| json!({"name": tensor.name, "type": tensor.dtype, "shape": tensor.shape, "offset_bytes": tensor.offset_bytes, "len_bytes": tensor.len_bytes}))
        .collect();
    let sum = |sum: &Sum| json!({"tensors": sum.n_tensors, "parameters": sum.n_values, "len_bytes": sum.len_bytes, "types": sum.types});
    let types: Map<_, _> = sums(contents, |tensor| tensor.dtype.clone())
        .iter()
        .map(|(dtype, of_type)| (dtype.clone(), sum(of_type)))
        .collect();
    let parts: Map<_, _> = sums(contents, |tensor| tensor.part)
        .iter()
        .map(|(part, of_part)| (part.name().replace(' ', "_"), sum(of_part)))
        .collect();
    let memory = contents.spec.as_ref().map(|spec| {
        let Memory { cpu, gpu } = Memory::of(contents, spec);
        json!({"cpu": cpu, "gpu": if gpu.is_empty() { None } else { Some(gpu) }})
    });
    json!({
        "format": contents.format,
        "architecture": contents.architecture,
        "name": contents.name,
        "files": contents.files,
        "file_bytes": contents.len_bytes,
        "n_parameters": contents.n_parameters(),
        "types": types,
        "parts": parts,
        "tokenizer": contents.tokenizer,
        "memory": memory,
        "tensors": tensors,
        "metadata": metadata_json(contents, full),
    })
}

fn metadata_json(contents: &Contents, full: bool) -> Map<String, serde_json::Value> {
    match &contents.gguf_metadata {
        Some(metadata) => metadata
            .iter()
            .map(|(key, value)| (key.to_owned(), value_json(value, full)))
            .collect(),
        None => contents.other_metadata.clone(),
    }
}

fn to_text(contents: &Contents, full: bool) -> Result<String> {
    let mut text = String::new();
    let n_files = match contents.files.len() {
        1 => String::new(),
        n => format!(" in {n} files"),
    };
    writeln!(
        text,
        "{}{}, {:.1} M parameters, {} tensors, {}{n_files} ({})",
        contents.architecture.as_deref().unwrap_or("unknown"),
        contents
            .name
            .as_ref()
            .map(|name| format!(" \"{name}\""))
            .unwrap_or_default(),
        contents.n_parameters() as f64 / 1e6,
        contents.tensors.len(),
        human_bytes(contents.len_bytes),
        contents.format,
    )?;
    if let Some(spec) = &contents.spec {
        writeln!(text, "{}", describe_spec(spec))?;
    }
    write_tokenizer(&mut text, contents)?;
    if let Some(metadata) = &contents.gguf_metadata
        && let Ok(Some(evaluation)) = Evaluation::read(metadata)
    {
        writeln!(text, "recorded: {}", evaluation.describe())?;
    }
    write_sums(
        &mut text,
        "type",
        &sums(contents, |tensor| tensor.dtype.clone()),
        contents,
    )?;
    let by_part = sums(contents, |tensor| tensor.part);
    if by_part.keys().any(|part| *part != Part::Other) {
        write_parts(&mut text, &by_part)?;
    }
    if let Some(spec) = &contents.spec {
        write_memory(&mut text, &Memory::of(contents, spec))?;
    }
    writeln!(text, "\nmetadata")?;
    for (key, value) in metadata_json(contents, full) {
        let mut value = value.to_string();
        if !full && value.chars().count() > MAX_LINE {
            value = value.chars().take(MAX_LINE).collect::<String>() + " …";
        }
        writeln!(text, "  {key:44} {value}")?;
    }
    writeln!(
        text,
        "\n{:48} {:5} {:>12}  shape",
        "tensors", "type", "bytes"
    )?;
    for tensor in &contents.tensors {
        writeln!(
            text,
            "  {:46} {:5} {:>12}  {:?}",
            tensor.name, tensor.dtype, tensor.len_bytes, tensor.shape
        )?;
    }
    Ok(text)
}

/// `30 layers, 576 wide, 9 heads (3 of keys and values) of 64, MLP 1536, context 8192, RoPE (base 100000)`
fn describe_spec(spec: &ModelSpec) -> String {
    let heads = if spec.n_kv_head == spec.n_head {
        format!("{} heads of {}", spec.n_head, spec.head_dim)
    } else {
        format!(
            "{} heads ({} of keys and values) of {}",
            spec.n_head, spec.n_kv_head, spec.head_dim
        )
    };
    let position = match &spec.position {
        Position::Rope { base, .. } => format!("RoPE (base {base})"),
        _ => "learned positions".to_owned(),
    };
    let tied = if spec.tied_embedding {
        "tied embedding"
    } else {
        "output matrix of its own"
    };
    format!(
        "{} layers, {} wide, {heads}, MLP {}, context {}, {position}, {tied}",
        spec.n_layer, spec.n_embd, spec.n_ff, spec.n_ctx
    )
}

fn write_tokenizer(text: &mut String, contents: &Contents) -> Result<()> {
    let Some(tokenizer) = &contents.tokenizer else {
        return Ok(());
    };
    let special = tokenizer.special.iter();
    let special: Vec<_> = special
        .map(|(role, token)| format!("{role} {} ({})", token.text, token.id))
        .collect();
    writeln!(
        text,
        "tokenizer: {}, {} tokens, {} of them special ({}), {}, {}{}",
        tokenizer.describe_kind(),
        tokenizer.vocab_size,
        tokenizer.n_special,
        special.join(", "),
        if tokenizer.adds_bos {
            "adds bos"
        } else {
            "adds no bos"
        },
        if tokenizer.chat_template {
            "with a chat template"
        } else {
            "without a chat template"
        },
        if tokenizer.huggingface_json {
            ", tokenizer.json inside"
        } else {
            ""
        },
    )?;
    Ok(())
}

fn write_sums(
    text: &mut String,
    title: &str,
    sums: &BTreeMap<String, Sum>,
    contents: &Contents,
) -> Result<()> {
    let all: u64 = contents.tensors.iter().map(|tensor| tensor.len_bytes).sum();
    writeln!(
        text,
        "\n{title:18} {:>7} {:>12} {:>12} {:>6} {:>12}",
        "tensors", "parameters", "bytes", "share", "bits a value"
    )?;
    for (name, sum) in sums {
        writeln!(
            text,
            "  {name:16} {:>7} {:>12} {:>12} {:>5.1}% {:>12.2}",
            sum.n_tensors,
            sum.n_values,
            sum.len_bytes,
            100.0 * sum.len_bytes as f64 / all.max(1) as f64,
            8.0 * sum.len_bytes as f64 / sum.n_values.max(1) as f64,
        )?;
    }
    Ok(())
}

fn write_parts(text: &mut String, sums: &BTreeMap<Part, Sum>) -> Result<()> {
    writeln!(
        text,
        "\n{:18} {:>7} {:>12} {:>12}  types",
        "part", "tensors", "parameters", "bytes"
    )?;
    for (part, sum) in sums {
        let types: Vec<_> = sum.types.iter().map(String::as_str).collect();
        writeln!(
            text,
            "  {:16} {:>7} {:>12} {:>12}  {}",
            part.name(),
            sum.n_tensors,
            sum.n_values,
            sum.len_bytes,
            types.join(", ")
        )?;
    }
    Ok(())
}

fn write_memory(text: &mut String, memory: &Memory) -> Result<()> {
    writeln!(
        text,
        "\n{:18} {:>9} {:>10} {:>10} {:>10} {:>10} {:>10}",
        "memory (estimate)", "positions", "weights", "keys+vals", "scratch", "program", "together"
    )?;
    let devices = [("CPU", &memory.cpu), ("GPU", &memory.gpu)];
    let rows = devices
        .iter()
        .flat_map(|(device, needs)| needs.iter().map(move |need| (device, need)));
    for (device, need) in rows {
        writeln!(
            text,
            "  {device:16} {:>9} {:>10} {:>10} {:>10} {:>10} {:>10}",
            need.n_ctx,
            human_bytes(need.weights_bytes),
            human_bytes(need.kv_bytes),
            human_bytes(need.scratch_bytes),
            human_bytes(need.program_bytes),
            human_bytes(need.total_bytes),
        )?;
    }
    if memory.gpu.is_empty() {
        writeln!(
            text,
            "  GPU              WebGPU has no shaders for a type in this file: a browser runs it on its CPU"
        )?;
    }
    Ok(())
}

/// The single values of a header, without long texts: what a shelf of models shows.
pub(crate) fn scalars_json(metadata: &Metadata) -> Map<String, serde_json::Value> {
    let is_short = |value: &Value| match value {
        Value::Array(_) => false,
        Value::String(text) => text.len() <= MAX_TEXT,
        _ => true,
    };
    let scalars = metadata.iter().filter(|(_, value)| is_short(value));
    scalars
        .map(|(key, value)| (key.to_owned(), value_json(value, true)))
        .collect()
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
