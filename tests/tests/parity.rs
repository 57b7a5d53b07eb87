//! The promise: one GGUF file, the same 32 greedy tokens from the terminal, native WebGPU, a page in a real browser on
//! WebGPU and on the CPU, and the Lambda function.

use anyhow::{Context, Result};
use fledgling_core::{
    generate::{GenerateParams, Generation},
    gguf::Gguf,
    model::ModelInfo,
    quant::DType,
    sampler::SamplerParams,
    spec::Family,
};
use fledgling_tests::targets::{
    Completion, browser, fledgling, lambda, smollm2, terminal, workspace,
};
use fledgling_wasm::{engine::GpuEngine, gpu::Gpu};
use std::path::Path;

const N_TOKENS: usize = 32;

/// The engine of the page, natively on Vulkan.
fn vulkan(model: &Path, prompt: &str) -> Result<Completion> {
    let gguf = Gguf::parse(std::fs::read(model)?.into())?;
    let info = ModelInfo::from_header(gguf.header())?;
    let prompt_ids = info.encode_prompt(prompt);
    let gpu = pollster::block_on(Gpu::open())
        .context("no adapter: `cargo xtask setup` installs lavapipe")?;
    let n_ctx = prompt_ids.len() + N_TOKENS;
    let mut engine = pollster::block_on(GpuEngine::load(&gpu, &gguf, n_ctx))?;
    let params = GenerateParams {
        max_tokens: Some(N_TOKENS),
        sampler: SamplerParams::default(),
        stop: Vec::new(),
        ignore_end: false,
    };
    let mut generation = Generation::new(info.tokenizer, &prompt_ids, n_ctx, &params)?;
    let mut logits = pollster::block_on(engine.forward(&prompt_ids))?;
    let mut text = String::new();
    loop {
        let step = generation.sample(&mut logits);
        text.push_str(&step.text);
        if step.finish.is_some() {
            return Ok(Completion {
                prompt_ids,
                token_ids: generation.tokens().to_vec(),
                text,
            });
        }
        logits = pollster::block_on(engine.forward(&[step.token]))?;
    }
}

fn assert_parity(model: &Path, prompt: &str) -> Result<()> {
    let expected = terminal(model, prompt, N_TOKENS)?;
    assert!(
        !expected.token_ids.is_empty(),
        "the terminal generated nothing"
    );
    assert_eq!(
        vulkan(model, prompt)?,
        expected,
        "native WebGPU against the terminal"
    );
    assert_eq!(
        browser(model, prompt, N_TOKENS, "cpu")?,
        expected,
        "the page on the CPU against the terminal"
    );
    assert_eq!(
        browser(model, prompt, N_TOKENS, "webgpu")?,
        expected,
        "the page on WebGPU against the terminal"
    );
    assert_eq!(
        lambda(model, prompt, N_TOKENS)?,
        expected,
        "the Lambda function against the terminal"
    );
    Ok(())
}

#[test]
fn smollm2_gives_the_same_text_on_every_target() -> Result<()> {
    assert_parity(
        &smollm2()?,
        "Once upon a time, in a small village by the sea,",
    )
}

#[test]
fn a_gpt2_trained_here_gives_the_same_text_on_every_target() -> Result<()> {
    let folder = tempfile::tempdir()?;
    // Only its tokenizer is used.
    let tokenizer = folder.path().join("tokenizer.gguf");
    std::fs::write(
        &tokenizer,
        fledgling_core::testing::tiny_model(Family::Gpt2, DType::F32, 1),
    )?;
    let text = folder.path().join("text.txt");
    std::fs::copy(workspace().join("README.md"), &text)?;
    let config = folder.path().join("gpt2.toml");
    let quoted = |path: &Path| serde_json::to_string(path).expect("a temporary path is UTF-8");
    std::fs::write(
        &config,
        format!(
            "name = \"gpt2\"\nmode = \"scratch\"\nbase = {}\nruns_dir = {}\n\
             [data]\ntrain = [{}]\nmax_tokens = 64\n\
             [train]\nsteps = 40\nbatch = 4\nlr = 3e-3\n\
             [model]\nfamily = \"gpt2\"\nlayers = 2\nwidth = 64\nheads = 4\nctx = 128\n",
            quoted(&tokenizer),
            quoted(folder.path()),
            quoted(&text),
        ),
    )?;
    fledgling([Path::new("train"), &config])?;
    let model = folder.path().join("gpt2.q8_0.gguf");
    let run = folder.path().join("gpt2");
    fledgling([
        "export".as_ref(),
        run.as_os_str(),
        "--quant".as_ref(),
        "q8_0".as_ref(),
        "-o".as_ref(),
        model.as_os_str(),
    ])?;
    assert_parity(&model, "Fledgling runs")
}
