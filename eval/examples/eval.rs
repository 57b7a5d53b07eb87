//! A task or a text from the command line, without the command:
//! `cargo run --release -p fledgling-eval --example eval -- MODEL.gguf task arc_easy rows.jsonl [key=value]...`
//! `… MODEL.gguf text wiki.txt 512 512 20`
//! `… MODEL.gguf report REFERENCE.gguf wiki.txt 512 20 [TASK ROWS]… > report.html`

use anyhow::{Context, Result, bail};
use fledgling_core::{
    cpu::{CpuEngine, CpuOptions},
    generate::GenerateParams,
    gguf::Gguf,
    model::ModelInfo,
};
use fledgling_data::control::Quiet;
use fledgling_eval::{
    engine::Engine,
    perplexity::{self, Pieces, Windows},
    quality::{self, Setting},
    reference,
    report::{ModelReport, Report},
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
            engine: Engine::Cpu(&self.engine),
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
        [model, "report", reference, file, window, most, tasks @ ..] => {
            let report = report(
                model,
                reference,
                file,
                window.parse()?,
                most.parse()?,
                tasks,
            )?;
            println!("{}", report.to_html()?);
            eprintln!("{}", report.to_text());
        }
        _ => bail!("give MODEL.gguf and task, text or report; see the head of this example"),
    }
    Ok(())
}

/// Both models beside each other, in all that is measured.
fn report(
    model: &str,
    reference: &str,
    file: &str,
    window: usize,
    most: usize,
    tasks: &[&str],
) -> Result<Report> {
    let opened = [Opened::new(reference)?, Opened::new(model)?];
    let text = std::fs::read_to_string(file)?;
    let stride = window;
    let cut = Windows { window, stride };
    let setting = Setting {
        prompts: quality::CHAT_PROMPTS.map(str::to_owned).to_vec(),
        chat: true,
        params: GenerateParams {
            max_tokens: Some(80),
            ..GenerateParams::default()
        },
    };
    let mut report = Report::default();
    let [one, two] = &opened;
    let pieces = Pieces::of_text(&one.info, &text, cut, most)?;
    let mut compared = reference::compare(&one.model(), &[two.model()], &pieces, &Quiet)?;
    for opened in &opened {
        let model = opened.model();
        let mut row = ModelReport {
            model: opened
                .name
                .rsplit('/')
                .next()
                .unwrap_or_default()
                .to_owned(),
            perplexity: Some(perplexity::measure(&model, &pieces, &Quiet)?),
            quality: Some(quality::write_all(&model, &setting, &Quiet)?),
            ..ModelReport::default()
        };
        for pair in tasks.chunks_exact(2) {
            let task = TaskConfig::open(pair[0], &["limit=100".to_owned()])?;
            let items = Items::read(&task, &[PathBuf::from(pair[1])])?;
            row.tasks.push(task::run(&model, &task, &items, &Quiet)?);
        }
        report.models.push(row);
    }
    report.models[1].comparison = compared.pop();
    report.setting = vec![
        ("text".to_owned(), file.to_owned()),
        ("window".to_owned(), format!("{window} tokens, disjoint")),
    ];
    Ok(report)
}
