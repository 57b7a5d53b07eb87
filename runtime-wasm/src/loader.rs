//! A model out of bytes that arrive in order.
//!
//! On the GPU path a tensor's rows are uploaded as they come, so that the file is never in memory as a whole; on the CPU
//! path the file is kept once, and the engine borrows its weights from it.

use crate::{
    engine::GpuEngine,
    error::RuntimeError,
    gpu::Gpu,
    run::{CpuRuntime, Engine},
    weights::{Weights, without_shaders},
};
use bytes::Bytes;
use fledgling_core::{
    cpu::{CpuEngine, CpuOptions, KvDType},
    gguf::{Gguf, GgufError, Header, TensorInfo},
    model::ModelInfo,
    quant,
    spec::ROPE_FREQS,
};

/// Bytes of a tensor that are gathered before they are uploaded.
const UPLOAD_BYTES: usize = 1 << 20;
/// The context when nobody asks for one: a cache for all positions of a long-context model would not fit most devices.
const DEFAULT_N_CTX: usize = 4096;

/// Where the model will compute.
#[derive(Debug)]
pub enum Target {
    /// On this device.
    Gpu(Gpu),
    /// On this device when it has shaders for the file's types, else on the CPU.
    Auto(Gpu),
    /// On the CPU, and why, when the GPU was asked for.
    Cpu {
        /// Why it is not the GPU.
        reason: Option<String>,
    },
}

/// A model that is arriving.
#[derive(Debug)]
pub struct Loader {
    target: Target,
    n_received: u64,
    state: State,
}

#[derive(Debug)]
enum State {
    /// The header is not complete; trying again makes sense when this many bytes are there.
    Header {
        bytes: Vec<u8>,
        retry_at: usize,
    },
    Cpu {
        bytes: Vec<u8>,
        file_bytes: u64,
    },
    Gpu(Box<Upload>),
    /// An error was handed out.
    Broken,
}

/// A model on its way to the GPU.
#[derive(Debug)]
struct Upload {
    gpu: Gpu,
    info: ModelInfo,
    header: Header,
    weights: Weights,
    /// The tensors that the engine wants, by their place in the file, the next one last.
    left: Vec<TensorInfo>,
    /// Rows of it that were uploaded.
    n_rows_done: usize,
    /// Bytes of it that were not.
    pending: Vec<u8>,
    /// Place in the file.
    at: u64,
    rope_freqs: Option<Vec<f32>>,
}

/// A model that is ready.
#[derive(Debug)]
pub struct Loaded {
    /// What the header says.
    pub info: ModelInfo,
    /// The header itself; its metadata are shown to people.
    pub header: Header,
    /// What computes.
    pub engine: Engine,
    /// Positions of the context.
    pub n_ctx: usize,
    /// The device's name.
    pub device_name: String,
    /// Why it is not the GPU.
    pub reason: Option<String>,
    /// Bytes of the file.
    pub file_bytes: u64,
}

impl Loader {
    /// A loader for this target.
    pub fn new(target: Target) -> Self {
        Self {
            target,
            n_received: 0,
            state: State::Header {
                bytes: Vec::new(),
                retry_at: 0,
            },
        }
    }

    /// The size of the whole file, once the header is there.
    pub fn file_bytes(&self) -> Option<u64> {
        match &self.state {
            State::Cpu { file_bytes, .. } => Some(*file_bytes),
            State::Gpu(upload) => Some(upload.header.file_len_bytes()),
            State::Header { .. } | State::Broken => None,
        }
    }

    /// Takes the next bytes of the file.
    ///
    /// # Errors
    /// As soon as they cannot become a model; the loader is of no use then.
    pub fn push(&mut self, chunk: &[u8]) -> Result<(), RuntimeError> {
        self.n_received += chunk.len() as u64;
        match &mut self.state {
            State::Header { bytes, retry_at } => {
                bytes.extend_from_slice(chunk);
                if bytes.len() >= *retry_at {
                    self.try_header()
                } else {
                    Ok(())
                }
            }
            State::Cpu { bytes, .. } => {
                bytes.extend_from_slice(chunk);
                Ok(())
            }
            State::Gpu(upload) => upload.push(chunk),
            State::Broken => Err(RuntimeError::Internal(
                "the loader failed before".to_owned(),
            )),
        }
    }

    /// Parses the header when it is complete.
    fn try_header(&mut self) -> Result<(), RuntimeError> {
        let State::Header { bytes, retry_at } = &mut self.state else {
            return Ok(());
        };
        let header = match Header::parse(bytes) {
            Ok(header) => header,
            Err(GgufError::Incomplete { need, .. }) => {
                // Growing by half each time keeps the cost of all tries linear in the header's length.
                *retry_at = (bytes.len() + bytes.len() / 2).max(need as usize);
                return Ok(());
            }
            Err(error) => {
                self.state = State::Broken;
                return Err(RuntimeError::from(&error));
            }
        };
        let State::Header { mut bytes, .. } = std::mem::replace(&mut self.state, State::Broken)
        else {
            return Ok(());
        };
        let info = ModelInfo::from_header(&header).map_err(|e| RuntimeError::from(&e))?;
        let file_bytes = header.file_len_bytes();
        if let Target::Auto(gpu) = &self.target {
            self.target = match without_shaders(&header) {
                None => Target::Gpu(gpu.clone()),
                reason => Target::Cpu { reason },
            };
        }
        self.state = match &self.target {
            Target::Cpu { .. } => {
                let more = file_bytes.saturating_sub(bytes.len() as u64) as usize;
                bytes.try_reserve_exact(more).map_err(|_| {
                    RuntimeError::OutOfMemory(format!(
                        "the page cannot hold a file of {file_bytes} bytes"
                    ))
                })?;
                State::Cpu { bytes, file_bytes }
            }
            Target::Gpu(gpu) | Target::Auto(gpu) => {
                let mut upload = Upload::new(gpu.clone(), info, header)?;
                upload.push(&bytes)?;
                State::Gpu(Box::new(upload))
            }
        };
        Ok(())
    }

    /// Builds the engine. `n_ctx` is the context; not given, the model's own, at most 4096.
    ///
    /// # Errors
    /// When bytes are missing, or the engine cannot be built.
    pub async fn finish(mut self, n_ctx: Option<usize>) -> Result<Loaded, RuntimeError> {
        if n_ctx == Some(0) {
            return Err(RuntimeError::BadOption(
                "nCtx must be at least 1".to_owned(),
            ));
        }
        self.try_header()?;
        let have = self.n_received;
        match self.state {
            State::Header { bytes, .. } => {
                let need = match Header::parse(&bytes) {
                    Err(GgufError::Incomplete { need, .. }) => need,
                    _ => have + 1,
                };
                Err(RuntimeError::Truncated { have, need })
            }
            State::Cpu { bytes, file_bytes } => {
                complete(have, file_bytes)?;
                let reason = if let Target::Cpu { reason } = self.target {
                    reason
                } else {
                    None
                };
                finish_cpu(bytes, file_bytes, n_ctx, reason)
            }
            State::Gpu(upload) => {
                complete(have, upload.header.file_len_bytes())?;
                upload.finish(n_ctx).await
            }
            State::Broken => Err(RuntimeError::Internal(
                "the loader failed before".to_owned(),
            )),
        }
    }
}

fn complete(have: u64, need: u64) -> Result<(), RuntimeError> {
    if have < need {
        Err(RuntimeError::Truncated { have, need })
    } else {
        Ok(())
    }
}

fn context(n_ctx: Option<usize>, own: usize) -> usize {
    n_ctx.unwrap_or_else(|| own.min(DEFAULT_N_CTX))
}

fn finish_cpu(
    bytes: Vec<u8>,
    file_bytes: u64,
    n_ctx: Option<usize>,
    reason: Option<String>,
) -> Result<Loaded, RuntimeError> {
    let gguf = Gguf::parse(Bytes::from(bytes)).map_err(|e| RuntimeError::from(&e))?;
    let info = ModelInfo::from_header(gguf.header()).map_err(|e| RuntimeError::from(&e))?;
    let options = CpuOptions {
        n_threads: 1,
        isa: None,
        kv: KvDType::F16,
    };
    let engine = CpuEngine::new(&gguf, &options).map_err(|e| RuntimeError::from(&e))?;
    let n_ctx = context(n_ctx, info.spec.n_ctx);
    let session = engine.session(n_ctx).map_err(|e| RuntimeError::from(&e))?;
    let device_name = format!("CPU ({})", engine.isa());
    let header = gguf.header().clone();
    let engine = Engine::Cpu(Box::new(CpuRuntime { engine, session }));
    Ok(Loaded {
        info,
        header,
        engine,
        n_ctx,
        device_name,
        reason,
        file_bytes,
    })
}

impl Upload {
    fn new(gpu: Gpu, info: ModelInfo, header: Header) -> Result<Self, RuntimeError> {
        let weights = Weights::plan(&gpu, &info.spec, &header)?;
        let wanted =
            |tensor: &&TensorInfo| weights.wants(&tensor.name) || tensor.name == ROPE_FREQS;
        let mut left: Vec<_> = header.tensors.iter().filter(wanted).cloned().collect();
        left.sort_by_key(|tensor| std::cmp::Reverse(tensor.offset_bytes));
        Ok(Self {
            gpu,
            info,
            header,
            weights,
            left,
            n_rows_done: 0,
            pending: Vec::new(),
            at: 0,
            rope_freqs: None,
        })
    }

    fn push(&mut self, mut chunk: &[u8]) -> Result<(), RuntimeError> {
        while let Some(tensor) = self.left.last().filter(|_| !chunk.is_empty()) {
            let range = self.header.file_range(tensor);
            // The parser has refused tensors that overlap, so what lies before the tensor is padding or not wanted.
            let skip = range.start.saturating_sub(self.at).min(chunk.len() as u64) as usize;
            let take =
                (range.end - self.at.max(range.start)).min((chunk.len() - skip) as u64) as usize;
            self.pending.extend_from_slice(&chunk[skip..skip + take]);
            self.at += (skip + take) as u64;
            chunk = &chunk[skip + take..];
            let complete = self.at >= range.end;
            if complete || self.pending.len() >= UPLOAD_BYTES {
                self.flush(complete);
            }
        }
        self.at += chunk.len() as u64;
        self.gpu.check()
    }

    /// Uploads the whole rows that are pending, and goes on to the next tensor when this one is `complete`.
    fn flush(&mut self, complete: bool) {
        let Some(tensor) = self.left.last() else {
            return;
        };
        if tensor.name == ROPE_FREQS {
            if complete {
                let mut values = vec![
                    0.0;
                    self.pending.len() / tensor.dtype.block_bytes()
                        * tensor.dtype.block_len()
                ];
                quant::dequantize(tensor.dtype, &self.pending, &mut values);
                self.rope_freqs = Some(values);
            }
        } else {
            let row_bytes = row_bytes(tensor);
            let n_rows = self.pending.len() / row_bytes;
            let whole = n_rows * row_bytes;
            self.weights
                .write(&self.gpu, tensor, self.n_rows_done, &self.pending[..whole]);
            self.pending.drain(..whole);
            self.n_rows_done += n_rows;
        }
        if complete {
            self.left.pop();
            self.pending.clear();
            self.n_rows_done = 0;
        }
    }

    async fn finish(mut self, n_ctx: Option<usize>) -> Result<Loaded, RuntimeError> {
        if let Some(values) = &self.rope_freqs {
            self.info
                .spec
                .set_rope_freqs(values)
                .map_err(|e| RuntimeError::UnsupportedModel(e.to_string()))?;
        }
        let n_ctx = context(n_ctx, self.info.spec.n_ctx);
        let engine =
            GpuEngine::new(&self.gpu, self.info.spec.clone(), &self.weights, n_ctx).await?;
        let file_bytes = self.header.file_len_bytes();
        Ok(Loaded {
            info: self.info,
            header: self.header,
            engine: Engine::Gpu(Box::new(engine)),
            n_ctx,
            device_name: self.gpu.name().to_owned(),
            reason: None,
            file_bytes,
        })
    }
}

/// Bytes of one row along the fastest axis; the header's parser has checked that rows are whole blocks.
fn row_bytes(tensor: &TensorInfo) -> usize {
    let n_cols = tensor.shape.first().map_or(1, |&n| n as usize);
    tensor
        .dtype
        .row_bytes(n_cols)
        .unwrap_or(tensor.len_bytes as usize)
        .max(1)
}
