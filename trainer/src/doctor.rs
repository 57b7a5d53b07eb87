//! `fledgling doctor`: what this machine has, and what would be missing.

use crate::{
    bench::machine,
    cache::Cache,
    files::{Staged, human_bytes},
    model::all_cores,
    output::{print, print_json},
    page::find_page,
};
use anyhow::Result;
use fledgling_core::cpu::Isa;
use serde::Serialize;
use std::process::{Command, Stdio};

/// Show what this machine has and what is missing
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  fledgling doctor --json\n  fledgling doctor --bench\n\n\
    A GPU is tested against the CPU before its first use, and the outcome remembered for its driver; --retest tests all of them now."
)]
pub struct Args {
    /// Test every GPU against the CPU, also those that have been tested
    #[cfg(feature = "train")]
    #[arg(long)]
    retest: bool,
    /// Measure how fast each device trains: 5 seconds each, after a first step that may take a minute
    #[cfg(feature = "train")]
    #[arg(long)]
    bench: bool,
    /// What a child process does in this one's place
    #[cfg(feature = "train")]
    #[arg(long, hide = true)]
    probe: Option<crate::train::probe::Probe>,
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    version: &'static str,
    machine: String,
    cpu_features: Vec<&'static str>,
    isa: String,
    threads: usize,
    memory_bytes: Option<u64>,
    memory_available_bytes: Option<u64>,
    training: bool,
    features: Vec<&'static str>,
    #[cfg(feature = "train")]
    devices: devices::Devices,
    model_cache: String,
    model_cache_problem: Option<String>,
    model_cache_free_bytes: Option<u64>,
    models: Vec<Model>,
    page: Option<String>,
    pip: bool,
    gpus: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Model {
    name: String,
    len_bytes: u64,
    origin: String,
}

/// Runs the command.
///
/// # Errors
/// When there is no home folder for the model cache.
pub fn run(args: &Args) -> Result<()> {
    #[cfg(feature = "train")]
    if let Some(probe) = args.probe {
        return crate::train::probe::answer(probe);
    }
    let report = examine(args)?;
    if args.json {
        print_json(&report)
    } else {
        print(&to_text(&report))
    }
}

#[cfg_attr(
    not(feature = "train"),
    expect(unused_variables, reason = "the options are about devices to train on")
)]
fn examine(args: &Args) -> Result<Report> {
    let cache = Cache::open()?;
    let models = cache
        .models()
        .into_iter()
        .map(|entry| Model {
            name: entry.name,
            len_bytes: entry.len_bytes,
            origin: entry.origin,
        })
        .collect();
    Ok(Report {
        version: env!("CARGO_PKG_VERSION"),
        machine: machine(),
        cpu_features: cpu_features(),
        isa: Isa::best().to_string(),
        threads: all_cores(),
        memory_bytes: memory_bytes("MemTotal:"),
        memory_available_bytes: memory_bytes("MemAvailable:"),
        training: cfg!(feature = "train"),
        features: features(),
        #[cfg(feature = "train")]
        devices: devices::examine(args.retest, args.bench)?,
        model_cache: cache.folder().display().to_string(),
        model_cache_problem: Staged::create(&cache.folder().join(".probe"), true)
            .err()
            .map(|error| format!("{error:#}")),
        model_cache_free_bytes: fs4::available_space(cache.folder()).ok(),
        models,
        page: find_page(None)
            .ok()
            .flatten()
            .map(|page| page.display().to_string()),
        pip: has_pip(),
        gpus: gpus(),
    })
}

fn to_text(report: &Report) -> String {
    let bytes = |bytes: Option<u64>| bytes.map_or_else(|| "unknown".to_owned(), human_bytes);
    let or_none = |list: &[String]| {
        if list.is_empty() {
            "none seen".to_owned()
        } else {
            list.join(", ")
        }
    };
    let cache = match &report.model_cache_problem {
        None => format!(
            "{} ({} free)",
            report.model_cache,
            bytes(report.model_cache_free_bytes)
        ),
        Some(problem) => format!("{} CANNOT BE WRITTEN: {problem}", report.model_cache),
    };
    let page = report.page.clone().unwrap_or_else(|| "not found: `fledgling serve` gives the API only (build it with `cargo xtask web`, or name its folder with --page)".to_owned());
    let training = if report.training {
        "yes"
    } else {
        "no: this build has no Burn (feature `train`)"
    };
    let pip = if report.pip {
        "yes"
    } else {
        "no: models that come in Python packages cannot be pulled"
    };
    let mut text = format!(
        "fledgling {}\n  built with   {}\n  machine      {}\n  features     {}\n  CPU engine   {} ({} threads)\n  memory       {}, {} available\n  training     {training}\n  GPUs         {}\n  \
         model cache  {cache}\n  page         {page}\n  pip          {pip}\n",
        report.version,
        or_none(
            &report
                .features
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
        ),
        report.machine,
        report.cpu_features.join(" "),
        report.isa,
        report.threads,
        bytes(report.memory_bytes),
        bytes(report.memory_available_bytes),
        or_none(&report.gpus),
    );
    #[cfg(feature = "train")]
    text.push_str(&report.devices.to_string());
    for model in &report.models {
        text.push_str(&format!(
            "  model        {} ({}), {}\n",
            model.name,
            human_bytes(model.len_bytes),
            model.origin
        ));
    }
    if report.models.is_empty() {
        text.push_str("  models       none yet: `fledgling pull smollm2-135m-instruct`\n");
    }
    text
}

/// What this build has of the features in Cargo.toml.
fn features() -> Vec<&'static str> {
    let all = [
        ("train", cfg!(feature = "train")),
        ("gpu", cfg!(feature = "gpu")),
        ("vulkan", cfg!(feature = "vulkan")),
        ("cuda", cfg!(feature = "cuda")),
        ("cloud", cfg!(feature = "cloud")),
        ("tensorboard", cfg!(feature = "tensorboard")),
    ];
    all.into_iter()
        .filter(|(_, there)| *there)
        .map(|(name, _)| name)
        .collect()
}

/// The instruction sets that decide how fast the engine is.
fn cpu_features() -> Vec<&'static str> {
    #[cfg(target_arch = "x86_64")]
    let all = [
        ("avx2", is_x86_feature_detected!("avx2")),
        ("fma", is_x86_feature_detected!("fma")),
        ("f16c", is_x86_feature_detected!("f16c")),
        ("avx512f", is_x86_feature_detected!("avx512f")),
        ("avx512vnni", is_x86_feature_detected!("avx512vnni")),
    ];
    #[cfg(target_arch = "aarch64")]
    let all = [
        ("neon", std::arch::is_aarch64_feature_detected!("neon")),
        (
            "dotprod",
            std::arch::is_aarch64_feature_detected!("dotprod"),
        ),
        ("i8mm", std::arch::is_aarch64_feature_detected!("i8mm")),
    ];
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let all: [(&str, bool); 0] = [];
    all.into_iter()
        .filter(|(_, there)| *there)
        .map(|(name, _)| name)
        .collect()
}

fn memory_bytes(key: &str) -> Option<u64> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let kib: u64 = info
        .lines()
        .find_map(|line| line.strip_prefix(key))?
        .trim()
        .strip_suffix("kB")?
        .trim()
        .parse()
        .ok()?;
    Some(kib * 1024)
}

fn has_pip() -> bool {
    let asked = Command::new("python3")
        .args(["-m", "pip", "--version"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    asked.is_ok_and(|status| status.success())
}

/// Display and compute devices that the kernel lists (Linux). The browser finds its own through WebGPU.
fn gpus() -> Vec<String> {
    let Ok(cards) = std::fs::read_dir("/sys/class/drm") else {
        return Vec::new();
    };
    let mut found: Vec<_> = cards
        .flatten()
        .filter(|card| card.file_name().to_string_lossy().starts_with("renderD"))
        .filter_map(|card| {
            let read =
                |file: &str| std::fs::read_to_string(card.path().join("device").join(file)).ok();
            let vendor = match read("vendor")?.trim() {
                "0x10de" => "NVIDIA",
                "0x1002" => "AMD",
                "0x8086" => "Intel",
                _ => "unknown vendor",
            };
            Some(format!("{vendor} ({})", read("device")?.trim()))
        })
        .collect();
    found.sort();
    found
}

/// What one can train on.
#[cfg(feature = "train")]
mod devices {
    use crate::{
        files::human_bytes,
        output::note,
        train::{
            bench::Speed,
            config::Dtype,
            device::{self, Gpu},
            probe::{self, Probe},
            selftest::{self, Outcome},
        },
    };
    use anyhow::Result;
    use serde::Serialize;
    use std::{fmt, time::Duration};

    /// A device that has not trained for five seconds by then, after its first step, is not worth more waiting.
    const SPEED_TIMEOUT: Duration = Duration::from_mins(5);

    #[derive(Debug, Serialize)]
    pub(super) struct Devices {
        cpu: Measured,
        gpus: Vec<Found>,
        /// Why the GPUs cannot be listed.
        problem: Option<String>,
    }

    #[derive(Debug, Serialize)]
    struct Found {
        #[serde(flatten)]
        gpu: Gpu,
        self_test: Option<Outcome>,
        #[serde(flatten)]
        measured: Measured,
    }

    #[derive(Debug, Default, Serialize)]
    struct Measured {
        speed: Option<Speed>,
        speed_problem: Option<String>,
    }

    pub(super) fn examine(retest: bool, bench: bool) -> Result<Devices> {
        let (found, problem) = match device::gpus() {
            Ok(found) => (found, None),
            Err(error) => (Vec::new(), Some(format!("{error:#}"))),
        };
        let mut gpus = Vec::new();
        for gpu in found {
            let self_test = if retest {
                Some(selftest::test_anew(&gpu, Dtype::F32)?)
            } else {
                selftest::remembered(&gpu, Dtype::F32)
            };
            gpus.push(Found {
                measured: measure(bench, Some(gpu.idx)),
                self_test,
                gpu,
            });
        }
        Ok(Devices {
            cpu: measure(bench, None),
            gpus,
            problem,
        })
    }

    fn measure(bench: bool, idx: Option<usize>) -> Measured {
        if !bench {
            return Measured::default();
        }
        let name = idx.map_or_else(|| "cpu".to_owned(), |idx| format!("gpu:{idx}"));
        note(format!("measuring how fast {name} trains"));
        match probe::run(&Probe::Speed(idx), SPEED_TIMEOUT) {
            Ok(speed) => Measured {
                speed: Some(speed),
                speed_problem: None,
            },
            Err(error) => Measured {
                speed: None,
                speed_problem: Some(format!("{error:#}")),
            },
        }
    }

    impl fmt::Display for Measured {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            if let Some(speed) = &self.speed {
                write!(
                    f,
                    "; trains {:.0} tokens/s (first step {:.1} s",
                    speed.tokens_per_s, speed.first_step_s
                )?;
                if let Some(mib) = speed.peak_mib {
                    write!(f, ", {mib:.0} MiB of main memory")?;
                }
                f.write_str(")")?;
            }
            match &self.speed_problem {
                Some(problem) => write!(f, "; its speed cannot be measured: {problem}"),
                None => Ok(()),
            }
        }
    }

    impl fmt::Display for Devices {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            writeln!(f, "  train on     cpu{}", self.cpu)?;
            for found in &self.gpus {
                let gpu = &found.gpu;
                let kind = format!("{:?}", gpu.kind).to_lowercase();
                let state = found
                    .self_test
                    .as_ref()
                    .map_or_else(|| "not tested yet".to_owned(), ToString::to_string);
                writeln!(
                    f,
                    "  train on     gpu:{} {gpu}, {kind}, tensors up to {}; {state}{}",
                    gpu.idx,
                    human_bytes(gpu.max_binding_bytes),
                    found.measured
                )?;
            }
            match &self.problem {
                Some(problem) => writeln!(f, "  train on     the GPUs cannot be listed: {problem}"),
                None if self.gpus.is_empty() => {
                    writeln!(f, "  train on     no GPU: {}", no_gpu())
                }
                None => Ok(()),
            }
        }
    }

    fn no_gpu() -> &'static str {
        if cfg!(feature = "gpu") {
            "no driver for Vulkan, Metal or DirectX 12 answers"
        } else {
            "this build has no feature `gpu`"
        }
    }
}
