//! Whether a GPU computes what the CPU computes: a few training steps of small models of three families, there and on
//! the CPU, compared in loss and gradients. Run before the first step on a device and remembered for its driver.
//!
//! Why: kernels are chosen by measurement on the device, from many that differ by shape and hardware, and pass through a
//! compiler in the driver. Burn's SPIR-V kernels trained SwiftShader to 4.7863 where 4.7712 is right, without a word.

use super::{
    config::{Dtype, FamilyName, LoraConfig, ModelConfig},
    device::Gpu,
    loss::loss_and_gradients,
    model::{Batch, LoraSpec, Transformer, to_vec},
    optim::{AdamW, AdamWConfig, clip},
    probe::{self, Probe},
    start,
};
use crate::{
    cache, files,
    output::note,
    run::{LoraSize, Parameters},
    sums::sha256_hex,
};
use anyhow::{Context, Result};
use burn::tensor::Device;
use fledgling_core::spec::ModelSpec;
use fledgling_kernels::Precision;
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};
use serde::{Deserialize, Serialize};
use std::{fmt, path::PathBuf};

/// Raised when the test or what it tests changes: what was found before no longer counts.
const REVISION: u32 = 1;
/// The version in Cargo.toml; a test compares it with Cargo.lock.
const BURN: &str = "0.22.1";
const STEPS: usize = 3;
const LR: f64 = 1e-2;

/// Largest relative differences that count as agreement.
///
/// In f32 two right programs differ in the order of sums: 1e-6 on lavapipe (docs/train/devices.md), and some 1e-5 with
/// sums over thousands of values. A wrong kernel is far beyond: 3e-3 of the loss for the one that was met, and its
/// gradients point elsewhere. In bf16 each factor of a product has 8 bits, 4e-3, and `AdamW`'s first steps go by the signs of
/// gradients, which turn where these are small: 1e-2 of the first loss at the third step on a CPU, and 5e-2 of the
/// gradients of Qwen 3's norms of keys, in which much cancels.
#[derive(Debug, Clone, Copy)]
struct Tolerance {
    /// As a share of the first loss: the later ones fall to a sixth of it.
    loss: f64,
    gradient: f64,
}

fn tolerance(dtype: Dtype) -> Tolerance {
    match dtype {
        Dtype::F32 => Tolerance {
            loss: 1e-4,
            gradient: 1e-3,
        },
        Dtype::Bf16 => Tolerance {
            loss: 3e-2,
            gradient: 1.5e-1,
        },
    }
}

/// What a self-test found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "outcome")]
pub enum Outcome {
    /// Everything agreed; the largest relative differences.
    Passed {
        /// Of a loss.
        loss: f64,
        /// Of a parameter's gradient, by Euclidean norm.
        gradient: f64,
    },
    /// A number differs.
    Disagrees {
        /// Which one.
        what: String,
        /// On the CPU: a loss, or the norm of a gradient.
        cpu: f64,
        /// On the GPU.
        gpu: f64,
        /// Relative difference.
        difference: f64,
        /// The largest that is allowed.
        tolerance: f64,
    },
    /// It crashed, hung, or could not be begun.
    Failed {
        /// Why.
        reason: String,
    },
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Passed { loss, gradient } => write!(
                f,
                "its self-test agrees with the CPU (losses within {loss:.0e}, gradients within {gradient:.0e})"
            ),
            Self::Disagrees {
                what,
                cpu,
                gpu,
                difference,
                tolerance,
            } => write!(
                f,
                "its self-test disagrees with the CPU: {what} is {gpu:.6} there and {cpu:.6} on the CPU, {difference:.1e} apart where {tolerance:.0e} is allowed"
            ),
            Self::Failed { reason } => write!(f, "its self-test failed: {reason}"),
        }
    }
}

/// A model and a batch.
struct Case {
    name: &'static str,
    spec: ModelSpec,
    lora_rank: Option<usize>,
    /// B, T
    rows: (usize, usize),
    /// Whether software GPUs are spared it: they compile a kernel for seconds, up to 20, and are for trying only.
    spared: bool,
}

/// Few, since every shape costs a compilation: odd sizes that no kernel's tile divides, shared by all families, with
/// padding, grouped heads and a LoRA; and one with round sizes that fill whole tiles.
fn cases() -> Vec<Case> {
    let spec = |family, width, heads, kv_heads, ff, ctx, vocab| {
        let config = ModelConfig {
            kv_heads,
            ff: Some(ff),
            ..ModelConfig::new(family, 1, width, heads, ctx)
        };
        config.spec(vocab)
    };
    let grouped = |family| spec(family, 60, 6, Some(2), 160, 40, 131);
    vec![
        Case {
            name: "a gpt2 of width 60",
            spec: spec(FamilyName::Gpt2, 60, 6, None, 160, 40, 131),
            lora_rank: None,
            rows: (2, 33),
            spared: false,
        },
        Case {
            name: "a qwen3 of width 60",
            spec: grouped(FamilyName::Qwen3),
            lora_rank: None,
            rows: (2, 33),
            spared: true,
        },
        Case {
            name: "a LoRA of a llama of width 60",
            spec: grouped(FamilyName::Llama),
            lora_rank: Some(3),
            rows: (2, 33),
            spared: false,
        },
        Case {
            name: "a gpt2 of width 128",
            spec: spec(FamilyName::Gpt2, 128, 2, None, 512, 128, 512),
            lora_rank: None,
            rows: (2, 128),
            spared: true,
        },
    ]
}

impl Case {
    fn model(&self, device: &Device) -> Result<Transformer> {
        let mut values = start::random_parameters(&self.spec, 7);
        let lora = self.lora_rank.map(|rank| LoraSpec {
            size: LoraSize {
                rank,
                alpha: 2.0 * rank as f64,
                rslora: false,
            },
            dropout: 0.0,
        });
        if let Some(lora) = &lora {
            let entries = start::lora_entries(&self.spec, &LoraConfig::default())?;
            values.extend(start::lora_parameters(&entries, lora.size.rank, 7));
        }
        // Initial weights of 0.02 make every logit nearly the same; larger ones let a mistake show.
        for value in values.values_mut().flatten() {
            *value *= 3.0;
        }
        Transformer::new(
            &self.spec,
            values,
            lora.as_ref(),
            &device.clone().autodiff(),
        )
    }

    /// Random tokens, of which the last row's end is padding and every fifth position is not counted.
    fn batch(&self) -> Batch {
        let (n_rows, n_tokens) = self.rows;
        let mut rng = ChaCha8Rng::seed_from_u64(11);
        let mut ids = |n: usize| -> Vec<u32> {
            let vocab = self.spec.vocab_size as u64;
            (0..n).map(|_| (rng.next_u64() % vocab) as u32).collect()
        };
        let n = n_rows * n_tokens;
        let counted: Vec<u32> = (0..(n - n_tokens / 3) as u32)
            .filter(|i| i % 5 != 0)
            .collect();
        Batch {
            tokens: ids(n),
            n_rows,
            n_tokens,
            targets: ids(counted.len()),
            counted,
        }
    }
}

/// The losses of some steps, and the gradients of the first.
struct Measured {
    losses: Vec<f64>,
    gradients: Parameters,
}

fn measure(case: &Case, device: &Device) -> Result<Measured> {
    let (mut model, batch) = (case.model(device)?, case.batch());
    let mut optimizer = AdamW::new(AdamWConfig {
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: 0.1,
    });
    let scale = 1.0 / batch.counted.len() as f64;
    let mut measured = Measured {
        losses: Vec::new(),
        gradients: Parameters::new(),
    };
    for step in 0..STEPS {
        let (sum, mut gradients) = loss_and_gradients(&model, &batch, scale);
        if step == 0 {
            let values = |(name, value): (&String, &_)| (name.clone(), to_vec(Clone::clone(value)));
            measured.gradients = gradients.iter().map(values).collect();
        }
        measured.losses.push(sum * scale);
        clip(&mut gradients, Some(1.0));
        model = optimizer.step(model, &mut gradients, LR);
    }
    Ok(measured)
}

fn norm(values: impl Iterator<Item = f32>) -> f64 {
    values
        .map(|value| f64::from(value).powi(2))
        .sum::<f64>()
        .sqrt()
}

/// Whether a difference is allowed; that of no number is not.
fn within(difference: f64, tolerance: f64) -> bool {
    difference <= tolerance
}

/// Whether this CPU's products in bf16 are near those in f32; it takes a fraction of a second, so that it is not
/// remembered.
pub fn cpu_in_bf16() -> Outcome {
    let before = Precision::current();
    Precision::F32.make_current();
    let outcome = examine(cases(), Dtype::Bf16, |case| {
        Precision::Bf16.make_current();
        let measured = measure(case, &Device::flex());
        Precision::F32.make_current();
        measured
    });
    before.make_current();
    outcome
}

/// The outcome of one case.
fn compare(case: &str, cpu: &Measured, gpu: &Measured, tolerance: Tolerance) -> Outcome {
    let disagrees = |what: String, cpu, gpu, difference, tolerance| Outcome::Disagrees {
        what: format!("{what} of {case}"),
        cpu,
        gpu,
        difference,
        tolerance,
    };
    let (mut worst_loss, mut worst_gradient) = (0.0_f64, 0.0_f64);
    let cpu_first = cpu.losses[0];
    for (step, (&cpu, &gpu)) in cpu.losses.iter().zip(&gpu.losses).enumerate() {
        let difference = (gpu - cpu).abs() / cpu_first.abs();
        if !within(difference, tolerance.loss) {
            let what = format!("the loss before step {}", step + 1);
            return disagrees(what, cpu, gpu, difference, tolerance.loss);
        }
        worst_loss = worst_loss.max(difference);
    }
    let whole = norm(cpu.gradients.values().flatten().copied());
    for (name, cpu) in &cpu.gradients {
        let Some(gpu) = gpu.gradients.get(name).filter(|gpu| gpu.len() == cpu.len()) else {
            return Outcome::Failed {
                reason: format!("{case}: no gradient of {name}, or one of another shape"),
            };
        };
        let size = norm(cpu.iter().copied());
        let apart = norm(cpu.iter().zip(gpu).map(|(cpu, gpu)| gpu - cpu));
        // Gradients that are 0 but for rounding (that of a bias of all keys) have no direction to compare.
        let difference = apart / size.max(1e-3 * whole);
        if !within(difference, tolerance.gradient) {
            let what = format!("the norm of the gradient of {name}");
            let size_gpu = norm(gpu.iter().copied());
            return disagrees(what, size, size_gpu, difference, tolerance.gradient);
        }
        worst_gradient = worst_gradient.max(difference);
    }
    Outcome::Passed {
        loss: worst_loss,
        gradient: worst_gradient,
    }
}

/// Cases on the CPU and by `measure_gpu`; the first that does not pass decides.
fn examine(
    cases: Vec<Case>,
    dtype: Dtype,
    measure_gpu: impl Fn(&Case) -> Result<Measured>,
) -> Outcome {
    let (mut loss, mut gradient) = (0.0_f64, 0.0_f64);
    for case in cases {
        let both = measure(&case, &Device::flex())
            .and_then(|cpu| Ok((cpu, measure_gpu(&case).context(case.name)?)));
        let outcome = match both {
            Ok((cpu, gpu)) => compare(case.name, &cpu, &gpu, tolerance(dtype)),
            Err(error) => Outcome::Failed {
                reason: format!("{error:#}"),
            },
        };
        match outcome {
            Outcome::Passed {
                loss: case_loss,
                gradient: case_gradient,
            } => (loss, gradient) = (loss.max(case_loss), gradient.max(case_gradient)),
            other => return other,
        }
    }
    Outcome::Passed { loss, gradient }
}

/// Tests a GPU in this process, which a bad driver may take with it: see [`outcome`].
pub fn test(gpu: &Gpu, dtype: Dtype) -> Outcome {
    let device = match super::device::usable(gpu, dtype) {
        Ok(device) => device,
        Err(error) => {
            return Outcome::Failed {
                reason: format!("{error:#}"),
            };
        }
    };
    let mut cases = cases();
    cases.retain(|case| !(gpu.is_software() && case.spared));
    examine(cases, dtype, |case| {
        super::device::guard(&device, || measure(case, &device))
    })
}

/// What is remembered of a device, and for whom.
#[derive(Debug, Serialize, Deserialize)]
struct Remembered {
    device: String,
    fledgling: String,
    burn: String,
    #[serde(flatten)]
    outcome: Outcome,
}

/// The file of a device with this driver, under this version of everything that computes.
fn file_of(gpu: &Gpu, dtype: Dtype) -> Result<PathBuf> {
    let spirv = if cfg!(feature = "vulkan") {
        "spirv"
    } else {
        "wgsl"
    };
    let key = [
        &gpu.name,
        &gpu.backend,
        &gpu.driver,
        env!("CARGO_PKG_VERSION"),
        BURN,
        spirv,
        &dtype.to_string(),
        &REVISION.to_string(),
    ]
    .join("\n");
    let name = &sha256_hex(key.as_bytes())[..16];
    Ok(cache::home()?.join("devices").join(format!("{name}.json")))
}

/// What an earlier test of this device and driver found.
pub fn remembered(gpu: &Gpu, dtype: Dtype) -> Option<Outcome> {
    let text = std::fs::read(file_of(gpu, dtype).ok()?).ok()?;
    let found: Remembered = serde_json::from_slice(&text).ok()?;
    Some(found.outcome)
}

/// What the self-test says of a GPU: remembered, or tested now in a child process, which takes some minutes at most.
///
/// # Errors
/// When there is no place to remember it.
pub fn outcome(gpu: &Gpu, dtype: Dtype) -> Result<Outcome> {
    match remembered(gpu, dtype) {
        Some(outcome) => Ok(outcome),
        None => test_anew(gpu, dtype),
    }
}

/// Tests a GPU in a child process and remembers what came out.
///
/// # Errors
/// When there is no place to remember it.
pub fn test_anew(gpu: &Gpu, dtype: Dtype) -> Result<Outcome> {
    note(format!(
        "testing {gpu} against the CPU, once for this driver; compiling its kernels may take a minute or more"
    ));
    let outcome = probe::run(&Probe::Test(gpu.idx, dtype), probe::TEST_TIMEOUT).unwrap_or_else(
        |error: anyhow::Error| Outcome::Failed {
            reason: format!("{error:#}"),
        },
    );
    let remembered = Remembered {
        device: gpu.to_string(),
        fledgling: env!("CARGO_PKG_VERSION").to_owned(),
        burn: BURN.to_owned(),
        outcome,
    };
    let mut text = serde_json::to_vec_pretty(&remembered)?;
    text.push(b'\n');
    files::write_whole(&file_of(gpu, dtype)?, &text)?;
    Ok(remembered.outcome)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The CPU in the GPU's place, with what `alter` does to its numbers.
    fn with_kernel(alter: impl Fn(&mut Measured)) -> Outcome {
        examine(cases(), Dtype::F32, |case| {
            let mut measured = measure(case, &Device::flex())?;
            alter(&mut measured);
            Ok(measured)
        })
    }

    #[test]
    fn a_device_that_computes_the_same_passes() {
        let outcome = with_kernel(|_| {});
        assert!(
            matches!(outcome, Outcome::Passed { loss, gradient } if loss == 0.0 && gradient == 0.0),
            "{outcome}"
        );
    }

    #[test]
    fn the_cpu_is_near_itself_in_bf16_but_not_the_same() {
        if !Precision::Bf16.is_native() {
            return;
        }
        let outcome = cpu_in_bf16();
        assert!(
            matches!(outcome, Outcome::Passed { loss, gradient } if loss > 1e-6 && gradient > 1e-4),
            "{outcome}"
        );
        assert_eq!(Precision::current(), Precision::F32);
    }

    #[test]
    fn a_wrong_loss_gradient_or_no_number_at_all_is_refused_with_both_numbers() {
        // What was met: 4.7863 for 4.7712.
        let loss = with_kernel(|measured| measured.losses[1] *= 4.7863 / 4.7712);
        assert!(matches!(loss, Outcome::Disagrees { .. }));
        let text = loss.to_string();
        assert!(
            text.contains("before step 2") && text.contains("on the CPU"),
            "{text}"
        );
        let scaled = with_kernel(|measured| {
            for value in measured.gradients.values_mut().next().unwrap() {
                *value *= 1.01;
            }
        });
        assert!(matches!(scaled, Outcome::Disagrees { .. }), "{scaled}");
        // Same norm, other direction.
        let turned = with_kernel(|measured| {
            measured
                .gradients
                .get_mut("token_embd.weight")
                .unwrap()
                .rotate_left(1);
        });
        assert!(matches!(turned, Outcome::Disagrees { .. }), "{turned}");
        let nan = with_kernel(|measured| measured.losses[0] = f64::NAN);
        assert!(matches!(nan, Outcome::Disagrees { .. }), "{nan}");
        let missing = with_kernel(|measured| {
            measured.gradients.pop_first();
        });
        assert!(matches!(missing, Outcome::Failed { .. }), "{missing}");
        let broken = examine(cases(), Dtype::F32, |_| {
            anyhow::bail!("the device was lost")
        });
        assert!(
            broken.to_string().contains("the device was lost"),
            "{broken}"
        );
    }

    #[test]
    fn the_version_of_burn_is_the_one_that_is_built() {
        let lock = include_str!("../../../Cargo.lock");
        assert!(lock.contains(&format!("name = \"burn\"\nversion = \"{BURN}\"")));
    }
}
