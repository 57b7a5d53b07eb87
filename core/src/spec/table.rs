//! The one table of tensor names: our roles, GGUF's names, Hugging Face's names and the Burn modules' parameters.
//!
//! Trap: GGUF's text says `pos_embd`, llama.cpp reads and writes `position_embd`.

use super::{Family, ModelSpec};

/// What a tensor is for, independent of any file format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the variants are the field's names")]
pub enum Role {
    TokenEmbd,
    PositionEmbd,
    AttnNorm,
    AttnNormBias,
    /// GPT-2's fused projection. [3C, C]
    AttnQkv,
    AttnQkvBias,
    AttnQ,
    AttnQBias,
    AttnK,
    AttnKBias,
    AttnV,
    AttnVBias,
    /// Norm of each head of q. [D]
    AttnQNorm,
    /// Norm of each head of k. [D]
    AttnKNorm,
    AttnOutput,
    AttnOutputBias,
    FfnNorm,
    FfnNormBias,
    FfnGate,
    FfnUp,
    FfnUpBias,
    FfnDown,
    FfnDownBias,
    OutputNorm,
    OutputNormBias,
    Output,
}

/// What must be done to a tensor on the way from the Hugging Face layout to GGUF's (the inverse on the way back).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HfLayout {
    /// Same order.
    Same,
    /// GPT-2's `Conv1D` keeps `[in, out]`: transpose.
    Transposed,
    /// Llama q/k rows: Hugging Face rotates halves, GGUF rotates neighbours. Rows of each head are reordered.
    RopePermuted {
        /// Heads in this matrix.
        n_head: usize,
    },
}

/// One row of the name table.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorEntry {
    /// What it is.
    pub role: Role,
    /// Block number, or `None` outside the blocks.
    pub layer: Option<usize>,
    /// Name in a GGUF file.
    pub gguf: String,
    /// Name in a Hugging Face safetensors file (files may lack the `model.` or `transformer.` prefix).
    pub hf: String,
    /// Name of the parameter in the trainer's Burn module (`blocks.3.attn_q.weight`).
    pub burn: String,
    /// Row-major shape, the fastest axis last: `[out, in]`, or `[n]` for vectors.
    pub shape: Vec<usize>,
    /// How the Hugging Face layout differs.
    pub hf_layout: HfLayout,
    /// Whether export may quantise it (matrices; vectors and positions stay f32).
    pub quantizable: bool,
}

/// Every tensor of a model, in file order.
pub fn tensor_table(spec: &ModelSpec) -> Vec<TensorEntry> {
    let (before, block, after) = match spec.family {
        Family::Gpt2 => (GPT2_BEFORE, GPT2_BLOCK, GPT2_AFTER),
        Family::Llama => (LLAMA_BEFORE, LLAMA_BLOCK, LLAMA_AFTER),
        Family::Qwen2 => (LLAMA_BEFORE, QWEN2_BLOCK, LLAMA_AFTER),
        Family::Qwen3 => (LLAMA_BEFORE, QWEN3_BLOCK, LLAMA_AFTER),
    };
    let mut table: Vec<_> = before.iter().map(|row| row.entry(spec, None)).collect();
    for layer in 0..spec.n_layer {
        table.extend(block.iter().map(|row| row.entry(spec, Some(layer))));
    }
    table.extend(after.iter().map(|row| row.entry(spec, None)));
    if !spec.tied_embedding {
        table.push(OUTPUT.entry(spec, None));
    }
    table
}

/// A row of a family's table; `{}` stands for the block number.
struct Row {
    role: Role,
    gguf: &'static str,
    hf: &'static str,
    shape: Shape,
    layout: Layout,
}

/// Extents by name. Matrices are `[out, in]`.
enum Shape {
    /// [C]
    Embd,
    /// `[n_ff]`
    Ff,
    /// [3C]
    Qkv,
    /// [H * D]
    Heads,
    /// [kv heads * D]
    KvHeads,
    /// [D]
    HeadDim,
    /// [V, C]
    VocabEmbd,
    /// `[n_ctx, C]`
    CtxEmbd,
    /// [3C, C]
    QkvEmbd,
    /// [H * D, C]
    HeadsEmbd,
    /// [kv heads * D, C]
    KvHeadsEmbd,
    /// [C, H * D]
    EmbdHeads,
    /// `[n_ff, C]`
    FfEmbd,
    /// `[C, n_ff]`
    EmbdFf,
}

enum Layout {
    Same,
    Transposed,
    RopeQ,
    RopeK,
}

impl Row {
    fn entry(&self, spec: &ModelSpec, layer: Option<usize>) -> TensorEntry {
        let numbered = |name: &str| match layer {
            Some(layer) => name.replace("{}", &layer.to_string()),
            None => name.to_owned(),
        };
        let shape = self.shape.of(spec);
        TensorEntry {
            role: self.role,
            layer,
            gguf: numbered(self.gguf),
            hf: numbered(self.hf),
            burn: burn_name(&numbered(self.gguf)),
            quantizable: shape.len() == 2 && self.role != Role::PositionEmbd,
            shape,
            hf_layout: self.layout.of(spec),
        }
    }
}

impl Shape {
    fn of(&self, spec: &ModelSpec) -> Vec<usize> {
        let (c, ff) = (spec.n_embd, spec.n_ff);
        let heads = spec.n_head * spec.head_dim;
        match self {
            Self::Embd => vec![c],
            Self::Ff => vec![ff],
            Self::Qkv => vec![3 * c],
            Self::Heads => vec![heads],
            Self::KvHeads => vec![spec.n_kv_head * spec.head_dim],
            Self::HeadDim => vec![spec.head_dim],
            Self::VocabEmbd => vec![spec.vocab_size, c],
            Self::CtxEmbd => vec![spec.n_ctx, c],
            Self::QkvEmbd => vec![3 * c, c],
            Self::HeadsEmbd => vec![heads, c],
            Self::KvHeadsEmbd => vec![spec.n_kv_head * spec.head_dim, c],
            Self::EmbdHeads => vec![c, heads],
            Self::FfEmbd => vec![ff, c],
            Self::EmbdFf => vec![c, ff],
        }
    }
}

impl Layout {
    fn of(&self, spec: &ModelSpec) -> HfLayout {
        match self {
            Self::Same => HfLayout::Same,
            Self::Transposed => HfLayout::Transposed,
            Self::RopeQ => HfLayout::RopePermuted {
                n_head: spec.n_head,
            },
            Self::RopeK => HfLayout::RopePermuted {
                n_head: spec.n_kv_head,
            },
        }
    }
}

/// `blk.3.attn_norm.weight` is `blocks.3.attn_norm.gamma` in Burn, whose norms call weight and bias gamma and beta.
fn burn_name(gguf: &str) -> String {
    let name = gguf.replacen("blk.", "blocks.", 1);
    match name.rsplit_once('.') {
        Some((norm, "weight")) if norm.ends_with("_norm") => format!("{norm}.gamma"),
        Some((norm, "bias")) if norm.ends_with("_norm") => format!("{norm}.beta"),
        _ => name,
    }
}

const fn row(
    role: Role,
    gguf: &'static str,
    hf: &'static str,
    shape: Shape,
    layout: Layout,
) -> Row {
    Row {
        role,
        gguf,
        hf,
        shape,
        layout,
    }
}

const OUTPUT: Row = row(
    Role::Output,
    "output.weight",
    "lm_head.weight",
    Shape::VocabEmbd,
    Layout::Same,
);

const GPT2_BEFORE: &[Row] = &[
    row(
        Role::TokenEmbd,
        "token_embd.weight",
        "transformer.wte.weight",
        Shape::VocabEmbd,
        Layout::Same,
    ),
    row(
        Role::PositionEmbd,
        "position_embd.weight",
        "transformer.wpe.weight",
        Shape::CtxEmbd,
        Layout::Same,
    ),
];

#[rustfmt::skip]
const GPT2_BLOCK: &[Row] = &[
    row(Role::AttnNorm, "blk.{}.attn_norm.weight", "transformer.h.{}.ln_1.weight", Shape::Embd, Layout::Same),
    row(Role::AttnNormBias, "blk.{}.attn_norm.bias", "transformer.h.{}.ln_1.bias", Shape::Embd, Layout::Same),
    row(Role::AttnQkv, "blk.{}.attn_qkv.weight", "transformer.h.{}.attn.c_attn.weight", Shape::QkvEmbd, Layout::Transposed),
    row(Role::AttnQkvBias, "blk.{}.attn_qkv.bias", "transformer.h.{}.attn.c_attn.bias", Shape::Qkv, Layout::Same),
    row(Role::AttnOutput, "blk.{}.attn_output.weight", "transformer.h.{}.attn.c_proj.weight", Shape::EmbdHeads, Layout::Transposed),
    row(Role::AttnOutputBias, "blk.{}.attn_output.bias", "transformer.h.{}.attn.c_proj.bias", Shape::Embd, Layout::Same),
    row(Role::FfnNorm, "blk.{}.ffn_norm.weight", "transformer.h.{}.ln_2.weight", Shape::Embd, Layout::Same),
    row(Role::FfnNormBias, "blk.{}.ffn_norm.bias", "transformer.h.{}.ln_2.bias", Shape::Embd, Layout::Same),
    row(Role::FfnUp, "blk.{}.ffn_up.weight", "transformer.h.{}.mlp.c_fc.weight", Shape::FfEmbd, Layout::Transposed),
    row(Role::FfnUpBias, "blk.{}.ffn_up.bias", "transformer.h.{}.mlp.c_fc.bias", Shape::Ff, Layout::Same),
    row(Role::FfnDown, "blk.{}.ffn_down.weight", "transformer.h.{}.mlp.c_proj.weight", Shape::EmbdFf, Layout::Transposed),
    row(Role::FfnDownBias, "blk.{}.ffn_down.bias", "transformer.h.{}.mlp.c_proj.bias", Shape::Embd, Layout::Same),
];

const GPT2_AFTER: &[Row] = &[
    row(
        Role::OutputNorm,
        "output_norm.weight",
        "transformer.ln_f.weight",
        Shape::Embd,
        Layout::Same,
    ),
    row(
        Role::OutputNormBias,
        "output_norm.bias",
        "transformer.ln_f.bias",
        Shape::Embd,
        Layout::Same,
    ),
];

const LLAMA_BEFORE: &[Row] = &[row(
    Role::TokenEmbd,
    "token_embd.weight",
    "model.embed_tokens.weight",
    Shape::VocabEmbd,
    Layout::Same,
)];

#[rustfmt::skip]
const LLAMA_BLOCK: &[Row] = &[
    row(Role::AttnNorm, "blk.{}.attn_norm.weight", "model.layers.{}.input_layernorm.weight", Shape::Embd, Layout::Same),
    row(Role::AttnQ, "blk.{}.attn_q.weight", "model.layers.{}.self_attn.q_proj.weight", Shape::HeadsEmbd, Layout::RopeQ),
    row(Role::AttnK, "blk.{}.attn_k.weight", "model.layers.{}.self_attn.k_proj.weight", Shape::KvHeadsEmbd, Layout::RopeK),
    row(Role::AttnV, "blk.{}.attn_v.weight", "model.layers.{}.self_attn.v_proj.weight", Shape::KvHeadsEmbd, Layout::Same),
    row(Role::AttnOutput, "blk.{}.attn_output.weight", "model.layers.{}.self_attn.o_proj.weight", Shape::EmbdHeads, Layout::Same),
    row(Role::FfnNorm, "blk.{}.ffn_norm.weight", "model.layers.{}.post_attention_layernorm.weight", Shape::Embd, Layout::Same),
    row(Role::FfnGate, "blk.{}.ffn_gate.weight", "model.layers.{}.mlp.gate_proj.weight", Shape::FfEmbd, Layout::Same),
    row(Role::FfnUp, "blk.{}.ffn_up.weight", "model.layers.{}.mlp.up_proj.weight", Shape::FfEmbd, Layout::Same),
    row(Role::FfnDown, "blk.{}.ffn_down.weight", "model.layers.{}.mlp.down_proj.weight", Shape::EmbdFf, Layout::Same),
];

#[rustfmt::skip]
const QWEN2_BLOCK: &[Row] = &[
    row(Role::AttnNorm, "blk.{}.attn_norm.weight", "model.layers.{}.input_layernorm.weight", Shape::Embd, Layout::Same),
    row(Role::AttnQ, "blk.{}.attn_q.weight", "model.layers.{}.self_attn.q_proj.weight", Shape::HeadsEmbd, Layout::Same),
    row(Role::AttnQBias, "blk.{}.attn_q.bias", "model.layers.{}.self_attn.q_proj.bias", Shape::Heads, Layout::Same),
    row(Role::AttnK, "blk.{}.attn_k.weight", "model.layers.{}.self_attn.k_proj.weight", Shape::KvHeadsEmbd, Layout::Same),
    row(Role::AttnKBias, "blk.{}.attn_k.bias", "model.layers.{}.self_attn.k_proj.bias", Shape::KvHeads, Layout::Same),
    row(Role::AttnV, "blk.{}.attn_v.weight", "model.layers.{}.self_attn.v_proj.weight", Shape::KvHeadsEmbd, Layout::Same),
    row(Role::AttnVBias, "blk.{}.attn_v.bias", "model.layers.{}.self_attn.v_proj.bias", Shape::KvHeads, Layout::Same),
    row(Role::AttnOutput, "blk.{}.attn_output.weight", "model.layers.{}.self_attn.o_proj.weight", Shape::EmbdHeads, Layout::Same),
    row(Role::FfnNorm, "blk.{}.ffn_norm.weight", "model.layers.{}.post_attention_layernorm.weight", Shape::Embd, Layout::Same),
    row(Role::FfnGate, "blk.{}.ffn_gate.weight", "model.layers.{}.mlp.gate_proj.weight", Shape::FfEmbd, Layout::Same),
    row(Role::FfnUp, "blk.{}.ffn_up.weight", "model.layers.{}.mlp.up_proj.weight", Shape::FfEmbd, Layout::Same),
    row(Role::FfnDown, "blk.{}.ffn_down.weight", "model.layers.{}.mlp.down_proj.weight", Shape::EmbdFf, Layout::Same),
];

#[rustfmt::skip]
const QWEN3_BLOCK: &[Row] = &[
    row(Role::AttnNorm, "blk.{}.attn_norm.weight", "model.layers.{}.input_layernorm.weight", Shape::Embd, Layout::Same),
    row(Role::AttnQ, "blk.{}.attn_q.weight", "model.layers.{}.self_attn.q_proj.weight", Shape::HeadsEmbd, Layout::Same),
    row(Role::AttnQNorm, "blk.{}.attn_q_norm.weight", "model.layers.{}.self_attn.q_norm.weight", Shape::HeadDim, Layout::Same),
    row(Role::AttnK, "blk.{}.attn_k.weight", "model.layers.{}.self_attn.k_proj.weight", Shape::KvHeadsEmbd, Layout::Same),
    row(Role::AttnKNorm, "blk.{}.attn_k_norm.weight", "model.layers.{}.self_attn.k_norm.weight", Shape::HeadDim, Layout::Same),
    row(Role::AttnV, "blk.{}.attn_v.weight", "model.layers.{}.self_attn.v_proj.weight", Shape::KvHeadsEmbd, Layout::Same),
    row(Role::AttnOutput, "blk.{}.attn_output.weight", "model.layers.{}.self_attn.o_proj.weight", Shape::EmbdHeads, Layout::Same),
    row(Role::FfnNorm, "blk.{}.ffn_norm.weight", "model.layers.{}.post_attention_layernorm.weight", Shape::Embd, Layout::Same),
    row(Role::FfnGate, "blk.{}.ffn_gate.weight", "model.layers.{}.mlp.gate_proj.weight", Shape::FfEmbd, Layout::Same),
    row(Role::FfnUp, "blk.{}.ffn_up.weight", "model.layers.{}.mlp.up_proj.weight", Shape::FfEmbd, Layout::Same),
    row(Role::FfnDown, "blk.{}.ffn_down.weight", "model.layers.{}.mlp.down_proj.weight", Shape::EmbdFf, Layout::Same),
];

const LLAMA_AFTER: &[Row] = &[row(
    Role::OutputNorm,
    "output_norm.weight",
    "model.norm.weight",
    Shape::Embd,
    Layout::Same,
)];
