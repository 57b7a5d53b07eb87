//! A task or a text from the command line, without the command:
//! `cargo run --release -p fledgling-eval --example eval -- MODEL.gguf task arc_easy rows.jsonl [key=value]...`
//! `… MODEL.gguf text wiki.txt 512 512 20`
//! `… MODEL.gguf reference REFERENCE.gguf wiki.txt 512 512 20`

use anyhow::{Context, Result, bail};
use fledgling_core::{
    cpu::{CpuEngine, CpuOptions},
    gguf::Gguf,
    model::ModelInfo,
};
use fledgling_data::control::Quiet;
use fledgling_eval::{
    perplexity::{self, Pieces, Windows},
    reference,
    score::Model,
    task::{self, Items, TaskConfig},
};
use std::{path::PathBuf, time::Instant};

struct Opened {
    name: String,
    info: ModelInfo,
    engine: CpuEngine,
}

impl Opened {
    fn new(path: &str) -> Result<Self> {
        let bytes = std::fs::read(path).with_context(|| path.to_owned())?;
        let gguf = Gguf::parse(bytes.into())?;
        let info = ModelInfo::from_header(gguf.header())?;
        let n_threads = std::thread::available_parallelism()?.get();
        let options = CpuOptions {
            n_threads,
            ..CpuOptions::default()
        };
        let engine = CpuEngine::new(&gguf, &options)?;
        let name = path.to_owned();
        Ok(Self { name, info, engine })
    }

    fn model(&self) -> Model<'_> {
        Model {
            name: &self.name,
            info: &self.info,
            engine: &self.engine,
        }
    }
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let started = Instant::now();
    match args.as_slice() {
        [model, "task", name, file, overrides @ ..] => {
            let overrides: Vec<_> = overrides.iter().map(ToString::to_string).collect();
            let task = TaskConfig::open(name, &overrides)?;
            let items = Items::read(&task, &[PathBuf::from(file)])?;
            let opened = Opened::new(model)?;
            let result = task::run(&opened.model(), &task, &items, &Quiet)?;
            println!("{}", serde_json::to_string(&result)?);
            let seconds = started.elapsed().as_secs_f64();
            eprintln!("{} questions, {seconds:.2} s", result.items);
        }
        [model, "text", file, window, stride, most] => {
            let opened = Opened::new(model)?;
            let text = std::fs::read_to_string(file)?;
            let cut = Windows {
                window: window.parse()?,
                stride: stride.parse()?,
            };
            let pieces = Pieces::of_text(&opened.info, &text, cut, most.parse()?)?;
            let started = Instant::now();
            let measured = perplexity::measure(&opened.model(), &pieces, &Quiet)?;
            println!("{}", serde_json::to_string(&measured)?);
            let rate = measured.tokens as f64 / started.elapsed().as_secs_f64();
            eprintln!("{rate:.1} tokens/s");
        }
        [model, "reference", reference, file, window, stride, most] => {
            let (one, two) = (Opened::new(reference)?, Opened::new(model)?);
            let text = std::fs::read_to_string(file)?;
            let cut = Windows {
                window: window.parse()?,
                stride: stride.parse()?,
            };
            let pieces = Pieces::of_text(&one.info, &text, cut, most.parse()?)?;
            let compared = reference::compare(&one.model(), &[two.model()], &pieces, &Quiet)?;
            println!("{}", serde_json::to_string(&compared)?);
        }
        _ => bail!("MODEL.gguf task NAME FILE… or MODEL.gguf text FILE WINDOW STRIDE MOST"),
    }
    Ok(())
}
