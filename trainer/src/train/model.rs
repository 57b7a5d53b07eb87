//! The GPT of all families as one Burn module, driven by a [`ModelSpec`].
//!
//! Weights are held as GGUF holds them: matrices `[out, in]`, q and k for the rotation that the spec's pairing says; Hugging Face's layout
//! exists only at the edges ([`crate::run`]). Parameters go by the `burn` names of `spec::tensor_table`; the matrices
//! of a LoRA add `.lora_a` and `.lora_b` beside their `.weight`.
//!
//! Activations are `[N, C]` with N = B·T, so that every linear layer is one plain matrix product; only attention
//! looks at `[B, H, T, D]`. Legend: B batch, T tokens, C `n_embd`, H heads, D `head_dim`, V vocabulary, M counted positions.

use super::{
    dropout::{Draw, Moment},
    frozen::Frozen,
    kernels::Heads,
    lora::{LoraProduct, Tensors},
    ops,
};
use crate::{
    adapter::Addition,
    run::{LoraSize, Parameters},
};
use anyhow::{Result, ensure};
use burn::{
    module::{Module, ModuleMapper, ModuleVisitor, Param},
    tensor::{Device, Int, Tensor, TensorData},
};
use fledgling_core::spec::{Mlp, ModelSpec, Norm as NormKind, Position, TensorEntry, tensor_table};
use std::collections::BTreeMap;

/// Low-rank addition to a frozen matrix: `y = W x + scale · B (A x)`, never formed as a dense product.
#[derive(Module, Debug)]
#[expect(
    clippy::struct_field_names,
    reason = "PEFT's names of the two matrices"
)]
pub struct Lora {
    /// [rank, in]
    lora_a: Param<Tensor<2>>,
    /// [out, rank]
    lora_b: Param<Tensor<2>>,
    #[module(skip)]
    size: LoraSize,
    /// Probability of dropout on the input.
    #[module(skip)]
    dropout: f64,
    /// The draws of this step and batch; none outside training.
    #[module(skip)]
    draw: Option<Draw>,
    /// The addition is in the frozen matrix already (quantised with it): only its gradient is wanted here.
    #[module(skip)]
    is_merged: bool,
}

impl Lora {
    /// The addition as a file has it.
    pub(super) fn addition(&self) -> Addition {
        Addition {
            a: to_vec(self.lora_a.val().inner()),
            b: to_vec(self.lora_b.val().inner()),
            size: self.size,
        }
    }

    /// From now on the addition is in the frozen matrix.
    pub(super) fn set_merged(&mut self) {
        self.is_merged = true;
    }
}

/// `y = x Wᵀ + b`, with a LoRA or without.
#[derive(Module, Debug)]
pub struct Linear {
    /// [out, in]; absent where the matrix is frozen in blocks.
    weight: Option<Param<Tensor<2>>>,
    /// [out]
    bias: Option<Param<Tensor<1>>>,
    lora: Option<Lora>,
    #[module(skip)]
    frozen: Option<Frozen>,
}

impl Linear {
    /// [N, in] -> [N, out]
    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let bias = self.bias.as_ref().map(Param::val);
        if let Some(lora) = &self.lora {
            let product = LoraProduct {
                matrix: self.frozen.clone(),
                has_bias: bias.is_some(),
                rank: lora.size.rank,
                scale: lora.size.scale() as f32,
                draw: lora.draw,
                is_merged: lora.is_merged,
            };
            let tensors = Tensors {
                x,
                a: lora.lora_a.val(),
                b: lora.lora_b.val(),
                weight: self.weight.as_ref().map(Param::val),
                bias: None,
            };
            return ops::lora_product(product, tensors, bias);
        }
        match (&self.frozen, bias) {
            (None, None) => ops::product(x, dense(self.weight.as_ref()), [false, true]),
            (None, Some(bias)) => ops::linear(x, dense(self.weight.as_ref()), bias),
            (Some(frozen), None) => ops::frozen_product(x, frozen, false),
            (Some(frozen), Some(bias)) => ops::frozen_product(x, frozen, false) + bias.unsqueeze(),
        }
    }
}

/// The values of a matrix that is not frozen in blocks.
fn dense(weight: Option<&Param<Tensor<2>>>) -> Tensor<2> {
    weight
        .expect("a matrix is either a parameter or frozen in blocks")
        .val()
}

/// LayerNorm, or RMSNorm when there is no `beta`.
#[derive(Module, Debug)]
pub struct Norm {
    /// [C]
    gamma: Param<Tensor<1>>,
    /// [C]
    beta: Option<Param<Tensor<1>>>,
    #[module(skip)]
    eps: f32,
}

impl Norm {
    /// Each head by itself. [N, H * D] -> [N, H * D]
    fn forward_heads(&self, x: Tensor<2>, head_dim: usize) -> Tensor<2> {
        let shape = x.shape();
        let heads = x.reshape([shape.num_elements() / head_dim, head_dim]);
        self.forward(heads).reshape(shape)
    }

    /// [N, C] -> [N, C]
    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        match &self.beta {
            Some(beta) => ops::layer_norm(x, self.gamma.val(), beta.val(), self.eps),
            None => ops::rms_norm(x, self.gamma.val(), self.eps),
        }
    }
}

/// A table of vectors.
#[derive(Module, Debug)]
pub struct Embedding {
    /// [V, C]; absent where the table is frozen in blocks.
    weight: Option<Param<Tensor<2>>>,
    #[module(skip)]
    frozen: Option<Frozen>,
}

impl Embedding {
    /// The vectors of some ids. [n, C]
    fn select(&self, ids: &[u32], device: &Device) -> Tensor<2> {
        match &self.frozen {
            Some(frozen) => frozen.select(ids, device),
            None => dense(self.weight.as_ref()).select(0, ints(ids, device)),
        }
    }
}

/// The matrix that makes the logits, outside autodiff. [V, C]
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "one value per step")]
pub enum Head {
    /// Its values, and whether it is trained.
    Dense(Tensor<2>, bool),
    /// In blocks.
    Frozen(Frozen),
}

impl Head {
    /// Whether a gradient is wanted.
    pub fn is_trained(&self) -> bool {
        matches!(self, Self::Dense(_, true))
    }

    /// [m, C] -> [m, V]
    pub fn logits(&self, hidden: Tensor<2>) -> Tensor<2> {
        match self {
            Self::Dense(weight, _) => ops::product(hidden, weight.clone(), [false, true]),
            Self::Frozen(frozen) => ops::frozen_product(hidden, frozen, false),
        }
    }

    /// The gradient of the hidden states from that of the logits. [m, V] -> [m, C]
    pub fn backward(&self, d_logits: Tensor<2>) -> Tensor<2> {
        match self {
            Self::Dense(weight, _) => ops::product(d_logits, weight.clone(), [false, false]),
            Self::Frozen(frozen) => ops::frozen_product(d_logits, frozen, true),
        }
    }
}

/// One transformer block; the families fill different fields.
#[derive(Module, Debug)]
pub struct Block {
    attn_norm: Norm,
    attn_qkv: Option<Linear>,
    attn_q: Option<Linear>,
    attn_k: Option<Linear>,
    attn_v: Option<Linear>,
    attn_q_norm: Option<Norm>,
    attn_k_norm: Option<Norm>,
    attn_output: Linear,
    ffn_norm: Norm,
    ffn_gate: Option<Linear>,
    ffn_up: Linear,
    ffn_down: Linear,
}

/// A model of any family.
#[derive(Module, Debug)]
pub struct Transformer {
    token_embd: Embedding,
    position_embd: Option<Embedding>,
    blocks: Vec<Block>,
    output_norm: Norm,
    output: Option<Linear>,
    #[module(skip)]
    spec: ModelSpec,
}

/// What all `LoRAs` of a model have in common.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LoraSpec {
    /// Rank and scale.
    pub size: LoraSize,
    /// Probability of dropout on the input.
    pub dropout: f64,
}

/// A matrix of the model, to be exchanged.
pub(super) struct Matrix<'a> {
    /// The parameter, where it is one.
    pub(super) weight: &'a mut Option<Param<Tensor<2>>>,
    /// The blocks, where it is frozen.
    pub(super) frozen: &'a mut Option<Frozen>,
    /// The LoRA on it.
    pub(super) lora: Option<&'a mut Lora>,
}

/// Takes parameters out of a map and puts them on a device.
struct Builder<'a> {
    values: Parameters,
    frozen: BTreeMap<String, Frozen>,
    shapes: BTreeMap<String, Vec<usize>>,
    lora: Option<&'a LoraSpec>,
    device: &'a Device,
    trains_base: bool,
}

impl Builder<'_> {
    fn param<const D: usize>(
        &mut self,
        name: &str,
        shape: [usize; D],
        trained: bool,
    ) -> Result<Param<Tensor<D>>> {
        let values = self
            .values
            .remove(name)
            .ok_or_else(|| anyhow::anyhow!("the parameter `{name}` is missing"))?;
        let expected: usize = shape.iter().product();
        ensure!(
            values.len() == expected,
            "the parameter `{name}` has {} values instead of {expected}",
            values.len()
        );
        let tensor = Tensor::<D>::from_data(TensorData::new(values, shape), self.device);
        Ok(Param::from_tensor(tensor.set_require_grad(trained)).set_require_grad(trained))
    }

    fn shape<const D: usize>(&self, name: &str) -> Result<[usize; D]> {
        let shape = self
            .shapes
            .get(name)
            .ok_or_else(|| anyhow::anyhow!("the model has no parameter `{name}`"))?;
        shape
            .as_slice()
            .try_into()
            .map_err(|_| anyhow::anyhow!("`{name}` has {} axes instead of {D}", shape.len()))
    }

    fn vector(&mut self, name: &str) -> Result<Param<Tensor<1>>> {
        self.param(name, self.shape::<1>(name)?, self.trains_base)
    }

    /// A matrix as a parameter, or in blocks.
    fn matrix(&mut self, name: &str) -> Result<(Option<Param<Tensor<2>>>, Option<Frozen>)> {
        let shape = self.shape::<2>(name)?;
        let Some(frozen) = self.frozen.remove(name) else {
            return Ok((Some(self.param(name, shape, self.trains_base)?), None));
        };
        ensure!(
            frozen.shape() == shape,
            "the parameter `{name}` has the shape {:?} instead of {shape:?}",
            frozen.shape()
        );
        Ok((None, Some(frozen)))
    }

    fn embedding(&mut self, name: &str) -> Result<Embedding> {
        let (weight, frozen) = self.matrix(name)?;
        Ok(Embedding { weight, frozen })
    }

    fn linear(&mut self, name: &str) -> Result<Linear> {
        let weight_name = format!("{name}.weight");
        let [n_out, n_in] = self.shape(&weight_name)?;
        let bias_name = format!("{name}.bias");
        let bias = if self.shapes.contains_key(&bias_name) {
            Some(self.vector(&bias_name)?)
        } else {
            None
        };
        let (a, b) = lora_names(name);
        let lora = match self.lora {
            Some(spec) if self.values.contains_key(&a) => Some(Lora {
                lora_a: self.param(&a, [spec.size.rank, n_in], true)?,
                lora_b: self.param(&b, [n_out, spec.size.rank], true)?,
                size: spec.size,
                dropout: spec.dropout,
                draw: None,
                is_merged: false,
            }),
            _ => None,
        };
        let (weight, frozen) = self.matrix(&weight_name)?;
        Ok(Linear {
            weight,
            bias,
            lora,
            frozen,
        })
    }

    fn optional_linear(&mut self, name: &str) -> Result<Option<Linear>> {
        if self.shapes.contains_key(&format!("{name}.weight")) {
            self.linear(name).map(Some)
        } else {
            Ok(None)
        }
    }

    fn norm(&mut self, name: &str, spec: &ModelSpec) -> Result<Norm> {
        let beta = match spec.norm {
            NormKind::LayerNorm => Some(self.vector(&format!("{name}.beta"))?),
            NormKind::RmsNorm => None,
        };
        Ok(Norm {
            gamma: self.vector(&format!("{name}.gamma"))?,
            beta,
            eps: spec.norm_eps,
        })
    }

    /// The norm of each head of q or k, where the family has one.
    fn head_norm(&mut self, name: &str, spec: &ModelSpec) -> Result<Option<Norm>> {
        if !spec.qk_norm {
            return Ok(None);
        }
        Ok(Some(Norm {
            gamma: self.vector(&format!("{name}.gamma"))?,
            beta: None,
            eps: spec.norm_eps,
        }))
    }

    fn block(&mut self, layer: usize, spec: &ModelSpec) -> Result<Block> {
        let name = |field: &str| format!("blocks.{layer}.{field}");
        Ok(Block {
            attn_norm: self.norm(&name("attn_norm"), spec)?,
            attn_qkv: self.optional_linear(&name("attn_qkv"))?,
            attn_q: self.optional_linear(&name("attn_q"))?,
            attn_k: self.optional_linear(&name("attn_k"))?,
            attn_v: self.optional_linear(&name("attn_v"))?,
            attn_q_norm: self.head_norm(&name("attn_q_norm"), spec)?,
            attn_k_norm: self.head_norm(&name("attn_k_norm"), spec)?,
            attn_output: self.linear(&name("attn_output"))?,
            ffn_norm: self.norm(&name("ffn_norm"), spec)?,
            ffn_gate: self.optional_linear(&name("ffn_gate"))?,
            ffn_up: self.linear(&name("ffn_up"))?,
            ffn_down: self.linear(&name("ffn_down"))?,
        })
    }
}

/// Names of the two LoRA parameters of the linear layer `name`.
pub fn lora_names(name: &str) -> (String, String) {
    (format!("{name}.lora.lora_a"), format!("{name}.lora.lora_b"))
}

/// Positions of a batch and what to predict there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Rows, padded on the right to the same length. [B * T]
    pub tokens: Vec<u32>,
    /// B
    pub n_rows: usize,
    /// T
    pub n_tokens: usize,
    /// Counted positions as indices into `tokens`, in order. [M]
    pub counted: Vec<u32>,
    /// The token that follows each of them. [M]
    pub targets: Vec<u32>,
}

impl Batch {
    /// Texts under each other, each with the first of its positions that counts. What follows them is not known.
    pub fn of_texts(texts: &[(&[u32], usize)]) -> Self {
        let n_tokens = texts.iter().map(|(ids, _)| ids.len()).max().unwrap_or(0);
        let mut tokens = Vec::with_capacity(texts.len() * n_tokens);
        let mut counted = Vec::new();
        for (ids, from) in texts {
            let start = tokens.len();
            counted.extend((start + from..start + ids.len()).map(|at| at as u32));
            tokens.extend_from_slice(ids);
            // The causal order keeps what stands behind a text out of it.
            tokens.resize(start + n_tokens, 0);
        }
        Self {
            tokens,
            n_rows: texts.len(),
            n_tokens,
            targets: vec![0; counted.len()],
            counted,
        }
    }
}

impl Transformer {
    /// Builds the module that `spec` describes from parameters by their `burn` names, in GGUF's layout. With `lora`,
    /// the layers that have LoRA parameters among `values` train these and everything else is frozen.
    ///
    /// # Errors
    /// A parameter that is missing or of the wrong size, by name.
    pub fn new(
        spec: &ModelSpec,
        values: Parameters,
        lora: Option<&LoraSpec>,
        device: &Device,
    ) -> Result<Self> {
        Self::with_frozen(spec, values, BTreeMap::new(), lora, device)
    }

    /// As [`Self::new`], with some matrices in blocks instead of among `values`.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_frozen(
        spec: &ModelSpec,
        values: Parameters,
        frozen: BTreeMap<String, Frozen>,
        lora: Option<&LoraSpec>,
        device: &Device,
    ) -> Result<Self> {
        let shapes = tensor_table(spec)
            .into_iter()
            .map(|entry: TensorEntry| (entry.burn, entry.shape))
            .collect();
        let mut builder = Builder {
            values,
            frozen,
            shapes,
            lora,
            device,
            trains_base: lora.is_none(),
        };
        let model = Self {
            token_embd: builder.embedding("token_embd.weight")?,
            position_embd: match spec.position {
                Position::Learned => Some(builder.embedding("position_embd.weight")?),
                _ => None,
            },
            blocks: (0..spec.n_layer)
                .map(|layer| builder.block(layer, spec))
                .collect::<Result<_>>()?,
            output_norm: builder.norm("output_norm", spec)?,
            output: builder.optional_linear("output")?,
            spec: spec.clone(),
        };
        if let Some(name) = builder.values.keys().chain(builder.frozen.keys()).next() {
            anyhow::bail!("the parameter `{name}` has no place in this model");
        }
        Ok(model)
    }

    /// The architecture.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// Where it computes.
    pub fn device(&self) -> Device {
        self.output_norm.gamma.val().device()
    }

    /// The output matrix: the token embedding's where it is tied. [V, C]
    pub fn head(&self) -> Head {
        let (weight, frozen) = match &self.output {
            Some(output) => (&output.weight, &output.frozen),
            None => (&self.token_embd.weight, &self.token_embd.frozen),
        };
        match frozen {
            Some(frozen) => Head::Frozen(frozen.clone()),
            None => {
                let weight = dense(weight.as_ref());
                let is_trained = weight.is_require_grad();
                Head::Dense(weight.inner(), is_trained)
            }
        }
    }

    /// Name of the parameter behind [`Self::head`].
    pub fn head_name(&self) -> &'static str {
        if self.output.is_some() {
            "output.weight"
        } else {
            "token_embd.weight"
        }
    }

    /// Hidden states of the counted positions, after the output norm. -> [M, C]
    pub fn hidden(&self, batch: &Batch) -> Tensor<2> {
        let heads = self.heads(batch);
        let x =
            (0..self.blocks.len()).fold(self.embed(batch), |x, layer| self.block(layer, x, &heads));
        self.leave(x, batch)
    }

    /// The extents of a batch's attention.
    pub(super) fn heads(&self, batch: &Batch) -> Heads {
        ops::heads(&self.spec, batch.n_rows, batch.n_tokens)
    }

    /// Blocks.
    pub(super) fn n_blocks(&self) -> usize {
        self.blocks.len()
    }

    /// What enters the first block. -> [N, C]
    pub(super) fn embed(&self, batch: &Batch) -> Tensor<2> {
        let device = self.device();
        let x = self.token_embd.select(&batch.tokens, &device);
        let Some(positions) = &self.position_embd else {
            return x;
        };
        let ids: Vec<u32> = (0..batch.n_rows)
            .flat_map(|_| 0..batch.n_tokens as u32)
            .collect();
        x + positions.select(&ids, &device)
    }

    /// Whether what [`Self::embed`] gives has a gradient.
    pub(super) fn trains_embedding(&self) -> bool {
        let weight = self.token_embd.weight.as_ref();
        weight.is_some_and(|weight| weight.val().is_require_grad())
    }

    /// One block. [N, C] -> [N, C]
    pub(super) fn block(&self, layer: usize, x: Tensor<2>, heads: &Heads) -> Tensor<2> {
        let block = &self.blocks[layer];
        self.mlp(block, attention(block, x, heads))
    }

    /// What comes after the last block: the counted positions, normed. [N, C] -> [M, C]
    pub(super) fn leave(&self, x: Tensor<2>, batch: &Batch) -> Tensor<2> {
        let device = x.device();
        self.output_norm
            .forward(x.select(0, ints(&batch.counted, &device)))
    }

    /// Every matrix by its parameter's name.
    pub(super) fn matrices_mut(&mut self) -> Vec<(String, Matrix<'_>)> {
        let mut matrices = vec![(
            "token_embd.weight".to_owned(),
            Matrix {
                weight: &mut self.token_embd.weight,
                frozen: &mut self.token_embd.frozen,
                lora: None,
            },
        )];
        let mut linears = Vec::new();
        for (number, block) in self.blocks.iter_mut().enumerate() {
            let Block {
                attn_qkv,
                attn_q,
                attn_k,
                attn_v,
                attn_output,
                ffn_gate,
                ffn_up,
                ffn_down,
                ..
            } = block;
            let of_block = [
                ("attn_qkv", attn_qkv.as_mut()),
                ("attn_q", attn_q.as_mut()),
                ("attn_k", attn_k.as_mut()),
                ("attn_v", attn_v.as_mut()),
                ("attn_output", Some(attn_output)),
                ("ffn_gate", ffn_gate.as_mut()),
                ("ffn_up", Some(ffn_up)),
                ("ffn_down", Some(ffn_down)),
            ];
            linears.extend(
                of_block
                    .into_iter()
                    .map(|(field, linear)| (format!("blocks.{number}.{field}.weight"), linear)),
            );
        }
        linears.push(("output.weight".to_owned(), self.output.as_mut()));
        matrices.extend(linears.into_iter().filter_map(|(name, linear)| {
            let linear = linear?;
            let matrix = Matrix {
                weight: &mut linear.weight,
                frozen: &mut linear.frozen,
                lora: linear.lora.as_mut(),
            };
            Some((name, matrix))
        }));
        matrices
    }

    /// The model as it is trained on one batch: with the draws of dropout that belong there.
    #[must_use]
    pub fn dropping(&self, moment: &Moment) -> Self {
        let mut model = self.clone();
        for (layer, (_, matrix)) in model.matrices_mut().into_iter().enumerate() {
            if let Some(lora) = matrix.lora.filter(|lora| lora.dropout > 0.0) {
                let [_, n_in] = lora.lora_a.val().dims();
                lora.draw = Some(Draw::new(moment, layer as u64, n_in, lora.dropout));
            }
        }
        model
    }

    /// Values and bytes of the matrices that are frozen in blocks.
    pub fn frozen_size(&self) -> (usize, usize) {
        let mut model = self.clone();
        let frozen = model
            .matrices_mut()
            .into_iter()
            .filter_map(|(_, matrix)| matrix.frozen.clone());
        frozen.fold((0, 0), |(n, len_bytes), frozen| {
            let [n_out, n_in] = frozen.shape();
            (n + n_out * n_in, len_bytes + frozen.len_bytes())
        })
    }

    fn mlp(&self, block: &Block, x: Tensor<2>) -> Tensor<2> {
        let normed = block.ffn_norm.forward(x.clone());
        let inner = match (&block.ffn_gate, self.spec.mlp) {
            (Some(gate), Mlp::SwiGlu) => {
                ops::swiglu(gate.forward(normed.clone()), block.ffn_up.forward(normed))
            }
            _ => ops::gelu(block.ffn_up.forward(normed)),
        };
        x + block.ffn_down.forward(inner)
    }
}

/// The attention of a block, with the residual. [N, C] -> [N, C]
fn attention(block: &Block, x: Tensor<2>, heads: &Heads) -> Tensor<2> {
    let normed = block.attn_norm.forward(x.clone());
    if let Some(fused) = &block.attn_qkv {
        let mixed = ops::attention_qkv(fused.forward(normed), heads);
        return x + block.attn_output.forward(mixed);
    }
    let project = |layer: &Option<Linear>| {
        layer
            .as_ref()
            .expect("a block has either a fused projection or all three")
            .forward(normed.clone())
    };
    let (q, k, v) = (
        project(&block.attn_q),
        project(&block.attn_k),
        project(&block.attn_v),
    );
    let normed_heads = |norm: &Option<Norm>, x: Tensor<2>| match norm {
        Some(norm) => norm.forward_heads(x, heads.head_dim),
        None => x,
    };
    let (q, k) = (
        normed_heads(&block.attn_q_norm, q),
        normed_heads(&block.attn_k_norm, k),
    );
    x + block.attn_output.forward(ops::attention(q, k, v, heads))
}

/// Token ids as a tensor. [n]
pub fn ints(ids: &[u32], device: &Device) -> Tensor<1, Int> {
    let ids: Vec<i32> = ids.iter().map(|&id| id as i32).collect();
    let n = ids.len();
    Tensor::from_data(TensorData::new(ids, [n]), device)
}

/// Calls a function with the path and value of every parameter.
struct Visit<F> {
    path: Vec<String>,
    each: F,
}

impl<F: FnMut(&str, Tensor<1>, bool)> ModuleVisitor for Visit<F> {
    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.path.push(name.to_owned());
    }
    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
    }
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let value = param.val();
        let (trained, n) = (value.is_require_grad(), value.shape().num_elements());
        (self.each)(&self.path.join("."), value.inner().reshape([n]), trained);
    }
}

/// Visits every parameter, flattened and without autodiff: name, values, whether it is trained.
pub fn visit_parameters(model: &Transformer, each: impl FnMut(&str, Tensor<1>, bool)) {
    model.visit(&mut Visit {
        path: Vec::new(),
        each,
    });
}

/// Values of the trained parameters by name.
pub fn trained_parameters(model: &Transformer) -> Parameters {
    let mut values = Parameters::new();
    visit_parameters(model, |name, value, trained| {
        if trained {
            values.insert(name.to_owned(), to_vec(value));
        }
    });
    values
}

/// The values of a tensor.
#[expect(
    clippy::missing_panics_doc,
    reason = "the trainer makes no tensor of another type"
)]
pub fn to_vec<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor
        .into_data()
        .try_into_vec()
        .expect("float tensors are f32 here")
}

/// Takes the gradients of all trained parameters, flattened.
struct TakeGradients<'a> {
    path: Vec<String>,
    gradients: &'a mut burn::tensor::Gradients,
    out: BTreeMap<String, Tensor<1>>,
}

impl ModuleVisitor for TakeGradients<'_> {
    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.path.push(name.to_owned());
    }
    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
    }
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(gradient) = param.val().grad_remove(self.gradients) {
            let n = gradient.shape().num_elements();
            self.out.insert(self.path.join("."), gradient.reshape([n]));
        }
    }
}

/// Gradients by parameter name, flattened.
pub fn take_gradients(
    model: &Transformer,
    mut gradients: burn::tensor::Gradients,
) -> BTreeMap<String, Tensor<1>> {
    let mut take = TakeGradients {
        path: Vec::new(),
        gradients: &mut gradients,
        out: BTreeMap::new(),
    };
    model.visit(&mut take);
    take.out
}

/// Replaces trained parameters.
struct Replace<F> {
    path: Vec<String>,
    each: F,
}

impl<F: FnMut(&str, Tensor<1>, bool) -> Tensor<1>> ModuleMapper for Replace<F> {
    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.path.push(name.to_owned());
    }
    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
    }
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if !param.val().is_require_grad() {
            return param;
        }
        let (path, each) = (self.path.join("."), &mut self.each);
        param.map(|value| {
            let shape = value.shape();
            let flat = value.inner().reshape([shape.num_elements()]);
            Tensor::from_inner(each(&path, flat, D >= 2).reshape(shape)).require_grad()
        })
    }
}

/// Gives every trained parameter a new value: `each(name, flat value, whether it is a matrix)`.
pub fn update_parameters(
    model: Transformer,
    each: impl FnMut(&str, Tensor<1>, bool) -> Tensor<1>,
) -> Transformer {
    model.map(&mut Replace {
        path: Vec::new(),
        each,
    })
}
