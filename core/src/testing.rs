//! Tiny random models built in memory, for the tests of the crates above (feature `testing`).

use crate::{quant::DType, spec::Family};

/// A complete GGUF file of a tiny model with random weights: 2 layers, 64 wide, 4 heads (2 for k and v in Llama),
/// context 128, byte-level tokenizer of about 300 ids with `<|im_start|>`, `<|im_end|>` and `<|endoftext|>`,
/// a ChatML template; matrices in `dtype`. The same seed gives the same bytes.
pub fn tiny_model(_family: Family, _dtype: DType, _seed: u64) -> Vec<u8> {
    todo!()
}
