//! The device: an adapter with what the engine needs, buffers, read back, and errors that come late.
//!
//! Invariant: nothing here blocks in a browser. WebGPU reports most errors beside the call that caused them, so they are
//! kept in one place and [`Gpu::check`] hands them out after the next wait.

use crate::error::RuntimeError;
use futures_channel::oneshot;
use std::sync::{Arc, Mutex, PoisonError};
use wgpu::{BufferUsages, DeviceType, Limits};

/// Storage buffers that the widest kernel binds.
const STORAGE_BUFFERS: u32 = 7;
/// Bytes of workgroup memory that the hungriest kernel takes.
const WORKGROUP_BYTES: u32 = 16 * 1024;

/// How kernels are cut for an adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tuning {
    /// Threads of a workgroup in a product.
    pub wg: u32,
    /// Threads that share a pair of rows when one token is computed.
    pub row_lanes: u32,
    /// Threads that share a pair of rows when a tile of tokens is computed.
    pub tile_lanes: u32,
    /// Threads of a workgroup in attention.
    pub attention_wg: u32,
    /// Tokens of a prompt in one submission: the more, the better a GPU is used; the fewer, the sooner a stop is heeded.
    pub prefill_tokens: u32,
}

impl Tuning {
    /// On a GPU neighbouring threads read neighbouring blocks, and many are needed to hide latency.
    pub const HARDWARE: Self = Self {
        wg: 64,
        row_lanes: 16,
        tile_lanes: 8,
        attention_wg: 128,
        prefill_tokens: 128,
    };
    /// An adapter in software runs a thread to its end: a thread for each pair of rows, no reduction.
    pub const SOFTWARE: Self = Self {
        wg: 32,
        row_lanes: 1,
        tile_lanes: 1,
        attention_wg: 32,
        prefill_tokens: 32,
    };
}

/// A device with its queue. Cloning shares it.
#[derive(Debug, Clone)]
pub struct Gpu {
    pub(crate) device: wgpu::Device,
    pub(crate) queue: wgpu::Queue,
    name: String,
    tuning: Tuning,
    limits: Limits,
    fault: Arc<Mutex<Option<RuntimeError>>>,
}

impl Gpu {
    /// Asks for an adapter and a device with its full limits.
    ///
    /// # Errors
    /// [`RuntimeError::NoWebGpu`] with what is missing.
    pub async fn open() -> Result<Self, RuntimeError> {
        let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
        let options = wgpu::RequestAdapterOptions {
            power_preference: wgpu::PowerPreference::HighPerformance,
            ..Default::default()
        };
        let adapter = instance
            .request_adapter(&options)
            .await
            .map_err(|e| RuntimeError::NoWebGpu(format!("no adapter ({e})")))?;
        Self::from_adapter(&adapter, adapter.limits()).await
    }

    /// The adapter whose name contains `name`: `llvmpipe` is the software one that tests run on everywhere.
    ///
    /// # Errors
    /// [`RuntimeError::NoWebGpu`] with the names there are.
    #[cfg(not(target_arch = "wasm32"))]
    pub async fn open_named(name: &str) -> Result<Self, RuntimeError> {
        let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
        let adapters = instance.enumerate_adapters(wgpu::Backends::all()).await;
        if let Some(adapter) = adapters
            .iter()
            .find(|adapter| adapter.get_info().name.contains(name))
        {
            Self::from_adapter(adapter, adapter.limits()).await
        } else {
            let names: Vec<_> = adapters
                .iter()
                .map(|adapter| adapter.get_info().name)
                .collect();
            Err(RuntimeError::NoWebGpu(format!(
                "no adapter is named `{name}`, there are {names:?}"
            )))
        }
    }

    /// A device of `adapter` with `limits`, which a test may set lower than the adapter's.
    ///
    /// # Errors
    /// [`RuntimeError::NoWebGpu`] with what is missing.
    pub async fn from_adapter(
        adapter: &wgpu::Adapter,
        limits: Limits,
    ) -> Result<Self, RuntimeError> {
        require(
            "storage buffers in a shader",
            limits.max_storage_buffers_per_shader_stage,
            STORAGE_BUFFERS,
        )?;
        require(
            "bytes of workgroup memory",
            limits.max_compute_workgroup_storage_size,
            WORKGROUP_BYTES,
        )?;
        require(
            "threads in a workgroup",
            limits.max_compute_invocations_per_workgroup,
            256,
        )?;
        let info = adapter.get_info();
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("fledgling"),
            required_limits: limits.clone(),
            memory_hints: wgpu::MemoryHints::MemoryUsage,
            ..Default::default()
        };
        let (device, queue) = adapter.request_device(&descriptor).await.map_err(|e| {
            RuntimeError::NoWebGpu(format!("the adapter {} gives no device ({e})", info.name))
        })?;
        let fault = Arc::new(Mutex::new(None));
        watch(&device, &fault);
        let tuning = if is_software(&info) {
            Tuning::SOFTWARE
        } else {
            Tuning::HARDWARE
        };
        Ok(Self {
            device,
            queue,
            name: describe(&info),
            tuning,
            limits,
            fault,
        })
    }

    /// The adapter's name, for people.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How kernels are cut.
    pub fn tuning(&self) -> Tuning {
        self.tuning
    }

    /// Sets how kernels are cut, for tests and measurements; engines made before keep theirs.
    pub fn set_tuning(&mut self, tuning: Tuning) {
        self.tuning = tuning;
    }

    /// The largest buffer that a kernel can bind.
    pub fn max_binding_bytes(&self) -> u64 {
        self.limits
            .max_storage_buffer_binding_size
            .min(self.limits.max_buffer_size)
    }

    /// The largest number of workgroups in one direction.
    pub(crate) fn max_workgroups(&self) -> u32 {
        self.limits.max_compute_workgroups_per_dimension
    }

    /// The first error that the device reported, if there was one.
    ///
    /// # Errors
    /// That error; it stays, since a device that failed once cannot be trusted.
    pub fn check(&self) -> Result<(), RuntimeError> {
        match &*self.fault.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(fault) => Err(fault.clone()),
            None => Ok(()),
        }
    }

    /// A buffer of `len_bytes` rounded up to whole words, zeroed.
    pub(crate) fn buffer(&self, label: &str, len_bytes: u64, usage: BufferUsages) -> wgpu::Buffer {
        let size = len_bytes.next_multiple_of(4).max(16);
        let usage = usage | BufferUsages::COPY_DST;
        self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some(label),
            size,
            usage,
            mapped_at_creation: false,
        })
    }

    /// A buffer for kernels.
    pub(crate) fn storage(&self, label: &str, len_bytes: u64) -> wgpu::Buffer {
        self.buffer(
            label,
            len_bytes,
            BufferUsages::STORAGE | BufferUsages::COPY_SRC,
        )
    }

    /// A small buffer of parameters.
    pub(crate) fn uniform(&self, label: &str, words: &[u32]) -> wgpu::Buffer {
        let bytes: &[u8] = bytemuck::cast_slice(words);
        let buffer = self.buffer(
            label,
            bytes.len().next_multiple_of(16) as u64,
            BufferUsages::UNIFORM,
        );
        self.queue.write_buffer(&buffer, 0, bytes);
        buffer
    }

    /// Waits until all that was submitted is done.
    ///
    /// # Errors
    /// What the device reported.
    pub async fn finish(&self) -> Result<(), RuntimeError> {
        let (sender, receiver) = oneshot::channel();
        self.queue.on_submitted_work_done(move || {
            // The receiver is gone when the caller was dropped.
            let _ = sender.send(());
        });
        self.pump(None);
        let done = receiver.await;
        self.check()?;
        done.map_err(|_| RuntimeError::DeviceLost("the queue stopped".to_owned()))
    }

    /// Starts to map a buffer of usage `MAP_READ` that `submission` wrote to.
    pub(crate) fn start_read(
        &self,
        buffer: wgpu::Buffer,
        submission: wgpu::SubmissionIndex,
    ) -> Pending {
        let (sender, receiver) = oneshot::channel();
        buffer.map_async(wgpu::MapMode::Read, .., move |result| {
            let _ = sender.send(result.is_ok());
        });
        Pending {
            gpu: self.clone(),
            buffer,
            submission,
            receiver,
        }
    }

    /// Waits for `submission` (or all of them). A browser runs callbacks by itself and must not block.
    #[cfg_attr(
        target_arch = "wasm32",
        allow(
            clippy::unused_self,
            clippy::needless_pass_by_value,
            unused_variables,
            reason = "nothing to do in a browser"
        )
    )]
    fn pump(&self, submission: Option<wgpu::SubmissionIndex>) {
        #[cfg(not(target_arch = "wasm32"))]
        if let Err(error) = self.device.poll(wgpu::PollType::Wait {
            submission_index: submission,
            timeout: None,
        }) {
            keep(&self.fault, RuntimeError::DeviceLost(error.to_string()));
        }
    }
}

/// A read back under way.
#[derive(Debug)]
pub(crate) struct Pending {
    gpu: Gpu,
    buffer: wgpu::Buffer,
    submission: wgpu::SubmissionIndex,
    receiver: oneshot::Receiver<bool>,
}

impl Pending {
    /// Waits for the bytes, hands them to `take`, and returns its result and the buffer for the next read.
    pub(crate) async fn wait<T>(
        self,
        take: impl FnOnce(&[u8]) -> T,
    ) -> Result<(T, wgpu::Buffer), RuntimeError> {
        self.gpu.pump(Some(self.submission));
        let mapped = self.receiver.await.unwrap_or(false);
        self.gpu.check()?;
        if !mapped {
            return Err(RuntimeError::DeviceLost(
                "a buffer could not be read".to_owned(),
            ));
        }
        let range = self
            .buffer
            .get_mapped_range(..)
            .map_err(|e| RuntimeError::DeviceLost(e.to_string()))?;
        let taken = take(&range);
        drop(range);
        self.buffer.unmap();
        Ok((taken, self.buffer))
    }
}

fn require(what: &str, have: u32, need: u32) -> Result<(), RuntimeError> {
    if have < need {
        return Err(RuntimeError::NoWebGpu(format!(
            "the adapter allows {have} {what}, and {need} are needed"
        )));
    }
    Ok(())
}

fn describe(info: &wgpu::AdapterInfo) -> String {
    if info.name.is_empty() {
        format!("{:?} adapter", info.backend)
    } else {
        info.name.clone()
    }
}

fn is_software(info: &wgpu::AdapterInfo) -> bool {
    let name = info.name.to_lowercase();
    info.device_type == DeviceType::Cpu || name.contains("swiftshader") || name.contains("llvmpipe")
}

fn keep(fault: &Mutex<Option<RuntimeError>>, error: RuntimeError) {
    fault
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .get_or_insert(error);
}

/// Keeps the device's own reports: errors nobody asked for, and its loss.
fn watch(device: &wgpu::Device, fault: &Arc<Mutex<Option<RuntimeError>>>) {
    let uncaptured = Arc::clone(fault);
    device.on_uncaptured_error(Arc::new(move |error| {
        let error = match error {
            wgpu::Error::OutOfMemory { .. } => {
                RuntimeError::OutOfMemory("the GPU has no room for the model".to_owned())
            }
            other => RuntimeError::Internal(other.to_string()),
        };
        keep(&uncaptured, error);
    }));
    let lost = Arc::clone(fault);
    device.set_device_lost_callback(move |reason, message| {
        if reason != wgpu::DeviceLostReason::Destroyed {
            keep(&lost, RuntimeError::DeviceLost(message));
        }
    });
}
