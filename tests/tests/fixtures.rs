//! The scalar engine and the Burn modules against PyTorch: logits, losses, gradients and AdamW steps of the tiny models
//! that `tests/fixtures/make.py` wrote.

use anyhow::{Context, Result};
use burn::tensor::Device;
use fledgling::{
    run::{LoraSize, Parameters, safetensors_contents},
    train::{
        device,
        loss::{self, Gradients},
        model::{Batch, LoraSpec, Transformer, to_vec, trained_parameters},
        optim::{AdamW, AdamWConfig},
        start::{adapter_parameters, hf_parameters, lora_entries},
    },
};
use fledgling_core::{
    cpu::{CpuEngine, CpuOptions, Isa, KvDType},
    gguf::{Gguf, Layout, TensorDecl},
    quant::{DType, quantize},
    spec::{ModelSpec, ROPE_FREQS, tensor_table},
};
use std::{collections::BTreeMap, path::PathBuf};

/// The settings of make.py.
const LR: f64 = 1e-2;
const ADAMW: AdamWConfig = AdamWConfig {
    beta1: 0.9,
    beta2: 0.999,
    eps: 1e-8,
    weight_decay: 0.1,
};
const STEPS: usize = 10;
const RANK: usize = 4;
const ALPHA: f64 = 8.0;
const IGNORE: i32 = -100;

type Tensors = BTreeMap<String, Vec<f32>>;

struct Fixture {
    spec: ModelSpec,
    weights: Tensors,
    expected: Tensors,
    peft: Tensors,
    batch: Batch,
    vocab_size: usize,
}

fn fixture(name: &str) -> Result<Fixture> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures")
        .join(name);
    let read =
        |file: &str| std::fs::read(folder.join(file)).with_context(|| format!("{name}/{file}"));
    let tensors = |file: &str| anyhow::Ok(safetensors_contents(&read(file)?)?.0);
    let config = serde_json::from_slice(&read("config.json")?)?;
    let spec = ModelSpec::from_hf_config(&config)?;
    let expected = tensors("expected.safetensors")?;
    // Token ids are small, so that f32 holds them exactly.
    let batch = batch(&expected["tokens"], &expected["labels"], 3);
    Ok(Fixture {
        vocab_size: spec.vocab_size,
        spec,
        weights: tensors("model.safetensors")?,
        peft: tensors("peft.safetensors")?,
        expected,
        batch,
    })
}

fn batch(tokens: &[f32], labels: &[f32], n_rows: usize) -> Batch {
    let counted: Vec<u32> = (0..labels.len() as u32)
        .filter(|&idx| labels[idx as usize] as i32 != IGNORE)
        .collect();
    Batch {
        tokens: tokens.iter().map(|&id| id as u32).collect(),
        n_rows,
        n_tokens: tokens.len() / n_rows,
        targets: counted
            .iter()
            .map(|&idx| labels[idx as usize] as u32)
            .collect(),
        counted,
    }
}

/// The largest difference, relative to the largest value where that is above 1.
fn difference(got: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(got.len(), expected.len());
    let largest = expected
        .iter()
        .fold(1.0_f32, |largest, value| largest.max(value.abs()));
    got.iter()
        .zip(expected)
        .map(|(got, expected)| (got - expected).abs())
        .fold(0.0, f32::max)
        / largest
}

fn assert_close(what: &str, got: &[f32], expected: &[f32], tolerance: f32) {
    let difference = difference(got, expected);
    assert!(
        difference <= tolerance,
        "{what}: {difference} is above {tolerance}"
    );
}

/// Expected tensors `PREFIX.<Hugging Face name>` by `burn` name in GGUF's layout.
fn by_burn_name(fixture: &Fixture, tensors: &Tensors, prefix: &str) -> Result<Parameters> {
    let stripped = |name: &String| name.strip_prefix(prefix).map(str::to_owned);
    let tensors = tensors
        .iter()
        .filter_map(|(name, values)| Some((stripped(name)?, values.clone())))
        .collect();
    hf_parameters(&tensors, &fixture.spec)
}

fn lora_by_burn_name(fixture: &Fixture, prefix: &str) -> Result<Parameters> {
    let stripped = |name: &String| name.strip_prefix(prefix).map(str::to_owned);
    let tensors = fixture
        .peft
        .iter()
        .filter_map(|(name, values)| Some((stripped(name)?, values.clone())))
        .collect();
    adapter_parameters(
        &tensors,
        &lora_entries(
            &fixture.spec,
            &fledgling::train::config::LoraConfig::default(),
        )?,
        RANK,
    )
}

fn cpu() -> Device {
    Device::flex()
}

/// The first GPU, which is lavapipe under `cargo xtask test`.
fn gpu() -> Result<Device> {
    device::enumerate()
        .first()
        .context("these tests run on lavapipe: install mesa-vulkan-drivers and libvulkan1, or run `cargo xtask setup`")?
        .device()
}

fn dense(fixture: &Fixture, device: &Device) -> Result<Transformer> {
    Transformer::new(
        &fixture.spec,
        hf_parameters(&fixture.weights, &fixture.spec)?,
        None,
        &device.clone().autodiff(),
    )
}

fn with_lora(fixture: &Fixture, device: &Device) -> Result<Transformer> {
    let mut values = hf_parameters(&fixture.weights, &fixture.spec)?;
    values.extend(lora_by_burn_name(fixture, "start.")?);
    Transformer::new(
        &fixture.spec,
        values,
        Some(&LoraSpec {
            size: LoraSize {
                rank: RANK,
                alpha: ALPHA,
                rslora: false,
            },
            dropout: 0.0,
        }),
        &device.clone().autodiff(),
    )
}

/// Logits at all positions, counted or not, but for the padding of row 1 (the last four), which only make.py computes.
fn all_positions(fixture: &Fixture) -> (Batch, Vec<usize>) {
    let positions: Vec<usize> = (0..fixture.batch.tokens.len())
        .filter(|idx| !(28..32).contains(idx))
        .collect();
    let counted = positions.iter().map(|&idx| idx as u32).collect();
    (
        Batch {
            counted,
            targets: vec![0; positions.len()],
            ..fixture.batch.clone()
        },
        positions,
    )
}

fn rows_of(values: &[f32], rows: &[usize], width: usize) -> Vec<f32> {
    rows.iter()
        .flat_map(|row| values[row * width..(row + 1) * width].to_vec())
        .collect()
}

fn flat(gradients: Gradients) -> Parameters {
    gradients
        .into_iter()
        .map(|(name, values)| (name, to_vec(values)))
        .collect()
}

/// Gradients and values differ in the last bits (the order of sums differs); AdamW divides by the root of a mean square
/// near eps where a gradient is nearly zero, so that single values after steps may differ by more: 1e-4 at lr 1e-2.
fn check_training(
    fixture: &Fixture,
    mut model: Transformer,
    start: &Tensors,
    gradients: &Parameters,
    after: &Parameters,
) {
    let mut optimizer = AdamW::new(ADAMW);
    let scale = 1.0 / fixture.batch.counted.len() as f64;
    for (step, &expected) in start["losses"].iter().enumerate() {
        let (sum, mut got) = loss::loss_and_gradients(&model, &fixture.batch, scale);
        assert_close(
            &format!("loss before step {step}"),
            &[(sum * scale) as f32],
            &[expected],
            2e-5,
        );
        assert!((loss::loss_sum(&model, &fixture.batch) - sum).abs() < 1e-4);
        if step == 0 {
            let got = flat(got.clone());
            assert_eq!(
                got.keys().collect::<Vec<_>>(),
                gradients.keys().collect::<Vec<_>>()
            );
            for (name, expected) in gradients {
                assert_close(&format!("gradient of {name}"), &got[name], expected, 2e-5);
            }
        }
        if step < STEPS {
            model = optimizer.step(model, &mut got, LR);
            assert!(got.is_empty());
        }
    }
    assert_eq!(start["losses"].len(), STEPS + 1);
    let got = trained_parameters(&model);
    assert_eq!(
        got.keys().collect::<Vec<_>>(),
        after.keys().collect::<Vec<_>>()
    );
    for (name, expected) in after {
        let (got, expected) = (
            without_key_bias(name, &got[name]),
            without_key_bias(name, expected),
        );
        assert_close(
            &format!("{name} after {STEPS} steps"),
            &got,
            &expected,
            1e-4,
        );
    }
}

/// A bias of all keys shifts all scores of a query alike, which softmax does not see: its gradient is 0 but for
/// rounding, AdamW makes steps of lr out of that noise, and no two programs agree on their signs.
fn without_key_bias(name: &str, values: &[f32]) -> Vec<f32> {
    let third = values.len() / 3;
    if name.ends_with("attn_qkv.bias") {
        [&values[..third], &values[2 * third..]].concat()
    } else {
        values.to_vec()
    }
}

fn check_burn_dense(name: &str, device: &Device) -> Result<()> {
    let fixture = fixture(name)?;
    let model = dense(&fixture, device)?;
    let (batch, positions) = all_positions(&fixture);
    let expected = rows_of(&fixture.expected["logits"], &positions, fixture.vocab_size);
    assert_close(
        "logits",
        &to_vec(loss::logits(&model, &batch)),
        &expected,
        1e-5,
    );
    let gradients = by_burn_name(&fixture, &fixture.expected, "grad.")?;
    let after = by_burn_name(&fixture, &fixture.expected, "step10.")?;
    check_training(&fixture, model, &fixture.expected, &gradients, &after);
    Ok(())
}

fn check_burn_lora(name: &str, device: &Device) -> Result<()> {
    let fixture = fixture(name)?;
    let model = with_lora(&fixture, device)?;
    let (batch, positions) = all_positions(&fixture);
    let expected = rows_of(&fixture.peft["logits"], &positions, fixture.vocab_size);
    assert_close(
        "logits",
        &to_vec(loss::logits(&model, &batch)),
        &expected,
        1e-5,
    );
    let gradients = lora_by_burn_name(&fixture, "grad.")?;
    let after = lora_by_burn_name(&fixture, "step10.")?;
    check_training(&fixture, model, &fixture.peft, &gradients, &after);
    Ok(())
}

/// The fixture's weights as a GGUF file of f32.
fn gguf_of(fixture: &Fixture) -> Result<Gguf> {
    let table = tensor_table(&fixture.spec);
    let decl = |entry: &fledgling_core::spec::TensorEntry| TensorDecl {
        name: entry.gguf.clone(),
        dtype: DType::F32,
        shape: entry.shape.clone(),
    };
    let freqs = fixture.spec.rope_freqs_tensor();
    let freqs_decl = freqs.map(|freqs| TensorDecl {
        name: ROPE_FREQS.to_owned(),
        dtype: DType::F32,
        shape: vec![freqs.len()],
    });
    let decls = table.iter().map(decl).chain(freqs_decl);
    let layout = Layout::new(fixture.spec.to_metadata(), decls)?;
    let mut writer = layout.write_to(Vec::new())?;
    let f32_bytes = |values: &[f32]| {
        let mut bytes = Vec::new();
        quantize(DType::F32, values, &mut bytes);
        bytes
    };
    for entry in &table {
        let values = entry.to_gguf_layout(fixture.weights[&entry.hf].clone());
        writer.write_tensor(&entry.gguf, &f32_bytes(&values))?;
    }
    if let Some(freqs) = freqs {
        writer.write_tensor(ROPE_FREQS, &f32_bytes(freqs))?;
    }
    Ok(Gguf::parse(writer.finish()?.into())?)
}

fn check_scalar(name: &str) -> Result<()> {
    let fixture = fixture(name)?;
    let options = CpuOptions {
        n_threads: 1,
        isa: Some(Isa::Scalar),
        kv: KvDType::F32,
    };
    let engine = CpuEngine::new(&gguf_of(&fixture)?, &options)?;
    let (t, v) = (fixture.batch.n_tokens, fixture.vocab_size);
    for (row, tokens) in fixture.batch.tokens.chunks(t).enumerate() {
        let n_real = if row == 1 { 12 } else { t };
        let mut got = Vec::new();
        let mut session = engine.session(t)?;
        engine.forward_all(&mut session, &tokens[..n_real], &mut |_, logits| {
            got.extend_from_slice(logits);
        })?;
        let expected = &fixture.expected["logits"][row * t * v..][..n_real * v];
        assert_close(&format!("logits of row {row}"), &got, expected, 1e-5);
    }
    Ok(())
}

macro_rules! for_each_model {
    ($($name:ident: $check:ident($model:literal $(, $device:expr)?);)*) => {
        $(#[test] fn $name() -> Result<()> { $check($model $(, &$device)?) })*
    };
}

for_each_model! {
    scalar_gpt2: check_scalar("gpt2");
    scalar_llama: check_scalar("llama");
    scalar_llama_tied: check_scalar("llama-tied");
    scalar_llama3_scaled: check_scalar("llama3-scaled");
    scalar_qwen2: check_scalar("qwen2");
    scalar_qwen3: check_scalar("qwen3");
    burn_gpt2: check_burn_dense("gpt2", cpu());
    burn_llama: check_burn_dense("llama", cpu());
    burn_llama_tied: check_burn_dense("llama-tied", cpu());
    burn_llama3_scaled: check_burn_dense("llama3-scaled", cpu());
    burn_qwen2: check_burn_dense("qwen2", cpu());
    burn_qwen3: check_burn_dense("qwen3", cpu());
    burn_gpt2_lora: check_burn_lora("gpt2", cpu());
    burn_llama_lora: check_burn_lora("llama", cpu());
    burn_llama_tied_lora: check_burn_lora("llama-tied", cpu());
    burn_llama3_scaled_lora: check_burn_lora("llama3-scaled", cpu());
    burn_qwen2_lora: check_burn_lora("qwen2", cpu());
    burn_qwen3_lora: check_burn_lora("qwen3", cpu());
}

/// The same checks against PyTorch on a GPU. One test and one process, because kernels are compiled anew in each.
#[test]
fn burn_on_a_gpu() -> Result<()> {
    let device = gpu()?;
    check_burn_dense("gpt2", &device)?;
    check_burn_dense("llama", &device)?;
    check_burn_lora("llama", &device)
}
