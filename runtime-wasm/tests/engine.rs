//! The WebGPU engine on lavapipe against the CPU engine: tiny random models of all families in every element type.

#![allow(clippy::unwrap_used, reason = "a test")]

use bytes::Bytes;
use fledgling_core::{
    cpu::{CpuEngine, CpuOptions, KvDType},
    gguf::Gguf,
    quant::DType,
    spec::Family,
    testing::tiny_model,
};
use fledgling_wasm::{engine::GpuEngine, gpu::Gpu};
use pollster::block_on;

const PROMPT: [u32; 7] = [5, 17, 2, 99, 120, 33, 7];
const N_STEPS: usize = 24;

fn gpu() -> Gpu {
    block_on(Gpu::open_named("llvmpipe"))
        .expect("these tests run on lavapipe: install mesa-vulkan-drivers and libvulkan1, or run `cargo xtask setup`")
}

fn argmax(logits: &[f32]) -> u32 {
    (1..logits.len()).fold(0, |best, i| if logits[i] > logits[best] { i } else { best }) as u32
}

fn cpu_logits(gguf: &Gguf) -> Vec<Vec<f32>> {
    let options = CpuOptions {
        n_threads: 1,
        isa: None,
        kv: KvDType::F16,
    };
    let engine = CpuEngine::new(gguf, &options).unwrap();
    let mut session = engine.session(64).unwrap();
    let mut logits = vec![engine.forward(&mut session, &PROMPT).unwrap()];
    for step in 1..N_STEPS {
        logits.push(
            engine
                .forward(&mut session, &[argmax(&logits[step - 1])])
                .unwrap(),
        );
    }
    logits
}

/// Feeds the CPU engine's greedy tokens to both and compares the logits of every step.
fn agrees(gpu: &Gpu, gguf: &Gguf, what: &str) {
    let want = cpu_logits(gguf);
    let mut engine = block_on(GpuEngine::load(gpu, gguf, 64)).unwrap();
    let mut got = block_on(engine.forward(&PROMPT)).unwrap();
    for (step, want) in want.iter().enumerate() {
        let most = want.iter().fold(0.0f32, |most, v| most.max(v.abs()));
        let worst = got
            .iter()
            .zip(want)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0f32, f32::max);
        assert!(
            worst <= 0.02 * most,
            "{what}: step {step} is {worst} off, of logits up to {most}"
        );
        assert_eq!(argmax(&got), argmax(want), "{what}: step {step}");
        if step + 1 < N_STEPS {
            got = block_on(engine.forward(&[argmax(want)])).unwrap();
        }
    }
}

/// Types that the shaders read.
const SHADER_TYPES: [DType; 6] = [
    DType::F32,
    DType::F16,
    DType::BF16,
    DType::Q8_0,
    DType::Q4_1,
    DType::Q4_0,
];

#[test]
fn gpt2_in_every_type_agrees_with_the_cpu() {
    let gpu = gpu();
    for dtype in SHADER_TYPES {
        let gguf = Gguf::parse(Bytes::from(tiny_model(Family::Gpt2, dtype, 7))).unwrap();
        agrees(&gpu, &gguf, &format!("GPT-2 in {dtype:?}"));
    }
}

#[test]
fn llama_in_every_type_agrees_with_the_cpu() {
    let gpu = gpu();
    for dtype in SHADER_TYPES {
        let gguf = Gguf::parse(Bytes::from(tiny_model(Family::Llama, dtype, 7))).unwrap();
        agrees(&gpu, &gguf, &format!("Llama in {dtype:?}"));
    }
}

#[test]
fn qwen2_in_every_type_agrees_with_the_cpu() {
    let gpu = gpu();
    for dtype in SHADER_TYPES {
        let gguf = Gguf::parse(Bytes::from(tiny_model(Family::Qwen2, dtype, 7))).unwrap();
        agrees(&gpu, &gguf, &format!("Qwen 2 in {dtype:?}"));
    }
}

#[test]
fn qwen3_in_every_type_agrees_with_the_cpu() {
    let gpu = gpu();
    for dtype in SHADER_TYPES {
        let gguf = Gguf::parse(Bytes::from(tiny_model(Family::Qwen3, dtype, 7))).unwrap();
        agrees(&gpu, &gguf, &format!("Qwen 3 in {dtype:?}"));
    }
}

#[test]
fn types_without_shaders_are_refused_by_name() {
    let gpu = gpu();
    let gguf = Gguf::parse(Bytes::from(tiny_model(Family::Llama, DType::Q5_0, 7))).unwrap();
    let error = block_on(GpuEngine::load(&gpu, &gguf, 64)).err();
    let error = error.unwrap().to_string();
    assert!(error.contains("`token_embd.weight` is Q5_0"), "{error}");
}
