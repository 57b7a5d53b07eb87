//! A model's tensors, bound by the name table: matrices borrowed from the file, vectors as f32.

use super::EngineError;
use crate::{
    gguf::Gguf,
    quant::{DType, dequantize},
    spec::{Mlp, ModelSpec, Position, Role, TensorEntry, tensor_table},
    xxh64::xxh64,
};
use bytes::Bytes;
use std::{collections::HashMap, ops::Range};

/// A matrix as it lies in the file. [N, K]
#[derive(Debug, Clone)]
pub(crate) struct Matrix {
    pub(crate) name: String,
    pub(crate) dtype: DType,
    pub(crate) n_rows: usize,
    pub(crate) n_cols: usize,
    pub(crate) row_bytes: usize,
    pub(crate) bytes: Bytes,
}

impl Matrix {
    /// The bytes of row `r`.
    pub(crate) fn row(&self, r: usize) -> &[u8] {
        &self.bytes[r * self.row_bytes..][..self.row_bytes]
    }

    /// Row `r` as f32. [K]
    pub(crate) fn dequantize_row(&self, r: usize, out: &mut [f32]) {
        dequantize(self.dtype, self.row(r), out);
    }
}

/// Matrices that read the same input, stacked, and their bias: y (N) = W (N, K) @ x (K) + b (N)
#[derive(Debug)]
pub(crate) struct Linear {
    pub(crate) parts: Vec<Matrix>,
    /// [N], or empty.
    pub(crate) bias: Vec<f32>,
    pub(crate) n_rows: usize,
}

impl Linear {
    /// Runs `f(part, rows of the part, columns of the output)` for each part that the stacked rows `range` touch.
    pub(crate) fn for_parts(
        &self,
        range: Range<usize>,
        mut f: impl FnMut(&Matrix, Range<usize>, Range<usize>),
    ) {
        let mut first = 0;
        for part in &self.parts {
            let start = range.start.max(first);
            let end = range.end.min(first + part.n_rows);
            if start < end {
                f(
                    part,
                    start - first..end - first,
                    start - range.start..end - range.start,
                );
            }
            first += part.n_rows;
        }
    }

    /// Whether a part reads quantised activations.
    pub(crate) fn reads_quantized(&self) -> bool {
        self.parts.iter().any(|m| m.dtype.is_quantized())
    }
}

/// Weight and bias (empty for RMSNorm) of a normalisation. [C]
#[derive(Debug)]
pub(crate) struct NormWeights {
    pub(crate) name: String,
    pub(crate) weight: Vec<f32>,
    pub(crate) bias: Vec<f32>,
}

/// One transformer block.
#[derive(Debug)]
pub(crate) struct Layer {
    pub(crate) attn_norm: NormWeights,
    /// q, k and v stacked. [(H + 2K) D, C]
    pub(crate) qkv: Linear,
    /// Of each head. [D]
    pub(crate) q_norm: Option<NormWeights>,
    /// Of each head. [D]
    pub(crate) k_norm: Option<NormWeights>,
    /// [C, H D]
    pub(crate) attn_output: Linear,
    pub(crate) ffn_norm: NormWeights,
    /// `up`, or `gate` and `up` stacked. [F, C] or [2 F, C]
    pub(crate) ffn_up: Linear,
    /// [C, F]
    pub(crate) ffn_down: Linear,
}

/// All tensors of a model.
#[derive(Debug)]
pub(crate) struct Weights {
    /// [V, C]
    pub(crate) token_embd: Matrix,
    /// Learned positions. [`n_ctx`, C]
    pub(crate) position_embd: Option<Matrix>,
    pub(crate) layers: Vec<Layer>,
    pub(crate) output_norm: NormWeights,
    /// The output matrix, which may be `token_embd`. [V, C]
    pub(crate) output: Linear,
}

impl Weights {
    /// Binds what [`tensor_table`] lists; shapes and types are checked by [`crate::spec::check_tensors`] before.
    pub(crate) fn bind(gguf: &Gguf, spec: &ModelSpec) -> Result<Self, EngineError> {
        let entries = tensor_table(spec)
            .into_iter()
            .map(|e| ((e.layer, e.role), e))
            .collect();
        let binder = Binder { gguf, entries };
        let layers = (0..spec.n_layer)
            .map(|l| binder.layer(l, spec))
            .collect::<Result<_, _>>()?;
        let output = if spec.tied_embedding {
            Role::TokenEmbd
        } else {
            Role::Output
        };
        Ok(Self {
            token_embd: binder.matrix(None, Role::TokenEmbd)?,
            position_embd: match spec.position {
                Position::Learned => Some(binder.matrix(None, Role::PositionEmbd)?),
                Position::Rope { .. } => None,
            },
            layers,
            output_norm: binder.norm(None, Role::OutputNorm, Role::OutputNormBias)?,
            output: binder.linear(None, &[(output, None)])?,
        })
    }

    /// XXH64 of names, types and values of all tensors.
    pub(crate) fn hash(&self) -> u64 {
        let matrix = |hash: u64, matrix: &Matrix| {
            let head = format!("{} {} {}", matrix.name, matrix.dtype, matrix.n_cols);
            xxh64(&matrix.bytes, xxh64(head.as_bytes(), hash))
        };
        let vector = |hash: u64, values: &[f32]| xxh64(bytemuck::cast_slice(values), hash);
        let norm = |hash: u64, norm: &NormWeights| {
            let hash = xxh64(norm.name.as_bytes(), hash);
            vector(vector(hash, &norm.weight), &norm.bias)
        };
        let linear = |hash: u64, linear: &Linear| {
            vector(linear.parts.iter().fold(hash, matrix), &linear.bias)
        };
        let mut hash = matrix(0, &self.token_embd);
        hash = self.position_embd.iter().fold(hash, matrix);
        for layer in &self.layers {
            let norms = [&layer.attn_norm, &layer.ffn_norm];
            let head_norms = layer.q_norm.iter().chain(&layer.k_norm);
            hash = norms.into_iter().chain(head_norms).fold(hash, norm);
            let linears = [
                &layer.qkv,
                &layer.attn_output,
                &layer.ffn_up,
                &layer.ffn_down,
            ];
            hash = linears.into_iter().fold(hash, linear);
        }
        linear(norm(hash, &self.output_norm), &self.output)
    }

    /// See [`super::CpuEngine::replace_matrix`].
    pub(crate) fn replace(
        &mut self,
        name: &str,
        dtype: DType,
        bytes: &Bytes,
    ) -> Result<(DType, Bytes), EngineError> {
        let layers = self.layers.iter_mut().flat_map(|layer| {
            let linears = [
                &mut layer.qkv,
                &mut layer.attn_output,
                &mut layer.ffn_up,
                &mut layer.ffn_down,
            ];
            linears.into_iter().flat_map(|linear| &mut linear.parts)
        });
        let others = [&mut self.token_embd].into_iter();
        let others = others.chain(&mut self.position_embd);
        let all = layers.chain(others).chain(&mut self.output.parts);
        // A tied embedding stands there twice, with the same shape.
        let fitting = all.filter_map(|matrix| {
            let row_bytes = dtype.row_bytes(matrix.n_cols)?;
            let fits = matrix.name == name && row_bytes * matrix.n_rows == bytes.len();
            fits.then_some((matrix, row_bytes))
        });
        let mut former = None;
        for (matrix, row_bytes) in fitting {
            former = Some((matrix.dtype, matrix.bytes.clone()));
            (matrix.dtype, matrix.row_bytes) = (dtype, row_bytes);
            matrix.bytes = bytes.clone();
        }
        former.ok_or_else(|| EngineError::NoMatrix {
            name: name.to_owned(),
            dtype,
            len_bytes: bytes.len(),
        })
    }
}

/// Looks tensors up by role.
struct Binder<'a> {
    gguf: &'a Gguf,
    entries: HashMap<(Option<usize>, Role), TensorEntry>,
}

impl Binder<'_> {
    fn layer(&self, l: usize, spec: &ModelSpec) -> Result<Layer, EngineError> {
        let layer = Some(l);
        let qkv: &[_] = if self.entries.contains_key(&(layer, Role::AttnQkv)) {
            &[(Role::AttnQkv, Some(Role::AttnQkvBias))]
        } else {
            &[
                (Role::AttnQ, Some(Role::AttnQBias)),
                (Role::AttnK, Some(Role::AttnKBias)),
                (Role::AttnV, Some(Role::AttnVBias)),
            ]
        };
        let up = (Role::FfnUp, Some(Role::FfnUpBias));
        let ffn_up: &[_] = match spec.mlp {
            Mlp::Gelu => &[up],
            Mlp::SwiGlu => &[(Role::FfnGate, None), up],
        };
        Ok(Layer {
            attn_norm: self.norm(layer, Role::AttnNorm, Role::AttnNormBias)?,
            qkv: self.linear(layer, qkv)?,
            q_norm: self.optional_norm(layer, Role::AttnQNorm)?,
            k_norm: self.optional_norm(layer, Role::AttnKNorm)?,
            attn_output: self.linear(layer, &[(Role::AttnOutput, Some(Role::AttnOutputBias))])?,
            ffn_norm: self.norm(layer, Role::FfnNorm, Role::FfnNormBias)?,
            ffn_up: self.linear(layer, ffn_up)?,
            ffn_down: self.linear(layer, &[(Role::FfnDown, Some(Role::FfnDownBias))])?,
        })
    }

    fn entry(&self, layer: Option<usize>, role: Role) -> &TensorEntry {
        self.entries
            .get(&(layer, role))
            .expect("the name table lists every tensor that the forward pass of its family reads")
    }

    fn matrix(&self, layer: Option<usize>, role: Role) -> Result<Matrix, EngineError> {
        let entry = self.entry(layer, role);
        let (info, bytes) = self.gguf.tensor(&entry.gguf)?;
        let (n_rows, n_cols) = (entry.shape[0], entry.shape[1]);
        let row_bytes = info
            .dtype
            .row_bytes(n_cols)
            .expect("checked with the shapes");
        assert_eq!(
            bytes.len(),
            n_rows * row_bytes,
            "{}: checked with the shapes",
            entry.gguf
        );
        Ok(Matrix {
            name: entry.gguf.clone(),
            dtype: info.dtype,
            n_rows,
            n_cols,
            row_bytes,
            bytes,
        })
    }

    /// A vector as f32, or an empty one where this family has none.
    fn vector(&self, layer: Option<usize>, role: Role) -> Result<Vec<f32>, EngineError> {
        match self.entries.get(&(layer, role)) {
            Some(entry) => Ok(self.gguf.tensor_f32(&entry.gguf)?),
            None => Ok(Vec::new()),
        }
    }

    fn norm(
        &self,
        layer: Option<usize>,
        weight: Role,
        bias: Role,
    ) -> Result<NormWeights, EngineError> {
        let name = self.entry(layer, weight).gguf.clone();
        Ok(NormWeights {
            name,
            weight: self.vector(layer, weight)?,
            bias: self.vector(layer, bias)?,
        })
    }

    /// An RMSNorm that not every family has.
    fn optional_norm(
        &self,
        layer: Option<usize>,
        weight: Role,
    ) -> Result<Option<NormWeights>, EngineError> {
        let Some(entry) = self.entries.get(&(layer, weight)) else {
            return Ok(None);
        };
        Ok(Some(NormWeights {
            name: entry.gguf.clone(),
            weight: self.gguf.tensor_f32(&entry.gguf)?,
            bias: Vec::new(),
        }))
    }

    fn linear(
        &self,
        layer: Option<usize>,
        parts: &[(Role, Option<Role>)],
    ) -> Result<Linear, EngineError> {
        let matrices = parts
            .iter()
            .map(|&(w, _)| self.matrix(layer, w))
            .collect::<Result<Vec<_>, _>>()?;
        let mut bias = Vec::new();
        for role in parts.iter().filter_map(|&(_, b)| b) {
            bias.extend(self.vector(layer, role)?);
        }
        let n_rows = matrices.iter().map(|m| m.n_rows).sum();
        assert!(
            bias.is_empty() || bias.len() == n_rows,
            "a bias for all stacked rows or for none"
        );
        Ok(Linear {
            parts: matrices,
            bias,
            n_rows,
        })
    }
}
