//! `fledgling tokenize`: the ids of a text, as the model reads it.

use crate::{
    model,
    output::{UsageError, print, print_json},
};
use anyhow::{Context, Result};
use fledgling_core::tokenizer::Tokenizer;
use serde_json::json;
use std::{
    io::{IsTerminal, Read},
    path::PathBuf,
};

/// Show the token ids of a text
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  fledgling tokenize smollm2-135m-instruct --text \"Hello world\"\n  fledgling tokenize model.gguf --file notes.txt --json"
)]
pub struct Args {
    /// A GGUF file, a pulled model's name, or a run's folder
    model: String,
    /// The text
    #[arg(long, conflicts_with = "file")]
    text: Option<String>,
    /// Read the text from a file (default: standard input)
    #[arg(long)]
    file: Option<PathBuf>,
    /// Read special tokens such as `<|im_start|>` in the text as themselves, not as their letters
    #[arg(long)]
    parse_special: bool,
    /// Begin with the begin-of-sequence token
    #[arg(long)]
    add_bos: bool,
    /// Print `{"token_ids":[…]}`
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// When the text cannot be read, or the model has no tokenizer that we run.
pub fn run(args: &Args) -> Result<()> {
    // Only the header is needed: also a model whose engine we lack can be asked for its ids.
    let path = model::locate(&args.model)?;
    let opened;
    let from_file;
    let tokenizer = if path.is_dir() {
        opened = model::open(&args.model)?;
        opened.info.tokenizer.as_ref()
    } else {
        let header = model::read_header(&path)?;
        from_file = Tokenizer::from_metadata(&header.metadata)
            .with_context(|| path.display().to_string())?;
        &from_file
    };
    let text = read_text(args)?;
    let ids = tokenizer.encode(&text, args.add_bos, args.parse_special);
    if args.json {
        return print_json(&json!({"token_ids": ids}));
    }
    let mut lines = String::new();
    for id in &ids {
        lines.push_str(&format!("{id:>7}  {:?}\n", piece(tokenizer, *id)));
    }
    print(&lines)
}

fn piece(tokenizer: &Tokenizer, id: u32) -> String {
    let bytes = tokenizer.token_bytes(id);
    if bytes.is_empty() {
        tokenizer.decode(&[id], false)
    } else {
        String::from_utf8_lossy(bytes).into_owned()
    }
}

fn read_text(args: &Args) -> Result<String> {
    if let Some(text) = &args.text {
        return Ok(text.clone());
    }
    if let Some(path) = &args.file {
        return std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {} (it must be UTF-8)", path.display()));
    }
    let mut stdin = std::io::stdin();
    if stdin.is_terminal() {
        return Err(UsageError(
            "no text: give --text TEXT or --file FILE, or pipe it in".to_owned(),
        )
        .into());
    }
    let mut text = String::new();
    stdin
        .read_to_string(&mut text)
        .context("standard input cannot be read (it must be UTF-8)")?;
    Ok(text)
}
