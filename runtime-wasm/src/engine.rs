//! The WebGPU engine: a model's forward pass as lists of dispatches that are built once.
//!
//! A token is one submission. A norm, the quantisation of activations, RoPE, the writes to the cache, the activation of
//! the MLP and the residual additions are all part of the products around them, so a block is five dispatches; six where
//! heads of q and k are normalised, or rotate other elements than neighbours.

use crate::{
    error::RuntimeError,
    gpu::{Gpu, Pending},
    kernels::{Dims, Epilogue, HeadStep, Kernels, Product, Rows, TILE_TOKENS},
    weights::{LayerWeights, Matrix, Weights},
};
use fledgling_core::{
    cpu::math::rope_row,
    gguf::Gguf,
    spec::{Mlp, ModelSpec, Position},
};
use std::collections::VecDeque;
use wgpu::{BindGroup, Buffer, BufferUsages, ComputePipeline, SubmissionIndex};

/// Reads of chosen tokens that may be under way: one being read, one computed ahead.
const TOKEN_BUFFERS: usize = 2;

/// One kernel launch: `x` workgroups, times the tokens or tiles of the step.
#[derive(Debug)]
struct Dispatch {
    pipeline: ComputePipeline,
    group: BindGroup,
    x: u32,
    y: Times,
}

#[derive(Debug, Clone, Copy)]
enum Times {
    Once,
    Tokens,
    Tiles,
}

/// A loaded model with the cache of one conversation.
#[derive(Debug)]
pub struct GpuEngine {
    gpu: Gpu,
    spec: ModelSpec,
    n_ctx: usize,
    /// `Step` of the shaders: position and number of tokens.
    step: Buffer,
    tokens: Buffer,
    logits: Buffer,
    decode: Vec<Dispatch>,
    prefill: Vec<Dispatch>,
    head: Vec<Dispatch>,
    pick: Dispatch,
    /// The tokens whose keys and values are in the cache, as far as they are known here.
    cached: Vec<u32>,
    /// Positions submitted, known tokens or not.
    n_fed: usize,
    token_reads: Vec<Buffer>,
    logits_read: Option<Buffer>,
}

impl GpuEngine {
    /// Loads a file that is in memory as a whole.
    ///
    /// # Errors
    /// A model that the engine cannot run, or a device that fails.
    pub async fn load(gpu: &Gpu, gguf: &Gguf, n_ctx: usize) -> Result<Self, RuntimeError> {
        let spec = ModelSpec::from_gguf(gguf)
            .map_err(|e| RuntimeError::UnsupportedModel(e.to_string()))?;
        let weights = Weights::plan(gpu, &spec, gguf.header())?;
        for info in gguf
            .header()
            .tensors
            .iter()
            .filter(|info| weights.wants(&info.name))
        {
            let (_, bytes) = gguf
                .tensor(&info.name)
                .map_err(|e| RuntimeError::NotGguf(e.to_string()))?;
            weights.write(gpu, info, 0, &bytes);
        }
        Self::new(gpu, spec, &weights, n_ctx).await
    }

    /// Builds the engine around weights that were uploaded, and runs it once so that all pipelines are compiled.
    pub(crate) async fn new(
        gpu: &Gpu,
        spec: ModelSpec,
        weights: &Weights,
        n_ctx: usize,
    ) -> Result<Self, RuntimeError> {
        gpu.finish().await?;
        let mut engine = Builder::new(gpu, &spec, n_ctx)?.build(weights);
        engine.spec = spec;
        engine.warm_up().await?;
        Ok(engine)
    }

    /// The architecture.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// Positions there are.
    pub fn n_ctx(&self) -> usize {
        self.n_ctx
    }

    /// The tokens in the cache.
    pub fn cached(&self) -> &[u32] {
        &self.cached
    }

    /// Kernel launches that one decoded token takes.
    pub fn dispatches_per_token(&self) -> usize {
        self.decode.len() + self.head.len() + 1
    }

    /// Forgets all but the first `len` tokens.
    pub fn rewind(&mut self, len: usize) {
        self.cached.truncate(len);
        self.n_fed = self.cached.len();
    }

    /// Forgets what `prompt` does not begin with, and returns how many tokens stay; one of `prompt` is always left to feed.
    pub fn keep_prefix(&mut self, prompt: &[u32]) -> usize {
        let same = self
            .cached
            .iter()
            .zip(prompt)
            .take_while(|(a, b)| a == b)
            .count();
        self.rewind(same.min(prompt.len().saturating_sub(1)));
        self.cached.len()
    }

    /// Feeds `tokens` and reads the logits after the last. [T] -> [V]
    ///
    /// # Errors
    /// When the device fails, a token is out of the vocabulary, or there is no room.
    pub async fn forward(&mut self, tokens: &[u32]) -> Result<Vec<f32>, RuntimeError> {
        self.feed(tokens, false, &|| false).await?;
        self.read_logits().await
    }

    /// Feeds `token` and the `n` likeliest after one another, chosen on the GPU, and returns those.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub async fn greedy(&mut self, token: u32, n: usize) -> Result<Vec<u32>, RuntimeError> {
        let mut reads = VecDeque::new();
        if let Fed::Picked(read) = self.feed(&[token], true, &|| false).await? {
            reads.push_back(read);
        }
        let mut picked = Vec::with_capacity(n);
        while let Some(read) = reads.pop_front() {
            if picked.len() + 1 < n && self.has_room() {
                reads.push_back(self.decode_ahead());
            }
            picked.push(self.finish_token_read(read).await?);
        }
        Ok(picked)
    }

    /// Feeds `tokens` after what is in the cache; the logits of the last stay on the GPU, and with `pick` the next token
    /// is chosen there. Stops, with the cache as far as it came, when `cancelled` says so between two chunks.
    pub(crate) async fn feed(
        &mut self,
        tokens: &[u32],
        pick: bool,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Fed, RuntimeError> {
        if let Some(&token) = tokens
            .iter()
            .find(|&&token| token as usize >= self.spec.vocab_size)
        {
            return Err(RuntimeError::Internal(format!(
                "token {token} is outside the vocabulary"
            )));
        }
        if tokens.is_empty() || self.n_fed + tokens.len() > self.n_ctx {
            return Err(RuntimeError::PromptTooLong(format!(
                "{} tokens do not fit behind {} of {} positions",
                tokens.len(),
                self.n_fed,
                self.n_ctx
            )));
        }
        let mut chunks = tokens
            .chunks(self.gpu.tuning().prefill_tokens as usize)
            .peekable();
        while let Some(chunk) = chunks.next() {
            self.gpu
                .queue
                .write_buffer(&self.tokens, 0, bytemuck::cast_slice(chunk));
            let step = [self.n_fed as u32, chunk.len() as u32, 0, 0];
            self.gpu
                .queue
                .write_buffer(&self.step, 0, bytemuck::cast_slice(&step));
            self.n_fed += chunk.len();
            self.cached.extend_from_slice(chunk);
            if chunks.peek().is_some() {
                self.submit(chunk.len(), &[self.blocks(chunk.len())], None);
                self.gpu.finish().await?;
                if cancelled() {
                    return Ok(Fed::Cancelled);
                }
            } else if pick {
                return Ok(Fed::Picked(self.submit_picking(chunk.len())));
            } else {
                self.submit(chunk.len(), &[self.blocks(chunk.len()), &self.head], None);
            }
        }
        Ok(Fed::Logits)
    }

    fn blocks(&self, n_tokens: usize) -> &[Dispatch] {
        if n_tokens == 1 {
            &self.decode
        } else {
            &self.prefill
        }
    }

    /// Submits the step of the token that was picked last, whether it is known here or not.
    pub(crate) fn decode_ahead(&mut self) -> TokenRead {
        self.n_fed += 1;
        self.submit_picking(1)
    }

    fn submit_picking(&mut self, n_tokens: usize) -> TokenRead {
        let target = self
            .token_reads
            .pop()
            .unwrap_or_else(|| read_buffer(&self.gpu, "token", 4));
        let lists = [
            self.blocks(n_tokens),
            &self.head,
            std::slice::from_ref(&self.pick),
        ];
        let submission = self.submit(n_tokens, &lists, Some((&self.tokens, &target)));
        TokenRead(self.gpu.start_read(target, submission))
    }

    /// Whether another token can be fed.
    pub(crate) fn has_room(&self) -> bool {
        self.n_fed < self.n_ctx
    }

    /// Waits for a token, and notes it where it was fed already.
    pub(crate) async fn finish_token_read(&mut self, read: TokenRead) -> Result<u32, RuntimeError> {
        let (token, buffer) = read
            .0
            .wait(|bytes| bytemuck::pod_read_unaligned(&bytes[..4]))
            .await?;
        if self.token_reads.len() < TOKEN_BUFFERS {
            self.token_reads.push(buffer);
        }
        if self.cached.len() < self.n_fed {
            self.cached.push(token);
        }
        Ok(token)
    }

    /// Reads the logits of the last token fed. [V]
    pub(crate) async fn read_logits(&mut self) -> Result<Vec<f32>, RuntimeError> {
        let len_bytes = 4 * self.spec.vocab_size;
        let target = self
            .logits_read
            .take()
            .unwrap_or_else(|| read_buffer(&self.gpu, "logits", len_bytes as u64));
        let submission = self.submit(0, &[], Some((&self.logits, &target)));
        let read = self.gpu.start_read(target, submission);
        let (logits, buffer) = read
            .wait(|bytes| bytemuck::pod_collect_to_vec(&bytes[..len_bytes]))
            .await?;
        self.logits_read = Some(buffer);
        Ok(logits)
    }

    fn submit(
        &self,
        n_tokens: usize,
        lists: &[&[Dispatch]],
        copy: Option<(&Buffer, &Buffer)>,
    ) -> SubmissionIndex {
        let mut encoder = self
            .gpu
            .device
            .create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        if !lists.is_empty() {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            for dispatch in lists.iter().copied().flatten() {
                let y = match dispatch.y {
                    Times::Once => 1,
                    Times::Tokens => n_tokens as u32,
                    Times::Tiles => (n_tokens as u32).div_ceil(TILE_TOKENS),
                };
                pass.set_pipeline(&dispatch.pipeline);
                pass.set_bind_group(0, &dispatch.group, &[]);
                pass.dispatch_workgroups(dispatch.x, y, 1);
            }
        }
        if let Some((from, to)) = copy {
            encoder.copy_buffer_to_buffer(from, 0, to, 0, to.size());
        }
        self.gpu.queue.submit([encoder.finish()])
    }

    /// Runs every pipeline once: browsers compile them at first use.
    async fn warm_up(&mut self) -> Result<(), RuntimeError> {
        let n_tokens = self.n_ctx.saturating_sub(1).min(2);
        if let Fed::Picked(read) = self
            .feed(&vec![0; n_tokens.max(1)], true, &|| false)
            .await?
        {
            self.finish_token_read(read).await?;
        }
        if self.has_room() {
            let read = self.decode_ahead();
            self.finish_token_read(read).await?;
        }
        self.rewind(0);
        Ok(())
    }
}

/// How feeding ended.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "one value per token, moved once")]
pub(crate) enum Fed {
    /// The logits are on the GPU.
    Logits,
    /// The next token was chosen.
    Picked(TokenRead),
    /// Somebody wished to stop.
    Cancelled,
}

/// A token on its way from the GPU.
#[derive(Debug)]
pub(crate) struct TokenRead(Pending);

fn read_buffer(gpu: &Gpu, label: &str, len_bytes: u64) -> Buffer {
    let usage = BufferUsages::MAP_READ | BufferUsages::COPY_DST;
    gpu.device.create_buffer(&wgpu::BufferDescriptor {
        label: Some(label),
        size: len_bytes,
        usage,
        mapped_at_creation: false,
    })
}

/// The buffers that the dispatches share.
struct Builder<'a> {
    gpu: &'a Gpu,
    spec: &'a ModelSpec,
    n_ctx: usize,
    kernels: Kernels,
    step: Buffer,
    tokens: Buffer,
    /// The residual stream. [T, C]
    x: Buffer,
    /// [T, (H + 2K) * D], where heads are a step of their own.
    qkv: Buffer,
    /// [T, H * D]
    q: Buffer,
    /// [T, H * D]
    attended: Buffer,
    /// [T, `n_ff`]
    hidden: Buffer,
    /// [V]
    logits: Buffer,
    rope: Buffer,
    /// Stand-ins for what a kernel does not use; one that is written must be no other binding of the dispatch.
    unread: Buffer,
    unwritten: Buffer,
}

impl<'a> Builder<'a> {
    fn new(gpu: &'a Gpu, spec: &'a ModelSpec, n_ctx: usize) -> Result<Self, RuntimeError> {
        let ModelSpec {
            n_head,
            n_kv_head,
            head_dim,
            n_embd,
            n_ff,
            vocab_size,
            ..
        } = *spec;
        if n_ctx == 0 {
            return Err(RuntimeError::BadOption(
                "nCtx must be at least 1".to_owned(),
            ));
        }
        if matches!(spec.position, Position::Learned) && n_ctx > spec.n_ctx {
            let most = spec.n_ctx;
            return Err(RuntimeError::BadOption(format!(
                "nCtx is {n_ctx}, and the model has {most} positions"
            )));
        }
        let kv_bytes = 4 * n_ctx * n_kv_head * head_dim;
        let rope_bytes = 4 * n_ctx * head_dim;
        if kv_bytes.max(rope_bytes) as u64 > gpu.max_binding_bytes() {
            return Err(RuntimeError::OutOfMemory(format!(
                "a cache of {n_ctx} positions cannot be bound by the adapter"
            )));
        }
        let tile = gpu.tuning().prefill_tokens as usize;
        let floats = |label, n: usize| gpu.storage(label, 4 * n as u64);
        let step = gpu.buffer("step", 16, BufferUsages::UNIFORM | BufferUsages::STORAGE);
        Ok(Self {
            gpu,
            spec,
            n_ctx,
            kernels: Kernels::new(gpu, Dims::new(spec, n_ctx)),
            step,
            tokens: floats("tokens", tile),
            x: floats("x", tile * n_embd),
            qkv: if has_head_step(spec) {
                floats("qkv", tile * (n_head + 2 * n_kv_head) * head_dim)
            } else {
                gpu.storage("no qkv", 16)
            },
            q: floats("q", tile * n_head * head_dim),
            attended: floats("attended", tile * n_head * head_dim),
            hidden: floats("hidden", tile * n_ff),
            logits: floats("logits", vocab_size),
            rope: rope_table(gpu, spec, n_ctx),
            unread: gpu.storage("unread", 16),
            unwritten: gpu.storage("unwritten", 16),
        })
    }

    fn build(mut self, weights: &Weights) -> GpuEngine {
        let ModelSpec {
            n_kv_head,
            head_dim,
            ..
        } = *self.spec;
        let caches: Vec<Buffer> = weights
            .layers
            .iter()
            .map(|_| {
                self.gpu
                    .storage("kv", 4 * (self.n_ctx * n_kv_head * head_dim) as u64)
            })
            .collect();
        let decode = self.blocks(weights, &caches, Rows::Last);
        let prefill = self.blocks(weights, &caches, Rows::Tiles);
        let mut head = Vec::new();
        let (x, logits) = (self.x.clone(), self.logits.clone());
        self.product(
            &mut head,
            &weights.matrices[weights.head],
            Rows::Last,
            Epilogue::Store,
            &x,
            &logits,
            None,
        );
        let pick = Dispatch {
            pipeline: self.kernels.argmax(),
            group: self
                .kernels
                .bind_argmax([&self.logits, &self.tokens, &self.step]),
            x: 1,
            y: Times::Once,
        };
        GpuEngine {
            gpu: self.gpu.clone(),
            spec: self.spec.clone(),
            n_ctx: self.n_ctx,
            step: self.step,
            tokens: self.tokens,
            logits: self.logits,
            decode,
            prefill,
            head,
            pick,
            cached: Vec::new(),
            n_fed: 0,
            token_reads: Vec::new(),
            logits_read: None,
        }
    }

    /// The embedding and all blocks.
    fn blocks(&mut self, weights: &Weights, caches: &[Buffer], rows: Rows) -> Vec<Dispatch> {
        let mut list = Vec::new();
        self.embed(&mut list, weights);
        for (layer, cache) in weights.layers.iter().zip(caches) {
            self.block(&mut list, weights, layer, cache, rows);
        }
        list
    }

    fn embed(&mut self, list: &mut Vec<Dispatch>, weights: &Weights) {
        let matrix = &weights.matrices[weights.embedding];
        let (pipeline, wg) = self
            .kernels
            .embed(matrix.dtype, weights.positions.is_some());
        for part in &matrix.parts {
            let positions = weights.positions.as_ref().unwrap_or(&self.unread);
            let group = self.kernels.bind_embed([
                &part.uniform,
                &self.step,
                &self.tokens,
                &self.x,
                positions,
                &part.weights,
                &part.scales,
            ]);
            let x = (matrix.n_cols as u32).div_ceil(wg);
            list.push(Dispatch {
                pipeline: pipeline.clone(),
                group,
                x,
                y: Times::Tokens,
            });
        }
    }

    /// x = x + out(attention(qkv(norm(x)))); x = x + down(mlp(norm(x)))
    fn block(
        &mut self,
        list: &mut Vec<Dispatch>,
        weights: &Weights,
        layer: &LayerWeights,
        cache: &Buffer,
        rows: Rows,
    ) {
        let (x, q, attended, hidden) = (
            self.x.clone(),
            self.q.clone(),
            self.attended.clone(),
            self.hidden.clone(),
        );
        let matrix = |index: usize| &weights.matrices[index];
        if has_head_step(self.spec) {
            let raw = self.qkv.clone();
            for &qkv in &layer.qkv {
                self.product(list, matrix(qkv), rows, Epilogue::Store, &x, &raw, None);
            }
            self.heads(list, layer, cache);
        } else {
            for &qkv in &layer.qkv {
                self.product(list, matrix(qkv), rows, Epilogue::Qkv, &x, &q, Some(cache));
            }
        }
        list.push(Dispatch {
            pipeline: self.kernels.attention(),
            group: self
                .kernels
                .bind_attention([&self.step, &q, cache, &attended]),
            x: self.spec.n_head as u32,
            y: Times::Tokens,
        });
        self.product(
            list,
            matrix(layer.attn_out),
            rows,
            Epilogue::Add,
            &attended,
            &x,
            None,
        );
        let epilogues = match (self.spec.mlp, layer.up.len()) {
            (Mlp::Gelu, _) => [Epilogue::Gelu; 2],
            (Mlp::SwiGlu, 1) => [Epilogue::SwiGlu; 2],
            (Mlp::SwiGlu, _) => [Epilogue::Store, Epilogue::SiluMul],
        };
        for (&up, epilogue) in layer.up.iter().zip(epilogues) {
            self.product(list, matrix(up), rows, epilogue, &x, &hidden, None);
        }
        self.product(
            list,
            matrix(layer.down),
            rows,
            Epilogue::Add,
            &hidden,
            &x,
            None,
        );
    }

    /// Norm and rotation of the heads that the projection left in `qkv`; keys and values go into the cache.
    fn heads(&mut self, list: &mut Vec<Dispatch>, layer: &LayerWeights, cache: &Buffer) {
        let norms = layer.head_norms.as_ref();
        list.push(Dispatch {
            pipeline: self.kernels.heads(HeadStep::of(self.spec)),
            group: self.kernels.bind_heads([
                &self.step,
                &self.qkv,
                norms.unwrap_or(&self.unread),
                &self.rope,
                &self.q,
                cache,
            ]),
            x: (self.spec.n_head + 2 * self.spec.n_kv_head) as u32,
            y: Times::Tokens,
        });
    }

    #[allow(
        clippy::too_many_arguments,
        reason = "a product is its matrix, its input and output, and what is done around it"
    )]
    fn product(
        &mut self,
        list: &mut Vec<Dispatch>,
        matrix: &Matrix,
        rows: Rows,
        epilogue: Epilogue,
        input: &Buffer,
        output: &Buffer,
        cache: Option<&Buffer>,
    ) {
        let Matrix {
            dtype,
            norm,
            has_bias,
            ..
        } = *matrix;
        let pipeline = self.kernels.product(Product {
            rows,
            dtype,
            norm: norm.into(),
            epilogue,
            has_bias,
        });
        for part in &matrix.parts {
            let group = self.kernels.bind_product([
                &part.uniform,
                &self.step,
                &matrix.vectors,
                output,
                cache.unwrap_or(&self.unwritten),
                &self.rope,
                input,
                &part.weights,
                &part.scales,
            ]);
            let x = self.kernels.product_groups(rows, matrix.n_pairs(part));
            let y = if rows == Rows::Last {
                Times::Once
            } else {
                Times::Tiles
            };
            list.push(Dispatch {
                pipeline: pipeline.clone(),
                group,
                x,
                y,
            });
        }
    }
}

/// Whether q and k are more than rotated neighbours, which the projection's own epilogue does.
fn has_head_step(spec: &ModelSpec) -> bool {
    HeadStep::of(spec) != HeadStep::default()
}

/// (cos, sin) for each position and pair of a head; what is not rotated turns by nothing. [`n_ctx`, D / 2]
fn rope_table(gpu: &Gpu, spec: &ModelSpec, n_ctx: usize) -> Buffer {
    let pairs = spec.head_dim / 2;
    let mut table = Vec::with_capacity(n_ctx * pairs);
    for pos in 0..n_ctx {
        rope_row(&spec.position, pos, &mut table);
        table.resize((pos + 1) * pairs, (1.0, 0.0));
    }
    let floats: Vec<f32> = table
        .into_iter()
        .flat_map(|(cos, sin)| [cos, sin])
        .collect();
    let buffer = gpu.storage("rope", 4 * floats.len() as u64);
    gpu.queue
        .write_buffer(&buffer, 0, bytemuck::cast_slice(&floats));
    buffer
}
