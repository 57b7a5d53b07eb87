//! What drafts by prompt look-up bring, in turns with decoding without, on a prompt of one's own; and what a forward pass of a few
//! tokens costs, which decides it.
//!
//! ```sh
//! cargo run --release -p fledgling-core --example speculate -- MODEL.gguf --threads 2 --max 128 --drafts 0,4,8 PROMPT.txt…
//! cargo run --release -p fledgling-core --example speculate -- MODEL.gguf --threads 2 --rows 1,2,3,4,6,8,12,16
//! ```

use fledgling_core::{
    chat::Message,
    cpu::{CpuEngine, CpuOptions, Feed},
    generate::{GenerateParams, Generation, advance, rewind_to_common},
    gguf::Gguf,
    model::ModelInfo,
    sampler::{SamplerParams, argmax},
    speculate::PromptLookup,
};
use std::{error::Error, ops::ControlFlow, time::Instant};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Passes of each size, of which the median counts.
const REPEATS: usize = 30;
/// Context before them.
const DEPTH: usize = 256;

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let path = args.next().ok_or("give a GGUF file")?;
    let (mut options, mut max, mut temperature) = (CpuOptions::default(), 128, 0.0);
    let (mut drafts, mut rows, mut prompts): (Vec<usize>, Vec<usize>, Vec<String>) =
        (vec![0, 8], Vec::new(), Vec::new());
    let list = |text: String| {
        text.split(',')
            .map(str::parse)
            .collect::<std::result::Result<_, _>>()
    };
    while let Some(flag) = args.next() {
        let mut value = || args.next().ok_or("a flag has no value");
        match flag.as_str() {
            "--threads" => options.n_threads = value()?.parse()?,
            "--isa" => options.isa = Some(value()?.parse()?),
            "--max" => max = value()?.parse()?,
            "--temperature" => temperature = value()?.parse()?,
            "--drafts" => drafts = list(value()?)?,
            "--rows" => rows = list(value()?)?,
            _ => prompts.push(flag),
        }
    }
    let gguf = Gguf::parse(std::fs::read(path)?.into())?;
    let engine = CpuEngine::new(&gguf, &options)?;
    if !rows.is_empty() {
        return cost(&engine, &rows);
    }
    let info = ModelInfo::from_header(gguf.header())?;
    for prompt in prompts {
        let message = Message {
            role: "user".into(),
            content: std::fs::read_to_string(&prompt)?,
        };
        let tokens = info.encode_chat(&[message])?;
        println!("{prompt}: {} tokens", tokens.len());
        let mut answers = Vec::new();
        for _round in 0..2 {
            for &max_draft in &drafts {
                let params = GenerateParams {
                    max_tokens: Some(max),
                    sampler: SamplerParams {
                        temperature,
                        ..SamplerParams::default()
                    },
                    ..GenerateParams::default()
                };
                answers.push(answer(&engine, &info, &tokens, &params, max_draft)?);
            }
        }
        assert!(
            answers.iter().all(|answer| *answer == answers[0]),
            "a draft changed the text"
        );
    }
    Ok(())
}

fn answer(
    engine: &CpuEngine,
    info: &ModelInfo,
    prompt: &[u32],
    params: &GenerateParams,
    max_draft: usize,
) -> Result<Vec<u32>> {
    let n_ctx = prompt.len() + params.max_tokens.unwrap_or(0);
    let mut session = engine.session(n_ctx)?;
    let mut generation = Generation::new(info.tokenizer.clone(), prompt, n_ctx, params)?;
    rewind_to_common(&mut session, prompt);
    engine.forward(&mut session, &prompt[..prompt.len() - 1])?;
    let mut lookup = PromptLookup::new(max_draft);
    let (start, mut n_passes, mut n_tokens) = (Instant::now(), 0, 0);
    loop {
        n_passes += 1;
        let flow = advance(engine, &mut session, &mut generation, &mut lookup, |_| {
            n_tokens += 1;
            ControlFlow::Continue(())
        })?;
        if flow.is_break() {
            break;
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "  drafts of {max_draft:2}: {:6.1} tokens/s, {n_tokens} tokens in {n_passes} passes",
        f64::from(n_tokens) / seconds
    );
    Ok(generation.tokens().to_vec())
}

/// Milliseconds of a pass with logits at every position, beside one of a single token in turns.
fn cost(engine: &CpuEngine, rows: &[usize]) -> Result<()> {
    let vocab_size = engine.spec().vocab_size;
    let ids: Vec<u32> = (0..DEPTH + 64)
        .map(|i| ((7 * i) % (vocab_size - 64) + 32) as u32)
        .collect();
    let mut session = engine.session(ids.len())?;
    engine.forward(&mut session, &ids[..DEPTH])?;
    let mut pass = |n: usize| -> Result<f64> {
        let start = Instant::now();
        let feed = Feed {
            session: &mut session,
            tokens: &ids[DEPTH..DEPTH + n],
            wanted_from: 0,
        };
        engine.forward_batch(&mut [feed], &|_, _, logits| argmax(logits))?;
        session.rewind(DEPTH);
        Ok(start.elapsed().as_secs_f64() * 1e3)
    };
    for &n in rows {
        let (mut ones, mut many) = (Vec::new(), Vec::new());
        for _ in 0..REPEATS {
            ones.push(pass(1)?);
            many.push(pass(n)?);
        }
        let median = |times: &mut Vec<f64>| {
            times.sort_by(f64::total_cmp);
            times[REPEATS / 2]
        };
        let (one, many) = (median(&mut ones), median(&mut many));
        println!(
            "{n:3} tokens {many:7.2} ms, one {one:6.2} ms, {:.2} times",
            many / one
        );
    }
    Ok(())
}
