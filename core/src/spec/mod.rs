//! A model's architecture as data, and the one table of tensor names.
//!
//! Three engines read a [`ModelSpec`]: Burn modules in the trainer, the CPU engine here, and the WebGPU engine.
//! A new family is a new row in [`ModelSpec::from_header`] and in [`tensor_table`], not a new engine.

#![allow(
    clippy::float_cmp,
    reason = "a factor of exactly 1 is no scaling, and specs are compared as they were written"
)]

mod check;
mod error;
mod gguf;
mod hf;
mod layout;
mod table;
#[cfg(test)]
mod tests;
mod validate;

pub use check::check_tensors;
pub use error::SpecError;
pub use gguf::ROPE_FREQS;
pub use table::{HfLayout, Role, TensorEntry, tensor_table};

/// Which family of names and defaults a model follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Family {
    /// GPT-2: LayerNorm, learned positions, GELU, biases, fused QKV, tied embedding.
    Gpt2,
    /// Llama: RMSNorm, RoPE, SwiGLU, grouped-query heads.
    Llama,
    /// Qwen 2 and 2.5: Llama with biases of q, k and v.
    Qwen2,
    /// Qwen 3: Llama with an RMSNorm of each head of q and k.
    Qwen3,
}

impl Family {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Gpt2, Self::Llama, Self::Qwen2, Self::Qwen3];
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
        /// Which two elements of a head turn together.
        pairing: Pairing,
        /// Divisor for each frequency (Llama 3's `rope_freqs.weight`, or a constant for linear scaling); empty means 1.
        /// [dim / 2]
        ///
        /// Zeros are a placeholder of [`ModelSpec::from_header`]: the file keeps the divisors in a tensor, see
        /// [`ModelSpec::set_rope_freqs`].
        freq_factors: Vec<f32>,
    },
}

/// Which two elements of a head RoPE turns together, in the order that a GGUF file keeps them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pairing {
    /// 2i and 2i + 1: Llama, whose q and k rows are reordered on the way from Hugging Face's files.
    Neighbours,
    /// i and i + dim / 2, which llama.cpp calls `NeoX`: Qwen, whose rows stay as Hugging Face has them.
    Halves,
}

/// Which linear layers have biases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Bias {
    /// None.
    None,
    /// The projections to q, k and v.
    Qkv,
    /// All but the output matrix.
    All,
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
    /// Biases of the linear layers.
    pub bias: Bias,
    /// Whether each head of q and k is normalised (RMSNorm, one weight for all heads) before it is rotated.
    pub qk_norm: bool,
    /// Whether the output matrix is the token embedding.
    pub tied_embedding: bool,
}

impl ModelSpec {
    /// Weights of the model; a tied embedding counts once.
    pub fn n_parameters(&self) -> u64 {
        tensor_table(self)
            .iter()
            .map(|entry| entry.shape.iter().map(|&n| n as u64).product::<u64>())
            .sum()
    }
}
