//! The weights on the GPU: which buffers a model takes, and how a file's tensors get there piece by piece.
//!
//! Invariant: a matrix stays in its file's element type; blocks are only taken apart into quants and one word of scale,
//! so that kernels read aligned words. A matrix beyond the adapter's binding limit is split by rows into parts.

use crate::{error::RuntimeError, gpu::Gpu, kernels::SHADER_TYPES};
use fledgling_core::{
    gguf::{Header, TensorInfo},
    quant::{self, DType},
    spec::{ModelSpec, Norm, ROPE_FREQS, Role, TensorEntry, tensor_table},
};
use half::f16;
use std::collections::HashMap;
use wgpu::Buffer;

/// A matrix, or several of one type stacked: q, k and v; gate and up.
#[derive(Debug)]
pub(crate) struct Matrix {
    pub(crate) dtype: DType,
    pub(crate) n_cols: usize,
    pub(crate) parts: Vec<Part>,
    /// Gate and up, of which a kernel computes row i of both at once.
    pub(crate) paired: bool,
    /// Norm weight, norm bias and bias, one after another (`product.wgsl`).
    pub(crate) vectors: Buffer,
    pub(crate) norm: Option<Norm>,
    pub(crate) has_bias: bool,
}

/// Rows of a matrix that one binding holds; of a paired matrix, pairs.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) first: usize,
    pub(crate) len: usize,
    pub(crate) weights: Buffer,
    pub(crate) scales: Buffer,
    /// `Part` of `product.wgsl`.
    pub(crate) uniform: Buffer,
}

impl Matrix {
    /// Pairs of rows that a kernel computes for this part.
    pub(crate) fn n_pairs(&self, part: &Part) -> usize {
        if self.paired {
            part.len
        } else {
            part.len.div_ceil(2)
        }
    }
}

/// The products of one block, in order.
#[derive(Debug)]
pub(crate) struct LayerWeights {
    /// One matrix when q, k and v are of one type, else three.
    pub(crate) qkv: Vec<usize>,
    /// Weights of the norms of q's and k's heads, where the family has them. [2, D]
    pub(crate) head_norms: Option<Buffer>,
    pub(crate) attn_out: usize,
    /// The MLP's inner projections: one matrix, or gate then up when their types differ.
    pub(crate) up: Vec<usize>,
    pub(crate) down: usize,
}

/// All weights of a model. [`Weights::plan`] makes the buffers, [`Weights::write`] fills them.
#[derive(Debug)]
pub(crate) struct Weights {
    pub(crate) matrices: Vec<Matrix>,
    pub(crate) layers: Vec<LayerWeights>,
    pub(crate) embedding: usize,
    /// The output matrix; its parts share the embedding's buffers when the two are tied.
    pub(crate) head: usize,
    /// [`n_ctx`, C], for learned positions.
    pub(crate) positions: Option<Buffer>,
    targets: HashMap<String, Vec<Target>>,
}

/// Where rows or values of a tensor go.
#[derive(Debug, Clone)]
enum Target {
    /// Rows of a matrix: from row `first_row` of a stacked one, or half `half` of a paired one.
    Rows {
        matrix: usize,
        half: usize,
        first_row: usize,
    },
    /// Values as f32 into a buffer.
    Values { buffer: Buffer, offset_bytes: u64 },
}

/// One tensor of a matrix that is being planned.
struct Source<'a> {
    entry: &'a TensorEntry,
    dtype: DType,
}

impl Weights {
    /// Makes the buffers for a model whose header this is.
    ///
    /// # Errors
    /// A tensor that is missing, of the wrong shape, or of sizes that the kernels or the adapter do not take.
    pub(crate) fn plan(gpu: &Gpu, spec: &ModelSpec, header: &Header) -> Result<Self, RuntimeError> {
        Planner {
            gpu,
            spec,
            header,
            table: &tensor_table(spec),
            matrices: Vec::new(),
            targets: HashMap::new(),
        }
        .plan()
    }

    /// Whether a tensor of this name is wanted.
    pub(crate) fn wants(&self, name: &str) -> bool {
        self.targets.contains_key(name)
    }

    /// Uploads whole rows of a tensor, beginning with row `first_row`; a vector is one row.
    pub(crate) fn write(&self, gpu: &Gpu, info: &TensorInfo, first_row: usize, bytes: &[u8]) {
        for target in self.targets.get(&info.name).into_iter().flatten() {
            match target {
                Target::Rows {
                    matrix,
                    half,
                    first_row: base,
                } => {
                    self.matrices[*matrix].write(gpu, *half, base + first_row, bytes);
                }
                Target::Values {
                    buffer,
                    offset_bytes,
                } => {
                    let n_cols = info.shape.first().map_or(1, |&n| n as usize);
                    let mut values = vec![
                        0.0f32;
                        bytes.len() / info.dtype.block_bytes()
                            * info.dtype.block_len()
                    ];
                    quant::dequantize(info.dtype, bytes, &mut values);
                    let at = offset_bytes + 4 * (first_row * n_cols) as u64;
                    gpu.queue
                        .write_buffer(buffer, at, bytemuck::cast_slice(&values));
                }
            }
        }
    }
}

impl Matrix {
    /// Uploads rows from `first_row` of the stacked matrix, or of half `half`.
    fn write(&self, gpu: &Gpu, half: usize, first_row: usize, bytes: &[u8]) {
        let row_bytes = self
            .dtype
            .row_bytes(self.n_cols)
            .expect("the plan checked that rows are whole blocks");
        let end = first_row + bytes.len() / row_bytes;
        for part in &self.parts {
            let from = first_row.max(part.first);
            let to = end.min(part.first + part.len);
            if from >= to {
                continue;
            }
            let rows = &bytes[(from - first_row) * row_bytes..(to - first_row) * row_bytes];
            let local = (from - part.first + half * part.len) as u64;
            let (weights, scales) = repack(self.dtype, self.n_cols, rows);
            gpu.queue.write_buffer(
                &part.weights,
                local * weight_row_bytes(self.dtype, self.n_cols),
                &weights,
            );
            if !scales.is_empty() {
                gpu.queue.write_buffer(
                    &part.scales,
                    local * scale_row_bytes(self.dtype, self.n_cols),
                    &scales,
                );
            }
        }
    }
}

/// Why the GPU cannot run this file: its first tensor of a type that no shader reads.
pub(crate) fn without_shaders(header: &Header) -> Option<String> {
    let unread = |info: &&TensorInfo| !SHADER_TYPES.contains(&info.dtype);
    // RoPE's factors are dequantised before they are uploaded.
    let mut unread = header.tensors.iter().filter(unread);
    let info = unread.find(|info| info.name != ROPE_FREQS)?;
    Some(format!(
        "tensor `{}` is {}, which WebGPU has no shader for: use the CPU, or export in q8_0, q4_0, q4_1 or f16",
        info.name, info.dtype
    ))
}

/// Bytes of a row of quants, or of a float row padded to whole `vec4<u32>`s.
fn weight_row_bytes(dtype: DType, n_cols: usize) -> u64 {
    let bytes = match dtype {
        DType::Q8_0 => n_cols,
        DType::Q4_0 | DType::Q4_1 => n_cols / 2,
        DType::F32 => (4 * n_cols).next_multiple_of(16),
        _ => (2 * n_cols).next_multiple_of(16),
    };
    bytes as u64
}

/// Bytes of a row of scale words.
fn scale_row_bytes(dtype: DType, n_cols: usize) -> u64 {
    if dtype.block_len() == 1 {
        0
    } else {
        (n_cols / dtype.block_len() * 4) as u64
    }
}

/// Takes whole rows apart into what `quant_blocks.wgsl` or `float_rows.wgsl` read: (weights, scale words).
pub(crate) fn repack(dtype: DType, n_cols: usize, rows: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let block_bytes = dtype.block_bytes();
    if dtype.block_len() == 1 {
        let padded = weight_row_bytes(dtype, n_cols) as usize;
        let mut out = Vec::with_capacity(rows.len() / (n_cols * block_bytes) * padded);
        for row in rows.chunks_exact(n_cols * block_bytes) {
            out.extend_from_slice(row);
            out.resize(out.len().next_multiple_of(16), 0);
        }
        return (out, Vec::new());
    }
    // Q4_1's scale and minimum are a word as they are; a lone f16 scale is widened to one.
    let head = if dtype == DType::Q4_1 { 4 } else { 2 };
    let n_blocks = rows.len() / block_bytes;
    let mut quants = Vec::with_capacity(n_blocks * (block_bytes - head));
    let mut scales = Vec::with_capacity(n_blocks * 4);
    for block in rows.chunks_exact(block_bytes) {
        let (scale, quantised) = block.split_at(head);
        quants.extend_from_slice(quantised);
        match scale {
            &[a, b] => scales.extend_from_slice(&f16::from_le_bytes([a, b]).to_f32().to_le_bytes()),
            word => scales.extend_from_slice(word),
        }
    }
    (quants, scales)
}

struct Planner<'a> {
    gpu: &'a Gpu,
    spec: &'a ModelSpec,
    header: &'a Header,
    table: &'a [TensorEntry],
    matrices: Vec<Matrix>,
    targets: HashMap<String, Vec<Target>>,
}

/// What a matrix is for.
struct Wanted<'a> {
    label: &'a str,
    layer: Option<usize>,
    roles: &'a [Role],
    /// Rows of several tensors belong together in pairs.
    paired: bool,
    norm: Option<[Role; 2]>,
    /// Of the tensors in their order; a family may have none.
    bias: &'a [Role],
    /// Outputs that one row of the result has.
    width: usize,
    /// The first of them that this matrix computes.
    first_out: usize,
}

impl Planner<'_> {
    fn plan(mut self) -> Result<Weights, RuntimeError> {
        self.check_sizes()?;
        if let Some(reason) = without_shaders(self.header) {
            return Err(unsupported(reason));
        }
        let embedding = self.embedding()?;
        let positions = self.positions()?;
        let layers = (0..self.spec.n_layer)
            .map(|layer| self.layer(layer))
            .collect::<Result<_, _>>()?;
        let head = self.head(embedding)?;
        Ok(Weights {
            matrices: self.matrices,
            layers,
            embedding,
            head,
            positions,
            targets: self.targets,
        })
    }

    fn check_sizes(&self) -> Result<(), RuntimeError> {
        let ModelSpec {
            n_embd,
            n_ff,
            head_dim,
            n_head,
            n_kv_head,
            ..
        } = *self.spec;
        if head_dim % 2 != 0 || head_dim > 512 || n_kv_head == 0 || n_head % n_kv_head != 0 {
            return Err(unsupported(format!(
                "heads of width {head_dim} ({n_head} over {n_kv_head}) are not for the GPU"
            )));
        }
        if n_embd == 0 || n_ff == 0 {
            return Err(unsupported("the model has an empty layer".to_owned()));
        }
        Ok(())
    }

    fn layer(&mut self, layer: usize) -> Result<LayerWeights, RuntimeError> {
        let ModelSpec { n_embd, n_ff, .. } = *self.spec;
        let at = Some(layer);
        let ffn_norm = Some([Role::FfnNorm, Role::FfnNormBias]);
        let qkv = self.qkv(layer)?;
        let head_norms = self.head_norms(layer)?;
        let plain = |label, roles, bias| Wanted {
            label,
            layer: at,
            roles,
            paired: false,
            norm: None,
            bias,
            width: n_embd,
            first_out: 0,
        };
        let attn_out = self.matrix(&plain(
            "attn_out",
            &[Role::AttnOutput],
            &[Role::AttnOutputBias],
        ))?;
        let up = Wanted {
            label: "up",
            norm: ffn_norm,
            width: n_ff,
            ..plain("up", &[Role::FfnUp], &[Role::FfnUpBias])
        };
        let up = if self.entry(Role::FfnGate, at).is_none() {
            vec![self.matrix(&up)?]
        } else if self.one_type(&[Role::FfnGate, Role::FfnUp], at)? {
            vec![self.matrix(&Wanted {
                roles: &[Role::FfnGate, Role::FfnUp],
                paired: true,
                bias: &[],
                ..up
            })?]
        } else {
            vec![
                self.matrix(&Wanted {
                    roles: &[Role::FfnGate],
                    bias: &[],
                    ..up
                })?,
                self.matrix(&up)?,
            ]
        };
        let down = self.matrix(&plain("down", &[Role::FfnDown], &[Role::FfnDownBias]))?;
        Ok(LayerWeights {
            qkv,
            head_norms,
            attn_out,
            up,
            down,
        })
    }

    /// One matrix of q, k and v where they are of one type, else three.
    fn qkv(&mut self, layer: usize) -> Result<Vec<usize>, RuntimeError> {
        let ModelSpec {
            head_dim,
            n_head,
            n_kv_head,
            ..
        } = *self.spec;
        let at = Some(layer);
        let width = (n_head + 2 * n_kv_head) * head_dim;
        let qkv = Wanted {
            label: "qkv",
            layer: at,
            roles: &[],
            paired: false,
            norm: Some([Role::AttnNorm, Role::AttnNormBias]),
            bias: &[],
            width,
            first_out: 0,
        };
        if self.entry(Role::AttnQkv, at).is_some() {
            Ok(vec![self.matrix(&Wanted {
                roles: &[Role::AttnQkv],
                bias: &[Role::AttnQkvBias],
                ..qkv
            })?])
        } else if self.one_type(&[Role::AttnQ, Role::AttnK, Role::AttnV], at)? {
            Ok(vec![self.matrix(&Wanted {
                roles: &[Role::AttnQ, Role::AttnK, Role::AttnV],
                bias: &[Role::AttnQBias, Role::AttnKBias, Role::AttnVBias],
                ..qkv
            })?])
        } else {
            let (n_q, n_kv) = (n_head * head_dim, n_kv_head * head_dim);
            [
                (Role::AttnQ, Role::AttnQBias, 0),
                (Role::AttnK, Role::AttnKBias, n_q),
                (Role::AttnV, Role::AttnVBias, n_q + n_kv),
            ]
            .map(|(role, bias, first_out)| {
                self.matrix(&Wanted {
                    roles: &[role],
                    bias: &[bias],
                    first_out,
                    ..qkv
                })
            })
            .into_iter()
            .collect()
        }
    }

    fn head_norms(&mut self, layer: usize) -> Result<Option<Buffer>, RuntimeError> {
        if !self.spec.qk_norm {
            return Ok(None);
        }
        let d = self.spec.head_dim;
        let buffer = self.gpu.storage("head norms", 4 * 2 * d as u64);
        self.vector(Role::AttnQNorm, Some(layer), &buffer, 0)?;
        self.vector(Role::AttnKNorm, Some(layer), &buffer, d)?;
        Ok(Some(buffer))
    }

    fn embedding(&mut self) -> Result<usize, RuntimeError> {
        self.matrix(&Wanted {
            label: "embedding",
            layer: None,
            roles: &[Role::TokenEmbd],
            paired: false,
            norm: None,
            bias: &[],
            width: self.spec.n_embd,
            first_out: 0,
        })
    }

    /// The output matrix with the last norm before it.
    fn head(&mut self, embedding: usize) -> Result<usize, RuntimeError> {
        let wanted = Wanted {
            label: "output",
            layer: None,
            roles: &[Role::Output],
            paired: false,
            norm: Some([Role::OutputNorm, Role::OutputNormBias]),
            bias: &[],
            width: self.spec.vocab_size,
            first_out: 0,
        };
        if !self.spec.tied_embedding {
            return self.matrix(&wanted);
        }
        let vectors = self.vectors(&wanted)?;
        let Matrix { dtype, n_cols, .. } = self.matrices[embedding];
        let parts = self.matrices[embedding]
            .parts
            .iter()
            .map(|part| Part {
                weights: part.weights.clone(),
                scales: part.scales.clone(),
                uniform: part_uniform(self.gpu, n_cols, part.first, part.len, &wanted),
                ..*part
            })
            .collect();
        let norm = Some(self.spec.norm);
        self.matrices.push(Matrix {
            dtype,
            n_cols,
            parts,
            paired: false,
            vectors,
            norm,
            has_bias: false,
        });
        Ok(self.matrices.len() - 1)
    }

    fn positions(&mut self) -> Result<Option<Buffer>, RuntimeError> {
        let Some(entry) = self.entry(Role::PositionEmbd, None) else {
            return Ok(None);
        };
        self.info(entry)?;
        let len_bytes = 4 * entry.shape.iter().product::<usize>() as u64;
        self.check_binding(&entry.gguf, len_bytes)?;
        let buffer = self.gpu.storage("positions", len_bytes);
        self.aim(
            entry,
            Target::Values {
                buffer: buffer.clone(),
                offset_bytes: 0,
            },
        );
        Ok(Some(buffer))
    }

    /// Makes the buffers of a matrix and remembers where its tensors go.
    fn matrix(&mut self, wanted: &Wanted<'_>) -> Result<usize, RuntimeError> {
        let sources = self.sources(wanted.roles, wanted.layer)?;
        let dtype = sources[0].dtype;
        let n_cols = sources[0].entry.shape[1];
        if dtype.row_bytes(n_cols).is_none() {
            let name = &sources[0].entry.gguf;
            return Err(unsupported(format!(
                "tensor `{name}`: {n_cols} columns are no whole blocks of {}",
                dtype.name()
            )));
        }
        let n_rows: usize = sources.iter().map(|source| source.entry.shape[0]).sum();
        let len = if wanted.paired { n_rows / 2 } else { n_rows };
        let halves = if wanted.paired { 2 } else { 1 };
        let parts = self.parts(wanted, dtype, n_cols, len, halves)?;
        let (mut first_row, index) = (0, self.matrices.len());
        for (i, source) in sources.iter().enumerate() {
            let target = if wanted.paired {
                Target::Rows {
                    matrix: index,
                    half: i,
                    first_row: 0,
                }
            } else {
                Target::Rows {
                    matrix: index,
                    half: 0,
                    first_row,
                }
            };
            first_row += source.entry.shape[0];
            self.aim(source.entry, target);
        }
        let vectors = self.vectors(wanted)?;
        let norm = wanted.norm.map(|_| self.spec.norm);
        let mut biases = wanted.bias.iter();
        let has_bias = biases.any(|&role| self.entry(role, wanted.layer).is_some());
        self.matrices.push(Matrix {
            dtype,
            n_cols,
            parts,
            paired: wanted.paired,
            vectors,
            norm,
            has_bias,
        });
        Ok(index)
    }

    /// Splits `len` rows (pairs) such that each part's buffer can be bound and dispatched at once.
    fn parts(
        &self,
        wanted: &Wanted<'_>,
        dtype: DType,
        n_cols: usize,
        len: usize,
        halves: usize,
    ) -> Result<Vec<Part>, RuntimeError> {
        let row_bytes = weight_row_bytes(dtype, n_cols) * halves as u64;
        let scale_bytes = scale_row_bytes(dtype, n_cols) * halves as u64;
        // Two groups of threads a workgroup is the least that any tuning has.
        let most = (self.gpu.max_binding_bytes() / row_bytes.max(1))
            .min(2 * u64::from(self.gpu.max_workgroups()));
        let most = (most as usize) & !1;
        if most == 0 {
            self.check_binding(wanted.label, 2 * row_bytes)?;
        }
        let mut parts = Vec::new();
        for first in (0..len).step_by(most.max(2)) {
            let len = most.min(len - first);
            parts.push(Part {
                first,
                len,
                weights: self.gpu.storage(wanted.label, row_bytes * len as u64),
                scales: self.gpu.storage(wanted.label, scale_bytes * len as u64),
                uniform: part_uniform(self.gpu, n_cols, first, len, wanted),
            });
        }
        Ok(parts)
    }

    /// The vectors that go with a matrix: norm weight, norm bias, bias.
    fn vectors(&mut self, wanted: &Wanted<'_>) -> Result<Buffer, RuntimeError> {
        let roles: &[Role] = match (&wanted.norm, self.spec.norm) {
            (None, _) => &[],
            (Some(roles), Norm::LayerNorm) => roles,
            (Some(roles), Norm::RmsNorm) => &roles[..1],
        };
        let n_norm = roles.len() * self.spec.n_embd;
        let buffer = self
            .gpu
            .storage(wanted.label, 4 * (n_norm + wanted.width) as u64);
        for (i, &role) in roles.iter().enumerate() {
            self.vector(role, wanted.layer, &buffer, i * self.spec.n_embd)?;
        }
        let mut at = n_norm + wanted.first_out;
        for &role in wanted.bias {
            if let Some(len) = self.entry(role, wanted.layer).map(|entry| entry.shape[0]) {
                self.vector(role, wanted.layer, &buffer, at)?;
                at += len;
            }
        }
        Ok(buffer)
    }

    fn vector(
        &mut self,
        role: Role,
        layer: Option<usize>,
        buffer: &Buffer,
        at: usize,
    ) -> Result<(), RuntimeError> {
        let entry = self
            .entry(role, layer)
            .ok_or_else(|| RuntimeError::Internal(format!("no entry for {role:?}")))?;
        self.info(entry)?;
        self.aim(
            entry,
            Target::Values {
                buffer: buffer.clone(),
                offset_bytes: 4 * at as u64,
            },
        );
        Ok(())
    }

    fn aim(&mut self, entry: &TensorEntry, target: Target) {
        self.targets
            .entry(entry.gguf.clone())
            .or_default()
            .push(target);
    }

    fn one_type(&self, roles: &[Role], layer: Option<usize>) -> Result<bool, RuntimeError> {
        let sources = self.sources(roles, layer)?;
        Ok(sources
            .iter()
            .all(|source| source.dtype == sources[0].dtype))
    }

    fn check_binding(&self, name: &str, len_bytes: u64) -> Result<(), RuntimeError> {
        let most = self.gpu.max_binding_bytes();
        if len_bytes > most {
            return Err(unsupported(format!(
                "`{name}` takes {len_bytes} bytes, and the adapter binds {most}; use the CPU"
            )));
        }
        Ok(())
    }
}

impl<'a> Planner<'a> {
    fn entry(&self, role: Role, layer: Option<usize>) -> Option<&'a TensorEntry> {
        self.table
            .iter()
            .find(|entry| entry.role == role && entry.layer == layer)
    }

    fn sources(
        &self,
        roles: &[Role],
        layer: Option<usize>,
    ) -> Result<Vec<Source<'a>>, RuntimeError> {
        let source = |&role: &Role| {
            let entry = self
                .entry(role, layer)
                .ok_or_else(|| RuntimeError::Internal(format!("no entry for {role:?}")))?;
            Ok(Source {
                entry,
                dtype: self.info(entry)?.dtype,
            })
        };
        roles.iter().map(source).collect()
    }

    /// The tensor of an entry, of the shape that the entry says.
    fn info(&self, entry: &TensorEntry) -> Result<&'a TensorInfo, RuntimeError> {
        let info = self.header.tensor(&entry.gguf);
        let info =
            info.ok_or_else(|| unsupported(format!("the file has no tensor `{}`", entry.gguf)))?;
        let shape: Vec<usize> = info.shape.iter().rev().map(|&n| n as usize).collect();
        // A trailing extent of 1 may be written or left out.
        let same = shape
            .iter()
            .skip_while(|&&n| n == 1)
            .eq(entry.shape.iter().skip_while(|&&n| n == 1));
        if !same {
            let (name, want) = (&entry.gguf, &entry.shape);
            return Err(unsupported(format!(
                "tensor `{name}` is {shape:?}, and the architecture says {want:?}"
            )));
        }
        Ok(info)
    }
}

/// `Part` of `product.wgsl` and `embed.wgsl`.
fn part_uniform(gpu: &Gpu, n_cols: usize, first: usize, len: usize, wanted: &Wanted<'_>) -> Buffer {
    let n_pairs = if wanted.paired { len } else { len.div_ceil(2) };
    let n_rows = if wanted.paired { 2 * len } else { len };
    let words = [
        n_cols,
        n_rows,
        n_pairs,
        wanted.first_out + first,
        wanted.width,
        0,
        0,
        0,
    ]
    .map(|n| n as u32);
    gpu.uniform(wanted.label, &words)
}

fn unsupported(message: String) -> RuntimeError {
    RuntimeError::UnsupportedModel(message)
}
