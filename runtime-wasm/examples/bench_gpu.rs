//! Greedy generation on a native adapter beside the CPU engine: the same tokens, and how fast.
//!
//! `cargo run --release -p fledgling-wasm --example bench_gpu -- MODEL.gguf [ADAPTER=llvmpipe] [PROMPT=64] [NEW_TOKENS=32]`
//!
//! PROMPT is a text, or a number of tokens.

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use fledgling_core::{
    cpu::{CpuEngine, CpuOptions, KvDType},
    gguf::Gguf,
    model::ModelInfo,
};
use fledgling_wasm::{engine::GpuEngine, gpu::Gpu};
use pollster::block_on;
use std::time::Instant;

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let path = args.next().context("give the path of a GGUF file")?;
    let adapter = args.next().unwrap_or_else(|| "llvmpipe".to_owned());
    let prompt = args.next().unwrap_or_else(|| "64".to_owned());
    let n_new: usize = args.next().map_or(Ok(32), |n| n.parse())?;

    let gguf = Gguf::parse(Bytes::from(std::fs::read(&path)?))?;
    let info = ModelInfo::from_header(gguf.header())?;
    let vocab_size = info.spec.vocab_size;
    let prompt: Vec<u32> = match prompt.parse::<usize>() {
        // Any tokens will do, as long as they are not all the same.
        Ok(n) => (0..n).map(|i| (i * 7919 % vocab_size) as u32).collect(),
        Err(_) => info.encode_prompt(&prompt),
    };
    let n_prompt = prompt.len();
    let gpu = block_on(Gpu::open_named(&adapter))?;
    let started = Instant::now();
    let mut engine = block_on(GpuEngine::load(&gpu, &gguf, n_prompt + n_new))?;
    println!(
        "{}: loaded in {:.2} s, {} dispatches a token",
        gpu.name(),
        started.elapsed().as_secs_f64(),
        engine.dispatches_per_token()
    );

    let started = Instant::now();
    let first = block_on(engine.forward(&prompt[..n_prompt - 1]))?.len();
    let prefill_s = started.elapsed().as_secs_f64();
    ensure!(first == vocab_size, "there are {first} logits");
    let started = Instant::now();
    let got = block_on(engine.greedy(prompt[n_prompt - 1], n_new))?;
    let decode_s = started.elapsed().as_secs_f64();
    println!(
        "prefill {:.2} tokens/s, decode {:.2} tokens/s",
        (n_prompt - 1) as f64 / prefill_s,
        n_new as f64 / decode_s
    );

    let cpu = CpuEngine::new(
        &gguf,
        &CpuOptions {
            n_threads: 2,
            isa: None,
            kv: KvDType::F16,
        },
    )?;
    let mut session = cpu.session(n_prompt + n_new)?;
    let mut logits = cpu.forward(&mut session, &prompt)?;
    let mut want = Vec::new();
    for _ in 0..n_new {
        let best =
            (1..logits.len()).fold(0, |best, i| if logits[i] > logits[best] { i } else { best });
        want.push(best as u32);
        logits = cpu.forward(&mut session, &want[want.len() - 1..])?;
    }
    let same = got.iter().zip(&want).take_while(|(a, b)| a == b).count();
    println!("{same} of {n_new} tokens are the CPU engine's");
    ensure!(same == n_new, "GPU {got:?}, CPU {want:?}");
    Ok(())
}
