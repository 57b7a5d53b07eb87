//! Speed and greedy tokens of the CPU engine on a GGUF file, without a tokenizer.
//!
//! ```sh
//! cargo run --release -p fledgling-core --example bench_cpu -- MODEL.gguf --threads 2 --prefill 512 --decode 128
//! cargo run --release -p fledgling-core --example bench_cpu -- MODEL.gguf --greedy 32 --ids 504,1463,282
//! ```

use fledgling_core::{
    cpu::{CpuEngine, CpuOptions},
    gguf::Gguf,
};
use std::{error::Error, time::Instant};

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let path = args.next().ok_or("give a GGUF file")?;
    let (mut prefill, mut decode, mut greedy, mut runs) = (512, 128, 0, 3);
    let mut options = CpuOptions::default();
    let mut ids: Vec<u32> = Vec::new();
    while let (Some(flag), Some(value)) = (args.next(), args.next()) {
        match flag.as_str() {
            "--threads" => options.n_threads = value.parse()?,
            "--prefill" => prefill = value.parse()?,
            "--decode" => decode = value.parse()?,
            "--runs" => runs = value.parse()?,
            "--greedy" => greedy = value.parse()?,
            "--ids" => ids = value.split(',').map(str::parse).collect::<Result<_, _>>()?,
            "--isa" => options.isa = Some(value.parse()?),
            _ => return Err(format!("unknown flag {flag}").into()),
        }
    }
    let gguf = Gguf::parse(std::fs::read(path)?.into())?;
    let engine = CpuEngine::new(&gguf, &options)?;
    if greedy > 0 {
        generate(&engine, &ids, greedy)
    } else {
        bench(&engine, &options, prefill, decode, runs)
    }
}

/// Prints the greedy continuation of `ids`.
fn generate(engine: &CpuEngine, ids: &[u32], n: usize) -> Result<(), Box<dyn Error>> {
    let mut session = engine.session(ids.len() + n)?;
    let mut logits = engine.forward(&mut session, ids)?;
    let mut out = Vec::new();
    for _ in 0..n {
        out.push(argmax(&logits));
        logits = engine.forward(&mut session, &out[out.len() - 1..])?;
    }
    println!("{out:?}");
    Ok(())
}

fn argmax(logits: &[f32]) -> u32 {
    (0..logits.len()).fold(0, |best, i| if logits[i] > logits[best] { i } else { best }) as u32
}

/// The same work as the peers' benchmark: prefill, then decode at that depth; the median of the runs after a warm-up.
fn bench(
    engine: &CpuEngine,
    options: &CpuOptions,
    prefill: usize,
    decode: usize,
    runs: usize,
) -> Result<(), Box<dyn Error>> {
    let vocab_size = engine.spec().vocab_size;
    let id = |i: usize| ((7 * i) % (vocab_size - 64) + 32) as u32;
    let (mut prefill_rates, mut decode_rates, mut shallow_rates) =
        (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..=runs {
        let mut session = engine.session(prefill + decode)?;
        let start = Instant::now();
        for i in 0..decode {
            engine.forward(&mut session, &[id(i)])?;
        }
        shallow_rates.push(decode as f64 / start.elapsed().as_secs_f64());
        session.rewind(0);
        let start = Instant::now();
        if prefill > 0 {
            engine.forward(&mut session, &(0..prefill).map(id).collect::<Vec<_>>())?;
        }
        prefill_rates.push(prefill as f64 / start.elapsed().as_secs_f64());
        let start = Instant::now();
        for i in 0..decode {
            engine.forward(&mut session, &[id(i)])?;
        }
        decode_rates.push(decode as f64 / start.elapsed().as_secs_f64());
    }
    println!(
        "{{\"isa\":\"{}\",\"threads\":{},\"prefill_tokens_per_s\":{:.1},\"decode_tokens_per_s\":{:.1},\"decode_at_depth_tokens_per_s\":{:.1}}}",
        engine.isa(),
        options.n_threads,
        median(prefill_rates),
        median(shallow_rates),
        median(decode_rates)
    );
    Ok(())
}

/// Of all but the first, which warmed up.
fn median(mut rates: Vec<f64>) -> f64 {
    rates.remove(0);
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}
