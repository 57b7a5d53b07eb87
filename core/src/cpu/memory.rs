//! What the engine will take, from the architecture alone: what [`super::CpuEngine`], [`super::Session`] and the forward pass allocate.

use super::{CHUNK, KvDType, kernels::QuantBlock};
use crate::{
    quant::DType,
    spec::{Mlp, ModelSpec, Position, TensorEntry, tensor_table},
};

/// Rows that a kernel unpacks at a time, at most.
const TILE_ROWS: usize = 32;

/// Bytes of an engine with one session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuMemory {
    /// Matrices, as they lie in the file: mapped, and given back by the system when it needs the memory.
    pub weights_bytes: u64,
    /// Vectors as f32, and the table of rotations.
    pub tables_bytes: u64,
    /// Keys and values of all positions. The system provides them as they are used.
    pub kv_bytes: u64,
    /// Activations, logits, and what each thread has for itself.
    pub scratch_bytes: u64,
}

impl CpuMemory {
    /// Of a model with its matrices in the types `dtype_of`, for a session of `n_ctx` positions.
    pub fn estimate(
        spec: &ModelSpec,
        dtype_of: impl Fn(&TensorEntry) -> DType,
        n_ctx: usize,
        kv: KvDType,
        n_threads: usize,
    ) -> Self {
        let (mut weights, mut tables) = (0, 0);
        for entry in tensor_table(spec) {
            let n_values: usize = entry.shape.iter().product();
            if entry.shape.len() > 1 {
                let dtype = dtype_of(&entry);
                weights += n_values.div_ceil(dtype.block_len()) * dtype.block_bytes();
            } else {
                tables += 4 * n_values;
            }
        }
        if let Position::Rope { dim, .. } = spec.position {
            tables += n_ctx * dim / 2 * size_of::<(f32, f32)>();
        }
        let kv_values = 2 * spec.n_layer * spec.n_kv_head * spec.head_dim * n_ctx;
        Self {
            weights_bytes: weights as u64,
            tables_bytes: tables as u64,
            kv_bytes: (kv_values * kv.size_bytes()) as u64,
            scratch_bytes: scratch(spec, n_ctx, n_threads) as u64,
        }
    }

    /// All of it.
    pub fn total_bytes(&self) -> u64 {
        self.weights_bytes + self.tables_bytes + self.kv_bytes + self.scratch_bytes
    }
}

/// What the forward pass holds of a chunk of a prompt, and of one row of logits.
fn scratch(spec: &ModelSpec, n_ctx: usize, n_threads: usize) -> usize {
    let ModelSpec {
        n_embd,
        n_ff,
        n_head,
        n_kv_head,
        head_dim,
        vocab_size,
        ..
    } = *spec;
    let n_rows = CHUNK.min(n_ctx);
    let widest_input = n_embd.max(n_head * head_dim).max(n_ff);
    let up = match spec.mlp {
        Mlp::Gelu => n_ff,
        Mlp::SwiGlu => 2 * n_ff,
    };
    let widest_output = ((n_head + 2 * n_kv_head) * head_dim).max(up).max(n_embd);
    let input = 4 * widest_input + widest_input.div_ceil(32) * size_of::<QuantBlock>();
    let rows = n_rows * (4 * n_embd + input + 4 * widest_output);
    // A tile of unpacked weights with scales and minima, and the scores of the heads that share keys.
    let tile = TILE_ROWS * (2 * widest_input + 8 * widest_input.div_ceil(32));
    let scores = 4 * n_ctx * (n_head / n_kv_head);
    rows + 4 * vocab_size + n_threads * (tile + scores)
}
