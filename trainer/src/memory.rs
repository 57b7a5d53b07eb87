//! What a model takes in memory where it runs, from its architecture and types alone.

use fledgling_core::{
    cpu::{CpuMemory, KvDType},
    quant::DType,
    spec::{Mlp, ModelSpec, Norm, Pairing, Position, Role, TensorEntry, tensor_table},
};
use serde::Serialize;

/// Tokens of a prompt that a GPU takes at once (`Tuning::HARDWARE` of `runtime-wasm/src/gpu.rs`).
const GPU_TILE: usize = 128;
/// Types that have shaders (`runtime-wasm/src/kernels.rs`).
const SHADER_TYPES: [DType; 6] = [
    DType::F32,
    DType::F16,
    DType::BF16,
    DType::Q8_0,
    DType::Q4_0,
    DType::Q4_1,
];
/// What the command takes before any model: its own pages and the allocator's. Measured (docs/gguf-keys.md).
const PROGRAM_BYTES: u64 = 16 << 20;
/// The header is mapped, and what it says is held twice: as metadata and as the tokenizer's tables. Measured likewise.
const HEADER_COPIES: u64 = 5;

/// Bytes of a model at work with one conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Need {
    /// Positions of the conversation.
    pub n_ctx: usize,
    /// Weights: on a CPU mapped from the file, on a GPU uploaded.
    pub weights_bytes: u64,
    /// Keys and values.
    pub kv_bytes: u64,
    /// Activations, logits and tables.
    pub scratch_bytes: u64,
    /// On a CPU the program, the header and the tokenizer.
    pub program_bytes: u64,
    /// All of it.
    pub total_bytes: u64,
}

impl Need {
    fn new(n_ctx: usize, weights: u64, kv: u64, scratch: u64, program: u64) -> Self {
        Self {
            n_ctx,
            weights_bytes: weights,
            kv_bytes: kv,
            scratch_bytes: scratch,
            program_bytes: program,
            total_bytes: weights + kv + scratch + program,
        }
    }
}

/// On a CPU, in `fledgling generate`: [`CpuMemory`] with the program around it. `header_bytes` are those before the tensors.
pub fn on_cpu(
    spec: &ModelSpec,
    dtype_of: impl Fn(&TensorEntry) -> DType,
    n_ctx: usize,
    n_threads: usize,
    header_bytes: u64,
) -> Need {
    let memory = CpuMemory::estimate(spec, dtype_of, n_ctx, KvDType::F16, n_threads);
    let scratch = memory.scratch_bytes + memory.tables_bytes;
    let program = PROGRAM_BYTES + HEADER_COPIES * header_bytes;
    Need::new(
        n_ctx,
        memory.weights_bytes,
        memory.kv_bytes,
        scratch,
        program,
    )
}

/// On a GPU: the buffers that `runtime-wasm` makes (`weights.rs`, `engine.rs`). Nothing, where a matrix has a type without
/// shaders.
pub fn on_gpu(
    spec: &ModelSpec,
    dtype_of: impl Fn(&TensorEntry) -> DType,
    n_ctx: usize,
) -> Option<Need> {
    let ModelSpec {
        n_layer,
        n_embd,
        n_ff,
        n_head,
        n_kv_head,
        head_dim,
        vocab_size,
        ..
    } = *spec;
    let mut weights = 0;
    for entry in tensor_table(spec) {
        let &[n_rows, n_cols] = &entry.shape[..] else {
            continue;
        };
        // Positions are uploaded as values.
        let row_bytes = if entry.role == Role::PositionEmbd {
            4 * n_cols
        } else {
            gpu_row_bytes(dtype_of(&entry), n_cols)?
        };
        weights += n_rows * row_bytes;
    }
    // Each matrix has the norm before it and a bias beside it, zeros where there is none.
    let norm = match spec.norm {
        Norm::LayerNorm => 2 * n_embd,
        Norm::RmsNorm => n_embd,
    };
    let up = match spec.mlp {
        Mlp::Gelu => n_ff,
        Mlp::SwiGlu => 2 * n_ff,
    };
    let qkv = (n_head + 2 * n_kv_head) * head_dim;
    weights += 4 * n_layer * (norm + qkv + n_embd + norm + up + n_embd);
    weights += 4 * (n_embd + norm + vocab_size);
    // A word holds an element of k and of v.
    let kv = 4 * n_layer * n_ctx * n_kv_head * head_dim;
    let has_head_step = spec.qk_norm
        || matches!(
            spec.position,
            Position::Rope {
                pairing: Pairing::Halves,
                ..
            }
        );
    let heads = if has_head_step { qkv } else { 0 };
    let tile = GPU_TILE * (1 + n_embd + heads + 2 * n_head * head_dim + n_ff);
    // Logits where they are made, and where they are read.
    let scratch = 4 * (tile + 2 * vocab_size + n_ctx * head_dim);
    Some(Need::new(
        n_ctx,
        weights as u64,
        kv as u64,
        scratch as u64,
        0,
    ))
}

/// A row on the GPU: quants and words of scales, or floats padded to 16 bytes.
fn gpu_row_bytes(dtype: DType, n_cols: usize) -> Option<usize> {
    if !SHADER_TYPES.contains(&dtype) {
        return None;
    }
    let scales = n_cols.div_ceil(32) * 4;
    Some(match dtype {
        DType::Q8_0 => n_cols + scales,
        DType::Q4_0 | DType::Q4_1 => n_cols / 2 + scales,
        DType::F32 => (4 * n_cols).next_multiple_of(16),
        _ => (2 * n_cols).next_multiple_of(16),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use fledgling_core::{spec::Family, testing::tiny_spec};

    #[test]
    fn a_gpu_has_no_shaders_for_some_types() {
        let spec = tiny_spec(Family::Llama);
        assert!(on_gpu(&spec, |_| DType::Q8_0, 128).is_some());
        assert_eq!(on_gpu(&spec, |_| DType::Q5_0, 128), None);
    }

    #[test]
    fn keys_and_values_are_two_bytes_each_everywhere() {
        let spec = tiny_spec(Family::Llama);
        let expected = (2 * 2 * spec.n_layer * spec.n_kv_head * spec.head_dim * 100) as u64;
        let cpu = on_cpu(&spec, |_| DType::Q8_0, 100, 1, 0);
        let gpu = on_gpu(&spec, |_| DType::Q8_0, 100).unwrap();
        assert_eq!((cpu.kv_bytes, gpu.kv_bytes), (expected, expected));
        assert_eq!(
            cpu.total_bytes,
            cpu.weights_bytes + cpu.kv_bytes + cpu.scratch_bytes + cpu.program_bytes
        );
    }

    #[test]
    fn rows_on_a_gpu_have_words_of_scales() {
        assert_eq!(gpu_row_bytes(DType::Q8_0, 64), Some(64 + 8));
        assert_eq!(gpu_row_bytes(DType::Q4_1, 64), Some(32 + 8));
        assert_eq!(gpu_row_bytes(DType::F16, 3), Some(16));
    }
}
