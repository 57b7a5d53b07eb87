//! `fledgling bench train`: how fast a GPT-2 of a given size trains here, on random tokens.

use super::{
    config::{Dtype, FamilyName, ModelConfig},
    device::{self, Choice},
    loss::loss_and_gradients,
    model::{Batch, Transformer},
    optim::{AdamW, AdamWConfig},
    set_threads, start,
};
use crate::output::{print, print_json};
use anyhow::{Result, ensure};
use burn::tensor::Device;
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// Train a GPT-2 of this size on random tokens and measure
#[derive(Debug, Clone, clap::Args)]
#[command(
    after_help = "Example:\n  fledgling bench train --layers 6 --width 384 --heads 6 --ctx 256 --vocab 8192 --batch 8 --steps 5 --threads 2 --json\n\n\
    The first step is not timed. step_ms is the median; loss is that of the last step, all of them on the same batch."
)]
pub struct BenchArgs {
    /// Blocks
    #[arg(long, default_value_t = 6)]
    pub layers: usize,
    /// Width of the residual stream
    #[arg(long, default_value_t = 384)]
    pub width: usize,
    /// Heads
    #[arg(long, default_value_t = 6)]
    pub heads: usize,
    /// Tokens in a row
    #[arg(long, default_value_t = 256)]
    pub ctx: usize,
    /// Vocabulary
    #[arg(long, default_value_t = 8192)]
    pub vocab: usize,
    /// Rows in a batch
    #[arg(long, default_value_t = 8)]
    pub batch: usize,
    /// Timed steps
    #[arg(long, default_value_t = 5)]
    pub steps: usize,
    /// Threads; 0 takes all cores
    #[arg(long, default_value_t = 0)]
    pub threads: usize,
    /// Where to compute: cpu, gpu, gpu:N or auto
    #[arg(long, default_value = "cpu")]
    pub device: Choice,
    /// What matrices are multiplied in: f32 or bf16
    #[arg(long, default_value = "f32", value_parser = dtype)]
    pub dtype: Dtype,
    /// Print one line of JSON
    #[arg(long)]
    pub json: bool,
}

fn dtype(name: &str) -> std::result::Result<Dtype, String> {
    Dtype::from_name(name).ok_or_else(|| "it is f32 or bf16".to_owned())
}

/// What was measured.
#[derive(Debug, Clone, Serialize)]
pub struct BenchReport {
    /// Where.
    pub device: String,
    /// Positions trained on in a second.
    pub tokens_per_s: f64,
    /// Median time of a step.
    pub step_ms: f64,
    /// Peak memory of the process.
    pub peak_mib: Option<f64>,
    /// Loss of the last step.
    pub loss: f64,
}

/// Runs the command.
///
/// # Errors
/// Sizes that do not fit each other, by name.
pub fn run(args: &BenchArgs) -> Result<()> {
    if args.device != Choice::Cpu {
        super::probe::without_display();
    }
    let report = measure(args)?;
    if args.json {
        return print_json(&report);
    }
    let peak = report
        .peak_mib
        .map_or_else(|| "unknown".to_owned(), |mib| format!("{mib:.0} MiB"));
    print(&format!(
        "{}\n  {:9.1} tokens/s\n  {:9.1} ms a step\n  peak memory {peak}\n  loss {:.4}\n",
        report.device, report.tokens_per_s, report.step_ms, report.loss
    ))
}

/// Measures; nothing is printed.
///
/// # Errors
/// Sizes that do not fit each other, by name.
pub fn measure(args: &BenchArgs) -> Result<BenchReport> {
    ensure!(
        args.heads >= 1 && args.width.is_multiple_of(args.heads),
        "--heads {}: must divide --width {}",
        args.heads,
        args.width
    );
    ensure!(
        args.layers >= 1 && args.ctx >= 2 && args.vocab >= 2 && args.batch >= 1 && args.steps >= 1,
        "every size is at least 1, --ctx and --vocab at least 2"
    );
    set_threads(args.threads);
    let chosen = device::choose(args.device, args.dtype, false)?;
    device::guard(&chosen.device, || measure_on(args, &chosen))
}

fn measure_on(args: &BenchArgs, chosen: &device::Chosen) -> Result<BenchReport> {
    let mut training = Training::new(args, &chosen.device)?;
    chosen.check_sizes(training.model.spec(), args.batch, args.ctx)?;
    let (mut times_ms, mut loss) = (Vec::new(), 0.0);
    for step in 0..=args.steps {
        let started = Instant::now();
        (training, loss) = training.step()?;
        if step > 0 {
            times_ms.push(started.elapsed().as_secs_f64() * 1e3);
        }
    }
    ensure!(loss.is_finite(), "the loss is {loss}");
    times_ms.sort_by(f64::total_cmp);
    let step_ms = times_ms[times_ms.len() / 2];
    Ok(BenchReport {
        device: chosen.name.clone(),
        tokens_per_s: (args.batch * args.ctx) as f64 / step_ms * 1e3,
        step_ms,
        peak_mib: crate::bench::peak_rss_mib(),
        loss,
    })
}

/// A model that learns one batch by heart.
struct Training {
    model: Transformer,
    optimizer: AdamW,
    batch: Batch,
    device: Device,
}

impl Training {
    fn new(args: &BenchArgs, device: &Device) -> Result<Self> {
        let config = ModelConfig::new(
            FamilyName::Gpt2,
            args.layers,
            args.width,
            args.heads,
            args.ctx,
        );
        let spec = config.spec(args.vocab);
        spec.validate()?;
        let values = start::random_parameters(&spec, 1);
        Ok(Self {
            model: Transformer::new(&spec, values, None, &device.clone().autodiff())?,
            optimizer: AdamW::new(AdamWConfig {
                beta1: 0.9,
                beta2: 0.999,
                eps: 1e-8,
                weight_decay: 0.01,
            }),
            batch: random_batch(args),
            device: device.clone(),
        })
    }

    /// One step, done when this returns, and its loss.
    fn step(mut self) -> Result<(Self, f64)> {
        let n_counted = self.batch.counted.len() as f64;
        let (sum, mut gradients) = loss_and_gradients(&self.model, &self.batch, 1.0 / n_counted);
        self.model = self.optimizer.step(self.model, &mut gradients, 1e-3);
        self.device.sync()?;
        Ok((self, sum / n_counted))
    }
}

fn random_batch(args: &BenchArgs) -> Batch {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let n = args.batch * args.ctx;
    let mut tokens = || {
        (0..n)
            .map(|_| (rng.next_u64() % args.vocab as u64) as u32)
            .collect()
    };
    Batch {
        tokens: tokens(),
        n_rows: args.batch,
        n_tokens: args.ctx,
        counted: (0..n as u32).collect(),
        targets: tokens(),
    }
}

/// Seconds for which [`speed`] trains, after the first step.
const SPEED_S: u64 = 5;

/// How fast a small GPT-2 trains on a device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Speed {
    /// Positions trained on in a second.
    pub tokens_per_s: f64,
    /// Of the first step, which compiles and measures kernels.
    pub first_step_s: f64,
    /// Peak memory of the process.
    pub peak_mib: Option<f64>,
}

/// Trains a GPT-2 of 4 layers of 256 (4 rows of 128 tokens, V = 1024, f32) for 5 seconds.
///
/// # Errors
/// What the device throws.
pub fn speed(device: &Device) -> Result<Speed> {
    let args = BenchArgs {
        layers: 4,
        width: 256,
        heads: 4,
        ctx: 128,
        vocab: 1024,
        batch: 4,
        steps: 1,
        threads: 0,
        device: Choice::Cpu,
        dtype: Dtype::F32,
        json: false,
    };
    device::guard(device, || {
        let mut training = Training::new(&args, device)?;
        let started = Instant::now();
        (training, _) = training.step()?;
        let first_step_s = started.elapsed().as_secs_f64();
        let (started, mut n_steps) = (Instant::now(), 0);
        while n_steps == 0 || started.elapsed() < Duration::from_secs(SPEED_S) {
            (training, _) = training.step()?;
            n_steps += 1;
        }
        Ok(Speed {
            tokens_per_s: (n_steps * args.batch * args.ctx) as f64
                / started.elapsed().as_secs_f64(),
            first_step_s,
            peak_mib: crate::bench::peak_rss_mib(),
        })
    })
}
