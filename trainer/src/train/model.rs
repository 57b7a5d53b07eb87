//! The GPT of all families as one Burn module, driven by a [`ModelSpec`].
//!
//! Weights are held as GGUF holds them: matrices `[out, in]`, q and k for the rotation that the spec's pairing says; Hugging Face's layout
//! exists only at the edges ([`crate::run`]). Parameters go by the `burn` names of `spec::tensor_table`; the matrices
//! of a LoRA add `.lora_a` and `.lora_b` beside their `.weight`.
//!
//! Activations are `[N, C]` with N = B·T, so that every linear layer is one plain matrix product; only attention
//! looks at `[B, H, T, D]`. Legend: B batch, T tokens, C `n_embd`, H heads, D `head_dim`, V vocabulary, M counted positions.

use super::{kernels::Heads, ops};
use crate::run::Parameters;
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
    scale: f64,
}

/// `y = x Wᵀ + b`, with a LoRA or without.
#[derive(Module, Debug)]
pub struct Linear {
    /// [out, in]
    weight: Param<Tensor<2>>,
    /// [out]
    bias: Option<Param<Tensor<1>>>,
    lora: Option<Lora>,
}

impl Linear {
    /// [N, in] -> [N, out]
    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let mut y = ops::product(x.clone(), self.weight.val(), [false, true]);
        if let Some(lora) = &self.lora {
            let low = ops::product(x, lora.lora_a.val(), [false, true]).mul_scalar(lora.scale); // [N, rank]
            y = y + ops::product(low, lora.lora_b.val(), [false, true]);
        }
        match &self.bias {
            Some(bias) => y + bias.val().unsqueeze(),
            None => y,
        }
    }
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
    /// [V, C]
    weight: Param<Tensor<2>>,
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

/// Which matrices get a LoRA, and of what size.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraSpec {
    /// Rank of the addition.
    pub rank: usize,
    /// `scale = alpha / rank`.
    pub alpha: f64,
}

/// Takes parameters out of a map and puts them on a device.
struct Builder<'a> {
    values: Parameters,
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

    fn matrix(&mut self, name: &str) -> Result<Param<Tensor<2>>> {
        self.param(name, self.shape::<2>(name)?, self.trains_base)
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
                lora_a: self.param(&a, [spec.rank, n_in], true)?,
                lora_b: self.param(&b, [n_out, spec.rank], true)?,
                scale: spec.alpha / spec.rank as f64,
            }),
            _ => None,
        };
        Ok(Linear {
            weight: self.matrix(&weight_name)?,
            bias,
            lora,
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
        let shapes = tensor_table(spec)
            .into_iter()
            .map(|entry: TensorEntry| (entry.burn, entry.shape))
            .collect();
        let mut builder = Builder {
            values,
            shapes,
            lora,
            device,
            trains_base: lora.is_none(),
        };
        let model = Self {
            token_embd: Embedding {
                weight: builder.matrix("token_embd.weight")?,
            },
            position_embd: match spec.position {
                Position::Learned => Some(Embedding {
                    weight: builder.matrix("position_embd.weight")?,
                }),
                _ => None,
            },
            blocks: (0..spec.n_layer)
                .map(|layer| builder.block(layer, spec))
                .collect::<Result<_>>()?,
            output_norm: builder.norm("output_norm", spec)?,
            output: builder.optional_linear("output")?,
            spec: spec.clone(),
        };
        if let Some(name) = builder.values.keys().next() {
            anyhow::bail!("the parameter `{name}` has no place in this model");
        }
        Ok(model)
    }

    /// The architecture.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// The output matrix: the token embedding's where it is tied. [V, C]
    pub fn head(&self) -> Tensor<2> {
        self.output.as_ref().map_or_else(
            || self.token_embd.weight.val(),
            |output| output.weight.val(),
        )
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
        let device = self.token_embd.weight.val().device();
        let x = self
            .token_embd
            .weight
            .val()
            .select(0, ints(&batch.tokens, &device));
        let Some(positions) = &self.position_embd else {
            return x;
        };
        let ids: Vec<u32> = (0..batch.n_rows)
            .flat_map(|_| 0..batch.n_tokens as u32)
            .collect();
        x + positions.weight.val().select(0, ints(&ids, &device))
    }

    /// Whether what [`Self::embed`] gives has a gradient.
    pub(super) fn trains_embedding(&self) -> bool {
        self.token_embd.weight.val().is_require_grad()
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
    let (q_width, kv_width) = (
        heads.n_head * heads.head_dim,
        heads.n_kv_head * heads.head_dim,
    );
    let normed = block.attn_norm.forward(x.clone());
    let (q, k, v) = match &block.attn_qkv {
        Some(fused) => {
            let qkv = fused.forward(normed); // [N, (H + 2 KV) * D]
            (
                qkv.clone().narrow(1, 0, q_width),
                qkv.clone().narrow(1, q_width, kv_width),
                qkv.narrow(1, q_width + kv_width, kv_width),
            )
        }
        None => {
            let project = |layer: &Option<Linear>| {
                layer
                    .as_ref()
                    .expect("a block has either a fused projection or all three")
                    .forward(normed.clone())
            };
            (
                project(&block.attn_q),
                project(&block.attn_k),
                project(&block.attn_v),
            )
        }
    };
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
