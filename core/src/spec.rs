//! A model's architecture as data, and the one table of tensor names.
//!
//! Three engines read a [`ModelSpec`]: Burn modules in the trainer, the CPU engine here, and the WebGPU engine.
//! A new family is a new row in [`ModelSpec::from_metadata`] and in [`tensor_table`], not a new engine.

use crate::gguf::Metadata;

/// Which family of names and defaults a model follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Family {
    /// GPT-2: LayerNorm, learned positions, GELU, biases, fused QKV, tied embedding.
    Gpt2,
    /// Llama: RMSNorm, RoPE, SwiGLU, grouped-query heads.
    Llama,
}

/// Normalisation before attention, before the MLP, and before the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Norm {
    /// Mean and variance, with weight and bias.
    LayerNorm,
    /// Root mean square, with weight only.
    RmsNorm,
}

/// How a position enters the computation.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Position {
    /// A learned vector a position, added to the token embedding.
    Learned,
    /// Rotary embedding of q and k.
    Rope {
        /// Frequency base: `theta_i = base^(-2i/dim)`.
        base: f32,
        /// Rotated dimensions of a head (`head_dim` for Llama).
        dim: usize,
        /// Divisor for each frequency (Llama 3's `rope_freqs.weight`, or a constant for linear scaling); empty means 1.
        /// [dim / 2]
        freq_factors: Vec<f32>,
    },
}

/// The MLP's activation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mlp {
    /// `down(gelu_tanh(up(x)))`.
    Gelu,
    /// `down(silu(gate(x)) * up(x))`.
    SwiGlu,
}

/// An architecture as data.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelSpec {
    /// Family of tensor names.
    pub family: Family,
    /// Transformer blocks.
    pub n_layer: usize,
    /// Query heads (H).
    pub n_head: usize,
    /// Key and value heads.
    pub n_kv_head: usize,
    /// Width of a head (D).
    pub head_dim: usize,
    /// Width of the residual stream (C).
    pub n_embd: usize,
    /// Inner width of the MLP.
    pub n_ff: usize,
    /// Positions the model was made for.
    pub n_ctx: usize,
    /// Tokens (V).
    pub vocab_size: usize,
    /// Normalisation.
    pub norm: Norm,
    /// Epsilon of the normalisation.
    pub norm_eps: f32,
    /// Positions.
    pub position: Position,
    /// MLP.
    pub mlp: Mlp,
    /// Whether the linear layers have biases.
    pub bias: bool,
    /// Whether the output matrix is the token embedding.
    pub tied_embedding: bool,
}

impl ModelSpec {
    /// Reads the spec out of GGUF metadata (`general.architecture`, `llama.block_count`, …).
    /// `tied_embedding` and `vocab_size` come from the tensors, so the header is needed.
    ///
    /// # Errors
    /// [`SpecError`] naming the key.
    pub fn from_header(_header: &crate::gguf::Header) -> Result<Self, SpecError> {
        todo!()
    }
    /// The architecture keys to write to a GGUF file.
    pub fn to_metadata(&self) -> Metadata {
        todo!()
    }
    /// Reads a Hugging Face `config.json`.
    ///
    /// # Errors
    /// [`SpecError`] naming the key.
    pub fn from_hf_config(_config: &serde_json::Value) -> Result<Self, SpecError> {
        todo!()
    }
    /// The `config.json` that transformers reads.
    pub fn to_hf_config(&self) -> serde_json::Value {
        todo!()
    }
}

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
    AttnK,
    AttnV,
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
pub fn tensor_table(_spec: &ModelSpec) -> Vec<TensorEntry> {
    todo!()
}

/// Why a spec could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SpecError {
    /// A family we do not know.
    #[error("unknown architecture `{0}`; this build runs `gpt2` and `llama`")]
    UnknownArchitecture(String),
    // … the owner of this module adds the rest
}
