//! Where it computes: which devices there are, which one a config means, and what becomes of a device that fails.
//!
//! A GPU is used only after [`super::selftest`] has agreed with the CPU on it, or on the user's word. Its drivers are
//! foreign code that may crash or hang, so whatever is first done with them is done in a child process
//! ([`super::probe`]).

use super::{
    composed,
    config::Dtype,
    probe::{self, Probe},
    selftest::{self, Outcome},
};
use crate::{files::human_bytes, output::note};
use anyhow::{Context, Result, bail, ensure};
use burn::tensor::{Device, FloatDType};
use fledgling_core::spec::{ModelSpec, tensor_table};
use fledgling_kernels::Precision;
use serde::{Deserialize, Serialize};
use std::{
    fmt,
    panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind},
    str::FromStr,
    sync::{Mutex, Once, PoisonError},
};

/// What a config or an option asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Choice {
    /// A hardware GPU that passes the self-test, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// A GPU: the one of this number in `fledgling doctor`, or the best.
    Gpu(Option<usize>),
}

impl FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbered = |number: &str| number.parse().ok().map(|idx| Self::Gpu(Some(idx)));
        match text {
            "auto" => Some(Self::Auto),
            "cpu" => Some(Self::Cpu),
            "gpu" => Some(Self::Gpu(None)),
            _ => text.strip_prefix("gpu:").and_then(numbered),
        }
        .ok_or_else(|| {
            format!("{text:?} is no device: use \"auto\", \"cpu\", \"gpu\", or \"gpu:N\" with N from `fledgling doctor`")
        })
    }
}

impl TryFrom<String> for Choice {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Gpu(None) => f.write_str("gpu"),
            Self::Gpu(Some(idx)) => write!(f, "gpu:{idx}"),
        }
    }
}

impl From<Choice> for String {
    fn from(choice: Choice) -> Self {
        choice.to_string()
    }
}

/// Kinds of adapters, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A card of its own.
    Discrete,
    /// Part of the processor.
    Integrated,
    /// A share of a GPU, in a virtual machine.
    Virtual,
    /// A GPU that does not say what it is.
    Other,
    /// The CPU behind a GPU's interface (lavapipe, SwiftShader, WARP): right, and slower than the CPU itself.
    Software,
}

/// A GPU as its driver describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gpu {
    /// Its number: `gpu:N`.
    pub idx: usize,
    /// The adapter's name.
    pub name: String,
    /// The interface it is reached by: `vulkan`, `metal`, `dx12`, `gl` or `cuda`.
    pub backend: String,
    /// The driver and its version.
    pub driver: String,
    /// What it is.
    pub kind: Kind,
    /// Its number among those of its kind on this interface, which is how Burn addresses it.
    pub idx_of_kind: usize,
    /// Largest buffer.
    pub max_buffer_bytes: u64,
    /// Largest buffer that a kernel sees at once: no single tensor is larger.
    pub max_binding_bytes: u64,
}

impl Gpu {
    /// Whether it is the CPU in disguise.
    pub fn is_software(&self) -> bool {
        self.kind == Kind::Software
    }

    /// Burn's handle, without autodiff. Nothing is opened before the first tensor.
    ///
    /// # Errors
    /// When this build cannot reach it.
    pub fn device(&self) -> Result<Device> {
        configure(self.is_software());
        open(self)
    }
}

impl fmt::Display for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}, {})", self.name, self.backend, self.driver)
    }
}

/// The GPUs that this build reaches, best first. The driver is loaded into this process: see [`gpus`].
///
/// # Errors
/// Never on a build without GPUs, which has none.
#[cfg(feature = "gpu")]
pub fn enumerate() -> Vec<Gpu> {
    use burn::tensor::wgpu::wgpu;
    // What Burn takes: the first interface with a GPU, else the first with anything.
    let interfaces: &[wgpu::Backend] = if cfg!(target_vendor = "apple") {
        &[wgpu::Backend::Metal]
    } else {
        &[
            wgpu::Backend::Vulkan,
            wgpu::Backend::Dx12,
            wgpu::Backend::Gl,
        ]
    };
    let mut software = Vec::new();
    for &interface in interfaces {
        let found = adapters(interface);
        if found.iter().any(|gpu| !gpu.is_software()) {
            return numbered(found);
        }
        if software.is_empty() {
            software = found;
        }
    }
    numbered(software)
}

/// A build without the feature `gpu` reaches none.
#[cfg(not(feature = "gpu"))]
pub fn enumerate() -> Vec<Gpu> {
    Vec::new()
}

#[cfg(feature = "gpu")]
fn numbered(mut found: Vec<Gpu>) -> Vec<Gpu> {
    #[cfg(feature = "cuda")]
    found.extend(cuda_devices());
    // CUDA before the same card's other interfaces.
    found.sort_by_key(|gpu| (gpu.kind, gpu.backend != "cuda"));
    for (idx, gpu) in found.iter_mut().enumerate() {
        gpu.idx = idx;
    }
    found
}

#[cfg(feature = "cuda")]
fn cuda_devices() -> Vec<Gpu> {
    let devices = Device::enumerate(burn::tensor::DeviceType::Cuda).into_vec();
    let describe = |(idx_of_kind, device): (usize, Device)| {
        let identity = device.identity()?;
        Some(Gpu {
            idx: 0,
            name: identity.name,
            backend: "cuda".to_owned(),
            driver: identity.fingerprint,
            kind: Kind::Discrete,
            idx_of_kind,
            max_buffer_bytes: u64::MAX,
            max_binding_bytes: u64::MAX,
        })
    };
    devices
        .into_iter()
        .enumerate()
        .filter_map(describe)
        .collect()
}

#[cfg(feature = "gpu")]
fn adapters(interface: burn::tensor::wgpu::wgpu::Backend) -> Vec<Gpu> {
    use burn::tensor::{
        read_sync,
        wgpu::wgpu::{DeviceType, Instance, InstanceDescriptor},
    };
    let instance = Instance::new(InstanceDescriptor {
        backends: interface.into(),
        ..InstanceDescriptor::new_without_display_handle()
    });
    let mut n_of_kind = std::collections::BTreeMap::<Kind, usize>::new();
    let describe = |adapter: &burn::tensor::wgpu::wgpu::Adapter| {
        let (info, limits) = (adapter.get_info(), adapter.limits());
        let kind = match info.device_type {
            DeviceType::DiscreteGpu => Kind::Discrete,
            DeviceType::IntegratedGpu => Kind::Integrated,
            DeviceType::VirtualGpu => Kind::Virtual,
            DeviceType::Cpu => Kind::Software,
            DeviceType::Other => Kind::Other,
        };
        let n = n_of_kind.entry(kind).or_default();
        let idx_of_kind = *n;
        *n += 1;
        let driver = format!("{} {}", info.driver, info.driver_info);
        Gpu {
            idx: 0,
            name: info.name,
            backend: info.backend.to_str().to_owned(),
            driver: driver.trim().to_owned(),
            kind,
            idx_of_kind,
            max_buffer_bytes: limits.max_buffer_size,
            max_binding_bytes: limits.max_storage_buffer_binding_size,
        }
    };
    read_sync(instance.enumerate_adapters(interface.into()))
        .iter()
        .map(describe)
        .collect()
}

#[cfg(feature = "gpu")]
fn open(gpu: &Gpu) -> Result<Device> {
    use burn::backend::{WgpuBackend, WgpuDevice, WgpuDeviceKind};
    #[cfg(feature = "cuda")]
    if gpu.backend == "cuda" {
        return Ok(Device::cuda(gpu.idx_of_kind));
    }
    let interface = match gpu.backend.as_str() {
        "vulkan" => WgpuBackend::Vulkan,
        "metal" => WgpuBackend::Metal,
        "dx12" => WgpuBackend::Dx12,
        "gl" => WgpuBackend::Gl,
        other => bail!("this build cannot reach {} by {other}", gpu.name),
    };
    let kind = match gpu.kind {
        Kind::Discrete => WgpuDeviceKind::DiscreteGpu(gpu.idx_of_kind),
        Kind::Integrated => WgpuDeviceKind::IntegratedGpu(gpu.idx_of_kind),
        Kind::Virtual => WgpuDeviceKind::VirtualGpu(gpu.idx_of_kind),
        Kind::Other => WgpuDeviceKind::Other(gpu.idx_of_kind),
        Kind::Software if gpu.idx_of_kind == 0 => WgpuDeviceKind::Cpu,
        Kind::Software => bail!(
            "{}: only the first software GPU of an interface can be reached",
            gpu.name
        ),
    };
    Ok(Device::new(WgpuDevice::new(kind).on(interface)))
}

#[cfg(not(feature = "gpu"))]
fn open(gpu: &Gpu) -> Result<Device> {
    bail!("this build cannot reach {gpu}: it has no feature `gpu`")
}

/// Puts what `CubeCL` measures about kernels (which are fastest for a shape) in our own folder, and lets it measure
/// little on a software GPU, where measuring takes longer than any kernel saves. A `cubecl.toml` and `CubeCL`'s
/// environment variables still count.
#[cfg(feature = "gpu")]
fn configure(software: bool) {
    use cubecl::config::{
        CubeClRuntimeConfig, RuntimeConfig, autotune::AutotuneLevel, cache::CacheConfig,
    };
    let mut config = CubeClRuntimeConfig::default();
    if let Ok(home) = crate::cache::home() {
        config.environment.path = CacheConfig::Directory(home.join("kernels"));
    }
    if software {
        config.autotune.level = AutotuneLevel::Minimal;
    }
    // False when it was configured before: once a process.
    let _ = CubeClRuntimeConfig::try_set(config.override_from_env());
}

#[cfg(not(feature = "gpu"))]
fn configure(_software: bool) {}

/// The GPUs of this machine, asked for in a child process when this is the command.
///
/// # Errors
/// When the drivers crash the child, or take too long.
pub fn gpus() -> Result<Vec<Gpu>> {
    if !may_have_gpus() {
        return Ok(Vec::new());
    }
    probe::run(&Probe::List, probe::LIST_TIMEOUT)
}

/// Whether it is worth asking: a Linux machine without these files has no driver that could answer, software GPUs that
/// someone points Vulkan to apart.
fn may_have_gpus() -> bool {
    if !cfg!(feature = "gpu") {
        return false;
    }
    let named = ["VK_DRIVER_FILES", "VK_ICD_FILENAMES", "VK_ADD_DRIVER_FILES"]
        .iter()
        .any(|name| std::env::var_os(name).is_some());
    let there = ["/dev/dri", "/dev/nvidiactl", "/dev/dxg", "/dev/kgsl-3d0"]
        .iter()
        .any(|path| std::path::Path::new(path).exists());
    !cfg!(target_os = "linux") || named || there || software_drivers()
}

/// Vulkan drivers in the usual folders.
fn software_drivers() -> bool {
    ["/usr/share/vulkan/icd.d", "/etc/vulkan/icd.d"]
        .iter()
        .any(|folder| std::fs::read_dir(folder).is_ok_and(|mut files| files.next().is_some()))
}

/// A device for a run.
#[derive(Debug, Clone)]
pub struct Chosen {
    /// Burn's handle, without autodiff.
    pub device: Device,
    /// What it is, in words.
    pub name: String,
    /// Why it was taken.
    pub why: String,
    /// Largest tensor that it holds, where it has such a limit.
    pub max_tensor_bytes: Option<u64>,
}

impl Chosen {
    /// Checks that every tensor of a run fits, so that it ends before the first step and not in the driver.
    ///
    /// # Errors
    /// With the tensor, its size, and what to lower.
    pub fn check_sizes(&self, spec: &ModelSpec, batch: usize, max_tokens: usize) -> Result<()> {
        let Some(limit) = self.max_tensor_bytes else {
            return Ok(());
        };
        let check = |what: &str, n_values: usize, advice: &str| {
            let len_bytes = 4 * n_values as u64;
            ensure!(
                len_bytes <= limit,
                "{what} takes {}, and {} holds no tensor above {}: {advice}",
                human_bytes(len_bytes),
                self.name,
                human_bytes(limit)
            );
            Ok(())
        };
        for entry in tensor_table(spec) {
            let n = entry.shape.iter().product();
            check(
                &format!("the matrix `{}`", entry.gguf),
                n,
                "train on the CPU (--set device=cpu) or on another GPU",
            )?;
        }
        check(
            &format!("a chunk of logits of {} tokens", spec.vocab_size),
            super::loss::CHUNK_ROWS * spec.vocab_size,
            "take a smaller vocabulary, or train on the CPU (--set device=cpu)",
        )?;
        let widest = spec
            .n_ff
            .max((spec.n_head + 2 * spec.n_kv_head) * spec.head_dim)
            .max(spec.n_embd);
        check(
            &format!("a batch of {batch} rows of {max_tokens} tokens"),
            batch * max_tokens * widest,
            "lower train.batch (and raise train.accumulate by as much, which computes the same) or data.max_tokens",
        )
    }

    /// The CPU, from now on multiplying in bf16.
    fn in_bf16(mut self, trust: bool) -> Result<Self> {
        if !Precision::Bf16.is_native() {
            bail!(
                "train.dtype = \"bf16\": this CPU has no instructions for it (AVX512-BF16). Train in \"f32\", or on a GPU with a build with the feature `vulkan` or `cuda` ({})",
                self.why
            );
        }
        let outcome = selftest::cpu_in_bf16();
        match (&outcome, trust) {
            (Outcome::Passed { .. }, _) => {}
            (_, true) => note(format!(
                "WARNING: bf16 is used against its self-test, because of --trust-device: {outcome}"
            )),
            (_, false) => {
                bail!("train.dtype = \"bf16\" is not used on this CPU: {outcome}. Train in \"f32\"")
            }
        }
        Precision::Bf16.make_current();
        self.name.push_str(", bf16");
        self.why = format!("{}; {outcome}", self.why);
        Ok(self)
    }

    fn cpu(why: impl Into<String>) -> Self {
        Self {
            device: Device::flex(),
            name: format!("CPU ({})", crate::bench::machine()),
            why: why.into(),
            max_tensor_bytes: None,
        }
    }
}

/// Whether a device is the CPU backend.
pub fn is_cpu(device: &Device) -> bool {
    *device == Device::flex()
}

/// The device that `choice` means. A GPU that has not been tested is, first; `trust` takes it whatever the test says.
///
/// # Errors
/// When it is not there, cannot compute in `dtype`, or fails the test and is not trusted.
pub fn choose(choice: Choice, dtype: Dtype, trust: bool) -> Result<Chosen> {
    let chosen = match choice {
        Choice::Cpu => Chosen::cpu("device = \"cpu\""),
        Choice::Auto => automatic(dtype)?,
        Choice::Gpu(idx) => explicit(idx, dtype, trust)?,
    };
    if dtype == Dtype::Bf16 && is_cpu(&chosen.device) {
        return chosen.in_bf16(trust);
    }
    Ok(chosen)
}

fn automatic(dtype: Dtype) -> Result<Chosen> {
    let found = match gpus() {
        Ok(found) => found,
        Err(error) => {
            note(format!(
                "the GPUs of this machine cannot be listed: {error:#}"
            ));
            return Ok(Chosen::cpu("the GPUs cannot be listed"));
        }
    };
    let Some(gpu) = found.iter().find(|gpu| !gpu.is_software()) else {
        let why = match found.first() {
            Some(gpu) => format!(
                "the only GPU is software ({}), slower than the CPU itself",
                gpu.name
            ),
            None if cfg!(feature = "gpu") => "there is no GPU".to_owned(),
            None => "this build has no feature `gpu`".to_owned(),
        };
        return Ok(Chosen::cpu(why));
    };
    let outcome = selftest::outcome(gpu, dtype)?;
    if let Outcome::Passed { .. } = outcome {
        return Ok(Chosen {
            device: usable(gpu, dtype)?,
            name: gpu.to_string(),
            why: outcome.to_string(),
            max_tensor_bytes: Some(gpu.max_binding_bytes),
        });
    }
    note(format!(
        "{gpu} is not used: {outcome}. Train on the CPU with device = \"cpu\" to be rid of this line"
    ));
    Ok(Chosen::cpu(format!("the self-test failed on {}", gpu.name)))
}

fn explicit(idx: Option<usize>, dtype: Dtype, trust: bool) -> Result<Chosen> {
    let found = gpus()?;
    let list = || {
        let lines: Vec<_> = found
            .iter()
            .map(|gpu| format!("gpu:{} is {gpu}", gpu.idx))
            .collect();
        lines.join("; ")
    };
    let gpu = match idx {
        _ if found.is_empty() && cfg!(feature = "gpu") => bail!(
            "device = \"gpu\": no GPU is found here. It needs a driver for Vulkan (Linux, Windows), Metal or DirectX 12; `fledgling doctor` shows what is seen"
        ),
        _ if found.is_empty() => {
            bail!("device = \"gpu\": this build has no feature `gpu`")
        }
        None => &found[0],
        Some(idx) => found
            .get(idx)
            .with_context(|| format!("device = \"gpu:{idx}\": there is no such GPU; {}", list()))?,
    };
    let outcome = selftest::outcome(gpu, dtype)?;
    let why = match (&outcome, trust) {
        (Outcome::Passed { .. }, _) => outcome.to_string(),
        (_, true) => {
            note(format!(
                "WARNING: {gpu} is used against its self-test, because of --trust-device: {outcome}. Its results may be wrong"
            ));
            format!("{outcome}; trusted by --trust-device")
        }
        (_, false) => bail!(
            "{gpu} is not used: {outcome}. Train on the CPU (--set device=cpu), update the driver and test again (`fledgling doctor --retest`), or, if you know better, take it with --trust-device"
        ),
    };
    Ok(Chosen {
        device: usable(gpu, dtype)?,
        name: gpu.to_string(),
        why,
        max_tensor_bytes: Some(gpu.max_binding_bytes),
    })
}

/// The device, once it can compute in `dtype`, and does.
///
/// # Errors
/// When it cannot.
pub fn usable(gpu: &Gpu, dtype: Dtype) -> Result<Device> {
    let device = gpu.device()?;
    composed::compute_in(dtype);
    if dtype == Dtype::Bf16 && !device.supports_dtype(FloatDType::BF16) {
        bail!(
            "train.dtype = \"bf16\": {gpu} has no bf16 in this build. WGSL knows none: it takes the feature `vulkan` (SPIR-V) or `cuda`, and a card that has it; or train in \"f32\""
        );
    }
    Ok(device)
}

/// The first panic of any thread since the hook was set, and whether panics are recorded instead of printed.
static PANIC: Mutex<(bool, Option<String>)> = Mutex::new((false, None));

fn panics() -> std::sync::MutexGuard<'static, (bool, Option<String>)> {
    PANIC.lock().unwrap_or_else(PoisonError::into_inner)
}

fn record_panic(info: &PanicHookInfo<'_>) -> bool {
    let mut panics = panics();
    if panics.0 && panics.1.is_none() {
        let payload = info.payload();
        let message = payload
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| payload.downcast_ref::<&str>().copied())
            .unwrap_or("a panic without a message");
        panics.1 = Some(message.to_owned());
    }
    panics.0
}

/// Runs work on a device. A GPU's failures (out of memory, lost) come from Burn as panics of this or of its own
/// threads: they become one error that says what to lower.
///
/// # Errors
/// What `work` returns, and what the device threw.
pub fn guard<T>(device: &Device, work: impl FnOnce() -> Result<T>) -> Result<T> {
    static HOOK: Once = Once::new();
    if is_cpu(device) {
        return work();
    }
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !record_panic(info) {
                before(info);
            }
        }));
    });
    *panics() = (true, None);
    let result = catch_unwind(AssertUnwindSafe(work));
    let (_, first) = std::mem::take(&mut *panics());
    match result {
        Ok(result) => result,
        Err(_) => bail!("{}", explain(&first.unwrap_or_default())),
    }
}

fn explain(panic: &str) -> String {
    // A backtrace and the like follow on later lines.
    let reason = panic
        .lines()
        .find(|line| !line.trim().is_empty())
        .unwrap_or("no reason given");
    let lower = panic.to_lowercase();
    let memory = [
        "out of memory",
        "outofmemory",
        "memory allocation",
        "buffer size",
        "max_buffer_size",
        "binding size",
        "bufferbinding",
        "too large",
        "can't allocate",
    ];
    if memory.iter().any(|word| lower.contains(word)) {
        format!(
            "the GPU has not enough memory for this ({reason}): lower train.batch (and raise train.accumulate by as much, which computes the same), lower data.max_tokens, set train.recompute = true, or train a LoRA instead of all weights (mode = \"lora\")"
        )
    } else if lower.contains("lost") || lower.contains("poison") {
        format!(
            "the GPU was lost ({reason}): the driver was reset, or a kernel took longer than the system allows. Go on with --resume; if it comes again, lower train.batch or data.max_tokens"
        )
    } else {
        format!(
            "the GPU failed ({reason}): go on with --resume, lower train.batch or data.max_tokens, or train on the CPU (--set device=cpu)"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_are_read_and_written() {
        for text in ["auto", "cpu", "gpu", "gpu:3"] {
            assert_eq!(text.parse::<Choice>().unwrap().to_string(), text);
        }
        for text in ["", "gpu:", "gpu:x", "cuda", "gpu:-1"] {
            assert!(text.parse::<Choice>().unwrap_err().contains("\"gpu:N\""));
        }
    }

    #[test]
    fn a_tensor_that_no_buffer_holds_is_named_before_the_first_step() {
        let spec = crate::train::config::ModelConfig::new(
            crate::train::config::FamilyName::Gpt2,
            1,
            64,
            2,
            128,
        )
        .spec(50_000);
        let mut chosen = Chosen::cpu("");
        chosen.check_sizes(&spec, 1 << 20, 128).unwrap();
        let mut check = |limit, batch, expect: &str| {
            chosen.max_tensor_bytes = Some(limit);
            let error = chosen
                .check_sizes(&spec, batch, 128)
                .unwrap_err()
                .to_string();
            assert!(error.contains(expect), "{error}");
        };
        check(1 << 20, 1, "token_embd.weight");
        check(1 << 25, 1, "logits of 50000");
        check(1 << 27, 4096, "lower train.batch");
        chosen.max_tensor_bytes = Some(1 << 27);
        chosen.check_sizes(&spec, 8, 128).unwrap();
    }

    #[test]
    fn what_a_device_throws_becomes_advice() {
        let gpu = Device::flex();
        assert_eq!(guard(&gpu, || Ok(3)).unwrap(), 3);
        for (panic, advice) in [
            (
                "wgpu error: Out of Memory\n\nCaused by",
                "lower train.batch",
            ),
            (
                "Buffer size 600 is greater than the maximum buffer size",
                "lower train.batch",
            ),
            ("the device is poisoned: Unknown: device lost", "--resume"),
            ("index out of bounds", "device=cpu"),
        ] {
            let text = explain(panic);
            assert!(
                text.contains(advice) && text.contains(panic.lines().next().unwrap()),
                "{text}"
            );
        }
    }
}
